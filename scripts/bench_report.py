#!/usr/bin/env python3
"""Measure the report: seconds to write it, peak memory, size of its folder, and how fast a browser shows and filters.

    python scripts/bench_report.py --images 1200,12000
    python scripts/bench_report.py --images 120000 --size 64 --folder /tmp/large

Each count of images goes through the test's own code (masks, pictures, metrics with intervals, tables, page) in a
process of its own; only the network is a stand-in that answers at once, and the smears are a few synthetic ones,
shifted.
The browser is a headless Chromium driven by selenium; without them these figures are left out, and that is said.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from util.errors import UserError, run_door  # noqa: E402 - the path must be set first
from util.files import atomic_write  # noqa: E402

DIFFERENT = 24  # synthetic smears, each shown shifted
BATCH = 32
PER_GROUP = 5
GOALS = {"seconds": 120.0, "memory_mib": 1536.0, "folder_mb": 400.0, "first_paint_ms": 2000.0, "filter_ms": 200.0}
GOALS_FOR = 12_000  # images of 300 x 300 that the goals are for


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="1200,12000", help="how many images, or several counts")
    parser.add_argument("--size", type=int, default=300, help="side of an image, pixels")
    parser.add_argument("--seed", type=int, default=0, help="of the verdicts")
    parser.add_argument("--folder", type=Path, help="keep the reports here; by default they are removed")
    parser.add_argument("--no_browser", action="store_true", help="write only")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, too")
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


class StandIn:
    """A network that answers at once: random verdicts, and masks that are nearly right."""

    open_tiers = 3

    def __init__(self, size: int, seed: int) -> None:
        import torch

        self.architecture = SimpleNamespace(fine_size=size)
        self.weights = torch.eye(4)
        self._generator = torch.Generator().manual_seed(seed)

    def to(self, *_: Any, **__: Any) -> StandIn:
        """It lies nowhere."""
        return self

    def eval(self) -> StandIn:
        """It learns nothing."""
        return self

    def verdicts(self, voices: Any) -> Any:
        """Each voice is a verdict."""
        return voices

    def __call__(self, rgb: Any, mask: Any, see_given: Any) -> Any:
        """Judge a batch whose ``mask`` is the true one and whose first value of ``rgb`` is the label."""
        import torch

        truth = rgb[:, 0, 0, 0]
        voices = 3 * (truth - 0.5)[:, None] + 1.5 * torch.randn(len(truth), 4, generator=self._generator)
        return SimpleNamespace(voices=voices, mask_probability=torch.roll(mask, 2, dims=3))


class ManySmears:
    """Data of a test: ``count`` images made of a few synthetic smears, and a tenth as many to validate on."""

    masks_from = "decoder"

    def __init__(self, count: int, size: int) -> None:
        from data.records import SmearRecord
        from data.synthetic import synthesize

        smears = [synthesize(index, seed=1, size=size) for index in range(DIFFERENT)]
        self.count, self.size = count, size
        self._rgb, self._mask = [smear.rgb for smear in smears], [smear.mask for smear in smears]
        self.sides = {}
        for side, many in (("val", max(20, count // 10)), ("test", count)):
            units = [f"{side}{i // PER_GROUP}" for i in range(many)]
            records = [
                SmearRecord(f"{side}{i % 7}/{i:06d}.png", Path("none"), label=i // PER_GROUP % 2, patient=units[i])
                for i in range(many)
            ]
            self.sides[side] = SimpleNamespace(records=records, groups=units)
        self.facts = {
            "dataroot": "stand-in", "synthetic": True, "sides": {"test": count}, "excluded": 0, "severity": {},
            "leaks": {"count": 0, "first": [], "near_duplicates": "checked"},
        }  # fmt: skip

    def _at(self, planes: list[Any], index: int) -> Any:
        import numpy as np

        return np.roll(planes[index % DIFFERENT], (index // DIFFERENT * 7) % self.size, axis=1)

    def batches(self, side: str, device: Any, only: Any = None) -> Any:
        """Batches of nothing but labels and masks, always of all images."""
        return _Batches(self, side)

    def restained(self, side: str, device: Any) -> dict[str, Any]:
        """None: the other looks at the images write nothing."""
        return {}

    def pixels(self, side: str, index: int) -> Any:
        """An image, its true mask, and no stand-in."""
        return self._at(self._rgb, index), self._at(self._mask, index), None

    def colour_chances(self, side: str, seed: int) -> Any:
        """Chances by lot: the classifier of colours itself is no part of the report."""
        import numpy as np

        return np.random.default_rng(seed).random(len(self.sides[side].records))


class _Batches:
    def __init__(self, data: ManySmears, side: str) -> None:
        self.data, self.side = data, side
        self.records = data.sides[side].records

    def __len__(self) -> int:
        return -(-len(self.records) // BATCH)

    def __iter__(self) -> Iterator[Any]:
        import numpy as np
        import torch

        for start in range(0, len(self.records), BATCH):
            index = torch.arange(start, min(start + BATCH, len(self.records)))
            masks = np.stack([self.data.pixels(self.side, i)[1] for i in index.tolist()])
            label = torch.tensor([self.records[i].label for i in index.tolist()])
            rgb = label.float()[:, None, None, None].expand(-1, 3, self.data.size, self.data.size)
            mask = torch.from_numpy(masks).float()[:, None]
            yield SimpleNamespace(rgb=rgb, mask=mask, has_mask=torch.ones(len(index)).bool(), label=label, index=index)


def work(count: int, size: int, seed: int, folder: Path) -> dict[str, Any]:
    """Write the report of ``count`` images into ``folder`` and say what that took."""
    import torch

    from models.testing import TestRun
    from options import parse_options
    from util.runlog import RunFolder

    data = ManySmears(count, size)
    argv = ["--dataroot", "stand-in", "--name", "BENCH", "--stain_checks", "no", "--cells", "no", "--seed", str(seed)]
    options = parse_options("test", argv, prog="bench", description="")
    facts = {
        "tiers_opened": {},
        "epoch": 1,
        "starts": {},
        "architecture": {},
        "options": {},
        "data": {"synthetic": True},
    }
    saved: Any = SimpleNamespace(network=StandIn(size, seed), facts=facts, path=Path("weights"))
    worked = time.process_time()
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = TestRun(saved, torch.device("cpu"), folder, options, RunFolder(str(folder), "none"), binary_sees="predicted")
    run.judge("val", data)
    run.judge("test", data)
    judged = time.perf_counter()
    run.write_report(data)
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "images": count,
        "size": size,
        "seconds": done - begun,
        "cpu_seconds": time.process_time() - worked,
        "seconds_judging": judged - begun,
        "seconds_page": done - judged,
        "memory_mib": peak / 1024,
        "memory_before_mib": before / 1024,
        "files": len(files),
        "folder_mb": sum(path.stat().st_size for path in files) / 1e6,
        "page_mb": (folder / "index.html").stat().st_size / 1e6,
    }


def open_browser() -> Any:
    """A headless Chromium that reaches no network.

    Raises:
        UserError: selenium, Chromium or its driver is missing.
    """
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError as error:
        raise UserError(
            "the browser's figures need selenium", found=str(error), remedy="pip install selenium"
        ) from None
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        raise UserError("no Chromium with its chromedriver", remedy="install them, or use --no_browser")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for flag in (*flags.split(), "disable-component-update", "disable-sync", "window-size=1280,900"):
        options.add_argument(f"--{flag}")
    options.page_load_strategy = "eager"
    return webdriver.Chrome(options=options, service=Service(driver))


TIMED = """
const done = arguments[arguments.length - 1], act = arguments[0];
const begun = performance.now();
const enter = (id, value, event) => {
  const field = document.getElementById(id);
  field.value = value;
  field.dispatchEvent(new Event(event));
};
const touch = {
  wrong: () => document.querySelector('[data-show="wrong"]').click(),
  all: () => document.querySelector('[data-show="all"]').click(),
  search: () => enter("image-search", "0077", "input"),
  sort: () => enter("image-sort", "wrong", "change"),
};
touch[act]();
document.body.getBoundingClientRect();
const busy = performance.now() - begun;
requestAnimationFrame(() => requestAnimationFrame(() => {
  const shown = performance.now() - begun;
  const whole = () => document.querySelector("#image-list[aria-busy=true]") ? setTimeout(whole)
    : done([busy, shown, performance.now() - begun]);
  whole();
}));
"""


def browse(page: Path) -> dict[str, float]:
    """Milliseconds until something is painted, until the list works, and of each thing that a reader does.

    Of each: until the script is done, until a screenful of images is shown, and until the page has all of its images.
    """
    browser = open_browser()
    try:
        browser.set_script_timeout(120)
        begun = time.perf_counter()
        browser.get(page.resolve().as_uri())
        browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        found = {"loaded_ms": 1000 * (time.perf_counter() - begun)}
        paint = browser.execute_script(
            "return Object.fromEntries(performance.getEntriesByType('paint').map(e => [e.name, e.startTime]))"
        )
        found["first_paint_ms"] = paint.get("first-contentful-paint", float("nan"))
        for act in ("wrong", "all", "search", "sort"):
            busy, shown, whole = browser.execute_async_script(TIMED, act)
            found |= {f"{act}_ms": busy, f"{act}_shown_ms": shown, f"{act}_whole_ms": whole}
        found["filter_ms"] = max(found["wrong_shown_ms"], found["all_shown_ms"], found["search_shown_ms"])
        found["cards"] = browser.execute_script("return document.querySelectorAll('article.image').length")
        found["elements"] = browser.execute_script("return document.getElementsByTagName('*').length")
    finally:
        browser.quit()
    return found


def measure(count: int, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One count of images, in a process of its own so that its memory is its own."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--worker", str(count), "--size", str(given.size), "--seed", str(given.seed)]
    done = subprocess.run([*command, "--folder", str(folder)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"the report of {count} images was not written", found=f"exit status {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found if given.no_browser else found | browse(folder / "index.html")


def show(found: dict[str, Any]) -> None:
    """Print the figures of one count, beside the goals where they are for it."""
    print(f"\n{found['images']:,} images of {found['size']} x {found['size']}")
    for key, value in found.items():
        goal = GOALS.get(key) if found["images"] == GOALS_FOR and found["size"] == 300 else None
        said = "" if goal is None else f"   goal {goal:g}: {'met' if value <= goal else 'NOT MET'}"
        print(f"  {key:>18}: {value:10.1f}{said}")


def main() -> int:
    """Measure each count and print the figures."""
    given = arguments()
    if given.worker:
        print(json.dumps(work(given.worker, given.size, given.seed, given.folder)))
        return 0
    counts = [int(part) for part in given.images.split(",")]
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for count in counts:
            found.append(measure(count, given, (given.folder or Path(temporary)) / str(count)))
            show(found[-1])
            if given.folder is None:
                shutil.rmtree(Path(temporary) / str(count))
    if len(found) > 1:
        each = [1000 * one["seconds"] / one["images"] for one in found]
        print("\nmilliseconds an image: " + ", ".join(f"{ms:.2f} at {n:,}" for ms, n in zip(each, counts, strict=True)))
    if given.out:
        content = {"cores": os.cpu_count(), "runs": found}
        atomic_write(given.out, json.dumps(content, indent=1) + "\n", make_parents=True)
    return 0


if __name__ == "__main__":
    run_door(main)
