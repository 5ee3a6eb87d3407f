#!/usr/bin/env python3
"""Measure the way of an image from its file to the training step: decoding, the cache, batches, and what a step waits.

    python scripts/bench_loader.py --json rates.json
    python scripts/bench_loader.py --dataroot AneRBC_dataset --gpu_ids 0 --batch 64

Files are read once before anything is timed, so that a disk's speed is not part of it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import numpy as np  # noqa: E402 - the path must be set first
import PIL  # noqa: E402
import torch  # noqa: E402

from data.augment import Augmentation  # noqa: E402
from data.cache import open_decoded  # noqa: E402
from data.loader import Batch, BatchLoader, DecodedSmears, decode  # noqa: E402
from data.readers import read_dataroot  # noqa: E402
from data.records import SmearRecord  # noqa: E402
from util.cores import usable_cores  # noqa: E402
from util.device import choose_device  # noqa: E402
from util.errors import UserError, run_door  # noqa: E402
from util.files import atomic_write  # noqa: E402

SYNTHETIC = "synthetic"


class Rates(NamedTuple):
    """Repeated measurements of one thing.

    Attributes:
        wall: images a second.
        core: images a second of processor time; what a machine that does other work at the same time hardly changes.
    """

    wall: list[float]
    core: list[float]


class HostSmears(DecodedSmears):
    """Smears that stay on the host, as those do that a GPU's memory cannot hold."""

    def entries_on(self, device: torch.device) -> None:
        """None: nothing is kept on a device."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataroot", default=SYNTHETIC, help="smears to read; the word synthetic draws some into a temporary folder")
    add("--count", type=int, default=120, help="how many images: drawn, or the first of the data root")
    add("--size", type=int, default=300, help="side of the decoded images (and of those drawn), pixels")
    add("--batch", type=int, default=16, help="images in a batch")
    add("--workers", type=int, default=None, help="decoding threads, by default one per usable core")
    add("--gpu_ids", default="-1", help="where batches are made and the step runs: a GPU's number, -1 for the CPU")
    add("--preset", default="small", choices=("small", "full"), help="network of the training step")
    add("--seconds", type=float, default=1.0, help="least time of one measurement")
    add("--repeats", type=int, default=3, help="measurements of each; the table gives the median and the best")
    add("--steps", type=int, default=6, help="training steps of one measurement; 0 leaves them out")
    add("--json", type=Path, default=None, metavar="OUT", help="write the figures to this file")
    return parser.parse_args()


def say(what: str) -> None:
    """Tell who waits where it is."""
    print(what, file=sys.stderr)


def rates(work: Callable[[], int], device: torch.device, seconds: float, repeats: int) -> Rates:
    """Measure ``work``, which says how many images it did; once before, to warm up."""
    work()
    found = Rates([], [])
    for _ in range(repeats):
        done, started, processor = 0, time.perf_counter(), time.process_time()
        while done == 0 or time.perf_counter() - started < seconds:
            done += work()
            synchronize(device)
        found.wall.append(done / (time.perf_counter() - started))
        found.core.append(done / (time.process_time() - processor))
    return found


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that ``work`` takes, and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def epochs(loader: BatchLoader) -> Callable[[], int]:
    """Work that goes through a new epoch of a loader each time and does nothing with the batches."""
    numbers = iter(range(sys.maxsize))

    def work() -> int:
        loader.set_epoch(next(numbers))
        return sum(len(batch.label) for batch in loader)

    return work


def gathering(smears: DecodedSmears, batch: int) -> Callable[[], int]:
    """Work that copies every smear's bytes, in random order, into batches on the host."""

    def work() -> int:
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(smears)))
        return sum(len(smears.gather(part)) for part in order.split(batch))

    return work


def on_host(smears: DecodedSmears) -> HostSmears:
    """The same smears, never kept on a device."""
    names = ("entries", "rows", "load_size", "has_mask", "labels", "names", "sizes")
    return HostSmears(**{name: getattr(smears, name) for name in names})


