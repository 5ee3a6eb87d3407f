"""How unlike its training images an image is: by what the network sees in it, by its focus, and by its stain.

A verdict on an image of another kind than those that a network has learned from means little, and the network does not
say so itself. Each of the three measures is a distance over its limit, so that 1 is where a warning begins. The limits
are quantiles of the training images' own distances, each measured from the images of other groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.folding import folded
from models.inference import Prediction, SmearBatch, predict, see_all, see_none
from models.network import TIER_CHANNELS, NetworkOutput, ThreeTierDCFNet
from models.saved import SavedNetwork, load_network
from util.arrays import damaged, read_arrays, write_arrays
from util.runlog import NOVELTY

Floats = NDArray[np.float64]

SCHEMA = 1
QUANTILE = 0.99  # of the training images' own distances: one in a hundred of them passes it
FEWEST_IMAGES, FEWEST_GROUPS = 30, 10  # with fewer there is nothing to tell the usual from the unusual by
_FOLDS = 20
_MOST_COMPONENTS, _IMAGES_TO_A_COMPONENT = 32, 8
_NEIGHBOURS = 5
_LUMINANCE = (0.2125, 0.7154, 0.0721)
_GRID = 3  # every third row and column tells the stain
_LEAST_SCALE = 1e-6
_SMALLEST, _LARGEST = 1e-10, 1e12  # that a file may hold: distances by others would overflow, and say nothing
_CONTENT = {"what": "the novelty reference", "without": "the warning of images unlike the training images"}


@dataclass(frozen=True)
class Novelty:
    """How unlike the training images one image is; 1 is the limit of each measure.

    Attributes:
        features: of what the network sees; None where its features are not to be had.
        focus: of how sharp the image is.
        stain: of its colours.
        blurred: whether it is the softer side of the training images' focus that it lies on.
    """

    features: float | None
    focus: float
    stain: float
    blurred: bool

    @property
    def score(self) -> float:
        """The largest of the three."""
        return max(self.features or 0.0, self.focus, self.stain)

    def warning(self) -> str | None:
        """The sentence for the reader, or None where nothing is unusual."""
        focus = "focus (blurred)" if self.blurred else "focus (noisy or oversharp)"
        found = {"features": self.features or 0.0, focus: self.focus, "stain": self.stain}
        far = [f"{name} {value:.1f}" for name, value in found.items() if value > 1]
        if not far:
            return None
        return f"unlike the images that the network learned from: {', '.join(far)} (limit 1); its verdict means less"


@dataclass(frozen=True)
class NoveltyReference:
    """What a network's training images are like: statistics only, no image can be had back from them.

    Attributes:
        feature_mean: (F,) of the features.
        feature_scale: (F,) their standard deviations.
        components: (K, F) directions in which the scaled features vary most.
        variances: (K,) along these.
        noise: variance along any other direction.
        stains: (N, 9) stain of each training image, scaled; see ``stain_of``.
        stain_mean: (9,).
        stain_scale: (9,).
        focus: (3,) lower limit, median and upper limit of the focus; see ``focus_of``.
        limits: (2,) of the distances of features and stain.
        images: how many images were learned from.
        weights: SHA-256 of the weights' file that it belongs to.
    """

    feature_mean: Floats
    feature_scale: Floats
    components: Floats
    variances: Floats
    noise: float
    stains: Floats
    stain_mean: Floats
    stain_scale: Floats
    focus: Floats
    limits: Floats
    images: int
    weights: str

    def of(self, image: NDArray[np.float32], features: NDArray[np.floating[Any]] | None) -> Novelty:
        """Say how unlike the training images one image is.

        Args:
            image: (S, S, 3) in [0, 1], as the network sees it.
            features: (F,) what the network makes of it, or None where that is not to be had.
        """
        seen = None
        if features is not None:
            seen = float(_feature_distances(self._factors(), features[None].astype(np.float64))[0] / self.limits[0])
        stain = (stain_of(image) - self.stain_mean) / self.stain_scale
        low, usual, high = self.focus.tolist()
        at = focus_of(image) - usual
        focus = at / (low - usual) if at < 0 else at / (high - usual)
        return Novelty(seen, float(focus), float(_neighbours(self.stains, stain[None])[0] / self.limits[1]), at < 0)

    def _factors(self) -> _Factors:
        return _Factors(self.feature_mean, self.feature_scale, self.components, self.variances, self.noise)


# --- what is measured -----------------------------------------------------------------------------------------------


class Watched:
    """A network for judging alone that also keeps what it sees: the pooled features of its open tiers.

    It stands in for the network in ``models.inference.predict``. Several views or crops of the same images are
    averaged.

    Args:
        network: in its place and layout; its weights are taken as they are now.
    """

    def __init__(self, network: ThreeTierDCFNet) -> None:
        self.architecture, self.verdicts = network.architecture, network.verdicts
        self._quick = folded(network)
        self._seen: list[torch.Tensor] = []

    def eval(self) -> None:
        """It is in evaluation always."""

    def __call__(self, rgb: torch.Tensor, given_mask: torch.Tensor, see_given: torch.Tensor) -> NetworkOutput:
        """As the network itself."""
        output: NetworkOutput = self._quick(rgb, given_mask, see_given)
        self._seen.append(torch.cat([tier.pooled.float() for tier in output.tiers], dim=1))
        return output

    def predictions(
        self, batches: Iterable[SmearBatch], saved: SavedNetwork, device: torch.device, *, views: int = 1
    ) -> Iterator[tuple[Prediction, NDArray[np.float32]]]:
        """Judge batches as ``predict`` does; with each, the features (B, F) of its images."""
        sees = see_none if saved.binary_sees == "predicted" else see_all
        network: Any = self
        for said in predict(network, batches, device, sees, views=views):
            features = torch.stack(self._seen).mean(dim=0).cpu().numpy()
            self._seen.clear()
            yield said, np.asarray(features, np.float32)


def pictures_of(batch: SmearBatch) -> NDArray[np.float32]:
    """The images of a batch, (B, S, S, 3) in [0, 1]."""
    return np.asarray(batch.rgb.permute(0, 2, 3, 1).float().cpu().numpy())


def focus_of(image: NDArray[np.floating[Any]]) -> float:
    """Logarithm of the Laplacian's variance over the image's own variance, of its luminance (S, S, 3) in [0, 1].

    After Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000; divided by the variance, so
    that a pale image is not taken for a blurred one.
    """
    from scipy.ndimage import laplace

    grey = image.astype(np.float64) @ (255 * np.array(_LUMINANCE))
    return float(np.log(laplace(grey).var() + 1e-3) - np.log(grey.var() + 1e-3))


def stain_of(image: NDArray[np.floating[Any]]) -> Floats:
    """Colours of cells and film of an image (S, S, 3) in [0, 1].

    Returns:
        (9,): optical density of red, green and blue in what Otsu's threshold (1979) of green parts as dark and as
        light, and the direction from the light to the dark.
    """
    from skimage.filters import threshold_otsu

    levels = np.rint(image[::_GRID, ::_GRID].reshape(-1, 3).astype(np.float64) * 255)
    density = -np.log10((levels + 1) / 256)
    green = levels[:, 1]
    dark = green <= threshold_otsu(green.astype(np.uint8)) if green.min() < green.max() else np.ones(len(green), bool)
    cells = density[dark].mean(axis=0)
    film = density[~dark].mean(axis=0) if not dark.all() else cells
    apart = cells - film
    return np.concatenate([cells, film, apart / (np.linalg.norm(apart) + 1e-3)])


# --- distances ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Factors:
    """A bell curve of few directions and even noise."""

    mean: Floats
    scale: Floats
    components: Floats
    variances: Floats
    noise: float


def _fitted(features: Floats) -> _Factors:
    """Probabilistic principal components (Tipping and Bishop, 1999) of (N, F) features, each scaled by its deviation.

    A full covariance of some hundred features cannot be told from some hundred images.
    """
    mean, scale = features.mean(axis=0), np.maximum(features.std(axis=0), _LEAST_SCALE)
    scaled = (features - mean) / scale
    count = max(1, min(_MOST_COMPONENTS, len(features) // _IMAGES_TO_A_COMPONENT, features.shape[1] - 1))
    _, sizes, directions = np.linalg.svd(scaled, full_matrices=False)
    variances = sizes**2 / len(features)
    rest = float(variances[count:].sum()) / max(1, features.shape[1] - count)
    return _Factors(mean, scale, directions[:count], np.maximum(variances[:count], _LEAST_SCALE), max(rest, 1e-9))


def _feature_distances(factors: _Factors, features: Floats) -> Floats:
    """Mahalanobis' distance of (N, F) features from the training images', over the root of F."""
    scaled = (features - factors.mean) / factors.scale
    along = scaled @ factors.components.T
    across = (scaled**2).sum(axis=1) - (along**2).sum(axis=1)
    squared = (along**2 / factors.variances).sum(axis=1) + np.maximum(across, 0) / factors.noise
    return np.asarray(np.sqrt(squared / features.shape[1]))


def _neighbours(rows: Floats, asked: Floats) -> Floats:
    """Mean distance of (M, D) points from their nearest ``_NEIGHBOURS`` of (N, D)."""
    distances = np.sqrt(((asked[:, None] - rows[None]) ** 2).sum(axis=2))
    return np.asarray(np.sort(distances, axis=1)[:, :_NEIGHBOURS].mean(axis=1))


def _stain_distances(rows: Floats, asked: Floats) -> Floats:
    mean, scale = rows.mean(axis=0), np.maximum(rows.std(axis=0), _LEAST_SCALE)
    return _neighbours((rows - mean) / scale, (asked - mean) / scale)


def _left_out(distances: Callable[[Floats, Floats], Floats], rows: Floats, folds: NDArray[np.int64]) -> Floats:
    """The distance of each row from the rows of other folds."""
    found = np.empty(len(rows))
    for fold in np.unique(folds):
        found[folds == fold] = distances(rows[folds != fold], rows[folds == fold])
    return found


def _folds(groups: Sequence[str]) -> NDArray[np.int64]:
    """Deal groups into folds; the same groups always fall the same way."""
    drawn = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode("utf-8", "surrogateescape")).digest())
    fold_of = {group: place % _FOLDS for place, group in enumerate(drawn)}
    return np.array([fold_of[group] for group in groups])


# --- learning -------------------------------------------------------------------------------------------------------


def fit_reference(
    features: NDArray[np.floating[Any]],
    stains: Floats,
    focus: Floats,
    groups: Sequence[str],
    *,
    weights: str = "",
) -> NoveltyReference | None:
    """Learn what images are like from their measures.

    Args:
        features: (N, F).
        stains: (N, 9).
        focus: (N,).
        groups: of each image; what belongs together is left out together when the limits are found.
        weights: SHA-256 of the weights' file that the features are of.

    Returns:
        None where there are fewer than ``FEWEST_IMAGES`` images or ``FEWEST_GROUPS`` groups.
    """
    if len(groups) < FEWEST_IMAGES or len(set(groups)) < FEWEST_GROUPS:
        return None
    seen = features.astype(np.float64)
    folds = _folds(groups)
    limits = [
        np.quantile(_left_out(lambda known, asked: _feature_distances(_fitted(known), asked), seen, folds), QUANTILE),
        np.quantile(_left_out(_stain_distances, stains, folds), QUANTILE),
    ]
    factors = _fitted(seen)
    mean, scale = stains.mean(axis=0), np.maximum(stains.std(axis=0), _LEAST_SCALE)
    low, usual, high = np.quantile(focus, [(1 - QUANTILE) / 2, 0.5, (1 + QUANTILE) / 2])
    return NoveltyReference(
        feature_mean=factors.mean,
        feature_scale=factors.scale,
        components=factors.components,
        variances=factors.variances,
        noise=factors.noise,
        stains=(stains - mean) / scale,
        stain_mean=mean,
        stain_scale=scale,
        focus=np.array([min(low, usual - 1e-6), usual, max(high, usual + 1e-6)]),
        limits=np.maximum(limits, 1e-9),
        images=len(groups),
        weights=weights,
    )


def learn(
    weights: Path, batches: Iterable[SmearBatch], groups: Sequence[str], device: torch.device
) -> NoveltyReference | None:
    """Learn what the labelled training images are like to the network that was saved, and write it beside the weights.

    Args:
        weights: the weights' file; the reference belongs to these weights and no others.
        batches: whole training images at loadSize, as in a test: not cut, not augmented, each once. Images without a
            label are left out: the verdict was not learned from them.
        groups: the group of the image at each batch's ``index``.
        device: where to run.

    Returns:
        What was written to ``reference_path(weights)``; None where there are too few images, and then no file is there.

    Raises:
        UserError: the weights cannot be read, or the file cannot be written.
    """
    saved = load_network(weights)
    features, stains, focus, of = [], [], [], []
    watched = Watched(saved.network.to(device).to(memory_format=torch.channels_last))
    for said, seen in watched.predictions(batches, saved, device):
        labelled = (said.batch.label >= 0).cpu().numpy()
        features.append(seen[labelled])
        for image in pictures_of(said.batch)[labelled]:
            stains.append(stain_of(image))
            focus.append(focus_of(image))
        of += [groups[index] for index in said.batch.index.cpu().numpy()[labelled].tolist()]
    path = reference_path(weights)
    reference = (
        fit_reference(np.concatenate(features), np.stack(stains), np.array(focus), of, weights=digest_of(weights))
        if of
        else None
    )
    if reference is None:
        path.unlink(missing_ok=True)
    else:
        write_reference(path, reference)
    return reference


# --- the file -------------------------------------------------------------------------------------------------------


def reference_path(weights: Path) -> Path:
    """Where a weights' file has its reference: ``latest_novelty.npz`` beside ``latest_net_3TDCFNet.safetensors``."""
    return weights.with_name(f"{weights.name.split('_net_')[0]}{NOVELTY}")


