"""A trained network as a checkpoint holds it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from models.network import PRESETS, TIERS, Architecture, ThreeTierDCFNet
from util.checkpoint import load_checkpoint, load_weights
from util.errors import UserError

# What weights must hold, and as what.
CONTENT: dict[str, type] = {
    "architecture": dict,
    "network": dict,
    "open_tiers": int,
    "draws_masks": bool,
    "decoder_ready": bool,
    "all_masks": bool,
    "unpaired_binary": str,
    "epoch": int,
    "tiers_opened": dict,
    "options": dict,
    "data": dict,
    "starts": dict,
}


@dataclass(frozen=True)
class SavedNetwork:
    """A network and what its checkpoint says of it.

    Attributes:
        network: with its weights, on the CPU.
        facts: everything else in the checkpoint, in plain types.
        path: where it came from.
    """

    network: ThreeTierDCFNet
    facts: dict[str, Any]
    path: Path

    @property
    def binary_sees(self) -> str:
        """What the binary stream sees of a new image: "predicted", or "otsu" as in training images without a true mask.

        The same for every image, whether or not it has a true mask: at test a mask file must not change a verdict.
        """
        rule = self.facts["unpaired_binary"]
        left_with_otsu = rule == "otsu" or (rule == "auto" and not self.facts["decoder_ready"])
        if not self.network.draws_masks or (left_with_otsu and not self.facts["all_masks"]):
            return "otsu"
        return "predicted"

    @property
    def masks_from(self) -> str:
        """Whose masks are worth writing: "decoder", or "otsu" where the decoder never learned from a true mask."""
        return "decoder" if self.network.draws_masks else "otsu"

    def check_sizes(self, load_size: int, fine_size: int) -> None:
        """Raise UserError unless the images will have the size that the network was trained on."""
        trained = self.network.architecture.fine_size
        if fine_size != trained:
            raise UserError(
                f"--fineSize {fine_size} is not the input size of {self.path}",
                expected=f"--fineSize {trained}",
                found=f"--loadSize {load_size} --fineSize {fine_size}",
                remedy=f"use --fineSize {trained} and a --loadSize of at least that",
            )


def _architecture(path: Path, stored: dict[str, Any]) -> Architecture:
    known = {field.name for field in fields(Architecture)}
    remedy = "use the version of the toolkit that wrote it, or train again"
    kinds: dict[str, Any] = {"fine_size": int, "dropout": int | float, "binary_stream": bool, "fusion": bool}
    right = all(isinstance(stored.get(key), kind) for key, kind in kinds.items())
    if not right or set(stored) != known or stored.get("preset") not in PRESETS:
        raise UserError(
            f"{path} is of another architecture",
            expected=f"{', '.join(sorted(known))}, with preset out of {', '.join(PRESETS)}",
            found=str(stored)[:200],
            remedy=remedy,
        )
    return Architecture(
        str(stored["preset"]),
        int(stored["fine_size"]),
        float(stored["dropout"]),
        binary_stream=stored["binary_stream"],
        fusion=stored["fusion"],
    )


def load_network(path: Path) -> SavedNetwork:
    """Build the network that a checkpoint describes and load its weights.

    Raises:
        UserError: the file is missing, damaged, of another project or of another architecture.
    """
    content = load_checkpoint(path)
    wrong = [
        f"{key} ({'missing' if key not in content else 'not a ' + kind.__name__})"
        for key, kind in CONTENT.items()
        if not isinstance(content.get(key), kind)
    ]
    if wrong:
        raise UserError(
            f"{path} holds no network to test",
            expected="weights written by 3TDCFNet_train.py (latest_net_..., best_net_...)",
            found=f"a checkpoint with wrong content: {', '.join(wrong[:4])}",
            remedy="use other weights of the run (--which_epoch), or train again",
        )
    network = ThreeTierDCFNet(_architecture(path, content["architecture"]))
    load_weights(network, content["network"], path)
    network.open(min(TIERS, max(1, content["open_tiers"])))
    if not content["draws_masks"]:
        network.rest_decoder()
    facts = {key: value for key, value in content.items() if key != "network"}
    return SavedNetwork(network, facts, path)
