"""The fallback ladder rung by rung, with a compute hop and a cache that do as they are told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from zlib import crc32

import numpy as np
import pyarrow as pa
import pytest

from experiments.assignment import AssignmentPlan
from experiments.spec import parse_spec
from serving.answer import Answer
from serving.answers import Answerer
from serving.asked import resolved
from serving.cache import CacheRead
from serving.cached_list import CachedList
from serving.errors import FilterError, RequestError
from serving.explained_list import ExplainedList
from serving.exploration import NewItems
from serving.filters import MAX_DEPTH, MAX_LENGTH
from serving.item_table import ItemTable
from serving.live_state import LiveVersion, Snapshot, compile_targeting
from serving.messages import ComputeRequest
from serving.metrics import GatewayMetrics
from serving.page_cursor import decode_cursor
from serving.placements import Exploration, Placement
from serving.recent_activity import RecentActivity, RecentEvent, encode_events
from serving.redis_wire import RedisWire
from serving.request_parsing import parse_body
from serving.rules import MAX_RULES, Rule, RuleBook
from serving.schemas import RecommendationRequest, Selection
from serving.version_lists import anonymous_answer

TRAINED = datetime(2026, 1, 1, tzinfo=UTC)


class StubCache:
    """A cache that holds one value for everybody."""

    def __init__(self) -> None:
        self.held = CacheRead(None, b"", True)
        self.written: list[tuple[str, str]] = []
        self.new_items = NewItems(RedisWire("redis://127.0.0.1:1/0", 0.1), "shown")

    async def read(self, version: str | None, unit: str) -> CacheRead:
        return self.held

    def write(self, version: str, unit: str, blob: bytes) -> None:
        self.written.append((version, unit))


def ranked(*rows: int, mark: int = 0, complete: bool = False, anonymous: bool = False) -> CachedList:
    count = len(rows)
    return CachedList(
        np.array(rows, np.int32),
        np.linspace(1, 0.5, count, dtype=np.float32),
        np.zeros(count, np.uint8),
        5,
        mark,
        complete,
        anonymous,
    )


class Ladder:
    """An answerer over a world of 60 items with whatever goes wrong."""

    def __init__(self, config, bundle) -> None:
        items = ItemTable.from_bundle(bundle)
        self.live = {v: LiveVersion(v, items, ("knn", "popularity", "popular"), TRAINED) for v in ("1", "2")}
        self.snapshot = Snapshot(self.live["1"], self.live, AssignmentPlan([]), {}, items, TRAINED)
        self.cache, self.asked = StubCache(), list[tuple[str, ComputeRequest]]()
        self.reply: Callable[[], bytes] | None = lambda: ranked(*range(30, 60)).encode()
        self.answerer = Answerer(config, self.cache, self.compute, lambda: self.snapshot, GatewayMetrics())  # type: ignore[arg-type]

    async def compute(self, version: str, request: ComputeRequest) -> bytes:
        self.asked.append((version, request))
        if self.reply is None:
            await asyncio.sleep(60)
            raise AssertionError("not cancelled")
        return self.reply()

    def ask(self, **changes: object) -> Answer:
        return asyncio.run(self.answerer.recommend(RecommendationRequest(**({"user_id": "u", "top_k": 5} | changes))))


@pytest.fixture
def ladder(make_config, bundle) -> Ladder:
    chance = Placement(top_k=5, exploration=Exploration(slots=1, floor=1000))
    placements = {"chance": chance, "late": Placement(filter="year >= 1985"), "wrong": Placement(filter='year == "x"')}
    return Ladder(make_config(deadline_ms=50, precompute_k=30, placements=placements), bundle)


def rows(ladder: Ladder, answer: Answer) -> list[int]:
    return [ladder.live["1"].items.row(item["item_id"]) for item in answer.items]


def fail() -> bytes:
    raise RuntimeError("replica died")


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


def with_items(ladder: Ladder, items: dict[str, dict[str, object]]) -> None:
    live = replace(ladder.live["1"], items=ladder.live["1"].items.with_items(items))
    ladder.snapshot = replace(ladder.snapshot, champion=live, versions={"1": live})


def with_rules(ladder: Ladder, *rules: dict[str, object]) -> None:
    ladder.snapshot = replace(
        ladder.snapshot, rules=RuleBook([Rule.model_validate({"name": f"r{n}"} | one) for n, one in enumerate(rules)])
    )


def test_rules_reach_cached_computed_and_popular_lists_alike(ladder: Ladder) -> None:
    with_rules(ladder, {"kind": "pin", "item_ids": ["i058"], "position": 1}, {"kind": "exclude", "items": "year == 1980"})
    ladder.cache.held = CacheRead(ranked(*range(20)), b"", True)
    cached = ladder.ask()
    assert (cached.served_from, rows(ladder, cached)) == ("cache", [1, 58, 2, 3, 4])
    assert cached.items[1]["source"] == "pinned"
    ladder.cache.held = CacheRead(None, b"", True)
    ladder.reply = lambda: ranked(0, *range(30, 57)).encode()
    online = ladder.ask()
    assert (online.served_from, rows(ladder, online)) == ("online", [30, 58, 31, 32, 33])
    ladder.reply = fail
    popular = ladder.ask()
    assert (popular.served_from, rows(ladder, popular)[1]) == ("popular", 58)
    assert 0 not in rows(ladder, popular)


def test_a_list_computed_under_a_rules_filter_is_kept_without_it_and_asked_again_where_it_holds_too_little(ladder: Ladder) -> None:
    with_rules(ladder, {"kind": "include", "items": "year >= 2030"})
    ladder.reply = lambda: ranked(*range(30)).encode() if len(ladder.asked) == 1 else ranked(*range(50, 58)).encode()
    answer = ladder.ask()
    assert rows(ladder, answer) == [50, 51, 52, 53, 54]
    assert ladder.cache.written == [("1", "u:u")]
    assert [bool(request.selection) for _, request in ladder.asked] == [False, True]


def test_as_many_rules_as_there_may_be_hold_beside_any_legal_filter(ladder: Ladder) -> None:
    longest = "year == 1981" + " || year == 1981" * ((MAX_LENGTH - 12) // 16)
    excluded = [longest, *(f"year == {year}" for year in range(1983, 1983 + MAX_RULES - 2, 2))]
    included = [f"year > {year}" for year in range(MAX_RULES - len(excluded))]
    kinds = ["exclude"] * len(excluded) + ["include"] * len(included)
    with_rules(ladder, *({"kind": kind, "items": one} for kind, one in zip(kinds, excluded + included, strict=True)))
    assert len(ladder.snapshot.rules.rules) == MAX_RULES
    deepest = "(" * (MAX_DEPTH - 1) + "year != 2010" + ")" * (MAX_DEPTH - 1)
    legal = deepest + " && year != 2012" * ((MAX_LENGTH - len(deepest)) // 16)
    ladder.cache.held = CacheRead(ranked(*range(20)), b"", True)
    assert rows(ladder, ladder.ask()) == [0, 2, 4, 6, 8]
    ladder.cache.held = CacheRead(None, b"", True)
    assert rows(ladder, ladder.ask(selection=Selection(filter=legal))) == [34, 36, 38, 40, 42]
    ladder.reply = fail
    popular = ladder.ask(selection=Selection(filter=legal))
    assert (popular.served_from, len(popular.items)) == ("popular", 5)
    assert all(row % 2 == 0 for row in rows(ladder, popular))


def test_a_rule_holds_by_time_placement_and_context(ladder: Ladder) -> None:
    book = RuleBook(
        [
            Rule(name="a", kind="bury", items="year > 1", placements=("home",)),
            Rule(name="b", kind="bury", items="year > 2", when='region == "es"'),
            Rule(name="c", kind="bury", items="year > 3", starts_at=datetime(2026, 1, 2), ends_at=datetime(2026, 1, 3)),
            Rule(name="d", kind="bury", items="year > 4", enabled=False),
        ]
    )
    first = datetime(2026, 1, 1, tzinfo=UTC).timestamp()

    def names(placement: str | None, context: dict[str, object], day: float, only: tuple[str, ...] | None = None) -> str:
        return "".join(name for name, _ in book.plan(placement, context, first + 86_400 * (day - 1), only).buries)

    assert names(None, {}, 1) == ""
    assert names("home", {}, 1) == "a"
    assert names("home", {"region": "es"}, 2) == "abc"
    assert names("home", {"region": "es"}, 2, ("b",)) == "b"
    assert names(None, {"region": ["es"]}, 2.999) == "c"
    assert names(None, {"region": {"deep": 1}}, 3) == ""
    assert names(None, {}, 1) == ""


@pytest.mark.parametrize("condition", ["vip == true", "vip == 1", 'vip == "1"', '"1" in vip', "vip"])
def test_a_rule_holds_by_the_context_as_it_is_and_not_by_one_that_was_asked_before(condition: str) -> None:
    contexts: list[object] = [True, 1, 1.0, "1", ["1"], [1], [True], {"deep": 1}, None]

    def holding(book: RuleBook, value: object) -> bool:
        return bool(book.plan(None, {"vip": value}, 0.0).buries)

    rule = Rule(name="a", kind="bury", items="year > 1", when=condition)
    alone = [holding(RuleBook([rule]), value) for value in contexts]
    for step in (1, -1):
        shared = RuleBook([rule])
        assert [holding(shared, value) for value in contexts[::step]] == alone[::step]


def test_pages_do_not_repeat_whatever_happens_between_them(ladder: Ladder) -> None:
    ladder.cache.held = CacheRead(ranked(*range(20)), b"", True)
    first = ladder.ask()
    assert first.next_cursor is not None
    second = ladder.ask(shown=decode_cursor(first.next_cursor))
    assert rows(ladder, second) == [5, 6, 7, 8, 9]
    other = ItemTable.from_arrow(pa.table({"item_id": [f"i{n:03d}" for n in range(59, -1, -1)]}), np.arange(60, dtype=np.int32))
    switched = LiveVersion("3", other, ("knn", "popularity", "popular"), TRAINED)
    ladder.snapshot = replace(ladder.snapshot, champion=switched, versions={"3": switched})
    ladder.cache.held = CacheRead(ranked(*range(59, 35, -1)), b"", True)
    third = ladder.ask(shown=decode_cursor(second.next_cursor or ""))
    assert third.model_version == "3"
    assert [item["item_id"] for item in third.items] == [f"i{n:03d}" for n in range(10, 15)]


def test_a_page_hashes_its_own_items_and_no_others(ladder: Ladder, monkeypatch: pytest.MonkeyPatch) -> None:
    ladder.cache.held = CacheRead(ranked(*range(20)), b"", True)
    hashed: list[bytes] = []
    monkeypatch.setattr("serving.id_rows.crc32", lambda data: hashed.append(data) or crc32(data))
    first = ladder.ask()
    assert sorted(hashed) == [f"i{n:03d}".encode() for n in range(5)]
    ladder.ask(shown=decode_cursor(first.next_cursor or ""))
    assert sorted(hashed) == [f"i{n:03d}".encode() for n in range(10)]


def test_paging_to_the_end_shows_everything_once(ladder: Ladder) -> None:
    ladder.cache.held = CacheRead(ranked(*range(33), complete=True), b"", True)
    seen: list[int] = []
    cursor: str | None = ""
    while cursor is not None:
        answer = ladder.ask(shown=decode_cursor(cursor))
        seen += rows(ladder, answer)
        cursor = answer.next_cursor
    assert seen == list(range(33))


def test_no_cursor_leads_to_an_empty_page_where_the_end_is_known(ladder: Ladder) -> None:
    for listed, changes in ((ranked(*range(20), complete=True), {}), (ranked(anonymous=True), {"top_k": 20})):
        ladder.cache.held = CacheRead(listed, b"", True)
        sizes, cursor = [], ""
        while cursor is not None:
            answer = ladder.ask(shown=decode_cursor(cursor), **changes)
            sizes.append(len(answer.items))
            cursor = answer.next_cursor
        assert sizes in ([5, 5, 5, 5], [20, 20, 20])
    ladder.cache.held = CacheRead(ranked(*range(5)), b"", True)
    assert ladder.ask().next_cursor is not None  # the version may know more


def test_new_items_follow_page_by_page_however_many_there_are(ladder: Ladder) -> None:
    items = ladder.live["1"].items.with_items({f"new{n}": {} for n in range(500)})
    live = replace(ladder.live["1"], items=items)
    ladder.snapshot = replace(ladder.snapshot, champion=live, versions={"1": live})
    ladder.cache.held = CacheRead(ranked(*range(60), complete=True), b"", True)
    seen, cursor = [], ""
    while cursor is not None:
        answer = ladder.ask(shown=decode_cursor(cursor), top_k=80)
        assert answer.items
        seen += [item["item_id"] for item in answer.items]
        cursor = answer.next_cursor
    assert len(seen) == len(set(seen)) == 560


def test_items_that_came_after_the_training_fill_a_list_that_runs_short(ladder: Ladder) -> None:
    with_items(ladder, {"new1": {"categories": ["Comedy"]}, "new2": {"categories": ["Drama"]}})
    ladder.cache.held = CacheRead(ranked(0, 1, 2, complete=True), b"", True)
    answer = ladder.ask(selection=Selection(category=("Comedy",)))
    assert [(item["item_id"], item["source"]) for item in answer.items] == [("i000", "knn"), ("i002", "knn"), ("new1", "new")]


def test_new_items_that_the_user_rejected_or_met_fill_no_list(ladder: Ladder) -> None:
    with_items(ladder, {f"new{n}": {} for n in range(1, 4)})
    met = [RecentEvent.of("new1", 1, "dislike"), RecentEvent.of("new2", 1, "view")]
    ladder.cache.held = CacheRead(ranked(0, 1, mark=9, complete=True), b"%016d" % 9 + encode_events(met), True)
    assert [item["item_id"] for item in ladder.ask().items] == ["i000", "i001", "new3"]
    ladder.reply = lambda: ranked(0, 1, complete=True).encode()
    assert [item["item_id"] for item in ladder.ask(seen=None).items] == ["i000", "i001", "new2", "new3"]


def drawn(ladder: Ladder, **asked: object) -> set[str]:
    """What chance gives the last place of an answer."""
    answers = [ladder.ask(placement="chance", **asked) for _ in range(30)]
    return {answer.items[-1]["item_id"] for answer in answers}


def test_chance_shows_nothing_that_the_user_rejected_or_met_or_that_the_request_excludes(ladder: Ladder) -> None:
    with_items(ladder, {f"new{n}": {} for n in range(1, 6)})
    met = [RecentEvent.of("new1", 1, "dislike"), RecentEvent.of("new2", 1, "view")]
    for cached in (ranked(*range(20), mark=9), ranked(anonymous=True, mark=9)):
        ladder.cache.held = CacheRead(cached, b"%016d" % 9 + encode_events(met), True)
        assert drawn(ladder, exclude=("new3",)) == {"new4", "new5"}
    assert drawn(ladder, seen=None) == {"new2", "new3", "new4", "new5"}


def test_with_candidates_chance_and_pins_show_nothing_else(ladder: Ladder) -> None:
    with_items(ladder, {"new1": {}, "new2": {}})
    with_rules(ladder, {"kind": "pin", "item_ids": ["i050", "i003"], "position": 0})
    asked = ("i001", "i002", "i003")
    for reply in (lambda: ranked(1, 2, 3, complete=True).encode(), fail):
        ladder.reply = reply
        answers = [ladder.ask(placement="chance", candidates=asked, exclude=("i002",)) for _ in range(30)]
        assert {item["item_id"] for answer in answers for item in answer.items} == {"i001", "i003"}
        assert all(answer.items[0]["item_id"] == "i003" for answer in answers)
        assert drawn(ladder, candidates=(*asked, "new2")) == {"new2"}


def test_contributions_sum_to_the_score_where_new_items_fill_a_list_too(ladder: Ladder) -> None:
    items = ladder.live["1"].items.with_items({"fresh": {"year": 2030}})
    live = replace(ladder.live["1"], items=items)
    ladder.snapshot = replace(ladder.snapshot, champion=live, versions={"1": live})
    listed = ranked(*range(30, 40), complete=True)
    ladder.reply = ExplainedList(listed, ("source:knn",), listed.score[:, None], (None,) * 10).encode
    with_rules(ladder, {"kind": "boost", "items": "year > 2012", "weight": 2}, {"kind": "bury", "items": "year == 2019"})
    answer = ladder.ask(top_k=20, explain=True, boost=(("year >= 2012", 1.0),))
    assert {"fresh", "i030", "i039"} <= {item["item_id"] for item in answer.items}
    for item in answer.items:
        assert sum(item["contributions"].values()) == pytest.approx(item["score"], abs=1e-5)
    told = {item["item_id"]: item["reason"] for item in answer.items}
    assert told["fresh"] == "new in the catalogue; lifted by rule r0; lifted by boost"
    assert told["i039"].endswith("; lifted by rule r0; lifted by boost; lowered by rule r1")


def test_the_reason_names_what_adds_most_to_the_score_whichever_source_ranked_the_item_highest(ladder: Ladder) -> None:
    listed = replace(ranked(*range(30, 36), complete=True), source=np.array([1, 1, 0, 2, 1, 1], np.uint8))
    names = ("source:knn", "source:popularity", "feature:popularity_score", "feature:item_events_7d", "baseline")
    parts = np.array(
        [
            [0.9, 0.1, 0, 0, 3],  # popularity ranked it highest, what follows the history adds most
            [0, 0.2, 0, 0, 3],
            [0.4, 0.4, 0, 0, 0],
            [0, 0, 0, 0, -1],
            [0.1, 0, 0.3, 0, 0],
            [0.1, 0, 0, 0.3, 0],
        ],
        np.float32,
    )
    listed = replace(listed, score=parts.sum(axis=1))
    ladder.reply = ExplainedList(listed, names, parts, ("i001",) * 6).encode
    told = {item["item_id"]: (item["source"], item["reason"]) for item in ladder.ask(top_k=6, explain=True).items}
    interest = 'because of your interest in "Item 1"'
    assert told == {
        "i030": ("popularity", interest),
        "i031": ("popularity", "popular"),
        "i032": ("knn", interest),
        "i033": ("popular", "popular"),
        "i034": ("popularity", "popular"),
        "i035": ("popularity", "ranked by item_events_7d"),
    }


def test_an_item_is_popular_in_a_region_that_was_asked_for_and_that_it_is_for(ladder: Ladder) -> None:
    ladder.reply = fail

    def reasons(**changes: object) -> dict[str, str]:
        return {item["item_id"]: item["reason"] for item in ladder.ask(top_k=60, explain=True, **changes).items}

    assert set(reasons(context={"region": "FR"}).values()) == {"popular"}  # the context chooses no items
    chain = reasons(selection=Selection(region=("FR", "DE")))
    assert (chain["i001"], chain["i005"]) == ("popular in FR", "popular in DE")


def test_a_placement_gives_defaults_that_the_request_may_change(ladder: Ladder, make_config) -> None:
    home = Placement(top_k=3, filter='"Comedy" in categories', diversity=0.2)
    asked = [
        resolved(RecommendationRequest(user_id="u", placement="home", **changes), {"home": home}, RuleBook(), [], 0.0)
        for changes in ({}, {"top_k": 7, "diversity": 0.0, "selection": Selection(filter="year > 1")})
    ]
    assert (asked[0].top_k, asked[0].diversity, asked[0].selection) == (3, 0.2, Selection(required=('"Comedy" in categories',)))
    assert (asked[1].top_k, asked[1].diversity) == (7, 0.0)
    assert asked[1].selection == Selection(filter="year > 1", required=('"Comedy" in categories',))
    with pytest.raises(RequestError) as caught:
        ladder.ask(placement="nowhere")
    assert caught.value.field == "placement"


def test_a_preferred_language_that_the_cached_list_lacks_is_asked_of_the_version(ladder: Ladder) -> None:
    ladder.cache.held = CacheRead(ranked(*range(20)), b"", True)
    ladder.reply = lambda: ranked(50, 51, 52, 53, 54, 55).encode()
    chain = Selection(language=("fr", "en"))
    assert rows(ladder, ladder.ask(selection=chain)) == [0, 1, 2, 3, 4]  # items without languages are for everyone
    french = Selection(language=("fr", "en"), filter="size(languages) > 0")
    assert rows(ladder, ladder.ask(selection=french)) == [50, 51, 52, 53, 54]
    assert ladder.asked[-1][1].top_k == 5
