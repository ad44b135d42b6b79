"""Sample-ratio checks and sample sizes agree with published cases and with simulation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments.errors import ExperimentError
from experiments.inference import NotEstimable, anytime_critical_value
from experiments.power import minimum_detectable_effect, sample_size
from experiments.srm import RatioCheck, check_ratio, log_bayes_factor


def test_zero_weight_variants_take_no_degree_of_freedom() -> None:
    check = check_ratio([5100, 4900, 0], [0.5, 0.5, 0])
    assert isinstance(check, RatioCheck)
    assert check.p_value == pytest.approx(0.0455, abs=1e-4)  # and not 0.135
    assert check.expected == (5000, 5000, 0)
    assert not check.mismatch


def test_a_unit_in_a_variant_without_weight_is_a_mismatch() -> None:
    check = check_ratio([500, 500, 1], [0.5, 0.5, 0])
    assert isinstance(check, RatioCheck)
    assert check.mismatch


def test_tea_tasting_case(shared: Path) -> None:
    expected = json.loads((shared / "vectors" / "tea_tasting_ratio_cuped_srm.json").read_text())["cases"]["srm_norm"]
    check = check_ratio([expected["control"], expected["treatment"]], [1, 1])
    assert isinstance(check, RatioCheck)
    assert check.p_value == pytest.approx(expected["pvalue"], rel=1e-9)


def test_too_little_data_is_said() -> None:
    assert check_ratio([0, 0], [1, 1]) == NotEstimable("no unit was exposed yet")
    assert isinstance(check_ratio([4, 4], [1, 1]), NotEstimable)


def test_ssrm_log_marginals(shared: Path) -> None:
    for case in json.loads((shared / "vectors" / "sequential_srm.json").read_text())["cases"][:2]:
        counts = np.cumsum(case["data"], axis=0).astype(float)
        for so_far, alternative, null in zip(counts, case["expected_log_m1"], case["expected_log_m0"], strict=True):
            found = log_bayes_factor(so_far, np.array(case["null"]), np.array(case["alpha0"], dtype=float))
            assert found == pytest.approx(alternative - null, abs=1e-9)


def test_savvi_stopping_time(shared: Path) -> None:
    case = json.loads((shared / "vectors" / "sequential_srm.json").read_text())["cases"][2]
    shares, stream = np.array(case["null"]), case["stream_categories"]
    counts, smallest, stopped_at = np.zeros(3), 1.0, None
    for number, category in enumerate(stream, start=1):
        counts[category] += 1
        smallest = min(smallest, float(np.exp(-log_bayes_factor(counts, shares, case["concentration"] * shares))))
        if stopped_at is None and smallest <= case["alpha"]:
            stopped_at = number
            assert smallest == pytest.approx(case["expected"]["p_value"], rel=1e-6)
    assert stopped_at == case["expected"]["stop_n"]


def test_sample_sizes_of_r(shared: Path) -> None:
    cases = json.loads((shared / "vectors" / "statsmodels_power_R.json").read_text())["cases"]
    values = next(case["values"] for case in cases if case["test"] == "TestNormalIndPower1")
    assert sample_size(values["d"], 1.0, alpha=values["sig_level"], power=values["power"]).control == values["n"]
    assert sample_size(0.2, 1.0).total == 2 * 393  # Cohen's table


@pytest.mark.parametrize("tuning_units", [None, 5000])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.9, 0.1)])
def test_size_and_effect_are_inverse(tuning_units: int | None, weights: tuple[float, float]) -> None:
    size = sample_size(0.05, 1.0, weights=weights, tuning_units=tuning_units)
    assert size.treatment / size.total == pytest.approx(weights[1], abs=1e-3)
    assert minimum_detectable_effect(size.total, 1.0, weights=weights, tuning_units=tuning_units) == pytest.approx(0.05, rel=1e-2)


def test_looking_at_any_time_costs_units() -> None:
    fixed, sequential = sample_size(0.1, 1.0).total, sample_size(0.1, 1.0, tuning_units=5000).total
    assert 1.2 < sequential / fixed < 3


def test_the_promised_power_is_what_simulation_finds(rng: np.random.Generator) -> None:
    size = sample_size(0.2, 1.0, weights=(0.5, 0.5), tuning_units=800)
    experiments = 4000
    error = np.sqrt(1 / size.control + 1 / size.treatment)
    found = rng.normal(0.2, error, experiments) / error > anytime_critical_value(size.total, 0.05, 800)
    low, high = stats.binom.ppf([0.0005, 0.9995], experiments, 0.8)
    assert low <= found.sum() <= high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0), "effect 0.0 must be"),
        ((0.1, 0.0), "standard deviation 0.0 must be"),
        ((1e-9, 1.0), "no sample below"),
    ],
)
def test_what_cannot_be_sized_is_said(arguments: tuple[float, float], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        sample_size(*arguments, tuning_units=5000)