def digest_of(weights: Path) -> str:
    """SHA-256 of a weights' file, in hexadecimal digits."""
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_reference(path: Path, reference: NoveltyReference) -> None:
    """Write a reference as plain arrays, numbers in 32 bits.

    Raises:
        UserError: it cannot be written.
    """
    arrays: dict[str, Any] = {field.name: getattr(reference, field.name) for field in fields(reference)}
    small = {name: value.astype(np.float32) for name, value in arrays.items() if isinstance(value, np.ndarray)}
    write_arrays(path, **{**arrays, **small, "schema": SCHEMA})


def read_reference(weights: Path, network: ThreeTierDCFNet | None = None) -> NoveltyReference | None:
    """Read the reference of a weights' file; None where it has none, or one of other weights (of before a training).

    Args:
        weights: the weights' file.
        network: with these weights, where the reference is to be used with what it sees.

    Raises:
        UserError: the file is damaged, or of features of another width than the network's.
    """
    path = reference_path(weights)
    names = tuple(field.name for field in fields(NoveltyReference))
    found = read_arrays(path, (*names, "schema"), **_CONTENT)
    if found is None:
        return None
    reason = _wrong(found)
    if reason:
        raise damaged(path, reason, **_CONTENT)
    if str(found["weights"]) != digest_of(weights):
        return None
    width = len(found["feature_mean"])
    if network is not None and width != sum(TIER_CHANNELS[: network.open_tiers]):
        raise damaged(
            path, f"{width} features, not the network's {sum(TIER_CHANNELS[: network.open_tiers])}", **_CONTENT
        )
    values: dict[str, Any] = {name: found[name].astype(np.float64) for name in names if name != "weights"}
    return NoveltyReference(
        **{**values, "noise": float(values["noise"]), "images": int(values["images"])}, weights=str(found["weights"])
    )


