"""The skew report: are the feature values that ranked lists those that the offline store gives for the same moment?

Three kinds of skew are told apart:
- **wrong**: a user or user x item value that differs from the one computed offline out of the events that had been received by
  then. Serving has a bug, or lost or repeated an event: the alarm.
- **stale**: item windows are columns of the version, as of its training; how far the catalogue has moved on is shown, no alarm.
- **shifted**: serving's windows end now, training's at each label. On a dataset whose events are old every window is empty now,
  although the model has learnt from full ones: shares of zeros in training and in serving are shown side by side, and a feature
  that lost its meaning is named.

Legend: `L` logged lists, `F` features, `P` shown items of all lists.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.own_views import own_user_specs
from feature_repo.request_columns import REQUEST_FEATURES
from feature_repo.specs import USER_ACTIVITY_SPECS
from features.activity_log import positive_events
from features.activity_store import ActivityStore
from features.columns import FeatureColumns, equal_columns, value_column
from features.errors import FeatureJoinError
from features.paths import DatasetPaths
from features.request_features import request_features
from features.served import feature_log
from features.training_set import item_features_at, user_features_at

ALLOWED_SHARE = 0.01
"""Share of differing values that is no alarm: an event may be received in the very moment of a request."""

OF_ITEM = ("item_events_7d", "item_events_30d", "item_age_days")
"""Request features that depend on the item alone, as of the version's training."""

EMPTY_SHARE = 0.99
"""A feature that is zero or missing so often in serving has lost its meaning if training saw it otherwise."""

_EVENT_COLUMNS = ("user_id", "item_id", "timestamp", "value", "action", "flag", "received_at")
_RELATIVE, _ABSOLUTE = 1e-5, 1e-6


@dataclass(frozen=True)
class FeatureSkew:
    """One feature: logged values against recomputed ones."""

    feature: str
    kind: str  # "wrong" (may raise the alarm) or "stale"
    compared: int
    different: int
    example: str

    @property
    def share(self) -> float:
        """Share of values that differ."""
        return self.different / max(self.compared, 1)


@dataclass(frozen=True)
class FeatureShift:
    """One feature: its values in serving, and at the moments of labels as training sees them."""

    feature: str
    served_mean: float | None
    trained_mean: float | None
    served_empty_share: float
    trained_empty_share: float

    @property
    def lost(self) -> bool:
        """Whether serving never sees what training saw."""
        return self.served_empty_share >= EMPTY_SHARE and self.trained_empty_share < 0.5


@dataclass(frozen=True)
class SkewReport:
    """What the comparison found; `alarms` names the features that are wrong in more than `ALLOWED_SHARE` of their values."""

    dataset: str
    lists: int
    unreadable: int
    dropped: int
    skews: list[FeatureSkew] = field(default_factory=list)
    shifts: list[FeatureShift] = field(default_factory=list)

    @property
    def alarms(self) -> list[str]:
        """Features that serving gets wrong."""
        return [skew.feature for skew in self.skews if skew.kind == "wrong" and skew.share > ALLOWED_SHARE]

    @property
    def lost(self) -> list[str]:
        """Features that training saw and serving never does."""
        return [shift.feature for shift in self.shifts if shift.lost]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"ok": not self.alarms, "alarms": self.alarms, "lost": self.lost, **asdict(self)}


