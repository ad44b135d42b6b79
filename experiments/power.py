"""How long must an experiment run, and what could it show: sample sizes and minimum detectable effects.

Normal approximation throughout, solved by statsmodels for a single look and by root search for anytime-valid intervals, which need
more units in exchange for the right to look at any time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import optimize, stats
from statsmodels.stats.power import NormalIndPower

from experiments.errors import ExperimentError
from experiments.inference import anytime_critical_value

MAX_UNITS = 10**12


@dataclass(frozen=True)
class SampleSize:
    """Units that a comparison of the control with one treatment needs."""

    control: int
    treatment: int

    @property
    def total(self) -> int:
        """Both."""
        return self.control + self.treatment


def sample_size(
    effect: float,
    standard_deviation: float,
    *,
    weights: Sequence[float] = (0.5, 0.5),
    alpha: float = 0.05,
    power: float = 0.8,
    tuning_units: int | None = None,
) -> SampleSize:
    """Units for which a true difference of `effect` is found with probability `power`.

    Args:
        effect: absolute difference between treatment and control.
        standard_deviation: of one unit, the same in both.
        weights: of control and treatment.
        alpha: two-sided.
        tuning_units: for anytime-valid intervals, read once at the end; None for a fixed horizon.

    Raises:
        ExperimentError: a number is out of range, or no sample size reaches the power.
    """
    _check(effect, standard_deviation, weights, power)
    ratio = weights[1] / weights[0]
    if tuning_units is None:
        control = NormalIndPower().solve_power(
            effect_size=abs(effect) / standard_deviation, alpha=alpha, power=power, ratio=ratio, alternative="two-sided"
        )
        return SampleSize(math.ceil(control), math.ceil(control * ratio))

    # One-sided in the direction of the effect: the other tail is negligible where the power is useful.
    def missing(log_total: float) -> float:
        total = math.exp(log_total)
        critical = anytime_critical_value(max(2, round(total)), alpha, tuning_units)
        return abs(effect) / _standard_error(total, standard_deviation, weights) - critical - float(stats.norm.ppf(power))

    if missing(math.log(MAX_UNITS)) < 0:
        raise ExperimentError(f"no sample below {MAX_UNITS:.0e} units finds an effect of {effect}: look for a larger one")
    total = math.exp(optimize.brentq(missing, math.log(4), math.log(MAX_UNITS))) if missing(math.log(4)) < 0 else 4.0
    share = weights[0] / (weights[0] + weights[1])
    return SampleSize(math.ceil(total * share), math.ceil(total * (1 - share)))


def minimum_detectable_effect(
    total_units: int,
    standard_deviation: float,
    *,
    weights: Sequence[float] = (0.5, 0.5),
    alpha: float = 0.05,
    power: float = 0.8,
    tuning_units: int | None = None,
) -> float:
    """The smallest absolute difference that `total_units` find with probability `power`; arguments as of `sample_size`.

    Raises:
        ExperimentError: a number is out of range.
    """
    _check(1.0, standard_deviation, weights, power)
    if total_units < 4:
        raise ExperimentError(f"{total_units} units are too few: at least 4")
    critical = (
        float(stats.norm.isf(alpha / 2)) if tuning_units is None else anytime_critical_value(total_units, alpha, tuning_units)
    )
    return (critical + float(stats.norm.ppf(power))) * _standard_error(total_units, standard_deviation, weights)


def _standard_error(total: float, standard_deviation: float, weights: Sequence[float]) -> float:
    whole = weights[0] + weights[1]
    return standard_deviation * math.sqrt(whole / (total * weights[0]) + whole / (total * weights[1]))


def _check(effect: float, standard_deviation: float, weights: Sequence[float], power: float) -> None:
    if effect == 0 or not math.isfinite(effect):
        raise ExperimentError(f"effect {effect} must be a number other than 0")
    if not standard_deviation > 0:
        raise ExperimentError(f"standard deviation {standard_deviation} must be above 0")
    if len(weights) != 2 or min(weights) <= 0:
        raise ExperimentError(f"weights {list(weights)} must be two numbers above 0")
    if not 0.3 <= power < 1:
        raise ExperimentError(f"power {power} must be from 0.3 to below 1")
