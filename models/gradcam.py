"""Where in a smear each tier's own voice finds its evidence: Grad-CAM (Selvaraju et al., ICCV 2017) by captum.

A tier's head reads the mean over space of two maps: its backbone's last features and the merge of all its scales.
Grad-CAM is taken at both and added up in the units of the voice, so that nothing the tier's own head reads is left out
(at one of them alone most of a tier's voice can be missing), and it needs no gradient through the network itself.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from models.inference import SmearBatch, crop_offsets
from models.network import TIER_KEYS, NetworkOutput, ThreeTierDCFNet, in_full_precision
from util.files import atomic_write
from util.report import ImageRow, save_thumbnail
from util.report_gradcam import GradCams, SeenImage, TierSeen, heat_overlay
from util.results import CLASS_WORDS, output_stems

FOLDER = "gradcam"
TABLE = "gradcam.csv"
COLUMNS = ("image", "tier", "class", "prob_anemic_own", "peak", "overlay", "map")
ABSENT = "Grad-CAM is left out: the package captum is not installed. Install it and test again: pip install captum"


class PooledVoice(nn.Module):
    """A tier's voice from the two maps that its head reads, as :class:`models.network.Tier` arrives at it.

    Args:
        head: the tier's.
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.merged = nn.Identity(), nn.Identity()  # where captum looks
        self.head = head

    def forward(self, backbone: Tensor, merged: Tensor) -> Tensor:
        """Logits (B, 2) that speak for Healthy and for Anemic, of maps (B, C, h, w) and (B, D, h', w')."""
        pooled = [self.backbone(backbone).mean(dim=(2, 3)), self.merged(merged).mean(dim=(2, 3))]
        anemic = in_full_precision(self.head, torch.cat(pooled, dim=1))
        return torch.stack([-anemic, anemic], dim=1)


def class_activation(head: nn.Linear, backbone: Tensor, merged: Tensor, label: int, size: tuple[int, int]) -> Tensor:
    """Grad-CAM of a tier's own voice, before its ReLU.

    Args:
        head: the tier's.
        backbone: (B, C, h, w), the backbone's last features.
        merged: (B, D, h', w'), the merge of all its scales.
        label: the class spoken for, 0 Healthy or 1 Anemic.
        size: height and width H, W of what comes out.

    Returns:
        (B, 1, H, W) float32, in logits: the mean over the maps as they were before they were enlarged is the voice
        without its bias (for Healthy, less the voice).

    Raises:
        ImportError: captum is not installed.
    """
    from captum.attr import LayerAttribution, LayerGradCam

    voice, maps = PooledVoice(head), (backbone.detach().float(), merged.detach().float())
    total = torch.zeros(len(backbone), 1, *size, device=backbone.device)
    for layer, features in zip((voice.backbone, voice.merged), maps, strict=True):
        found = LayerGradCam(voice, layer).attribute(maps, target=label).detach()
        places = features.shape[-2] * features.shape[-1]  # a gradient of a mean is as small as its places are many
        total += LayerAttribution.interpolate(found * places, size, "bilinear")
    return total


@dataclass(frozen=True)
class TierMap:
    """What one tier saw in one image.

    Attributes:
        heat: (S, S) float32 at loadSize, in logits, none below zero.
        voice: the tier's own logit; positive means Anemic.
        sides: of the two maps that its head reads, the backbone's and the merged one.
    """

    heat: NDArray[np.float32]
    voice: float
    sides: tuple[int, int]


def tier_maps(network: ThreeTierDCFNet, rgb: Tensor, mask: Tensor, see_given: Tensor, label: int) -> list[TierMap]:
    """Grad-CAM of every open tier's own voice for one image; one larger than the network's input by its crops.

    Args:
        network: put in evaluation mode here, else left as it is.
        rgb: (1, 3, S, S) in [0, 1].
        mask: (1, 1, S, S), the given one.
        see_given: (1,) bool, whether the binary stream sees it.
        label: the class spoken for, 0 Healthy or 1 Anemic.

    Raises:
        ImportError: captum is not installed.
    """
    network.eval()
    side, height, width = network.architecture.fine_size, *rgb.shape[-2:]
    heat = torch.zeros(network.open_tiers, height, width, device=rgb.device)
    seen, voices, sides = torch.zeros_like(heat[0]), [], [(0, 0)] * network.open_tiers
    for top, left in itertools.product(crop_offsets(height, side), crop_offsets(width, side)):
        rows, columns = slice(top, top + side), slice(left, left + side)
        output, pairs = _last_maps(network, rgb[..., rows, columns], mask[..., rows, columns], see_given)
        for index, (backbone, merged) in enumerate(pairs):
            head = network.get_submodule(f"tiers.{index}.head")
            heat[index, rows, columns] += _activation(head, backbone, merged, label, (side, side))
            sides[index] = backbone.shape[-1], merged.shape[-1]
        seen[rows, columns] += 1
        voices.append(output.voices[0])
    mean, own = (heat / seen).clamp(min=0).cpu().numpy(), torch.stack(voices).mean(dim=0).tolist()
    return [TierMap(mean[index], own[index], sides[index]) for index in range(network.open_tiers)]


