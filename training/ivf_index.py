"""Nearest items of a query vector by dot product among many: a head that is scored, an inverted file over the rest.

The inverted file is faiss' IVF with 8-bit codes (faiss-cpu, MIT, by Meta; a release every few months), in faiss' own file format,
read as a memory map that all processes of a machine share. It proposes, the float vectors score again: scores are those of exact
search, and only which items are found is approximate. How many lists are looked at is found at building for several widths of
filter, on queries of the training, against exact search (`training.index`); a search that finds too few items widens itself, so
that `k` items come back where `k` pass.

Dot products favour long vectors, which an inverted file, made for distances, finds badly: of factorised activity, nearly all of a
query's best items are among the longest hundredth. So the longest ones, the head, are scored one by one, and the file holds the
rest: at a million items 8 lists do then what took 512 before.

No item can score more than its length and the query's allow (Cauchy-Schwarz). Where a look at few lists finds enough items above
what the longest one outside the head could score, it has found the best ones for certain, whatever a filter left out. Where it
does not, most often a few hundred items are long enough to come into question: they are scored, and it is certain again.

Legend: `B` queries, `N` items, `M` items in the index, `D` width, `H` items of the head, `R` items within reach.
"""

from __future__ import annotations

import importlib
from collections import deque
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from training.candidates import Retrieved
from training.exact_index import ExactIndex, ItemIndex, best_first
from training.interactions import BoolArray, FloatArray, LongArray

HEAD_ITEMS = 16_384
"""Items of greatest length that are always scored: as much work as a few hundred lists, and 4 MB of float32 at width 64."""
REACH_ITEMS = 65_536
"""Items of greatest length that are scored where that makes a result certain."""
EXACT_UP_TO_ITEMS = 10_000
"""Items left by a filter up to which they are gathered and scored: 0.6 ms, less than a search through most of the lists."""
REMEMBERED_MASKS = 8
"""Of a million items each takes 1.1 MB, 9 MB where it is narrow enough for its rows to be listed."""
FEWEST_LISTS = 8
RECALL_AT = 20
"""Places of a list that are made sure of."""


@lru_cache(maxsize=1)
def load_faiss() -> Any:
    """The faiss module, imported at first use: half a second. It brings its own OpenMP and BLAS under names of their own."""
    return importlib.import_module("faiss")


class _Passing:
    """Items of an index that a mask leaves, in the forms that searches take.

    Args:
        mask: (N,) bool, of the index and of the filter.
        head: the items that are always scored.
        reach: the next longest ones, the longest first.
        lengths: (R,) float32 of these.
    """

    def __init__(self, mask: BoolArray, head: LongArray, reach: LongArray, lengths: FloatArray) -> None:
        self._mask, self._head, self._reach, self._lengths = mask, head, reach, lengths
        self.count = int(np.count_nonzero(mask))

    @cached_property
    def rows(self) -> LongArray:
        """(count,) item numbers, ascending."""
        return np.flatnonzero(self._mask)

    @cached_property
    def bits(self) -> npt.NDArray[np.uint8]:
        """The mask with eight items a byte, as faiss reads it."""
        return np.packbits(self._mask, bitorder="little")

    @cached_property
    def selector(self) -> Any:
        """The mask as faiss takes it; points at `bits`."""
        return load_faiss().IDSelectorBitmap(self.bits)

    @cached_property
    def head_penalty(self) -> FloatArray:
        """(H,) float32 to add to the scores of the head: 0, or -inf for items that the mask takes out."""
        return np.where(self._mask[self._head], np.float32(0), np.float32(-np.inf))

    @cached_property
    def _within_reach(self) -> tuple[LongArray, FloatArray]:
        passing = self._mask[self._reach]
        return self._reach[passing], -self._lengths[passing]

    def longer_than(self, length: float) -> LongArray:
        """Items within reach, not of the head, with vectors of this length or more."""
        rows, negative = self._within_reach
        return rows[: np.searchsorted(negative, -length, side="right")]


