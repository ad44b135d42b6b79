"""EASE: a linear item-to-item model in closed form, the history decayed by age at scoring.

B = I - P / diag(P) with P = (X'X + l2 I)^-1 and a zero diagonal; X holds who took what. One dense Cholesky inverse of the items
that have activity; then the strongest entries of each row are kept. Above `dense_up_to` items each column is solved on its own
neighbourhood instead (`ease_local`).

Source: Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data", equation 8.

Shapes: `U` users, `A` items with activity, `N` items.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import psutil
import scipy.sparse as sp
from pydantic import Field
from scipy.linalg import lapack

from training.errors import NotTrainableError
from training.interactions import Interactions
from training.models.base import ModelConfig, ReportEpoch, TrainingData
from training.models.ease_local import local_bytes, local_weights
from training.models.item_item import ItemItemConfig, ItemItemRetriever, keep_strongest, popularity_share

DOUBLE_UP_TO = 6_000
"""Items up to which the inverse is taken in float64; above, float32 halves time and memory."""

ROWS_AT_ONCE = 1_000


class EaseConfig(ItemItemConfig):
    """Parameters of EASE.

    Args:
        l2: added to the diagonal of X'X.
        dense_up_to: items with activity up to which one dense inverse is taken: 20,000 need 1.9 GB and minutes on 2 cores.
        support: above it, how many neighbours the weights of an item are solved on.
    """

    l2: float = Field(default=200.0, gt=0)
    dense_up_to: int = Field(default=20_000, ge=0, le=60_000)
    support: int = Field(default=100, ge=1, le=1_000)


class Ease(ItemItemRetriever):
    """EASE; see the module and `EaseConfig`."""

    name: ClassVar[str] = "ease"
    Config: ClassVar[type[ModelConfig]] = EaseConfig
    config: EaseConfig

    @classmethod
    def training_bytes(cls, config: ModelConfig, interactions: Interactions) -> int:
        """See `Retriever.training_bytes`: the dense matrix of items with activity, or the kept pairs of a local solve."""
        assert isinstance(config, EaseConfig)
        size = len(np.unique(interactions.item_idx))
        dense = size <= config.dense_up_to
        own = dense_bytes(size) if dense else local_bytes(size, config.support, np.diff(interactions.indptr))
        return super().training_bytes(config, interactions) + own

    def fit(self, data: TrainingData, *, seed: int = 0, on_epoch: ReportEpoch | None = None) -> Self:
        """See `Retriever.fit`. No randomness, no epochs.

        Raises:
            NotTrainableError: too little memory, or too small an l2 for the precision.
        """
        interactions = data.interactions
        active = np.flatnonzero(np.bincount(interactions.item_idx, minlength=interactions.num_items))
        taken = interactions.to_csr()
        taken.data[:] = 1.0
        if len(active) <= self.config.dense_up_to:
            weights = strongest_rows(gram_inverse(taken[:, active], self.config.l2), self.config.neighbours)
        else:
            _check_memory(local_bytes(len(active), self.config.support, np.diff(interactions.indptr)), len(active))
            found = local_weights(taken[:, active], self.config.l2, self.config.support)
            weights = keep_strongest(found, self.config.neighbours)
        grown = weights.tocoo()
        shape = (interactions.num_items, interactions.num_items)
        matrix = sp.csr_matrix((grown.data, (active[grown.row], active[grown.col])), shape=shape)
        self.set_weights(matrix, popularity_share(interactions))
        return self


def gram_inverse(matrix: sp.csr_matrix, l2: float) -> npt.NDArray[np.floating]:
    """(A, A) inverse of X'X + l2 I by Cholesky, in place; float64 up to `DOUBLE_UP_TO` columns, float32 above.

    Raises:
        NotTrainableError: the memory at hand does not hold it, or the matrix is not positive definite in its precision.
    """
    size = matrix.shape[1]
    dtype = np.float64 if size <= DOUBLE_UP_TO else np.float32
    _check_memory(dense_bytes(size), size)
    gram = np.empty((size, size), dtype=dtype, order="F")
    by_item = matrix.T.tocsr()
    for start in range(0, size, ROWS_AT_ONCE):
        # Symmetric: a block of rows, transposed, is a block of columns, which lie together in memory.
        gram[:, start : start + ROWS_AT_ONCE] = (by_item[start : start + ROWS_AT_ONCE] @ matrix).toarray().T
    gram[np.diag_indices(size)] += l2
    potrf, potri = (lapack.dpotrf, lapack.dpotri) if dtype is np.float64 else (lapack.spotrf, lapack.spotri)
    factor, failed = potrf(gram, lower=1, overwrite_a=1, clean=0)
    if failed == 0:
        inverse, failed = potri(factor, lower=1, overwrite_c=1)
    if failed != 0:
        raise NotTrainableError(f"ease: X'X + {l2:g} I is not positive definite in {np.dtype(dtype).name}: give a larger l2")
    _mirror_lower(inverse)
    return np.asarray(inverse)


def dense_bytes(size: int) -> int:
    """Memory of the inverse of `size` columns: the dense matrix, and blocks of it that are small beside it."""
    return int(1.2 * size * size * (8 if size <= DOUBLE_UP_TO else 4))


def _check_memory(need: int, items: int) -> None:
    free = psutil.virtual_memory().available
    if need > free:
        raise NotTrainableError(
            f"ease needs about {need / 1e9:.1f} GB for {items:,} items and {free / 1e9:.1f} GB are free: set a lower dense_up_to "
            "or support, or leave ease out of the study (transition_knn and ials need less)"
        )


def _mirror_lower(square: npt.NDArray[np.floating]) -> None:
    """Copy the lower triangle onto the upper, by blocks, so that no second matrix is needed."""
    for start in range(0, len(square), ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, len(square))
        square[start:stop, stop:] = square[stop:, start:stop].T
        corner = square[start:stop, start:stop]
        square[start:stop, start:stop] = np.tril(corner) + np.tril(corner, -1).T


def strongest_rows(precision: npt.NDArray[np.floating], neighbours: int) -> sp.csr_matrix:
    """(A, A) sparse float32: -P / diag(P) with a zero diagonal, the `neighbours` entries of largest magnitude a row."""
    size = len(precision)
    diagonal = precision.diagonal().copy()
    keep = min(neighbours, size - 1)
    columns, values = [], []
    for start in range(0, size, ROWS_AT_ONCE):
        # P is symmetric: rows are read as columns of the Fortran-ordered array, which lie together in memory.
        rows = np.asarray(-(precision[:, start : start + ROWS_AT_ONCE].T) / diagonal, dtype=np.float32)
        rows[np.arange(len(rows)), np.arange(start, start + len(rows))] = 0.0
        if keep == 0:
            continue
        best = np.sort(np.argpartition(-np.abs(rows), keep - 1, axis=1)[:, :keep], axis=1)
        columns.append(best.astype(np.int32).ravel())
        values.append(np.take_along_axis(rows, best, axis=1).ravel())
    indptr = np.arange(size + 1, dtype=np.int64) * keep
    data = np.concatenate(values) if values else np.empty(0, dtype=np.float32)
    indices = np.concatenate(columns) if columns else np.empty(0, dtype=np.int32)
    return sp.csr_matrix((data, indices, indptr), shape=(size, size))
