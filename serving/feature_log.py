"""The feature values that ranked a list, logged from a version's replica after the answer has gone.

The values are computed once more from the very inputs of the ranking, in a thread of their own: the same function, so the same
values. Bounded: what the thread cannot keep up with is dropped, and the next row says how many.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from features.bus import SERVED_FEATURES
from features.errors import BusUnavailableError
from features.redis_bus import RedisStreamBus
from features.served import ServedRow, list_id
from serving.config import ServingConfig
from serving.messages import ComputeRequest
from training.candidates import CandidateSet, RankedLists
from training.pipeline import Pipeline
from training.queries import QueryBatch

_log = logging.getLogger("shortlist.serving")
MAX_WAITING = 200
TOP = 50
"""Items of a list whose values are logged, the best."""

Job = tuple[ComputeRequest, QueryBatch, CandidateSet, RankedLists, int]


class FeatureLog:
    """Logs what one replica computes.

    Args:
        config: of the stack.
        pipeline: the version's.
    """

    def __init__(self, config: ServingConfig, pipeline: Pipeline) -> None:
        self._config, self._pipeline = config, pipeline
        self._jobs: queue.Queue[Job] = queue.Queue(MAX_WAITING)
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def note(self, request: ComputeRequest, query: QueryBatch, candidates: CandidateSet, lists: RankedLists, now_us: int) -> None:
        """Log one list, or count it as dropped."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="feature-log", daemon=True)
            self._thread.start()
        try:
            self._jobs.put_nowait((request, query, candidates, lists, now_us))
        except queue.Full:
            self._dropped += 1

    def _run(self) -> None:
        bus = RedisStreamBus(self._config.bus_url, self._config.dataset, site=self._config.site)
        while True:
            job = self._jobs.get()
            try:
                row = self.row(*job)
                bus.publish(SERVED_FEATURES, [row.encode()], [row.key])
                self._dropped = 0
            except BusUnavailableError as error:
                self._dropped += 1
                _log.warning("feature values dropped (%d so far): %s", self._dropped, error)
            except Exception:
                self._dropped += 1
                _log.exception("feature values could not be logged")

    def row(
        self, request: ComputeRequest, query: QueryBatch, candidates: CandidateSet, lists: RankedLists, now_us: int
    ) -> ServedRow:
        """The row of one list."""
        unit, version = request.log_as or ("", "")
        reaching, _ = self._pipeline.reaching(candidates)
        at = {item: place for place, item in enumerate(reaching.item_idx[0].tolist())}
        items = [item for item in lists.item_idx[0].tolist() if item >= 0 and item in at][:TOP]
        names, values, user = self._values(query, reaching, np.array([at[item] for item in items], dtype=np.int64))
        return ServedRow(
            key := list_id(unit, version, now_us),
            {
                "list_id": key,
                "site": self._config.site,
                "at": now_us,
                "user_id": request.user_id,
                "model_version": version,
                "request_time_us": int(query.request_time_us[0]),
                "from_online_store": bool(query.user_features),
                "user_features": json.dumps(user),
                "item_ids": self._pipeline.items["item_id"].take(items).to_pylist(),
                "feature_names": list(names),
                "values": values.ravel(),
                "sample_rate": self._config.feature_log_rate,
                "dropped": self._dropped,
            },
        )

    def _values(
        self, query: QueryBatch, candidates: CandidateSet, places: npt.NDArray[np.int64]
    ) -> tuple[tuple[str, ...], npt.NDArray[np.float32], dict[str, Any]]:
        """Names, (n, F) values of the candidates at `places`, and the user's features as JSON values."""
        stage = self._pipeline.stage
        if stage is None:
            names = tuple(f"{source}_score" for source in candidates.sources)
            return names, candidates.score[0, places].astype(np.float32), {}
        batch = stage.features.batch(query, candidates, self._pipeline.blend, self._pipeline.timeline)
        user = stage.features.user_features(query)
        return batch.names, batch.features[0, places], {name: _plain(column[0]) for name, column in user.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(one) for one in value.tolist()]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and np.isnan(value) else value
