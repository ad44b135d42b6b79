"""Checks of the feature store: is what serves what was trained on, is it fresh, is it there, can it be true.

Parity asks Feast twice for the same entities, offline out of the tables and online out of Redis, and compares value by value; the
on-demand features are compared between Feast and the column functions that ranking uses. An online row that is newer than the
tables was pushed since and is left out, and counted. Null shares and ranges are read from the tables' newest rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.services import ENGAGEMENT_V1
from feature_repo.specs import (
    ITEM_ACTIVITY,
    RECENT_ID_BYTES,
    RECENT_ITEMS,
    TOP_CATEGORIES,
    USER_ACTIVITY,
    FeatureSpec,
    table_path,
)
from features.aggregates import Side, id_bytes
from features.columns import FeatureColumns, equal_columns, table_columns
from features.errors import FeatureJoinError
from features.feature_tables import newest_rows, newest_time_us
from features.point_in_time import LATEST_US
from features.request_features import REQUEST_FEATURE_NAMES, request_features
from features.store import Features
from features.views import view_specs

SIDES: tuple[Side, Side] = ("user", "item")

BoolArray = npt.NDArray[np.bool_]

SCAN_ROWS = 20_000
"""Rows of a table scanned at once."""


@dataclass(frozen=True)
class Difference:
    """A feature whose offline and online values are not the same."""

    feature: str
    rows: int
    different: int
    example: str
    offline: str
    online: str


@dataclass(frozen=True)
class CheckReport:
    """What the checks found.

    Attributes:
        compared: side -> entities compared offline against online; "pair" counts user x item pairs.
        pushed_since: side -> sampled entities left out because a newer row was pushed online.
        expired: side -> sampled entities left out because they were inactive for longer than the online store keeps them.
        differences: features that differ.
        violations: values that cannot be true, one line each.
        null_share: feature -> share of the newest rows without a value.
        freshness: seconds from the tables' cutoff, and from the newest event, to the moment of the check.
    """

    dataset: str
    compared: dict[str, int] = field(default_factory=dict)
    pushed_since: dict[str, int] = field(default_factory=dict)
    expired: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    null_share: dict[str, float] = field(default_factory=dict)
    freshness: dict[str, float | None] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Nothing differs and nothing is impossible."""
        return not self.differences and not self.violations

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"ok": self.ok, **asdict(self)}


def check_features(features: Features, now_us: int, *, sample: int = 1_000, seed: int = 0) -> CheckReport:
    """Run all checks.

    Args:
        features: with its online store.
        now_us: the moment of the check, microseconds since the epoch.
        sample: entities a side, and pairs, to compare offline against online; all where there are fewer.
        seed: of the sample.

    Raises:
        FeatureJoinError: the tables were never built.
        FeatureStoreError: the online store cannot be reached, or nothing was applied.
    """
    rng = np.random.default_rng(seed)
    report = CheckReport(features.paths.dataset)
    sampled = {side: _sample_ids(features, side, sample, rng) for side in SIDES}
    online = {side: _check_parity(features, side, sampled[side], now_us, report) for side in SIDES}
    _check_pairs(features, sampled, online, now_us, report)
    for side in SIDES:
        _scan_tables(features, side, report)
    report.freshness.update(_freshness(features, now_us))
    return report


def range_violations(columns: FeatureColumns, side: Side) -> list[str]:
    """Values of an activity view that cannot be true, one line a rule that is broken."""
    rules = _user_rules(columns) if side == "user" else _item_rules(columns)
    return [f"{int((~holds).sum())} {side}s: {rule} does not hold" for rule, holds in rules if not holds.all()]


def _sample_ids(features: Features, side: Side, sample: int, rng: np.random.Generator) -> npt.NDArray[np.object_]:
    path = table_path(USER_ACTIVITY if side == "user" else ITEM_ACTIVITY, features.paths.feature_tables)
    if not path.exists():
        raise FeatureJoinError(
            f"feature table {path} is missing: run `shortlist features build --dataset {features.paths.dataset}`"
        )
    ids = pc.unique(pq.read_table(path, columns=[f"{side}_id"]).column(0)).to_numpy(zero_copy_only=False)
    return np.asarray(rng.permutation(ids)[:sample], dtype=np.object_)


