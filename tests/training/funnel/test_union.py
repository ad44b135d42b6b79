"""The union against a slow oracle, and filling."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from training.candidates import Retrieved
from training.popular_order import PopularOrder
from training.queries import queries_from_histories
from training.union import fill, unite

lists = st.lists(st.lists(st.lists(st.integers(0, 11), max_size=6, unique=True), min_size=3, max_size=3), min_size=1, max_size=4)


def retrieved(rows: list[list[int]]) -> Retrieved:
    """Rows padded to a rectangle; the score of an item at rank r of row b is 10 b - r."""
    width = max(map(len, rows)) + 1
    item = np.full((len(rows), width), -1, dtype=np.int32)
    score = np.full((len(rows), width), -np.inf, dtype=np.float32)
    for b, row in enumerate(rows):
        item[b, : len(row)] = row
        score[b, : len(row)] = 10 * b - np.arange(len(row))
    return Retrieved(item, score)


@settings(max_examples=100, deadline=None)
@given(lists)
def test_union_equals_a_dictionary_union(sources: list[list[list[int]]]) -> None:
    names = tuple(f"s{n}" for n in range(len(sources)))
    candidates = unite(names, [retrieved(rows) for rows in sources])
    for b in range(3):
        wanted: dict[int, dict[str, tuple[float, float]]] = {}
        for name, rows in zip(names, sources, strict=True):
            for rank, item in enumerate(rows[b]):
                wanted.setdefault(item, {})[name] = (10.0 * b - rank, float(rank))
        count = int(candidates.valid[b].sum())
        assert candidates.item_idx[b, :count].tolist() == sorted(wanted)
        assert (candidates.item_idx[b, count:] == -1).all()
        for place, item in enumerate(sorted(wanted)):
            for s, name in enumerate(names):
                if name in wanted[item]:
                    assert (candidates.score[b, place, s], candidates.rank[b, place, s]) == wanted[item][name]
                else:
                    assert np.isnan(candidates.score[b, place, s])
                    assert np.isnan(candidates.rank[b, place, s])
        assert np.isnan(candidates.score[b, count:]).all()


@settings(max_examples=60, deadline=None)
@given(lists, st.integers(0, 14), st.sets(st.integers(0, 11)), st.booleans())
def test_fill_gives_the_most_popular_free_items(
    sources: list[list[list[int]]], count: int, banned: set[int], exclude_history: bool
) -> None:
    histories = [[0, 1], [], [5]]
    queries = queries_from_histories(histories)
    by_popularity = np.array([7, 3, 0, 1, 2, 4, 5, 6, 8, 9, 10, 11], dtype=np.int32)
    allowed = ~np.isin(np.arange(12), list(banned))
    before = unite(tuple(f"s{n}" for n in range(len(sources))), [retrieved(rows) for rows in sources])
    after = fill(before, count, PopularOrder(by_popularity, 12), queries, allowed, exclude_history)
    for b in range(3):
        had = before.item_idx[b][before.valid[b]].tolist()
        barred = set(had) | banned | (set(histories[b]) if exclude_history else set())
        wanted = had + [item for item in by_popularity.tolist() if item not in barred][: max(count - len(had), 0)]
        assert after.item_idx[b][after.valid[b]].tolist() == wanted
        assert after.valid[b][: len(wanted)].all()
        assert np.isnan(after.rank[b, len(had) :]).all()
