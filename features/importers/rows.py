"""Judging the rows of an interactions file: raw columns in, `ROW_SCHEMA` and reasons for rejects out.

Legend: `n` rows of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.histories import MAX_POSITION, ROW_SCHEMA
from features.importers.values import NO_ID, flat, to_ids, to_numbers, to_times, to_truth, to_whole_numbers

ACTION_ALIASES: dict[str, str] = {
    "addtocart": "add_to_cart",
    "cart": "add_to_cart",
    "buy": "purchase",
    "transaction": "purchase",
    "order": "purchase",
    "purchased": "purchase",
    "pv": "view",
    "pageview": "view",
    "watch": "view",
    "rate": "rating",
    "fav": "like",
    "favorite": "like",
    "favourite": "like",
}
"""Other people's words for our actions, after lower-casing and with blanks and hyphens as underscores."""

_MAX_SLATE_POSITION = 99_999


@dataclass(frozen=True)
class JudgedBatch:
    """A batch after judgement.

    Args:
        rows: `ROW_SCHEMA`, the valid rows in file order.
        rejected: (r,) int64 row numbers within the batch.
        reasons: one a rejected row.
    """

    rows: pa.Table
    rejected: npt.NDArray[np.int64]
    reasons: list[str]


def judge(table: pa.Table, chosen: Mapping[str, str], default_action: str) -> JudgedBatch:
    """Type the columns and sort out the rows that cannot be events.

    Args:
        table: raw columns.
        chosen: canonical name -> column (from `columns.choose_columns`).
        default_action: action of rows that have neither action nor value.
    """
    count = table.num_rows
    reason = np.full(count, None, dtype=object)
    columns: dict[str, pa.Array] = {}

    def mark(wrong: npt.NDArray[np.bool_], text: str, shown: pa.Array | None = None) -> None:
        rows = np.flatnonzero(wrong & (reason == None))  # noqa: E711  (elementwise)
        if not len(rows):
            return
        values = [None] * len(rows) if shown is None else [v.as_py() for v in shown.take(pa.array(rows))]
        for row, value in zip(rows, values, strict=True):
            reason[row] = text if shown is None else text.replace("{}", _short(value))

    for name in ("user_id", "session_id", "item_id", "event_id", "recommendation_id", "split"):
        if name in chosen:
            columns[name], wrong = to_ids(table[chosen[name]])
            mark(wrong, f"{name} is {NO_ID}")
    nobody = pc.is_null(columns["user_id"]) if "user_id" in columns else pa.array(np.ones(count, dtype=bool))
    if "session_id" in columns:
        nobody = pc.and_(nobody, pc.is_null(columns["session_id"]))
    mark(nobody.to_numpy(zero_copy_only=False), "user_id is missing")
    mark(pc.is_null(columns["item_id"]).to_numpy(zero_copy_only=False), "item_id is missing")
    if "timestamp" in chosen:
        columns["time_us"], wrong = to_times(table[chosen["timestamp"]])
        mark(wrong, "timestamp {} is not ISO 8601 or an epoch number within 1900 to 2200", flat(table[chosen["timestamp"]]))
    if "value" in chosen:
        columns["value"], wrong = to_numbers(table[chosen["value"]])
        mark(wrong, "value {} is not a finite number", flat(table[chosen["value"]]))
    if "position" in chosen:
        columns["position"], wrong = to_whole_numbers(table[chosen["position"]], limit=MAX_POSITION)
        mark(wrong, "position {} is not a whole number from 0", flat(table[chosen["position"]]))
    if "slate_position" in chosen:
        slate, wrong = to_whole_numbers(table[chosen["slate_position"]], limit=_MAX_SLATE_POSITION)
        columns["slate_position"] = slate.cast(pa.int32())
        mark(wrong, "slate_position {} is not a whole number from 0", flat(table[chosen["slate_position"]]))
    if "timestamp_imputed" in chosen:
        columns["timestamp_imputed"] = pc.fill_null(to_truth(table[chosen["timestamp_imputed"]]), False)
    if "context" in chosen:
        columns["context"] = pc.cast(flat(table[chosen["context"]]), pa.string())
    columns["action"] = _actions(
        table[chosen["action"]] if "action" in chosen else None, columns.get("value"), default_action, count
    )
    complete = [columns.get(field.name, pa.nulls(count, field.type)) for field in ROW_SCHEMA]
    rows = pa.table(complete, schema=ROW_SCHEMA)
    rejected = np.flatnonzero(reason != None)  # noqa: E711  (elementwise)
    if len(rejected):
        keep = np.ones(count, dtype=bool)
        keep[rejected] = False
        rows = rows.filter(pa.array(keep))
    return JudgedBatch(rows, rejected, [str(reason[row]) for row in rejected])


def _actions(column: pa.ChunkedArray | None, value: pa.Array | None, default_action: str, count: int) -> pa.Array:
    missing = pa.repeat(pa.scalar(default_action), count)
    if value is not None:
        missing = pc.if_else(pc.is_valid(value), "rating", missing)
    if column is None:
        return missing
    given, _ = to_ids(column)
    encoded = given.dictionary_encode()
    words = pa.array([_action_word(word) for word in encoded.dictionary.to_pylist()], pa.string())
    return pc.coalesce(words.take(encoded.indices), missing)


def _action_word(word: str) -> str:
    plain = word.lower().replace(" ", "_").replace("-", "_")
    return ACTION_ALIASES.get(plain, plain)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
