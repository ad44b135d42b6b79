"""Products of sparse matrices, multiplied as dense ones where that is quicker: a tenth of all columns is hardly sparse."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from training.interactions import LongArray

DENSE_GAIN = 60
"""How many multiplications BLAS makes while scipy makes one: 180 to 210 were measured at 2,000 entries of 11,500, on two cores."""
DENSE_BYTES = 1_000_000_000
"""Memory that the operands may take as dense matrices."""


def product(left: sp.csr_matrix, right: sp.csr_matrix) -> sp.csr_matrix:
    """`left @ right` as a sparse matrix, multiplied as dense ones where they are full enough and small enough.

    Args:
        left: (R, A), float32; a block of rows, as one dense copy is made of it.
        right: (A, C), float32.
    """
    steps = int(np.diff(right.indptr)[left.indices].sum())
    inner = _filled_columns(left)
    used = right[inner]  # no more entries than steps, however large the whole is
    columns = _filled_columns(used)
    cells = left.shape[0] * len(columns)
    size = 4 * (cells + len(inner) * (len(columns) + left.shape[0]))
    if not steps or cells * len(inner) > DENSE_GAIN * steps or size > DENSE_BYTES:
        return (left @ right).tocsr()
    dense = left[:, inner].toarray() @ used[:, columns].toarray()
    found = sp.csr_matrix(dense)
    return sp.csr_matrix((found.data, columns[found.indices], found.indptr), shape=(left.shape[0], right.shape[1]))


def _filled_columns(matrix: sp.csr_matrix) -> LongArray:
    filled = np.zeros(matrix.shape[1], dtype=bool)
    filled[matrix.indices] = True
    return np.flatnonzero(filled)
