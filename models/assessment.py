"""From a trained network and labelled smears to predictions, masks, metrics and the page."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from models.cell_files import CellFiles
from models.cell_stage import CellsOfImage, CellStage, written_mask
from models.inference import Prediction
from models.network import HEAD_KEYS
from util.cores import busy_threads
from util.files import wait_for_disk
from util.memory import give_back_memory
from util.metrics import SegmentationScore, classification_metrics, common_pixels, dice_of
from util.report import THUMBNAIL_SIZE, ImageRow, overlay_image, save_thumbnail
from util.report_scores import Judged
from util.results import save_mask

# Images handed to the writers and not yet written, which bounds memory; with cells, whose maps are large, fewer.
WAITING_IMAGES, WAITING_CELLS = 64, 8
ENDINGS = {"smear": "jpg", "true": "png", "predicted": "png"}  # of a test's pictures; all others are .webp
SMEAR_QUALITY = 50  # a fifth of WebP's time for a picture that is as good, a little larger
BAND = 256  # rows of a mask that are brought from chances to yes and no at a time
TRIM_EVERY = 250  # images written, after which freed memory goes back to the system


class Smear(Protocol):
    """What is known of an image to be judged; the readers' records are such."""

    @property
    def name(self) -> str:
        """Its name in every output."""

    @property
    def label(self) -> int | None:
        """0 Healthy, 1 Anemic, None unknown."""

    @property
    def severity(self) -> str | None:
        """Mild, Chronic, or None."""


@dataclass(frozen=True)
class Pixels:
    """One image as the files hold it.

    Attributes:
        rgb: (H, W, 3) uint8.
        true_mask: (H, W) bool, or None where there is none.
        stand_in: (H, W) bool, Otsu's mask, for a network that draws none; else None.
    """

    rgb: np.ndarray
    true_mask: np.ndarray | None
    stand_in: np.ndarray | None


@dataclass
class SideResult:
    """What the network says of one side of the split.

    Attributes:
        smears: the images, in order.
        groups: the group of each.
        probability: (N, 4), Tier-I, II, III, Global: the chance of Anemic.
        open_tiers: how many tiers were trained; the others have nothing to say.
    """

    smears: Sequence[Smear]
    groups: Sequence[str]
    probability: np.ndarray
    open_tiers: int

    @property
    def heads(self) -> dict[str, int]:
        """The heads that were trained, and their columns."""
        return {head: k for k, head in enumerate(HEAD_KEYS) if k < self.open_tiers or head == HEAD_KEYS[-1]}

    @property
    def known(self) -> list[int]:
        """The images whose class is known."""
        return [index for index, smear in enumerate(self.smears) if smear.label is not None]

    def judged(self) -> Judged | None:
        """The images whose class is known and what each trained head says of them; None where there is none."""
        known = self.known
        if not known:
            return None
        return Judged(
            np.array([self.smears[i].label for i in known], dtype=np.int64),
            {head: self.probability[known, k] for head, k in self.heads.items()},
            [self.groups[i] for i in known],
            [getattr(self.smears[i], "patient", "") for i in known],
        )

    def metrics(self, *, resamples: int, seed: int) -> dict[str, Any]:
        """Metrics by head over the images whose class is known, null for a tier that was not trained; else empty."""
        judged = self.judged()
        if judged is None:
            return {}
        trained = {
            head: classification_metrics(judged.label, chance, judged.group, resamples=resamples, seed=seed)
            for head, chance in judged.probability.items()
        }
        return {head: trained.get(head) for head in HEAD_KEYS}

    def prediction_rows(
        self, split: str, cells: Mapping[int, Mapping[str, Any]] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Rows of predictions.csv.

        Args:
            split: the side's name.
            cells: what Module-II says of each image, by its place; see ``models.cell_stage.CellsOfImage.columns``.
        """
        rows = zip(self.smears, self.groups, self.probability.tolist(), strict=True)
        for index, (smear, group, chance) in enumerate(rows):
            yield {
                "image": smear.name,
                "prob_anemic": chance[3],
                **{f"prob_anemic_{head}": chance[k] for head, k in self.heads.items() if head != HEAD_KEYS[-1]},
                "label_pred": int(chance[3] > 0.5),
                "label_true": smear.label,
                "severity_true": smear.severity,
                "group": group,
                "split": split,
                **(cells or {}).get(index, {}),
            }


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over Healthy and Anemic of logits (N, K): the chance of Anemic, float64."""
    return 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))