def _check_parity(features: Features, side: Side, ids: npt.NDArray[np.object_], now_us: int, report: CheckReport) -> FeatureColumns:
    if side == "user":
        online = features.online_users(list(ids))
    else:
        online = features.online_items(list(ids)) | features.online_items(list(ids), ENGAGEMENT_V1)
    offline = features.historical(side, ids, np.full(len(ids), now_us + 1, dtype=np.int64), list(online))
    pushed = _pushed_since(features, side, ids)
    expired = _expired(features, side, ids, offline, now_us)
    report.compared[side] = int((~pushed & ~expired).sum())
    report.pushed_since[side] = int(pushed.sum())
    report.expired[side] = int(expired.sum())
    for name, values in offline.items():
        same = equal_columns(values, online[name]) | pushed | expired
        _note_difference(report, name, same, ids, values, online[name])
    return online


def _pushed_since(features: Features, side: Side, ids: npt.NDArray[np.object_]) -> BoolArray:
    path = table_path(USER_ACTIVITY if side == "user" else ITEM_ACTIVITY, features.paths.feature_tables)
    cutoff = newest_time_us(path)
    if cutoff is None or not len(ids):
        return np.zeros(len(ids), dtype=np.bool_)
    return np.asarray(features.online_times_us(side, list(ids)) > cutoff)


def _expired(features: Features, side: Side, ids: npt.NDArray[np.object_], offline: FeatureColumns, now_us: int) -> BoolArray:
    """Entities that have left the online store, as users do who were away for longer than its expiry."""
    if side == "item" or features.user_ttl_s is None or not len(ids):
        return np.zeros(len(ids), dtype=np.bool_)
    away = offline["user_last_event_us"] < now_us - features.user_ttl_s * 1e6
    return np.asarray(away & np.isnan(features.online_times_us(side, list(ids))))


def _check_pairs(
    features: Features,
    sampled: Mapping[Side, npt.NDArray[np.object_]],
    online: Mapping[Side, FeatureColumns],
    now_us: int,
    report: CheckReport,
) -> None:
    pairs = min(len(sampled["user"]), len(sampled["item"]))
    report.compared["pair"] = pairs
    if pairs == 0:
        return
    users, items = sampled["user"][:pairs], sampled["item"][:pairs]
    # Half the pairs are asked at the user's last event, because windows of old data are all empty by now.
    moments = np.full(pairs, now_us, dtype=np.int64)
    last = online["user"]["user_last_event_us"][:pairs]
    at_event = (np.arange(pairs) % 2 == 0) & ~np.isnan(last)
    moments[at_event] = last[at_event].astype(np.int64) + 1
    from_feast = features.online_pairs(list(users), list(items), moments.tolist())
    rows = {name: column[:pairs] for name, column in online["user"].items()}
    of_items = {name: column[:pairs] for name, column in online["item"].items()}
    on_columns = request_features(rows, of_items, moments, np.arange(pairs, dtype=np.int32)[:, None])
    names = np.array([f"{user} x {item}" for user, item in zip(users, items, strict=True)], dtype=np.object_)
    for name in REQUEST_FEATURE_NAMES:
        expected = on_columns[name][:, 0].astype(np.float64)
        _note_difference(report, name, equal_columns(expected, from_feast[name]), names, expected, from_feast[name])


def _note_difference(
    report: CheckReport,
    name: str,
    same: BoolArray,
    ids: npt.NDArray[np.object_],
    offline: npt.NDArray[Any],
    online: npt.NDArray[Any],
) -> None:
    if same.all():
        return
    row = int(np.flatnonzero(~same)[0])
    report.differences.append(
        Difference(name, len(same), int((~same).sum()), str(ids[row]), _shown(offline[row]), _shown(online[row]))
    )


