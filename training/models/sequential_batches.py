"""Batches for the sequential transformer: which stretches of histories are shown, and how they lie in memory.

Tokens of a batch lie in one flat row, sequences of like length side by side and padded on the left to the longest of their group: a
batch is drawn at random, yet short sequences are not padded to the longest, and everything but attention runs on the flat row.

Legend: `E` interactions, `S` stretches, `T` tokens of a batch with their padding, `n` sequences of a group, `L` their length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from training.interactions import BoolArray, IntArray, Interactions, LongArray

GROWTH = 1.3
"""A group's longest sequence is at most this times its shortest, plus one: bounds padding without many small groups."""
SMALL_TOKENS = 256
"""A group of fewer tokens with their padding takes longer ones in: each group has a cost of its own."""


@dataclass(frozen=True)
class Stretches:
    """Stretches of histories to learn from.

    Shapes:
        start, stop (S,) int64: rows of the interactions that are the input.
        every: whether each entry of a stretch has the entry after it as target, or its last one alone.
    """

    start: LongArray
    stop: LongArray
    every: bool

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True)
class Group:
    """Sequences of like length: tokens `offset : offset + count * length` of the batch."""

    offset: int
    count: int
    length: int


@dataclass(frozen=True)
class TokenBatch:
    """Sequences laid out for the network.

    Shapes:
        at (T,) int64: row of each token in the columns that the sequences are stretches of; that of the first real token in the
            padding.
        item_idx (T,) int64: 0 in the padding.
        time_us (T,) int64.
        valid (T,) bool: False in the padding.
        groups: in the order of the tokens.
        row (sequences,) int64: which of the sequences asked for lies where.
    """

    at: LongArray
    item_idx: LongArray
    time_us: LongArray
    valid: BoolArray
    groups: tuple[Group, ...]
    row: LongArray

    @property
    def last(self) -> LongArray:
        """(sequences,) int64: the last token of each sequence."""
        return np.concatenate([group.offset + group.length * np.arange(1, group.count + 1) - 1 for group in self.groups])

    @property
    def from_end(self) -> LongArray:
        """(T,) int64: 0 for the last token of a sequence, 1 for the one before, and so on."""
        return np.concatenate([np.tile(np.arange(group.length)[::-1], group.count) for group in self.groups])


def prefixes(interactions: Interactions, max_len: int) -> Stretches:
    """Every beginning of every history that has an entry after it, its most recent `max_len` entries."""
    ends = np.flatnonzero(interactions.from_end > 0) + 1
    first = interactions.indptr[interactions.user_idx[ends - 1]]
    return Stretches(np.maximum(first, ends - max_len), ends.astype(np.int64), every=False)


def windows(interactions: Interactions, max_len: int, rng: np.random.Generator) -> Stretches:
    """Histories cut into consecutive windows of at most `max_len` entries, so that each entry but the last has one place.

    Where a history is cut is drawn anew at each call.
    """
    first, last = interactions.indptr[:-1], interactions.indptr[1:] - 1
    lengths = np.maximum(last - first, 0)
    cut = lengths > max_len
    # A long history begins with a window of random length.
    head = np.where(cut, rng.integers(1, max_len + 1, len(lengths)), np.minimum(lengths, max_len))
    count = np.where(lengths > 0, 1 + -(-(lengths - head) // max_len), 0)
    owner = np.repeat(np.arange(len(lengths)), count)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    start = first[owner] + np.where(place == 0, 0, head[owner] + (place - 1) * max_len)
    stop = np.minimum(first[owner] + head[owner] + place * max_len, last[owner])
    return Stretches(start.astype(np.int64), stop.astype(np.int64), every=True)


def shuffled(stretches: Stretches, batch_size: int, rng: np.random.Generator) -> Iterator[LongArray]:
    """Numbers of stretches in batches of `batch_size`, in random order, each once."""
    order = rng.permutation(len(stretches))
    for begin in range(0, len(order), batch_size):
        yield order[begin : begin + batch_size]


def lay_out(start: LongArray, stop: LongArray, item_idx: IntArray, time_us: LongArray) -> TokenBatch:
    """Sequences `start : stop` of the columns `item_idx` and `time_us`, none of them empty, grouped by length and padded."""
    lengths = stop - start
    row = np.argsort(lengths, kind="stable")
    sorted_lengths = lengths[row]
    groups: list[Group] = []
    parts: list[LongArray] = []
    valids: list[BoolArray] = []
    offset = begin = 0
    while begin < len(row):
        longest = int(sorted_lengths[begin] * GROWTH) + 1
        padded = sorted_lengths[begin:] * np.arange(1, len(row) - begin + 1)
        small = begin + int(np.searchsorted(padded, SMALL_TOKENS, side="right"))
        end = max(int(np.searchsorted(sorted_lengths, longest, side="right")), small)
        members, length = row[begin:end], int(sorted_lengths[end - 1])
        at = stop[members][:, None] - length + np.arange(length)
        valid = at >= start[members][:, None]
        parts.append(np.maximum(at, start[members][:, None]).ravel())
        valids.append(valid.ravel())
        groups.append(Group(offset, end - begin, length))
        offset += (end - begin) * length
        begin = end
    at, valid = np.concatenate(parts), np.concatenate(valids)
    return TokenBatch(at, np.where(valid, item_idx[at], 0).astype(np.int64), time_us[at], valid, tuple(groups), row)
