"""A trained network as a checkpoint holds it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from models.network import PRESETS, TIERS, Architecture, ThreeTierDCFNet
from util import sides
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
BINARY_RULES = ("auto", "predicted", "otsu")


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
    kinds: dict[str, Any] = {"preset": str, "fine_size": int, "dropout": int | float, "binary_stream": bool}
    kinds["fusion"] = bool
    right = all(isinstance(stored.get(key), kind) for key, kind in kinds.items())
    right = right and type(stored["fine_size"]) is int and stored["fine_size"] in sides.INPUT
    right = right and 0 <= stored["dropout"] < 1
    if not right or set(stored) != known or stored.get("preset") not in PRESETS:
        raise UserError(
            f"{path} is of another architecture",
            expected=f"{', '.join(sorted(known))}, with preset out of {', '.join(PRESETS)}, "
            f"fine_size from {sides.INPUT[0]} to {sides.INPUT[-1]} and dropout from 0 to below 1",
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


def _check_finite(network: ThreeTierDCFNet, path: Path) -> None:
    bad = [key for key, value in network.state_dict().items() if not value.isfinite().all()]
    if bad:
        raise UserError(
            f"{path}: the network's weights have diverged",
            expected="finite numbers",
            found=f"NaN or infinity in {len(bad)} tensors, first {bad[0]}",
            remedy="use weights of an earlier epoch (--which_epoch), or train again with a lower --lr",
        )


def load_network(path: Path) -> SavedNetwork:
    """Build the network that a checkpoint describes and load its weights.

    Raises:
        UserError: the file is missing, damaged, of another project or architecture, or its weights are not finite.
    """
    content = load_checkpoint(path)
    content = content if isinstance(content, dict) else {}
    wrong = [
        f"{key} ({'missing' if key not in content else 'not a ' + kind.__name__})"
        for key, kind in CONTENT.items()
        if not isinstance(content.get(key), kind)
    ]
    if not wrong and content["unpaired_binary"] not in BINARY_RULES:
        wrong = [f"unpaired_binary (not {', '.join(BINARY_RULES)})"]
    if wrong:
        raise UserError(
            f"{path} holds no network to test",
            expected="weights written by 3TDCFNet_train.py (latest_net_..., best_net_...)",
            found=f"a checkpoint with wrong content: {', '.join(wrong[:4])}",
            remedy="use other weights of the run (--which_epoch), or train again",
        )
    network = ThreeTierDCFNet(_architecture(path, content["architecture"]))
    load_weights(network, content["network"], path)
    _check_finite(network, path)
    network.open(min(TIERS, max(1, content["open_tiers"])))
    if not content["draws_masks"]:
        network.rest_decoder()
    facts = {key: value for key, value in content.items() if key != "network"}
    return SavedNetwork(network, facts, path)
