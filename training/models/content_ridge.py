"""Items without activity expressed by those with activity: kernel ridge regression on content.

What is known of a taken item (its column of item-item weights) is a function of its content; the regression estimates it for the
others. With K the likeness of the taken items and k_j that of item j with them, the coefficients of j are (K + penalty I)^-1 k_j.
They differ from shares by likeness: items that say the same count once, and some count against. Source: Rasmussen and Williams
2006, "Gaussian processes for machine learning", equation 2.25, with the columns as observations.

Likeness is (1 - s) c + s c^2 of the cosine c, s being `squared`: cosines alone let each word speak for itself, their squares let
pairs of words speak, so that what "nail" says depends on what it stands with. Sums and products of kernels are kernels (section
4.2.4 there).

Shapes: `N` items, `A` items with activity, `V` words and tags.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import psutil
import scipy.linalg as sl
import scipy.sparse as sp

from training.errors import NotTrainableError
from training.interactions import FloatArray, LongArray
from training.models.item_item import keep_strongest
from training.text_vectors import unit_rows

ITEMS_AT_ONCE = 500


def ridge_lending(tokens: sp.csr_matrix, counts: LongArray, *, penalty: float, squared: float, lenders: int) -> sp.csr_matrix:
    """(N, N) float32 coefficients, row = lender, column = borrower; an item with activity has a one at itself and nothing else.

    Args:
        tokens: (N, V) words and tags.
        counts: (N,) interactions of each item.
        penalty: above 0, beside the diagonal of ones.
        squared: share of the squared cosines in the likeness, from 0 to 1.
        lenders: coefficients of largest magnitude kept for an item.

    Raises:
        NotTrainableError: the memory at hand does not hold the cosines.
    """
    unit = unit_rows(tokens)
    taken, new = np.flatnonzero(counts > 0), np.flatnonzero((counts == 0) & (np.diff(unit.indptr) > 0))
    size = len(taken)
    own = sp.csr_matrix((np.ones(size, dtype=np.float32), (taken, taken)), shape=(len(counts), len(counts)))
    if not size or not len(new):
        return own
    need, free = ridge_bytes(size), psutil.virtual_memory().available
    if need > free:
        raise NotTrainableError(
            f'carry = "ridge" needs about {need / 1e9:.1f} GB for {size:,} items, {free / 1e9:.1f} GB are free: set carry = "lend"'
        )
    kernel = np.empty((size, size), dtype=np.float32, order="F")
    across = unit[taken].T.tocsr()
    for start in range(0, size, ITEMS_AT_ONCE):  # symmetric: rows of a block are columns, which lie together in memory
        kernel[:, start : start + ITEMS_AT_ONCE] = _likeness(unit[taken[start : start + ITEMS_AT_ONCE]] @ across, squared).T
    kernel[np.diag_indices(size)] += penalty
    factor = sl.cho_factor(kernel, lower=True, overwrite_a=True, check_finite=False)
    blocks = [
        _coefficients(factor, _likeness(unit[new[start : start + ITEMS_AT_ONCE]] @ across, squared), lenders)
        for start in range(0, len(new), ITEMS_AT_ONCE)
    ]
    found = sp.vstack(blocks, format="coo")
    place = (taken[found.col], new[found.row])
    return (own + sp.csr_matrix((found.data, place), shape=own.shape)).tocsr().astype(np.float32)


def ridge_bytes(size: int) -> int:
    """Memory for `size` items with activity: the cosines, and blocks that are small beside them."""
    return int(1.2 * size * size * 4)


def _likeness(cosines: sp.csr_matrix, squared: float) -> FloatArray:
    """Dense; see the module."""
    cosines.data *= np.float32(1.0 - squared) + np.float32(squared) * cosines.data
    return np.asarray(cosines.toarray(), dtype=np.float32)


def _coefficients(factor: tuple[npt.NDArray[np.floating], bool], similar: FloatArray, lenders: int) -> sp.csr_matrix:
    """(block, A) coefficients of a block of items."""
    solved: FloatArray = sl.cho_solve(factor, similar.T, check_finite=False).T
    return keep_strongest(sp.csr_matrix(solved, dtype=np.float32), lenders)
