"""EASE above the size of a dense inverse: every item's weights solved on the items that it shares most users with.

EASE's column j is (G' + l2 I)^-1 G'j over all other items, G being X'X. Here "all other items" becomes the `support` strongest by
cosine, so that the answer is EASE's own where the support is the catalogue, and time and memory grow with the number of items.
Gram rows are kept to `GRAM_SUPPORTS` times the support; pairs beyond count as never taken together.

Source: Steck 2019, equation 8; the restriction to neighbours is that of Ning and Karypis 2011 (fsSLIM, without its L1 term).

Shapes: `U` users, `A` items with activity, `M` support.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from training.interactions import FloatArray, LongArray
from training.models.item_item import keep_strongest

GRAM_SUPPORTS = 4
"""Entries kept a gram row, in supports: pairs of an item's neighbours are mostly neighbours of one another."""

PRODUCT_ENTRIES = 20_000_000
"""Entries of the gram formed at once, from above: 240 MB with its copies."""

SOLVE_CELLS = 8_000_000
"""Cells of the systems solved at once: 32 MB a copy."""

LONGEST_HISTORY = 1_000
"""A user with more items is left out: their n * n pairs cost most and say least of what belongs together."""


def local_weights(taken: sp.csr_matrix, l2: float, support: int) -> sp.csr_matrix:
    """(A, A) float32 weights, row = history item, column = candidate, zero diagonal, at most `support` entries a column.

    Args:
        taken: (U, A) ones where a user took an item.
        l2: added to the diagonal of the gram.
        support: M.
    """
    num_items = taken.shape[1]
    support = min(support, num_items - 1)
    diagonal = np.asarray(taken.sum(axis=0), dtype=np.float32).ravel()
    if support < 1:
        return _weights([], [], [], num_items)
    gram = strongest_gram(taken, diagonal, min(GRAM_SUPPORTS * support, num_items))
    nearest = keep_strongest(_cosines(gram, diagonal), support)
    # Sorted by cell, so that any pair's count is found by bisection.
    cells = np.repeat(np.arange(num_items, dtype=np.int64), np.diff(gram.indptr)) * num_items + gram.indices
    step = max(1, SOLVE_CELLS // (support * support))
    rows: list[LongArray] = []
    columns: list[LongArray] = []
    values: list[FloatArray] = []
    for start in range(0, num_items, step):
        items = np.arange(start, min(start + step, num_items))
        members, valid = _padded(nearest, items, support)
        if members.shape[1] == 0:
            continue
        found = _solve(cells, gram.data, diagonal, items, members, valid, l2)
        rows.append(members[valid])
        columns.append(np.repeat(items, valid.sum(axis=1)))
        values.append(found[valid])
    return _weights(rows, columns, values, num_items)


def _weights(rows: list[LongArray], columns: list[LongArray], values: list[FloatArray], num_items: int) -> sp.csr_matrix:
    none = np.empty(0, dtype=np.int64)
    place = (np.concatenate([none, *rows]), np.concatenate([none, *columns]))
    data = np.concatenate([none.astype(np.float32), *values])
    return sp.csr_matrix((data, place), shape=(num_items, num_items))


def strongest_gram(taken: sp.csr_matrix, diagonal: FloatArray, width: int) -> sp.csr_matrix:
    """(A, A) float32 symmetric: users of both items of a pair, zero diagonal; the `width` strongest pairs of either."""
    short = np.diff(taken.indptr) <= LONGEST_HISTORY
    # Everybody, where all are long: a small catalogue that everybody knows.
    counted = taken[short] if short.any() else taken
    by_item = counted.T.tocsr()
    # A row of the gram has at most as many entries as its users' histories together.
    reach = np.cumsum(by_item @ np.diff(counted.indptr))
    blocks, start = [], 0
    while start < taken.shape[1]:
        before = reach[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(reach, before + PRODUCT_ENTRIES, side="right")))
        block = (by_item[start:stop] @ counted).tocsr().astype(np.float32)
        own = np.repeat(np.arange(start, min(stop, taken.shape[1])), np.diff(block.indptr)) == block.indices
        block.data[own] = 0.0
        block.eliminate_zeros()
        kept = keep_strongest(_cosines(block, diagonal, start), width)
        blocks.append(_counts(kept, diagonal, start))
        start = stop
    rows = sp.vstack(blocks, format="csr")
    gram = rows.maximum(rows.T).tocsr()
    gram.sort_indices()
    return gram


