"""A learned grade beside the rule: logistic regression on what the cells of an image say together."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.module2.kinds import KINDS
from models.module2.severity import CHRONIC, MILD, SmearSummary
from util.errors import UserError
from util.files import atomic_write

SCHEMA = 1
FEATURES = (
    "size_score", "roundness_score", "pallor_score", "severity_score", "diameter_cv", "area_cv", "overlapped_share",
    *(f"share_{kind}" for kind in KINDS if kind != "normal"),
)  # fmt: skip
# So few graded images of either kind teach nothing that holds elsewhere.
LEAST_OF_EACH = 10
# Inverse strength of the L2 penalty on standardised features; strong, for the images are few.
_PENALTY = 0.1


def summary_features(summary: SmearSummary) -> npt.NDArray[np.float64] | None:
    """What the head sees of an image, (F,) in the order of ``FEATURES``; None where no cell is judged."""
    plain = [summary.size_score, summary.roundness_score, summary.pallor_score, summary.severity_score]
    plain += [summary.diameter_cv, summary.area_cv, summary.overlapped_share]
    plain += [summary.kinds[kind] for kind in KINDS if kind != "normal"]
    values = np.array(plain, np.float64)
    if not np.isfinite(summary.severity_score):
        return None
    return np.nan_to_num(values)  # a single cell has no spread


@dataclass(frozen=True)
class SeverityHead:
    """The head's numbers, (F,) each but the bias, and what it has learned from.

    Attributes:
        mean, scale: of the features.
        weight, bias: of the standardised features.
        mild, chronic: images of either grade.
        measured_by: how the features were measured; those measured otherwise are other features.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weight: tuple[float, ...]
    bias: float
    mild: int
    chronic: int
    measured_by: str = ""

    @classmethod
    def fit(
        cls, features: Sequence[npt.NDArray[np.float64]], chronic: Sequence[bool], *, measured_by: str = ""
    ) -> SeverityHead:
        """Learn from graded images; both grades weigh the same, however many images bear them.

        Args:
            features: of each image, see ``summary_features``.
            chronic: whether each is graded Chronic.
            measured_by: how they were measured, see ``models.module2.analysis.measured_by``.

        Raises:
            UserError: fewer than ``LEAST_OF_EACH`` images of either grade.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        severe = np.asarray(chronic, bool)
        counts = int((~severe).sum()), int(severe.sum())
        if min(counts) < LEAST_OF_EACH:
            raise UserError(
                "too few graded images to learn the severity from",
                expected=f"{LEAST_OF_EACH} or more of each grade, with measured cells",
                found=f"{counts[0]} Mild, {counts[1]} Chronic",
                remedy="grade more images; the rule needs none",
            )
        scaler = StandardScaler().fit(np.stack(features))
        model = LogisticRegression(C=_PENALTY, class_weight="balanced", max_iter=1000)
        model.fit(scaler.transform(np.stack(features)), severe)
        mean, scale, weight = (tuple(map(float, v)) for v in (scaler.mean_, scaler.scale_, model.coef_[0]))
        return cls(mean, scale, weight, float(model.intercept_[0]), *counts, measured_by)

    def probability(self, features: npt.NDArray[np.float64]) -> float:
        """Chance that an image is Chronic."""
        logit = ((features - self.mean) / self.scale) @ np.array(self.weight) + self.bias
        return float(1 / (1 + np.exp(-logit)))

    def grade(self, features: npt.NDArray[np.float64]) -> str:
        """The likelier grade."""
        return CHRONIC if self.probability(features) > 0.5 else MILD

    def save(self, path: Path) -> None:
        """Write the head as JSON, atomically.

        Raises:
            UserError: the file cannot be written.
        """
        content = {"schema": SCHEMA, "features": FEATURES, **self.__dict__}
        atomic_write(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> SeverityHead | None:
        """Read what ``save`` wrote; None where there is no such file.

        Raises:
            UserError: it is damaged or of another version.
        """
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls._of(content)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(
                f"{path} is no severity head of this version",
                expected=f"JSON of schema {SCHEMA} with {len(FEATURES)} features, as 3TDCFNet_train.py writes it",
                found=str(error)[:120],
                remedy="remove the file (the rule remains), or train again",
            ) from None

    @classmethod
    def _of(cls, content: Any) -> SeverityHead:
        if content["schema"] != SCHEMA or tuple(content["features"]) != FEATURES:
            raise ValueError("another schema or other features")
        mean, scale, weight = (tuple(map(float, content[key])) for key in ("mean", "scale", "weight"))
        bias = float(content["bias"])
        lengths = {len(values) for values in (mean, scale, weight)}
        if lengths != {len(FEATURES)} or not all(map(math.isfinite, (*mean, *scale, *weight, bias))) or min(scale) <= 0:
            raise ValueError("numbers that are missing or not finite")
        counts = int(content["mild"]), int(content["chronic"])
        return cls(mean, scale, weight, bias, *counts, str(content["measured_by"]))
