"""A trained network as a checkpoint holds it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from models.network import PRESETS, TIERS, Architecture, ThreeTierDCFNet
from util.checkpoint import load_checkpoint, load_weights
from util.errors import UserError


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
    def uses_stand_in(self) -> bool:
        """Whether the binary stream was left with Otsu's masks for images without a true one."""
        rule = self.facts["unpaired_binary"]
        return rule == "otsu" or (rule == "auto" and not self.facts["decoder_ready"])

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


def _architecture(path: Path, stored: Any) -> Architecture:
    known = {field.name for field in fields(Architecture)}
    remedy = "use the version of the toolkit that wrote it, or train again"
    if not isinstance(stored, dict) or set(stored) != known or stored.get("preset") not in PRESETS:
        raise UserError(
            f"{path} is of another architecture",
            expected=f"{', '.join(sorted(known))}, with preset out of {', '.join(PRESETS)}",
            found=str(stored)[:200],
            remedy=remedy,
        )
    return Architecture(str(stored["preset"]), int(stored["fine_size"]), float(stored["dropout"]))


def load_network(path: Path) -> SavedNetwork:
    """Build the network that a checkpoint describes and load its weights.

    Raises:
        UserError: the file is missing, damaged, of another project or of another architecture.
    """
    content = load_checkpoint(path)
    missing = {"architecture", "network", "open_tiers", "draws_masks", "decoder_ready", "unpaired_binary"} - set(
        content
    )
    if missing:
        raise UserError(
            f"{path} holds no network to test",
            expected="weights written by 3TDCFNet_train.py (latest_net_..., best_net_...)",
            found=f"a checkpoint without {', '.join(sorted(missing))}",
            remedy="use --which_epoch latest or best",
        )
    network = ThreeTierDCFNet(_architecture(path, content["architecture"]))
    load_weights(network, content["network"], path)
    network.open(min(TIERS, max(1, int(content["open_tiers"]))))
    if not content["draws_masks"]:
        network.rest_decoder()
    facts = {key: value for key, value in content.items() if key != "network"}
    return SavedNetwork(network, facts, path)
