"""Where the tiers looked (Grad-CAM): which images are looked at, the pictures, and the page's section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from util.errors import UserError
from util.figures import CLASSES, HEADS, counted, is_number
from util.metrics import THRESHOLD
from util.report_content import ImageRow, Report, Tags, link_to, missing_of, printable, provenance_of
from util.report_images import outcome
from util.report_parts import lead_of, outside

TIERS = tuple(key for key in HEADS if key != "global")
COLOUR_MAP = "viridis"  # perceptually uniform, for the colour-blind too
STRENGTH = 0.6  # of the colours over the grey smear
STOPS = 9
PALE = 0.85  # the grey of a smear's background
GREYS = np.array([0.2125, 0.7154, 0.0721], np.float32)  # luminance


@dataclass(frozen=True)
class TierSeen:
    """What one tier saw in one image.

    Attributes:
        overlay: path of the picture relative to the results folder.
        map: path of the map alone, grey.
        own: chance of Anemic by the tier's own voice, before the voices are weighed.
        peak: the map's highest value, in logits; 0 where nothing speaks for the class.
    """

    overlay: str
    map: str
    own: float
    peak: float


@dataclass(frozen=True)
class SeenImage:
    """One image and what each open tier saw in it, by ``tier1`` to ``tier3``, for the class that Global called."""

    row: ImageRow
    tiers: Mapping[str, TierSeen]


@dataclass(frozen=True)
class GradCams:
    """What the page shows of Grad-CAM.

    Attributes:
        images: in the order in which they are shown.
        why_not: why there are none, or empty.
        sides: of each open tier, places along a side of the two maps that it reads: its backbone's and the merged one.
    """

    images: Sequence[SeenImage] = ()
    why_not: str = ""
    sides: Mapping[str, tuple[int, int]] = field(default_factory=dict)


# --- which images -----------------------------------------------------------------------------------------------------


def named_images(asked: str, names: Sequence[str]) -> list[int] | None:
    """The images that ``--gradcam`` names, by their places; None where it gives a number.

    Args:
        asked: a number, or names as predictions.csv has them or their last part alone, with commas between.
        names: of the test images.

    Raises:
        UserError: no image, or more than one, is called so.
    """
    if asked.strip().isdecimal():
        return None
    found: list[int] = []
    for part in filter(None, map(str.strip, asked.split(","))):
        exact = [index for index, name in enumerate(names) if name == part]
        matching = exact or [index for index, name in enumerate(names) if name.endswith(f"/{part}")]
        if len(matching) != 1:
            raise UserError(
                f"--gradcam {part!r} names no single test image",
                expected="names of test images as predictions.csv has them, or a number of images",
                found=f"{counted(len(matching), 'images')} of that name among {len(names)}",
                remedy="give the whole name, folders included",
            )
        found += matching
    return list(dict.fromkeys(found))


def chosen_images(asked: str, rows: Sequence[ImageRow]) -> list[int]:
    """The images to look at, by their places, in the order in which they are shown.

    Of a number half are those that Global is wrong on, the most confidently wrong first. The others are right ones (or
    of unknown truth), as many of each called class as there are, spread evenly from the surest to the least sure. What
    one kind cannot fill goes to the others.

    Args:
        asked: what ``--gradcam`` says.
        rows: the images.

    Raises:
        UserError: see :func:`named_images`.
    """
    named = named_images(asked, [row.name for row in rows])
    if named is not None:
        return named
    count = int(asked)
    sure = [index for index, row in enumerate(rows) if is_number(row.prob.get("global"))]
    ranked = sorted(sure, key=lambda index: -abs(rows[index].prob["global"] - THRESHOLD))
    wrong = [index for index in ranked if rows[index].label_true not in (None, rows[index].label_pred)]
    right = [[i for i in ranked if i not in set(wrong) and rows[i].label_pred == label] for label in (0, 1)]
    shares = _shares(count, [len(wrong), *map(len, right)])
    others = [index for of, many in zip(right, shares[1:], strict=True) for index in _spread(of, many)]
    return [*wrong[: shares[0]], *others]


def _shares(count: int, there: Sequence[int]) -> list[int]:
    """How many of each kind (wrong, right Healthy, right Anemic), of at most ``count`` in all."""
    wanted = [count - count // 2, (count // 2 + 1) // 2, count // 2 // 2]
    shares = [min(want, has) for want, has in zip(wanted, there, strict=True)]
    while sum(shares) < min(count, sum(there)):
        least = min((k for k in range(len(there)) if shares[k] < there[k]), key=lambda k: (k == 0, shares[k]))
        shares[least] += 1
    return shares


def _spread(ranked: Sequence[int], count: int) -> list[int]:
    """So many of a ranked list, evenly spread over it."""
    return [ranked[int((k + 0.5) * len(ranked) / count)] for k in range(count)]


# --- the pictures -----------------------------------------------------------------------------------------------------


def heat_overlay(rgb: NDArray[np.uint8], heat: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """A map in colours over the smear in grey.

    Args:
        rgb: (H, W, 3) uint8.
        heat: (H, W) from 0 to 1.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: sizes differ.
    """
    if rgb.shape != (*heat.shape, 3):
        raise ValueError(f"smear {rgb.shape} and map {heat.shape} must have one size")
    from matplotlib import colormaps

    colours = colormaps[COLOUR_MAP](heat, bytes=True)[..., :3].astype(np.float32)
    grey = (rgb.astype(np.float32) @ GREYS)[..., None]
    return np.asarray((STRENGTH * colours + (1 - STRENGTH) * grey).round().clip(0, 255), np.uint8)


def _scale() -> Any:
    """The colours from nothing to a picture's own highest value."""
    from dominate import tags
    from dominate.util import raw
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    colours = np.array([colormaps[COLOUR_MAP](k / (STOPS - 1))[:3] for k in range(STOPS)])
    shades = [to_hex(shade) for shade in STRENGTH * colours + (1 - STRENGTH) * PALE]  # as over a smear's background
    stops = "".join(f'<stop offset="{k / (STOPS - 1):.3f}" stop-color="{shade}"/>' for k, shade in enumerate(shades))
    bar = (
        '<svg viewBox="0 0 180 14" role="img" aria-label="Colour scale from dark violet, 0, by green to yellow, 1"'
        ' style="width:180px;max-width:40vw;height:14px;margin:0 .5em;vertical-align:-2px" preserveAspectRatio="none">'
        f'<defs><linearGradient id="heat">{stops}</linearGradient></defs>'
        '<rect width="180" height="14" rx="3" fill="url(#heat)"/></svg>'
    )
    return tags.p(tags.b("0"), raw(bar), tags.b("1"), ": from nothing for that class to the map's own highest value")


