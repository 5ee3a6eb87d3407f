"""Compiling pieces of the network (``--compile``): quicker steps after minutes of waiting."""

from __future__ import annotations

import sys

from torch import nn

from models.network import TIER_NAMES, ThreeTierDCFNet

WARNING = (
    "--compile: {count} pieces are compiled when each is first used, again when a tier opens and for validation. "
    "Each takes from half a minute to three; it pays in runs of hours on a GPU."
)


def pieces(network: ThreeTierDCFNet) -> dict[str, nn.Module]:
    """What is compiled, by name: the RGB backbones, whose many small operations gain most, and the mask decoder.

    Whole the network would take longer to compile than all of its pieces, and again for every opened tier.
    """
    found: dict[str, nn.Module] = {
        f"Tier {index + 1} ({TIER_NAMES[index]})": network.get_submodule(f"tiers.{index}.rgb")
        for index in range(len(TIER_NAMES))
    }
    return found | {"mask decoder": network.decoder} if network.draws_masks else found


def compile_pieces(network: ThreeTierDCFNet) -> None:
    """Let the pieces be compiled at their first use, and say what that costs; names in the state stay as they are.

    Copies of the network (the running average, the folded one for judging) are not compiled.
    """
    found = pieces(network)
    print(WARNING.format(count=len(found)), file=sys.stderr, flush=True)
    for module in found.values():
        module.compile()
