"""The fallback ladder rung by rung, with a compute hop and a cache that do as they are told."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from experiments.assignment import AssignmentPlan
from experiments.spec import parse_spec
from serving.cache import CacheRead
from serving.cached_list import CachedList
from serving.errors import FilterError
from serving.explained_list import ExplainedList
from serving.live_state import Snapshot, compile_targeting
from serving.recent_activity import RecentActivity, RecentEvent, encode_events
from serving.request_parsing import parse_body
from serving.schemas import Selection
from serving.version_lists import anonymous_answer
from tests.serving.ladder import TRAINED, Ladder, fail, ranked, rows, with_rules


def test_a_fresh_list_is_answered_without_a_hop(ladder: Ladder) -> None:
    ladder.cache.held = CacheRead(ranked(*range(20)), b"", True)
    answer = ladder.ask()
    assert (answer.served_from, answer.degraded, answer.model_version) == ("cache", False, "1")
    assert rows(ladder, answer) == [0, 1, 2, 3, 4]
    assert not ladder.asked


@pytest.mark.parametrize(
    ("cached", "activity", "request_changes"),
    [
        (None, b"", {}),
        (ranked(*range(20), mark=6), b"%016d" % 7, {}),
        (ranked(0, 1), b"", {}),
        (ranked(*range(20)), b"", {"seen": None}),
        (ranked(*range(20)), b"", {"selection": Selection(filter="year > 2010")}),
        (ranked(*range(20)), b"", {"top_k": 21}),
    ],
)
def test_misses_stale_lists_and_lists_that_are_too_short_are_computed(ladder: Ladder, cached, activity, request_changes) -> None:
    ladder.cache.held = CacheRead(cached, activity, True)
    answer = ladder.ask(**request_changes)
    assert (answer.served_from, answer.degraded) == ("online", False)
    assert len(ladder.asked) == 1
    assert ladder.asked[0][1].activity == activity


def test_only_lists_that_anybody_could_use_again_are_kept(ladder: Ladder) -> None:
    ladder.ask()
    ladder.ask(seen=None)
    ladder.ask(selection=Selection(category=("Comedy",)))
    ladder.ask(exclude=("i001",))
    ladder.ask(candidates=("i001",))
    ladder.ask(recent_items=("i001",))
    assert ladder.cache.written == [("1", "u:u")]
    ladder.cache.held = CacheRead(None, b"", False)
    assert ladder.ask().served_from == "online"
    assert len(ladder.cache.written) == 1


def test_a_short_list_that_is_all_there_is_is_not_computed_again(ladder: Ladder) -> None:
    ladder.cache.held = CacheRead(ranked(3, 4, complete=True), b"", True)
    assert rows(ladder, ladder.ask()) == [3, 4]
    assert not ladder.asked


def test_a_list_that_was_all_there_was_is_computed_again_where_items_have_come_back_since(ladder: Ladder) -> None:
    items, now_us = ladder.live["1"].items, time.time_ns() // 1000
    items.set_available("i030", False)
    ladder.cache.held = CacheRead(replace(ranked(3, 4, complete=True), computed_at_us=now_us), b"", True)
    ladder.ask()
    assert not ladder.asked  # what is gone is in no list that it could lack
    items.set_available("i030", True)
    items.set_available("i003", False)
    items.set_available("i004", False)
    assert rows(ladder, ladder.ask()) == [30, 31, 32, 33, 34]
    assert ladder.cache.written == [("1", "u:u")]  # for the next time
    later = replace(ranked(5, 6, complete=True), computed_at_us=now_us + 3_600_000_000)
    ladder.cache.held = CacheRead(later, b"", True)
    assert rows(ladder, ladder.ask()) == [5, 6]
    assert len(ladder.asked) == 1


@pytest.mark.parametrize("trouble", ["slow", "dead", "unreadable"])
def test_trouble_falls_to_the_stale_list_then_to_popular_items(ladder: Ladder, trouble: str) -> None:
    ladder.reply = {"slow": None, "dead": fail, "unreadable": lambda: b"?"}[trouble]
    activity = b"%016d" % 9 + encode_events([RecentEvent("i010", 1, True)])
    ladder.cache.held = CacheRead(ranked(10, 11, 12), activity, True)
    stale = ladder.ask()
    assert (stale.served_from, stale.degraded) == ("stale", True)
    assert rows(ladder, stale) == [11, 12]
    ladder.cache.held = CacheRead(None, activity, True)
    popular = ladder.ask()
    assert (popular.served_from, popular.degraded) == ("popular", True)
    assert len(popular.items) == 5
    assert 10 not in rows(ladder, popular)
    segment = ladder.ask(selection=Selection(region=("US",)))
    assert (segment.served_from, segment.degraded) == ("segment", True)
    assert all(row % 5 for row in rows(ladder, segment))


@pytest.mark.parametrize("row", [60, 2**31 - 1, -1])
@pytest.mark.parametrize("explain", [False, True])
def test_a_list_with_items_that_the_version_lacks_is_as_good_as_unreadable(ladder: Ladder, row: int, explain: bool) -> None:
    # Items that came after the training are the gateway's own: a version's list cannot mean them.
    live = replace(ladder.live["1"], items=ladder.live["1"].items.with_items({"new": {}}))
    ladder.snapshot = replace(ladder.snapshot, champion=live, versions={"1": live})
    wrong, right = ranked(*range(20), row), ranked(*range(30, 60))

    def reply(answer: CachedList) -> bytes:
        return ExplainedList(answer).encode() if explain else answer.encode()

    ladder.cache.held = CacheRead(wrong, b"", True)
    ladder.reply = lambda: reply(right)
    computed = ladder.ask(explain=explain)
    assert (computed.served_from, rows(ladder, computed)) == ("online", [30, 31, 32, 33, 34])
    ladder.reply = lambda: reply(wrong)
    written = list(ladder.cache.written)
    popular = ladder.ask(explain=explain)
    assert (popular.served_from, popular.degraded, len(popular.items)) == ("popular", True, 5)
    assert ladder.cache.written == written


def test_a_list_of_other_sources_is_as_good_as_unreadable(ladder: Ladder) -> None:
    wrong = replace(ranked(*range(20)), source=np.full(20, 3, np.uint8))
    ladder.cache.held, ladder.reply = CacheRead(wrong, b"", True), wrong.encode
    answer = ladder.ask()
    assert (answer.served_from, answer.degraded, len(answer.items)) == ("popular", True, 5)


def test_popular_items_leave_out_what_was_met_by_the_named_actions_and_what_was_rejected(ladder: Ladder) -> None:
    ladder.reply = fail
    now_us = time.time_ns() // 1000
    events = [
        RecentEvent.of("i000", now_us, "purchase"),
        RecentEvent.of("i001", now_us, "view"),
        RecentEvent.of("i002", 1, "purchase"),
    ]
    events += [RecentEvent.of("i003", now_us, "dislike"), RecentEvent.of("i004", now_us, "own-action")]
    ladder.cache.held = CacheRead(None, b"%016d" % 9 + encode_events(events), True)

    def missing(**asked: object) -> set[int]:
        seen = parse_body(asked).seen
        return set(range(6)) - set(rows(ladder, ladder.ask(seen=seen, top_k=60)))

    assert missing() == {0, 1, 2, 3, 4}
    assert missing(exclude_seen=False) == {3}
    assert missing(exclude_seen="purchase") == {0, 2, 3, 4}
    assert missing(exclude_seen=["purchase", "view"]) == {0, 1, 2, 3, 4}
    assert missing(exclude_seen={"actions": ["purchase"], "max_age_days": 1}) == {0, 3, 4}
    assert missing(exclude_seen={"max_age_days": 1}) == {0, 1, 3, 4}


def test_anonymous_lists_mean_popular_items_without_a_second_hop(ladder: Ladder) -> None:
    ladder.reply = lambda: ranked(anonymous=True).encode()
    first = ladder.ask()
    assert (first.served_from, first.degraded, len(first.items)) == ("popular", False, 5)
    ladder.cache.held = CacheRead(ranked(anonymous=True), b"", True)
    assert ladder.ask().served_from == "popular"
    assert len(ladder.asked) == 1
    ladder.reply = lambda: anonymous_answer(RecentActivity(), 5, explain=True)
    told = ladder.ask(explain=True)
    assert (told.served_from, told.degraded, rows(ladder, told)) == ("popular", False, rows(ladder, first))
    assert all(item["reason"] == "popular" and set(item["contributions"]) == {"popular"} for item in told.items)


def test_nobody_is_shown_what_he_rejected_though_nothing_else_is_known_of_him(ladder: Ladder) -> None:
    activity = b"%016d" % 9 + encode_events([RecentEvent.of("i000", 1, "dislike")])
    for cached in (None, ranked(anonymous=True, mark=9)):
        ladder.reply = lambda: ranked(anonymous=True).encode()
        ladder.cache.held = CacheRead(cached, activity, True)
        answer = ladder.ask(top_k=60)
        assert (answer.served_from, answer.degraded) == ("popular", False)
        assert sorted(rows(ladder, answer)) == list(range(1, 60))
    ladder.snapshot = Snapshot(None, {}, AssignmentPlan([]), {}, ladder.snapshot.items, TRAINED)
    assert sorted(rows(ladder, ladder.ask(top_k=60))) == list(range(1, 60))


def test_without_any_model_popular_items_are_the_answer(ladder: Ladder) -> None:
    ladder.snapshot = Snapshot(None, {}, AssignmentPlan([]), {}, ladder.snapshot.items, TRAINED)
    answer = ladder.ask(selection=Selection(category=("Comedy",)))
    assert (answer.served_from, answer.degraded, answer.model_version) == ("popular", False, None)
    assert all(row % 2 == 0 for row in rows(ladder, answer))


def test_a_delisted_item_leaves_every_rung(ladder: Ladder) -> None:
    items = ladder.live["1"].items
    items.set_available("i030", False)
    items.set_available("i000", False)
    try:
        assert 30 not in rows(ladder, ladder.ask())
        ladder.cache.held = CacheRead(ranked(0, *range(31, 50)), b"", True)
        assert 0 not in rows(ladder, ladder.ask())
    finally:
        items.set_available("i030", True)
        items.set_available("i000", True)


def experiment(**changes: object):
    variants = [{"name": "a", "model": "champion", "weight": 0}, {"name": "b", "model": "challenger", "weight": 1}]
    variants[0]["weight"] = 0.000001
    variants.append({"name": "c", "model": "challenger", "weight": 0.000001})
    raw = {"name": "e", "salt": "e", "variants": variants, "metrics": {"primary": "ctr"}}
    return parse_spec(raw | changes)


def test_an_experiment_chooses_the_pinned_version_and_a_missing_one_falls_to_the_champion(ladder: Ladder) -> None:
    plan = AssignmentPlan([experiment()])
    pins = {"e": {"a": "1", "b": "2", "c": "2"}}
    ladder.snapshot = Snapshot(ladder.live["1"], ladder.live, plan, pins, ladder.snapshot.items, TRAINED)
    answer = ladder.ask()
    assert answer.model_version == "2"
    assert answer.to_json()["assignments"] == [{"experiment": "e", "variant": "b"}]
    assert ladder.asked[-1][0] == "2"
    ladder.snapshot = Snapshot(ladder.live["1"], {"1": ladder.live["1"]}, plan, pins, ladder.snapshot.items, TRAINED)
    assert ladder.ask().model_version == "1"
    assert ladder.ask(model_version="1").assignments == []


def test_targeting_reads_the_context() -> None:
    applies = compile_targeting('region == "es" && age >= 18')
    assert applies({"region": "es", "age": 20})
    assert not applies({"region": "es", "age": 17})
    assert not applies({"region": "fr", "age": 20})
    assert not applies({})
    assert not applies({"region": 5, "age": [1]})


def test_a_filter_that_does_not_fit_is_refused_before_anything_is_asked(ladder: Ladder) -> None:
    with pytest.raises(FilterError):
        ladder.ask(selection=Selection(filter='year > "x"'))
    assert not ladder.asked


@pytest.mark.parametrize(
    ("expression", "position", "quoted"),
    [
        ("true) || (true", 4, "'true») || (true'"),
        ("year < 1980) || (false", 11, "'year < 1980») || (false'"),
        ("year >= ", 8, "'year >= »'"),
        ('year == "x"', 0, "'»year == \"x\"'"),
        ('available || year == "x"', 13, "'available || »year == \"x\"'"),
    ],
)
def test_a_wrong_filter_is_quoted_alone_beside_a_placements_and_rules(
    ladder: Ladder, expression: str, position: int, quoted: str
) -> None:
    with_rules(ladder, {"kind": "exclude", "items": "year == 1986"})
    with pytest.raises(FilterError) as caught:
        ladder.ask(placement="late", selection=Selection(filter=expression))
    assert caught.value.position == position
    assert str(caught.value).endswith(f"(near {quoted})")
    assert not ladder.asked


@pytest.mark.parametrize("everything", ["true || true", "(true) || (true)", "year < 1985 || true"])
def test_no_filter_shows_what_placement_and_rules_leave_out(ladder: Ladder, everything: str) -> None:
    with_rules(ladder, {"kind": "exclude", "items": "year == 1986"})
    ladder.cache.held = CacheRead(ranked(*range(20)), b"", True)
    assert rows(ladder, ladder.ask(placement="late", selection=Selection(filter=everything))) == [5, 7, 8, 9, 10]


def test_a_placements_or_variants_filter_that_does_not_fit_is_left_out_and_logged(
    ladder: Ladder, caplog: pytest.LogCaptureFixture
) -> None:
    variants = [{"name": name, "params": {"filter": "title > 1"}, "weight": 1} for name in "ab"]
    spec = {"name": "e", "salt": "s", "variants": variants, "metrics": {"primary": "ctr"}}
    ladder.snapshot = replace(ladder.snapshot, plan=AssignmentPlan([parse_spec(spec)]))
    with_rules(ladder, {"kind": "exclude", "items": "year == 1981"})
    ladder.cache.held = CacheRead(ranked(*range(20)), b"", True)
    with caplog.at_level("ERROR"):
        answer = ladder.ask(placement="wrong", selection=Selection(filter="year > 1980"))
    assert len(answer.assignments) == 1
    assert rows(ladder, answer) == [2, 3, 4, 5, 6], "the caller's filter and the rule hold"
    assert "'title > 1' of a placement" in caplog.text
    assert "'year == \"x\"' of a placement" in caplog.text


def test_a_boost_that_does_not_fit_is_refused_and_named(ladder: Ladder) -> None:
    with pytest.raises(FilterError) as refused:
        ladder.ask(boost=(('year > "x"', 1.0),))
    assert refused.value.field == "boost"
    assert not ladder.asked


def test_a_filter_that_nothing_passes_is_an_empty_answer(ladder: Ladder) -> None:
    ladder.reply = lambda: ranked(complete=True).encode()
    answer = ladder.ask(selection=Selection(filter="year > 3000"))
    assert answer.items == []
