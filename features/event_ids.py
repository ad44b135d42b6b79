"""Event ids of imported rows: a 128-bit hash of the row's fields, computed in columns.

Text is hashed once per distinct value (BLAKE2b-128); numbers and the texts' hashes are then folded into two 64-bit lanes with the
SplitMix64 finalizer (Steele, Lea, Flood 2014), which is a bijection, so that for equal earlier fields different last fields never
collide. Ids are part of the stored data: a change here makes every later import of old files store its rows twice.

Legend: `n` rows, `D` distinct texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Lanes = npt.NDArray[np.uint64]
"""(2, n) uint64."""

_NULL = np.array([0x9AE16A3B2F90404F, 0xC949D7C7509E6557], dtype=np.uint64)
_STEP = np.array([0x9E3779B97F4A7C15, 0xD1B54A32D192ED03], dtype=np.uint64)
_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


def row_ids(dataset: str, columns: Sequence[pa.Array]) -> pa.Array:
    """(n,) str: 32 hex digits a row, from the dataset's name and the row's fields in their order.

    Args:
        dataset: the namespace.
        columns: arrays of n rows: text, dictionary-encoded text, int64 or float64. A null is a value of its own.
    """
    lanes = np.repeat(_text_lanes([dataset]), len(columns[0]), axis=1)
    for column in columns:
        lanes = _fold(lanes, _column_lanes(column))
    return _hex(lanes)


def _column_lanes(column: pa.Array) -> Lanes:
    if pa.types.is_string(column.type):
        column = column.dictionary_encode()
    if pa.types.is_dictionary(column.type):
        distinct = np.concatenate([_text_lanes(column.dictionary.to_pylist()), _NULL[:, None]], axis=1)
        codes = pc.fill_null(column.indices, len(column.dictionary)).to_numpy(zero_copy_only=False)
        return np.asarray(distinct[:, codes])
    if pa.types.is_floating(column.type):
        # + 0.0 makes -0.0 the same number as 0.0
        bits = (pc.fill_null(column, 0.0).to_numpy(zero_copy_only=False) + 0.0).view(np.uint64)
    else:
        bits = pc.fill_null(pc.cast(column, pa.int64()), 0).to_numpy(zero_copy_only=False).view(np.uint64)
    lanes = np.stack([_mix(bits + _STEP[0]), _mix(bits ^ _STEP[1])])
    if column.null_count:
        lanes[:, pc.is_null(column).to_numpy(zero_copy_only=False)] = _NULL[:, None]
    return lanes


def _text_lanes(texts: Sequence[str | None]) -> Lanes:
    digests = b"".join(hashlib.blake2b((text or "").encode(), digest_size=16).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64).reshape(-1, 2).T


def _fold(lanes: Lanes, more: Lanes) -> Lanes:
    return _mix((lanes ^ more) + _STEP[:, None])


def _mix(bits: Lanes) -> Lanes:
    with np.errstate(over="ignore"):
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))


def _hex(lanes: Lanes) -> pa.Array:
    rows = lanes.shape[1]
    octets = np.ascontiguousarray(lanes.T.astype(">u8")).view(np.uint8).reshape(rows, 16)
    digits = np.empty((rows, 32), dtype=np.uint8)
    digits[:, 0::2], digits[:, 1::2] = _HEX[octets >> 4], _HEX[octets & 15]
    offsets = np.arange(0, 32 * rows + 1, 32, dtype=np.int32)
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(digits))
