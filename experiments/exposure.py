"""The exposure: a unit was given an answer under a variant. Owns its record, its wire form and its columns.

The gateway emits one for each answer to a request that is in an experiment: assignment alone is not exposure. Analysis uses the
first exposure of a unit (`first_exposures`): from then on its events count.

Shapes: `E` exposures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from experiments.errors import ExperimentError
from experiments.spec import Unit

EXPOSURE_SCHEMA = pa.schema(
    [
        pa.field("exposure_id", pa.string(), nullable=False),  # recommendation_id:experiment
        pa.field("site", pa.string(), nullable=False),
        pa.field("recommendation_id", pa.string(), nullable=False),
        pa.field("experiment", pa.string(), nullable=False),
        pa.field("variant", pa.string(), nullable=False),
        pa.field("unit", pa.string(), nullable=False),
        pa.field("unit_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string()),
        pa.field("session_id", pa.string()),
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("model_version", pa.string()),  # the version that answered; null when the popular list did
        pa.field("served_from", pa.string(), nullable=False),
        pa.field("degraded", pa.bool_(), nullable=False),
        pa.field("placement", pa.string()),
        pa.field("item_ids", pa.list_(pa.string()), nullable=False),  # in order of the slate
        pa.field("propensities", pa.list_(pa.float64())),  # probability of each item at its place; null: nothing was left to chance
    ]
)
"""One row of the exposure log."""


@dataclass(slots=True)
class Exposure:
    """One exposure. `at` is UTC; `model_version` and `served_from` say what was served, which may differ from what was assigned.

    A plain object: one is made for each answer of an experiment, and a frozen one takes four times as long to make.
    """

    recommendation_id: str
    experiment: str
    variant: str
    unit: Unit
    unit_id: str
    at: datetime
    served_from: str
    item_ids: Sequence[str]
    user_id: str | None = None
    session_id: str | None = None
    model_version: str | None = None
    degraded: bool = False
    placement: str | None = None
    propensities: Sequence[float] | None = None
    site: str = "local"

    @property
    def exposure_id(self) -> str:
        """The same for a repeated emission of the same answer."""
        return f"{self.recommendation_id}:{self.experiment}"

    @property
    def key(self) -> str:
        """What the bus tells exposures apart by."""
        return self.exposure_id

    def encode(self) -> bytes:
        """The payload on the bus: the fields of `EXPOSURE_SCHEMA`; `exposure_id` is its key."""
        return orjson.dumps(
            {
                "exposure_id": self.exposure_id,
                "site": self.site,
                "recommendation_id": self.recommendation_id,
                "experiment": self.experiment,
                "variant": self.variant,
                "unit": self.unit,
                "unit_id": self.unit_id,
                "user_id": self.user_id,
                "session_id": self.session_id,
                "at": round(self.at.timestamp() * 1e6),
                "model_version": self.model_version,
                "served_from": self.served_from,
                "degraded": self.degraded,
                "placement": self.placement,
                "item_ids": list(self.item_ids),
                "propensities": None if self.propensities is None else list(self.propensities),
            }
        )


def decode_exposures(payloads: Sequence[bytes]) -> pa.Table:
    """Bus payloads as rows of `EXPOSURE_SCHEMA`.

    Raises:
        ExperimentError: a payload is not an exposure.
    """
    try:
        rows = [json.loads(payload) for payload in payloads]
        columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in EXPOSURE_SCHEMA]
    except (ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        raise ExperimentError(f"not an exposure: {error}") from None
    for field, column in zip(EXPOSURE_SCHEMA, columns, strict=True):
        if not field.nullable and column.null_count:
            raise ExperimentError(f"not an exposure: {field.name} is missing")
    return pa.table(columns, schema=EXPOSURE_SCHEMA)


def first_exposures(exposures: pa.Table, experiment: str) -> pa.Table:
    """The first exposure of each unit in one experiment, and how many it had.

    A unit that met several variants (its variant is a pure function, so only a broken client or a reused salt can do that) is left
    out by no rule here: `mixed` says so, and the report excludes and counts it.

    Returns:
        `unit_id` str, `variant` str, `first_at` timestamp, `exposures` int64, `mixed` bool; sorted by unit_id.
    """
    mine = exposures.filter(pc.equal(exposures["experiment"], experiment)).sort_by([("at", "ascending")])
    grouped = mine.group_by("unit_id", use_threads=False).aggregate(
        [("variant", "first"), ("at", "first"), ("variant", "count"), ("variant", "count_distinct")]
    )
    return pa.table(
        {
            "unit_id": grouped["unit_id"],
            "variant": grouped["variant_first"],
            "first_at": grouped["at_first"],
            "exposures": grouped["variant_count"],
            "mixed": pc.greater(grouped["variant_count_distinct"], 1),
        }
    ).sort_by([("unit_id", "ascending")])
