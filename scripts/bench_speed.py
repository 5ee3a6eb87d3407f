#!/usr/bin/env python3
"""Measure the network's speed and memory on this machine: training and inference, by tier and whole, beside references.

    python scripts/bench_speed.py --gpu_ids 0 --out speed
    python scripts/bench_speed.py --gpu_ids -1 --preset small --batch 8 --threads 2 --only inference,lone --out speed

docs/speed.md says what the figures mean. What belongs together is measured in turns, so that a machine that slows down
slows all of it. Figures are written as they come: results.json and results.md in --out.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
STARTED = time.perf_counter()

import numpy as np  # noqa: E402 - the path must be set first
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from data.augment import Augmentation  # noqa: E402
from data.loader import BatchLoader, DecodedSmears  # noqa: E402
from models.batch_size import MadeUpBatch  # noqa: E402
from models.discriminator import PatchDiscriminator  # noqa: E402
from models.folding import folded  # noqa: E402
from models.losses import AdversarialLoss, l1_loss, overlap_loss, verdict_loss  # noqa: E402
from models.network import PRESETS, TIERS, Architecture, ThreeTierDCFNet  # noqa: E402
from models.precision import describe_precision, low_precision, precision  # noqa: E402
from models.trainer import Trainer, TrainerSettings  # noqa: E402
from util.device import choose_device, describe_device  # noqa: E402
from util.errors import UserError, run_door  # noqa: E402
from util.files import atomic_write, make_folder  # noqa: E402
from util.memory import host_peak, is_out_of_memory, keep_freed_memory  # noqa: E402

PARTS = ("device", "training", "inference", "lone", "epoch", "startup")
TIER_SETS = {1: "Tier-I", 2: "Tiers I+II", 3: "whole network"}
REFERENCE, BF16_REFERENCE = "reference: fp32 NCHW eager", "reference: bf16 channels_last eager"
Work = Callable[[], Any]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--preset", default="full", choices=tuple(PRESETS), help="widths of the network")
    add("--batch", type=int, default=0, help="images in a batch, by default 64 on a GPU and 8 on a CPU")
    add("--sizes", default="300", help="sides of the network's input, pixels, such as 300 or 224,300")
    add("--gpu_ids", default="0", help="a GPU's number; -1 is the CPU")
    add("--threads", type=int, default=0, help="threads on a CPU; 0 leaves PyTorch's own choice")
    add("--steps", type=int, default=0, help="steps of one measurement, by default 10 on a GPU and 1 on a CPU")
    add("--rounds", type=int, default=5, help="measurements of each; the table gives median, least and most")
    add("--only", default=",".join(PARTS), help=f"parts to measure, of {','.join(PARTS)}")
    add("--autotune", action="store_true", help="also measure training with cuDNN's own search (cudnn.benchmark)")
    add(
        "--quick", action="store_true", help="tiny sizes and single steps, to see that it runs; the figures say nothing"
    )
    add("--out", type=Path, required=True, help="folder for results.json and results.md")
    add("--first_step", action="store_true", help=argparse.SUPPRESS)  # what the part startup runs in a new process
    return parser.parse_args()


class Report:
    """The figures so far, written down whenever one is added."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder, self.facts = folder, dict(facts)
        self.rows: list[dict[str, Any]] = []
        make_folder(folder)

    def add(self, part: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add a part's rows and write everything."""
        self.rows += [{"part": part, **row} for row in rows]
        content = {"facts": self.facts, "rows": self.rows}
        atomic_write(self.folder / "results.json", json.dumps(content, indent=1) + "\n")
        atomic_write(self.folder / "results.md", self.markdown())
        for row in rows:
            print(f"{part:>9}  {row['name']}: {_figures(row)}", flush=True)

    def markdown(self) -> str:
        """The facts as a list and a table for each part."""
        lines = ["# Speed", "", *(f"- {key}: {value}" for key, value in self.facts.items())]
        for part in dict.fromkeys(row["part"] for row in self.rows):
            rows = [row for row in self.rows if row["part"] == part]
            keys = list(dict.fromkeys(key for row in rows for key in row if key not in ("part", "times")))
            lines += ["", f"## {part}", "", _line(keys), _line(["---"] * len(keys))]
            lines += [_line([_shown(row.get(key, "")) for key in keys]) for row in rows]
        return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _figures(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_shown(value)}" for key, value in row.items() if key not in ("name", "times"))


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Work, device: torch.device, steps: int) -> tuple[float, float]:
    """Seconds of one step and of the processor's time for it, over ``steps``; a GPU is timed by its own events."""
    synchronize(device)
    wall, core = time.perf_counter(), time.process_time()
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(steps):
            work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / steps, (time.process_time() - core) / steps
    for _ in range(steps):
        work()
    return (time.perf_counter() - wall) / steps, (time.process_time() - core) / steps


