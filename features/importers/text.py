"""Delimited text (CSV and its relatives) as raw columns: streamed, every value as text, broken rows set aside.

Types are not guessed while reading interactions: an id like `007` stays what it is. Catalogue columns are typed after reading, by
`typed_columns`, and only where all of a column's values agree.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from features.errors import ImportFormatError
from features.importers.columns import ID_NAMES, plain_name, twice
from features.importers.source import BadRow, RawBatch, RawTable
from features.importers.values import to_times

BLOCK_BYTES = 16 << 20
"""Bytes parsed at once. A row must be shorter."""

_SNIFF_BYTES = 64 << 10
_UNIT_SEPARATOR = "\x1f"

Opener = Callable[[], IO[bytes]]
"""Opens the file's bytes (decompressed) from the beginning."""


@dataclass(frozen=True)
class TextForm:
    """How a delimited file is written.

    Args:
        delimiter: one character, or `::`.
        columns: names of the columns.
        has_header: whether the first row holds the names.
        quoted: whether values may be quoted.
        encoding: of the bytes.
    """

    delimiter: str
    columns: tuple[str, ...]
    has_header: bool = True
    quoted: bool = True
    encoding: str = "utf-8"


def open_path(path: Any) -> Opener:
    """An opener of a file on disk; `.gz`, `.bz2` and `.zst` are decompressed."""

    def opener() -> IO[bytes]:
        try:
            stream: IO[bytes] = pa.input_stream(str(path), compression="detect")
            return stream
        except OSError as error:
            raise ImportFormatError(f"{path} cannot be opened: {error}") from error

    return opener


def sniff(opener: Opener, name: str) -> TextForm:
    """Find delimiter and header of a text file from its beginning.

    A first row in which any value is a number, or which repeats a value and has no word for users or items, is data: the columns
    are then called `column1`, ...

    Raises:
        ImportFormatError: the file is empty, not UTF-8 text, has a single column, or a header that names a column twice.
    """
    lines = first_lines(opener, name)
    if not lines:
        raise ImportFormatError(f"{name} is empty: there is nothing to import")
    delimiter = _delimiter(lines)
    if delimiter is None:
        raise ImportFormatError(f"{name} has no columns: no comma, semicolon, tab, bar or '::' separates values in its first line")
    first = split_line(lines[0], delimiter)
    values = [value.strip() for value in first]
    numeric = any(_is_number(value) for value in values)
    named = not numeric and any(plain_name(value) in ID_NAMES for value in values)
    if named and (repeated := twice(value for value in values if value)) is not None:
        raise ImportFormatError(f"{name} has two columns {repeated!r}: rename one")
    if numeric or (not named and twice(values) is not None):
        return TextForm(delimiter, tuple(f"column{n}" for n in range(1, len(first) + 1)), has_header=False)
    return TextForm(delimiter, tuple(value or f"column{n}" for n, value in enumerate(values, 1)))


def split_line(line: str, delimiter: str) -> list[str]:
    """The values of one line."""
    if len(delimiter) > 1:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter), [])


def stream(opener: Opener, name: str, form: TextForm) -> Iterator[RawBatch]:
    """The rows of a text file as columns of text, block by block.

    Raises:
        ImportFormatError: the bytes cannot be parsed at all (a row longer than a block, damaged compression).
    """
    bad: list[BadRow] = []

    def set_aside(row: Any) -> str:
        reason = f"{row.actual_columns} values where {row.expected_columns} are expected"
        bad.append(BadRow(int(row.number), reason, str(row.text)))
        return "skip"

    next_row = 2 if form.has_header else 1
    try:
        with opener() as file:
            reader = pacsv.open_csv(
                _prepared(file, form),
                read_options=pacsv.ReadOptions(
                    use_threads=False, block_size=BLOCK_BYTES, column_names=list(form.columns), skip_rows=int(form.has_header)
                ),
                parse_options=pacsv.ParseOptions(
                    delimiter=_UNIT_SEPARATOR if len(form.delimiter) > 1 else form.delimiter,
                    quote_char='"' if form.quoted else False,
                    newlines_in_values=form.quoted,
                    invalid_row_handler=set_aside,
                ),
                convert_options=pacsv.ConvertOptions(column_types={column: pa.binary() for column in form.columns}),
            )
            for batch in reader:
                table = pa.Table.from_batches([batch])
                numbers = np.arange(next_row, next_row + table.num_rows + len(bad))
                if bad:
                    numbers = numbers[~np.isin(numbers, [row.number for row in bad])][: table.num_rows]
                text, unreadable = _as_text(table, numbers)
                next_row = int(numbers[-1]) + 1 if len(numbers) else next_row
                due = [row for row in bad if row.number < next_row]
                bad = [row for row in bad if row.number >= next_row]
                if unreadable:
                    numbers = numbers[~np.isin(numbers, [row.number for row in unreadable])]
                yield RawBatch(text, name, numbers, (*due, *unreadable))
        if bad:
            empty = pa.table({column: pa.array([], pa.string()) for column in form.columns})
            yield RawBatch(empty, name, np.empty(0, dtype=np.int64), tuple(bad))
    except pa.ArrowInvalid as error:
        if "Empty CSV file" in str(error):
            return
        raise ImportFormatError(f"{name} cannot be parsed as text with columns: {error}") from error
    except OSError as error:
        raise ImportFormatError(f"{name} cannot be read: {error}") from error


