"""Nearest items of a query vector by dot product: exact search as the oracle and for few items, an inverted file for many.

The inverted file is faiss' IVF with 8-bit codes (faiss-cpu, MIT, by Meta; a release every few months), in faiss' own file format,
read as a memory map that all processes of a machine share. It proposes, the float vectors score again: scores are those of exact
search, and only which items are found is approximate. How many lists are looked at is found at building for several widths of
filter, on queries of the training, against exact search; a search that finds too few items widens itself, so that `k` items come
back where `k` pass.

Dot products favour long vectors, which an inverted file, made for distances, finds badly: of factorised activity, nearly all of a
query's best items are among the longest hundredth. So the longest ones, the head, are scored one by one, and the file holds the
rest: at a million items 8 lists do then what took 512 before.

No item outside the head can score more than the lengths of the query and of the head's shortest vector allow (Cauchy-Schwarz).
Where a look at few lists finds enough items above that bound, it has found the best ones for certain, whatever a filter left out.

Legend: `B` queries, `N` items, `M` items in the index, `D` width.
"""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.candidates import Retrieved
from training.errors import BundleError
from training.interactions import BoolArray, FloatArray, LongArray

INDEX_FILE, PLAN_FILE = "items.faiss", "index.json"
INDEX_FROM_ITEMS = 50_000
"""Below, scoring all items takes about as long as the rest of an answer's retrieval."""
HEAD_ITEMS = 16_384
"""Items of greatest length that are always scored: as much work as a few hundred lists, and 4 MB of float32 at width 64."""
EXACT_UP_TO_ITEMS = 10_000
"""Items left by a filter up to which they are gathered and scored: 0.6 ms, less than a search through most of the lists."""
REMEMBERED_MASKS = 8
"""Of a million items each takes 1.1 MB, 9 MB where it is narrow enough for its rows to be listed."""
BLOCK_CELLS = 16_000_000
"""Scores of exact search at once: 64 MB of float32."""
SHARES = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03, 0.01)
"""Shares of items passing a filter for which the number of lists is found."""
FEWEST_LISTS = 8
WANTED_RECALL, RECALL_AT = 0.985, 20
"""What the plan must reach on the sampled queries; served ones may be a little harder."""


@lru_cache(maxsize=1)
def load_faiss() -> Any:
    """The faiss module, imported at first use: half a second. It brings its own OpenMP and BLAS under names of their own."""
    return importlib.import_module("faiss")


class _Passing:
    """Items of an index that a mask leaves, in the forms that searches take.

    Args:
        mask: (N,) bool, of the index and of the filter.
        head: the items that are always scored.
    """

    def __init__(self, mask: BoolArray, head: LongArray) -> None:
        self._mask, self._head = mask, head
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


class ItemIndex(ABC):
    """Finds the items of greatest dot product."""

    @abstractmethod
    def search(self, queries: FloatArray, k: int, allowed: BoolArray | None = None) -> Retrieved:
        """The `k` best items of each query, best first, padded where fewer are allowed.

        Args:
            queries: (B, D) float32.
            k: items wanted.
            allowed: (N,) bool of items that may be returned; None allows all. A read-only one is prepared once and remembered.
        """


