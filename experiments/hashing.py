"""The one hash behind every split: 32-bit FNV-1a and GrowthBook's version 2, for one id and for columns of ids.

Assignment reads it at each request, so the prefix (salt) is hashed once: FNV-1a is a left fold, and `fnv1a32(salt + id)` equals
`fnv1a32(id, state=fnv1a32(salt))`.

Source: Fowler, Noll, Vo, "FNV hash"; GrowthBook SDK specification 0.8, `hash` version 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FNV_OFFSET = 0x811C9DC5
FNV_PRIME = 0x01000193
SLOTS = 10_000
"""Resolution of a hash: shares are multiples of 1/10,000."""


def fnv1a32(text: str, state: int = FNV_OFFSET) -> int:
    """FNV-1a of the UTF-8 bytes of `text`, 32 bits, going on from `state`."""
    for byte in text.encode("utf-8", "surrogatepass"):
        state = ((state ^ byte) * FNV_PRIME) & 0xFFFFFFFF
    return state


def hash_v2(seed: str, value: str) -> float:
    """GrowthBook's version-2 hash: uniform in [0, 1), a multiple of 1/10,000."""
    return hash_v2_from(fnv1a32(seed), value)


def hash_v2_from(seed_state: int, value: str) -> float:
    """`hash_v2` under a seed that is already hashed: `seed_state` is `fnv1a32(seed)`."""
    return fnv1a32(str(fnv1a32(value, seed_state))) % SLOTS / SLOTS


def hash_v2_many(seed: str, values: Sequence[str]) -> NDArray[np.float64]:
    """`hash_v2` of a column of ids.

    Shapes: (B,) ids to (B,) float64.
    """
    digests_B = _fnv1a32_many([value.encode("utf-8", "surrogatepass") for value in values], fnv1a32(seed))
    decimals_B = [str(digest).encode() for digest in digests_B.tolist()]
    return (_fnv1a32_many(decimals_B, FNV_OFFSET) % SLOTS).astype(np.float64) / SLOTS


def _fnv1a32_many(texts: list[bytes], state: int) -> NDArray[np.uint32]:
    """Column form: one pass a byte position, over the texts that are that long, longest first."""
    lengths_B = np.fromiter((len(text) for text in texts), dtype=np.int64, count=len(texts))
    order_B = np.argsort(-lengths_B, kind="stable")
    flat = np.frombuffer(b"".join(texts), dtype=np.uint8)
    starts_B = (np.cumsum(lengths_B) - lengths_B)[order_B]
    sorted_lengths_B = lengths_B[order_B]
    states_B = np.full(len(texts), state, dtype=np.uint32)
    prime = np.uint32(FNV_PRIME)
    for position in range(int(sorted_lengths_B[0]) if len(texts) else 0):
        live = int(np.searchsorted(-sorted_lengths_B, -position, side="left"))
        states_B[:live] = (states_B[:live] ^ flat[starts_B[:live] + position]) * prime
    result_B = np.empty_like(states_B)
    result_B[order_B] = states_B
    return result_B