def read_table(opener: Opener, name: str, form: TextForm, *, as_text: Sequence[str] = ()) -> RawTable:
    """A whole catalogue file with typed columns.

    Args:
        as_text: columns that stay text whatever they look like (ids, codes).
    """
    batches = list(stream(opener, name, form))
    empty = pa.table({column: pa.array([], pa.string()) for column in form.columns})
    table = pa.concat_tables([batch.table for batch in batches]) if batches else empty
    numbers = np.concatenate([batch.row_numbers for batch in batches]) if batches else np.empty(0, dtype=np.int64)
    return RawTable(typed_columns(table, as_text), name, tuple(row for batch in batches for row in batch.bad_rows), numbers)


def typed_columns(table: pa.Table, as_text: Sequence[str] = ()) -> pa.Table:
    """Columns of text as whole numbers, numbers, truth values or times where every value is one; blanks become null.

    Whole numbers with leading zeros (zip codes) stay text.
    """
    columns = {}
    for name in table.column_names:
        text = pc.utf8_trim_whitespace(table[name].combine_chunks())
        text = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
        columns[name] = text if name in as_text else _typed(text)
    return pa.table(columns)


def _typed(text: pa.Array) -> pa.Array:
    if text.null_count == len(text):
        return text
    distinct = pc.drop_null(pc.unique(text))
    leading_zero = pc.any(pc.match_substring_regex(distinct, r"^[+-]?0[0-9]")).as_py()
    for wanted in () if leading_zero else (pa.int64(), pa.float64()):
        try:
            return pc.cast(text, wanted)
        except pa.ArrowInvalid:
            continue
    if pc.all(pc.is_in(pc.utf8_lower(distinct), value_set=pa.array(["true", "false"]))).as_py():
        return pc.equal(pc.utf8_lower(text), "true")
    if not leading_zero and pc.all(pc.match_substring_regex(distinct, r"^\d{4}-\d\d-\d\d([T ].*)?$")).as_py():
        micros, wrong = to_times(text)
        if not wrong.any():
            return pc.cast(micros, pa.timestamp("us", tz="UTC"))
    return text


def first_lines(opener: Opener, name: str) -> list[str]:
    """The first non-blank lines of a text file, whole.

    Raises:
        ImportFormatError: it cannot be read or is no text.
    """
    try:
        with opener() as file:
            head = file.read(_SNIFF_BYTES)
    except OSError as error:
        raise ImportFormatError(f"{name} cannot be read: {error}") from error
    if b"\0" in head:
        raise ImportFormatError(f"{name} is not a text file (it holds zero bytes); CSV must be UTF-8 text")
    text = head.decode("utf-8-sig", errors="replace")
    lines = text.splitlines()
    if len(head) == _SNIFF_BYTES and len(lines) > 1:
        lines = lines[:-1]
    return [line for line in lines if line.strip()]


def _delimiter(lines: Sequence[str]) -> str | None:
    """The separator that splits the first lines into the same number of columns, most columns first."""
    best, most = None, 1
    for delimiter in ("::", "\t", ",", ";", "|"):
        counts = [len(split_line(line, delimiter)) for line in lines[:20]]
        if counts[0] > most and sum(count == counts[0] for count in counts) * 2 >= len(counts):
            best, most = delimiter, counts[0]
    return best


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _as_text(table: pa.Table, numbers: np.ndarray) -> tuple[pa.Table, list[BadRow]]:
    """Columns of bytes as text; rows that are not UTF-8 are taken out."""
    schema = pa.schema([pa.field(name, pa.string()) for name in table.column_names])
    try:
        return table.cast(schema), []
    except pa.ArrowInvalid:
        rows = table.to_pylist()
        wrong = [n for n, row in enumerate(rows) if not all(_is_utf8(value) for value in row.values())]
        shown = [BadRow(int(numbers[n]), "the row is not UTF-8 text", str(list(rows[n].values()))) for n in wrong]
        keep = np.ones(len(rows), dtype=bool)
        keep[wrong] = False
        return table.filter(pa.array(keep)).cast(schema), shown


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _prepared(file: IO[bytes], form: TextForm) -> Any:
    if form.encoding.lower() not in ("utf-8", "utf8"):
        text = file.read().decode(form.encoding)
        return io.BytesIO(text.replace(form.delimiter, _UNIT_SEPARATOR if len(form.delimiter) > 1 else form.delimiter).encode())
    if len(form.delimiter) > 1:
        return pa.PythonFile(_Replacing(file, form.delimiter.encode(), _UNIT_SEPARATOR.encode()), mode="r")
    return file


class _Replacing:
    """A byte stream in which one separator stands for another. Reads never split the old separator."""

    closed = False

    def __init__(self, file: IO[bytes], old: bytes, new: bytes) -> None:
        self._file, self._old, self._new = file, old, new

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            return self._file.read().replace(self._old, self._new)
        data = self._file.read(max(1, size - 64))
        while data and data[-1:] == self._old[:1] and len(data) < size:
            more = self._file.read(1)
            if not more:
                break
            data += more
        return data.replace(self._old, self._new)

    def close(self) -> None:
        self.closed = True
