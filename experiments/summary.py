"""Sufficient statistics of one metric in one variant: small, frozen, and additive over days, shards and strata.

`mean` and `variance` are those of one unit; the standard error of a variant is `sqrt(variance / n)`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from experiments.metrics import Metric

FloatArray = NDArray[np.float64]

ROUNDING = 1e-12
"""A variance below this share of the mean square is what is left of sums that cancel, and no variance."""


@dataclass(frozen=True)
class MeanStatistic:
    """A number a unit: n, sum and sum of squares."""

    n: int
    sum: float
    sum_squares: float

    @property
    def mean(self) -> float:
        """Mean over units; nan without any."""
        return self.sum / self.n if self.n else float("nan")

    @property
    def variance(self) -> float:
        """Unbiased variance of a unit; nan for fewer than two."""
        if self.n < 2:
            return float("nan")
        return _settled((self.sum_squares - self.sum**2 / self.n) / (self.n - 1), self.sum_squares / self.n)

    def __add__(self, other: MeanStatistic) -> MeanStatistic:
        return _added(self, other)


@dataclass(frozen=True)
class ProportionStatistic:
    """Yes or no a unit: n and number of yes."""

    n: int
    sum: float

    @property
    def mean(self) -> float:
        """Share of yes; nan without units."""
        return self.sum / self.n if self.n else float("nan")

    @property
    def variance(self) -> float:
        """p (1 - p)."""
        return self.mean * (1 - self.mean)

    def __add__(self, other: ProportionStatistic) -> ProportionStatistic:
        return _added(self, other)


@dataclass(frozen=True)
class RatioStatistic:
    """Numerator M and denominator D a unit; the metric is sum(M) / sum(D), the units alone are independent."""

    n: int
    numerator_sum: float
    numerator_squares: float
    denominator_sum: float
    denominator_squares: float
    products: float

    @property
    def mean(self) -> float:
        """sum(M) / sum(D); nan where nothing was in the denominator."""
        return self.numerator_sum / self.denominator_sum if self.denominator_sum else float("nan")

    @property
    def variance(self) -> float:
        """Delta method: var(M)/d^2 + var(D) m^2/d^4 - 2 cov(M,D) m/d^3 with m, d the means a unit; nan for fewer than two units.

        Source: Deng, Knoblich, Lu, "Applying the Delta Method in Metric Analytics" (KDD 2018), equation 4.
        """
        if self.n < 2 or not self.denominator_sum:
            return float("nan")
        m, d = self.numerator_sum / self.n, self.denominator_sum / self.n
        variance_m = (self.numerator_squares - self.n * m * m) / (self.n - 1)
        variance_d = (self.denominator_squares - self.n * d * d) / (self.n - 1)
        covariance = (self.products - self.n * m * d) / (self.n - 1)
        variance = variance_m / d**2 + variance_d * m**2 / d**4 - 2 * covariance * m / d**3
        return _settled(variance, (self.numerator_squares / d**2 + self.denominator_squares * m**2 / d**4) / self.n)

    def __add__(self, other: RatioStatistic) -> RatioStatistic:
        return _added(self, other)


Statistic = MeanStatistic | ProportionStatistic | RatioStatistic
S = TypeVar("S", MeanStatistic, ProportionStatistic, RatioStatistic)


def summarize(metric: Metric, numerator: FloatArray, denominator: FloatArray | None) -> Statistic:
    """Statistics of one metric over the units of one variant.

    Shapes: (U,) float64 both; `denominator` for ratios alone.
    """
    n, total = len(numerator), float(numerator.sum())
    if metric.kind == "proportion":
        return ProportionStatistic(n, total)
    if denominator is None:
        return MeanStatistic(n, total, float(numerator @ numerator))
    return RatioStatistic(
        n,
        total,
        float(numerator @ numerator),
        float(denominator.sum()),
        float(denominator @ denominator),
        float(numerator @ denominator),
    )


def _settled(variance: float, mean_square: float) -> float:
    """The variance; 0 where it is below what rounding makes of none, to either side of it."""
    return 0.0 if abs(variance) <= ROUNDING * mean_square else variance


def _added(one: S, other: S) -> S:
    return type(one)(*(getattr(one, field.name) + getattr(other, field.name) for field in fields(one)))
