"""From exposures and events to one row a unit: its variant, and numerator and denominator of every metric.

A unit counts from its first exposure: events in `[first exposure, first exposure + horizon)` are its outcomes, whatever it was
shown by then (intention to treat). Units that met more than one variant are left out and counted.

Shapes: `U` units, `E` events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from experiments.exposure import first_exposures
from experiments.metrics import Metric
from experiments.spec import ExperimentSpec

EVENT_COLUMNS = ("user_id", "session_id", "action", "value", "timestamp", "recommendation_id")
"""Columns of the activity store that outcomes are made of."""

EXPOSURE_COLUMNS = ("recommendation_id", "experiment", "variant", "unit_id", "at")
"""Columns of the exposure log that outcomes are made of: what was shown, many times all else, is none of them."""

DAY_US = 86_400_000_000

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class MetricColumns:
    """One metric, a number a unit. `denominator` is None unless the metric is a ratio.

    Shapes: (U,) float64 both.
    """

    numerator: FloatArray
    denominator: FloatArray | None


@dataclass(frozen=True)
class Outcomes:
    """All units of one experiment.

    Args:
        variant: (U,) int64 index into the spec's variants.
        exposures: (U,) int64 answers within the unit's window.
        complete: (U,) bool, whether the unit's window had ended.
        metrics: metric name -> columns.
        mixed_units: units left out because they met several variants.
        unknown_variants: units left out because their variant is not in the spec.
    """

    variant: IntArray
    exposures: IntArray
    complete: NDArray[np.bool_]
    metrics: dict[str, MetricColumns]
    mixed_units: int
    unknown_variants: int


def compute_outcomes(spec: ExperimentSpec, exposures: pa.Table, events: pa.Table, now: datetime) -> Outcomes:
    """Join exposures with events.

    Args:
        spec: the experiment.
        exposures: at least EXPOSURE_COLUMNS, of any experiments.
        events: at least EVENT_COLUMNS, of any users and times; all of the actions in `counted_actions`.
        now: until when events are complete.
    """
    mine = exposures.filter(pc.equal(exposures["experiment"], spec.name))
    units = first_exposures(mine, spec.name)
    names = pa.array([variant.name for variant in spec.variants])
    mixed_units, known = pc.sum(units["mixed"]).as_py() or 0, pc.is_in(units["variant"], value_set=names)
    unknown = pc.sum(pc.and_(pc.invert(known), pc.invert(units["mixed"]))).as_py() or 0
    units = units.filter(pc.and_(known, pc.invert(units["mixed"])))

    horizon_us = round(spec.decision.horizon_days * DAY_US)
    first_us, now_us = _microseconds(units["first_at"]), round(now.timestamp() * 1e6)
    unit_of_exposure, exposure_at = _rows_of(mine["unit_id"], units["unit_id"]), _microseconds(mine["at"])
    shown = _in_window(unit_of_exposure, exposure_at, first_us, horizon_us)
    num_exposures = np.bincount(unit_of_exposure[shown], minlength=units.num_rows)

    event_at = _microseconds(events["timestamp"])
    by_id = _rows_of(events[spec.unit], units["unit_id"])
    answers = pc.index_in(events["recommendation_id"], value_set=_array(mine["recommendation_id"]), skip_nulls=True)
    by_answer = np.append(unit_of_exposure, -1)[pc.fill_null(answers, len(unit_of_exposure)).to_numpy(zero_copy_only=False)]
    counted_by_id = _in_window(by_id, event_at, first_us, horizon_us)
    # What quotes an answer came after it, whatever the client's clock says.
    counted_by_answer = _in_window(by_answer, np.maximum(event_at, np.append(first_us, 0)[by_answer]), first_us, horizon_us)
    values = pc.fill_null(events["value"], 0.0).to_numpy(zero_copy_only=False)

    def totals(actions: Sequence[str], of: str, attributed: bool) -> FloatArray:
        rows, counted = (by_answer, counted_by_answer) if attributed else (by_id, counted_by_id)
        matching = counted & pc.is_in(events["action"], value_set=pa.array(actions)).to_numpy(zero_copy_only=False)
        weights = values[matching] if of == "value" else None
        return np.bincount(rows[matching], weights=weights, minlength=units.num_rows).astype(np.float64)

    def columns(metric: Metric) -> MetricColumns:
        numerator = totals(metric.actions, metric.of, metric.attributed)
        if metric.kind == "proportion":
            return MetricColumns((numerator > 0).astype(np.float64), None)
        if metric.kind == "mean":
            return MetricColumns(numerator, None)
        if isinstance(metric.per, tuple):
            return MetricColumns(numerator, totals(metric.per, "events", metric.attributed))
        return MetricColumns(numerator, num_exposures.astype(np.float64))

    return Outcomes(
        variant=pc.index_in(units["variant"], value_set=names).to_numpy().astype(np.int64),
        exposures=num_exposures,
        complete=first_us + horizon_us <= now_us,
        metrics={metric.name: columns(metric) for metric in spec.metrics.all},
        mixed_units=mixed_units,
        unknown_variants=unknown,
    )


def counted_actions(spec: ExperimentSpec) -> frozenset[str]:
    """Actions that any metric of an experiment counts, as numerator or denominator."""
    per = [metric.per for metric in spec.metrics.all if isinstance(metric.per, tuple)]
    return frozenset(action for actions in (*per, *(metric.actions for metric in spec.metrics.all)) for action in actions)


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _microseconds(column: pa.ChunkedArray) -> IntArray:
    return np.asarray(pc.cast(column, pa.int64()).to_numpy(), dtype=np.int64)


def _rows_of(ids: pa.ChunkedArray, units: pa.ChunkedArray) -> IntArray:
    """Row of each id among the units, -1 where it is none of them."""
    return np.asarray(pc.fill_null(pc.index_in(ids, value_set=_array(units), skip_nulls=True), -1).to_numpy(), dtype=np.int64)


def _in_window(rows: IntArray, at_us: IntArray, first_us: IntArray, horizon_us: int) -> NDArray[np.bool_]:
    """Whether each event is of a unit and within its window."""
    since_us = at_us - np.append(first_us, 0)[rows]
    return (rows >= 0) & (since_us >= 0) & (since_us < horizon_us)
