"""Guessing what the columns of a delimited file mean, by their names and by what is in them.

`shortlist quickstart FILE.csv` shows the guess and asks; importing a file without a header takes it and says so.

Legend: `n` sampled rows.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import ImportFormatError
from features.events import ACTIONS
from features.importers.columns import INTERACTION_ALIASES, plain_name
from features.importers.rows import ACTION_ALIASES
from features.importers.text import Opener, TextForm, open_path, sniff, stream
from features.importers.values import to_numbers, to_times

SAMPLE_BYTES = 1 << 20
"""Beginning of the file that is looked at."""

_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
_GUESSED = ("user_id", "item_id", "timestamp", "value", "action")


@dataclass(frozen=True)
class Guess:
    """What a file's columns seem to mean.

    Args:
        mapping: canonical name -> column, for `--map` or `import_dataset(mapping=...)`.
        confidence: canonical name -> 0..1.
        reasons: canonical name -> why, in a few words.
        sample: the first rows, every value as text.
        form: delimiter, header and columns of the file.
    """

    mapping: dict[str, str]
    confidence: dict[str, float]
    reasons: dict[str, str]
    sample: pa.Table
    form: TextForm

    @property
    def complete(self) -> bool:
        """Whether user and item were found, which is all that an import needs."""
        return "user_id" in self.mapping and "item_id" in self.mapping


@dataclass(frozen=True)
class _Profile:
    """What the sampled values of a column look like; shares are of the values that are not blank."""

    name: str
    distinct: int
    filled: int
    number_share: float
    whole_share: float
    time_share: float
    action_share: float
    low: float
    high: float
    has_fraction: bool = field(default=False)


def guess_columns(path: Path) -> Guess:
    """Guess the columns of a CSV file or one of its relatives.

    Raises:
        ImportFormatError: it cannot be read, is empty, or has a single column.
    """
    if not path.is_file():
        raise ImportFormatError(f"there is no file {str(path)!r}")
    opener = open_path(path)
    return guess_text(opener, path.name, sniff(opener, path.name))


def guess_text(opener: Opener, name: str, form: TextForm) -> Guess:
    """Guess the columns of an opened text file; see `guess_columns`."""
    sample = _sample(opener, name, form)
    profiles = {column: _profile(column, sample[column]) for column in form.columns}
    mapping: dict[str, str] = {}
    confidence: dict[str, float] = {}
    reasons: dict[str, str] = {}

    def take(canonical: str, column: str, sure: float, why: str) -> None:
        mapping[canonical], confidence[canonical], reasons[canonical] = column, round(sure, 2), why

    if form.has_header:
        for canonical in _GUESSED:
            for alias in INTERACTION_ALIASES[canonical]:
                column = next((c for c in form.columns if plain_name(c) == alias and c not in mapping.values()), None)
                if column is not None and _fits(canonical, profiles[column]):
                    take(canonical, column, 1.0 if column == canonical else 0.95, f"its name is {column!r}")
                    break
    rest = [profiles[column] for column in form.columns if column not in mapping.values()]
    if "timestamp" not in mapping:
        times = [p for p in rest if p.time_share >= 0.95]
        if times:
            best = max(times, key=lambda p: p.distinct)
            take("timestamp", best.name, 0.8, "its values are times")
            rest.remove(best)
    if "action" not in mapping:
        actions = [p for p in rest if p.action_share >= 0.8]
        if actions:
            take("action", actions[0].name, 0.9, "its values are actions")
            rest.remove(actions[0])
    _guess_ids(rest, mapping, take)
    if "value" not in mapping:
        values = [p for p in rest if p.name not in mapping.values() and _looks_like_rating(p)]
        if values:
            take("value", values[0].name, 0.6, f"its values are numbers from {values[0].low:g} to {values[0].high:g}")
    return Guess(mapping, confidence, reasons, sample.slice(0, 5), form)


def _guess_ids(rest: list[_Profile], mapping: dict[str, str], take: object) -> None:
    assert callable(take)
    for canonical in ("user_id", "item_id"):
        if canonical in mapping:
            continue
        candidates = [p for p in rest if p.name not in mapping.values() and _looks_like_id(p)]
        if not candidates:
            continue
        # Ids repeat, ratings are few: the columns with most distinct values, users first as people write them.
        if canonical == "user_id" and "item_id" not in mapping:
            pair = sorted(sorted(candidates, key=lambda p: -p.distinct)[:2], key=lambda p: rest.index(p))
            candidates = pair if len(pair) == 2 else []
        else:
            candidates = sorted(candidates, key=lambda p: -p.distinct)
        if candidates:
            take(canonical, candidates[0].name, 0.5, f"it has {candidates[0].distinct:,} distinct values in the sample")


def _sample(opener: Opener, name: str, form: TextForm) -> pa.Table:
    with opener() as file:
        head = file.read(SAMPLE_BYTES)
    if len(head) == SAMPLE_BYTES:
        head = head[: head.rfind(b"\n") + 1]
    batches = [batch.table for batch in stream(lambda: io.BytesIO(head), name, form)]
    if not batches or not sum(batch.num_rows for batch in batches):
        raise ImportFormatError(f"{name} has a header and no rows: there is nothing to import")
    return pa.concat_tables(batches)


def _profile(name: str, column: pa.ChunkedArray) -> _Profile:
    text = pc.utf8_trim_whitespace(column.combine_chunks())
    text = text.filter(pc.not_equal(text, ""))
    filled = max(1, len(text))
    numbers = pc.drop_null(to_numbers(text)[0]).to_numpy()
    times = pc.drop_null(to_times(text)[0]).to_numpy()
    latest = datetime.now(UTC) + timedelta(days=366)
    plausible = (times >= _EARLIEST.timestamp() * 1e6) & (times <= latest.timestamp() * 1e6)
    words = {*ACTIONS, *ACTION_ALIASES}
    lowered = pc.replace_substring_regex(pc.utf8_lower(text), pattern="[ -]", replacement="_")
    return _Profile(
        name=name,
        distinct=pc.count_distinct(text).as_py(),
        filled=len(text),
        number_share=len(numbers) / filled,
        whole_share=float((numbers == np.floor(numbers)).sum()) / filled,
        time_share=float(plausible.sum()) / filled,
        action_share=float(pc.sum(pc.is_in(lowered, value_set=pa.array(sorted(words)))).as_py() or 0) / filled,
        low=float(numbers.min(initial=np.inf)),
        high=float(numbers.max(initial=-np.inf)),
        has_fraction=bool((numbers != np.floor(numbers)).any()),
    )


def _fits(canonical: str, profile: _Profile) -> bool:
    """Whether a column's values allow what its name says."""
    if not profile.filled:
        return canonical not in ("user_id", "item_id")
    if canonical == "timestamp":
        return profile.time_share >= 0.5
    if canonical == "value":
        return profile.number_share >= 0.5
    return True


def _looks_like_rating(profile: _Profile) -> bool:
    return profile.number_share >= 0.95 and profile.low >= -10 and profile.high <= 100 and profile.distinct <= 200


def _looks_like_id(profile: _Profile) -> bool:
    if profile.number_share >= 0.95:
        return profile.whole_share >= 0.95 and not profile.has_fraction and profile.distinct > 1
    return profile.distinct > 1
