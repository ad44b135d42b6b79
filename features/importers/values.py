"""Columns of any type made into ids, numbers and times. Each function says which rows it could not take; none raises for a row.

Legend: `n` rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.events import MAX_ID_LENGTH

BoolArray = npt.NDArray[np.bool_]

_TIMESTAMP = pa.timestamp("us", tz="UTC")
_EARLIEST_US = int(pd.Timestamp("1900-01-01", tz="UTC").value // 1000)
_LATEST_US = int(pd.Timestamp("2201-01-01", tz="UTC").value // 1000)
# Epoch numbers below these are seconds, milliseconds, microseconds; the rest are nanoseconds. 1e11 s is the year 5138, 1e11 ms
# is 1973: real activity falls clearly on one side.
_SECONDS_BELOW, _MILLISECONDS_BELOW, _MICROSECONDS_BELOW = 1e11, 1e14, 1e17
NO_ID = f"longer than {MAX_ID_LENGTH} characters, with a NUL character, or a list"
"""What no id may be: the API could not name it."""

_NULL_TEXTS = pa.array(["", "NA", "N/A", "nan", "NaN", "null", "NULL", "None", "\\N"])
_COMPACT_DAYS = (19_000_101, 21_991_232)
# Text times beside ISO 8601 that can be read one way only.
_TIME_FORMATS = ("%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d", "%d-%b-%Y", "%d %b %Y", "%b %d, %Y", "%a %b %d %H:%M:%S %z %Y")


def flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One array, dictionaries decoded, large and binary text as text; what is not UTF-8 in a binary column becomes null."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # several chunks remain only where they overflow 2 GiB of text
        column = pa.concat_arrays([chunk.cast(pa.large_string()) for chunk in column.chunks])
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type) or column.type == pa.string_view():
        return column.cast(pa.string())
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type) or pa.types.is_fixed_size_binary(column.type):
        return pa.array([_decoded(value) for value in column.to_pylist()], pa.string())
    return column


def to_ids(column: pa.ChunkedArray | pa.Array) -> tuple[pa.Array, BoolArray]:
    """Ids of any type as text: surrounding blanks go, whole floats lose their `.0`, an empty text is null.

    Returns:
        (n,) str, null where there is none; and (n,) bool, True where a value is `NO_ID` (and made null).
    """
    ids = flat(column)
    if pa.types.is_nested(ids.type):
        return pa.nulls(len(ids), pa.string()), _mask(pc.is_valid(ids))
    if pa.types.is_floating(ids.type):
        whole = pc.and_(pc.equal(ids, pc.floor(ids)), pc.less(pc.abs(ids), 2.0**53))
        as_int = pc.cast(pc.cast(pc.if_else(whole, ids, 0.0), pa.int64()), pa.string())
        ids = pc.if_else(whole, as_int, pc.cast(pc.if_else(pc.is_nan(ids), None, ids), pa.string()))
    elif not pa.types.is_string(ids.type):
        ids = pc.cast(ids, pa.string())
    else:
        ids = pc.utf8_trim_whitespace(ids)
    ids = pc.if_else(pc.equal(ids, ""), pa.scalar(None, pa.string()), ids)
    wrong = _mask(pc.or_(pc.greater(pc.utf8_length(ids), MAX_ID_LENGTH), pc.match_substring(ids, "\0")))
    if wrong.any():
        ids = pc.if_else(pa.array(wrong), pa.scalar(None, pa.string()), ids)
    return ids, wrong


def holds_value(column: pa.ChunkedArray | pa.Array) -> BoolArray:
    """(n,) bool: rows with anything but null, NaN, blanks or a word for nothing (`NA`, `null`, ...)."""
    values = flat(column)
    if pa.types.is_string(values.type):
        values = _without_nulls(values)
    held = _mask(pc.is_valid(values))
    return held & ~_mask(pc.is_nan(values)) if pa.types.is_floating(values.type) else held


def to_numbers(column: pa.ChunkedArray | pa.Array) -> tuple[pa.Array, BoolArray]:
    """Numbers from numbers, truth values or text. NaN and empty text are null.

    Returns:
        (n,) float64, and (n,) bool: True where the value is no finite number (and made null).
    """
    values = flat(column)
    wrong = np.zeros(len(values), dtype=bool)
    if pa.types.is_string(values.type):
        text = _without_nulls(values)
        try:
            return _finite(pc.fill_null(pc.cast(text, pa.float64()), np.nan).to_numpy(zero_copy_only=False), wrong)
        except pa.ArrowInvalid:
            pass  # some value is no number: find out which
        numbers = pd.to_numeric(pd.Series(text.to_numpy(zero_copy_only=False), dtype=object), errors="coerce").to_numpy(
            float, na_value=np.nan
        )
        wrong = np.isnan(numbers) & _mask(pc.is_valid(text))
    else:
        try:
            numbers = pc.fill_null(pc.cast(values, pa.float64(), safe=False), np.nan).to_numpy(zero_copy_only=False)
        except pa.ArrowNotImplementedError:
            return pa.nulls(len(values), pa.float64()), _mask(pc.is_valid(values))
    return _finite(numbers, wrong)


def to_whole_numbers(column: pa.ChunkedArray | pa.Array, *, limit: int) -> tuple[pa.Array, BoolArray]:
    """Whole numbers from 0 to `limit`.

    Returns:
        (n,) int64, and (n,) bool: True where the value is none of them (and made null).
    """
    numbers, wrong = to_numbers(column)
    values = pc.fill_null(numbers, 0.0).to_numpy(zero_copy_only=False)
    wrong |= (values < 0) | (values > limit) | (values != np.floor(values))
    whole = np.where(wrong, 0, values).astype(np.int64)
    return pa.array(whole, mask=wrong | _mask(pc.is_null(numbers))), wrong


def to_times(column: pa.ChunkedArray | pa.Array) -> tuple[pa.Array, BoolArray]:
    """Times in UTC from Arrow times and dates, epoch numbers (s, ms, us or ns by their size) or text (ISO 8601 and a few
    unambiguous forms; without an offset it is UTC). An empty text is null.

    Returns:
        (n,) int64 microseconds since the epoch, null where none is given; and (n,) bool: True where a time cannot be read or lies
        outside 1900 to 2200 (and made null).
    """
    times = flat(column)
    if pa.types.is_string(times.type):
        micros, wrong = _text_times(times)
    elif pa.types.is_timestamp(times.type) or pa.types.is_date(times.type):
        as_us = pc.cast(times, pa.timestamp("us", tz=getattr(times.type, "tz", None)), safe=False)
        micros, wrong = pc.cast(as_us, pa.int64()), np.zeros(len(times), dtype=bool)
    elif pa.types.is_null(times.type):
        micros, wrong = pa.nulls(len(times), pa.int64()), np.zeros(len(times), dtype=bool)
    else:
        micros, wrong = _epoch_times(times)
    outside = _mask(pc.or_(pc.less(micros, _EARLIEST_US), pc.greater_equal(micros, _LATEST_US)))
    if outside.any():
        micros = pc.if_else(pa.array(outside), pa.scalar(None, pa.int64()), micros)
    return micros, wrong | outside


def to_truth(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """(n,) bool from truth values, numbers (not zero) or text (`true`, `yes`, `y`, `t`, `1`); anything else is null."""
    values = flat(column)
    if pa.types.is_boolean(values.type):
        return values
    if pa.types.is_string(values.type):
        text = pc.utf8_lower(pc.utf8_trim_whitespace(values))
        yes = pc.is_in(text, value_set=pa.array(["true", "yes", "y", "t", "1", "1.0", "in stock", "instock"]))
        no = pc.is_in(text, value_set=pa.array(["false", "no", "n", "f", "0", "0.0", "out of stock", "outofstock"]))
        return pc.if_else(yes, True, pc.if_else(no, pa.scalar(False), pa.scalar(None, pa.bool_())))
    return pc.not_equal(to_numbers(values)[0], 0.0)


def to_lists(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """(n,) list of str: lists stay, `a|b` text is split at the bars, null and blank parts go."""
    values = flat(column)
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        rows = [None if row is None else [str(part) for part in row if part is not None] for row in values.to_pylist()]
    else:
        texts = values if pa.types.is_string(values.type) else pc.cast(values, pa.string())
        rows = [None if t is None else [part.strip() for part in t.split("|") if part.strip()] for t in texts.to_pylist()]
    return pa.array(rows, pa.list_(pa.string()))


def _finite(numbers: npt.NDArray[np.float64], wrong: BoolArray) -> tuple[pa.Array, BoolArray]:
    infinite = np.isinf(numbers)
    return pa.array(np.where(infinite, np.nan, numbers), pa.float64(), from_pandas=True), wrong | infinite


def _without_nulls(text: pa.Array) -> pa.Array:
    text = pc.utf8_trim_whitespace(text)
    return pc.if_else(pc.is_in(text, value_set=_NULL_TEXTS), pa.scalar(None, pa.string()), text)


def _epoch_times(column: pa.Array) -> tuple[pa.Array, BoolArray]:
    if pa.types.is_integer(column.type):  # exact: nanoseconds do not fit a float
        whole = pc.fill_null(pc.cast(column, pa.int64(), safe=False), 0).to_numpy(zero_copy_only=False)
        size = np.abs(whole.astype(np.float64))
        factor = np.where(size < _SECONDS_BELOW, 1_000_000, np.where(size < _MILLISECONDS_BELOW, 1000, 1))
        micros = np.where(size < _MICROSECONDS_BELOW, whole * factor, whole // 1000)
        return pa.array(micros, mask=_mask(pc.is_null(column))), np.zeros(len(column), dtype=bool)
    numbers, wrong = to_numbers(column)
    return _scaled(pc.fill_null(numbers, np.nan).to_numpy(zero_copy_only=False)), wrong


def _scaled(numbers: npt.NDArray[np.float64]) -> pa.Array:
    size = np.abs(numbers)
    scale = np.where(
        size < _SECONDS_BELOW,
        1e6,
        np.where(size < _MILLISECONDS_BELOW, 1e3, np.where(size < _MICROSECONDS_BELOW, 1.0, 1e-3)),
    )
    missing = np.isnan(numbers)
    micros = np.clip(np.where(missing, 0.0, numbers * scale), -9.2e18, 9.2e18)
    return pa.array(np.rint(micros).astype(np.int64), mask=missing)


def _text_times(column: pa.Array) -> tuple[pa.Array, BoolArray]:
    text = _without_nulls(column)
    try:  # the common case, in one go: whole epoch numbers, none of which could be a day written together
        whole = pc.cast(text, pa.int64())
        low, high = _COMPACT_DAYS
        if not _mask(pc.and_(pc.greater_equal(whole, low), pc.less(whole, high))).any():
            return _epoch_times(whole)
    except pa.ArrowInvalid:
        pass
    encoded = text.dictionary_encode()
    distinct = pd.Series(encoded.dictionary.to_numpy(zero_copy_only=False), dtype=object)
    numbers = pd.to_numeric(distinct, errors="coerce").to_numpy(float, na_value=np.nan)
    # An 8-digit number is a day written together (20110331), not a second of 1970.
    compact = distinct.astype(str).str.fullmatch(r"(19|20|21)\d{6}").to_numpy(bool)
    numbers[compact] = np.nan
    micros = pc.fill_null(_scaled(numbers), _UNREAD).to_numpy(zero_copy_only=False).copy()
    rest = np.isnan(numbers)
    for form in ("ISO8601", "%Y%m%d", *_TIME_FORMATS):
        if not rest.any():
            break
        parsed = pd.to_datetime(distinct[rest], format=form, utc=True, errors="coerce")
        micros[rest] = np.where(parsed.isna(), _UNREAD, parsed.to_numpy(dtype="datetime64[us]").astype(np.int64))
        rest = micros == _UNREAD
    codes = encoded.indices
    row_micros = np.append(micros, _UNREAD)[pc.fill_null(codes, len(micros)).to_numpy(zero_copy_only=False)]
    unread = row_micros == _UNREAD
    return pa.array(row_micros, mask=unread), unread & _mask(pc.is_valid(text))


_UNREAD = np.iinfo(np.int64).min


def _mask(condition: pa.Array) -> BoolArray:
    """A condition as numpy; unknown reads False."""
    return np.asarray(pc.fill_null(condition, False).to_numpy(zero_copy_only=False))


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None