def starts(records: Sequence[SmearRecord], options: argparse.Namespace, folder: Path) -> tuple[dict[str, float], Any]:
    """Seconds until the pixels can be used: without a cache, with an empty one, with a full one; and the smears."""

    def start(cache: Path | None) -> DecodedSmears:
        dataset = open_decoded(records, options.size, cache_dir=cache, workers=options.workers, progress=False)
        return dataset.smears(range(len(records)))

    found = {}
    for name, cache in {"no cache": None, "first, fills the cache": folder, "later, cached": folder}.items():
        begun = time.perf_counter()
        smears = start(cache)
        found[name] = time.perf_counter() - begun
    return found, smears


def feeding(smears: DecodedSmears, options: argparse.Namespace, device: torch.device) -> dict[str, Rates]:
    """Rates of cached smears on their way to the step."""

    def rate(work: Callable[[], int]) -> Rates:
        return rates(work, device, options.seconds, options.repeats)

    def loader(source: DecodedSmears, augment: Augmentation | None) -> BatchLoader:
        return training_batches(source, options, device, augment)

    works = {
        "cached: bytes gathered on the host": gathering(smears, options.batch),
        "cached: float batches": epochs(loader(smears, None)),
        "cached: float batches, augmented": epochs(loader(smears, Augmentation())),
    }
    if device.type == "cuda":
        works["cached: float batches, streamed from the host"] = epochs(loader(on_host(smears), None))
    found = {}
    for name, work in works.items():
        found[name] = rate(work)
        say(f"{name}: {statistics.median(found[name].wall):,.0f} images/s")
    return found


def training_batches(
    smears: DecodedSmears, options: argparse.Namespace, device: torch.device, augment: Augmentation | None
) -> BatchLoader:
    """Shuffled batches of all smears, whole."""
    return BatchLoader(
        smears,
        range(len(smears)),
        min(options.batch, len(smears)),
        options.size,
        device=device,
        augment=augment,
        shuffle=True,
        seed=0,
        drop_last=True,
    )


def steps(smears: DecodedSmears, options: argparse.Namespace, device: torch.device) -> dict[str, dict[str, float]]:
    """What a training step costs with the loader, and beside it with one batch that is always there."""
    from models.network import Architecture, ThreeTierDCFNet
    from models.trainer import Trainer, TrainerSettings

    network = ThreeTierDCFNet(Architecture(options.preset, options.size, 0.0))
    masks = {"any_masks": bool(smears.has_mask.any()), "all_masks": bool(smears.has_mask.all())}
    trainer = Trainer(network, TrainerSettings(), device, samples=len(smears), **masks)
    found = {}
    for name, augment in {"step": None, "step, augmented": Augmentation()}.items():
        loader = training_batches(smears, options, device, augment)
        found[name] = step_shares(loader, lambda batches: trainer.train_epoch(batches, 0), options)
        say(f"{name}: {found[name]['ms']:.0f} ms, waiting {found[name]['waiting']:.1%}")
    return found


class Meter:
    """Batches of a loader, epoch after epoch, and the seconds for which they were waited."""

    def __init__(self, loader: BatchLoader) -> None:
        self.loader, self.waited = loader, 0.0

    def __iter__(self) -> Iterator[Batch]:
        for epoch in count():
            self.loader.set_epoch(epoch)
            before = 0.0
            for batch in self.loader:
                self.waited += self.loader.waited - before
                before = self.loader.waited
                yield batch


