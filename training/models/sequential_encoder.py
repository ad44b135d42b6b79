"""The forward pass of the sequential network in numpy, for the few histories of a request.

Equal to `sequential_network` but for the rounding of float32. One history goes through some sixty small operations, each of which
costs torch more than its arithmetic; and a process that only serves starts without torch: seconds, and 200 MB.

Legend: `T` tokens, `S` sequences, `D` width, `H` heads, `d` width of a head, `n` sequences of a group, `L` their padded length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import erf

from training.interactions import FloatArray, LongArray
from training.models.sequential_batches import Group, TokenBatch
from training.models.sequential_shape import NORM_EPSILON, TIME_BUCKETS, NetworkShape

Weights = Mapping[str, npt.NDArray[Any]]
HALF = np.float32(0.5)


class SequenceEncoder:
    """Item histories to vectors, by the weights of a trained `SequenceNetwork`."""

    def __init__(self, shape: NetworkShape, weights: Weights) -> None:
        """Weights: the network's state by name, float32; none is copied.

        Raises:
            ValueError: one is missing, is too many, or has another shape.
        """
        expected = shape.parameters()
        if expected.keys() != weights.keys():
            raise ValueError(f"{min(expected.keys() ^ weights.keys())} is too few or too many")
        for name, wanted in expected.items():
            if weights[name].shape != wanted:
                raise ValueError(f"{name} has shape {weights[name].shape}, not {wanted}")
        self.shape, self.weights = shape, weights
        marks = [f"blocks.{number}." for number in range(shape.blocks)]
        parts = [{name.removeprefix(mark): w for name, w in weights.items() if name.startswith(mark)} for mark in marks]
        self._blocks = [_Block(shape, part) for part in parts]

    def __call__(self, batch: TokenBatch) -> FloatArray:
        """(S, D) float32 of the last token of each sequence, in the order of the tokens."""
        x = self.weights["items.weight"][batch.item_idx]
        if not self.shape.every:
            x = x + self.weights["position"][batch.from_end]
        x = _normalised(x, self.weights, "norm")
        groups = [_Tokens(group, batch, self.shape) for group in batch.groups]
        for block in self._blocks[:-1]:
            x = block(x, x, groups, last_only=False)
        return self._blocks[-1](x, x[batch.last], groups, last_only=True)


class _Tokens:
    """A group of sequences, with what the blocks share of it."""

    def __init__(self, group: Group, batch: TokenBatch, shape: NetworkShape) -> None:
        self.count, self.length = group.count, group.length
        self.rows = slice(group.offset, group.offset + group.count * group.length)
        size = (group.count, group.length)
        self.valid = batch.valid[self.rows].reshape(size)
        self.mask = _causal_mask(self.valid)
        self.since = time_buckets(batch.time_us[self.rows].reshape(size)) if shape.time_bias else None
        self.low_pass = shape.low_pass_kernel(group.length) if shape.filter_share > 0 else None


class _Block:
    """Attention, mixed with the frequency filter where there is one, and the feed-forward layer; see `sequential_network.Block`."""

    def __init__(self, shape: NetworkShape, weights: Weights) -> None:
        self._shape, self._weights = shape, weights

    def __call__(self, x: FloatArray, asked: FloatArray, groups: list[_Tokens], last_only: bool) -> FloatArray:
        """x (T, D), and of it the rows that are wanted: all, or the last one of each sequence. Those rows of the block's output."""
        weights, share = self._weights, np.float32(self._shape.filter_share)
        query = self._linear(asked, "query") * np.float32((self._shape.width // self._shape.heads) ** -0.5)
        key_value = self._linear(x, "key_value")
        mixed, begin = [], 0
        for group in groups:
            end = begin + (group.count if last_only else group.count * group.length)
            mixed.append(self._attend(query[begin:end], key_value[group.rows], group, last_only))
            begin = end
        attended = _normalised(self._linear(_joined(mixed), "out") + asked, weights, "norm")
        if share > 0:
            low = _joined([_low_pass(x[group.rows], group, last_only) for group in groups])
            filtered = low + np.square(weights["high"]) * (asked - low)
            filtered = _normalised(filtered + asked, weights, "filter_norm")
            attended = share * filtered + (1 - share) * attended
        fed = self._linear(_gelu(self._linear(attended, "widen")), "narrow")
        return _normalised(fed + attended, weights, "feed_norm")

    def _linear(self, x: FloatArray, name: str) -> FloatArray:
        product: FloatArray = x @ self._weights[f"{name}.weight"].T
        product += self._weights[f"{name}.bias"]
        return product

    def _attend(self, query: FloatArray, key_value: FloatArray, group: _Tokens, last_only: bool) -> FloatArray:
        """Attention within the sequences of one group: (n * L, D), or (n, D)."""
        heads, width = self._shape.heads, self._shape.width
        part = key_value.reshape(group.count, group.length, 2, heads, -1)
        key, value = part[:, :, 0].transpose(0, 2, 3, 1), part[:, :, 1].transpose(0, 2, 1, 3)
        scores: FloatArray = query.reshape(group.count, -1, heads, width // heads).transpose(0, 2, 1, 3) @ key
        asked = slice(-1, None) if last_only else slice(None)
        scores += group.mask[:, :, asked]
        if self._shape.every:
            places = np.arange(group.length)
            scores += self._weights["distance"][:, np.maximum(places[asked, None] - places, 0)]
        if group.since is not None:
            scores += self._weights["since"][group.since[:, asked]].transpose(0, 3, 1, 2)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        return (scores @ value).transpose(0, 2, 1, 3).reshape(-1, width)


def _joined(parts: list[FloatArray]) -> FloatArray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _normalised(x: FloatArray, weights: Weights, name: str) -> FloatArray:
    """Each row of (T, D) at mean 0 and variance 1, times the weight and plus the bias of the layer `name`."""
    per_column = np.float32(1 / x.shape[1])
    out: FloatArray = x - x.sum(axis=1, keepdims=True) * per_column
    variance = np.einsum("td,td->t", out, out) * per_column
    out /= np.sqrt(variance + np.float32(NORM_EPSILON))[:, None]
    out *= weights[f"{name}.weight"]
    out += weights[f"{name}.bias"]
    return out


def _gelu(x: FloatArray) -> FloatArray:
    """x * P(a standard normal value is below x)."""
    out: FloatArray = erf(x * np.sqrt(HALF))
    out += 1
    out *= x
    out *= HALF
    return out


def _low_pass(x: FloatArray, group: _Tokens, last_only: bool) -> FloatArray:
    """The slow part of the group's sequences: tokens (n * L, D) -> (n * L, D), or (n, D)."""
    assert group.low_pass is not None
    kernel = group.low_pass[-1:] if last_only else group.low_pass
    there = group.valid[:, :, None].astype(np.float32)
    slow: FloatArray = kernel @ (x.reshape(group.count, group.length, -1) * there)
    return slow.reshape(-1, x.shape[1])


def _causal_mask(valid: FloatArray | npt.NDArray[np.bool_]) -> FloatArray:
    """valid (n, L) -> (n or 1, 1, L, L) float32: -inf for what comes later and for padding, else 0."""
    length = valid.shape[1]
    later = np.triu(np.full((length, length), -np.inf, dtype=np.float32), 1)
    if valid.all():
        return later[None, None]
    mask = np.where(valid, np.float32(0), np.float32(-np.inf))[:, None, None, :] + later
    # Tokens of the padding look at themselves, so that their softmax is finite; nobody looks at them.
    places = np.arange(length)
    mask[:, :, places, places] = 0
    return mask


def time_buckets(times_us: LongArray) -> LongArray:
    """Times (n, L) -> (n, L, L) int64: bucket of the time from each entry of a sequence to each other."""
    seconds = times_us / 1e6
    gap = np.maximum(seconds[:, :, None] - seconds[:, None, :], 0).astype(np.float32)
    return np.minimum(np.log2(gap + 1).astype(np.int64), TIME_BUCKETS - 1)
