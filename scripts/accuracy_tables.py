"""Tables and a plot from the rows that scripts/bench_accuracy.py has written."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.network import HEAD_KEYS, TIER_NAMES
from util.comparison import Resampled, over_folds
from util.errors import UserError
from util.files import atomic_write
from util.report_content import LEAST_EFFECTIVE, LEAST_EFFECTIVE_OF_CLASS

HEAD_TITLES = dict(zip(HEAD_KEYS, ("Tier-I", "Tier-II", "Tier-III", "Global"), strict=True))
VIEW_TITLES = {"as_is": "as they are", "grey": "without colour", "stain_normalised": "stain-normalised"}
OURS, GLOBAL, FROZEN, COLOUR, TOGETHER = "ours", "global", "frozen", "colour", "mean of the three lone networks"
LONE = (*TIER_NAMES, FROZEN, COLOUR, TOGETHER)  # these say the same for every head
Row = dict[str, Any]


def read_runs(path: Path) -> list[Row]:
    """The rows that a benchmark has written so far; a last line that was torn by a kill is left out.

    Raises:
        UserError: another line is no row.
    """
    if not path.is_file():
        return []
    *lines, torn = path.read_text(encoding="utf-8").split("\n")
    if torn:  # also where its end alone is missing: the next row would be written behind it
        atomic_write(path, "".join(f"{line}\n" for line in lines))
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}, is no row of a benchmark", found=str(error)) from None
    return rows


def summary(row: Row) -> str:
    """One line on a row."""
    scores = _scores([row], GLOBAL, "as_is")
    names = f"{row['variant']} by {row['split_by']}, fold {row['fold']}, seed {row['seed']}"
    return (
        f"{names}: AUROC {scores['auroc'].value:.3f}, accuracy {scores['accuracy'].value:.3f}, {row['seconds']:.0f} s"
    )


def with_mean_of_lone(rows: Iterable[Row]) -> list[Row]:
    """Add, where the three lone networks were tested on the same images, the mean of their logits.

    Three networks know more than one, whatever joins them: this is what joining them without any tiers gives.
    """
    rows = list(rows)
    lone: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        if row["variant"] in TIER_NAMES:
            lone[row["split_by"], row["seed"], row["fold"]].append(row)
    for parts in lone.values():
        if len(parts) == len(TIER_NAMES) and all(part["images"] == parts[0]["images"] for part in parts):
            views = set.intersection(*(set(part["logits"]) for part in parts))
            logits = {view: np.mean([part["logits"][view] for part in parts], axis=0).tolist() for view in views}
            rows.append({**parts[0], "variant": TOGETHER, "logits": logits})
    return rows


def validation_scores(row: Row) -> tuple[float, float] | None:
    """AUROC and accuracy of Global on the fold's validation images; None where they were not judged."""
    from sklearn.metrics import roc_auc_score

    if "val_logits" not in row or len(set(row["val_labels"])) < 2:
        return None
    label, logit = np.array(row["val_labels"]), np.array(row["val_logits"])[:, -1]
    return float(roc_auc_score(label, logit)), float(((logit > 0) == (label > 0)).mean())


def _scores(rows: Sequence[Row], head: str, view: str) -> dict[str, Resampled]:
    """Mean over folds of one variant and seed."""
    rows = sorted(rows, key=lambda row: row["fold"])
    column = HEAD_KEYS.index(head)
    label = np.concatenate([row["labels"] for row in rows])
    logit = np.concatenate([np.array(row["logits"][view])[:, column] for row in rows])
    group = [name for row in rows for name in row["groups"]]
    fold = np.concatenate([[row["fold"]] * len(row["labels"]) for row in rows])
    return over_folds(label, logit, group, fold)


class Benchmark:
    """The rows of a benchmark, by split, variant and seed.

    Args:
        rows: of runs.jsonl.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.cells: dict[tuple[str, str], dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            self.cells[row["split_by"], row["variant"]][row["seed"]].append(row)

    @property
    def splits(self) -> list[str]:
        """The splits there are, the ordinary one first."""
        return sorted({split for split, _ in self.cells}, key=lambda split: split != "group")

    def variants(self, split: str) -> list[str]:
        """The variants that were run on a split, ours first, then as they came."""
        return sorted((variant for s, variant in self.cells if s == split), key=lambda variant: variant != OURS)

    def folds(self, split: str, variant: str) -> set[int]:
        """The folds of a variant's best-covered seed."""
        return max(({row["fold"] for row in rows} for rows in self.cells[split, variant].values()), key=len)

    def same_images(self, split: str, one: str, other: str, seed: int, folds: set[int]) -> bool:
        """Whether two variants were tested on the same images, fold by fold."""
        sides = [
            {row["fold"]: row["images"] for row in self.cells[split, variant][seed] if row["fold"] in folds}
            for variant in (one, other)
        ]
        return sides[0] == sides[1]

    def by_seed(
        self, split: str, variant: str, head: str, view: str, folds: set[int]
    ) -> dict[int, dict[str, Resampled]]:
        """Mean over some folds, of each seed that has all of them and was judged that way."""
        found = {}
        for seed, rows in self.cells[split, variant].items():
            chosen = [row for row in rows if row["fold"] in folds]
            if folds and {row["fold"] for row in chosen} == folds and all(view in row["logits"] for row in chosen):
                found[seed] = _scores(chosen, head, view)
        return found


def write_tables(rows: Sequence[Row], out: Path) -> None:
    """Write OUT/tables.md, and OUT/accuracy.svg where there is something to draw.

    Raises:
        UserError: a file cannot be written.
    """
    bench = Benchmark(with_mean_of_lone(rows))
    parts = [line for split in bench.splits for line in _split_tables(bench, split)]
    atomic_write(out / "tables.md", "\n".join(parts) + "\n")
    if rows:
        _plot(bench, out / "accuracy.svg")