def in_turns(
    works: Mapping[str, Work], device: torch.device, steps: int, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Time several works in turns, A B A B: seconds of each round by name."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(seconds(work, device, steps))
    return found


class BytesMoved(TorchDispatchMode):
    """Adds up the bytes that operators read and write, as if none of them stayed in a cache between two operators."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator; views move nothing."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = torch.utils._pytree.tree_leaves((args, kwargs, result))
            self.total += sum(each.numel() * each.element_size() for each in tensors if isinstance(each, Tensor))
        return result


def _fused_counts() -> dict[Any, Callable[..., int]]:
    """How to count the work of models.convolutions' fused ones, which PyTorch's counter does not know."""

    def counted(weight_at: int) -> Callable[..., int]:
        def count(*shapes: Any, out_shape: Any, **_: Any) -> int:
            return 2 * math.prod(out_shape) * math.prod(shapes[weight_at][1:])

        return count

    operators: Any = torch.ops.mkldnn
    names = {"_convolution_pointwise": 1, "_convolution_pointwise_": 2}
    return {getattr(operators, name): counted(at) for name, at in names.items() if hasattr(operators, name)}


def _floating_point_work(counter: FlopCounterMode) -> float:
    """What was counted; with a backward pass three times the forward one.

    PyTorch's count of the backward pass takes grouped convolutions for full ones, a hundred times too much here.
    """
    counts = counter.get_flop_counts().get("Global", {})
    backward = counts.get(torch.ops.aten.convolution_backward, 0)
    forward = counter.get_total_flops() - backward
    return float(3 * forward if backward else forward)


class DeviceRates:
    """The device's own rates, by a large matrix product in the format that convolutions use, and a large copy.

    They are timed in turns with what is compared with them: a machine that is busy is slower at these as well.
    """

    PRODUCT, COPY = "a matrix product", "a copy"

    def __init__(self, device: torch.device, quick: bool) -> None:
        cuda = device.type == "cuda"
        side, count = (256, 1 << 20) if quick else (8192, 1 << 28) if cuda else (2048, 1 << 26)
        dtype = low_precision(device) or torch.float32
        left = torch.randn(side, side, device=device, dtype=dtype)
        source = torch.ones(count, device=device)
        target = torch.empty_like(source)
        self.works: dict[str, Work] = {self.PRODUCT: lambda: left @ left, self.COPY: lambda: target.copy_(source)}
        self.amounts = {self.PRODUCT: 2.0 * side**3, self.COPY: 2.0 * source.nbytes}
        for work in self.works.values():
            work()

    def take(self, times: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
        """Take the own times out of those of a comparison: floating-point operations and bytes a second."""
        return {
            name: amount / statistics.median(wall for wall, _ in times.pop(name))
            for name, amount in self.amounts.items()
        }


def network_of(preset: str, size: int, tiers: int, *, whole: bool) -> ThreeTierDCFNet:
    """A network with its first tiers open; not whole is the classification path, without masks and what sees them."""
    network = ThreeTierDCFNet(Architecture(preset, size, binary_stream=whole))
    network.tunes_earlier = True
    network.open(tiers)
    if not whole:
        network.rest_decoder()
    return network


def own_steps(
    preset: str, size: int, tiers: int, whole: bool, batch: MadeUpBatch, device: torch.device, steps: int
) -> Work:
    """Training steps as this toolkit takes them, on a batch that is on the device; the host waits after the last."""
    settings = TrainerSettings(earlier_lr=1.0)
    network = network_of(preset, size, tiers, whole=whole)
    trainer = Trainer(network, settings, device, samples=len(batch.rgb), any_masks=whole, all_masks=whole)
    trainer.open_tier(tiers, 0)
    trainer.set_learning_rate(0)
    return lambda: trainer.train_epoch([batch] * steps, 0)


class PlainStep:
    """The reference: the same network and losses in a step as one would first write it.

    Args:
        preset: of the network.
        size: of its input.
        whole: with masks, their discriminator and the binary stream, or the classification path.
        batch: on the device.
        device: where.
        dtype: of autocast; None is float32 and the layout NCHW, else the layout is channels_last.
    """

    def __init__(
        self, preset: str, size: int, whole: bool, batch: MadeUpBatch, device: torch.device, dtype: torch.dtype | None
    ) -> None:
        self.layout = torch.contiguous_format if dtype is None else torch.channels_last
        self.device, self.dtype, self.whole, self.batch = device, dtype, whole, batch
        self.rgb = batch.rgb.contiguous(memory_format=self.layout)
        self.see = torch.arange(len(batch.rgb), device=device) % 2 == 0
        self.network = self._placed(network_of(preset, size, TIERS, whole=whole).train())
        self.discriminator = self._placed(PatchDiscriminator(PRESETS[preset].discriminator_width))
        self.adversarial = AdversarialLoss("lsgan")
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=5e-4, weight_decay=0.02)
        self.optimizer_discriminator = torch.optim.Adam(self.discriminator.parameters(), lr=2e-4)

    def _placed(self, module: Any) -> Any:
        return module.to(self.device).to(memory_format=self.layout)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context of a forward pass."""
        return contextlib.nullcontext() if self.dtype is None else torch.autocast(self.device.type, dtype=self.dtype)

    def __call__(self) -> None:
        """Take one step."""
        with self.autocast():
            output = self.network(self.rgb, self.batch.mask, self.see)
        voices = output.voices[:, self.network.learning_voices]
        loss = 10 * verdict_loss(voices, self.batch.label, torch.ones_like(self.batch.label))
        if self.whole:
            loss = loss + self._mask_losses(output.mask_probability)
        self._learn(self.optimizer, loss)

    def _mask_losses(self, probability: Tensor) -> Tensor:
        true = self.batch.mask
        with self.autocast():
            real, fake = self.discriminator(self.rgb, true), self.discriminator(self.rgb, probability.detach())
        judged = (self.adversarial(real.float(), True) + self.adversarial(fake.float(), False)) / 2
        self._learn(self.optimizer_discriminator, judged)
        with self.autocast():
            scores = self.discriminator(self.rgb, probability)
        fooling = self.adversarial(scores.float(), True)
        return 60 * l1_loss(probability, true) + 10 * overlap_loss(probability, true) + fooling

    @staticmethod
    def _learn(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def judging(network: nn.Module, batch: MadeUpBatch, rgb: Tensor, context: Work) -> Work:
    """The work of judging a batch without learning."""
    see = torch.zeros(len(rgb), dtype=torch.bool, device=rgb.device)

    def work() -> None:
        with torch.inference_mode(), context():
            network(rgb, batch.mask, see)

    return work


def own_judging(preset: str, size: int, tiers: int, whole: bool, batch: MadeUpBatch, device: torch.device) -> Work:
    """Inference as this toolkit does it once there is much to judge."""
    network = network_of(preset, size, tiers, whole=whole).to(device).to(memory_format=torch.channels_last)
    return judging(folded(network), batch, batch.rgb, lambda: precision(device))


def plain_judging(
    preset: str, size: int, whole: bool, batch: MadeUpBatch, device: torch.device, dtype: torch.dtype | None
) -> Work:
    """The reference for inference: the network as it is."""
    layout = torch.contiguous_format if dtype is None else torch.channels_last
    network = network_of(preset, size, TIERS, whole=whole).eval().to(device).to(memory_format=layout)
    rgb = batch.rgb.contiguous(memory_format=layout)
    return judging(
        network, batch, rgb, contextlib.nullcontext if dtype is None else lambda: torch.autocast(device.type, dtype)
    )


def lone_backbones(batch: MadeUpBatch, device: torch.device) -> dict[str, Callable[[], Work]]:
    """Forward passes of the published backbones by themselves, in the format and layout that this toolkit uses."""
    import timm
    from torchvision.models import shufflenet_v2_x1_0

    makers: dict[str, Callable[[], nn.Module]] = {
        "DenseNet121": lambda: timm.create_model("densenet121"),
        "EfficientNet-B0": lambda: timm.create_model("efficientnet_b0"),
        "EfficientNet-Lite0": lambda: timm.create_model("efficientnet_lite0"),
        "ShuffleNetV2 x1.0": shufflenet_v2_x1_0,
    }

    def make(maker: Callable[[], nn.Module]) -> Work:
        network = maker().eval().to(device).to(memory_format=torch.channels_last)

        def work() -> None:
            with torch.inference_mode(), precision(device):
                network(batch.rgb)

        return work

    return {name: partial(make, maker) for name, maker in makers.items()}


def made_up_smears(count: int, size: int) -> DecodedSmears:
    """Decoded smears of noise, with masks and both labels."""
    rng = np.random.default_rng(0)
    entries = rng.integers(0, 256, (count, 4 * size**2), dtype=np.uint8)
    entries[:, 3 * size**2 :] &= 1
    return DecodedSmears(
        entries,
        np.arange(count),
        size,
        has_mask=torch.ones(count, dtype=torch.bool),
        labels=torch.arange(count) % 2,
        names=[str(index) for index in range(count)],
        sizes=[(size, size)] * count,
    )


class Bench:
    """The measurements, in the order in which they are made."""

    def __init__(self, options: argparse.Namespace, device: torch.device, report: Report) -> None:
        self.options, self.device, self.report = options, device, report
        self.preset, self.images = options.preset, options.batch
        self.own_rates: DeviceRates | None = None

    def run(self, parts: Sequence[str]) -> None:
        """Measure the parts asked for."""
        if "device" in parts:
            self.own_rates = DeviceRates(self.device, self.options.quick)
        for size in self.options.sizes:
            batch = MadeUpBatch.of(self.images, size, self.device)
            if "training" in parts:
                self.compare("training", self._training(size, batch), size, together=self.options.steps)
            if "inference" in parts:
                self.compare("inference", self._inference(size, batch), size)
            if "lone" in parts:
                self.compare("lone", lone_backbones(batch, self.device), size)
            if "epoch" in parts:
                self.epoch(size)
                self._forget()
        if "startup" in parts:
            self.startup()

    def _training(self, size: int, batch: MadeUpBatch) -> dict[str, Callable[[], Work]]:
        def own(tiers: int, whole: bool) -> Callable[[], Work]:
            return lambda: own_steps(self.preset, size, tiers, whole, batch, self.device, self.options.steps)

        def plain(whole: bool, dtype: torch.dtype | None) -> Callable[[], Work]:
            return lambda: _repeated(PlainStep(self.preset, size, whole, batch, self.device, dtype), self.options.steps)

        makers = self._variants(own, plain)
        if self.options.autotune and self.device.type == "cuda":
            makers["whole network, cudnn.benchmark"] = lambda: _autotuned(own(TIERS, True)())
        return makers

    def _inference(self, size: int, batch: MadeUpBatch) -> dict[str, Callable[[], Work]]:
        def own(tiers: int, whole: bool) -> Callable[[], Work]:
            return lambda: own_judging(self.preset, size, tiers, whole, batch, self.device)

        def plain(whole: bool, dtype: torch.dtype | None) -> Callable[[], Work]:
            return lambda: plain_judging(self.preset, size, whole, batch, self.device, dtype)

        return self._variants(own, plain)

    def _variants(
        self,
        own: Callable[[int, bool], Callable[[], Work]],
        plain: Callable[[bool, torch.dtype | None], Callable[[], Work]],
    ) -> dict[str, Callable[[], Work]]:
        makers = {name: own(tiers, True) for tiers, name in TIER_SETS.items()}
        makers[f"whole network, {REFERENCE}"] = plain(True, None)
        makers["classification path"] = own(TIERS, False)
        makers[f"classification path, {REFERENCE}"] = plain(False, None)
        if self.device.type == "cuda":
            dtype = low_precision(self.device)
            makers[f"whole network, {BF16_REFERENCE}"] = plain(True, dtype)
            makers[f"classification path, {BF16_REFERENCE}"] = plain(False, dtype)
        return makers

    def compare(self, part: str, makers: Mapping[str, Callable[[], Work]], size: int, *, together: int = 1) -> None:
        """Measure works in turns, each of so many steps together; what does not fit into the memory is said."""
        works, facts = {}, {}
        for name, make in makers.items():
            try:
                works[name], facts[name] = self._warmed(make)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._forget()
                self.report.add(part, [{"name": name, "size": size, "batch": self.images, "out of memory": "yes"}])
        yardsticks = self.own_rates.works if self.own_rates else {}
        steps = max(1, self.options.steps // together)
        times = in_turns({**yardsticks, **works}, self.device, steps, self.options.rounds)
        rates = self.own_rates.take(times) if self.own_rates else {}
        rows = [self._row(name, size, times[name], facts[name], together * self.images, rates) for name in works]
        fast = {row["name"]: row["images/s"] for row in rows}
        for row in rows:
            row.update(self._ratios(row["name"], fast))
        self.report.add(part, rows)
        if rates:
            tera, giga = rates[DeviceRates.PRODUCT] / 1e12, rates[DeviceRates.COPY] / 1e9
            self.report.add("device", [{"name": f"during {part}", "size": size, "TFLOP/s": tera, "GB/s": giga}])
        works.clear()
        self._forget()

    def _warmed(self, make: Callable[[], Work]) -> tuple[Work, dict[str, Any]]:
        """Build a work and take its first steps; its floating-point work, bytes and, on a GPU, peak memory."""
        self._forget()
        cuda = self.device.type == "cuda"
        held = torch.cuda.memory_allocated(self.device) if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        work = make()
        for _ in range(3 if cuda else 1):
            work()
        synchronize(self.device)
        facts: dict[str, Any] = {}
        if cuda:
            facts["peak GiB"] = (torch.cuda.max_memory_allocated(self.device) - held) / 2**30
        with FlopCounterMode(display=False, custom_mapping=_fused_counts()) as counter:
            work()
        with BytesMoved() as moved:
            work()
        synchronize(self.device)
        return work, {**facts, "flops": _floating_point_work(counter), "bytes": moved.total}

    def _forget(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _row(
        self,
        name: str,
        size: int,
        times: Sequence[tuple[float, float]],
        facts: Mapping[str, Any],
        images: int,
        rates: Mapping[str, float],
    ) -> dict[str, Any]:
        walls = [wall for wall, _ in times]
        middle = statistics.median(walls)
        row: dict[str, Any] = {"name": name, "size": size, "batch": self.images, "images/s": images / middle}
        row |= {"least": images / max(walls), "most": images / min(walls)}
        if self.device.type == "cpu":
            row["images/core-s"] = images / statistics.median(core for _, core in times)
        row["GFLOP/image"] = facts["flops"] / images / 1e9
        if rates:
            row["share of matrix rate"] = facts["flops"] / middle / rates[DeviceRates.PRODUCT]
            row["share of copy rate"] = facts["bytes"] / middle / rates[DeviceRates.COPY]
        return row | {key: value for key, value in facts.items() if key == "peak GiB"} | {"times": walls}

    @staticmethod
    def _ratios(name: str, fast: Mapping[str, float]) -> dict[str, float]:
        """How many times as fast as its references a work is."""
        found = {"x fp32 NCHW": f"{name}, {REFERENCE}", "x bf16 channels_last": f"{name}, {BF16_REFERENCE}"}
        return {key: fast[name] / fast[other] for key, other in found.items() if other in fast}

    def epoch(self, size: int) -> None:
        """An epoch with the loader and its augmentation beside the same steps on batches that are on the device."""
        steps = 2 if self.options.quick else 20 if self.device.type == "cuda" else 4
        smears = made_up_smears(steps * self.images, size)
        loader = BatchLoader(
            smears,
            range(len(smears)),
            self.images,
            size,
            device=self.device,
            augment=Augmentation(),
            shuffle=True,
            seed=0,
        )
        network = network_of(self.preset, size, TIERS, whole=True)
        settings = TrainerSettings(earlier_lr=1.0)
        trainer = Trainer(network, settings, self.device, samples=len(smears), any_masks=True, all_masks=True)
        trainer.open_tier(TIERS, 0)
        resident = [next(iter(loader))] * steps
        works: dict[str, Work] = {
            "resident tensors": lambda: trainer.train_epoch(resident, 0),
            "loader": lambda: trainer.train_epoch(loader, 0),
        }
        for work in works.values():
            work()
        times = in_turns(works, self.device, 1, self.options.rounds)
        rates = {name: len(smears) / statistics.median(wall for wall, _ in found) for name, found in times.items()}
        rows: list[dict[str, Any]] = [{"name": name, "size": size, "images/s": rate} for name, rate in rates.items()]
        rows[1]["x resident tensors"] = rates["loader"] / rates["resident tensors"]
        self.report.add("epoch", rows)

    def startup(self) -> None:
        """Seconds from the start of a new process until its first training step is done, and the memory it took."""
        own = self.options
        command = [sys.executable, __file__, "--first_step", "--preset", self.preset, "--batch", str(self.images)]
        command += ["--sizes", str(own.sizes[-1]), "--gpu_ids", own.gpu_ids, "--threads", str(own.threads)]
        rows = []
        for run in range(1 if own.quick else 2):
            begun = time.perf_counter()
            done = subprocess.run([*command, "--out", str(own.out)], capture_output=True, text=True, check=False)
            if done.returncode:
                raise UserError("the first step in a new process failed", found=done.stderr.strip()[-500:])
            said = json.loads(done.stdout.splitlines()[-1])
            whole = time.perf_counter() - begun
            rows.append({"name": f"new process {run + 1}", "seconds to its end": whole, **said})
        self.report.add("startup", rows)


def _repeated(work: Work, times: int) -> Work:
    def repeated() -> None:
        for _ in range(times):
            work()

    return repeated


def _autotuned(work: Work) -> Work:
    def tuned() -> None:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):
            work()

    return tuned


def first_step(options: argparse.Namespace, device: torch.device) -> None:
    """Take one training step of the whole network and print how long that took since the imports, and the memory."""
    size = options.sizes[-1]
    batch = MadeUpBatch.of(options.batch, size, device)
    step = own_steps(options.preset, size, TIERS, True, batch, device, 1)
    step()
    synchronize(device)
    said = {"seconds to first step": time.perf_counter() - STARTED, "host peak GiB": host_peak() / 2**30}
    if device.type == "cuda":
        said["device peak GiB"] = torch.cuda.max_memory_allocated(device) / 2**30
    print(json.dumps(said))


def host_facts(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What the figures depend on: hardware, versions, the code and the command."""
    git = ["git", "-C", str(REPOSITORY)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False).stdout
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    return {
        "device": describe_device(device),
        "precision": describe_precision(device),
        "host": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "load average at start": "unknown" if load is None else ", ".join(f"{value:.1f}" for value in load),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}",
        "commit": (commit or "unknown") + (" with changes" if dirty else ""),
        "command": " ".join(sys.argv),
        "preset": options.preset,
        "rounds x steps": f"{options.rounds} x {options.steps}",
    }


def settled(options: argparse.Namespace) -> list[str]:
    """Fill in what depends on the device; returns the parts to measure.

    Raises:
        UserError: an unknown part, or no sizes.
    """
    on_cpu = options.gpu_ids == "-1"
    parts = [part for part in options.only.split(",") if part]
    if not parts or set(parts) - set(PARTS):
        raise UserError(f"--only {options.only}", expected=f"parts out of {','.join(PARTS)}")
    if not all(part.isdigit() and int(part) >= 64 for part in options.sizes.split(",")):
        raise UserError(f"--sizes {options.sizes}", expected="numbers of 64 or more, such as 224,300")
    options.sizes = [int(part) for part in options.sizes.split(",")]
    options.batch = options.batch or (8 if on_cpu else 64)
    options.steps = options.steps or (1 if on_cpu else 10)
    if options.quick:
        options.sizes, options.batch, options.steps, options.rounds = [64], 2, 1, 2
    return parts


def main() -> None:
    """Settle what to measure, and measure it."""
    options = arguments()
    parts = settled(options)
    device = choose_device(options.gpu_ids)
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    if options.first_step:
        first_step(options, device)
        return
    Bench(options, device, Report(options.out, host_facts(options, device))).run(parts)


if __name__ == "__main__":
    run_door(main)
