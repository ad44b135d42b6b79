"""Transition kNN: items that follow, and precede, an item in other people's histories.

Counts pairs of one history at gaps 1 to `window`, weighted `gap_decay ** (gap - 1)`, forwards with weight 1 and backwards with
`backward`; normalises by popularity on both sides. Seconds to fit, no training loop, strong on short histories.

Shapes: `E` interactions, `N` items; the fitted matrix is (N, N) sparse with at most `neighbours` entries a row.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from training.interactions import FloatArray, Interactions
from training.models.base import ModelConfig, ReportEpoch, TrainingData
from training.models.item_item import ItemItemConfig, ItemItemRetriever, keep_strongest, popularity_share


class TransitionKnnConfig(ItemItemConfig):
    """Parameters of the transition kNN.

    Args:
        window: largest distance of a pair, in entries of the history.
        gap_decay: a pair at distance g counts `gap_decay ** (g - 1)`.
        backward: weight of "came before" against "came after".
        source_exponent, target_exponent: divide by the history item's and the candidate's total to these powers.
    """

    history_decay: float = Field(default=0.6, gt=0, le=1)
    window: int = Field(default=10, ge=1, le=200)
    gap_decay: float = Field(default=0.7, gt=0, le=1)
    backward: float = Field(default=0.5, ge=0, le=1)
    source_exponent: float = Field(default=0.5, ge=0, le=2)
    target_exponent: float = Field(default=0.3, ge=0, le=2)


class TransitionKnn(ItemItemRetriever):
    """Transition kNN; see the module and `TransitionKnnConfig`."""

    name: ClassVar[str] = "transition_knn"
    Config: ClassVar[type[ModelConfig]] = TransitionKnnConfig
    config: TransitionKnnConfig

    def fit(self, data: TrainingData, *, seed: int = 0, on_epoch: ReportEpoch | None = None) -> Self:
        """See `Retriever.fit`. No randomness, no epochs."""
        config = self.config
        forward = transition_counts(data.interactions, config.window, config.gap_decay)
        weights = normalised(forward + config.backward * forward.T, config.source_exponent, config.target_exponent)
        self.set_weights(keep_strongest(weights, config.neighbours), popularity_share(data.interactions))
        return self


def normalised(counts: sp.csr_matrix, source_exponent: float, target_exponent: float) -> sp.csr_matrix:
    """(N, N) float32 counts without those of an item with itself, divided by the totals of row and column to these powers."""
    both = counts.tocsr().astype(np.float32)
    both.setdiag(0)
    both.eliminate_zeros()
    source = _inverse_power(np.asarray(both.sum(axis=1), dtype=np.float32).ravel(), source_exponent)
    target = _inverse_power(np.asarray(both.sum(axis=0), dtype=np.float32).ravel(), target_exponent)
    return (sp.diags(source) @ both @ sp.diags(target)).tocsr().astype(np.float32)


def transition_counts(interactions: Interactions, window: int, gap_decay: float) -> sp.csr_matrix:
    """(N, N) float32: entry (i, j) sums `gap_decay ** (gap - 1)` over the pairs of one history, j after i within `window`."""
    user, item = interactions.user_idx, interactions.item_idx
    shape = (interactions.num_items, interactions.num_items)
    nothing = np.empty(0, dtype=np.int32)
    total = sp.csr_matrix((nothing.astype(np.float32), (nothing, nothing)), shape=shape)
    longest = int(np.diff(interactions.indptr).max(initial=0))
    for gap in range(1, min(window, longest - 1) + 1):
        same = user[gap:] == user[:-gap]
        before, after = item[:-gap][same], item[gap:][same]
        weight = np.full(len(before), gap_decay ** (gap - 1), dtype=np.float32)
        total = total + sp.csr_matrix((weight, (before, after)), shape=shape)
    return total


def _inverse_power(totals: FloatArray, exponent: float) -> FloatArray:
    """`totals ** -exponent`, 0 where the total is 0."""
    return np.asarray(np.where(totals > 0, np.maximum(totals, 1e-12) ** -exponent, 0.0), dtype=np.float32)
