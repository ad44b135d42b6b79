"""Intervals and p-values agree with GrowthBook's published cases and with simulation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.inference import Estimate, NotEstimable, anytime, anytime_critical_value, holm, welch
from experiments.metrics import Metric
from experiments.summary import MeanStatistic, ProportionStatistic, RatioStatistic, Statistic, summarize

MEAN = Metric(name="m", kind="mean", actions=("view",))
PROPORTION = Metric(name="p", kind="proportion", actions=("view",))
RATIO = Metric(name="r", kind="ratio", actions=("view",), per="exposure")


def statistic(raw: dict[str, Any]) -> Statistic:
    if raw["type"] == "proportion":
        return ProportionStatistic(raw["n"], raw["sum"])
    return MeanStatistic(raw["n"], raw["sum"], raw["sum_squares"])


def cases(shared: Path, file: str, test: str) -> list[dict[str, Any]]:
    found = json.loads((shared / "vectors" / file).read_text())["cases"]
    return [case for case in found if case["test"] == test and not case["a"]["type"].startswith("cuped")]


def check(estimate: Estimate | NotEstimable, expected: dict[str, Any]) -> None:
    assert isinstance(estimate, Estimate)
    found = [estimate.point, estimate.low, estimate.high, estimate.standard_error, estimate.p_value]
    # Upstream rounds to five decimals.
    np.testing.assert_allclose(found, [expected["point"], *expected["ci"], expected["se"], expected["p"]], atol=5.1e-6)


def test_welch_cases_of_growthbook(shared: Path) -> None:
    checked = 0
    for case in cases(shared, "gbstats_frequentist.json", "two_sided_t"):
        estimate = welch(statistic(case["a"]), statistic(case["b"]), alpha=case["alpha"], difference=case["difference"])
        if "error" in case["expected"]:
            assert isinstance(estimate, NotEstimable), case["name"]
        else:
            check(estimate, case["expected"])
            checked += 1
    assert checked == 3


def test_anytime_cases_of_growthbook(shared: Path) -> None:
    found = cases(shared, "gbstats_sequential.json", "seq_two_sided")
    assert len(found) == 2
    for case in found:
        settings = {"alpha": case["alpha"], "difference": case["difference"], "tuning_units": case["N_star"]}
        check(anytime(statistic(case["a"]), statistic(case["b"]), **settings), case["expected"])


def test_welch_agrees_with_tea_tasting_on_raw_rows(shared: Path) -> None:
    raw = json.loads((shared / "vectors" / "tea_tasting_ratio_cuped_srm.json").read_text())
    rows, expected = {name: np.array(column) for name, column in raw["rows"].items()}, raw["cases"]["orders_mean"]
    control, treatment = (summarize(MEAN, rows["orders"][rows["variant"] == side].astype(float), None) for side in (0, 1))
    estimate = welch(control, treatment)
    assert isinstance(estimate, Estimate)
    np.testing.assert_allclose(
        [estimate.point, estimate.low, estimate.high, estimate.p_value],
        [expected[name] for name in ("effect_size", "effect_size_ci_lower", "effect_size_ci_upper", "pvalue")],
        rtol=1e-6,
    )
    ratios = raw["cases"]["orders_per_session_greater_equal_var"]
    for side, name in ((0, "control"), (1, "treatment")):
        of_side = rows["variant"] == side
        ratio = summarize(RATIO, rows["orders"][of_side].astype(float), rows["sessions"][of_side].astype(float))
        assert ratio.mean == pytest.approx(ratios[name])


def test_the_anytime_interval_is_tightest_where_it_is_tuned() -> None:
    widths = {n: anytime_critical_value(6461, 0.05, n) for n in (10, 1000, 6461, 10_000, 100_000)}
    assert min(widths, key=lambda n: widths[n]) == 6461
    assert widths[6461] > stats.norm.isf(0.025)


def test_delta_method_of_a_ratio_agrees_with_a_bootstrap(rng: np.random.Generator) -> None:
    sessions = rng.poisson(3, 2000) + 1.0
    clicks = rng.binomial(sessions.astype(int), np.clip(rng.normal(0.2, 0.1, 2000), 0, 1)).astype(float)
    ratio = summarize(RATIO, clicks, sessions)
    picks = rng.integers(0, 2000, (2000, 2000))
    bootstrap = (clicks[picks].sum(axis=1) / sessions[picks].sum(axis=1)).std()
    assert math.sqrt(ratio.variance / ratio.n) == pytest.approx(bootstrap, rel=0.08)


numbers = st.lists(st.integers(0, 50), min_size=2, max_size=30)


@given(numbers, numbers)
def test_statistics_of_parts_add_up_to_those_of_the_whole(one: list[int], other: list[int]) -> None:
    for metric in (MEAN, PROPORTION, RATIO):
        columns = [np.array(part, dtype=float) for part in (one, other, one + other)]
        if metric is PROPORTION:
            columns = [(column > 5).astype(float) for column in columns]
        sizes = [column + 1 if metric is RATIO else None for column in columns]
        first, second, whole = (summarize(metric, column, size) for column, size in zip(columns, sizes, strict=True))
        assert first + second == whole  # type: ignore[operator]


@given(numbers)
def test_mean_and_variance_are_those_of_numpy(values: list[int]) -> None:
    column = np.array(values, dtype=float)
    mean = summarize(MEAN, column, None)
    assert mean.mean == pytest.approx(column.mean())
    assert mean.variance == pytest.approx(column.var(ddof=1), abs=1e-9)


@pytest.mark.parametrize("estimator", [welch, anytime])
@pytest.mark.parametrize(
    ("control", "treatment", "difference", "reason"),
    [
        (MeanStatistic(1, 3, 9), MeanStatistic(50, 3, 9), "absolute", "control has 1 units"),
        (MeanStatistic(50, 3, 9), MeanStatistic(0, 0, 0), "absolute", "treatment has 0 units"),
        (MeanStatistic(50, 50, 50), MeanStatistic(50, 50, 50), "absolute", "does not vary"),
        (ProportionStatistic(50, 0), ProportionStatistic(50, 7), "relative", "control's mean is 0"),
        (RatioStatistic(50, 0, 0, 0, 0, 0), RatioStatistic(50, 5, 5, 50, 50, 5), "absolute", "nothing in the denominator"),
    ],
)
def test_what_cannot_be_told_is_said_and_not_a_neutral_number(
    estimator: Any, control: Statistic, treatment: Statistic, difference: str, reason: str
) -> None:
    estimate = estimator(control, treatment, difference=difference)
    assert isinstance(estimate, NotEstimable)
    assert reason in estimate.reason


def test_holm() -> None:
    assert holm([]) == []
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_a_tests_find_nothing_at_the_stated_rate(rng: np.random.Generator) -> None:
    """1,000 A/A experiments on skewed counts: Welch at its end errs in 5 %, the anytime interval in less, at any of 9 looks."""
    experiments, looks, batch = 1000, 10, 180
    wrong_at_end, wrong_ever_fixed, wrong_ever_anytime = 0, 0, 0
    for _ in range(experiments):
        sides = [rng.poisson(rng.gamma(0.8, 2.0, looks * batch)).astype(float) for _ in range(2)]
        sums = [(np.cumsum(side)[batch - 1 :: batch], np.cumsum(side**2)[batch - 1 :: batch]) for side in sides]
        fixed, always = [], []
        for look in range(1, looks):  # asymptotic: the first look has 360 units a variant
            pair = [MeanStatistic((look + 1) * batch, float(total[look]), float(squares[look])) for total, squares in sums]
            estimates = welch(*pair), anytime(*pair, tuning_units=2000)
            assert all(isinstance(estimate, Estimate) for estimate in estimates)
            fixed.append(estimates[0].p_value < 0.05)  # type: ignore[union-attr]
            always.append(estimates[1].p_value < 0.05)  # type: ignore[union-attr]
        wrong_at_end += fixed[-1]
        wrong_ever_fixed += any(fixed)
        wrong_ever_anytime += any(always)
    low, high = stats.binom.ppf([0.0005, 0.9995], experiments, 0.05)
    assert low <= wrong_at_end <= high
    assert wrong_ever_anytime <= high
    assert wrong_ever_fixed > 1.5 * high, "peeking must show as what it is"


@pytest.mark.parametrize("value", [0.1, 19.99, 1e6 + 0.1])
def test_rounding_of_sums_is_no_spread_between_units(value: float, rng: np.random.Generator) -> None:
    """Every unit alike: whether anything is left of the sums, and of which sign, must decide nothing."""
    fixed, other = (summarize(MEAN, np.full(1000, value * factor), None) for factor in (1.0, 1.0001))
    assert fixed.variance == other.variance == 0.0
    assert isinstance(anytime(fixed, other), NotEstimable)
    spread = summarize(MEAN, rng.normal(value, value / 100, 1000), None)
    for estimate in (anytime, welch):
        assert isinstance(estimate(fixed, spread), Estimate)


@pytest.mark.parametrize("units", [10, 100, 1000])
def test_a_ratio_that_is_the_same_for_every_unit_does_not_vary(units: int) -> None:
    for seed in range(20):
        own = np.random.default_rng(seed)
        shown = own.integers(1, 9, units).astype(np.float64)
        always, sometimes = summarize(RATIO, shown, shown), summarize(RATIO, own.binomial(shown.astype(int), 0.5) * 1.0, shown)
        assert always.variance == 0.0
        assert isinstance(anytime(always, always), NotEstimable)
        assert isinstance(anytime(always, sometimes), Estimate)
