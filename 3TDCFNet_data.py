#!/usr/bin/env python3
"""Work on smear data: split it without leaks, synthesise it, cut it into tiles.

Examples:
    python 3TDCFNet_data.py synthesize datasets/synthetic --count 240 --seed 1
    python 3TDCFNet_data.py tile AneRBC_dataset/AneRBC-I datasets/tiles
    python 3TDCFNet_data.py split datasets/tiles --out split.csv
"""

from __future__ import annotations

import sys
from argparse import Namespace

from options import parse_data_command
from util.errors import UserError, run_door


def split(given: Namespace) -> None:
    """Write a split file and say what stands where."""
    from data.datasets import describe_split, open_dataset, print_data, split_for_training
    from data.splits import write_split

    if given.out.exists() and not given.overwrite:
        raise UserError(f"{given.out} exists", remedy="choose another --out, or replace it (--overwrite)")
    dataset = open_dataset(str(given.dataroot), seed=given.seed)
    held_out = given.val_fraction + given.test_fraction
    fractions = (1 - held_out, given.val_fraction, given.test_fraction)
    rows = split_for_training(
        dataset, split_file=None, fractions=fractions, seed=given.seed, drop_duplicates=given.duplicates == "drop"
    )
    write_split(given.out, rows)
    print_data(describe_split(dataset, rows))
    print(f"split file: {given.out}")


def synthesize(given: Namespace) -> None:
    """Write a synthetic data set."""
    from data.synthetic_writer import write_dataset

    write_dataset(
        given.out,
        count=given.count,
        seed=given.seed,
        size=given.size,
        workers=given.workers,
        overwrite=given.overwrite,
    )
    print(f"{given.count} synthetic smears: {given.out}")


def tile(given: Namespace) -> None:
    """Cut AneRBC-I into tiles."""
    from data.tiles import tile_dataset

    count = tile_dataset(
        given.source,
        given.out,
        columns=given.columns,
        rows=given.rows,
        workers=given.workers,
        overwrite=given.overwrite,
    )
    print(f"{count} tiles: {given.out}")


def main() -> int:
    """Parse and do the one thing asked for."""
    given = parse_data_command(sys.argv[1:], prog="3TDCFNet_data.py", description=__doc__)
    {"split": split, "synthesize": synthesize, "tile": tile}[given.action](given)
    return 0


if __name__ == "__main__":
    run_door(main)
