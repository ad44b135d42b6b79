"""Splits are exact, sticky and independent of each other; what must not move does not move."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from experiments.assignment import NOT_ASSIGNED, AssignmentPlan, Splitter, assign, check_exclusive
from experiments.errors import OverlapError, SpecError
from experiments.spec import ExperimentSpec, parse_spec

IDS = [f"user-{number}" for number in range(100_000)]


def make_spec(**changes: Any) -> ExperimentSpec:
    raw: dict[str, Any] = {
        "name": "ranking",
        "salt": "ranking-1",
        "variants": [
            {"name": "control", "model": "champion", "weight": 1},
            {"name": "treatment", "model": "challenger", "weight": 1},
        ],
        "metrics": {"primary": "ctr"},
    }
    return parse_spec({**raw, **changes})


def params_spec(**changes: Any) -> ExperimentSpec:
    variants = [{"name": "a", "params": {"diversity": 0.0}, "weight": 1}, {"name": "b", "params": {"diversity": 0.5}, "weight": 1}]
    return make_spec(**{"variants": variants, **changes})


@pytest.mark.parametrize("weights", [(1, 1), (0.9, 0.1), (1, 1, 1), (0.2, 0.3, 0.5), (3, 0, 1)])
@pytest.mark.parametrize("ids", [IDS, [str(number) for number in range(100_000)]], ids=["prefixed", "numbers"])
def test_split_follows_the_weights(weights: tuple[float, ...], ids: list[str]) -> None:
    variants = [{"name": f"v{index}", "model": "champion", "weight": weight} for index, weight in enumerate(weights)]
    spec = make_spec(variants=variants)
    counts = np.bincount(Splitter(spec).variant_indices(ids), minlength=len(weights))
    shares = np.asarray(spec.weights)
    assert np.abs(counts / len(ids) - shares).max() < 0.005
    used = shares > 0
    assert counts[~used].sum() == 0
    assert chisquare(counts[used], shares[used] * len(ids)).pvalue > 0.001


def test_traffic_share_and_variant_are_independent() -> None:
    splitter = Splitter(make_spec(traffic=0.5))
    indices = splitter.variant_indices(IDS)
    taking_part = indices != NOT_ASSIGNED
    assert abs(taking_part.mean() - 0.5) < 0.005
    counts = np.bincount(indices[taking_part], minlength=2)
    assert np.abs(counts / taking_part.sum() - 0.5).max() < 0.005
    assert chisquare(counts).pvalue > 0.001


def test_ramping_adds_units_and_moves_none() -> None:
    before = Splitter(make_spec(traffic=0.1)).variant_indices(IDS)
    after = Splitter(make_spec(traffic=0.6)).variant_indices(IDS)
    already_in = before != NOT_ASSIGNED
    assert (before[already_in] == after[already_in]).all()
    assert (after != NOT_ASSIGNED).sum() > 5 * already_in.sum()


def test_experiments_with_different_salts_are_independent() -> None:
    one = Splitter(make_spec(salt="first")).variant_indices(IDS)
    other = Splitter(make_spec(salt="second")).variant_indices(IDS)
    table = np.histogram2d(one, other, bins=2)[0]
    assert chi2_contingency(table).pvalue > 0.001


@settings(max_examples=60)
@given(
    traffic=st.floats(0, 1),
    holdout=st.floats(0, 0.9),
    weights=st.lists(st.floats(0.01, 100), min_size=2, max_size=6),
    layer_range=st.sampled_from([(0.0, 1.0), (0.0, 0.25), (0.3, 0.9)]),
    ids=st.lists(st.text(max_size=20), max_size=60),
)
def test_column_form_equals_one_by_one(
    traffic: float, holdout: float, weights: list[float], layer_range: tuple[float, float], ids: list[str]
) -> None:
    variants = [{"name": f"v{index}", "model": "champion", "weight": weight} for index, weight in enumerate(weights)]
    spec = make_spec(traffic=traffic, holdout=holdout, variants=variants, layer_range=layer_range)
    splitter = Splitter(spec)
    names = [variant.name for variant in spec.variants]
    one_by_one = [splitter.variant(unit_id) for unit_id in ids]
    expected = [NOT_ASSIGNED if variant is None else names.index(variant.name) for variant in one_by_one]
    assert splitter.variant_indices(ids).tolist() == expected


@pytest.mark.parametrize("missing", [None, ""])
def test_a_missing_id_is_in_no_experiment(missing: str | None) -> None:
    assert assign(make_spec(), missing) is None
    assert AssignmentPlan([make_spec()]).assign(missing) == []


def test_full_traffic_takes_every_unit() -> None:
    assert (Splitter(make_spec()).variant_indices(IDS[:20_000]) != NOT_ASSIGNED).all()


def test_layer_ranges_exclude_each_other_and_cover_the_layer() -> None:
    one = make_spec(name="one", salt="one", layer_range=(0, 0.4))
    other = make_spec(name="other", salt="other", layer_range=(0.4, 1))
    in_one = Splitter(one).variant_indices(IDS) != NOT_ASSIGNED
    in_other = Splitter(other).variant_indices(IDS) != NOT_ASSIGNED
    assert (in_one ^ in_other).all()
    assert abs(in_one.mean() - 0.4) < 0.005
    plan = AssignmentPlan([one, other])
    assert all(len(plan.assign(unit_id)) == 1 for unit_id in IDS[:200])


def test_held_out_units_are_in_no_experiment() -> None:
    one = Splitter(make_spec(name="one", salt="one", holdout=0.1)).variant_indices(IDS)
    other = Splitter(make_spec(name="other", salt="other", holdout=0.1)).variant_indices(IDS)
    assert ((one == NOT_ASSIGNED) == (other == NOT_ASSIGNED)).all()
    assert abs((one == NOT_ASSIGNED).mean() - 0.1) < 0.005


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([make_spec(name="one"), make_spec(name="two")], "overlap in layer 'model'"),
        ([make_spec(name="one"), make_spec(name="two", layer="home")], "both choose the model"),
        ([params_spec(name="one", layer="ui"), params_spec(name="two", layer="ui", unit="session_id")], "use one unit in a layer"),
        ([make_spec(), make_spec()], "is there twice"),
    ],
)
def test_experiments_that_could_meet_are_refused(specs: list[ExperimentSpec], message: str) -> None:
    with pytest.raises(OverlapError, match=message):
        check_exclusive(specs)


def test_parameters_may_be_tested_beside_a_model() -> None:
    plan = AssignmentPlan([make_spec(), params_spec(name="diversity", salt="diversity")])
    assigned = plan.assign("user-1")
    assert [one.experiment for one in assigned] == ["ranking", "diversity"]
    assert [one.model is None for one in assigned] == [False, True]


def test_the_unit_decides_which_id_is_hashed() -> None:
    plan = AssignmentPlan([make_spec(unit="session_id")])
    by_session = {plan.assign(None, f"s{number}")[0].variant for number in range(50)}
    assert by_session == {"control", "treatment"}
    assert plan.assign("user-1") == []
    assert len({plan.assign(user, "s1")[0].variant for user in IDS[:20]}) == 1


def test_targeting_is_asked_with_the_context() -> None:
    spec = make_spec(targeting='region == "es"')
    plan = AssignmentPlan([spec], lambda _: lambda context: context.get("region") == "es")
    assert plan.assign("user-1", None, {"region": "fr"}) == []
    assert len(plan.assign("user-1", None, {"region": "es"})) == 1
    with pytest.raises(SpecError, match="targeting"):
        AssignmentPlan([spec])
