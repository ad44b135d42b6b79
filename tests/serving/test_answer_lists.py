"""What an answer makes of a list: rules, pages, new items, chance, explanations, placements."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from zlib import crc32

import numpy as np
import pyarrow as pa
import pytest

from features.control_store import ControlStore
from serving.api.context import ApiContext
from serving.api.rules import RulePreview, preview_rules
from serving.asked import resolved
from serving.cache import CacheRead
from serving.errors import RequestError
from serving.explained_list import ExplainedList
from serving.filters import MAX_DEPTH, MAX_LENGTH
from serving.item_table import ItemTable
from serving.live_state import LiveVersion
from serving.page_cursor import decode_cursor
from serving.placements import Placement
from serving.recent_activity import RecentEvent, encode_events
from serving.rules import MAX_RULES, Rule, RuleBook
from serving.schemas import RecommendationRequest, Selection
from tests.serving.ladder import TRAINED, Ladder, fail, ranked, rows, with_items, with_rules


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


def test_a_users_page_that_caps_leave_short_is_filled_by_the_version_with_items_that_still_have_room(ladder: Ladder) -> None:
    with_rules(ladder, {"kind": "cap", "attribute": "categories", "limit": 1})

    def reply() -> bytes:
        _, request = ladder.asked[-1]
        able = np.arange(60)[ladder.live["1"].items.passing(request.selection, np.arange(60, dtype=np.int32))]
        return ranked(*(able[able % 2 == 0] if not request.selection else able).tolist()).encode()

    ladder.reply = reply
    assert rows(ladder, ladder.ask(top_k=2)) == [0, 1]  # even and odd ones are of one kind each
    assert [len(request.selection.capped) for _, request in ladder.asked] == [0, 1]
    assert ladder.cache.written == [("1", "u:u")]
    ladder.asked.clear()
    ladder.cache.held = CacheRead(ranked(*range(0, 60, 2)), b"", True)
    answer = ladder.ask(top_k=2)
    assert (answer.served_from, rows(ladder, answer)) == ("online", [0, 1])
    assert [len(request.selection.capped) for _, request in ladder.asked] == [1]
    scores = [item["score"] for item in answer.items]
    assert scores == sorted(scores, reverse=True)
    ladder.cache.held = CacheRead(ranked(0), b"", True)  # all but one shown on earlier pages
    answer = ladder.ask(top_k=3)
    assert rows(ladder, answer) == [0, 1]
    assert answer.next_cursor is not None
    ladder.cache.held = CacheRead(ranked(*range(0, 60, 2)), b"", True)
    ladder.reply = fail
    assert rows(ladder, ladder.ask(top_k=2)) == [0]  # a short page is better than another list


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


def test_a_context_of_any_size_and_depth_is_read_and_not_kept(ladder: Ladder) -> None:
    with_rules(ladder, {"kind": "exclude", "items": 'item_id == "i030"', "when": '"kids" in device'})
    deep: list[object] = []
    for _ in range(1000):
        deep = [deep]
    for device, first in ((deep, 30), ("x" * 1_000_000, 30), (["kids"] * 1000, 31), ("kids", 31)):
        assert rows(ladder, ladder.ask(context={"device": device}))[0] == first
    assert sum(len(str(key)) for key in ladder.snapshot.rules._plans) < 1000


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


def test_new_items_take_no_place_that_the_version_can_fill(ladder: Ladder) -> None:
    with_items(ladder, {f"new{n}": {"categories": ["Comedy"]} for n in range(9)})
    comedy = Selection(category=("Comedy",))
    ladder.cache.held = CacheRead(ranked(0, 1, 2, 3), b"", True)
    answer = ladder.ask(selection=comedy)
    assert answer.served_from == "online"
    assert rows(ladder, answer) == [30, 32, 34, 36, 38]
    assert ladder.asked[-1][1].selection == comedy
    ladder.cache.held = CacheRead(ranked(0, 1, 2, 3, mark=-1), b"", True)
    with_rules(ladder, {"kind": "include", "items": '"Comedy" in categories'})
    ladder.reply = lambda: ranked(*(range(4) if not ladder.asked[-1][1].selection else range(10, 30))).encode()
    assert rows(ladder, ladder.ask()) == [10, 12, 14, 16, 18]  # the second hop asks for what the rule lets through


def test_candidates_that_came_after_the_training_follow_those_that_the_version_ranks(ladder: Ladder) -> None:
    with_items(ladder, {"new1": {}, "new2": {}, "new3": {}})
    ladder.reply = lambda: ranked(2, 1, complete=True).encode()
    answer = ladder.ask(candidates=("new3", "i001", "new1", "i002"), exclude=("new1",))
    assert [(item["item_id"], item["source"]) for item in answer.items] == [("i002", "knn"), ("i001", "knn"), ("new3", "new")]
    ladder.reply = lambda: ranked(complete=True).encode()
    assert [item["item_id"] for item in ladder.ask(candidates=("new2",)).items] == ["new2"]


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


def test_in_a_preview_of_rules_chance_moves_nothing_and_no_new_item_counts_as_shown(ladder: Ladder, make_config) -> None:
    with_items(ladder, {f"new{n}": {} for n in range(5)})
    config = make_config()
    ControlStore(config.control_url).create().close()
    context, body = ApiContext(config, lambda: None, ladder.answerer), RulePreview(rules=[], request={"placement": "chance"})
    for _ in range(10):
        shown = asyncio.run(preview_rules(body, context, "t"))
        assert shown["before"]["recommended_items"]
        assert not shown["moved"]
    assert not ladder.cache.new_items.counts
    assert drawn(ladder) <= {f"new{n}" for n in range(5)}


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
