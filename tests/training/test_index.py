"""The inverted file against exact search: recall with and without filters, guaranteed counts, what damaged files do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training import ivf_index
from training.candidates import Retrieved
from training.errors import BundleError
from training.exact_index import ExactIndex
from training.index import build_index, load_index, save_index
from training.interactions import BoolArray, FloatArray
from training.ivf_index import IvfIndex

ITEMS, WIDTH, KNOWN = 60_000, 16, 55_000


@pytest.fixture(scope="module")
def vectors() -> FloatArray:
    """Items around 300 tastes of differing strength, some closer to theirs than others."""
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(300, WIDTH)) * rng.uniform(0.5, 2.0, size=(300, 1))
    return (centres[rng.integers(0, 300, ITEMS)] + 0.4 * rng.normal(size=(ITEMS, WIDTH))).astype(np.float32)


@pytest.fixture(scope="module")
def queries(vectors: FloatArray) -> FloatArray:
    """Each between three items, as a history is."""
    rng = np.random.default_rng(6)
    return vectors[rng.integers(0, KNOWN, (200, 3))].mean(axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def found_index(vectors: FloatArray, queries: FloatArray) -> IvfIndex:
    index = build_index(vectors, np.arange(KNOWN), lambda: queries[:100])
    assert isinstance(index, IvfIndex)
    return index


def recall_at_20(index: IvfIndex, queries: FloatArray, allowed: BoolArray | None) -> float:
    """Against a look at every item that shares no code with the index."""
    scores = queries @ index.exact.vectors.T
    scores[:, KNOWN:] = -np.inf
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    best = np.argsort(-scores, axis=1)[:, :20]
    found = index.search(queries, 200, allowed).item_idx[:, :20]
    hits = [len(np.intersect1d(one, other[np.isfinite(row[other])])) for one, other, row in zip(found, best, scores, strict=True)]
    return sum(hits) / np.isfinite(np.take_along_axis(scores, best, axis=1)).sum()


@pytest.mark.parametrize("share", [1.0, 0.5, 0.2, 0.1, 0.01, 0.0001])
def test_filtered_recall(found_index: IvfIndex, queries: FloatArray, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 100 queries that the plan was not made on; exact search is kept out of the way where it would answer."""
    monkeypatch.setattr(ivf_index, "EXACT_UP_TO_ITEMS", 100)
    allowed = np.random.default_rng(7).random(ITEMS) < share
    assert recall_at_20(found_index, queries[100:], allowed if share < 1 else None) >= 0.95