def at_own_size(probability: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize a mask probability (S, S) in [0, 1] to an image's own size and threshold it: (height, width) bool."""
    plane = Image.fromarray(probability.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    mask = np.empty((height, width), bool)
    for top in range(0, height, BAND):  # all numbers of a large image at once would be two copies too many
        mask[top : top + BAND] = np.asarray(plane.crop((0, top, width, min(top + BAND, height)))) > 0.5
    return mask


@dataclass(frozen=True)
class PicturePaths:
    """Where the files of one image lie, relative to the results folder."""

    stem: str

    def mask(self) -> str:
        """The predicted mask at the input's own size."""
        return f"masks/{self.stem}.png"

    def thumbnail(self, kind: str) -> str:
        """A small picture for the page of a prediction."""
        return f"images/{self.stem}_{kind}.jpg"

    def picture(self, kind: str) -> str:
        """A small picture for the page of a test: smear, overlay, predicted, true, or a tier's map."""
        return f"images/{self.stem}_{kind}.{ENDINGS.get(kind, 'webp')}"


@contextmanager
def _threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that, however the block ends, finish what they are at and begin nothing more."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class PictureWriter:
    """Writes masks and the page's pictures of a side, in threads, and scores the masks.

    Args:
        folder: the results folder.
        smears: the images of the side, in the order of the predictions' indices.
        groups: the group of each.
        stems: the name of each image's files, without the ending (see ``util.results.output_stems``).
        read: gives an image's pixels.
        cells: finds the cells of each image, or None.
        mask_rule: whose masks are written, see ``models.cell_stage.written_mask``.
        workers: threads; by default one for each core that this process may use. The files do not depend on it.

    Attributes:
        mask_of: whose mask was written of each image, by its place.
        columns: what Module-II says of each image, by its place.
        warnings: the same of what the reader must know.
    """

    def __init__(
        self,
        folder: Path,
        smears: Sequence[Smear],
        groups: Sequence[str],
        stems: dict[str, str],
        read: Callable[[int], Pixels],
        cells: CellStage | None = None,
        mask_rule: str = "auto",
        workers: int | None = None,
    ) -> None:
        self.folder, self.smears, self.groups, self.stems, self.read = folder, smears, groups, stems, read
        self.cells, self.mask_rule, self.workers = cells, mask_rule, workers or busy_threads()
        self.mask_of: dict[int, str] = {}
        self.columns: dict[int, dict[str, Any]] = {}
        self.warnings: dict[int, Sequence[str]] = {}
        self.dice: dict[int, float] = {}
        self.shown_mask: dict[int, str] = {}
        self._pixels: dict[int, tuple[int, int]] = {}

    def write(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Pass predictions on, writing the pictures of each image beside it.

        After the last one all masks are on the disk. Whoever leaves early, and an error or a stop, waits for the images
        that are being written and drops those that are not begun.

        Raises:
            UserError: a file cannot be read or written.
        """
        waiting: deque[tuple[int, Future[CellsOfImage | None]]] = deque()
        handed = 0
        with ExitStack() as stack:
            pool = stack.enter_context(_threads(self.workers))
            files = stack.enter_context(self.cells.files()) if self.cells else None
            ahead = WAITING_IMAGES if files is None else WAITING_CELLS
            for prediction in predictions:
                masks = prediction.mask_probability[:, 0].cpu().numpy()
                for index, mask in zip(prediction.batch.index.tolist(), masks, strict=True):
                    waiting.append((index, pool.submit(self._write_one, index, mask)))
                    handed += 1
                    if handed % TRIM_EVERY == 0:
                        give_back_memory()
                    while len(waiting) > ahead:
                        self._settle(*waiting.popleft(), files)
                yield prediction
            while waiting:
                self._settle(*waiting.popleft(), files)
        wait_for_disk(self.folder / PicturePaths(self.stems[self.smears[i].name]).mask() for i in self.mask_of)

    def _settle(self, index: int, job: Future[CellsOfImage | None], files: CellFiles | None) -> None:
        """Wait for an image and add its cells to the tables, which keep the images' order."""
        found = job.result()
        if found is None:
            return
        self.columns[index], self.warnings[index] = found.columns, found.warnings
        if files and found.cells:
            name = self.smears[index].name
            files.add(name, self.stems[name], found.cells)

    def _write_one(self, index: int, probability: np.ndarray) -> CellsOfImage | None:
        pixels, smear = self.read(index), self.smears[index]
        paths = PicturePaths(self.stems[smear.name])
        height, width = pixels.rgb.shape[:2]
        drawn = pixels.stand_in if pixels.stand_in is not None else at_own_size(probability, width, height)
        found = None
        if self.cells is not None:
            found = self.cells.find(index, smear.name, self.stems[smear.name], pixels.rgb, smear.severity)
        # Each thread writes its own keys; scores are summed in image order afterwards, so they never vary.
        predicted, self.mask_of[index] = written_mask(
            drawn, pixels.stand_in is not None, found, self.mask_rule, len(probability)
        )
        save_mask(self.folder / paths.mask(), predicted, wait=False)
        self.shown_mask[index] = paths.mask() if max(height, width) <= THUMBNAIL_SIZE else paths.picture("predicted")
        self._save_thumbnails(pixels, predicted, paths)
        if pixels.true_mask is not None:
            self._pixels[index] = common_pixels(predicted, pixels.true_mask)
            self.dice[index] = dice_of(*self._pixels[index])
        return found

    def _save_thumbnails(self, pixels: Pixels, predicted: np.ndarray, paths: PicturePaths) -> None:
        pictures = {"smear": pixels.rgb, "overlay": overlay_image(pixels.rgb, predicted, pixels.true_mask)}
        if pixels.true_mask is not None:
            pictures["true"] = pixels.true_mask
        if max(predicted.shape) > THUMBNAIL_SIZE:  # else the page shows the mask's own file
            pictures["predicted"] = predicted
        for kind, picture in pictures.items():
            quality = SMEAR_QUALITY if kind == "smear" else None
            save_thumbnail(self.folder / paths.picture(kind), picture, quality=quality)

    def segmentation(self, *, resamples: int, seed: int) -> dict[str, Any] | None:
        """Dice and IoU over the images with a true mask, or None where there is none."""
        if not self._pixels:
            return None
        score = SegmentationScore()
        for index in sorted(self._pixels):
            score.add(*self._pixels[index], self.groups[index])
        return score.result(resamples=resamples, seed=seed)

    def image_rows(self, result: SideResult, split: str) -> list[ImageRow]:
        """The page's rows."""
        rows = []
        for index, (smear, chance) in enumerate(zip(self.smears, result.probability.tolist(), strict=True)):
            paths = PicturePaths(self.stems[smear.name])
            rows.append(
                ImageRow(
                    name=smear.name,
                    split=split,
                    group=self.groups[index],
                    label_true=smear.label,
                    label_pred=int(chance[3] > 0.5),
                    prob={head: chance[k] for head, k in result.heads.items()},
                    dice=self.dice.get(index),
                    smear=paths.picture("smear"),
                    true_mask=paths.picture("true") if index in self.dice else None,
                    predicted_mask=self.shown_mask[index],
                    overlay=paths.picture("overlay"),
                    **(self.cells.gallery.image_fields(index) if self.cells else {}),
                )
            )
        return rows
