"""The index of a model's items: built and planned, kept in a bundle, read again.

Legend: `N` items, `M` items in the index, `S` sampled queries, `D` width.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from training.candidates import Retrieved
from training.errors import BundleError
from training.exact_index import ExactIndex, ItemIndex
from training.interactions import FloatArray, LongArray
from training.ivf_index import EXACT_UP_TO_ITEMS, FEWEST_LISTS, HEAD_ITEMS, RECALL_AT, IvfIndex, load_faiss, longest

INDEX_FILE, PLAN_FILE = "items.faiss", "index.json"
INDEX_FROM_ITEMS = 50_000
"""Below, scoring all items takes about as long as the rest of an answer's retrieval."""
SHARES = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03, 0.01)
"""Shares of items passing a filter for which the number of lists is found."""
WANTED_RECALL = 0.985
"""What the plan must reach on the sampled queries; served ones may be a little harder."""


def build_index(vectors: FloatArray, rows: LongArray, sample: Callable[[], FloatArray]) -> ItemIndex | None:
    """The index of the items `rows`; None where there are so few that scoring all is as good.

    Args:
        vectors: (N, D) float32 of all items.
        rows: (M,) items that can be found, ascending.
        sample: gives (S, D) query vectors like those that will be asked.
    """
    if len(rows) < INDEX_FROM_ITEMS:
        return None
    tail = np.setdiff1d(rows, longest(vectors, rows, HEAD_ITEMS), assume_unique=True)
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