def skew_report(
    paths: DatasetPaths, items: pa.Table, *, has_times: bool, since: datetime | None = None, sample: int = 500, seed: int = 0
) -> SkewReport:
    """Compare the newest logged lists of signed-in users with the offline store.

    Args:
        paths: of the dataset.
        items: the catalogue's items.
        has_times: False where times are only an order.
        since: only lists from this moment on.
        sample: lists compared.
        seed: of the sample.

    Raises:
        FeatureJoinError: nothing was logged that could be compared.
    """
    logged = feature_log(paths.root).read(since=since)
    usable = logged.filter(pc.and_(pc.is_valid(logged["user_id"]), pc.not_equal(logged["user_features"], "{}")))
    # Precomputed lists, and those of a request without the online store, say what a history knew, not what had been received.
    usable = usable.filter(usable["from_online_store"])
    if not usable.num_rows:
        raise FeatureJoinError(
            f"{logged.num_rows} lists of {paths.dataset!r} are logged, none with online features of a user: serve answers by a "
            "version with a learned ranker, with serve.feature_log_rate above 0"
        )
    chosen = np.random.default_rng(seed).permutation(usable.num_rows)[:sample]
    lists = usable.take(pa.array(np.sort(chosen)))
    users = lists["user_id"].to_numpy(zero_copy_only=False)
    moments = lists["request_time_us"].to_numpy()
    store = ActivityStore.of(paths)
    events = positive_events(store.read(_EVENT_COLUMNS, user_ids=sorted(set(users.tolist()))))
    served = [json.loads(text) for text in lists["user_features"].to_pylist()]
    names = [spec.name for spec in (*USER_ACTIVITY_SPECS, *own_user_specs()) if any(spec.name in row for row in served)]
    offline = _as_received(events, items, users, moments, lists["at"], names, has_times)
    report = SkewReport(paths.dataset, len(lists), usable.num_rows - len(lists), int(pc.sum(logged["dropped"]).as_py() or 0))
    report.skews.extend(_user_skews(served, offline, names, users))
    report.skews.extend(_pair_skews(lists, offline, items, store, moments, has_times))
    if has_times:
        report.shifts.extend(_shifts(lists, events, items))
    return report


def _as_received(
    events: pa.Table,
    items: pa.Table,
    users: npt.NDArray[np.object_],
    moments: npt.NDArray[np.int64],
    at: pa.ChunkedArray,
    names: list[str],
    has_times: bool,
) -> FeatureColumns:
    """Features of each list's user out of the events that had been received when it was computed."""
    received = pc.cast(events["received_at"], pa.int64()).to_numpy()
    asked_at = pc.cast(at, pa.int64()).to_numpy()
    owner = events["user_id"].to_numpy(zero_copy_only=False)
    newest = {user: int(received[owner == user].max(initial=0)) for user in set(users.tolist())}
    late = np.array([newest[user] > moment for user, moment in zip(users, asked_at, strict=True)])
    whole = user_features_at(events, items, users, moments, names=names, has_times=has_times)
    for row in np.flatnonzero(late):  # something came later: leave that out, for this list alone
        known = events.filter(pa.array((owner == users[row]) & (received <= asked_at[row])))
        alone = user_features_at(known, items, users[row : row + 1], moments[row : row + 1], names=names, has_times=has_times)
        for name, column in alone.items():
            whole[name][row] = column[0]
    return whole


def _user_skews(
    served: list[dict[str, Any]], offline: FeatureColumns, names: list[str], users: npt.NDArray[np.object_]
) -> list[FeatureSkew]:
    specs = {spec.name: spec for spec in (*USER_ACTIVITY_SPECS, *own_user_specs())}
    skews = []
    for name in names:
        logged = value_column([row.get(name) for row in served], specs[name])
        same = equal_columns(logged, offline[name])
        skews.append(_skew(name, "wrong", same, users, logged, offline[name]))
    return skews


def _pair_skews(
    lists: pa.Table, offline: FeatureColumns, items: pa.Table, store: ActivityStore, moments: npt.NDArray[np.int64], has_times: bool
) -> list[FeatureSkew]:
    """Values of shown items: those that the user's state decides, and those that age with the version."""
    shown, row, item_ids = _shown(lists)
    names = [name for name in REQUEST_FEATURES if name in shown]
    needed = {spec.name for spec in USER_ACTIVITY_SPECS if spec.name in offline}
    if not names or not {"user_hour_tiles", "user_day_tiles", "user_categories"} <= needed:
        return []
    distinct, idx = np.unique(item_ids, return_inverse=True)
    events = store.read(("user_id", "item_id", "timestamp", "value", "action", "flag"))
    now = item_features_at(events, items, np.asarray(distinct, dtype=np.object_), int(moments.max()), has_times=has_times)
    users = {name: column[row] for name, column in offline.items()}
    expected = request_features(users, now, moments[row], idx.astype(np.int32)[:, None])
    labels = np.array([f"{lists['user_id'][int(r)].as_py()} x {item}" for r, item in zip(row, item_ids, strict=True)], dtype=object)
    return [
        _skew(
            name,
            "stale" if name in OF_ITEM else "wrong",
            np.isclose(shown[name], expected[name][:, 0], rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True),
            labels,
            shown[name],
            expected[name][:, 0],
        )
        for name in names
    ]


