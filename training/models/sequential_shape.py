"""What decides the parameters of the sequential network and their meaning; free of torch, for training and serving alike.

Source of the low-pass kernel: Shin et al. 2024 (BSARec), "An Attentive Inductive Bias for Sequential Recommendation beyond the
Self-Attention". Legend: `L` length of a sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from training.interactions import FloatArray

TIME_BUCKETS = 32
"""Of the time between two entries, by doubling from a second on: the last begins at 34 years."""
NORM_EPSILON = 1e-5
"""Added to the variance that a layer is normalised by."""


@dataclass(frozen=True)
class NetworkShape:
    """Of a network; the fields are those of `SequentialConfig`."""

    num_items: int
    width: int
    blocks: int
    heads: int
    max_len: int
    dropout: float
    attention_dropout: float
    every: bool
    time_bias: bool
    filter_share: float
    filter_cutoff: int
    fast: bool

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter by its name, content left out: it is a part of the item vectors once they are trained."""
        width, norm = self.width, ("weight", "bias")
        found: dict[str, tuple[int, ...]] = {"items.weight": (self.num_items, width)}
        if not self.every:
            found["position"] = (self.max_len, width)
        found |= {f"norm.{part}": (width,) for part in norm}
        layers = {"query": (width, width), "key_value": (2 * width, width), "out": (width, width)}
        layers |= {"widen": (4 * width, width), "narrow": (width, 4 * width)}
        for block in (f"blocks.{number}" for number in range(self.blocks)):
            for layer, (outputs, inputs) in layers.items():
                found |= {f"{block}.{layer}.weight": (outputs, inputs), f"{block}.{layer}.bias": (outputs,)}
            norms = ("norm", "feed_norm", "filter_norm") if self.filter_share > 0 else ("norm", "feed_norm")
            found |= {f"{block}.{name}.{part}": (width,) for name in norms for part in norm}
            if self.every:
                found[f"{block}.distance"] = (self.heads, self.max_len)
            if self.time_bias:
                found[f"{block}.since"] = (TIME_BUCKETS, self.heads)
            if self.filter_share > 0:
                found[f"{block}.high"] = (width,)
        return found

    def low_pass_kernel(self, length: int) -> FloatArray:
        """(L, L) float32: the last rows and columns of the circulant matrix that keeps frequencies 0 to `filter_cutoff`.

        Frequencies are those of a window of `max_len` places. Where every position predicts, none looks ahead.
        """
        kernel = _low_pass_kernel(self.max_len, self.filter_cutoff, length)
        return np.tril(kernel) if self.every else kernel


@lru_cache(maxsize=256)
def _low_pass_kernel(window: int, cutoff: int, length: int) -> FloatArray:
    places, frequencies = np.arange(window), np.arange(min(cutoff, window // 2) + 1)
    weight = np.where((frequencies == 0) | (frequencies * 2 == window), 1.0, 2.0)
    wave = (weight * np.cos(2 * math.pi * places[:, None] * frequencies / window)).sum(axis=1) / window
    gap = np.arange(length)[:, None] - np.arange(length)
    return wave[gap % window].astype(np.float32)
