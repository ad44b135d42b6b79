"""The wall clock of a study: who may start until when, and what is kept for what comes after."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from training.budget import (
    DRAWS_SHARE,
    END_SECONDS,
    END_SHARE,
    FUNNEL_SHARE,
    OVERRUN,
    QUICK_SHARE,
    SEARCH_SHARE,
    Budget,
    budget_of,
    part_of,
)
from training.members import with_members
from training.search_watch import hopeless
from training.study import Study, parse_study
from training.trial_log import TrialRecord
from training.trial_process import TOO_LONG

STUDY = parse_study({"name": "b", "sources": [{"model": "popularity"}, {"model": "sequential"}]}, "b.toml")
TWO_SLOW = parse_study(
    {"name": "b", "sources": [{"model": "sequential", "name": "one"}, {"model": "sequential", "name": "two"}]}, "b.toml"
)
HOUR = Budget(started=1000.0, minutes=60, refit_share=1.5)
AFTER = 3600 * (1 - END_SHARE - FUNNEL_SHARE) - END_SECONDS


def ended(source: str, model: str, *, seconds: float = 10.0, **metrics: float) -> TrialRecord:
    return TrialRecord(source, model, 0, {}, {}, "finished", 0.1, metrics, seconds)


def test_quick_models_leave_most_of_the_time_to_slow_ones() -> None:
    assert HOUR.quick_until(STUDY) == 1000 + QUICK_SHARE * 3600
    assert HOUR.quick_until(part_of(STUDY, ["popularity"])) == 1000 + SEARCH_SHARE * 3600


def test_a_trial_is_ended_in_time_unless_the_study_needs_it() -> None:
    optional = {"model": "popularity", "optional": True}
    slow = {"model": "sequential", "optional": True}
    study = parse_study({"name": "b", "sources": [optional, {"model": "ease"}, slow]}, "b.toml")
    quick_end = HOUR.quick_until(study)
    limit = 1000 + OVERRUN * QUICK_SHARE * 3600
    assert HOUR.over_at("popularity", study, {}, 1100.0, quick_end) == limit
    assert HOUR.over_at("ease", study, {}, 1100.0, quick_end) == float("inf")
    assert HOUR.over_at("ease", study, {"ease": ended("ease", "ease")}, 1100.0, quick_end) == limit
    # A first epoch, and then its refit at one and a half times of that.
    assert HOUR.over_at("sequential", study, {}, 2000.0, 3000.0) == pytest.approx(2000 + 1000 / 2.5)
    assert replace(HOUR, minutes=None).over_at("sequential", study, {}, 2000.0, float("inf")) == float("inf")


def test_the_search_ends_where_funnel_refit_and_registration_still_fit() -> None:
    assert HOUR.search_until({}) == pytest.approx(1000 + AFTER)
    knn = ended("popularity", "popularity", fit_seconds=100.0)
    assert HOUR.search_until({"popularity": knn}) == pytest.approx(1000 + AFTER - 150)


def test_a_funnel_that_learns_from_simulated_folds_leaves_them_their_share() -> None:
    simulated = replace(HOUR, simulated=True)
    assert simulated.search_until({}) == pytest.approx(HOUR.search_until({}) - DRAWS_SHARE * 3600)
    assert simulated.quick_until(STUDY) == pytest.approx(1000 + (1 - DRAWS_SHARE) * QUICK_SHARE * 3600)
    assert simulated.funnel_until({}) == HOUR.funnel_until({})  # the draws end by then
    asked = parse_study({"name": "b", "sources": [{"model": "popularity"}], "funnel": {"simulated_folds": 2}}, "b.toml")
    assert budget_of(0.0, 10, asked, rows=120, fit_rows=100) == Budget(0.0, 10, 1.2, simulated=True)


def test_a_first_slow_trial_shares_with_the_slow_sources_that_wait() -> None:
    alone = HOUR.slow_trial_end("sequential", STUDY, {}, now=1600.0)
    assert alone == pytest.approx(1000 + AFTER)
    shared = HOUR.slow_trial_end("one", TWO_SLOW, {}, now=1600.0)
    assert shared == pytest.approx(1600 + (1000 + AFTER - 1600) / 2)
    many = {"model": "sequential", "name": "one", "trials": 9, "space": {"dropout": {"type": "float", "low": 0.1, "high": 0.5}}}
    unequal = parse_study({"name": "b", "sources": [many, {"model": "sequential", "name": "two"}]}, "b.toml")
    assert HOUR.slow_trial_end("one", unequal, {}, now=1600.0) == pytest.approx(1600 + (1000 + AFTER - 1600) * 0.9)
    searched = {"one": ended("one", "sequential", epoch=10.0, epoch_seconds=20.0)}
    assert HOUR.slow_trial_end("two", unequal, searched, now=2000.0) == pytest.approx(2000 + (1000 + AFTER - 300 - 2000) * 0.1)
    refitted = ended("one", "sequential", epoch=10.0, epoch_seconds=20.0)
    second = HOUR.slow_trial_end("two", TWO_SLOW, {"one": refitted}, now=2000.0)
    assert second == pytest.approx(1000 + AFTER - 1.5 * 200)


def test_another_slow_trial_starts_only_where_it_could_get_somewhere() -> None:
    best = {"sequential": ended("sequential", "sequential", seconds=1000.0, epoch=10.0, epoch_seconds=40.0)}
    end = 1000 + AFTER
    assert HOUR.slow_trial_end("sequential", STUDY, best, now=end - 1200) == pytest.approx(end)
    assert HOUR.slow_trial_end("sequential", STUDY, best, now=end - 1000) is None
    assert HOUR.slow_trial_end("sequential", STUDY, {}, now=end + 1) is None


def grown(left: float, *earlier: TrialRecord, over: bool = False, budget: Budget = HOUR) -> dict[str, Any] | None:
    """What becomes of a trial of 20 epochs of 10 s, measured for 100 s, whose members cost 500 s each with their refit."""
    record = replace(ended("sequential", "sequential", seconds=300.0, epoch=20.0, epoch_seconds=10.0), config={"epochs": 20})
    now = 1000 + AFTER - left
    return with_members("sequential", STUDY, [*earlier, record], {"sequential": record}, budget, now, over=over)


def test_a_limited_search_ends_with_as_many_members_as_there_is_time_for() -> None:
    assert grown(1900.0) is None  # after another trial there would still be time for three
    assert grown(1700.0) == {"epochs": 20, "members": 3}
    assert grown(1100.0) == {"epochs": 20, "members": 2}
    assert grown(900.0) is None
    assert grown(3000.0) is None
    assert grown(3000.0, over=True) == {"epochs": 20, "members": 4}


def test_members_are_added_once_and_where_a_limit_says_how_many() -> None:
    three = replace(ended("sequential", "sequential"), config={"members": 3})
    assert grown(1700.0, three) is None
    assert grown(1700.0, budget=Budget(0.0, None, 1.5), over=True) is None
    knn = ended("popularity", "popularity")
    assert with_members("popularity", STUDY, [knn], {"popularity": knn}, HOUR, 1000.0, over=True) is None
    assert with_members("sequential", STUDY, [], {}, HOUR, 1000.0, over=True) is None


def test_without_a_limit_nothing_is_late() -> None:
    free = Budget(started=0.0, minutes=None, refit_share=1.0)
    assert free.quick_until(STUDY) == float("inf")
    assert free.slow_trial_end("sequential", STUDY, {}, now=1e12) == float("inf")


def test_a_source_is_given_up_when_its_data_does_not_allow_it_or_nothing_works() -> None:
    def failed(reason: str) -> TrialRecord:
        return TrialRecord("s", "m", 0, {}, {}, "failed", None, reason=reason)

    assert not hopeless([failed("ValueError: no")], "s")
    assert hopeless([failed("ValueError: no")] * 3, "s")
    assert hopeless([failed("NotTrainableError: there are no attributes")], "s")
    assert hopeless([failed(TOO_LONG)], "s")
    assert not hopeless([failed("ValueError: no"), ended("s", "m"), failed("ValueError: no"), failed("ValueError: no")], "s")


def test_the_study_with_some_of_its_sources_keeps_the_rest() -> None:
    part: Study = part_of(STUDY, ["sequential"])
    assert [s.source for s in part.sources] == ["sequential"]
    assert part.metric == STUDY.metric
