"""Losses of the sequential model: cross entropy over the whole catalogue, or over a sample of it.

Legend: `R` predictions, `N` items, `D` width, `M` sampled items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.interactions import FloatArray
from training.models.sequential_products import by_blocks

BLOCK_CELLS = 4_000_000
"""Logits held at once, 16 MB each for logits and shares: they stay in the CPU's cache, and memory does not grow with the batch."""


class FullSoftmax(torch.autograd.Function):
    """Mean cross entropy of vectors (R, D) against all item vectors (N, D), by blocks of rows.

    Computes its gradients on the way forward: logits are made once and never kept.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, items: Tensor, target: Tensor, smoothing: float, fast: bool) -> Tensor:
        """vectors (R, D), items (N, D), target (R,) int64 -> (); `smoothing` of each target goes to all items alike."""
        rows, num_items = len(vectors), len(items)
        most = max(1, BLOCK_CELLS // num_items)
        block = 2 ** (most.bit_length() - 1)
        logits, share = vectors.new_empty(2, min(rows, block), num_items)
        to_vectors, to_items = torch.empty_like(vectors), torch.zeros_like(items)
        total = vectors.new_zeros(())

        def learn(rows: slice) -> None:
            nonlocal total
            part, wanted = vectors[rows], target[rows, None]
            found, parted = logits[: len(part)], share[: len(part)]
            torch.mm(part, items.T, out=found)
            torch.softmax(found, dim=1, out=parted)
            total -= (parted.gather(1, wanted).clamp(min=1e-30).log()).sum() * (1 - smoothing)
            if smoothing:
                total -= smoothing * torch.log(parted.clamp(min=1e-30)).mean(dim=1).sum()
                parted -= smoothing / num_items
            parted.scatter_add_(1, wanted, parted.new_full(wanted.shape, smoothing - 1))
            torch.mm(parted, items, out=to_vectors[rows])
            to_items.addmm_(parted.T, part)

        by_blocks(rows, learn, block, fast=fast)
        ctx.save_for_backward(to_vectors, to_items)
        ctx.rows = rows
        return total / rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        to_vectors, to_items = ctx.saved_tensors
        scale = grads[0] / ctx.rows
        return to_vectors * scale, to_items * scale, None, None, None


full_softmax: Callable[[Tensor, Tensor, Tensor, float, bool], Tensor] = FullSoftmax.apply
"""`FullSoftmax` as a function."""


class SampledItems:
    """Items drawn for sampled softmax: half of them by popularity, half evenly, with how often each is expected."""

    def __init__(self, popularity: FloatArray, count: int, rng: np.random.Generator) -> None:
        """popularity (N,): share of the most popular item, 0 for items that are never drawn."""
        self._rng, self._count = rng, count
        known = np.flatnonzero(popularity > 0)
        share = popularity[known] / popularity[known].sum()
        self._known, self._cumulative = known, np.cumsum(0.5 * share + 0.5 / len(known))
        chance = np.full(len(popularity), 1.0, dtype=np.float64)
        chance[known] = 0.5 * share + 0.5 / len(known)
        self.log_expected = np.log(chance * count).astype(np.float32)

    def draw(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """(M,) int64, with repeats."""
        drawn = np.searchsorted(self._cumulative, self._rng.random(self._count) * self._cumulative[-1], side="right")
        return np.asarray(self._known[np.minimum(drawn, len(self._known) - 1)], dtype=np.int64)


def sampled_softmax(
    vectors: Tensor, target_items: Tensor, target: Tensor, sampled_items: Tensor, sampled: Tensor, log_expected: Tensor
) -> Tensor:
    """Mean cross entropy of each target against the sample, each logit less the log of how often its item is expected in one.

    Shapes: vectors (R, D), target_items (R, D), target (R,), sampled_items (M, D), sampled (M,), log_expected (N,) -> ().

    Source: Bengio and Senecal 2008, "Adaptive importance sampling"; Yi et al. 2019 (the logQ correction).
    """
    own = (vectors * target_items).sum(dim=1)
    logits = vectors @ sampled_items.T - log_expected[sampled]
    logits = logits.masked_fill(sampled[None, :] == target[:, None], -torch.inf)
    return (torch.logsumexp(torch.cat([own[:, None], logits], dim=1), dim=1) - own).mean()
