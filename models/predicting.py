"""Judging smears without labels: verdicts, masks and cells of every image, in constant memory, and the page of them."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from models.assessment import PicturePaths, at_own_size
from models.cell_files import CELL_COLUMNS, LEFT_OUT_COLUMNS, instances_path, save_instances
from models.cell_stage import OTSU, CellStage, written_mask
from models.judges import Judgement, Panel
from models.module2.analysis import measured_by
from models.network import HEAD_KEYS
from models.predict_folder import check_free, clear, remove_files
from models.predict_notes import (
    MORE_COLUMNS,
    NOVELTY_COLUMNS,
    kept_of,
    note_of,
    novelty_columns,
    parts_of,
    recall,
    rows_of,
)
from models.progress import UNFINISHED, Progress
from util.cores import usable_cores
from util.errors import UserError
from util.predict_page import JudgedImage, PredictPage, write_predict_page
from util.provenance import versions
from util.report import overlay_image, save_thumbnail
from util.results import output_stems, save_mask, write_json, write_predictions
from util.runlog import SEVERITY_HEAD, plain

RUN_SCHEMA = 1
OVERLAY_DETAIL = 4  # times as many pixels across an outline is drawn on as its thumbnail will have
THUMBNAIL = 360  # pixels of the longer side of the page's pictures
ANEMIC = 1
# Options on which it depends what is said of an image: a prediction that goes on must have been begun with the same.
DECISIVE = (
    "which_epoch", "loadSize", "fineSize", "backend", "test_views", "cells", "masks_from", "cell_diameter", "um_per_px",
    "cell_pages",
)  # fmt: skip


class SmearSource(Protocol):
    """What is judged; ``data.unlabelled.SmearStream`` is such."""

    @property
    def names(self) -> list[str]:
        """The images, all different."""

    @property
    def skipped(self) -> Sequence[Any]:
        """What could not be listed or read so far, each with ``name`` and ``reason``."""

    def batches(self, device: torch.device, positions: Sequence[int]) -> Iterator[Mapping[int, Any]]:
        """Whole images in order by load size, their index in ``names``; those that cannot be read are left out."""

    def pixels(self, position: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        """An image as its file holds it, and Otsu's mask where that stands in for the network's.

        Raises UserError where it cannot be read, or is not what the network was given.
        """

    def stamp(self, position: int) -> list[int]:
        """What changes when an image's file is replaced."""

    def skip(self, position: int, error: UserError) -> None:
        """Note that an image could not be judged after all."""


# --- the run --------------------------------------------------------------------------------------------------------


