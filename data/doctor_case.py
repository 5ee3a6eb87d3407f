"""What the doctor knows of a data root before it judges, and the form of what it finds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data.doctor_facts import Problem, SmearFacts
from data.groups import Sets
from data.near_duplicates import NearPair
from data.records import ANEMIC, SmearRecord

Level = Literal["error", "warning", "note"]
SURELY = 0.55  # AUROC that an interval must leave behind before anything is said of chance
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        key: its stable name.
        level: "error" where the data must not be used so, "warning" where results would mislead, "note" to know of.
        title: a few words.
        sentence: what was found, in one plain sentence.
        remedy: what to do about it.
        files: names of all files concerned, as the data root names them.
        reasons: what is said of single files, by name.
        sets: the same files in parts: those that belong together (equal files, one blood count), or by kind.
        values: figures behind the sentence.
    """

    key: str
    level: Level
    title: str
    sentence: str
    remedy: str
    files: Sequence[str] = ()
    reasons: dict[str, str] = field(default_factory=dict)
    sets: Sequence[Sequence[str]] = ()
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many files it concerns."""
        return len(self.files)


@dataclass(frozen=True)
class Score:
    """How far one number told the classes apart: an AUROC and its 95% interval over groups, or None without one."""

    auroc: float
    interval: tuple[float, float] | None

    @property
    def strength(self) -> float:
        """The AUROC whichever way round, 0.5 to 1."""
        return max(self.auroc, 1 - self.auroc)

    @property
    def certain(self) -> bool:
        """Whether the interval leaves chance well out."""
        return self.interval is not None and (self.interval[0] > SURELY or self.interval[1] < 1 - SURELY)


@dataclass(frozen=True)
class Case:
    """A data root examined.

    Attributes:
        records: its smears, sorted by name.
        problems: what is wrong with it as a whole or with files that belong to no smear.
        facts: what was seen of each smear.
        colours: float32 (N, F) colour statistics.
        reports: hash of each smear's blood count, empty without one.
        report_problems: blood counts that cannot be used, by the name of the smear.
        haemoglobin: g/dL of each, None where unknown.
        left_out: why a smear is not in the cleaned data, by index; all others are kept.
        near: near duplicates among those kept, as indices of records.
        groups: the group of each smear; the unreadable stand alone.
        groups_before: the same, without what near duplicates join.
        units: what the folds of the colour score may not part: groups, or blocks of them.
        split_by: "group" or "blocks".
        folds: of the colour score.
        seed: of the colour score.
    """

    root: Path
    records: Sequence[SmearRecord]
    problems: Sequence[Problem]
    facts: Sequence[SmearFacts]
    colours: npt.NDArray[np.float32]
    reports: Sequence[str]
    report_problems: dict[str, Problem]
    haemoglobin: Sequence[float | None]
    left_out: dict[int, str]
    near: Sequence[NearPair]
    groups: Sequence[str]
    groups_before: Sequence[str]
    units: Sequence[str]
    split_by: str
    folds: int
    seed: int

    @cached_property
    def readable(self) -> list[int]:
        """Smears whose image could be read."""
        return [index for index, facts in enumerate(self.facts) if facts.problem is None]

    @cached_property
    def kept(self) -> list[int]:
        """Smears of the cleaned data."""
        return [index for index in range(len(self.records)) if index not in self.left_out]

    @cached_property
    def labelled(self) -> list[int]:
        """Kept smears whose class is known."""
        return [index for index in self.kept if self.records[index].label is not None]

    @cached_property
    def equal_sets(self) -> list[list[int]]:
        """Sets of two or more smears with equal pixels, by first name."""
        same: dict[Hashable, list[int]] = defaultdict(list)
        for index in self.readable:
            same[self.facts[index].digest].append(index)
        return [indices for indices in same.values() if len(indices) > 1]

    @cached_property
    def file_scores(self) -> dict[str, Score]:
        """How far facts of the files alone tell the classes apart."""
        facts = self.facts
        numbers: dict[str, dict[int, float]] = {
            "file size": {index: float(facts[index].size) for index in self.labelled},
            "width": {index: float(facts[index].width) for index in self.labelled},
            "height": {index: float(facts[index].height) for index in self.labelled},
        }
        words: dict[str, dict[int, str]] = {
            "format": {index: facts[index].format for index in self.labelled},
            "pixel mode": {index: f"{facts[index].mode}{facts[index].bits}" for index in self.labelled},
            "EXIF data": {index: str(facts[index].exif) for index in self.labelled},
        }
        return self._scores(numbers | {key: self._share_of_anemic(known) for key, known in words.items()})

    @cached_property
    def mask_scores(self) -> dict[str, Score]:
        """How far the masks' grey levels tell the classes apart: the dark and the light one, and their number."""
        values: dict[str, dict[int, float]] = {"dark level": {}, "light level": {}, "number of levels": {}}
        for index in self.labelled:
            mask = self.facts[index].mask
            if mask:
                for key, level in zip(values, (mask.dark, mask.light, mask.levels), strict=True):
                    values[key] |= {} if level is None else {index: float(level)}
        return self._scores(values)

    def in_both_classes(self, indices: Iterable[int]) -> bool:
        """Whether smears stand in more than one class."""
        return len({self.records[index].label for index in indices} - {None}) > 1

    def names(self, indices: Iterable[int]) -> list[str]:
        """Names of smears."""
        return [self.records[index].name for index in indices]

    def _share_of_anemic(self, words: dict[int, str]) -> dict[int, float]:
        """Replace each word by the share of Anemic among the smears that have it."""
        total = Counter(words.values())
        anemic = Counter(word for index, word in words.items() if self.records[index].label == ANEMIC)
        return {index: anemic[word] / total[word] for index, word in words.items()}

    def _scores(self, values: dict[str, dict[int, float]]) -> dict[str, Score]:
        """``score`` of each number for which there is one."""
        return {key: score for key, known in values.items() if (score := self.score(known))}

    def score(self, values: dict[int, float]) -> Score | None:
        """How far a number known of labelled, kept smears tells the classes apart; None where one class has none."""
        from util.metrics import classification_metrics

        indices = [index for index in self.labelled if index in values]
        labels = np.array([self.records[index].label for index in indices], dtype=np.int64)
        if len(set(labels.tolist())) < 2:
            return None
        known = np.array([values[index] for index in indices])
        ranks = np.unique(known, return_inverse=True)[1]
        metrics = classification_metrics(
            labels, ranks / max(1, int(ranks.max())), [self.groups[index] for index in indices], resamples=300
        )
        interval = metrics["ci95"]["auroc"]
        return Score(metrics["auroc"], tuple(interval) if interval else None)


def about_files(
    key: str, level: Level, title: str, sentence: str, remedy: str, reasons: dict[str, str]
) -> list[Finding]:
    """A finding about the files that have a reason; none where there are none."""
    return [Finding(key, level, title, sentence, remedy, list(reasons), reasons)] if reasons else []


def joined_sets(pairs: Iterable[tuple[Hashable, Hashable]]) -> list[list[Any]]:
    """Chain pairs into sets, each sorted, the sets by their first member."""
    known = list(pairs)
    chained = Sets(known)
    sets: dict[Hashable, set[Any]] = defaultdict(set)
    for key in (key for pair in known for key in pair):
        sets[chained.leader(key)].add(key)
    return sorted(sorted(members) for members in sets.values())
