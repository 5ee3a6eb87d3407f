#!/usr/bin/env python3
"""Gather what the shipped weights were trained on: real smears with labels, those with masks, and synthetic ones.

    python scripts/shipped_data.py --smears AneRBC-I --with_masks AneRBC-I --out datasets/shipped
    python 3TDCFNet_train.py --dataroot datasets/shipped/manifest.csv --name SEG ...

The smears are split by group (seed 0); tiles and whole smears with masks stand on the side of their parent. These and
the synthetic smears teach masks only: they are unlabelled here. One more folder of these shows a field as large
as AneRBC-I's, so that cells of both sizes are known.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from data.datasets import open_dataset  # noqa: E402 - the path must be set first
from data.manifest import MANIFEST_FILE, write_manifest  # noqa: E402
from data.readers import read_dataroot  # noqa: E402
from data.records import SmearRecord  # noqa: E402
from data.splits import make_split  # noqa: E402
from data.synthetic_writer import write_dataset  # noqa: E402
from data.tiles import tile_dataset  # noqa: E402
from util.errors import run_door  # noqa: E402
from util.files import make_folder  # noqa: E402

SPLIT_SEED = 0
LARGE_FIELD = 1200  # pixels; four times the network's input, as AneRBC-I's 1224x960
VALIDATION_EVERY = 8  # one synthetic smear in so many

Place = tuple[str, str]  # side and group


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--smears", required=True, help="AneRBC-I, at any resolution; masks are not needed")
    add("--with_masks", required=True, help="AneRBC-I in full resolution with masks, or a part of it")
    add("--out", type=Path, required=True, help="folder to make")
    add("--synthetic", type=int, default=240, help="synthetic smears of 300x300")
    add("--large", type=int, default=48, help=f"synthetic smears of {LARGE_FIELD}x{LARGE_FIELD}")
    return parser.parse_args()


def copied(record: SmearRecord, out: Path, folder: str, place: Place) -> SmearRecord:
    """Copy a smear, and its mask where it has one, below ``out``/``folder``."""
    label = f"{folder}/{'unknown' if record.label is None else record.label}"
    image = out / label / "rgb" / record.image.name
    mask = out / label / "binary" / record.mask.name if record.mask else None
    for source, target in ((record.image, image), (record.mask, mask)):
        if source is not None and target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    name = image.relative_to(out).as_posix()
    side, group = place
    return SmearRecord(
        name=name,
        image=image,
        mask=mask,
        mask_dark=record.mask_dark,
        label=record.label,
        parent=record.parent or record.image.stem,
        patient=group,
        split=side,
    )


def labelled(root: str, out: Path) -> tuple[list[SmearRecord], dict[str, Place]]:
    """The smears that are kept, copied, and where each parent image stands; what is left out stands nowhere."""
    dataset = open_dataset(root)
    rows = make_split(dataset.records, dataset.digests, seed=SPLIT_SEED, near=dataset.near)
    places = {row.image: (row.split, row.group) for row in rows}
    kept = [record for record in dataset.records if places[record.name][0] != "excluded"]
    stands = {record.parent or record.image.stem: places[record.name] for record in dataset.records}
    return [copied(record, out, "smears", places[record.name]) for record in kept], stands


def with_masks(root: Path, out: Path, folder: str, stands: dict[str, Place]) -> Iterator[SmearRecord]:
    """Smears or tiles with masks, copied, on the sides of their parents."""
    for record in read_dataroot(root):
        side, group = stands.get(record.parent or record.image.stem, ("excluded", ""))
        if side != "excluded" and record.mask is not None:
            # Unlabelled: of so few smears the size of a cell would tell the class.
            yield replace(copied(record, out, folder, (side, group)), label=None)


def synthetic(out: Path, folder: str, count: int, size: int, seed: int) -> Iterator[SmearRecord]:
    """Unlabelled synthetic smears with masks like AneRBC's, one in eight for validation."""
    write_dataset(out / folder, count=count, seed=seed, size=size, masks="anerbc", overwrite=True)
    for index, record in enumerate(read_dataroot(out / folder)):
        side = "val" if index % VALIDATION_EVERY == 0 else "train"
        name, own = record.image.relative_to(out).as_posix(), f"drawn, {folder} {record.image.stem}"
        yield replace(record, name=name, label=None, severity=None, cbc=None, parent=own, patient=own, split=side)


def main() -> int:
    """Gather, and write the manifest."""
    given = arguments()
    out = given.out.absolute()
    make_folder(out)
    records, stands = labelled(given.smears, out)
    source = Path(given.with_masks)
    tile_dataset(source, out / "cut", overwrite=True)
    records += with_masks(source, out, "whole", stands)
    records += with_masks(out / "cut", out, "tiles", stands)
    shutil.rmtree(out / "cut")
    records += synthetic(out, "synthetic", given.synthetic, 300, seed=1)
    records += synthetic(out, "synthetic_large", given.large, LARGE_FIELD, seed=2)
    write_manifest(out / MANIFEST_FILE, records, image_root=out)
    for side in ("train", "val", "test"):
        chosen = [record for record in records if record.split == side]
        masks = sum(record.mask is not None for record in chosen)
        known = sum(record.label is not None for record in chosen)
        print(f"{side}: {len(chosen)} images, {known} labelled, {masks} with masks")
    print(out / MANIFEST_FILE)
    return 0


if __name__ == "__main__":
    run_door(main)
