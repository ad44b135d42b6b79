"""A list that goes on beyond caps shows what a greedy walk down the whole order would."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.asked import resolved
from serving.beyond_caps import continued
from serving.caps import full_values, with_values
from serving.item_table import ItemTable
from serving.rules import Rule, RuleBook, RulePlan
from serving.rungs import of_popular_items
from serving.schemas import RecommendationRequest, Selection
from serving.slate import Ranked, Wish
from tests.serving.test_slate import BRANDS, ITEMS, TAGS, N, greedy


def listed(rows: list[int]) -> Ranked:
    return Ranked(np.array(rows, np.int32), -np.array(rows, np.float32), np.zeros(len(rows), np.uint8))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["brand", "tags"]), st.integers(1, 4)), st.integers(1, 30), st.integers(1, 9))
def test_a_list_that_is_cut_shows_what_the_whole_one_would(limits: dict[str, int], top_k: int, step: int) -> None:
    def further(ranked: Ranked, selection: Selection) -> Ranked:
        able = ITEMS.mask(selection).copy()
        able[ranked.rows] = False
        return listed([*ranked.rows.tolist(), *np.flatnonzero(able)[:step].tolist()])

    wish = Wish(top_k, rules=RulePlan(caps=tuple((name, limit, None) for name, limit in limits.items())))
    start = list(range(top_k + step))[:N]
    assert continued(listed(start), ITEMS, wish, further).rows.tolist() == greedy(list(range(N)), limits, set())[:top_k]


@pytest.mark.parametrize("name", ["brand", "tags", "number", "available", "item_id", "nothing"])
def test_values_of_any_form_run_full_and_are_found_again(name: str) -> None:
    column, rows = ITEMS.columns.get(name), np.arange(10, dtype=np.int32)
    full = full_values(column, 1, None, rows)
    has = {
        "brand": lambda row: {BRANDS[row]} - {None},
        "tags": lambda row: set(TAGS[row]),
        "number": lambda row: {row},
        "available": lambda row: {True},
        "item_id": lambda row: {f"i{row}"},
        "nothing": lambda row: set[object](),
    }[name]
    assert set(full) == set().union(*(has(row) for row in rows.tolist()))
    assert with_values(column, full, N).tolist() == [bool(has(row) & set(full)) for row in range(N)]
    assert with_values(column, None, N).tolist() == [bool(has(row)) for row in range(N)]
    assert full_values(column, 1, np.zeros(N, dtype=bool), rows) == ()


@pytest.mark.parametrize(("limit", "first"), [(1, [0, *range(500, 504)]), (0, range(900, 905))])
def test_popular_items_for_a_user_of_whom_nothing_is_known_fill_the_page(limit: int, first: Sequence[int]) -> None:
    brands = ["common"] * 500 + [f"b{n % 9}" for n in range(400)] + [None] * 100
    table = ItemTable.from_arrow(
        pa.table({"item_id": [f"i{n}" for n in range(1000)], "brand": brands}), np.arange(1000, dtype=np.int32)
    )
    book = RuleBook([Rule(name="cap", kind="cap", attribute="brand", limit=limit)])
    asked = resolved(RecommendationRequest(user_id="u", top_k=20), {}, book, (), 0.0)
    found = of_popular_items(table, None, asked, datetime(2026, 1, 1, tzinfo=UTC))
    assert len(found.slate) == 20
    assert found.slate.rows.tolist()[:5] == list(first)


def test_a_selection_with_full_values_keeps_out_only_those_that_count() -> None:

    wanted = Selection(capped=(("categories", ("c1",), "number < 8"), ("brand", None, "number > 50")))
    kept = [not (n % 4 == 1 and n < 8) and not (BRANDS[n] is not None and n > 50) for n in range(N)]
    assert ITEMS.mask(wanted).tolist() == kept
