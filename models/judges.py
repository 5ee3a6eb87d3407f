"""Judging batches of new images by one network or several: the one place where a prediction calls a network.

Another way to run a network (another runtime, say) is another :class:`Judge`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from models.assessment import probabilities
from models.inference import SmearBatch
from models.network import HEAD_KEYS
from models.novelty import Novelty, NoveltyReference, Watched, digest_of, pictures_of, read_reference
from models.saved import SavedNetwork, load_network
from util import sides
from util.errors import UserError
from util.runlog import RunFolder


@dataclass(frozen=True)
class Said:
    """What one judge says of a batch.

    Attributes:
        logits: (B, 4), Tier-I, II, III, Global; positive means Anemic.
        masks: (B, S, S) float32, chance of a red cell.
        features: (B, F) what it saw, or None where that is not to be had.
    """

    logits: NDArray[np.float32]
    masks: NDArray[np.float32]
    features: NDArray[np.float32] | None


class Judge(Protocol):
    """One trained network, however it is run.

    Attributes:
        saved: what its checkpoint says.
        name: of its run.
        load_size: side at which it is shown images, pixels.
        reference: what its training images are like, or None where that is not known.
        digest: SHA-256 of its weights.
    """

    saved: SavedNetwork
    name: str
    load_size: int
    reference: NoveltyReference | None
    digest: str

    def __call__(self, batch: SmearBatch) -> Said:
        """Judge a batch of whole images at ``load_size``."""


class NetworkJudge:
    """A network run by PyTorch.

    Args:
        saved: the network.
        name: of its run.
        load_size: side at which it is shown images, pixels.
        device: where to run.
        views: turned and mirrored views of each image that are averaged.

    Raises:
        UserError: what is kept of its training images is damaged.
    """

    def __init__(self, saved: SavedNetwork, name: str, load_size: int, device: torch.device, *, views: int = 1) -> None:
        self.saved, self.name, self.load_size, self.device, self.views = saved, name, load_size, device, views
        self.network = Watched(saved.network.to(device).to(memory_format=torch.channels_last))
        self.reference = read_reference(saved.path, saved.network)
        self.digest = digest_of(saved.path)

    def __call__(self, batch: SmearBatch) -> Said:
        """Judge a batch of whole images at ``load_size``."""
        ((said, features),) = self.network.predictions([batch], self.saved, self.device, views=self.views)
        return Said(said.logits.cpu().numpy(), said.mask_probability[:, 0].cpu().numpy(), features)


@dataclass(frozen=True)
class Judgement:
    """What a panel says of one image.

    Attributes:
        index: its place among the images.
        chances: of Anemic by head, of those that were trained.
        spread: the highest less the lowest of the judges' chances by Global; None of a single judge.
        mask: (S, S) float32, chance of a red cell.
        novelty: how unlike the judges' training images it is, that of the judge to whom it is most so; None where no
            judge knows.
    """

    index: int
    chances: dict[str, float]
    spread: float | None
    mask: NDArray[np.float32]
    novelty: Novelty | None


class Panel:
    """Judges that are heard together: chances are averaged by head, and masks.

    A tier is averaged over the judges that trained it. Masks are averaged over the judges that draw them, if any does.

    Args:
        judges: at least one; the first names the run.
    """

    def __init__(self, judges: Sequence[Judge]) -> None:
        self.judges = list(judges)

    @property
    def first(self) -> Judge:
        """The judge whose run is named."""
        return self.judges[0]

    @property
    def load_sizes(self) -> list[int]:
        """The sides at which the judges see images, that of the first first."""
        return [judge.load_size for judge in self.judges]

    @property
    def heads(self) -> list[str]:
        """The heads that at least one judge has trained."""
        trained = max(judge.saved.network.open_tiers for judge in self.judges)
        return [*HEAD_KEYS[:trained], HEAD_KEYS[-1]]

    @property
    def by_otsu(self) -> bool:
        """Whether Otsu's masks stand in, because no judge draws any."""
        return all(judge.saved.masks_from == "otsu" for judge in self.judges)

    @property
    def sees_otsu(self) -> bool:
        """Whether some judge looks at Otsu's masks: else nobody need make them."""
        return any(judge.saved.binary_sees == "otsu" for judge in self.judges)

    def __call__(self, batches: Mapping[int, SmearBatch]) -> list[Judgement]:
        """Judge a batch of images, given at every judge's load size.

        Args:
            batches: the same images by load size.
        """
        said = [judge(batches[judge.load_size]) for judge in self.judges]
        chances = np.stack([probabilities(one.logits) for one in said])
        masks = self._masks(said)
        novelties = self._novelties(batches, said)
        found = []
        for row, index in enumerate(batches[self.first.load_size].index.tolist()):
            by_head = {head: float(chances[self._trained(head), row, _column(head)].mean()) for head in self.heads}
            spread = float(np.ptp(chances[:, row, -1])) if len(said) > 1 else None
            found.append(Judgement(index, by_head, spread, masks[row], novelties[row]))
        return found

    def _trained(self, head: str) -> list[int]:
        """The judges that have trained a head."""
        column = _column(head)
        everyone = range(len(self.judges))
        return [j for j in everyone if head == HEAD_KEYS[-1] or column < self.judges[j].saved.network.open_tiers]

    def _masks(self, said: Sequence[Said]) -> NDArray[np.float32]:
        """(B, S, S) mean of the masks at the size of the first that is drawn."""
        drawn = [one.masks for one, judge in zip(said, self.judges, strict=True) if judge.saved.masks_from != "otsu"]
        masks = drawn or [said[0].masks]
        return np.asarray(np.mean([resized(mask, masks[0].shape[-1]) for mask in masks], axis=0, dtype=np.float32))

    def _novelties(self, batches: Mapping[int, SmearBatch], said: Sequence[Said]) -> list[Novelty | None]:
        """Of each image the novelty to the judge to whom it is most so."""
        found: list[list[Novelty]] = [[] for _ in said[0].logits]
        for judge, one in zip(self.judges, said, strict=True):
            if judge.reference is None:
                continue
            features = [None] * len(found) if one.features is None else list(one.features)
            for row, image in enumerate(pictures_of(batches[judge.load_size])):
                found[row].append(judge.reference.of(image, features[row]))
        return [max(of, key=lambda novelty: novelty.score, default=None) for of in found]