class ExactIndex(ItemIndex):
    """Scores every allowed item.

    Args:
        vectors: (N, D) float32; not copied.
        rows: (M,) int64 items in the index, ascending.
    """

    def __init__(self, vectors: FloatArray, rows: LongArray) -> None:
        self.vectors, self.rows = vectors, rows

    def search(self, queries: FloatArray, k: int, allowed: BoolArray | None = None) -> Retrieved:
        """See `ItemIndex.search`."""
        rows = self.rows if allowed is None else self.rows[allowed[self.rows]]
        vectors = self.vectors if len(rows) == len(self.vectors) else self.vectors[rows]
        return self._best(queries, k, rows, vectors)

    def among(self, queries: FloatArray, k: int, rows: LongArray) -> Retrieved:
        """The same over the items `rows` alone, ascending."""
        return self._best(queries, k, rows, self.vectors[rows])

    def _best(self, queries: FloatArray, k: int, rows: LongArray, vectors: FloatArray) -> Retrieved:
        item_idx = np.full((len(queries), k), -1, dtype=np.int32)
        score = np.full((len(queries), k), -np.inf, dtype=np.float32)
        width = min(k, len(rows))
        block = max(1, BLOCK_CELLS // max(len(rows), 1))
        for start in range(0, len(queries) if width else 0, block):
            scores = queries[start : start + block] @ vectors.T
            part = np.argpartition(-scores, width - 1, axis=1)[:, :width] if width < len(rows) else _all_columns(scores)
            found = _sorted(rows[part], np.take_along_axis(scores, part, axis=1))
            item_idx[start : start + block, :width], score[start : start + block, :width] = found.item_idx, found.score
        return Retrieved(item_idx, score)


class IvfIndex(ItemIndex):
    """A head that is scored, an inverted file over the rest, and the exact scores behind it.

    Args:
        exact: over all items of the index.
        inverted: faiss' index of the items that are not in the head; its ids are item numbers.
        plan: share of items that pass -> lists to look at; a share takes those of the next smaller one.
    """

    def __init__(self, exact: ExactIndex, inverted: Any, plan: dict[float, int]) -> None:
        self.exact, self.inverted, self.plan = exact, inverted, plan
        self.head = longest(exact.vectors, exact.rows)
        self._head_vectors = np.ascontiguousarray(exact.vectors[self.head])
        self._tail_length = float(np.sqrt(np.square(self._head_vectors).sum(axis=1).min()))
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
        unsure = np.flatnonzero(found.score[:, RECALL_AT - 1] < np.linalg.norm(queries, axis=1) * self._tail_length)
        if len(unsure):
            again = self._search(queries[unsure], k, allowed, passing.count, lists)
            found.item_idx[unsure], found.score[unsure] = again.item_idx, again.score
        return found

    def _passing(self, allowed: BoolArray) -> _Passing:
        """What a mask leaves of the index; of the last read-only masks, which nobody changes, it is remembered."""
        for mask, known in self._remembered:
            if mask is allowed:
                return known
        found = _Passing(allowed & self._in_index, self.head)
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
        found = _sorted(np.concatenate([head, tail], axis=1), both)
        return Retrieved(found.item_idx[:, :k], found.score[:, :k])


def longest(vectors: FloatArray, rows: LongArray) -> LongArray:
    """(H,) int64: the `HEAD_ITEMS` of the rows with the longest vectors, ascending."""
    lengths = np.concatenate([np.square(vectors[rows[at : at + 65_536]]).sum(axis=1) for at in range(0, len(rows), 65_536)])
    return np.sort(rows[np.argsort(-lengths, kind="stable")[:HEAD_ITEMS]])


def build_index(vectors: FloatArray, rows: LongArray, sample: Callable[[], FloatArray]) -> ItemIndex | None:
    """The index of the items `rows`; None where there are so few that scoring all is as good.

    Args:
        vectors: (N, D) float32 of all items.
        rows: (M,) items that can be found, ascending.
        sample: gives (S, D) query vectors like those that will be asked.
    """
    if len(rows) < INDEX_FROM_ITEMS:
        return None
    tail = np.setdiff1d(rows, longest(vectors, rows), assume_unique=True)
    index = IvfIndex(ExactIndex(vectors, rows), _train(vectors[tail], tail), {})
    index.plan = plan_lists(index, np.ascontiguousarray(sample(), dtype=np.float32))
    return index


def plan_lists(index: IvfIndex, sample: FloatArray) -> dict[float, int]:
    """For each of `SHARES` the fewest lists (of powers of two) with which the sampled queries reach `WANTED_RECALL`.

    Two filters a share: one that has nothing to do with the queries, and one that leaves what lies away from a query, as a category
    that its user does not care for.
    """
    plan: dict[float, int] = {}
    most, lists, rows = int(index.inverted.nlist), FEWEST_LISTS, index.exact.rows
    rng = np.random.default_rng(0)
    along = index.exact.vectors[rows] @ sample.mean(axis=0)
    for share in SHARES:
        passing = int(share * len(rows))
        if passing <= EXACT_UP_TO_ITEMS:
            break
        for kept in (rng.permutation(len(rows))[:passing], np.argpartition(along, passing - 1)[:passing]):
            allowed = np.zeros(len(index.exact.vectors), dtype=bool)
            allowed[rows[kept]] = True
            truth = index.exact.search(sample, RECALL_AT, allowed)
            while lists < most and recall(index.probe(sample, RECALL_AT, allowed, lists), truth) < WANTED_RECALL:
                lists *= 2
        plan[share] = min(lists, most)
    return plan


def save_index(index: ItemIndex, folder: Path) -> None:
    """Write the inverted file and its plan below `folder`; exact search has nothing to keep."""
    if isinstance(index, IvfIndex):
        load_faiss().write_index(index.inverted, str(folder / INDEX_FILE))
        (folder / PLAN_FILE).write_text(json.dumps({"plan": list(index.plan.items())}) + "\n")


def load_index(folder: Path, vectors: FloatArray, rows: LongArray) -> ItemIndex | None:
    """Read what `save_index` wrote for the same vectors; None where it wrote nothing.

    Raises:
        BundleError: a file is damaged, or is of other vectors.
    """
    if not (folder / INDEX_FILE).is_file():
        return None
    faiss = load_faiss()
    try:
        plan = {float(share): int(lists) for share, lists in json.loads((folder / PLAN_FILE).read_text())["plan"]}
        inverted = faiss.read_index(str(folder / INDEX_FILE), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise BundleError(f"{INDEX_FILE} cannot be read ({reason}); fetch or build the bundle again") from error
    if inverted.d != vectors.shape[1] or inverted.ntotal + HEAD_ITEMS != len(rows):
        raise BundleError(
            f"{INDEX_FILE} holds {inverted.ntotal + HEAD_ITEMS:,} items, its model {len(rows):,}; build the bundle again"
        )
    # Its threads read ahead from disks; these pages are in memory after the first requests.
    faiss.downcast_InvertedLists(inverted.invlists).prefetch_nthread = 0
    return IvfIndex(ExactIndex(vectors, rows), inverted, plan)


def _train(vectors: FloatArray, rows: LongArray) -> Any:
    """faiss' index of (M, D) vectors. Lists: 4 sqrt(M), and 39 vectors a list to learn from at least (faiss wiki, guidelines)."""
    faiss = load_faiss()
    count, width = vectors.shape
    lists = 2 ** round(np.log2(4 * np.sqrt(count)))
    coarse = faiss.IndexFlatIP(width)
    inverted = faiss.IndexIVFScalarQuantizer(coarse, width, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    learn = np.random.default_rng(0).permutation(count)[: 40 * lists]
    inverted.train(np.ascontiguousarray(vectors[np.sort(learn)]))
    inverted.add_with_ids(vectors, rows)
    return inverted


def recall(found: Retrieved, truth: Retrieved) -> float:
    """Share of the found items (B, n) that are as good as the worst of the n best, to a ten-thousandth of what scores commonly are.

    By score and not by name: a query that no item answers better than another has no items that could be missed.
    """
    worst = truth.score[:, -1:]
    slack = 1e-4 * float(np.median(np.abs(worst)))
    return float((found.score[:, : truth.score.shape[1]] >= worst - slack).mean())


def _sorted(item: npt.NDArray[np.integer[Any]], score: FloatArray) -> Retrieved:
    """Best first, equal scores by lower item number."""
    order = np.lexsort((item, -score), axis=-1)
    return Retrieved(
        np.take_along_axis(item, order, axis=1).astype(np.int32), np.take_along_axis(score, order, axis=1).astype(np.float32)
    )


def _all_columns(scores: FloatArray) -> LongArray:
    return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
