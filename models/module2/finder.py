"""The cell finder: a small network that says of every pixel of a smear what it belongs to, at any size and scale.

It sees smears at one scale, ``CELL_DIAMETER`` pixels to a red cell; the caller brings the image there (see
``models.module2.scale``). Large images are run in overlapping tiles whose answers are blended, so that no cell is cut
at a seam and memory does not grow with what the network holds.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.decoder import FOLD, fold
from models.folding import fold_sequence
from util.checkpoint import load_checkpoint, load_weights, save_checkpoint
from util.errors import UserError

CELL_DIAMETER = 28.0
PLANES = ("red_cell", "distance", "gap", "other")
WIDTHS = (24, 48, 72, 96)
SHIPPED = Path(__file__).resolve().parent / "cell_finder.safetensors"
TILE, OVERLAP = 512, 64
_DEEPEST = FOLD * 2 ** (len(WIDTHS) - 1)  # pixels to one of the coarsest features
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_KIND = "CellFinder"


def _convolutions(in_channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [nn.Conv2d(channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels)]
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _resize_like(x: Tensor, other: Tensor) -> Tensor:
    return functional.interpolate(x, size=other.shape[-2:], mode="bilinear", align_corners=False)


class CellFinder(nn.Module):
    """A U-Net (Ronneberger et al., MICCAI 2015) on folded pixels, with four answers for every pixel.

    - ``red_cell``: it belongs to a red cell.
    - ``distance``: how deep in its own cell's visible part it lies, 0 at the edge and 1 at the deepest point, so that
      cells that touch or overlap have a valley between them (after Naylor et al., IEEE TMI 2019, there in pixels).
    - ``gap``: it lies where two cells meet.
    - ``other``: it belongs to a platelet or a white cell.

    Args:
        widths: channels at a half, a quarter, an eighth and a sixteenth of the image's size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.widths = tuple(widths)
        steps = list(itertools.pairwise(self.widths))
        self.down = nn.ModuleList(
            [_convolutions(3 * FOLD**2, self.widths[0]), *(_convolutions(a, b) for a, b in steps)]
        )
        self.up = nn.ModuleList(_convolutions(a + b, a) for a, b in steps)
        self.logit = nn.Conv2d(self.widths[0], len(PLANES) * FOLD**2, 3, padding=1)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, rgb: Tensor) -> Tensor:
        """Give logits (B, 4, H, W), in the order of ``PLANES``, of smears (B, 3, H, W) in [0, 1]."""
        x = fold((rgb - self.mean) / self.std)
        passed: list[Tensor] = []
        for depth, convolutions in enumerate(self.down):
            x = convolutions(functional.max_pool2d(x, 2) if depth else x)
            passed.append(x)
        for depth in reversed(range(len(self.up))):
            x = self.up[depth](torch.cat([passed[depth], _resize_like(x, passed[depth])], dim=1))
        logits = functional.pixel_shuffle(self.logit(x), FOLD)
        return logits[..., : rgb.shape[-2], : rgb.shape[-1]]


@dataclass(frozen=True)
class CellMaps:
    """What the finder says of one image, (H, W) float32 in [0, 1] each; see :class:`CellFinder`."""

    red_cell: npt.NDArray[np.float32]
    distance: npt.NDArray[np.float32]
    gap: npt.NDArray[np.float32]
    other: npt.NDArray[np.float32]

    @property
    def stained(self) -> npt.NDArray[np.float32]:
        """Probability that a pixel belongs to any cell or platelet."""
        return 1 - (1 - self.red_cell) * (1 - self.other)


def save_finder(path: Path, finder: CellFinder, facts: dict[str, object]) -> None:
    """Write a finder's weights, and what is known of their making, as one safetensors file.

    Raises:
        UserError: the file cannot be written.
    """
    content = {"kind": _KIND, "widths": list(finder.widths), "facts": facts, "network": finder.state_dict()}
    save_checkpoint(path, content)