def _wrong(found: dict[str, NDArray[Any]]) -> str:
    """What is wrong with a file's arrays, or nothing."""
    width, count = found["feature_mean"].shape, found["variances"].shape
    shapes = {
        "feature_scale": width, "components": (*count, *width), "noise": (), "stain_mean": (9,), "stain_scale": (9,),
        "focus": (3,), "limits": (2,), "images": (), "weights": (), "schema": (),
    }  # fmt: skip
    if len(width) != 1 or len(count) != 1 or any(found[name].shape != shape for name, shape in shapes.items()):
        return "arrays of another shape"
    if found["stains"].ndim != 2 or found["stains"].shape[1] != 9 or len(found["stains"]) < 1:
        return "stains of another shape"
    numbers = [array for name, array in found.items() if name != "weights"]
    if any(array.dtype.kind not in "fiu" or not np.isfinite(array).all() for array in numbers):
        return "values that are no finite numbers"
    if any(array.size and max(-float(array.min()), float(array.max())) > _LARGEST for array in numbers):
        return f"values above {_LARGEST:g}"
    positive = ("feature_scale", "variances", "noise", "stain_scale", "limits")
    if found["images"] < 1 or found["images"] != np.floor(found["images"]):
        return "a number of images that is none"
    low, usual, high = found["focus"].tolist()
    if any((found[name] < _SMALLEST).any() for name in positive) or not low < usual < high:
        return "limits or scales that are not above 0"
    return "" if int(found["schema"]) == SCHEMA else f"version {int(found['schema'])}"
