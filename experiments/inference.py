"""Is a treatment different from the control, and by how much: fixed-horizon and anytime-valid intervals for any statistic.

What cannot be told is `NotEstimable` with the reason, never a neutral number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from experiments.summary import Statistic

Difference = Literal["absolute", "relative"]
"""treatment - control, or that over |control|."""


@dataclass(frozen=True)
class NotEstimable:
    """There is no answer in these data, and why."""

    reason: str


@dataclass(frozen=True)
class Estimate:
    """A difference between treatment and control with its `1 - alpha` interval and two-sided p-value."""

    point: float
    low: float
    high: float
    standard_error: float
    p_value: float
    difference: Difference


def welch(
    control: Statistic, treatment: Statistic, *, alpha: float = 0.05, difference: Difference = "absolute"
) -> Estimate | NotEstimable:
    """Two-sided Welch test: valid for one look at a sample size fixed before the start.

    The relative difference is by the delta method: var = var_b/(n_b a^2) + var_a b^2/(n_a a^4). Degrees of freedom are
    Welch-Satterthwaite's of the absolute difference.

    Source: GrowthBook gbstats, `TwoSidedTTest`.
    """
    found = _point_and_error(control, treatment, difference)
    if isinstance(found, NotEstimable):
        return found
    point, error = found
    of_control, of_treatment = control.variance / control.n, treatment.variance / treatment.n
    freedom = (of_control + of_treatment) ** 2 / (of_control**2 / (control.n - 1) + of_treatment**2 / (treatment.n - 1))
    half = float(stats.t.ppf(1 - alpha / 2, freedom)) * error
    p_value = 2 * float(stats.t.sf(abs(point) / error, freedom))
    return Estimate(point, point - half, point + half, error, p_value, difference)


def anytime(
    control: Statistic,
    treatment: Statistic,
    *,
    alpha: float = 0.05,
    difference: Difference = "absolute",
    tuning_units: int = 5000,
) -> Estimate | NotEstimable:
    """Two-sided asymptotic confidence sequence: valid at every look at once, tightest when all variants have `tuning_units` units.

    The normal mixture of mSPRT. `tuning_units` must not be chosen by looking at the data.

    Source: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, arXiv 2103.06476, theorem 2.2; tuned as GrowthBook gbstats,
    `SequentialTwoSidedTTest`.
    """
    found = _point_and_error(control, treatment, difference)
    if isinstance(found, NotEstimable):
        return found
    point, error = found
    n = control.n + treatment.n
    mixing = _mixing_squared(alpha, tuning_units)
    half = error * anytime_critical_value(n, alpha, tuning_units)
    evidence = mixing * (point / error) ** 2 * n / (2 * (n * mixing + 1)) - 0.5 * math.log(n * mixing + 1)
    return Estimate(point, point - half, point + half, error, math.exp(min(0.0, -evidence)), difference)


def anytime_critical_value(n: int, alpha: float, tuning_units: int) -> float:
    """How many standard errors half an anytime-valid interval is wide at n units in all."""
    scaled = n * _mixing_squared(alpha, tuning_units)
    return math.sqrt(2 * (scaled + 1) / scaled * math.log(math.sqrt(scaled + 1) / alpha))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given: controls the chance of any false positive among the tests.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (1979).
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def _mixing_squared(alpha: float, tuning_units: int) -> float:
    return (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / tuning_units


def _point_and_error(control: Statistic, treatment: Statistic, difference: Difference) -> tuple[float, float] | NotEstimable:
    for name, statistic in (("control", control), ("treatment", treatment)):
        if statistic.n < 2:
            return NotEstimable(f"{name} has {statistic.n} units; an interval needs at least 2")
        if math.isnan(statistic.mean):
            return NotEstimable(f"{name} has nothing in the denominator")
    variance = control.variance / control.n + treatment.variance / treatment.n
    if difference == "relative":
        if control.mean == 0:
            return NotEstimable("the control's mean is 0: there is no relative difference")
        variance = treatment.variance / (treatment.n * control.mean**2) + control.variance * treatment.mean**2 / (
            control.n * control.mean**4
        )
    if not (variance > 0 and control.variance >= 0 and treatment.variance >= 0):
        return NotEstimable("the metric does not vary between units")
    point = treatment.mean - control.mean
    return point / abs(control.mean) if difference == "relative" else point, math.sqrt(variance)
