"""The on-demand view `request`: the functions of `feature_repo.request_columns` in the form in which Feast calls them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from feast import FeatureView, Field, RequestSource
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.types import Float64, Int64

from feature_repo.entities import OWNER
from feature_repo.request_columns import REQUEST_FEATURES, LongArray, item_columns, pair_features, user_columns
from feature_repo.specs import CATEGORY_ATTRIBUTES, DAY_TILES, HOUR_TILES, METADATA_PREFIX

REQUEST_VIEW = "request"
REQUEST_TIME = "request_time_us"


def request_udf(inputs: dict[str, Any]) -> dict[str, list[float]]:
    """The on-demand view's transformation in Feast's python mode: lists of source values in, lists of features out."""
    rows = np.arange(len(inputs[REQUEST_TIME]))
    first, last = _floats(inputs["item_first_event_us"]), _floats(inputs["item_last_event_us"])
    created = _floats(inputs[f"{METADATA_PREFIX}_created_at_us"]) if f"{METADATA_PREFIX}_created_at_us" in inputs else first
    names = next((f"{METADATA_PREFIX}_{a}" for a in CATEGORY_ATTRIBUTES if f"{METADATA_PREFIX}_{a}" in inputs), None)
    vocabulary: dict[str, int] = {}
    items = item_columns(
        _counts(inputs["item_events"]),
        last,
        np.where(np.isnan(created), first, created),
        _tiles(inputs["item_day_tiles"], DAY_TILES),
        _lists(inputs[names]) if names else [[]] * len(rows),
        vocabulary,
    )
    users = user_columns(
        _counts(inputs["user_events"]),
        _floats(inputs["user_last_event_us"]),
        _tiles(inputs["user_hour_tiles"], HOUR_TILES),
        _tiles(inputs["user_day_tiles"], DAY_TILES),
        _lists(inputs["user_categories"]),
        _lists(inputs["user_category_weights"]),
        vocabulary,
    )
    features = pair_features(users, items, rows, rows, np.array(inputs[REQUEST_TIME], dtype=np.int64))
    return {name: values.astype(np.float64).tolist() for name, values in features.items()}


_UDF_SOURCE = """def request(inputs):
    from feature_repo.request_views import request_udf

    return request_udf(inputs)
"""


class DescribedOnDemandView(OnDemandFeatureView):
    """An on-demand view whose fields may have descriptions.

    Feast 0.67 compares declared fields with the ones that it infers from a trial run of the transformation, descriptions included,
    so a described field is never found.
    """

    features: list[Field]

    def infer_features(self) -> None:
        """Check names and types against a trial run, as Feast does, without the descriptions."""
        described = self.features
        self.features = [Field(name=field.name, dtype=field.dtype) for field in described]
        try:
            super().infer_features()
        finally:
            self.features = described


def request_view(sources: Sequence[FeatureView]) -> OnDemandFeatureView:
    """The on-demand view over the user and item views and the request's time."""
    time = RequestSource(
        name="request_time",
        schema=[Field(name=REQUEST_TIME, dtype=Int64, description="Moment of asking. [Int64, unit: us since epoch, UTC]")],
        description="What only the request knows.",
        owner=OWNER,
    )
    return DescribedOnDemandView(
        name=REQUEST_VIEW,
        sources=[*sources, time],
        schema=[Field(name=name, dtype=Float64, description=text) for name, text in REQUEST_FEATURES.items()],
        udf=request_udf,
        # Feast rebuilds the function of a registered view from this text: no pickled code is loaded, and the code that runs is
        # the installed one.
        udf_string=_UDF_SOURCE,
        mode="python",
        description="User x item at the moment of asking: window counts, recency, age, category affinity.",
        owner=OWNER,
        tags={"entity": "user x item", "source": "request"},
    )


def _floats(values: Sequence[float | None]) -> npt.NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _counts(values: Sequence[int | None]) -> LongArray:
    return np.nan_to_num(_floats(values)).astype(np.int64)


def _tiles(values: Sequence[Sequence[int] | None], width: int) -> npt.NDArray[np.int32]:
    tiles = np.zeros((len(values), width), dtype=np.int32)
    for row, value in enumerate(values):
        if value is not None:
            tiles[row, : len(value)] = value[:width]
    return tiles


def _lists(values: Sequence[Sequence[Any] | None]) -> list[Sequence[Any]]:
    return [[] if value is None else value for value in values]
