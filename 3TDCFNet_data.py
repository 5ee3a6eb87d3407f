#!/usr/bin/env python3
"""Work on smear data: examine it, split it without leaks, synthesise it, cut it into tiles.

Examples:
    python 3TDCFNet_data.py synthesize datasets/synthetic --count 240 --seed 1
    python 3TDCFNet_data.py doctor datasets/synthetic --html doctor.html --fix manifest.csv
    python 3TDCFNet_data.py tile AneRBC_dataset/AneRBC-I datasets/tiles
    python 3TDCFNet_data.py split datasets/tiles --out split.csv
"""

from __future__ import annotations

import sys
from argparse import Namespace

from options import parse_data_command
from util.errors import run_door


def doctor(given: Namespace) -> int:
    """Say what is wrong with a data root; the exit status is 1 where an error was found."""
    from data import commands

    drop_near = given.near_duplicates == "drop"
    outputs = commands.DoctorOutputs(given.json, given.html, given.fix, drop_near, given.overwrite)
    return commands.doctor(
        given.dataroot,
        outputs,
        image_root=given.image_root,
        workers=given.workers,
        split_by=given.split_by,
        block_size=given.block_size,
        folds=given.folds,
        seed=given.seed,
    )


def split(given: Namespace) -> None:
    """Write a split file, or one for each fold, and say what stands where."""
    from data.commands import write_splits
    from data.run_split import SplitPlan

    plan = SplitPlan.of(given)
    write_splits(given.dataroot, given.out, plan, image_root=given.image_root, overwrite=given.overwrite)


def synthesize(given: Namespace) -> None:
    """Write a synthetic data set."""
    from data.synthetic_writer import write_dataset

    write_dataset(
        given.out,
        count=given.count,
        seed=given.seed,
        size=given.size,
        masks=given.masks,
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


ACTIONS = {"doctor": doctor, "split": split, "synthesize": synthesize, "tile": tile}


def main() -> int:
    """Parse and do the one thing asked for."""
    given = parse_data_command(sys.argv[1:], prog="3TDCFNet_data.py", description=__doc__)
    return ACTIONS[given.action](given) or 0


if __name__ == "__main__":
    run_door(main)