def _shown(lists: pa.Table) -> tuple[dict[str, npt.NDArray[np.float32]], npt.NDArray[np.int64], npt.NDArray[np.object_]]:
    """Logged values of every shown item (P,) by feature, the list of each, and its id. Features that a version lacks are NaN."""
    all_names = sorted({name for names in lists["feature_names"].to_pylist() for name in names})
    parts: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in all_names}
    owners, ids = list[npt.NDArray[np.int64]](), list[str]()
    for row in range(lists.num_rows):
        names, items = lists["feature_names"][row].as_py(), lists["item_ids"][row].as_py()
        matrix = np.asarray(lists["values"][row].values, dtype=np.float32).reshape(len(items), len(names))
        for name in all_names:
            column = matrix[:, names.index(name)] if name in names else np.full(len(items), np.nan, np.float32)
            parts[name].append(column)
        owners.append(np.full(len(items), row, dtype=np.int64))
        ids += items
    return {name: np.concatenate(part) for name, part in parts.items()}, np.concatenate(owners), np.array(ids, dtype=np.object_)


def _shifts(lists: pa.Table, events: pa.Table, items: pa.Table) -> list[FeatureShift]:
    """Windows and recency in serving, and just before the last event of each of the same users, as training asks for them."""
    shown, row, _ = _shown(lists)
    _, first = np.unique(row, return_index=True)
    last = events.group_by("user_id").aggregate([("timestamp", "max")])
    users = last["user_id"].to_numpy(zero_copy_only=False)
    labels = pc.cast(last["timestamp_max"], pa.int64()).to_numpy()
    if not len(users):
        return []
    known = user_features_at(events, items, np.asarray(users, dtype=np.object_), labels)
    item = item_features_at(events, items, np.array([""], dtype=np.object_), int(labels.max()))
    trained = request_features(known, item, labels, np.zeros((len(users), 1), dtype=np.int32))
    found = []
    for name in ("user_events_1d", "user_events_7d", "user_events_30d", "days_since_last_event"):
        if name in shown:
            served, at_label = shown[name][first], trained[name][:, 0]
            found.append(FeatureShift(name, _mean(served), _mean(at_label), _empty(served), _empty(at_label)))
    return found


def _mean(values: npt.NDArray[np.float32]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _empty(values: npt.NDArray[np.float32]) -> float:
    return float(((values == 0) | np.isnan(values)).mean())


def _skew(
    name: str,
    kind: str,
    same: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.object_],
    logged: npt.NDArray[Any],
    expected: npt.NDArray[Any],
) -> FeatureSkew:
    different = np.flatnonzero(~same)
    example = ""
    if len(different):
        row = int(different[0])
        example = f"{labels[row]}: served {_short(logged[row])}, offline {_short(expected[row])}"
    return FeatureSkew(name, kind, len(same), len(different), example)


def _short(value: Any) -> str:
    text = str(value.tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def describe(report: SkewReport) -> Mapping[str, str]:
    """Lines for people: feature -> what was found."""
    lines = {}
    for skew in report.skews:
        word = "WRONG" if skew.feature in report.alarms else skew.kind if skew.different else "equal"
        example = f", e.g. {skew.example}" if skew.example else ""
        lines[skew.feature] = f"{word}: {skew.different:,} of {skew.compared:,} differ{example}"
    for shift in report.shifts:
        if shift.lost:
            lines[f"{shift.feature} (shifted)"] = (
                f"training saw {shift.trained_mean:.3g} on average, serving sees it empty in {shift.served_empty_share:.0%} of "
                "lists: the dataset's events are older than the window. Rank with fresh events, or train without it"
            )
    return lines
