"""Runs side by side on the test images that all of them were tested on, with intervals of the paired differences."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from util.comparison import over_folds
from util.errors import UserError
from util.figures import counted, is_number
from util.intervals import METHOD
from util.metrics import THRESHOLD, classification_metrics, effective_groups
from util.report_scores import verdict_of
from util.results import CLASS_WORDS

NEEDED = ("image", "prob_anemic", "label_true", "group")
MOST_DISAGREEING = 50
LONGEST_FOLDER = 180  # bytes of a comparison's folder before its mark; file systems allow 255


@dataclass(frozen=True)
class TestedImage:
    """A labelled row of predictions.csv.

    Attributes:
        label: 0 Healthy, 1 Anemic.
        probability: of Anemic, by Global.
        group: what must not be parted.
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    label: int
    probability: float
    group: str


@dataclass(frozen=True)
class TestedRun:
    """What a run said of its test images.

    Attributes:
        name: as it was asked for: a run, or a run and which of its weights, as ``SEG:best``.
        folder: its results.
        images: by name; those without a label are left out.
        record: what its metrics.json says of where its figures come from: data, split_digest, weights_sha256, epoch and
            commit, each None where it does not say; empty where there is no metrics.json that can be read.
    """

    __test__ = False

    name: str
    folder: Path
    images: dict[str, TestedImage]
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def which(self) -> str:
        """Which of its weights were tested: latest, best, or an epoch."""
        return self.folder.name.removeprefix("test_")


@dataclass(frozen=True)
class Comparison:
    """Runs on the images that all of them were tested on.

    Attributes:
        runs: the first is what the others are compared with.
        images: names, sorted.
        label: (N,) 0 or 1.
        group: N names.
        probability: (runs, N).
        scores: of each run, ``classification_metrics`` on these images.
        differences: of each run but the first: auroc and accuracy, the run less the first, each {value, ci95}, and
            verdict.
        agreement: of each run but the first: how many images both, only the first, only it, neither were right on.
        notes: what the reader must know.
        made: seed, resamples, intervals (the method), command and date of the comparison.
    """

    runs: Sequence[TestedRun]
    images: Sequence[str]
    label: NDArray[np.int64]
    group: Sequence[str]
    probability: NDArray[np.float64]
    scores: Sequence[dict[str, Any]]
    differences: Sequence[dict[str, Any]]
    agreement: Sequence[dict[str, int]]
    notes: Sequence[str]
    made: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """What compare.json holds."""
        others = [run.name for run in self.runs[1:]]
        return {
            "schema_version": 1,
            "reference": self.runs[0].name,
            "n": len(self.images),
            "n_groups": len(set(self.group)),
            "n_groups_effective": effective_groups(self.group),
            "made": self.made,
            "runs": {
                run.name: {
                    "results": str(run.folder),
                    "which": run.which,
                    "record": run.record or None,
                    "test_images": len(run.images),
                    "metrics": scores,
                }
                for run, scores in zip(self.runs, self.scores, strict=True)
            },
            "less_reference": dict(zip(others, self.differences, strict=True)),
            "agreement": dict(zip(others, self.agreement, strict=True)),
            "notes": list(self.notes),
        }


def results_folder(results_dir: Path, run: str, which: str) -> Path:
    """Where the test of a run lies: ``SEG`` is its test of the weights ``which``, ``SEG:best`` that of others."""
    name, _, own = run.partition(":")
    return results_dir / name / f"test_{own or which}"


def comparison_folder(which: str, others: Sequence[str]) -> str:
    """The name of a comparison's folder: the weights asked for and the other runs, with a mark where it is cut."""
    whole = f"compare_{which}_{'+'.join(others)}".replace(":", "@").encode("utf-8", "surrogateescape")
    if len(whole) <= LONGEST_FOLDER:
        return whole.decode("utf-8", "surrogateescape")
    return f"{whole[:LONGEST_FOLDER].decode('utf-8', 'ignore')}-{hashlib.sha256(whole).hexdigest()[:8]}"