def test_filter_far_from_the_query(found_index: IvfIndex, vectors: FloatArray, queries: FloatArray) -> None:
    """A filter that lets through only what the queries do not look for: the search widens itself and loses nothing."""
    taste = vectors[: ITEMS // 2].mean(axis=0)
    allowed = vectors @ taste < np.quantile(vectors @ taste, 0.25)
    towards = queries[100:][(queries[100:] @ taste) > 0]
    assert len(towards) > 20
    assert recall_at_20(found_index, towards, allowed) >= 0.95


def test_as_many_as_pass(found_index: IvfIndex, queries: FloatArray, monkeypatch: pytest.MonkeyPatch) -> None:
    """k items where k pass, all that pass where they are fewer, each once, allowed and known, best first."""
    monkeypatch.setattr(ivf_index, "EXACT_UP_TO_ITEMS", 10)
    for passing in (0, 3, 499, 500, 2_000):
        allowed = np.zeros(ITEMS, dtype=bool)
        allowed[np.random.default_rng(passing).permutation(KNOWN)[:passing]] = True
        allowed[KNOWN:] = True  # not known to the model: never found
        found = found_index.search(queries[:20], 500, allowed)
        assert ((found.item_idx >= 0).sum(axis=1) == min(passing, 500)).all()
        for items, scores in zip(found.item_idx, found.score, strict=True):
            there = items[items >= 0]
            assert len(set(there.tolist())) == len(there)
            assert allowed[there].all()
            assert (there < KNOWN).all()
            assert (np.diff(scores[: len(there)]) <= 0).all()


@pytest.mark.parametrize(
    ("reach", "long_pass", "wide"), [(65_536, True, False), (65_536, False, False), (ivf_index.HEAD_ITEMS + 100, False, True)]
)
def test_what_length_makes_sure_of_needs_few_lists(
    reach: int, long_pass: bool, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long vectors answer wherever a filter leaves them, then those within reach; without them the plan's lists are looked at."""
    monkeypatch.setattr(ivf_index, "REACH_ITEMS", reach)
    rng = np.random.default_rng(8)
    long = ivf_index.HEAD_ITEMS // 2
    vectors = (0.1 * rng.normal(size=(ITEMS, WIDTH))).astype(np.float32)
    vectors[:long] *= 30
    queries = rng.normal(size=(20, WIDTH)).astype(np.float32)
    queries[3] = 0  # of somebody of whom nothing is known
    index = build_index(vectors, np.arange(ITEMS), lambda: queries)
    assert isinstance(index, IvfIndex)
    most = int(index.inverted.nlist)
    index.plan = dict.fromkeys(index.plan, most)
    looked: list[int] = []
    probe = index.probe

    def noted(asked: FloatArray, k: int, allowed: BoolArray | None, lists: int) -> Retrieved:
        looked.append(lists)
        return probe(asked, k, allowed, lists)

    monkeypatch.setattr(index, "probe", noted)
    allowed = rng.random(ITEMS) < 0.5
    allowed[:long] &= long_pass
    found = index.search(queries, 50, allowed)
    assert looked == ([ivf_index.FEWEST_LISTS, most] if wide else [ivf_index.FEWEST_LISTS])
    some = np.arange(len(queries)) != 3
    expected = index.exact.search(queries, 20, allowed)
    np.testing.assert_array_equal(found.item_idx[some, :20], expected.item_idx[some])
    np.testing.assert_allclose(found.score[:, :20], expected.score, rtol=1e-5)
    assert all(len(set(row[row >= 0].tolist())) == (row >= 0).sum() for row in found.item_idx)


def test_scores_are_exact(found_index: IvfIndex, vectors: FloatArray, queries: FloatArray) -> None:
    """Codes only propose: what is returned is scored by the vectors themselves."""
    found = found_index.search(queries[:5], 50)
    expected = np.einsum("qd,qkd->qk", queries[:5], vectors[found.item_idx])
    np.testing.assert_allclose(found.score, expected, rtol=1e-5)


def test_saved_and_mapped(found_index: IvfIndex, vectors: FloatArray, queries: FloatArray, tmp_path: Path) -> None:
    """Bit for bit the same, and read-only maps of the file."""
    save_index(found_index, tmp_path)
    again = load_index(tmp_path, vectors, np.arange(KNOWN))
    assert isinstance(again, IvfIndex)
    assert again.plan == found_index.plan
    for allowed in (None, np.arange(ITEMS) % 3 == 0):
        np.testing.assert_array_equal(
            again.search(queries, 30, allowed).item_idx, found_index.search(queries, 30, allowed).item_idx
        )
    assert load_index(tmp_path / "nothing", vectors, np.arange(KNOWN)) is None


def test_damage_is_refused(found_index: IvfIndex, vectors: FloatArray, tmp_path: Path) -> None:
    save_index(found_index, tmp_path)
    with pytest.raises(BundleError, match="its model 54,999"):
        load_index(tmp_path, vectors, np.arange(KNOWN - 1))
    (tmp_path / "items.faiss").write_bytes((tmp_path / "items.faiss").read_bytes()[:40])
    with pytest.raises(BundleError, match=r"items\.faiss cannot be read"):
        load_index(tmp_path, vectors, np.arange(KNOWN))


def test_few_items_need_none(vectors: FloatArray) -> None:
    assert build_index(vectors[:1000], np.arange(1000), lambda: vectors[:10]) is None


def test_exact_search_is_what_it_says(vectors: FloatArray, queries: FloatArray) -> None:
    """In blocks, over some rows, with a mask."""
    rows = np.arange(0, ITEMS, 7)
    allowed = np.arange(ITEMS) % 2 == 0
    found = ExactIndex(vectors, rows).search(queries[:3], 9, allowed)
    scores = queries[:3] @ vectors.T
    scores[:, (np.arange(ITEMS) % 14) != 0] = -np.inf
    np.testing.assert_array_equal(found.item_idx, np.argsort(-scores, axis=1, kind="stable")[:, :9])
