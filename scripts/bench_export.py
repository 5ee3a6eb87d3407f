#!/usr/bin/env python3
"""Measure how many images a second an exported network judges, by ONNX Runtime and by PyTorch, on the CPU.

    python scripts/bench_export.py --weights checkpoints/SEG/latest_net_3TDCFNet.safetensors
    python scripts/bench_export.py --weights ... --side 300 --batch 8 --threads 1,2 --rounds 15

PyTorch is measured as it is (eager) and as the toolkit runs it (eager, batch normalisation folded into the
convolutions, channels last). The kinds take turns, so that whatever else the machine does meets all of them alike;
figures are medians over the rounds, with the quartiles. Images a second of processor time, of all threads together,
hardly change with what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402 - the path must be set first
from torch import Tensor  # noqa: E402

from models.export import TOLERANCE, Judging, as_onnx, check, metadata_of, takes_mask  # noqa: E402
from models.folding import folded  # noqa: E402
from models.onnx_backend import OnnxModel, require_packages  # noqa: E402
from models.saved import SavedNetwork, load_network  # noqa: E402
from options.parser import Parser, value_parser  # noqa: E402
from options.values import at_least  # noqa: E402
from util.errors import UserError, run_door  # noqa: E402
from util.files import atomic_write  # noqa: E402

Kinds = dict[str, Callable[[], object]]


def thread_list(text: str) -> list[int]:
    """Parse numbers of threads."""
    counts = [int(part) for part in text.split(",")]
    if min(counts) < 1:
        raise ValueError("must be numbers of 1 or more, such as 1,2")
    return counts


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole = value_parser(at_least(1), int)
    weights = REPOSITORY / "checkpoints" / "SEG" / "latest_net_3TDCFNet.safetensors"
    parser.add_argument("--weights", type=Path, default=weights, help="the network")
    parser.add_argument("--side", type=whole, default=300, help="side of the images, pixels")
    parser.add_argument("--batch", type=whole, default=8, help="images in a call")
    parser.add_argument("--threads", type=value_parser(thread_list, str), default=[1, 2], help="numbers, such as 1,2")
    parser.add_argument("--rounds", type=whole, default=15, help="timed calls of each kind")
    parser.add_argument("--json", type=Path, default=None, help="write the figures for programmes")
    return parser.parse_args(argv)


def kinds_of(saved: SavedNetwork, content: bytes, images: Tensor, threads: int) -> Kinds:
    """One call of each kind."""
    masks = (images[:, :1] > 0.5).float() if takes_mask(saved) else None
    model = OnnxModel(content, threads=threads)
    eager = Judging(saved.network.eval(), given_masks=takes_mask(saved)).eval()
    quick = Judging(folded(saved.network), given_masks=takes_mask(saved)).to(memory_format=torch.channels_last).eval()
    last = images.contiguous(memory_format=torch.channels_last)
    return {
        "ONNX Runtime": lambda: model(images, masks),
        "PyTorch, eager": lambda: eager(images, masks),
        "PyTorch, folded, channels last": lambda: quick(last, masks),
    }


@torch.no_grad()
def rates(kinds: Kinds, rounds: int, images: int) -> dict[str, list[tuple[float, float]]]:
    """Images a second, and a second of processor time, of each kind, a pair a round; the kinds take turns."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for number in range(rounds + 2):  # two to warm up
        for name, call in kinds.items():
            start, busy = time.perf_counter(), time.process_time()
            call()
            if number >= 2:
                wall, core = time.perf_counter() - start, time.process_time() - busy
                found[name].append((images / wall, images / core))
    return found


def described(values: Sequence[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3
    return f"{middle:6.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Export in memory, check, measure, print."""
    given = parse(sys.argv[1:])
    require_packages()
    saved = load_network(given.weights)
    content = as_onnx(saved, metadata_of(saved, "bench", "", "onnx"))
    images = torch.rand(given.batch, 3, given.side, given.side, generator=torch.Generator().manual_seed(0))
    checked = check(OnnxModel(content), saved, images[:2], (images[:2, :1] > 0.5).float(), "onnx")
    if checked.largest > TOLERANCE:
        raise UserError("the exported network differs: its speed means nothing", found=str(checked))
    print(checked)
    print(f"{given.side}x{given.side}, batches of {given.batch}, {given.rounds} rounds; images a second")
    figures: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for threads in given.threads:
        torch.set_num_threads(threads)
        figures[str(threads)] = rates(kinds_of(saved, content, images, threads), given.rounds, given.batch)
        for name, pairs in figures[str(threads)].items():
            wall, core = (described(values) for values in zip(*pairs, strict=True))
            print(f"{threads} thread(s)  {name:31} {wall}; a second of processor time {core}", flush=True)
    if given.json:
        atomic_write(given.json, json.dumps({"settings": vars(given), "rates": figures}, default=str, indent=1) + "\n")


if __name__ == "__main__":
    run_door(main)