def read_run(name: str, folder: Path) -> TestedRun:
    """Read what a test has written.

    Raises:
        UserError: predictions.csv is missing or broken, or holds no labelled image.
    """
    path = folder / "predictions.csv"
    tested = f"test the run {name} first, or name a run that was tested"
    if not path.is_file():
        found = f"tests of: {', '.join(there)}" if (there := _tests_of(folder.parent)) else "none"
        raise UserError(f"--compare: no results of {name}", expected=f"a file {path}", found=found, remedy=tested)
    images: dict[str, TestedImage] = {}
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:  # a spreadsheet adds a mark
            table = csv.DictReader(file, strict=True)
            if lacking := [column for column in NEEDED if column not in (table.fieldnames or ())]:
                raise ValueError(f"no column {', '.join(lacking)}")
            for row in table:
                if None in row or None in row.values():
                    raise ValueError(f"the row of {row['image']!r} is broken off or too long")
                if row["label_true"]:
                    if row["image"] in images:
                        raise ValueError(f"{row['image']!r} stands there twice")
                    images[row["image"]] = _image(row)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        words = f"{type(error).__name__}: {error}"
        expected = f"columns {', '.join(NEEDED)}, as a test writes them"
        raise UserError(f"{path} cannot be compared", expected=expected, found=words, remedy=tested) from None
    if not images:
        raise UserError(f"{path} holds no labelled image", remedy="compare tests of images whose class is known")
    record, scores = _record(folder / "metrics.json")
    unlike = _unlike(images.values(), scores)
    if unlike is not None:
        raise UserError(f"{path} cannot be compared", expected="both files of one test", found=unlike, remedy=tested)
    return TestedRun(name, folder, images, record)


def _tests_of(run: Path) -> list[str]:
    """The weights of a run that were tested, such as ``latest``."""
    return sorted(path.parent.name.removeprefix("test_") for path in run.glob("test_*/predictions.csv"))


def _unlike(images: Collection[TestedImage], scores: dict[str, Any]) -> str | None:
    """How a table is not the one that metrics.json was worked out from; None where it is, or nothing is known."""
    brier = sum((image.probability - image.label) ** 2 for image in images) / len(images)
    number, score = scores.get("n", len(images)), scores.get("brier", brier)
    if number != len(images):
        return f"{counted(len(images), 'labelled images')}, in metrics.json {number}"
    if not is_number(score) or not math.isclose(score, brier, abs_tol=1e-9):
        return f"other labels or probabilities: a Brier score of {brier:.7g}, in metrics.json {score}"
    return None


def _record(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What metrics.json says of where the figures come from, and Global's figures of the test images.

    Both empty where it cannot be read, which a note then says.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = content["provenance"]
        trained_on, weights = known.get("trained_on") or {}, known.get("weights") or {}
        scores = dict(((content.get("splits") or {}).get("test") or {}).get("global") or {})
        record = {
            "data": known.get("data"),
            "split_digest": trained_on.get("split_digest"),
            "weights_sha256": weights.get("sha256"),
            "epoch": weights.get("epoch"),
            "commit": known.get("commit"),
        }
        return record, scores
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}, {}


def _image(row: dict[str, str]) -> TestedImage:
    probability = float(row["prob_anemic"])
    if not (math.isfinite(probability) and 0 <= probability <= 1):
        raise ValueError(f"prob_anemic is {row['prob_anemic']} of {row['image']!r}")
    if row["label_true"] not in CLASS_WORDS:
        raise ValueError(f"label_true is {row['label_true']!r} of {row['image']!r}, not {' or '.join(CLASS_WORDS)}")
    return TestedImage(CLASS_WORDS.index(row["label_true"]), probability, row["group"])


