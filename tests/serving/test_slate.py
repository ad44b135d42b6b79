"""What is shown of a ranked list: caps and pins hold on any list, boosts, buries, diversity and preferences do what they say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.caps import capped_values, values_of, within_caps
from serving.diversity import diversified, similarity_features
from serving.item_table import ItemTable
from serving.rules import RulePlan
from serving.schemas import Selection
from serving.slate import PINNED, Ranked, Wish, arranged, capped_without

N = 60
RNG = np.random.default_rng(3)
BRANDS = [f"b{number}" if number < 5 else None for number in RNG.integers(0, 6, N)]
TAGS = [[f"t{number}" for number in RNG.integers(0, 6, RNG.integers(0, 4))] for _ in range(N)]
ITEMS = ItemTable.from_arrow(
    pa.table(
        {
            "item_id": [f"i{n}" for n in range(N)],
            "brand": BRANDS,
            "tags": TAGS,
            "number": list(range(N)),
            "categories": [[f"c{n % 4}"] for n in range(N)],
            "languages": [["fr"] if n % 10 == 0 else ["en"] for n in range(N)],
        }
    ),
    np.arange(N, dtype=np.int32),
)
lists = st.permutations(range(N)).flatmap(lambda order: st.integers(0, N).map(lambda length: order[:length]))


def ranked(rows: list[int]) -> Ranked:
    return Ranked(np.array(rows, np.int32), np.linspace(5, -3, len(rows), dtype=np.float32), np.zeros(len(rows), np.uint8))


def shown(rows: list[int], top_k: int = 10, selection: Selection | None = None, **wish: object) -> list[int]:
    asked = Wish(top_k, selection or Selection(), **wish)  # type: ignore[arg-type]
    return arranged(ranked(rows), ITEMS, asked).rows.tolist()


def greedy(rows: list[int], limits: dict[str, int], fixed: set[int]) -> list[int]:
    """The oracle: a walk down the list that takes what still fits."""
    counts: Counter[tuple[str, str]] = Counter()
    of = {"brand": lambda row: {BRANDS[row]} - {None}, "tags": lambda row: set(TAGS[row])}
    pairs = {row: [(name, value) for name in limits for value in of[name](row)] for row in rows}
    for row in fixed:
        counts.update(pairs[row])
    kept = []
    for row in rows:
        if row in fixed or all(counts[pair] < limits[pair[0]] for pair in pairs[row]):
            kept.append(row)
            if row not in fixed:
                counts.update(pairs[row])
    return kept


@settings(max_examples=300, deadline=None)
@given(lists, st.dictionaries(st.sampled_from(["brand", "tags"]), st.integers(0, 4)), st.sets(st.integers(0, 9), max_size=3))
def test_caps_keep_what_a_greedy_walk_keeps(rows: list[int], limits: dict[str, int], places: set[int]) -> None:
    fixed = np.isin(np.arange(len(rows)), list(places))
    values = capped_values([(ITEMS.columns[name], limit, None) for name, limit in limits.items()], np.array(rows, np.int32))
    keep = within_caps(values, len(rows), fixed)
    assert [row for row, kept in zip(rows, keep, strict=True) if kept] == greedy(
        rows, limits, {rows[place] for place in places if place < len(rows)}
    )


@settings(max_examples=500, deadline=None)
@given(
    lists,
    st.integers(1, 20),
    st.integers(0, 4),
    st.lists(st.tuples(st.integers(0, 19), st.integers(0, N - 1)), max_size=4, unique_by=(lambda p: p[0], lambda p: p[1])),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.booleans(),
)
def test_caps_and_pins_hold_on_any_list(rows, top_k: int, limit: int, pins, diversity: float, boosted: bool) -> None:
    plan = RulePlan(
        pins=tuple((f"pin{place}", place, (f"i{row}",)) for place, row in pins),
        caps=(("brand", limit, None),),
        boosts=(("up", "number > 30", 0.7),) if boosted else (),
    )
    found = arranged(ranked(rows), ITEMS, Wish(top_k, diversity=diversity, rules=plan))
    answer = found.rows.tolist()
    assert len(set(answer)) == len(answer) <= top_k
    pinned = {row for place, row in pins if place < top_k}
    for place, row in pins:
        if place < top_k:
            assert row in answer
            assert place >= len(answer) or answer[place] == row or place > answer.index(row)
    for brand, count in Counter(BRANDS[row] for row in answer if BRANDS[row] is not None).items():
        assert count <= max(limit, sum(BRANDS[row] == brand for row in pinned))
    assert set(answer) <= set(rows) | pinned
    assert set(answer).isdisjoint(found.rest.tolist())
    assert [source == PINNED for source in found.sources.tolist()] == [row in pinned and row not in rows for row in answer]


def test_a_pin_has_its_place_and_several_items_the_places_after_it() -> None:
    rows = list(range(20))
    plan = RulePlan(pins=(("a", 2, ("i50", "i7", "unknown")), ("b", 0, ("i9",))))
    assert shown(rows, 6, rules=plan) == [9, 0, 50, 7, 1, 2]


def test_pins_pass_the_filter_and_need_to_be_available() -> None:
    plan = RulePlan(pins=(("a", 0, ("i50", "i41")),))
    assert shown([1, 2, 3], 2, Selection(filter="number < 45"), rules=plan) == [41, 1]
    ITEMS.set_available("i41", False)
    try:
        assert shown([1, 2, 3], 2, Selection(filter="number < 45"), rules=plan) == [1, 2]
    finally:
        ITEMS.set_available("i41", True)
    assert shown([1, 2], 2, exclude=np.array([50, 41], np.int32), rules=plan) == [1, 2]


def test_boosts_are_in_parts_of_the_spread_and_buries_come_last() -> None:
    rows = list(range(10))
    assert shown(rows, boosts=(("number == 9", 1.01),))[:2] == [9, 0]
    assert shown(rows, boosts=(("number == 9", 0.99),))[:2] == [0, 9]
    assert shown(rows, rules=RulePlan(buries=(("down", "number in [0, 2]"),))) == [1, 3, 4, 5, 6, 7, 8, 9, 0, 2]


def test_what_only_fills_a_list_does_not_stretch_its_spread() -> None:
    scores = np.array([3, 2, -50, -60], np.float32)
    listed = Ranked(np.arange(4, dtype=np.int32), scores, np.array([0, 0, 1, 1], np.uint8), fill=1)
    assert arranged(listed, ITEMS, Wish(4, boosts=(("number == 1", 1.5),))).rows.tolist() == [1, 0, 2, 3]
    assert arranged(listed, ITEMS, Wish(4, boosts=(("number == 3", 1.5),))).rows.tolist() == [0, 1, 2, 3]


def test_explained_changes_add_up_to_the_score() -> None:
    plan = RulePlan(boosts=(("up", "number > 4", 0.5),), buries=(("down", "number == 9"),))
    listed = ranked(list(range(10)))
    found = arranged(listed, ITEMS, Wish(10, rules=plan, boosts=(("number < 2", 0.25),)), explain=True)
    for row, score in zip(found.rows.tolist(), found.scores.tolist(), strict=True):
        added = sum(by_row.get(row, 0.0) for by_row in found.changes.values())
        assert score == pytest.approx(float(listed.scores[row]) + added, abs=1e-4)
    assert set(found.changes["up"]) == {5, 6, 7, 8, 9}


def test_a_preferred_language_comes_first_and_the_next_one_fills_up() -> None:
    rows = [1, 2, 10, 3, 20, 4]
    assert shown(rows, 4, Selection(language=("fr", "en"))) == [10, 20, 1, 2]
    assert shown(rows, 4, Selection(language=("fr",))) == [10, 20]
    assert arranged(ranked(rows), ITEMS, Wish(4, Selection(language=("fr", "en")))).preferred == 2


def test_diversity_spreads_categories_and_none_keeps_the_order() -> None:
    rows = [0, 4, 8, 12, 16, 20, 1, 2, 3, 24, 28]
    assert shown(rows, 4) == [0, 4, 8, 12]
    assert sorted(row % 4 for row in shown(rows, 4, diversity=1.0)) == [0, 1, 2, 3]
    assert shown(rows, 4, diversity=1.0)[0] == 0
    half = shown(rows, 4, diversity=0.5)
    assert len({row % 4 for row in half}) > 1


@settings(max_examples=100, deadline=None)
@given(lists.filter(bool), st.integers(1, 12), st.floats(0, 1))
def test_diversified_is_the_order_that_a_slow_loop_finds(rows: list[int], places: int, diversity: float) -> None:
    listed = ranked(rows)
    features = similarity_features(listed.rows, ITEMS.columns["categories"], None)
    order = diversified(listed.scores, features, places, diversity)
    assert sorted(order.tolist()) == list(range(len(rows)))
    pool = min(len(rows), max(5 * places, 50))
    spread = max(float(listed.scores[0] - listed.scores[pool - 1]), 1e-9)
    relevance = [float(score - listed.scores[pool - 1]) / spread for score in listed.scores[:pool]]
    chosen = [0]
    while len(chosen) < min(places, pool):
        gains = {
            place: (1 - diversity) * relevance[place] - diversity * max(float(features[place] @ features[one]) for one in chosen)
            for place in range(pool)
            if place not in chosen
        }
        best = max(gains.values())
        assert gains[int(order[len(chosen)])] >= best - 1e-5
        chosen.append(int(order[len(chosen)]))


def test_vectors_and_categories_count_alike() -> None:
    vectors = np.eye(4, dtype=np.float32)
    features = similarity_features(np.array([0, 1, 50], np.int32), None, vectors)
    np.testing.assert_allclose(features @ features.T, [[1, 0, 0], [0, 1, 0], [0, 0, 0]], atol=1e-6)
    features = similarity_features(np.array([0, 4], np.int32), ITEMS.columns["categories"], vectors)
    assert features[0] @ features[1] == pytest.approx(0.5)  # the same category, and one of them has no vector


def test_what_may_take_a_place_beside_a_slate() -> None:
    by_brand = {brand: [row for row in range(N) if BRANDS[row] == brand] for brand in ["b0", "b1", None]}
    plan = RulePlan(caps=(("brand", 2, None),))
    slate = np.array(by_brand["b0"][:1], np.int32)
    others = np.array([by_brand["b0"][1], by_brand["b1"][0], by_brand[None][0]], np.int32)
    assert capped_without(slate, others, ITEMS, plan, reserve=0).tolist() == [True, True, True]
    assert capped_without(slate, others, ITEMS, plan, reserve=1).tolist() == [False, True, True]


def test_numbers_and_flags_can_be_capped() -> None:
    owner, code = values_of(ITEMS.columns["available"], np.array([3, 4], np.int32))
    assert (owner.tolist(), code.tolist()) == ([0, 1], [0, 0])
    owner, code = values_of(None, np.array([3], np.int32))
    assert len(owner) == len(code) == 0


@pytest.mark.parametrize("diversity", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("region_chain", [False, True])
def test_what_is_buried_stays_behind_however_different_it_is(diversity: float, region_chain: bool) -> None:
    plan = RulePlan(buries=(("no c0", '"c0" in categories'),))
    selection = Selection(language=("en", "fr")) if region_chain else Selection()
    rows = shown(list(range(N)), 20, selection, diversity=diversity, rules=plan)
    assert not [row for row in rows if row % 4 == 0]
    assert shown([0, 4, 1, 8], 4, diversity=diversity, rules=plan)[0] == 1
    buried_alone = shown([0, 4, 8, 12], 4, diversity=diversity, rules=plan)
    assert sorted(buried_alone) == [0, 4, 8, 12]
    assert shown([], 4, diversity=diversity, rules=plan) == []