def _shown(value: object) -> str:
    text = str(value.tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _scan_tables(features: Features, side: Side, report: CheckReport) -> None:
    for view, specs in view_specs(features.schema, side).items():
        nulls = dict.fromkeys((spec.name for spec in specs), 0)
        rows = 0
        broken: dict[str, int] = {}
        for block in newest_rows(table_path(view, features.paths.feature_tables), f"{side}_id", LATEST_US, SCAN_ROWS):
            rows += len(block)
            for spec in specs:
                nulls[spec.name] += _missing(block.column(spec.name), spec)
            if view in (USER_ACTIVITY, ITEM_ACTIVITY):
                for line in range_violations(table_columns(block, specs), side):
                    count, _, rule = line.partition(" ")
                    broken[rule] = broken.get(rule, 0) + int(count)
        report.violations.extend(f"{count} {rule}" for rule, count in broken.items())
        report.null_share.update({name: round(count / max(rows, 1), 6) for name, count in nulls.items()})


def _missing(column: pa.ChunkedArray, spec: FeatureSpec) -> int:
    if spec.kind in ("texts", "integers", "numbers"):
        return int(pc.sum(pc.equal(pc.fill_null(pc.list_value_length(column), 0), 0)).as_py() or 0)
    return int(column.null_count)


def _freshness(features: Features, now_us: int) -> dict[str, float | None]:
    path = table_path(USER_ACTIVITY, features.paths.feature_tables)
    cutoff = newest_time_us(path)
    newest_event = None
    if features.schema.has_times:
        newest_event = pc.max(pq.read_table(path, columns=["user_last_event_us"]).column(0)).as_py()
    return {
        "tables_cutoff_age_s": None if cutoff is None else (now_us - cutoff) / 1e6,
        "newest_event_age_s": None if newest_event is None else (now_us - newest_event) / 1e6,
    }


def _user_rules(c: FeatureColumns) -> Iterator[tuple[str, BoolArray]]:
    events, timed = c["user_events"], ~np.isnan(c["user_last_event_us"])
    lengths = np.array([len(items) for items in c["recent_items"]], dtype=np.int64)
    yield "user_events >= 1", events >= 1
    yield "user_value_count <= user_events", c["user_value_count"] <= events
    yield "user_value_mean where there are values", np.isnan(c["user_value_mean"]) == (c["user_value_count"] == 0)
    yield "the newest day's tile >= 1", ~timed | (c["user_day_tiles"][:, 0] >= 1)
    yield "day tiles add up to at most user_events", c["user_day_tiles"].sum(axis=1) <= events
    yield (
        "hour tiles add up to at most the day tiles of two days",
        c["user_hour_tiles"].sum(axis=1) <= c["user_day_tiles"][:, :2].sum(axis=1),
    )
    sizes = np.array([id_bytes(pa.array(items, pa.string())).sum() for items in c["recent_items"]], dtype=np.int64)
    yield f"recent_items holds 1 to {RECENT_ITEMS} events", (lengths >= 1) & (lengths <= np.minimum(events, RECENT_ITEMS))
    yield f"one recent item, or {RECENT_ID_BYTES} bytes of ids", (lengths == 1) | (sizes <= RECENT_ID_BYTES)
    yield "recent_ages_s falls to 0", _each(c["recent_ages_s"], lengths, _falls_to_zero)
    letters = np.array([len(actions or "") for actions in c["recent_actions"]], dtype=np.int64)
    yield "recent_actions has a digit for each recent item", letters == lengths
    yield f"at most {TOP_CATEGORIES} categories", _each(c["user_categories"], None, lambda names: len(names) <= TOP_CATEGORIES)
    yield "shares in (0, 1]", _each(c["user_category_weights"], None, lambda w: bool(((w > 0) & (w <= 1)).all()))


def _item_rules(c: FeatureColumns) -> Iterator[tuple[str, BoolArray]]:
    events, first, last = c["item_events"], c["item_first_event_us"], c["item_last_event_us"]
    yield "item_events >= 1", events >= 1
    yield "item_value_count <= item_events", c["item_value_count"] <= events
    yield "first event not after the last", np.isnan(first) | (first <= last)
    yield "the newest day's tile >= 1", np.isnan(last) | (c["item_day_tiles"][:, 0] >= 1)
    yield "day tiles add up to at most item_events", c["item_day_tiles"].sum(axis=1) <= events


def _each(column: npt.NDArray[Any], lengths: npt.NDArray[np.int64] | None, holds: Any) -> BoolArray:
    wanted = np.array([len(value) for value in column]) == lengths if lengths is not None else np.ones(len(column), dtype=np.bool_)
    return np.asarray(wanted & np.array([holds(value) for value in column], dtype=np.bool_))


def _falls_to_zero(ages: npt.NDArray[np.int64]) -> bool:
    return len(ages) == 0 or bool(ages[-1] == 0 and (np.diff(ages) <= 0).all())