class IvfIndex(ItemIndex):
    """A head that is scored, an inverted file over the rest, and the exact scores behind it.

    Args:
        exact: over all items of the index.
        inverted: faiss' index of the items that are not in the head; its ids are item numbers.
        plan: share of items that pass -> lists to look at; a share takes those of the next smaller one.
    """

    def __init__(self, exact: ExactIndex, inverted: Any, plan: dict[float, int]) -> None:
        self.exact, self.inverted, self.plan = exact, inverted, plan
        by_length = longest(exact.vectors, exact.rows, REACH_ITEMS)
        self.head, self._reach = np.sort(by_length[:HEAD_ITEMS]), by_length[HEAD_ITEMS:]
        self._head_vectors = np.ascontiguousarray(exact.vectors[self.head])
        self._reach_lengths = _lengths(exact.vectors[self._reach])
        self._in_index = np.zeros(len(exact.vectors), dtype=bool)
        self._in_index[exact.rows] = True
        self._remembered: deque[tuple[BoolArray, _Passing]] = deque(maxlen=REMEMBERED_MASKS)

    def search(self, queries: FloatArray, k: int, allowed: BoolArray | None = None) -> Retrieved:
        """See `ItemIndex.search`."""
        if allowed is None:
            return self._search(queries, k, None, len(self.exact.rows))
        passing = self._passing(allowed)
        if passing.count <= max(EXACT_UP_TO_ITEMS, k) or not self.plan:
            return self.exact.among(queries, k, passing.rows)
        lists = self.lists_for(passing.count)
        if lists <= FEWEST_LISTS or k < RECALL_AT:
            return self._search(queries, k, allowed, passing.count)
        found = self._search(queries, k, allowed, passing.count, FEWEST_LISTS)
        best, norms = found.score[:, RECALL_AT - 1].copy(), np.linalg.norm(queries, axis=1)
        longest_out, end = self._reach_lengths[0], self._reach_lengths[-1]
        near = np.flatnonzero((best < norms * longest_out) & (best >= norms * end))
        if len(near):
            self._add(found, queries, near, passing.longer_than(float((best[near] / norms[near]).min())))
        far = np.flatnonzero(best < norms * end)
        if len(far):
            again = self._search(queries[far], k, allowed, passing.count, lists)
            found.item_idx[far], found.score[far] = again.item_idx, again.score
        return found

    def _add(self, found: Retrieved, queries: FloatArray, asked: LongArray, rows: LongArray) -> None:
        """Take the items `rows` into what was found for the queries `asked`, where they are good enough and not there yet."""
        known, k = found.item_idx[asked], found.item_idx.shape[1]
        scores = queries[asked] @ self.exact.vectors[rows].T
        scores[np.stack([np.isin(rows, one) for one in known])] = -np.inf
        width = min(k, len(rows))
        part = np.argpartition(-scores, width - 1, axis=1)[:, :width] if width else np.zeros((len(asked), 0), dtype=np.int64)
        added = np.take_along_axis(scores, part, axis=1)
        items = np.where(np.isneginf(added), -1, rows[part])
        both = best_first(np.concatenate([known, items], axis=1), np.concatenate([found.score[asked], added], axis=1))
        found.item_idx[asked], found.score[asked] = both.item_idx[:, :k], both.score[:, :k]

    def _passing(self, allowed: BoolArray) -> _Passing:
        """What a mask leaves of the index; of the last read-only masks, which nobody changes, it is remembered."""
        for mask, known in self._remembered:
            if mask is allowed:
                return known
        found = _Passing(allowed & self._in_index, self.head, self._reach, self._reach_lengths)
        if not allowed.flags.writeable:
            self._remembered.append((allowed, found))
        return found

    def lists_for(self, passing: int) -> int:
        """Lists to look at when so many items pass the filter."""
        share = passing / max(len(self.exact.rows), 1)
        return min((lists for planned, lists in self.plan.items() if planned <= share), default=max(self.plan.values()))

    def _search(self, queries: FloatArray, k: int, allowed: BoolArray | None, passing: int, lists: int | None = None) -> Retrieved:
        """A search through so many lists, those of the plan where None; through more where they hold fewer than `k` items."""
        wanted, lists = min(k, passing), lists or self.lists_for(passing)
        found = self.probe(queries, k, allowed, lists)
        while lists < self.inverted.nlist:
            short = np.flatnonzero((found.item_idx[:, :wanted] < 0).any(axis=1))
            if not len(short):
                break
            lists = min(4 * lists, int(self.inverted.nlist))
            again = self.probe(queries[short], k, allowed, lists)
            found.item_idx[short], found.score[short] = again.item_idx, again.score
        return found

    def probe(self, queries: FloatArray, k: int, allowed: BoolArray | None, lists: int) -> Retrieved:
        """The `k` best of the head and of what the codes of so many lists propose, padded where those are too few."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores = queries @ self._head_vectors.T
        passing = None if allowed is None else self._passing(allowed)
        if passing is not None:
            scores += passing.head_penalty
        width = min(k, len(self.head))
        part = np.argpartition(-scores, width - 1, axis=1)[:, :width]
        head_scores = np.take_along_axis(scores, part, axis=1)
        head = np.where(np.isneginf(head_scores), -1, self.head[part])
        faiss = load_faiss()
        if passing is None:
            parameters = faiss.SearchParametersIVF(nprobe=lists)
        else:
            parameters = faiss.SearchParametersIVF(nprobe=lists, sel=passing.selector)
        tail = np.asarray(self.inverted.search(queries, k, params=parameters)[1], dtype=np.int64)
        tail_scores = np.matmul(self.exact.vectors.take(tail, axis=0, mode="clip"), queries[:, :, None])[:, :, 0]
        both = np.concatenate([head_scores, np.where(tail >= 0, tail_scores, -np.inf)], axis=1)
        found = best_first(np.concatenate([head, tail], axis=1), both)
        return Retrieved(found.item_idx[:, :k], found.score[:, :k])


def longest(vectors: FloatArray, rows: LongArray, count: int) -> LongArray:
    """(count,) int64: those of the rows with the longest vectors, the longest first."""
    lengths = np.concatenate([_lengths(vectors[rows[at : at + 65_536]]) for at in range(0, len(rows), 65_536)])
    return rows[np.argsort(-lengths, kind="stable")[:count]]


def _lengths(vectors: FloatArray) -> FloatArray:
    return np.asarray(np.sqrt(np.square(vectors).sum(axis=1)), dtype=np.float32)
