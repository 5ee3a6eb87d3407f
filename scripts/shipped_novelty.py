#!/usr/bin/env python3
"""Learn what the training images of saved weights are like, and keep it beside them; or measure what is warned of.

    python scripts/shipped_novelty.py --smears AneRBC-I --name SEG
    python scripts/shipped_novelty.py --measure AneRBC-I --name SEG --side test
    python scripts/shipped_novelty.py --measure chula_rbc12/Dataset --name SEG

Learning also draws the line through frozen features that a test compares with. A training keeps both by itself; the
script is for weights that were trained before, such as those that are shipped.
The labelled images of the run's training side are found among --smears by their pixels, whatever their names are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import numpy as np  # noqa: E402 - the path must be set first
import numpy.typing as npt  # noqa: E402
import torch  # noqa: E402

from data.contents import describe_contents  # noqa: E402
from data.loader import Batch  # noqa: E402
from data.split_file import SplitRow, read_split  # noqa: E402
from data.unlabelled import SmearStream, Unlabelled, batches_of, find_smears  # noqa: E402
from models.frozen import learn_line  # noqa: E402
from models.judges import NetworkJudge, Panel, trained_size  # noqa: E402
from models.novelty import Novelty, learn, reference_path  # noqa: E402
from models.saved import load_network  # noqa: E402
from util.errors import UserError, run_door  # noqa: E402
from util.runlog import RunFolder  # noqa: E402

Picture = npt.NDArray[np.uint8]
AS_IT_IS = "as it is"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--smears", default="", help="a folder with the images that the run was trained on")
    add("--measure", default="", help="a folder of images: how many of them are warned of, also when damaged")
    add("--damaged", action="store_true", help="also measure these images blurred, tinted and so on")
    add("--side", default="", help="of the run's split: only its images of --measure")
    add("--name", default="SEG", help="the run")
    add("--which_epoch", default="latest", help="its weights")
    add("--checkpoints_dir", default=str(REPOSITORY / "checkpoints"), help="the folder of the runs")
    return parser.parse_args()


def of_side(dataroot: str, rows: Sequence[SplitRow]) -> tuple[Unlabelled, list[SplitRow]]:
    """The images of a folder that stand in a split, each content once, and their rows."""
    found = find_smears(dataroot)
    by_content = {row.content: row for row in rows}
    chosen: dict[str, int] = {}
    for position, digest in enumerate(describe_contents(found.records, progress=False)[0]):
        if digest in by_content:
            chosen.setdefault(digest, position)
    if not chosen:
        raise UserError(f"{dataroot}: none of the run's images", expected="the images that it was trained on")
    found.records = [found.records[position] for position in chosen.values()]
    return found, [by_content[digest] for digest in chosen]


def labelled(stream: SmearStream, rows: Sequence[SplitRow], load_size: int) -> Iterator[Batch]:
    """Whole images with the labels of the split."""
    for batches in stream.batches(torch.device("cpu")):
        batch = batches[load_size]
        labels = torch.tensor([rows[index].label for index in batch.index.tolist()])
        yield replace(batch, label=labels)


def damages() -> dict[str, Callable[[Picture], Picture]]:
    """Ways in which a good image may come out badly."""
    from PIL import Image, ImageFilter

    def blurred(radius: float) -> Callable[[Picture], Picture]:
        return lambda rgb: np.asarray(Image.fromarray(rgb).filter(ImageFilter.GaussianBlur(radius)))

    def hue(degrees: int) -> Callable[[Picture], Picture]:
        def turn(rgb: Picture) -> Picture:
            planes = np.array(Image.fromarray(rgb).convert("HSV"))
            planes[..., 0] = (planes[..., 0].astype(int) + round(degrees * 255 / 360)) % 256
            return np.asarray(Image.fromarray(planes, "HSV").convert("RGB"))

        return turn

    def noisy(rgb: Picture) -> Picture:
        grain = np.random.default_rng(0).normal(0, 10, rgb.shape)
        return np.clip(rgb + grain, 0, 255).astype(np.uint8)

    found: dict[str, Callable[[Picture], Picture]] = {AS_IT_IS: lambda rgb: rgb}
    found |= {f"blur, sigma {radius} px": blurred(radius) for radius in (1, 1.5, 2)}
    found |= {f"hue +{degrees} degrees": hue(degrees) for degrees in (30, 72, 180)}
    return found | {"noise, sd 10": noisy, "darker, x0.6": lambda rgb: (rgb * 0.6).astype(np.uint8)}


def measure(stream: SmearStream, panel: Panel, *, damaged: bool) -> None:
    """Print how many images are warned of, and by which measure."""
    print(f"{'damage':>18} {'images':>7} {'warned':>7} {'features':>9} {'focus':>6} {'stain':>6} {'median':>7}")
    for what, damage in damages().items():
        if what != AS_IT_IS and not damaged:
            continue
        told: list[Novelty] = []
        for position in range(len(stream.names)):
            rgb = damage(stream.pixels(position)[0])
            (said,) = panel(batches_of(rgb, panel.load_sizes, torch.device("cpu")))
            if said.novelty is not None:
                told.append(said.novelty)
        if not told:
            raise UserError(
                "nothing is known of what the training images are like",
                expected="a reference beside the weights, and images",
                found=f"no verdict on {len(stream.names)} images",
                remedy="learn one first (--smears)",
            )
        over = [[one.score > 1, (one.features or 0) > 1, one.focus > 1, one.stain > 1] for one in told]
        shares = "".join(f"{share:>8.3f}" for share in np.mean(over, axis=0))
        print(f"{what:>18} {len(told):>7}{shares} {np.median([one.score for one in told]):>7.2f}", flush=True)


def main() -> None:
    """Learn, or measure."""
    given = arguments()
    folder = RunFolder(given.checkpoints_dir, given.name)
    weights = folder.weights_or_error(given.which_epoch)
    saved = load_network(weights)
    size = trained_size(saved)
    rows = read_split(folder.split, leaks=True)
    if given.smears:
        known = [row for row in rows if row.split == "train" and row.label is not None]
        found, of = of_side(given.smears, known)
        print(f"{len(of)} of the {len(known)} labelled training images are there")
        stream = SmearStream(found, size, 8, otsu=False)
        reference = learn(weights, labelled(stream, of, size), [row.group for row in of], torch.device("cpu"))
        if reference is None:
            raise UserError("too few images to learn from", found=str(len(of)))
        print(f"{reference_path(weights)}: {reference_path(weights).stat().st_size} bytes")
        stream = SmearStream(found, size, 8, otsu=False)
        fine_size = saved.network.architecture.fine_size
        line = learn_line(folder.folder, labelled(stream, of, size), fine_size, torch.device("cpu"))
        print(f"a line through frozen features of {line.images} images" if line else "no ImageNet weights, no line")
    if given.measure:
        side = [row for row in rows if row.split == given.side and row.label is not None]
        found = of_side(given.measure, side)[0] if given.side else find_smears(given.measure)
        judge = NetworkJudge(saved, given.name, size, torch.device("cpu"))
        measure(SmearStream(found, size, 1, otsu=False), Panel([judge]), damaged=given.damaged)


if __name__ == "__main__":
    run_door(main)