def compare(runs: Sequence[TestedRun], *, resamples: int = 1000, seed: int = 0) -> Comparison:
    """Score runs on the labelled images that all of them were tested on.

    Args:
        runs: two or more; the first is what the others are compared with.
        resamples: so many groups at most are left out one at a time, the same groups for every run.
        seed: of the intervals.

    Raises:
        UserError: no image is common to all, the runs know other labels of one, or one is named twice.
    """
    _check_names(runs)
    names = _common_images(runs)
    _check_labels(runs, names)
    first = runs[0].images
    label = np.array([first[name].label for name in names], dtype=np.int64)
    group = [first[name].group for name in names]
    probability = np.array([[run.images[name].probability for name in names] for run in runs], dtype=np.float64)
    fold = np.zeros(len(names), dtype=np.int64)
    drawing: dict[str, Any] = {"threshold": THRESHOLD, "resamples": resamples, "seed": seed}
    drawn = [over_folds(label, chance, group, fold, **drawing) for chance in probability]
    differences = []
    for each in drawn[1:]:
        found: dict[str, Any] = {measure: (each[measure] - drawn[0][measure]).as_dict() for measure in each}
        differences.append({**found, "verdict": verdict_of(found["auroc"]["ci95"])})
    right = (probability > THRESHOLD) == (label == 1)
    return Comparison(
        runs,
        names,
        label,
        group,
        probability,
        [classification_metrics(label, chance, group, resamples=resamples, seed=seed) for chance in probability],
        differences,
        [_agreement(right[0], own) for own in right[1:]],
        [*_origins(runs), *_notes(runs, names)],
        {
            "seed": seed,
            "resamples": resamples,
            "intervals": METHOD,
            "command": shlex.join(["python", *sys.argv]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def _common_images(runs: Sequence[TestedRun]) -> list[str]:
    """The names of the images that all runs were tested on, in order; at least one."""
    names = sorted(set.intersection(*(set(run.images) for run in runs)))
    if not names:
        raise UserError(
            "--compare: the runs were tested on different images",
            expected="test images that are the same, by name, in every predictions.csv",
            found="; ".join(f"{run.name}: {len(run.images)}, first {next(iter(run.images))!r}" for run in runs),
            remedy="train and test them on the same data and split (--split_from), then compare",
        )
    return names


def _agreement(first: NDArray[np.bool_], other: NDArray[np.bool_]) -> dict[str, int]:
    parts = {
        "both_right": first & other,
        "only_reference_right": first & ~other,
        "only_this_right": ~first & other,
        "both_wrong": ~first & ~other,
    }
    return {key: int(where.sum()) for key, where in parts.items()}


def _check_names(runs: Sequence[TestedRun]) -> None:
    folders = [run.folder for run in runs]
    twice = next((run.name for run in runs if folders.count(run.folder) > 1), None)
    if len(runs) < 2 or twice is not None:
        raise UserError(
            "--compare needs two or more different tests",
            found=f"{twice} twice" if twice else "one",
            remedy="name other runs, or other weights of one: --compare SEG:best",
        )


def _check_labels(runs: Sequence[TestedRun], names: Sequence[str]) -> None:
    first = runs[0]
    for run in runs[1:]:
        differing = [name for name in names if run.images[name].label != first.images[name].label]
        if differing:
            raise UserError(
                f"--compare: {first.name} and {run.name} know other classes of {len(differing)} of the same images",
                expected="one class of each image",
                found=f"first {differing[0]!r}",
                remedy="test both on the same data, or rename the images that are not the same",
            )


def _origins(runs: Sequence[TestedRun]) -> list[str]:
    """Runs that were tested on other data or splits than the first: equal names need not be equal images there."""
    first, notes = runs[0], []
    for run in runs:
        if not run.record:
            notes.append(f"{run.name} has no metrics.json that can be read: what it was tested on is not known.")
    for run in runs[1:]:
        if not (run.record and first.record):
            continue
        if run.record["data"] != first.record["data"]:
            where = f"{first.name} was tested on {first.record['data']}, {run.name} on {run.record['data']}"
            notes.append(f"{where}; images are matched by name alone.")
        digests = first.record["split_digest"], run.record["split_digest"]
        if digests[0] != digests[1]:
            short = [str(digest)[:12] if digest else "none on record" for digest in digests]
            notes.append(
                f"{first.name} and {run.name} were trained on other splits ({short[0]}, {short[1]}): one may have"
                " learned from images that the other is tested on; images are matched by name alone."
            )
    return notes


def _notes(runs: Sequence[TestedRun], names: Sequence[str]) -> list[str]:
    """What the reader must know: images left out, and groups that are not the same."""
    notes = []
    for run in runs:
        lost = len(run.images) - len(names)
        if lost:
            verb = "is" if lost == 1 else "are"
            of = counted(len(run.images), "labelled test images")
            notes.append(f"{lost:,} of the {of} of {run.name} {verb} not common to all.")
    first = runs[0]
    for run in runs[1:]:
        moved = sum(run.images[name].group != first.images[name].group for name in names)
        if moved:
            words = f"{run.name} names other groups for {counted(moved, 'images')}"
            notes.append(f"{words}; intervals go by those of {first.name}.")
    return notes


def most_disagreeing(comparison: Comparison, most: int = MOST_DISAGREEING) -> list[int]:
    """The images that the runs disagree on about the class, those with the widest probabilities first."""
    called = comparison.probability > THRESHOLD
    spread = comparison.probability.max(axis=0) - comparison.probability.min(axis=0)
    differ = np.flatnonzero(called.any(axis=0) & ~called.all(axis=0))
    found: list[int] = differ[np.argsort(-spread[differ], kind="stable")][:most].tolist()
    return found
