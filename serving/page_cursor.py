"""The cursor of a paged list: which items have been shown, so that no later page shows them again.

It holds 4-byte hashes of the shown items' ids (`id_rows`) and nothing of a version or a place in a list: lists may be made anew,
models may be switched and filters changed between two pages, and the next page is what the present state ranks best of what has not
been shown. Two ids of one hash (1 in 4 million pairs within a full cursor) cost the second its place. A cursor that was tampered
with can hide items from its owner and nothing else; the checksum is there to name damage as such.

    base64url of: format 2 uint8, checksum uint32, hashes uint32[shown]; little-endian
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib

import numpy as np

from serving.errors import RequestError
from serving.id_rows import Hashes

MAX_SHOWN = 1000
"""Items that a cursor can hold; a list ends with the page that goes beyond."""
_HEADER = struct.Struct("<BI")
_FORMAT = 2
_LITTLE_ENDIAN = np.dtype("<u4")

_NOTHING: Hashes = np.zeros(0, dtype=np.uint32)


def nothing_shown() -> Hashes:
    """What has been shown before the first page."""
    return _NOTHING


def encode_cursor(shown: Hashes) -> str | None:
    """The cursor after these items; None where it would hold too many."""
    if len(shown) > MAX_SHOWN:
        return None
    body = shown.astype(_LITTLE_ENDIAN, copy=False).tobytes()
    return base64.urlsafe_b64encode(_HEADER.pack(_FORMAT, zlib.crc32(body)) + body).rstrip(b"=").decode()


def decode_cursor(text: str) -> Hashes:
    """Hashes of the items shown so far; none for the empty text.

    Raises:
        RequestError: it is not a cursor of ours.
    """
    if not text:
        return nothing_shown()
    wrong = RequestError(
        "cursor must be next_cursor of an earlier answer, unchanged; leave it out for the first page", field="cursor"
    )
    if len(text) > 4 * (_HEADER.size + 4 * MAX_SHOWN) // 3 + 4:
        raise wrong
    try:
        raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError, ValueError):
        raise wrong from None
    if len(raw) < _HEADER.size or (len(raw) - _HEADER.size) % 4:
        raise wrong
    version, checksum = _HEADER.unpack_from(raw)
    body = raw[_HEADER.size :]
    if version != _FORMAT or checksum != zlib.crc32(body):
        raise wrong
    return np.frombuffer(body, "<u4").astype(np.uint32)
