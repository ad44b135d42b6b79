"""Sample-ratio mismatch: do the variants have the units that their weights promise? If not, no other number is worth reading.

Units are counted once, at their first exposure, never requests. Usual causes: an answer path that forgets its exposure, a redirect
or crash in one variant, bots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from experiments.inference import NotEstimable

SRM_ALPHA = 0.001
"""A mismatch below this p-value blocks the report: strict, because the test is read again and again."""

CONCENTRATION = 10_000.0
"""Prior of the anytime-valid test: how close to the promised shares a mismatch is expected to be. It moves the outcome."""


@dataclass(frozen=True)
class RatioCheck:
    """Units seen and expected a variant, and the p-value of the chi-square test."""

    units: tuple[int, ...]
    expected: tuple[float, ...]
    p_value: float
    anytime_p_value: float

    @property
    def mismatch(self) -> bool:
        """Whether the split is not what it should be."""
        return self.p_value < SRM_ALPHA


def check_ratio(units: Sequence[int], weights: Sequence[float]) -> RatioCheck | NotEstimable:
    """Chi-square test of unit counts against weights, with (variants of weight above 0) - 1 degrees of freedom.

    Args:
        units: units a variant.
        weights: their relative weights. Any unit in a variant of weight 0 is a mismatch with certainty.
    """
    total = sum(units)
    expected = tuple(total * weight / sum(weights) for weight in weights)
    if total == 0:
        return NotEstimable("no unit was exposed yet")
    if any(count and not weight for count, weight in zip(units, weights, strict=True)):
        return RatioCheck(tuple(units), expected, 0.0, 0.0)
    used = [index for index, weight in enumerate(weights) if weight > 0]
    if min(expected[index] for index in used) < 5:
        return NotEstimable(f"{total} units are too few: each variant should expect at least 5")
    statistic = sum((units[index] - expected[index]) ** 2 / expected[index] for index in used)
    p_value = float(stats.chi2.sf(statistic, len(used) - 1))
    counts = np.array([units[index] for index in used], dtype=np.float64)
    shares = np.array([weights[index] for index in used], dtype=np.float64)
    log_odds = log_bayes_factor(counts, shares / shares.sum(), CONCENTRATION * shares / shares.sum())
    return RatioCheck(tuple(units), expected, p_value, math.exp(min(0.0, -log_odds)))


def log_bayes_factor(counts: np.ndarray, shares: np.ndarray, prior: np.ndarray) -> float:
    """Log odds of "the shares are others" against "the shares are these", after `counts` units came one by one.

    1 / exp of it is a p-value that is valid at every look.

    Args:
        counts, shares: (V,) units and promised shares, which sum to 1.
        prior: (V,) Dirichlet parameters of the shares under the alternative.

    Source: Lindon, Malek, "Anytime-Valid Inference for Multinomial Count Data" (2022), equation 6.
    """
    alternative = (
        special.gammaln(prior.sum())
        - special.gammaln(prior.sum() + counts.sum())
        + (special.gammaln(prior + counts) - special.gammaln(prior)).sum()
    )
    return float(alternative - (counts * np.log(shares)).sum())