def taken_together(taken: sp.csr_matrix, neighbours: int) -> sp.csr_matrix:
    """(A, A) float32 cosines of the users of two items, zero diagonal: each item's strongest, and who has it among theirs.

    Args:
        taken: (U, A) ones where a user took an item.
        neighbours: kept an item.
    """
    diagonal = np.asarray(taken.sum(axis=0), dtype=np.float32).ravel()
    return _cosines(strongest_gram(taken, diagonal, min(neighbours, taken.shape[1])), diagonal)


def local_bytes(num_items: int, support: int, history_lengths: LongArray) -> int:
    """Memory of `local_weights`, from above: the kept pairs and their mirror image, the weights, and what is worked on at once.

    Args:
        num_items: A.
        support: M.
        history_lengths: (U,) distinct items, or interactions, of each user.
    """
    lengths = history_lengths[history_lengths <= LONGEST_HISTORY].astype(np.float64)
    ordered_pairs = float((lengths * lengths).sum()) if len(lengths) else float(num_items) ** 2
    pairs = min(float(min(GRAM_SUPPORTS * support, num_items)) * num_items, ordered_pairs)
    weights = min(float(support) * num_items, ordered_pairs)
    return int(pairs * 64 + weights * 48 + PRODUCT_ENTRIES * 40 + SOLVE_CELLS * 40)


def _cosines(gram: sp.csr_matrix, diagonal: FloatArray, first_row: int = 0) -> sp.csr_matrix:
    return sp.csr_matrix((gram.data / _norms(gram, diagonal, first_row), gram.indices, gram.indptr), shape=gram.shape)


def _counts(cosines: sp.csr_matrix, diagonal: FloatArray, first_row: int) -> sp.csr_matrix:
    counts = np.rint(cosines.data * _norms(cosines, diagonal, first_row)).astype(np.float32)
    return sp.csr_matrix((counts, cosines.indices, cosines.indptr), shape=cosines.shape)


def _norms(gram: sp.csr_matrix, diagonal: FloatArray, first_row: int) -> FloatArray:
    row = np.repeat(np.arange(first_row, first_row + gram.shape[0]), np.diff(gram.indptr))
    return np.asarray(np.sqrt(diagonal[row] * diagonal[gram.indices]), dtype=np.float32)


def _padded(nearest: sp.csr_matrix, items: LongArray, support: int) -> tuple[LongArray, npt.NDArray[np.bool_]]:
    """(b, M') neighbours of `items` and which of them are real."""
    starts, lengths = nearest.indptr[items], np.diff(nearest.indptr)[items]
    place = np.arange(int(lengths.max(initial=0)))
    valid = place < lengths[:, None]
    return nearest.indices[np.where(valid, starts[:, None] + place, 0)].astype(np.int64), valid


def _solve(
    cells: LongArray,
    counts: FloatArray,
    diagonal: FloatArray,
    items: LongArray,
    members: LongArray,
    valid: npt.NDArray[np.bool_],
    l2: float,
) -> FloatArray:
    """(b, M') weights of the members of each item: (G' + l2 I)^-1 g by Cholesky; padding is a unit row that answers 0."""
    import torch  # here: a replica that serves the weights does without

    num_items = len(diagonal)
    width = members.shape[1]
    left = np.zeros((len(items), width, width), dtype=np.float32)
    upper, lower = np.triu_indices(width, 1)
    pairs = _looked_up(cells, counts, members[:, upper] * num_items + members[:, lower])
    pairs = np.where(valid[:, upper] & valid[:, lower], pairs, np.float32(0.0))
    left[:, upper, lower] = pairs
    left[:, lower, upper] = pairs
    own = np.arange(width)
    left[:, own, own] = np.where(valid, diagonal[members] + np.float32(l2), 1.0)
    right = np.where(valid, _looked_up(cells, counts, members * num_items + items[:, None]), 0.0)
    system = torch.from_numpy(left)
    factor, failed = torch.linalg.cholesky_ex(system)
    # Pairs that were not kept can cost a system its definiteness: more ridge gives it back.
    ridge = l2
    while bool((failed > 0).any()):
        again = failed > 0
        system[again] += torch.eye(width) * ridge
        factor[again], failed[again] = torch.linalg.cholesky_ex(system[again])
        ridge *= 2
    return np.asarray(torch.cholesky_solve(torch.from_numpy(right.astype(np.float32))[:, :, None], factor)[:, :, 0].numpy())


def _looked_up(cells: LongArray, counts: FloatArray, wanted: LongArray) -> FloatArray:
    if len(cells) == 0:
        return np.zeros(wanted.shape, dtype=np.float32)
    place = np.minimum(np.searchsorted(cells, wanted.ravel()), len(cells) - 1)
    return np.where(cells[place] == wanted.ravel(), counts[place], np.float32(0.0)).reshape(wanted.shape)
