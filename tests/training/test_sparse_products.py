"""Products are those of scipy, whichever way they are made."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from training import sparse_products
from training.sparse_products import product


def random_matrix(rows: int, columns: int, density: float, seed: int) -> sp.csr_matrix:
    return sp.random(rows, columns, density=density, format="csr", dtype=np.float32, random_state=seed)


@pytest.mark.parametrize("density", [0.0, 0.002, 0.3])
def test_same_as_scipys(density: float) -> None:
    left, right = random_matrix(50, 400, density, 0), random_matrix(400, 300, density, 1)
    found = product(left, right)
    assert found.shape == (50, 300)
    np.testing.assert_allclose(found.toarray(), (left @ right).toarray(), rtol=1e-5, atol=1e-6)


def test_empty_columns_and_rows_stay_where_they_are() -> None:
    left, right = random_matrix(20, 100, 0.4, 2).tolil(), random_matrix(100, 60, 0.4, 3).tolil()
    left[3], left[:, 7], right[:, [0, 11, 59]] = 0, 0, 0
    left, right = left.tocsr(), right.tocsr()
    for matrix in (left, right):
        matrix.eliminate_zeros()
    np.testing.assert_allclose(product(left, right).toarray(), (left @ right).toarray(), rtol=1e-5)


def test_dense_only_where_full_and_small(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []
    toarray = sp.csr_matrix.toarray

    def noted(matrix: sp.csr_matrix) -> np.ndarray:
        made.append(matrix.shape)
        return toarray(matrix)

    monkeypatch.setattr(sp.csr_matrix, "toarray", noted)
    product(random_matrix(50, 400, 0.002, 0), random_matrix(400, 300, 0.002, 1))
    assert not made
    full = random_matrix(50, 400, 0.3, 0), random_matrix(400, 300, 0.3, 1)
    product(*full)
    assert made == [(50, 400), (400, 300)]
    made.clear()
    monkeypatch.setattr(sparse_products, "DENSE_BYTES", 100_000)
    product(*full)
    assert not made
