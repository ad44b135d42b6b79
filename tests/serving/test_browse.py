"""Popular, trending, seasonal and similar items: order, filters, and what comes next where a list runs short."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from experiments.assignment import AssignmentPlan
from features.catalogue import Catalogue
from features.trending import WINDOWS_S, TrendingBoard
from serving.browse import Browser
from serving.cache import CacheRead
from serving.cached_list import CachedList
from serving.errors import RequestError
from serving.item_table import ItemTable
from serving.live_state import LiveVersion, Snapshot
from serving.messages import ComputeRequest
from serving.metrics import GatewayMetrics
from serving.request_parsing import parse_browse
from serving.rules import Rule, RuleBook
from serving.schemas import Selection
from serving.trend_lists import TrendLists

AT = datetime(2026, 1, 1, tzinfo=UTC)


class Shop:
    """A browser over the planted items; version 1 answers what it is told."""

    def __init__(self, config, bundle) -> None:
        live = LiveVersion("1", ItemTable.from_bundle(bundle), ("knn", "popular"), AT)
        self.snapshot = Snapshot(live, {"1": live}, AssignmentPlan([]), {}, live.items, AT)
        self.trends = TrendLists(config)
        self.reply: CachedList | None = None
        self.written: list[str] = []
        self.held: CachedList | None = None
        self.browser = Browser(config, self, self.compute, lambda: self.snapshot, self.trends, GatewayMetrics())  # type: ignore[arg-type]

    async def read(self, version: str, unit: str) -> CacheRead:
        return CacheRead(self.held, b"", True)

    def write(self, version: str, unit: str, blob: bytes) -> None:
        self.written.append(unit)

    async def compute(self, version: str, request: ComputeRequest) -> bytes:
        if self.reply is None:
            raise RuntimeError("replica died")
        return self.reply.encode()

    def trending(self, query: bytes = b"") -> list[tuple[str, str]]:
        shown = self.browser.trending(*parse_browse(query, with_window=True))
        return [(item["item_id"], item["source"]) for item in shown["items"]]

    def similar(self, item_id: str, query: bytes = b"top_k=4") -> list[tuple[str, str]]:
        shown = asyncio.run(self.browser.similar(item_id, parse_browse(query)[0]))
        return [(item["item_id"], item["source"]) for item in shown["items"]]


@pytest.fixture
def shop(make_config, bundle) -> Shop:
    return Shop(make_config(), bundle)


def board(**segments: list[str]) -> TrendingBoard:
    rows = [(name.replace("_", "="), item, float(10 - n)) for name, items in segments.items() for n, item in enumerate(items)]
    columns = {"segment": [row[0] for row in rows], "item_id": [row[1] for row in rows]}
    return TrendingBoard(0, pa.table({**columns, **{name: [row[2] for row in rows] for name in WINDOWS_S}}))


def test_trending_goes_from_the_segment_over_everybody_to_popular_items(shop: Shop) -> None:
    assert {source for _, source in shop.trending()} == {"popular"}
    shop.trends.board = board(**{"": ["i001", "i002", "gone"], "region_es": ["i041"]})
    assert shop.trending(b"top_k=3") == [("i001", "trending"), ("i002", "trending"), shop.trending(b"top_k=9")[2]]
    assert shop.trending(b"top_k=2&region=es") == [("i041", "trending"), ("i001", "trending")]
    assert shop.trending(b"top_k=2&filter=year>1981")[0] == ("i002", "trending")
    scores = [item["score"] for item in shop.browser.trending(*parse_browse(b"region=es", with_window=True))["items"]]
    assert scores == sorted(scores, reverse=True)
    with pytest.raises(RequestError) as caught:
        shop.trending(b"window=2d")
    assert caught.value.field == "window"


def test_popular_items_of_a_window_are_those_taken_in_it(shop: Shop) -> None:
    shop.trends.board = board(**{"": ["i041", "i002"]})

    def popular(query: bytes) -> list[str]:
        return [item["item_id"] for item in shop.browser.popular(*parse_browse(query, with_window=True))["items"]]

    assert popular(b"top_k=2&window=7d") == ["i041", "i002"]
    assert "i041" not in popular(b"top_k=2")
    with pytest.raises(RequestError) as caught:
        popular(b"window=")
    assert caught.value.field == "window"


def test_a_season_is_a_window(shop: Shop) -> None:
    shop.trends.season = (np.array(["i007", "i003"], dtype=object), np.array([5.0, 2.0]))
    assert shop.trending(b"window=season&top_k=3")[:2] == [("i007", "seasonal"), ("i003", "seasonal")]


def test_similar_items_are_the_versions_then_those_of_the_same_words(shop: Shop) -> None:
    now = datetime.now(UTC).timestamp()
    shop.reply = CachedList(
        np.array([8, 9], np.int32), np.array([2, 1], np.float32), np.zeros(2, np.uint8), round(now * 1e6), 0, complete=True
    )
    found = shop.similar("i004")
    assert found[:2] == [("i008", "knn"), ("i009", "knn")]
    assert all(source == "content" and int(item[1:]) % 2 == 0 for item, source in found[2:])
    assert "i004" not in [item for item, _ in shop.similar("i004", b"top_k=100")]
    assert shop.written == ["i:i004", "i:i004"]
    shop.reply = None
    assert {source for _, source in shop.similar("i004")} == {"content"}
    with pytest.raises(RequestError) as caught:
        shop.similar("no-such")
    assert caught.value.status == 404


def test_a_list_with_items_that_the_version_lacks_is_not_shown(shop: Shop) -> None:
    shop.reply = CachedList(np.array([8, 60], np.int32), np.array([2, 1], np.float32), np.zeros(2, np.uint8), 1, 0, complete=True)
    assert {source for _, source in shop.similar("i004")} == {"content"}
    assert shop.written == []


def test_a_kept_list_of_similar_items_lacks_none_that_has_come_back_since(shop: Shop) -> None:
    items, now_us = shop.snapshot.items, time.time_ns() // 1000
    whole = CachedList(np.array([8], np.int32), np.ones(1, np.float32), np.zeros(1, np.uint8), now_us, 0, complete=True)
    shop.held = whole
    shop.reply = replace(whole, item_idx=np.array([9], np.int32))
    assert shop.similar("i020")[0] == ("i008", "knn")
    items.set_available("i009", False)
    items.set_available("i009", True)
    assert shop.similar("i020")[0] == ("i009", "knn")
    assert shop.written == ["i:i020"]


def test_a_filter_of_similar_items_is_asked_of_the_version_whatever_is_kept_for_all(shop: Shop) -> None:
    asked: list[Selection] = []

    def listed(*rows: int) -> CachedList:
        count = len(rows)
        return CachedList(
            np.array(rows, np.int32),
            np.linspace(2, 1, count, dtype=np.float32),
            np.zeros(count, np.uint8),
            time.time_ns() // 1000,
            0,
            True,
        )

    async def compute(version: str, request: ComputeRequest) -> bytes:
        asked.append(request.selection)
        return (listed(30, 31, 32, 33, 34) if request.selection else listed(8, 9, 30)).encode()

    shop.browser._compute = compute
    cold = shop.similar("i020", b"top_k=4&filter=year>=2010")
    shop.held = listed(8, 9, 30)  # short of `k`, so called complete, but each source gave only so many
    assert shop.similar("i020", b"top_k=4&filter=year>=2010") == cold == [(f"i0{row}", "knn") for row in (30, 31, 32, 33)]
    assert [one.filter for one in asked] == ["year>=2010"] * 2
    asked.clear()
    shop.snapshot = replace(shop.snapshot, rules=RuleBook([Rule(name="r", kind="include", items="year >= 1988")]))
    assert shop.similar("i020", b"top_k=2") == [("i008", "knn"), ("i009", "knn")]  # kept for all, and enough under the rule
    assert asked == []
    shop.snapshot = replace(shop.snapshot, rules=RuleBook([Rule(name="r", kind="include", items="year >= 2010")]))
    assert shop.similar("i020", b"top_k=2") == [("i030", "knn"), ("i031", "knn")]
    assert [one.required for one in asked] == [("year >= 2010",)]


def test_an_item_that_was_deleted_has_no_similar_ones_and_one_that_is_sold_out_has(
    shop: Shop, make_config, fill_catalogue, item_attributes: pa.Table
) -> None:
    catalogue = Catalogue(fill_catalogue(make_config().control_url, item_attributes), "planted")
    shop.snapshot.items.set_available("i004", False)
    catalogue.patch_item("i004", {"available": False})
    assert shop.similar("i004")
    catalogue.delete_item("i004")
    with pytest.raises(RequestError) as caught:
        shop.similar("i004")
    assert (caught.value.status, caught.value.field) == (404, "item_id")


def test_a_new_item_has_similar_items_at_once(shop: Shop) -> None:
    items = shop.snapshot.items.with_items({"fresh": {"categories": ["Film > Drama > Noir"]}})
    live = replace(shop.snapshot.champion, items=items)
    shop.snapshot = replace(shop.snapshot, champion=live, versions={"1": live}, items=items)
    assert all(int(item[1:]) % 2 == 1 and source == "content" for item, source in shop.similar("fresh"))


def test_rules_reach_lists_that_are_nobodys_own(shop: Shop) -> None:
    shop.snapshot = replace(shop.snapshot, rules=RuleBook([Rule(name="p", kind="pin", item_ids=("i044",))]))
    assert shop.browser.popular(parse_browse(b"")[0])["items"][0]["item_id"] == "i044"
    assert shop.trending()[0][0] == "i044"


def pages(ask: Callable[[bytes], dict[str, Any]], top_k: int) -> list[list[str]]:
    """Ids of the items of each page, down to the one without a cursor."""
    found, cursor = list[list[str]](), ""
    while True:
        page = ask(b"top_k=%d&cursor=%s" % (top_k, cursor.encode()))
        found.append([item["item_id"] for item in page["items"]])
        if (cursor := page["next_cursor"]) is None:
            return found


def enlarge(shop: Shop, num_items: int) -> None:
    """Let the shop have so many items, the first the most popular, all but the last of one category."""
    categories = [["Comedy"]] * (num_items - 1) + [["Drama"]]
    table = pa.table({"item_id": [f"n{n}" for n in range(num_items)], "categories": categories})
    items = ItemTable.from_arrow(table, np.arange(num_items, dtype=np.int32))
    live = replace(shop.snapshot.champion, items=items)
    shop.snapshot = replace(shop.snapshot, champion=live, versions={"1": live}, items=items)


@pytest.mark.parametrize(("num_items", "shown"), [(640, 640), (600, 600), (1200, 1100)])
def test_pages_of_everybodys_lists_go_on_to_the_last_item_or_the_cursors_bound(shop: Shop, num_items: int, shown: int) -> None:
    enlarge(shop, num_items)
    shop.trends.board = board(**{"": [f"n{n}" for n in range(500, 560)]})
    for found in (
        pages(lambda query: shop.browser.popular(*parse_browse(query, with_window=True)), 100),
        pages(lambda query: shop.browser.trending(*parse_browse(query, with_window=True)), 100),
    ):
        ids = [item for page in found for item in page]
        assert len(ids) == len(set(ids)) == shown
        assert all(found)


def test_pages_of_similar_items_go_on_to_the_last_one(shop: Shop) -> None:
    enlarge(shop, 702)
    asked: list[int] = []

    async def compute(version: str, request: ComputeRequest) -> bytes:
        asked.append(request.k)
        rows = np.arange(1, min(request.k, 450) + 1, dtype=np.int32)
        scores, sources = np.linspace(2, 1, len(rows), dtype=np.float32), np.zeros(len(rows), np.uint8)
        return CachedList(rows, scores, sources, 0, 0, complete=len(rows) < request.k).encode()

    shop.browser._compute = compute
    found = pages(lambda query: asyncio.run(shop.browser.similar("n0", parse_browse(query)[0])), 100)
    assert [item for page in found[:4] for item in page] == [f"n{n}" for n in range(1, 401)]
    assert sorted(item for page in found for item in page) == sorted(f"n{n}" for n in range(1, 701))
    assert all(found)
    assert asked[:2] == [200, 400]
    assert shop.written == ["i:n0"]  # lists of another length are nobody else's


def test_popular_pages_do_not_repeat(shop: Shop) -> None:
    first = shop.browser.popular(parse_browse(b"top_k=30")[0])
    second = shop.browser.popular(parse_browse(b"top_k=30&cursor=" + first["next_cursor"].encode())[0])
    assert len({item["item_id"] for item in (*first["items"], *second["items"])}) == 60


def test_where_caps_leave_a_page_short_it_goes_on_to_items_that_still_have_room(shop: Shop) -> None:
    kinds = ["Common"] * 500 + [f"k{n % 30}" for n in range(500)]
    table = pa.table(
        {"item_id": [f"n{n}" for n in range(1000)], "categories": [[kind] for kind in kinds], "tags": [["t"]] * 999 + [[]]}
    )
    items = ItemTable.from_arrow(table, np.arange(1000, dtype=np.int32))
    live = replace(shop.snapshot.champion, items=items)
    rules = RuleBook([Rule(name="cap", kind="cap", attribute="categories", limit=1)])
    shop.snapshot = replace(shop.snapshot, champion=live, versions={"1": live}, items=items, rules=rules)
    shop.trends.board = board(**{"": ["n7", "n8"]})
    asked: list[Selection] = []

    async def compute(version: str, request: ComputeRequest) -> bytes:
        asked.append(request.selection)
        rows = np.arange(200, 800, dtype=np.int32)
        rows = rows[items.passing(request.selection, rows)][: request.k]
        return CachedList(rows, np.linspace(2, 1, len(rows), dtype=np.float32), np.zeros(len(rows), np.uint8), 0, 0).encode()

    shop.browser._compute = compute
    first = [f"n{n}" for n in range(500, 509)]
    popular = [item["item_id"] for item in shop.browser.popular(parse_browse(b"")[0])["items"]]
    assert popular == ["n0", *first]
    assert shop.trending() == [("n7", "trending"), *((item, "popular") for item in first)]
    assert shop.similar("n900", b"top_k=10") == [("n200", "knn"), *((item, "knn") for item in first)]
    assert [one.capped for one in asked] == [(), (("categories", ("Common",), None),)]
    shop.reply = None
    shop.browser._compute = shop.compute
    alike = [int(item[1:]) for item, _ in shop.similar("n900", b"top_k=40")]  # by words alone, of which all but one share some
    assert sorted(kinds[row] for row in alike) == sorted(set(kinds))


def test_a_cap_of_none_leaves_the_items_without_the_attribute_however_deep_they_are(shop: Shop) -> None:
    premium = [True] * 900 + [None] * 20
    table = pa.table({"item_id": [f"n{n}" for n in range(920)], "premium": premium})
    items = ItemTable.from_arrow(table, np.arange(920, dtype=np.int32))
    rules = [Rule(name="cap", kind="cap", attribute="premium", limit=0), Rule(name="pin", kind="pin", item_ids=("n3",))]
    shop.snapshot = replace(shop.snapshot, champion=None, versions={}, items=items, rules=RuleBook(rules[:1]))
    found = pages(lambda query: shop.browser.popular(parse_browse(query)[0]), 10)
    assert found == [[f"n{n}" for n in range(900, 910)], [f"n{n}" for n in range(910, 920)]]
    assert [item for item, _ in shop.trending(b"top_k=2")] == ["n900", "n901"]
    shop.snapshot = replace(shop.snapshot, rules=RuleBook(rules))
    assert [item for item, _ in shop.trending(b"top_k=2")] == ["n3", "n900"]  # a pin is stronger


def test_a_page_that_caps_have_made_short_is_not_the_last(shop: Shop) -> None:
    def capped(**cap: Any) -> list[list[str]]:
        shop.snapshot = replace(shop.snapshot, rules=RuleBook([Rule(name="cap", kind="cap", **cap)]))
        return pages(lambda query: shop.browser.popular(parse_browse(query)[0]), 10)

    short = capped(attribute="categories", limit=2)
    assert [len(page) for page in short] == [4] * 15  # two of each kind a page
    assert len({item for page in short for item in page}) == 60
    never = capped(attribute="item_id", limit=0, items='"Drama" in categories')
    assert [len(page) for page in never] == [10] * 3  # what is shown on no page leads to no empty one
