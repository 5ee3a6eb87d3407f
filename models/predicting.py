"""Judging smears without labels: verdicts, masks and cells of every image, in constant memory, and the page of them."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from models.assessment import PicturePaths, at_own_size, probabilities
from models.cell_files import remove_begun
from models.cell_stage import OTSU, CellsOfImage, CellStage, written_mask
from models.inference import Prediction, SmearBatch, predict, see_all, see_none
from models.network import HEAD_KEYS
from models.saved import SavedNetwork
from models.testing import PACKAGES
from util.errors import UserError
from util.files import unwritable
from util.predict_page import JudgedImage, PredictPage, write_predict_page
from util.report import overlay_image, save_thumbnail
from util.results import output_stems, save_mask, write_json, write_predictions
from util.runlog import plain

RUN_SCHEMA = 1
THUMBNAIL = 360  # pixels of the longer side of the page's pictures
ANEMIC = 1
FILES = ("index.html", "run.json", "predictions.csv", "cells.csv", "left_out.csv")
FOLDERS = ("masks", "instances", "images", "cells", "pages")


class SmearSource(Protocol):
    """What is judged; ``data.unlabelled.SmearStream`` is such."""

    @property
    def names(self) -> list[str]:
        """The images, all different."""

    @property
    def skipped(self) -> Sequence[Any]:
        """What could not be listed or read so far, each with ``name`` and ``reason``."""

    def batches(self, device: torch.device) -> Iterator[Any]:
        """Whole images in order, their index in ``names``; those that cannot be read are left out."""

    def pixels(self, position: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        """An image as its file holds it, and Otsu's mask where that stands in for the network's."""

    def skip(self, position: int, error: UserError) -> None:
        """Note that an image could not be judged after all."""


# --- the run --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Written:
    """What was done for one image beside its verdict: its cells, whose mask was written, or why it was lost."""

    found: CellsOfImage | None = None
    mask_of: str = ""
    unreadable: UserError | None = None


@dataclass
class _Tally:
    """What all images say together."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    images: list[JudgedImage] = field(default_factory=list)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    masks: Counter[str] = field(default_factory=Counter)