def load_finder(path: Path = SHIPPED) -> CellFinder:
    """Load a finder, by default the one that comes with the toolkit.

    Raises:
        UserError: the file is missing, damaged or holds something else.
    """
    content = load_checkpoint(path)
    widths = content.get("widths") if isinstance(content, dict) else None
    right = isinstance(widths, list) and len(widths) == len(WIDTHS) and all(type(w) is int and w > 0 for w in widths)
    if not right or content.get("kind") != _KIND or not isinstance(content.get("network"), dict):
        raise UserError(
            f"{path} holds no cell finder",
            expected="weights written by scripts/train_cell_finder.py",
            found=f"a checkpoint of kind {content.get('kind') if isinstance(content, dict) else None!r}"[:120],
            remedy="name other weights, or restore models/module2/cell_finder.safetensors from the repository",
        )
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are thrown away; a run's seed must not notice
        finder = CellFinder(cast(list[int], widths))
    load_weights(finder, content["network"], path)
    return finder.eval()


def quickened(finder: CellFinder, device: torch.device) -> CellFinder:
    """A copy of a finder on a device, for judging alone: the same answers but for rounding.

    Normalisations are folded into the convolutions; on a CPU features lie channels last, in a third less time.
    """
    quick = copy.deepcopy(finder).to(device).eval().requires_grad_(False)
    with torch.no_grad():
        for module in list(quick.modules()):
            if isinstance(module, nn.Sequential):
                fold_sequence(module)
    return quick.to(memory_format=torch.channels_last) if device.type == "cpu" else quick


@torch.no_grad()
def map_cells(finder: CellFinder, rgb: npt.NDArray[np.uint8], device: torch.device) -> CellMaps:
    """Ask the finder about a whole image that is at its scale.

    Args:
        finder: on ``device``, in evaluation mode.
        rgb: (H, W, 3) uint8, a red cell about ``CELL_DIAMETER`` pixels across.
        device: where to run.
    """
    height, width = rgb.shape[:2]
    padded = _padded(rgb)
    rows, columns = padded.shape[:2]
    total = np.zeros((len(PLANES), rows, columns), np.float32)
    weight = np.zeros((rows, columns), np.float32)
    for top, left in _places(rows, columns):
        window = slice(top, min(top + TILE, rows)), slice(left, min(left + TILE, columns))
        tile = torch.from_numpy(np.ascontiguousarray(padded[window])).to(device).permute(2, 0, 1)[None]
        answer = finder(tile.float().div(255)).float().sigmoid()[0].cpu().numpy()
        share = _ramp(answer.shape[1])[:, None] * _ramp(answer.shape[2])
        total[(slice(None), *window)] += answer * share
        weight[window] += share
    total /= weight
    return CellMaps(*total[:, :height, :width])


def _padded(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The image with its last rows and columns repeated until the network's coarsest features fit."""
    height, width = rgb.shape[:2]
    more = [max(-side % _DEEPEST, 2 * _DEEPEST - side) for side in (height, width)]
    return np.pad(rgb, ((0, more[0]), (0, more[1]), (0, 0)), mode="edge")


def _places(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Upper left corners of the tiles."""
    return itertools.product(_offsets(rows), _offsets(columns))


def _offsets(length: int) -> list[int]:
    """Where the fewest tiles begin that cover ``length`` and share at least ``OVERLAP`` pixels with the next.

    Whole multiples of the coarsest feature, so that a tile's features lie where the whole image's would.
    """
    if length <= TILE:
        return [0]
    count = -(-(length - OVERLAP) // (TILE - OVERLAP))
    return [round(i * (length - TILE) / (count - 1) / _DEEPEST) * _DEEPEST for i in range(count)]


def _ramp(length: int) -> npt.NDArray[np.float32]:
    """Weight along one side of a tile: rises over the overlap, so that the middle of a tile outweighs its edge."""
    from_edge = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1
    return np.minimum(from_edge / OVERLAP, 1).astype(np.float32)
