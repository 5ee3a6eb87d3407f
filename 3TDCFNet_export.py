#!/usr/bin/env python3
"""Export a trained 3-TierDCFNet as one file for other programmes: ONNX, or torch.export's form.

Examples:
    python 3TDCFNet_export.py --name SEG --to onnx
    python 3TDCFNet_export.py --name SEG --to onnx --out seg.onnx --dataroot smears
    python 3TDCFNet_export.py --name SEG --to torch --out seg.pt2

The file is written only if it says the same as the network, to 1e-4, on the images of --dataroot.
"""

from __future__ import annotations

import sys

from options.export_command import parse_export_command
from util.errors import run_door


def main() -> None:
    """Parse, load the network, export, compare, write."""
    given = parse_export_command(sys.argv[1:], prog="3TDCFNet_export.py", description=__doc__ or "")

    from data.examples import example_batch
    from models.export import SUFFIXES, check_destination, export_network, metadata_of, sides_move
    from models.novelty import digest_of
    from models.onnx_backend import require_packages
    from models.saved import load_network
    from util.runlog import RunFolder

    weights = RunFolder(given.checkpoints_dir, given.name).weights_or_error(given.which_epoch)
    out = given.out or weights.with_suffix(SUFFIXES[given.to])
    check_destination(out, given.to, overwrite=given.overwrite)
    if given.to == "onnx":
        require_packages()
    saved = load_network(weights)
    side = saved.network.architecture.fine_size
    images, masks = example_batch(given.dataroot, side, given.images)
    facts = metadata_of(saved, given.name, digest_of(weights), given.to)
    if given.to == "torch" and sides_move(saved, given.to):
        print("tracing the network for every size takes minutes", flush=True)
    checked = export_network(saved, out, given.to, facts, images, masks)
    print(f"{checked}\nsides: {facts['sides']}\nexported: {out.resolve()}, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_door(main)
