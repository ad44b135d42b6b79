"""EASE that reaches items without activity: an item that few have taken borrows weights from those most like it by content.

weights = H' (B + o I) A + c T

- B is EASE's matrix, or with `base` = `cosine` that of who took two items, with `transitions` that of two taken soon after each
  other; o is `own_weight`.
- Column j of A is (1 - a_j) of the item itself and a_j of its neighbours by words and tags, a_j = shrinkage / (shrinkage + its
  interactions). With `carry` = `ridge`, A is that of `content_ridge`, and only items without activity borrow.
- H is I for items with activity and s A for the others: a history may hold an item that came up after training, which speaks with
  borrowed rows; s brings those, which a mean over many makes small, to the size of rows of one's own.
- T holds the cosines of words and tags themselves.

Shapes: `N` items, `A` items with activity.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from training.interactions import BoolArray, FloatArray, Interactions, LongArray
from training.models.base import ModelConfig, ReportEpoch, TrainingData
from training.models.content_ridge import ridge_bytes, ridge_lending
from training.models.ease import dense_bytes, gram_inverse, strongest_rows
from training.models.ease_local import GRAM_SUPPORTS, local_bytes, local_weights, taken_together
from training.models.item_item import ItemItemConfig, ItemItemRetriever, keep_strongest, popularity_share
from training.models.transition_knn import normalised, transition_counts
from training.sparse_products import DENSE_BYTES, product
from training.text_vectors import unit_rows
from training.token_metric import item_tokens

ROWS_AT_ONCE = 500


class ContentEaseConfig(ItemItemConfig):
    """Parameters of EASE with content.

    Args:
        base: what is carried: `ease`, or `cosine` or `transitions`, which are quick to fit and differ enough to stand beside it.
        window, gap_decay: with `transitions`, as of `transition_knn`, both directions alike.
        l2: added to the diagonal of X'X.
        dense_up_to: items with activity up to which one dense inverse is taken, as of `ease`; above, columns are solved locally.
        support: above it, neighbours that the weights of an item are solved on.
        lenders: items by content that an item borrows from.
        carry: how much from whom: `lend` by cosines, `ridge` by a regression (memory: the square of the items with activity).
        sharpness: with `lend`, a lender counts by its cosine to this power.
        shrinkage: with `lend`, an item with so many interactions stands half on its own.
        penalty, squared: of the regression, and how much of its likeness are squared cosines (`content_ridge`).
        own_weight: of an entry itself beside its weights, for items that borrow: they are near those, not only near what goes with
            those.
        text_weight: share of the words in a cosine, the rest being the tags'.
        code_weight, freedom: as of `text_knn`.
        content_weight: of the cosines beside the weights, both being brought to one size first.
    """

    history_decay: float = Field(default=0.9, gt=0, le=1)
    base: Literal["ease", "cosine", "transitions"] = "ease"
    window: int = Field(default=5, ge=1, le=200)
    gap_decay: float = Field(default=0.8, gt=0, le=1)
    l2: float = Field(default=100.0, gt=0)
    dense_up_to: int = Field(default=20_000, ge=0, le=60_000)
    support: int = Field(default=100, ge=1, le=1_000)
    lenders: int = Field(default=50, ge=1, le=5_000)
    carry: Literal["lend", "ridge"] = "lend"
    sharpness: float = Field(default=3.0, ge=0, le=20)
    shrinkage: float = Field(default=2.0, ge=0)
    penalty: float = Field(default=2.0, gt=0, le=1_000)
    squared: float = Field(default=0.7, ge=0, le=1)
    own_weight: float = Field(default=0.0, ge=0, le=10)
    text_weight: float = Field(default=0.9, ge=0, le=1)
    code_weight: float = Field(default=0.3, ge=0, le=0.9)
    freedom: float = Field(default=0.3, ge=0, le=100)
    content_weight: float = Field(default=0.5, ge=0, le=100)


class ContentEase(ItemItemRetriever):
    """EASE with content; see the module and `ContentEaseConfig`."""

    name: ClassVar[str] = "content_ease"
    Config: ClassVar[type[ModelConfig]] = ContentEaseConfig
    config: ContentEaseConfig

    @classmethod
    def training_bytes(cls, config: ModelConfig, interactions: Interactions) -> int:
        """See `Retriever.training_bytes`: base or regression, words of the catalogue, the weights twice, a dense product."""
        assert isinstance(config, ContentEaseConfig)
        size = len(np.unique(interactions.item_idx))
        dense = config.base == "ease" and size <= config.dense_up_to
        support = config.support if config.base == "ease" else max(config.neighbours // GRAM_SUPPORTS, 1)
        own = dense_bytes(size) if dense else local_bytes(size, support, np.diff(interactions.indptr))
        sparse = interactions.num_items * (4_000 + 40 * config.neighbours)
        carried = ridge_bytes(size) if config.carry == "ridge" else 0
        blocks = min(DENSE_BYTES, dense_bytes(interactions.num_items))
        return super().training_bytes(config, interactions) + max(own, carried) + sparse + blocks

    def fit(self, data: TrainingData, *, seed: int = 0, on_epoch: ReportEpoch | None = None) -> Self:
        """See `Retriever.fit`. No epochs.

        Raises:
            NotTrainableError: the memory at hand does not hold the inverse or the regression, or l2 is too small for the precision.
        """
        config, interactions = self.config, data.interactions
        tokens = item_tokens(
            data, text_weight=config.text_weight, code_weight=config.code_weight, freedom=config.freedom, seed=seed
        )
        counts = np.bincount(interactions.item_idx, minlength=interactions.num_items)
        wanted = config.carry == "lend" or config.content_weight > 0
        near = nearest_by_content(tokens if wanted else tokens[:, :0], config.neighbours)
        if config.carry == "ridge":
            lending = ridge_lending(tokens, counts, penalty=config.penalty, squared=config.squared, lenders=config.lenders)
        else:
            lending = _lending(near, counts, config)
        base = _base(interactions, config)
        scale = _size(base) / max(_size(near), 1e-12) * config.content_weight
        # Item by item, as columns of `weights`: among the strongest of a history entry's row, items that borrow would be lost.
        whole = base + sp.identity(len(counts), dtype=np.float32, format="csr") * np.float32(config.own_weight)
        borrowers, across, new = lending.T.tocsr(), whole.T.tocsr(), counts == 0
        spoken, kept = _speaking(lending, whole, new), sp.diags((~new).astype(np.float32))
        blocks, order = [], np.argsort(new, kind="stable")  # rows of items that borrow are full, and lie together
        for start in range(0, len(order), ROWS_AT_ONCE):
            rows = order[start : start + ROWS_AT_ONCE]
            carried = product(borrowers[rows], across)
            block = (carried @ kept + product(carried, spoken) + np.float32(scale) * near[rows]).tocsr()
            block.data[np.repeat(rows, np.diff(block.indptr)) == block.indices] = 0.0
            block.eliminate_zeros()
            blocks.append(keep_strongest(block, config.neighbours))
        weights = sp.vstack(blocks, format="csr", dtype=np.float32)[np.argsort(order)].T.tocsr()
        self.set_weights(weights, popularity_share(interactions))
        return self

    def set_weights(self, weights: sp.csr_matrix, popularity: FloatArray) -> None:
        """See `ItemItemRetriever.set_weights`; an item that any history reaches is known."""
        super().set_weights(weights, popularity)
        reached = np.zeros(weights.shape[1], dtype=bool)
        reached[weights.indices] = True
        self.known = self.known | reached


def nearest_by_content(tokens: sp.csr_matrix, neighbours: int) -> sp.csr_matrix:
    """(N, N) float32 cosines of the `neighbours` most alike of each item, zero diagonal."""
    unit = unit_rows(tokens)
    across = unit.T.tocsr()
    blocks = []
    for start in range(0, unit.shape[0], ROWS_AT_ONCE):
        block = (unit[start : start + ROWS_AT_ONCE] @ across).tocsr()
        row = np.repeat(np.arange(block.shape[0]) + start, np.diff(block.indptr))
        block.data[row == block.indices] = 0.0
        block.eliminate_zeros()
        blocks.append(keep_strongest(block, neighbours))
    return sp.vstack(blocks, format="csr", dtype=np.float32)


def _lending(near: sp.csr_matrix, counts: LongArray, config: ContentEaseConfig) -> sp.csr_matrix:
    """A of the module: row = lender, column = borrower; columns sum to one, where an item has lenders or activity."""
    warm = sp.diags((counts > 0).astype(np.float32))
    lenders = (near @ warm).tocsr()
    lenders.eliminate_zeros()
    lenders = keep_strongest(lenders, config.lenders)
    lenders.data = lenders.data**config.sharpness
    total = np.asarray(lenders.sum(axis=1)).ravel()
    borrowed = np.where(total > 0, config.shrinkage / np.maximum(config.shrinkage + counts, 1e-9), 0.0)
    borrowed[(counts == 0) & (total > 0)] = 1.0
    shares = sp.diags(borrowed / np.where(total > 0, total, 1.0)) @ lenders
    return (shares.T + sp.diags(1.0 - borrowed)).tocsr().astype(np.float32)


def _speaking(lending: sp.csr_matrix, whole: sp.csr_matrix, new: BoolArray) -> sp.csr_matrix:
    """s A of the module in the columns of new items, the rest empty: row = item whose weights speak, column = entry of a history.

    `whole` is B + o I, row = entry.
    """
    drawn = lending[:, np.flatnonzero(new)[:: max(int(new.sum()) // ROWS_AT_ONCE, 1)]]
    # As loud as rows of one's own are about new items; a mean is no longer than what it is a mean of, so that less is chance.
    own = (whole @ drawn).tocsr()
    others = (drawn.T @ own).tocsr()
    borrowed = _mean_length(others - sp.diags(others.diagonal()))
    scale = max(_mean_length(own) / borrowed, 1.0) if borrowed else 1.0
    found = (lending @ sp.diags(np.where(new, scale, 0.0).astype(np.float32))).tocsr()
    found.eliminate_zeros()
    return found


def _mean_length(rows: sp.csr_matrix) -> float:
    """Mean Euclidean length of the rows that are not empty, 0 where all are."""
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1), dtype=np.float64)).ravel()
    return float(lengths[lengths > 0].mean()) if lengths.any() else 0.0


def _base(interactions: Interactions, config: ContentEaseConfig) -> sp.csr_matrix:
    if config.base == "transitions":
        forward = transition_counts(interactions, config.window, config.gap_decay)
        return keep_strongest(normalised(forward + forward.T, 0.5, 0.5), config.neighbours)
    active = np.flatnonzero(np.bincount(interactions.item_idx, minlength=interactions.num_items))
    taken = interactions.to_csr()[:, active]
    taken.data[:] = 1.0
    if config.base == "cosine":
        found = taken_together(taken, config.neighbours).tocoo()
    elif len(active) <= config.dense_up_to:
        found = strongest_rows(gram_inverse(taken, config.l2), config.neighbours).tocoo()
    else:
        found = local_weights(taken, config.l2, config.support).tocoo()
    place = (active[found.row], active[found.col])
    return sp.csr_matrix((found.data, place), shape=(interactions.num_items, interactions.num_items))


def _size(matrix: sp.csr_matrix) -> float:
    return float(np.sqrt(np.mean(np.square(matrix.data, dtype=np.float64)))) if matrix.nnz else 0.0
