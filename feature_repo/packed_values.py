"""Feature values of one row as few bytes: what `packed_store` keeps of a view instead of one hash field a feature.

A row is a layout byte, a bit for each feature that has a value, then the values in the view's order: numbers first, the letters of
all text lists together and deflated at the end.

| kind of feature | form |
|---|---|
| count, time_us, integer | zigzag varint |
| number | float64 |
| flag | one byte |
| integers | length, then zigzag varints of the first and of each difference |
| numbers | length, then float32 each |
| tiles | varints; a run of zeros is a 0 and its length |
| texts, text | length of the list, bytes of each; letters deflated |

Varints are little-endian base 128, as in protobuf. Float64 and float32 are exact, so a value comes back as it was written.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import mmh3
import numpy as np
import pyarrow as pa
from feast.protos.feast.types.Value_pb2 import Value

from feature_repo.packed_columns import INTEGERS, letters_of, packed_column

_DEFLATED = 1
_LEVEL = 9
_WINDOW_BITS = -9
"""Raw deflate with a window of 512 bytes: rows are shorter."""


class PackedLayout:
    """How the rows of one view are packed.

    Args:
        kinds: feature name -> kind (`feature_repo.specs.Kind`), in the view's order.
    """

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self.kinds = dict(kinds)
        self._mark = mmh3.hash(",".join(f"{name}:{kind}" for name, kind in kinds.items()), signed=False) & 0xFF
        self._mask_bytes = (len(self.kinds) + 7) // 8

    def pack(self, values: Mapping[str, Value]) -> bytes:
        """Bytes of a row; features that are not set take nothing but their bit."""
        out, texts, present = bytearray(), [], 0
        for place, (name, kind) in enumerate(self.kinds.items()):
            value = _plain(values.get(name))
            if value is None:
                continue
            present |= 1 << place
            if kind in INTEGERS:
                _put(out, (_zigzag(int(value)),))
            elif kind == "number":
                out += struct.pack("<d", value)
            elif kind == "flag":
                out.append(bool(value))
            elif kind == "integers":
                _put(out, (len(value),))
                _put(out, map(_zigzag, _differences(value)))
            elif kind == "numbers":
                _put(out, (len(value),))
                out += np.array(value, dtype="<f4").tobytes()
            elif kind == "tiles":
                _put_runs(out, value)
            else:
                encoded = [text.encode() for text in ([value] if kind == "text" else value)]
                _put(out, (len(encoded), *map(len, encoded)))
                texts += encoded
        mask = present.to_bytes(self._mask_bytes, "little")
        return self._joined(bytes((self._mark,)), mask, bytes(out), b"".join(texts))

    def pack_table(self, table: pa.Table) -> list[bytes]:
        """Bytes of each row of a table: the same as `pack` gives of its values, without a Python object a value."""
        rows = table.num_rows
        if not rows:
            return []
        present = np.zeros(rows, dtype=np.int64)
        numbers: list[list[bytes]] = []
        letters: list[list[bytes]] = []
        for place, (name, kind) in enumerate(self.kinds.items()):
            column = table.column(name).combine_chunks()
            valid = column.is_valid().to_numpy(zero_copy_only=False)
            present |= valid.astype(np.int64) << place
            numbers.append(packed_column(column, kind, valid))
            if kind in ("text", "texts"):
                letters.append(letters_of(column))
        mark = bytes((self._mark,))
        masks = present.astype("<u8").view(np.uint8).reshape(rows, 8)[:, : self._mask_bytes]
        packed = []
        for row in range(rows):
            body = b"".join(column[row] for column in numbers)
            packed.append(self._joined(mark, masks[row].tobytes(), body, b"".join(column[row] for column in letters)))
        return packed

    @staticmethod
    def _joined(mark: bytes, mask: bytes, body: bytes, letters: bytes) -> bytes:
        deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS, 9)
        small = deflate.compress(letters) + deflate.flush()
        deflated = len(small) < len(letters)
        size = bytearray()
        _put(size, (len(body),))
        return b"".join((mark, bytes((_DEFLATED if deflated else 0,)), mask, size, body, small if deflated else letters))

    def unpack(self, row: bytes, wanted: Collection[str]) -> dict[str, Value] | None:
        """The wanted features of a row, unset ones as empty values; None for a row of another layout."""
        if row[0] != self._mark:
            return None
        head = 2 + self._mask_bytes
        present = int.from_bytes(row[2:head], "little")
        size, at = _take(row, head)
        letters = row[at + size :]
        if row[1] & _DEFLATED:
            letters = zlib.decompress(letters, _WINDOW_BITS)
        found = {name: Value() for name in wanted}
        read = 0
        for place, (name, kind) in enumerate(self.kinds.items()):
            if not present >> place & 1:
                continue
            value = found.get(name) or Value()
            if kind in INTEGERS:
                number, at = _take(row, at)
                value.int64_val = _unzigzag(number)
            elif kind == "number":
                (value.double_val,) = struct.unpack_from("<d", row, at)
                at += 8
            elif kind == "flag":
                value.bool_val = bool(row[at])
                at += 1
            elif kind == "integers":
                length, at = _take(row, at)
                numbers, at = _take_many(row, at, length)
                value.int64_list_val.val.extend(_sums(map(_unzigzag, numbers)))
            elif kind == "numbers":
                length, at = _take(row, at)
                value.float_list_val.val.extend(np.frombuffer(row, dtype="<f4", count=length, offset=at).tolist())
                at += 4 * length
            elif kind == "tiles":
                tiles, at = _take_runs(row, at)
                value.int32_list_val.val.extend(tiles)
            else:
                length, at = _take(row, at)
                sizes, at = _take_many(row, at, length)
                texts = []
                for one in sizes:
                    texts.append(letters[read : read + one].decode())
                    read += one
                if kind == "text":
                    value.string_val = texts[0]
                else:
                    value.string_list_val.val.extend(texts)
            if name in found:
                found[name] = value
        return found


def _plain(value: Value | None) -> Any:
    kind = None if value is None else value.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    found = getattr(value, kind)
    return found.val if kind.endswith("_list_val") else found


def _zigzag(number: int) -> int:
    return number << 1 if number >= 0 else (-number << 1) - 1


def _unzigzag(number: int) -> int:
    return number >> 1 if not number & 1 else -((number + 1) >> 1)


def _differences(values: Sequence[int]) -> Iterable[int]:
    before = 0
    for value in values:
        yield value - before
        before = value


def _sums(differences: Iterable[int]) -> Iterable[int]:
    total = 0
    for difference in differences:
        total += difference
        yield total


def _put(out: bytearray, numbers: Iterable[int]) -> None:
    for number in numbers:
        while number > 0x7F:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)


def _take(row: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = row[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7


def _take_many(row: bytes, at: int, count: int) -> tuple[list[int], int]:
    numbers = []
    for _ in range(count):
        number, at = _take(row, at)
        numbers.append(number)
    return numbers, at


def _put_runs(out: bytearray, tiles: Sequence[int]) -> None:
    """Counts, the number of tiles first."""
    _put(out, (len(tiles),))
    zeros = 0
    for tile in tiles:
        if tile:
            if zeros:
                _put(out, (0, zeros))
            _put(out, (tile,))
            zeros = 0
        else:
            zeros += 1
    if zeros:
        _put(out, (0, zeros))


def _take_runs(row: bytes, at: int) -> tuple[list[int], int]:
    width, at = _take(row, at)
    tiles: list[int] = []
    while len(tiles) < width:
        tile, at = _take(row, at)
        if tile:
            tiles.append(tile)
        else:
            zeros, at = _take(row, at)
            tiles += [0] * zeros
    return tiles, at