def step_shares(
    loader: BatchLoader, train: Callable[[Iterator[Batch]], Any], options: argparse.Namespace
) -> dict[str, float]:
    """Milliseconds a step, and the shares of it that the loader takes.

    ``waiting`` is the time in which the step had to wait for the loader's threads; ``loader`` is all that the loader
    adds to a step, the work of its threads on the same cores and the augmentation included.
    """
    ready = next(iter(loader))
    train(repeat(ready, 2))  # kernels are chosen in the first steps
    fed, given, waited = [], [], []
    for _ in range(options.repeats):
        meter = Meter(loader)
        fed.append(timed(lambda: train(islice(iter(meter), options.steps)))[0] / options.steps)  # noqa: B023 - called at once
        waited.append(meter.waited / options.steps)
        given.append(timed(lambda: train(repeat(ready, options.steps)))[0] / options.steps)
    step, bare = statistics.median(fed), statistics.median(given)
    return {
        "ms": 1000 * step,
        "ms_batch_ready": 1000 * bare,
        "images_per_second": loader.batch_size / step,
        "waiting": statistics.median(waited) / step,
        "loader": max(0.0, 1 - bare / step),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware and versions, without names of persons or hosts."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": versions | {"pillow": PIL.__version__},
    }


def find_records(options: argparse.Namespace, folder: Path) -> list[SmearRecord]:
    """The smears to measure with, each file read once."""
    root = Path(options.dataroot)
    if options.dataroot == SYNTHETIC:
        from data.synthetic_writer import write_dataset

        root = folder / "smears"
        print(f"drawing {options.count} synthetic smears", file=sys.stderr)
        write_dataset(root, count=options.count, seed=0, size=options.size)
    records = read_dataroot(root)[: options.count]
    for path in {path for record in records for path in (record.image, record.mask) if path}:
        path.read_bytes()
    return records


def measure(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Every figure."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        records = find_records(options, folder)

        say(f"{len(records)} images; measuring decoding and starts")

        def decoding() -> int:
            return len(decode(records, options.size, workers=options.workers, progress=False))

        uncached = {"uncached: files decoded": rates(decoding, device, options.seconds, options.repeats)}
        seconds, smears = starts(records, options, folder / "cache")
        measured = uncached | feeding(smears, options, device)
        return {
            "machine": machine(device),
            "data": {
                "dataroot": options.dataroot,
                "images": len(records),
                "with_masks": int(smears.has_mask.sum()),
                "size": options.size,
                "batch": options.batch,
            },
            "images_per_second": {name: found._asdict() for name, found in measured.items()},
            "start_seconds": seconds,
            "training_step": steps(smears, options, device) if options.steps else {},
        }


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    facts, data = figures["machine"], figures["data"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    lines = [
        f"{facts['processor']}, {facts['cores']} cores ({facts['torch_threads']} torch threads), "
        f"device {facts['device']}; {versions}",
        f"{data['images']} images ({data['with_masks']} with masks) at {data['size']} x {data['size']}, "
        f"batches of {data['batch']}",
        "",
        "| images/s | median | best | per second of processor time |\n|---|---|---|---|",
    ]
    for name, found in figures["images_per_second"].items():
        core = statistics.median(found["core"])
        lines.append(f"| {name} | {statistics.median(found['wall']):,.0f} | {max(found['wall']):,.0f} | {core:,.0f} |")
    lines.append("\n| start | seconds |\n|---|---|")
    lines += [f"| {name} | {seconds:.2f} |" for name, seconds in figures["start_seconds"].items()]
    if figures["training_step"]:
        lines.append("\n| training step | ms | ms, batch ready | images/s | waiting | all the loader adds |")
        lines.append("|---|---|---|---|---|---|")
    for name, step in figures["training_step"].items():
        costs = f"{step['ms']:.1f} | {step['ms_batch_ready']:.1f} | {step['images_per_second']:.0f}"
        lines.append(f"| {name} | {costs} | {step['waiting']:.1%} | {step['loader']:.1%} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write."""
    options = arguments()
    for name in ("count", "size", "batch", "repeats"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}", expected="1 or more")
    figures = measure(options, choose_device(options.gpu_ids))
    print(table(figures))
    if options.json:
        atomic_write(options.json, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    run_door(main)
