"""Figures of the lists themselves, whatever the targets: coverage, Gini, novelty, popularity lift, diversity.

Accuracy is `training.metrics`'. Lists are (B, K) item numbers, best first, padded with -1.

Legend: `B` users, `K` list length, `N` items, `C` categories.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from training.interactions import IdArray, IntArray, Interactions
from training.queries import QueryBatch

DoubleArray = npt.NDArray[np.float64]


class ListMetrics:
    """Adds up lists block by block, against the popularity of the fold's fit part.

    Args:
        fit: what models were fitted on.
        k: list length looked at.
        categories: (N,) lists of category names, None where the catalogue has none; a path `A > B` counts as each of its parts.
    """

    def __init__(self, fit: Interactions, k: int, categories: IdArray | None = None) -> None:
        self.k = k
        self._count = np.bincount(fit.item_idx, minlength=fit.num_items).astype(np.float64)
        pairs = np.unique(fit.user_idx.astype(np.int64) * fit.num_items + fit.item_idx)
        takers = np.bincount(pairs % fit.num_items, minlength=fit.num_items)
        num_users = max(len(np.unique(fit.user_idx)), 1)
        self._surprise = -np.log2(np.maximum(takers, 1) / num_users)
        self._vectors = None if categories is None else _category_vectors(categories)
        self._exposures = np.zeros(fit.num_items, dtype=np.int64)

    def add(self, item_idx: IntArray, queries: QueryBatch) -> Mapping[str, DoubleArray]:
        """Count a block of lists; returns the per-user figures (B,), NaN where a user has none.

        - `novelty@k`, MIUF: mean of -log2(users of the item / users) over the list; an item nobody took counts as one user's.
          Source: RecTools MeanInvUserFreq.
        - `popularity_lift@k`: (mean count of the list's items - of the history's) / of the history's; NaN without a history that
          anybody took. Source: Abdollahpouri et al. 2019.
        - `diversity@k`, intra-list diversity: mean over pairs of 1 - cosine of category vectors, of items that have categories; NaN
          with fewer than two. Source: Ziegler et al. 2005 as in RecTools IntraListDiversity.
        """
        top = item_idx[:, : self.k]
        valid = top >= 0
        items = np.where(valid, top, 0)
        self._exposures += np.bincount(top[valid], minlength=len(self._exposures))
        length = np.where(valid.any(axis=1), valid.sum(axis=1), np.nan)
        found = {f"novelty@{self.k}": (self._surprise[items] * valid).sum(axis=1) / length}
        mean_count = (self._count[items] * valid).sum(axis=1) / length
        taken = np.bincount(queries.row, weights=self._count[queries.item_idx], minlength=len(queries))
        profile = taken / np.maximum(np.diff(queries.indptr), 1)
        found[f"popularity_lift@{self.k}"] = mean_count / np.where(profile > 0, profile, np.nan) - 1.0
        if self._vectors is not None:
            found[f"diversity@{self.k}"] = _mean_distance(top, self._vectors)
        return found

    def totals(self, num_allowed: int) -> dict[str, float]:
        """Figures of all lists together.

        - `coverage@k`: distinct items recommended over the items that may be.
        - `gini@k`: Gini coefficient of the exposures over the items that may be, 0 = all alike, 1 = one item has all:
          sum of (2 j - n - 1) c_j / (n sum of c), exposures c_j ascending, j from 1.
        """
        shown = np.sort(self._exposures)[max(len(self._exposures) - num_allowed, 0) :]
        place = np.arange(1, len(shown) + 1)
        total = float(len(shown)) * float(shown.sum())
        gini = float(((2 * place - len(shown) - 1) * shown).sum()) / total if total > 0 else 0.0
        return {f"coverage@{self.k}": float((shown > 0).sum()) / max(num_allowed, 1), f"gini@{self.k}": gini}


def _category_vectors(categories: IdArray) -> sp.csr_matrix:
    """(N, C) float64 rows of length 1, zero rows where an item has no category."""
    names: dict[str, int] = {}
    row: list[int] = []
    column: list[int] = []
    for item, own in enumerate(categories):
        if not isinstance(own, list | tuple | np.ndarray):
            continue
        parts = {part.strip() for path in own if isinstance(path, str) for part in path.split(">")}
        for part in parts:
            row.append(item)
            column.append(names.setdefault(part, len(names)))
    matrix = sp.csr_matrix((np.ones(len(row)), (row, column)), shape=(len(categories), max(len(names), 1)))
    length = np.sqrt(np.asarray(matrix.sum(axis=1)).ravel())
    return (sp.diags(1.0 / np.maximum(length, 1.0)) @ matrix).tocsr()


def _mean_distance(item_idx: IntArray, vectors: sp.csr_matrix) -> DoubleArray:
    """(B,) mean of 1 - cosine over the pairs of each row: from the length of the sum of the row's vectors."""
    has_vector = np.diff(vectors.indptr) > 0
    valid = (item_idx >= 0) & has_vector[np.maximum(item_idx, 0)]
    row, place = np.nonzero(valid)
    member = sp.csr_matrix((np.ones(len(row)), (row, item_idx[row, place])), shape=(len(item_idx), vectors.shape[0]))
    summed = member @ vectors
    squared = np.asarray(summed.multiply(summed).sum(axis=1)).ravel()
    count = valid.sum(axis=1).astype(np.float64)
    pairs = np.where(count >= 2, count * (count - 1), np.nan)
    return np.asarray(1.0 - (squared - count) / pairs, dtype=np.float64)
