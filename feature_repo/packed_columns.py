"""Whole columns in the forms of `packed_values`, by numpy: what the worker packs thousands of rows with.

Legend: lists of bytes have one entry a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

INTEGERS = ("count", "time_us", "integer")
"""Kinds of whole numbers."""


def packed_column(column: pa.Array, kind: str, valid: npt.NDArray[np.bool_]) -> list[bytes]:
    """What each row has of a column before the letters; nothing where it is null."""
    if kind in INTEGERS:
        numbers = _zigzags(pc.fill_null(column.cast(pa.int64()), 0).to_numpy(zero_copy_only=False))
        return _sliced(*_varints(numbers[valid], np.where(valid, 1, 0)))
    if kind in ("number", "flag"):
        plain = pc.fill_null(column, 0.0 if kind == "number" else False).to_numpy(zero_copy_only=False)
        raw = np.ascontiguousarray(plain, dtype="<f8" if kind == "number" else np.uint8)
        return [raw[row : row + 1].tobytes() if valid[row] else b"" for row in range(len(raw))]
    if kind == "text":
        sizes = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False).astype(np.uint64)[valid]
        return _sliced(*_varints(np.stack([np.ones_like(sizes), sizes], axis=1).ravel(), np.where(valid, 2, 0)))
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = column.flatten()
    if kind == "texts":
        return _with_lengths(pc.binary_length(flat).to_numpy(zero_copy_only=False).astype(np.uint64), lengths, valid)
    values = flat.to_numpy(zero_copy_only=False)
    if kind == "integers":
        steps = np.diff(values.astype(np.int64), prepend=0)
        first = (np.cumsum(lengths) - lengths)[lengths > 0]
        steps[first] = values[first]
        return _with_lengths(_zigzags(steps), lengths, valid)
    if kind == "numbers":
        counts = _sliced(*_varints(lengths[valid].astype(np.uint64), np.where(valid, 1, 0)))
        stops, raw = np.cumsum(lengths), values.astype("<f4")
        return [count + raw[stop - size : stop].tobytes() for count, stop, size in zip(counts, stops, lengths, strict=True)]
    return _tile_runs(values.astype(np.uint64), lengths, valid)


def _tile_runs(values: npt.NDArray[np.uint64], lengths: npt.NDArray[np.int64], valid: npt.NDArray[np.bool_]) -> list[bytes]:
    owner = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.ones(len(values), dtype=np.bool_)
    starts[1:] = (values[1:] != 0) | (values[:-1] != 0) | (owner[1:] != owner[:-1])
    at = np.flatnonzero(starts)
    run = np.diff(np.append(at, len(values))).astype(np.uint64)
    zero = values[at] == 0
    # A run of zeros is two numbers, 0 and its length; anything else is itself.
    tokens = np.stack([values[at], run], axis=1).ravel()[np.stack([np.ones_like(zero), zero], axis=1).ravel()]
    return _with_lengths(tokens, np.bincount(owner[at], weights=1 + zero, minlength=len(lengths)).astype(np.int64), valid, lengths)


def _with_lengths(
    numbers: npt.NDArray[np.uint64],
    counts: npt.NDArray[np.int64],
    valid: npt.NDArray[np.bool_],
    lengths: npt.NDArray[np.int64] | None = None,
) -> list[bytes]:
    """The length of each list (by default how many numbers it has), then its numbers; nothing for a list that is null."""
    lengths = counts if lengths is None else lengths
    whole = np.empty(len(numbers) + int(valid.sum()), dtype=np.uint64)
    per_row = counts + valid
    first = (np.cumsum(per_row) - per_row)[valid]
    is_length = np.zeros(len(whole), dtype=np.bool_)
    is_length[first] = True
    whole[is_length], whole[~is_length] = lengths[valid].astype(np.uint64), numbers
    return _sliced(*_varints(whole, per_row))


def _varints(numbers: npt.NDArray[np.uint64], per_row: npt.NDArray[np.integer[Any]]) -> tuple[bytes, npt.NDArray[np.int64]]:
    """All numbers as varints, and where the `per_row` numbers of each row end."""
    size = np.ones(len(numbers), dtype=np.int64)
    for bits in range(7, 64, 7):
        size += numbers >= np.uint64(1) << np.uint64(bits)
    stop = np.cumsum(size)
    owner = np.repeat(np.arange(len(numbers)), size)
    place = np.arange(len(owner)) - (stop - size)[owner]
    octets = (numbers[owner] >> (7 * place).astype(np.uint64)).astype(np.uint8) & 0x7F
    octets[place < size[owner] - 1] |= 0x80
    return octets.tobytes(), np.concatenate([[0], stop])[np.cumsum(per_row)]


def _sliced(octets: bytes, stops: npt.NDArray[np.int64]) -> list[bytes]:
    ends = stops.tolist()
    return [octets[start:stop] for start, stop in zip([0, *ends[:-1]], ends, strict=True)]


def _zigzags(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    return ((numbers << 1) ^ (numbers >> 63)).view(np.uint64)


def letters_of(column: pa.Array) -> list[bytes]:
    """The letters of each row's texts, one after the other."""
    if pa.types.is_string(column.type):
        return [(text or "").encode() for text in column.to_pylist()]
    joined = pc.binary_join(column.cast(pa.list_(pa.binary())), b"")
    return [one or b"" for one in joined.to_pylist()]