# --- the section ------------------------------------------------------------------------------------------------------


def gradcam(report: Report) -> Tags:
    """For chosen images, where each tier's own voice found evidence for the class that Global called."""
    from dominate import tags

    shown = report.gradcam
    if shown is None:
        return []
    if not shown.images:
        return [lead_of(shown.why_not)]
    return [
        lead_of(_which(report, shown)),
        tags.p(_caution(shown), cls="notice"),
        _scale(),
        *[_card(report, image) for image in shown.images],
        *_weights(report),
    ]


def _which(report: Report, shown: GradCams) -> str:
    wrong = sum(image.row.label_true not in (None, image.row.label_pred) for image in shown.images)
    count = len(shown.images)
    kinds = f"{wrong} that Global is wrong on and {count - wrong} other{'' if count - wrong == 1 else 's'}"
    views = provenance_of(report).get("test_views") or 1
    turned = "" if views == 1 else f" The maps are of the image as it is, the verdicts means over {views} views."
    return (
        f"{_counted(count)}: {kinds}. Each tier's map is for the class that Global called, and of the tier's own voice,"
        f" before the voices are weighed; a voice's number is its probability of Anemic.{turned} gradcam.csv names the"
        " files."
    )


def _counted(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _caution(shown: GradCams) -> str:
    """What Grad-CAM shows and what not, in a line."""
    places = "; ".join(
        f"{HEADS[key]} {' and '.join(f'{side} x {side}' for side in dict.fromkeys(sides))}"
        for key, sides in shown.sides.items()
    )
    return (
        "Grad-CAM (Selvaraju et al., ICCV 2017) shows where the last maps of a tier raised its logit for a class. It"
        " does not show why, nor that the place matters for the disease, and a map on cells is no proof that the"
        f" verdict is right. It is coarse (over the network's input {places} places), and each map has a scale of its"
        " own: compare places in a picture, not pictures."
    )


def _weights(report: Report) -> Tags:
    """How much each voice counts in Global; a map of a voice that counts for nothing explains nothing of Global."""
    from dominate import tags

    rows = provenance_of(report).get("voices") or []
    fusion = (provenance_of(report).get("architecture") or {}).get("fusion", True)
    if len(rows) <= len(TIERS):
        return []
    weights = rows[-1] if fusion else rows[len(TIERS) - 1]
    names = [*(HEADS[key] for key in TIERS), "the fusion of all (no map here)"]
    said = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, weights, strict=False))
    return [tags.p(f"In Global the voices weigh: {said}.", cls="footnote")]


def _card(report: Report, image: SeenImage) -> Any:
    from dominate import tags

    row, called = image.row, CLASSES[image.row.label_pred]
    kind, mark = outcome(row.label_true, row.label_pred)
    truth = "truth unknown" if row.label_true is None else f"truly {CLASSES[row.label_true]}"
    chance = f"probability of Anemic {row.prob['global']:.3f}"
    figures = [_figure(row.smear, f"smear {printable(row.name)}", "smear")]
    figures += [_tier_figure(report, image, key) for key in TIERS]
    return tags.article(
        tags.div(
            tags.h3(outside(row.name)),
            tags.span(f"{mark} called {called}", cls=f"verdict {kind}"),
            tags.p(f"{chance}, {truth}"),
            tags.p(f"maps for {called}"),
            cls="about",
        ),
        tags.div(*figures, cls="pictures"),
        cls=f"panel image gradcam {kind}",
        style="grid-template-columns:minmax(0,1fr)",
    )


def _tier_figure(report: Report, image: SeenImage, key: str) -> Any:
    from dominate import tags

    tier, called = image.tiers.get(key), CLASSES[image.row.label_pred]
    if tier is None:
        return tags.figure(tags.div(missing_of(report, key), cls="absent"), tags.figcaption(HEADS[key]))
    own = f"own voice {tier.own:.3f} {CLASSES[int(tier.own > THRESHOLD)]}"
    nothing = "" if tier.peak > 0 else f"; nothing for {called}"
    alt = f"Grad-CAM of {HEADS[key]} for {called} over {printable(image.row.name)}{nothing}"
    return _figure(tier.overlay, alt, f"{HEADS[key]}: {own}{nothing}")


def _figure(path: str, alt: str, caption: str) -> Any:
    from dominate import tags

    picture = tags.img(src=link_to(path), alt=alt, loading="lazy", decoding="async")
    return tags.figure(tags.a(picture, href=link_to(path)), tags.figcaption(caption))