@dataclass
class _Tally:
    """What all images say together."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    images: list[JudgedImage] = field(default_factory=list)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    masks: Counter[str] = field(default_factory=Counter)


class PredictRun:
    """Judges images without labels and writes all that is said of them.

    Every image is noted when its files are written; the tables and the page are made of these notes at the end. So a
    prediction that was killed and goes on ends with what it would have ended with.

    Args:
        panel: the network, or several.
        device: where to run.
        results: the folder of the outputs; what a finished prediction left there is removed.
        options: the predict command's options.
        cells: finds the cells of the images, or None.

    Raises:
        UserError: the folder cannot be written, holds an unfinished prediction that was not asked for, or is to be gone
            on with and is whole already.
    """

    def __init__(
        self, panel: Panel, device: torch.device, results: Path, options: Any, *, cells: CellStage | None = None
    ) -> None:
        self.panel, self.device, self.results, self.options, self.stage = panel, device, results, options, cells
        self.saved = panel.first.saved
        self.heads = panel.heads
        self.workers = options.num_workers or usable_cores()
        self.tally, self.seconds, self.kept = _Tally(), 0.0, 0
        check_free(results, resume=options.continue_predict, overwrite=options.overwrite)
        self.resumes = options.continue_predict and (results / UNFINISHED).is_file()
        clear(results, resume=self.resumes)

    def judge(self, smears: SmearSource, data: str) -> None:
        """Judge every image that can be read and was not judged before; all tables and pictures are there afterwards.

        Args:
            smears: what to judge.
            data: where it lies, in full: a prediction that goes on must be of the same place.

        Raises:
            UserError: an output cannot be written, two images' names cannot be told apart in the results folder, or
                what is to be gone on with is another prediction.
        """
        began, names = time.perf_counter(), smears.names
        stems = output_stems(names)
        progress = Progress(self.results, self.identity(data))
        finished = False
        try:
            self._take_up(progress, smears, stems)
            self._judge_rest(smears, stems, progress)
            self._conclude(names, progress)
            self.seconds = time.perf_counter() - began
            finished = True
        finally:
            if not finished and progress.images:
                print(
                    f"{progress.images} of {len(names)} images are done: the same call with --continue_predict goes on",
                    file=sys.stderr,
                )
            progress.close()

    def identity(self, data: str) -> dict[str, Any]:
        """What must be the same for two calls to be one prediction."""
        options = {name: getattr(self.options, name) for name in DECISIVE}
        runs = {f"weights of {judge.name}": judge.digest for judge in self.panel.judges}
        known = {f"novelty of {judge.name}": judge.reference is not None for judge in self.panel.judges}
        learned = Path(self.options.checkpoints_dir) / self.options.name / SEVERITY_HEAD
        return {
            "data": data,
            **options,
            **runs,
            **known,
            "cells measured by": measured_by(self.options) if self.stage else None,
            "learned severity": hashlib.sha256(learned.read_bytes()).hexdigest() if learned.is_file() else None,
        }

    def _take_up(self, progress: Progress, smears: SmearSource, stems: Mapping[str, str]) -> None:
        """Begin, or go on where an earlier call stopped; files of images that are gone or changed are removed."""
        if not self.resumes:
            progress.begin()
            return
        wanted = {name: (stems[name], smears.stamp(position)) for position, name in enumerate(smears.names)}
        for stem in progress.resume(wanted):
            remove_files(self.results, stem)
        self.kept = progress.images
        print(f"going on: {self.kept} of {len(smears.names)} images were judged before", flush=True)

    def _judge_rest(self, smears: SmearSource, stems: Mapping[str, str], progress: Progress) -> None:
        """Judge what is not done yet."""
        names = smears.names
        todo = [position for position, name in enumerate(names) if name not in progress]
        with tqdm(total=len(names), initial=len(names) - len(todo), desc="judging", unit="img") as bar:
            for position, record in self._judged(smears, stems, todo):
                bar.update(1)
                if isinstance(record, UserError):
                    smears.skip(position, record)
                else:
                    progress.add(record)
            bar.update(len(names) - bar.n)

    def _judged(
        self, smears: SmearSource, stems: Mapping[str, str], todo: Sequence[int]
    ) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
        """Position and note of each image in order, or why it was lost.

        The files of a few images are written in threads while the network judges the next ones.
        """
        waiting: deque[tuple[int, Future[dict[str, Any] | UserError]]] = deque()
        pool = ThreadPoolExecutor(self.workers)
        try:
            for batches in smears.batches(self.device, todo):
                for said in self.panel(batches):
                    waiting.append((said.index, pool.submit(self._write_one, smears, stems, said)))
                    while len(waiting) > 2 * self.workers:
                        yield _settled(waiting.popleft())
            while waiting:
                yield _settled(waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _write_one(self, smears: SmearSource, stems: Mapping[str, str], said: Judgement) -> dict[str, Any] | UserError:
        """Write the mask and the pictures of one image, find its cells, and note all that is said of it."""
        name = smears.names[said.index]
        stamp = smears.stamp(said.index)
        try:
            rgb, stand_in = smears.pixels(said.index)
        except UserError as error:  # gone or changed since the network saw it
            return error
        height, width = rgb.shape[:2]
        drawn = at_own_size(said.mask, width, height) if stand_in is None else stand_in
        found = self.stage.find(said.index, name, stems[name], rgb) if self.stage else None
        mask, source = written_mask(drawn, stand_in is not None, found, self.options.masks_from, len(said.mask))
        paths = PicturePaths(stems[name])
        save_mask(self.results / paths.mask(), mask)
        save_thumbnail(self.results / paths.thumbnail("smear"), rgb, THUMBNAIL)
        save_thumbnail(self.results / paths.thumbnail("overlay"), overlay_image(reduced(rgb), reduced(mask)), THUMBNAIL)
        if found and found.cells:
            save_instances(instances_path(self.results, stems[name]), found.cells.instances)
        return note_of(name, stems[name], stamp, said, found, source)

    def _conclude(self, names: Sequence[str], progress: Progress) -> None:
        """Write the tables of all images that are done, and gather what the page shows of them."""
        done = [position for position, name in enumerate(names) if name in progress]
        with contextlib.ExitStack() as stack:
            files = stack.enter_context(self.stage.files()) if self.stage else None
            for position in done:
                record = progress.record(names[position])
                if files and self.stage and record.get("cells") is not None:
                    rows = rows_of(record, "cells", CELL_COLUMNS), rows_of(record, "left_out", LEFT_OUT_COLUMNS)
                    files.add_rows(*rows)
                    recall(self.stage, position, record, *rows)
                self._count(position, record)
        more = MORE_COLUMNS if len(self.panel.judges) > 1 else NOVELTY_COLUMNS
        write_predictions(self.results / "predictions.csv", self.tally.rows, more=more, labelled=False)

    def _count(self, position: int, record: Mapping[str, Any]) -> None:
        """Add one image to what the tables and the page will show."""
        name, chances, novelty = record["image"], record["chances"], record["novelty"]
        row = {
            "image": name,
            "prob_anemic": chances[HEAD_KEYS[-1]],
            **{f"prob_anemic_{head}": chances[head] for head in self.heads if head != HEAD_KEYS[-1]},
            "label_pred": int(chances[HEAD_KEYS[-1]] > 0.5),
            **record["columns"],
            **({"prob_anemic_spread": record["spread"]} if len(self.panel.judges) > 1 else {}),
            **novelty_columns(novelty),
        }
        self.tally.rows.append(row)
        self.tally.masks[record["mask_of"]] += 1
        if record["warnings"]:
            self.tally.warnings[name] = list(record["warnings"])
        paths = PicturePaths(record["stem"])
        image = JudgedImage(
            name=name,
            label=row["label_pred"],
            prob=chances,
            smear=paths.thumbnail("smear"),
            overlay=paths.thumbnail("overlay"),
            mask=paths.mask(),
            warnings=record["warnings"],
            spread=record["spread"],
            novelty=None if novelty is None else parts_of(novelty),
            **(self.stage.gallery.image_fields(position) if self.stage and record["columns"] else {}),
        )
        self.tally.images.append(image)

    def _warnings(self, synthetic: bool) -> list[str]:
        """What the reader must know of the run as a whole."""
        warnings = []
        if all(judge.saved.facts["data"].get("synthetic") for judge in self.panel.judges) and not synthetic:
            warnings.append("The network was trained on synthetic smears only: its verdicts on others mean nothing.")
        unusual = sum((row["novelty"] or 0) > 1 for row in self.tally.rows)
        if unusual:
            total = len(self.tally.rows)
            warnings.append(
                f"{unusual} of {total} images {'is' if unusual == 1 else 'are'} unlike the images that the network"
                " learned from: verdicts on them mean less."
            )
        if self.tally.masks[OTSU]:
            warnings.append("The network never saw a true mask: the masks here are Otsu's thresholds, not its own.")
        if self.tally.warnings:
            count = len(self.tally.warnings)
            said = "image has a warning of its" if count == 1 else "images have warnings of their"
            warnings.append(f"{count} {said} own, see below.")
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
            title=" + ".join(judge.name for judge in self.panel.judges),
            run=content,
            images=self.tally.images,
            warnings=content["warnings"],
            cells=self.stage.gallery if self.stage else None,
            options=self.options.described(),
        )
        written = write_predict_page(self.results, page)
        (self.results / UNFINISHED).unlink(missing_ok=True)
        return written

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
                **self._ensemble(),
                "novelty": {judge.name: kept_of(judge.reference) for judge in self.panel.judges},
                "architecture": facts["architecture"],
                "binary_from": self.saved.binary_sees,
                "mask_source": self.saved.masks_from,
                "masks_written": dict(sorted(self.tally.masks.items())),
                "backend": self.options.backend,
                "test_views": self.options.test_views,
                "seed": self.options.seed,
                "options": self.options.values(),
                "command": shlex.join(["python", *sys.argv]),
                "versions": versions(),
                "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU",
                "seconds": round(self.seconds, 3),
                "judged_before": self.kept,
            },
        }
        return dict(plain(found))

    def _ensemble(self) -> dict[str, Any]:
        """The runs that were heard together, where there are several."""
        if len(self.panel.judges) == 1:
            return {}
        said = [
            {"run": judge.name, "file": str(judge.saved.path), "epoch": judge.saved.facts["epoch"],
             "load_size": judge.load_size, "trained_on": judge.saved.facts["data"]}
            for judge in self.panel.judges
        ]  # fmt: skip
        return {"ensemble": said}

    def _counts(self, smears: SmearSource) -> dict[str, Any]:
        """How many images were called what; by tier too."""
        rows = self.tally.rows
        by_head = {
            head: sum(row["prob_anemic" if head == HEAD_KEYS[-1] else f"prob_anemic_{head}"] > 0.5 for row in rows)
            for head in self.heads
        }
        counts: dict[str, Any] = {"judged": len(rows), "skipped": len(smears.skipped)}
        counts |= {"anemic": by_head[HEAD_KEYS[-1]], "healthy": len(rows) - by_head[HEAD_KEYS[-1]]}
        counts["anemic_by_tier"] = {head: by_head.get(head) for head in HEAD_KEYS}
        if any(judge.reference for judge in self.panel.judges):
            counts["unlike_training"] = sum((row["novelty"] or 0) > 1 for row in rows)
        if self.stage is not None:
            # The grade is meant for anemic blood; of images called Healthy it is in the table, but not counted.
            graded = Counter(row.get("severity_pred") for row in rows if row["label_pred"] == ANEMIC)
            counts["severity_of_anemic"] = {grade: graded[grade] for grade in ("Mild", "Chronic")}
            cells = self.stage.gallery.rows()
            counts |= {name: sum(getattr(row, name) or 0 for row in cells) for name in ("cells", "overlapped")}
            counts["not_looked_for"] = sum(row.cells is None for row in cells)
        return counts

    def summary(self, smears: SmearSource) -> str:
        """One line for the shell: how many images were judged, and as what."""
        counts = self._counts(smears)
        judged = counts["judged"]
        told = f"judged: {judged} {'image' if judged == 1 else 'images'}"
        told += f", {counts['healthy']} Healthy, {counts['anemic']} Anemic"
        unlike = counts.get("unlike_training")
        return told if unlike is None else f"{told}; {unlike} unlike the training images"


def reduced(plane: NDArray[Any]) -> NDArray[Any]:
    """A large image or mask (H, W, ...) with every few rows and columns only: enough for a thumbnail's outlines."""
    step = max(1, max(plane.shape[:2]) // (OVERLAY_DETAIL * THUMBNAIL))
    return np.ascontiguousarray(plane[::step, ::step])


def _settled(job: tuple[int, Future[dict[str, Any] | UserError]]) -> tuple[int, dict[str, Any] | UserError]:
    position, note = job
    return position, note.result()


def skipped_error(skipped: Sequence[Any], judged: int) -> UserError | None:
    """The error that a prediction ends with where images were skipped, or None."""
    if not skipped:
        return None
    first = "".join(f"\n    - {item.name!r}: {_in_one_line(item.reason)}" for item in skipped[:5])
    more = f"\n    - and {len(skipped) - 5} more, see run.json" if len(skipped) > 5 else ""
    return UserError(
        f"{len(skipped)} {'file was' if len(skipped) == 1 else 'files were'} skipped; {judged} judged",
        found=first + more,
        remedy="mend or remove them; everything else is written",
    )


def _in_one_line(text: str) -> str:
    """A text in which a line end, as a file name may hold, cannot be taken for a line of the programme's own."""
    return text.replace("\n", "\\n")