def _column(head: str) -> int:
    return HEAD_KEYS.index(head)


def resized(masks: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Masks (B, S, S) at another size."""
    if masks.shape[-1] == side:
        return masks
    planes = torch.from_numpy(np.ascontiguousarray(masks))[:, None]
    return torch.nn.functional.interpolate(planes, size=(side, side), mode="bilinear", antialias=True)[:, 0].numpy()


def load_panel(folders: Sequence[RunFolder], options: Any, device: torch.device) -> Panel:
    """Load the networks of several runs.

    Args:
        folders: of the runs, the first that of --name.
        options: the predict command's: ``loadSize`` and ``fineSize`` of the first run (the others see images at the
            sizes that they were trained with), ``which_epoch``, ``test_views``, ``backend``.
        device: where to run.

    Raises:
        UserError: a run is named twice, has no weights, or was trained on crops of another size than it is to see.
    """
    names = [folder.name for folder in folders]
    if len(set(names)) != len(names):
        raise UserError(
            "a run is named twice",
            expected="different runs: the same one again would only count double",
            found=", ".join(names),
            remedy="leave it out of --ensemble, which names the runs beside --name",
        )
    judge_of = _judge_of(getattr(options, "backend", "torch"))
    judges: list[Judge] = []
    for folder in folders:
        saved = load_network(folder.weights_or_error(options.which_epoch))
        load_size = trained_size(saved) if judges else options.loadSize
        if not judges:
            saved.check_sizes(load_size, options.fineSize)
        judges.append(judge_of(saved, folder.name, load_size, device, views=options.test_views))
    return Panel(judges)


def _judge_of(backend: str) -> Callable[..., Judge]:
    """The kind of judge that runs networks by a backend: "torch" or "onnx"."""
    if backend == "torch":
        return NetworkJudge
    from models.onnx_backend import OnnxJudge

    return OnnxJudge


def trained_size(saved: SavedNetwork) -> int:
    """The --loadSize that a network was trained with; its input size where the checkpoint says none that can be."""
    told = saved.facts["options"].get("loadSize")
    size = told.get("value") if isinstance(told, dict) else None
    least = saved.network.architecture.fine_size
    return size if isinstance(size, int) and size in sides.LOADED and size >= least else least