def _activation(head: nn.Module, backbone: Tensor, merged: Tensor, label: int, size: tuple[int, int]) -> Tensor:
    """(H, W) of one image."""
    assert isinstance(head, nn.Linear)
    return class_activation(head, backbone, merged, label, size)[0, 0]


def _last_maps(
    network: ThreeTierDCFNet, rgb: Tensor, mask: Tensor, see_given: Tensor
) -> tuple[NetworkOutput, list[tuple[Tensor, Tensor]]]:
    """What the network says, and of each open tier the two maps that its head reads."""
    kept: list[tuple[Tensor, Tensor]] = []
    hooks = [
        tier.register_forward_hook(lambda _, given, told: kept.append((given[0][-1], told.fused)))
        for tier in network.tiers
    ]
    try:
        with torch.no_grad():  # in full precision, on GPUs too: it is a handful of images
            return network(rgb, mask, see_given), kept
    finally:
        for hook in hooks:
            hook.remove()


def look(
    network: ThreeTierDCFNet,
    batches: Iterable[SmearBatch],
    sees: Callable[[SmearBatch], Tensor],
    rows: Sequence[ImageRow],
    chosen: Sequence[int],
    pixels: Callable[[int], NDArray[np.uint8]],
    folder: Path,
) -> GradCams:
    """Write Grad-CAM's pictures of some images, and ``gradcam.csv`` that names them; for the class that Global called.

    Verdicts and all else that is known of the images stay as they are.

    Args:
        network: on the device of the batches.
        batches: the chosen images, whole, at loadSize.
        sees: (B,) bool for a batch: whose given mask the binary stream sees.
        rows: all images, by their index.
        chosen: indices of those to look at, in the order in which they are shown.
        pixels: (H, W, 3) uint8 of an image by its index.
        folder: the results folder.

    Returns:
        what the page shows; without captum, a sentence that says so.

    Raises:
        UserError: a file cannot be read or written.
    """
    try:
        import captum.attr  # noqa: F401 - whether it is there
    except ImportError:
        print(ABSENT, flush=True)
        return GradCams(why_not=ABSENT)
    stems, found, sides = output_stems([row.name for row in rows]), {}, list[tuple[int, int]]()
    for batch in batches:
        given = sees(batch)
        for place, index in enumerate(batch.index.tolist()):
            one, row = slice(place, place + 1), rows[index]
            maps = tier_maps(network, batch.rgb[one], batch.mask[one], given[one], row.label_pred)
            sides = [tier.sides for tier in maps]
            found[index] = SeenImage(row, _written(folder, stems[row.name], pixels(index), maps))
    seen = [found[index] for index in chosen]
    _write_table(folder / TABLE, seen)
    return GradCams(seen, sides=dict(zip(TIER_KEYS, sides, strict=False)))


def _written(folder: Path, stem: str, rgb: NDArray[np.uint8], maps: Sequence[TierMap]) -> dict[str, TierSeen]:
    """Write each tier's overlay and map of an image at its own size."""
    written: dict[str, TierSeen] = {}
    for key, tier in zip(TIER_KEYS, maps, strict=False):
        peak = float(tier.heat.max())
        plane = Image.fromarray(tier.heat / peak if peak > 0 else tier.heat)
        own = np.asarray(plane.resize((rgb.shape[1], rgb.shape[0]), Image.Resampling.BILINEAR)).clip(0, 1)
        overlay, raw = (f"{FOLDER}/{stem}_{key}{kind}.png" for kind in ("", "_map"))
        save_thumbnail(folder / overlay, heat_overlay(rgb, own))
        save_thumbnail(folder / raw, (own * 255).round().astype(np.uint8), max(rgb.shape))
        written[key] = TierSeen(overlay, raw, 1 / (1 + float(np.exp(-tier.voice))), peak)
    return written


def _write_table(path: Path, seen: Sequence[SeenImage]) -> None:
    """A row for each image and open tier; names stand as they are, every cell quoted as in predictions.csv."""
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    for image in seen:
        for key, tier in image.tiers.items():
            called = CLASS_WORDS[image.row.label_pred]
            numbers = f"{tier.own:.6f}", f"{tier.peak:.6g}"
            writer.writerow([image.row.name, key, called, *numbers, tier.overlay, tier.map])
    atomic_write(path, table.getvalue(), make_parents=True)
