"""How much each tier's voice weighs in a verdict: fitted on validation images, which no tier has learned from."""

from __future__ import annotations

import numpy as np

FEWEST_IMAGES = 16  # below so many labelled validation images, every voice weighs the same
LEAST_SUM = 1e-3  # of the weights: voices that all mislead keep their ranking, with next to no confidence
PRIOR_IMAGES = 1.0  # how many images' worth of doubt there is about any weight but the equal one


def weigh_voices(voices: np.ndarray, label: np.ndarray, open_tiers: int, *, fusion: bool) -> np.ndarray:
    """Find the weights of the voices in the verdicts of Tier-I, II, III and Global.

    Each verdict is the weighted sum of the voices it may hear (a tier: its own and those before it; Global: all) that
    explains the labels best: least cross-entropy, weights not below zero, drawn towards the plain mean (stacking,
    Wolpert 1992, with the constraint of Breiman 1996). A voice that adds nothing can be weighed zero, so on these
    images a tier is hardly worse than the one before it; and the sum of the weights takes back what confidence the
    voices have gained on images they know by heart.

    Args:
        voices: (N, 4) logits on validation images, see ``NetworkOutput.voices``.
        label: (N,) 0, 1, or -1 where unknown.
        open_tiers: 1 to 3.
        fusion: whether the fourth voice exists.

    Returns:
        (4, 4) float64, verdict by voice. A closed tier hears what the last open one hears, and its own voice, which is
        silent until it opens, in full: so a tier begins with the verdict of the tier before.
    """
    tiers = voices.shape[1] - 1
    known = label >= 0
    weights = np.zeros((tiers + 1, tiers + 1))
    for verdict in range(tiers + 1):
        heard = list(range(min(verdict + 1, open_tiers)))
        if verdict == tiers and fusion:
            heard.append(tiers)
        weights[verdict, heard] = _fit(voices[known][:, heard], label[known])
    for closed in range(open_tiers, tiers):
        weights[closed, closed] = 1.0
        weights[tiers, closed] = 1.0
    return weights


def _fit(voices: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Weights (K,) of the voices (N, K) that explain the labels (N,)."""
    from scipy.optimize import minimize
    from scipy.special import expit

    count = voices.shape[1]
    equal = np.full(count, 1.0 / count)
    if len(label) < FEWEST_IMAGES or len(np.unique(label)) < 2:
        return equal
    sign = np.where(label > 0, -1.0, 1.0)

    def objective(weight: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (voices @ weight)
        doubt = count * weight - 1.0
        loss = np.logaddexp(0.0, margin).sum() + PRIOR_IMAGES * (doubt**2).mean()
        slope = voices.T @ (sign * expit(margin)) + 2 * PRIOR_IMAGES * doubt
        return float(loss), slope

    found = minimize(objective, equal, jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * count)
    if found.x.sum() < LEAST_SUM:
        return LEAST_SUM * equal
    return np.asarray(found.x)