def _split_tables(bench: Benchmark, split: str) -> Iterator[str]:
    variants = bench.variants(split)
    yield f"### Folds by {split}\n"
    yield "| network | verdict | images | seeds, folds | AUROC | accuracy | SD of AUROC over seeds |"
    yield "|---|---|---|---|---|---|---|"
    for variant in variants:
        folds = bench.folds(split, variant)
        for head in (GLOBAL,) if variant in LONE else HEAD_KEYS:
            for view in VIEW_TITLES if head == GLOBAL else ("as_is",):
                seeds = bench.by_seed(split, variant, head, view, folds)
                if seeds:
                    yield _line(variant, head, view, seeds, folds)
    yield ""
    yield from _differences(bench, split, variants)
    yield from _validation(bench, split, variants)


def _validation(bench: Benchmark, split: str, variants: Sequence[str]) -> Iterator[str]:
    """What the choice among our own variants may go by: the validation images of the folds, and no test image."""
    yield "| Global on the validation images, by which ours weighs its voices | runs | AUROC | accuracy |"
    yield "|---|---|---|---|"
    for variant in variants:
        rows = [row for seed in bench.cells[split, variant].values() for row in seed]
        scores = [found for row in rows if variant != TOGETHER and (found := validation_scores(row))]
        if scores:
            auroc, accuracy = np.mean(scores, axis=0)
            yield f"| {variant} | {len(scores)} | {auroc:.3f} | {accuracy:.3f} |"
    yield ""


def _line(variant: str, head: str, view: str, seeds: dict[int, dict[str, Resampled]], folds: set[int]) -> str:
    mean = {measure: Resampled.mean([seed[measure] for seed in seeds.values()]) for measure in ("auroc", "accuracy")}
    spread = f"{np.std([s['auroc'].value for s in seeds.values()], ddof=1):.3f}" if len(seeds) > 1 else "one seed"
    title = "its own" if variant in LONE else HEAD_TITLES[head]
    cells = [
        variant,
        title,
        VIEW_TITLES[view],
        f"{len(seeds)}, {len(folds)}",
        *map(_with_interval, mean.values()),
        spread,
    ]
    return f"| {' | '.join(cells)} |"


def _interval(score: Resampled) -> list[float]:
    """The ends of the interval; none where there are too few groups for one to be believed."""
    enough = score.sizes.effective >= LEAST_EFFECTIVE and score.sizes.fewest >= LEAST_EFFECTIVE_OF_CLASS
    return (score.interval or []) if enough else []


def _with_interval(score: Resampled, digits: int = 3) -> str:
    ends = ", ".join(f"{end:.{digits}f}" for end in _interval(score)) or "no interval"
    return f"{score.value:.{digits}f} [{ends}]"


def _differences(bench: Benchmark, split: str, variants: Sequence[str]) -> Iterator[str]:
    """Global of ours less each other variant, and each lone network less frozen features, where both were tested."""
    pairs = [(OURS, other) for other in variants if other != OURS] if OURS in variants else []
    pairs += [(lone, FROZEN) for lone in variants if lone in TIER_NAMES and FROZEN in variants]
    if not pairs:
        return
    yield "| on the same images | folds, seeds | AUROC | accuracy |"
    yield "|---|---|---|---|"
    for one, other in pairs:
        folds = bench.folds(split, one) & bench.folds(split, other)
        mine = bench.by_seed(split, one, GLOBAL, "as_is", folds)
        theirs = bench.by_seed(split, other, GLOBAL, "as_is", folds)
        seeds = [seed for seed in sorted(set(mine) & set(theirs)) if bench.same_images(split, one, other, seed, folds)]
        if not seeds:
            continue
        less = {m: Resampled.mean([mine[s][m] - theirs[s][m] for s in seeds]) for m in ("auroc", "accuracy")}
        names = f"{one}{', Global,' if one == OURS else ''} less {other}"
        yield f"| {names} | {len(folds)}, {len(seeds)} | {' | '.join(map(_with_interval, less.values()))} |"
    yield ""


def _plot(bench: Benchmark, path: Path) -> None:
    """AUROC with intervals by network and verdict, a panel for each split."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.8 + 0.32 * max(4, sum(1 for _ in _bars(bench, bench.splits[0])))))
    for panel, split in enumerate(bench.splits, 1):
        axes = figure.add_subplot(1, len(bench.splits), panel)
        bars = list(_bars(bench, split))[::-1]
        values = np.array([score.value for _, score in bars])
        ends = np.array([_interval(score) or [score.value] * 2 for _, score in bars])
        reach = np.clip([values - ends[:, 0], ends[:, 1] - values], 0, None)
        axes.errorbar(values, range(len(bars)), xerr=reach, fmt="o", color="#0b5fa5", capsize=3)
        axes.set_yticks(range(len(bars)), [name for name, _ in bars] if panel == 1 else [""] * len(bars))
        axes.set_xlabel("AUROC, mean over folds, 95% interval over groups")
        axes.set_title(f"folds by {split}")
        axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _bars(bench: Benchmark, split: str) -> Iterator[tuple[str, Resampled]]:
    for variant in bench.variants(split):
        folds = bench.folds(split, variant)
        for head in HEAD_KEYS if variant == OURS else (GLOBAL,):
            seeds = bench.by_seed(split, variant, head, "as_is", folds)
            name = f"{variant}, {HEAD_TITLES[head]}" if variant not in LONE else variant
            if seeds:
                yield name, Resampled.mean([seed["auroc"] for seed in seeds.values()])
