"""What test_other_device.py asks, in a process whose GPU is the device of other_device.py; prints JSON.

python tests/other_device_run.py learning|moving|batches|cells|saving|doors FOLDER
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

import util.device
from data.augment import Augmentation
from data.loader import BatchLoader, DecodedSmears
from data.synthetic import synthesize
from models.inference import predict, see_none
from models.module2.finder import load_finder, map_cells
from models.network import Architecture, ThreeTierDCFNet
from models.trainer import Trainer, TrainerSettings
from tests import other_device
from tests.other_device import DEVICE, REPOSITORY
from util.checkpoint import flatten, host_copies, load_checkpoint, save_checkpoint

CPU = torch.device("cpu")
MASKS = {"all": [True] * 12, "some": [True, False, True, True] * 3}


def smears(has_mask, size=64):
    rng = np.random.default_rng(0)
    entries = rng.integers(0, 256, (len(has_mask), 4 * size**2), dtype=np.uint8)
    entries[:, 3 * size**2 :] &= 1
    count = len(has_mask)
    names, sizes = [str(index) for index in range(count)], [(size, size)] * count
    labels = torch.tensor([0, 1, 1, -1] * (count // 4))
    return DecodedSmears(entries, np.arange(count), size, torch.tensor(has_mask), labels, names, sizes)


def batches(device, has_mask):
    augment = Augmentation()
    return BatchLoader(
        smears(has_mask), range(len(has_mask)), 4, 64, device=device, augment=augment, shuffle=True, seed=0
    )


def trainer_on(device, has_mask):
    torch.manual_seed(0)
    settings = TrainerSettings(niter=2, niter_decay=0, pool_size=2, earlier_lr=1.0, ema=0.9)
    network = ThreeTierDCFNet(Architecture("small", 64, 0.0))
    masks = {"any_masks": any(has_mask), "all_masks": all(has_mask)}
    trainer = Trainer(network, settings, device, samples=len(has_mask), **masks)
    trainer.open_tier(3, 0)
    trainer.set_learning_rate(0)
    return trainer


def learned(device, has_mask):
    """A short training of all tiers: its verdicts and masks, what crossed over in each step but the first, its sums.

    Of the sums, how many times something crossed over for them and for the epoch's report.
    """
    trainer, counts, sums = trainer_on(device, has_mask), [], []

    def after(totals):
        counts.append(len(other_device.crossings))
        sums[:] = [totals]

    trainer.train_epoch(batches(device, has_mask), 0, after)
    within, before = other_device.crossings[counts[0] : counts[-1]], len(other_device.crossings)
    state = sums[0].state()
    trainer.report_of(sums[0])
    waits = len(other_device.crossings) - before
    logits, masks = judged(trainer, device, has_mask)
    return logits, masks, within, state, waits


def judged(trainer, device, has_mask):
    whole = BatchLoader(smears(has_mask), range(4), 4, 64, device=device, augment=None, shuffle=False, seed=0)
    trainer.validate(whole)
    said = next(predict(trainer.judge, whole, device, see_none))
    return said.logits.cpu(), said.mask_probability.cpu()


def apart(one, other):
    return float((one.double() - other.double()).abs().max())


def learning(folder):
    found = {}
    for name, has_mask in MASKS.items():
        here, there = learned(CPU, has_mask), learned(DEVICE, has_mask)
        found[name] = {
            "logits": apart(here[0], there[0]),
            "masks": apart(here[1], there[1]),
            "crossings": sorted(set(there[2])),
            "sums": max(apart(here[3][key], there[3][key]) for key in ("right", "known", "areas")),
            "crossings for the sums": there[4],
        }
    return found


def moving(folder):
    """A run that goes on on another device than it was begun on: how far its state is from what was saved."""
    has_mask, found = MASKS["some"][:8], {}
    for name, first, second in (("there", CPU, DEVICE), ("back", DEVICE, CPU)):
        begun = trainer_on(first, has_mask)
        begun.train_epoch(batches(first, has_mask), 0)
        save_checkpoint(folder / "state.safetensors", begun.state())
        trainer = trainer_on(second, has_mask)
        trainer.load_state(load_checkpoint(folder / "state.safetensors"))
        saved, loaded = state_of(begun), state_of(trainer)
        assert saved.keys() == loaded.keys()
        found[name] = max(apart(saved[key], loaded[key]) for key in saved)
        trainer.train_epoch(batches(second, has_mask), 1)
        assert all(bool(tensor.isfinite().all()) for tensor in judged(trainer, second, has_mask))
    return found


def state_of(trainer):
    tensors = {}
    flatten(trainer.state(), tensors)
    return {name: tensor for name, tensor in host_copies(tensors).items() if tensor.numel()}


def loading(folder):
    found, fields = {}, ("rgb", "mask", "has_mask", "paired", "label", "index")
    before, counts, largest = list(batches(CPU, MASKS["some"])), [], 0.0
    for own, batch in zip(before, batches(DEVICE, MASKS["some"]), strict=True):
        counts.append(len(other_device.crossings))
        largest = max(largest, *(apart(getattr(own, name), getattr(batch, name).cpu()) for name in fields))
        counts.append(len(other_device.crossings))
    between = [other_device.crossings[a:b] for a, b in zip(counts[1::2], counts[2::2], strict=False)]
    found["largest difference"], found["crossings"] = largest, sum(between, [])
    return found


def cells(folder):
    rgb = synthesize(0, seed=1, size=150, zoom=1.4).rgb
    finder = load_finder(REPOSITORY / "models/module2/cell_finder.safetensors").eval()
    here = map_cells(finder, rgb, CPU)
    there = map_cells(finder.to(DEVICE), rgb, DEVICE)
    planes = [(getattr(here, name), getattr(there, name)) for name in vars(here)]
    return {"largest difference": max(float(np.abs(one - other).max()) for one, other in planes)}


def saving(folder):
    torch.manual_seed(0)
    weights = dict(ThreeTierDCFNet(Architecture("small", 64, 0.0)).state_dict())
    weights["turned"] = torch.rand(4, 5, 6, 7).contiguous(memory_format=torch.channels_last)
    weights["empty"], weights["alone"] = torch.zeros(0, 3), torch.tensor(3.0)
    away = {name: tensor.to(DEVICE) for name, tensor in weights.items()}
    before = len(other_device.crossings)
    save_checkpoint(folder / "away.safetensors", {"network": away})
    crossed = len(other_device.crossings) - before
    arrived = load_checkpoint(folder / "away.safetensors")["network"]
    return {
        "crossings": crossed,
        "equal": all(torch.equal(arrived[name], tensor) for name, tensor in weights.items()),
    }


def doors(folder):
    """Train, go on, test with cells, stain checks and Grad-CAM, predict; what is left on the host is an error."""
    os.chdir(folder)  # synthetic smears are written beside the run
    util.device.choose_device = lambda gpu_ids: DEVICE
    places = ["--checkpoints_dir", str(folder / "checkpoints")]
    data = ["--dataroot", "synthetic", "--synthetic_count", "24", "--cache_dir", str(folder / "cache")]
    schedule = ["--preset", "small", "--batchSize", "8", "--loadSize", "64", "--fineSize", "64", "--tier_epochs", "1"]
    results = ["--results_dir", str(folder / "results")]
    run = ["--name", "OTHER", "--gpu_ids", "0", *places]
    _door("train", *data, *run, *schedule, "--niter", "1", "--niter_decay", "0")
    _door("train", *data, *run, *schedule, "--niter", "1", "--niter_decay", "1", "--continue_train")
    _door("test", *data, *run, *results, "--gradcam", "1", "--splits", "test")
    smear = next(path for path in Path("datasets").rglob("*.png") if path.parent.name == "Original_images")
    _door("predict", "--dataroot", str(smear), *run, *results)
    baselines = json.loads((folder / "results/OTHER/test_latest/metrics.json").read_text())["baselines"]
    files = sorted(path.relative_to(folder / "results").as_posix() for path in folder.rglob("index.html"))
    return {"files": files, "baselines": [name for name, scores in baselines.items() if scores]}


def _door(name, *arguments):
    sys.argv = [f"3TDCFNet_{name}.py", *arguments]
    try:
        runpy.run_path(str(REPOSITORY / sys.argv[0]), run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"{sys.argv} ended with {ended.code}") from ended


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.cuda.mem_get_info = lambda device=None: (1 << 33, 1 << 33)  # so that the loader puts the data there
    asked = {
        "learning": learning,
        "moving": moving,
        "batches": loading,
        "cells": cells,
        "saving": saving,
        "doors": doors,
    }[sys.argv[1]]
    with redirect_stdout(sys.stderr):
        answer = asked(Path(sys.argv[2]))
    print(json.dumps(answer))