class PredictRun:
    """Judges images without labels and writes all that is said of them.

    Args:
        saved: the network and what its checkpoint says.
        device: where to run.
        results: the folder of the outputs; what an earlier prediction left there is removed.
        options: the predict command's options.
        cells: finds the cells of the images, or None.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(
        self,
        saved: SavedNetwork,
        device: torch.device,
        results: Path,
        options: Any,
        *,
        cells: CellStage | None = None,
    ) -> None:
        self.saved, self.device, self.results, self.options = saved, device, results, options
        self.network = saved.network.to(device).to(memory_format=torch.channels_last)
        self.workers = options.num_workers or os.cpu_count() or 1
        self.tally, self.seconds = _Tally(), 0.0
        self.stage = cells
        self._clear()

    def _clear(self) -> None:
        """Remove an earlier prediction's files, the page first: what is left of an interrupted one is no report."""
        try:
            for name in FILES:
                (self.results / name).unlink(missing_ok=True)
            for folder in (self.results / name for name in FOLDERS):
                if folder.is_dir() and not folder.is_symlink():
                    shutil.rmtree(folder)
            remove_begun(self.results)
        except OSError as error:
            raise unwritable(self.results, error) from None

    def judge(self, smears: SmearSource) -> None:
        """Judge every image that can be read; predictions.csv, the masks and the cells are there afterwards.

        Raises:
            UserError: an output cannot be written, or two images' names cannot be told apart in the results folder.
        """
        began, names = time.perf_counter(), smears.names
        stems = output_stems(names)
        with contextlib.ExitStack() as stack:
            files = stack.enter_context(self.stage.files()) if self.stage else None
            bar = stack.enter_context(tqdm(total=len(names), desc="judging", unit="img"))
            for position, chance, written in self._judged(smears, stems):
                bar.update(position + 1 - bar.n)
                if written.unreadable:
                    smears.skip(position, written.unreadable)
                    continue
                name = names[position]
                if files and written.found and written.found.cells:
                    files.add(name, stems[name], written.found.cells)
                self._count(name, stems[name], chance, written, position)
            bar.update(len(names) - bar.n)
        write_predictions(self.results / "predictions.csv", self.tally.rows)
        self.seconds = time.perf_counter() - began

    def _judged(self, smears: SmearSource, stems: Mapping[str, str]) -> Iterator[tuple[int, list[float], _Written]]:
        """Position, chances of Anemic by head and what was written of each image, in order.

        The files of a few images are written in threads while the network judges the next ones.
        """
        waiting: deque[tuple[int, list[float], Future[_Written]]] = deque()
        pool = ThreadPoolExecutor(self.workers)
        try:
            for prediction in self._predictions(smears):
                chances = probabilities(prediction.logits.cpu().numpy()).tolist()
                masks = prediction.mask_probability[:, 0].cpu().numpy()
                for position, chance, mask in zip(prediction.batch.index.tolist(), chances, masks, strict=True):
                    waiting.append((position, chance, pool.submit(self._write_one, smears, stems, position, mask)))
                    while len(waiting) > 2 * self.workers:
                        yield _settled(waiting.popleft())
            while waiting:
                yield _settled(waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _predictions(self, smears: SmearSource) -> Iterator[Prediction]:
        sees: Callable[[SmearBatch], torch.Tensor] = see_none if self.saved.binary_sees == "predicted" else see_all
        return predict(self.network, smears.batches(self.device), self.device, sees, views=self.options.test_views)

    def _write_one(
        self, smears: SmearSource, stems: Mapping[str, str], position: int, probability: NDArray[np.float32]
    ) -> _Written:
        """Write the mask and the pictures of one image, and find its cells."""
        name = smears.names[position]
        try:
            rgb, stand_in = smears.pixels(position)
        except UserError as error:  # gone or changed since the network saw it
            return _Written(unreadable=error)
        height, width = rgb.shape[:2]
        drawn = at_own_size(probability, width, height) if stand_in is None else stand_in
        found = self.stage.find(position, name, stems[name], rgb) if self.stage else None
        rule, side = self.options.masks_from, len(probability)
        mask, source = written_mask(drawn, stand_in is not None, found, rule, side)
        paths = PicturePaths(stems[name])
        save_mask(self.results / paths.mask(), mask)
        save_thumbnail(self.results / paths.thumbnail("smear"), rgb, THUMBNAIL)
        save_thumbnail(self.results / paths.thumbnail("overlay"), overlay_image(rgb, mask), THUMBNAIL)
        return _Written(found, source)

    def _count(self, name: str, stem: str, chance: list[float], written: _Written, position: int) -> None:
        """Add one image to what the tables and the page will show."""
        row = {
            "image": name,
            "prob_anemic": chance[3],
            **{f"prob_anemic_{head}": chance[k] for head, k in self._heads().items() if head != HEAD_KEYS[-1]},
            "label_pred": int(chance[3] > 0.5),
            **(written.found.columns if written.found else {}),
        }
        self.tally.rows.append(row)
        self.tally.masks[written.mask_of] += 1
        warnings = written.found.warnings if written.found else ()
        if warnings:
            self.tally.warnings[name] = list(warnings)
        paths = PicturePaths(stem)
        image = JudgedImage(
            name=name,
            label=row["label_pred"],
            prob={head: chance[k] for head, k in self._heads().items()},
            smear=paths.thumbnail("smear"),
            overlay=paths.thumbnail("overlay"),
            mask=paths.mask(),
            warnings=warnings,
            **(self.stage.gallery.image_fields(position) if self.stage else {}),
        )
        self.tally.images.append(image)

    def _heads(self) -> dict[str, int]:
        """The heads that were trained, and their columns."""
        opened = self.network.open_tiers
        return {head: k for k, head in enumerate(HEAD_KEYS) if k < opened or head == HEAD_KEYS[-1]}

    def _warnings(self, synthetic: bool) -> list[str]:
        """What the reader must know of the run as a whole."""
        facts, warnings = self.saved.facts, []
        if facts["data"].get("synthetic") and not synthetic:
            warnings.append("The network was trained on synthetic smears only: its verdicts on others mean nothing.")
        if self.tally.masks[OTSU]:
            warnings.append("The network never saw a true mask: the masks here are Otsu's thresholds, not its own.")
        if self.tally.warnings:
            count = len(self.tally.warnings)
            warnings.append(f"{count} {'image' if count == 1 else 'images'} with a warning of their own, see below.")
        return warnings

    def write_report(self, smears: SmearSource, data: Mapping[str, Any]) -> Path:
        """Write run.json and the page, the page last.

        Args:
            smears: what was judged.
            data: what was asked for: at least ``data``, ``layout``, ``notes`` (list) and ``synthetic``.

        Returns:
            the page's path.
        """
        content = self.content(smears, data)
        write_json(self.results / "run.json", content)
        page = PredictPage(
            title=self.options.name,
            run=content,
            images=self.tally.images,
            warnings=content["warnings"],
            cells=self.stage.gallery if self.stage else None,
            options=self._shown_options(),
        )
        return write_predict_page(self.results, page)

    def content(self, smears: SmearSource, data: Mapping[str, Any]) -> dict[str, Any]:
        """run.json."""
        facts = self.saved.facts
        found = {
            "schema_version": RUN_SCHEMA,
            "counts": self._counts(smears),
            "skipped": [{"image": item.name, "reason": item.reason} for item in smears.skipped],
            "warnings": [*self._warnings(bool(data["synthetic"])), *data["notes"]],
            "image_warnings": self.tally.warnings,
            "tiers_opened": facts["tiers_opened"],
            "provenance": {
                **{key: value for key, value in data.items() if key != "notes"},
                "trained_on": facts["data"],
                "weights": {"file": str(self.saved.path), "epoch": facts["epoch"], "started_from": facts["starts"]},
                "architecture": facts["architecture"],
                "binary_from": self.saved.binary_sees,
                "mask_source": self.saved.masks_from,
                "masks_written": dict(sorted(self.tally.masks.items())),
                "test_views": self.options.test_views,
                "seed": self.options.seed,
                "options": self.options.values(),
                "command": shlex.join(["python", *sys.argv]),
                "versions": {
                    "python": platform.python_version(),
                    **{name: metadata.version(name) for name in PACKAGES},
                },
                "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU",
                "seconds": round(self.seconds, 3),
            },
        }
        return dict(plain(found))

    def _counts(self, smears: SmearSource) -> dict[str, Any]:
        """How many images were called what; by tier too."""
        rows = self.tally.rows
        by_head = {
            head: sum(row["prob_anemic" if head == HEAD_KEYS[-1] else f"prob_anemic_{head}"] > 0.5 for row in rows)
            for head in self._heads()
        }
        counts: dict[str, Any] = {"judged": len(rows), "skipped": len(smears.skipped)}
        counts |= {"anemic": by_head[HEAD_KEYS[-1]], "healthy": len(rows) - by_head[HEAD_KEYS[-1]]}
        counts["anemic_by_tier"] = {head: by_head.get(head) for head in HEAD_KEYS}
        if self.stage is not None:
            # The grade is meant for anemic blood; of images called Healthy it is in the table, but not counted.
            graded = Counter(row.get("severity_pred") for row in rows if row["label_pred"] == ANEMIC)
            counts["severity_of_anemic"] = {grade: graded[grade] for grade in ("Mild", "Chronic")}
            cells = self.stage.gallery.rows()
            counts |= {"cells": sum(row.cells for row in cells), "overlapped": sum(row.overlapped for row in cells)}
        return counts

    def _shown_options(self) -> dict[str, Any]:
        """The options, each with its default, so that the page can mark those that differ."""
        defaults = self.options.defaults()
        return {name: {"value": value, "default": defaults[name]} for name, value in self.options.values().items()}


def _settled(job: tuple[int, list[float], Future[_Written]]) -> tuple[int, list[float], _Written]:
    position, chance, written = job
    return position, chance, written.result()


def skipped_error(skipped: Sequence[Any], judged: int) -> UserError | None:
    """The error that a prediction ends with where images were skipped, or None."""
    if not skipped:
        return None
    first = "".join(f"\n    - {item.name!r}: {item.reason}" for item in skipped[:5])
    more = f"\n    - and {len(skipped) - 5} more, see run.json" if len(skipped) > 5 else ""
    return UserError(
        f"{len(skipped)} {'file was' if len(skipped) == 1 else 'files were'} skipped; {judged} judged",
        found=first + more,
        remedy="mend or remove them; everything else is written",
    )
