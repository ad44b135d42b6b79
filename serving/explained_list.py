"""A ranked list with where its scores come from, as a version's replica answers a request that asks for an explanation.

length uint32 of the list, the list (`serving.cached_list`), then JSON: names, parts, because
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson

from serving.cached_list import CachedList, decode_list
from training.interactions import FloatArray

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class ExplainedList:
    """A list and its explanation.

    Shapes: n entries; names: P; parts (n, P) float32, summing to the scores; because: n ids of history items, None where no item is
    behind an entry.
    """

    ranked: CachedList
    names: Sequence[str] = ()
    parts: FloatArray | None = None
    because: Sequence[str | None] = ()

    def encode(self) -> bytes:
        """The list and its explanation as bytes."""
        blob = self.ranked.encode()
        told = {"names": list(self.names), "parts": self.parts, "because": list(self.because)}
        return _LENGTH.pack(len(blob)) + blob + orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)


def decode_explained(blob: bytes) -> ExplainedList | None:
    """Read `encode`'s bytes; None where they are something else."""
    if len(blob) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(blob)
    ranked = decode_list(blob[_LENGTH.size : _LENGTH.size + length])
    try:
        told = orjson.loads(blob[_LENGTH.size + length :])
    except orjson.JSONDecodeError:
        return None
    if ranked is None:
        return None
    parts = (
        np.array(told["parts"], dtype=np.float32).reshape(len(ranked), len(told["names"])) if told["parts"] is not None else None
    )
    return ExplainedList(ranked, told["names"], parts, told["because"])
