"""The feature values that ranked a list, logged from a version's replica after the answer has gone.

The values are computed once more from the very inputs of the ranking, in a thread of their own: the same function, so the same
values. Bounded: what the thread cannot keep up with is dropped, and the next row says how many.
"""

from __future__ import annotations

import logging
import queue
import threading

from features.bus import SERVED_FEATURES
from features.errors import BusUnavailableError
from features.redis_bus import RedisStreamBus
from features.served import ServedRow
from serving.config import ServingConfig
from serving.feature_rows import feature_rows
from serving.messages import ComputeRequest
from training.candidates import CandidateSet, RankedLists
from training.pipeline import Pipeline
from training.queries import QueryBatch

_log = logging.getLogger("shortlist.serving")
MAX_WAITING = 200

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
        (row,) = feature_rows(
            self._config,
            self._pipeline,
            version,
            [(unit, request.user_id)],
            query,
            candidates,
            lists,
            now_us,
            dropped=self._dropped,
        )
        return row
