"""A version's entry: the Serve deployment around its retrievers, and around its ranker where both are in one process.

With a ranker in its own process it is the fused graph, with a handle to `Ranker` replicas the separate one; the seam is
`CandidateSet` both times.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from features.control_store import ControlStore
from features.errors import FeaturesError
from serving.audit import AuditLog
from serving.config import ServingConfig
from serving.feature_log import FeatureLog
from serving.gathered import Gathered
from serving.item_changes import ItemChanges, as_of_now
from serving.item_table import ItemTable
from serving.list_computer import ListComputer
from serving.logs import log_to_file
from serving.messages import ComputeRequest, Failure
from serving.online_users import OnlineUsers
from serving.process import give_back_memory, import_trees, shorten_pauses
from serving.ranker import RankerStage
from serving.recent_activity import decode_activity
from serving.request_id import begin
from serving.retriever import RetrieverStage
from serving.version_lists import encode_answer
from training.pipeline import Pipeline

_log = logging.getLogger("shortlist.serving")


class Retriever:
    """Serve deployment: one version's entry.

    Args:
        config_json: ServingConfig as JSON.
        bundle_folder: the version's bundle.
        ranker: handle of the ranker deployment; None ranks in this process.
    """

    def __init__(self, config_json: str, bundle_folder: str, ranker: Any = None) -> None:
        config = ServingConfig.model_validate_json(config_json)
        shorten_pauses()
        log_to_file(config, f"retriever-{os.getpid()}")
        folder = Path(bundle_folder)
        import_trees(folder)
        pipeline = Pipeline.load(folder, expected_dataset=config.dataset)
        items = ItemTable.from_arrow(pipeline.items, np.array(pipeline.by_popularity))
        pipeline = pipeline.without_attributes()
        store = ControlStore(config.control_url).create()
        changes = ItemChanges(AuditLog(store, config.dataset))
        manifest = pipeline.manifest
        read_at = None if manifest is None else manifest.known_until
        self._stage = RetrieverStage(pipeline, as_of_now(items, store, config.dataset, read_at), folder)
        follow = threading.Thread(target=_follow_items, args=(changes, self._stage, config.reread_s), name="items", daemon=True)
        follow.start()
        self._online = OnlineUsers(config, with_ranking=bool(pipeline.user_feature_names))
        self._online.start()
        self._computer = ListComputer(
            self._stage,
            RankerStage(pipeline) if ranker is None else ranker,
            FeatureLog(config, pipeline),
            config.deadline_ms / 1000,
        )
        self._gathered = Gathered(self._compute)
        self._answers, self._seconds = 0, 0.0
        give_back_memory()

    @property
    def items(self) -> ItemTable:
        """The version's items as of now."""
        return self._stage.items

    async def compute(self, request: ComputeRequest) -> bytes:
        """One list as bytes (`serving.cached_list`)."""
        started = time.perf_counter()
        begin(None if request.request_id is None else request.request_id.encode())
        if request.similar_to is not None:
            activity = decode_activity(request.activity)
            blob = encode_answer(self._stage.similar(request), activity, time.time_ns() // 1000, request.k)
        else:
            blob = await self._gathered.ask(request)
        self._answers, self._seconds = self._answers + 1, self._seconds + time.perf_counter() - started
        return blob

    async def compute_all(self, requests: Sequence[ComputeRequest]) -> list[bytes | Failure]:
        """Several lists, each as of `compute`, or why there is none."""
        return await asyncio.gather(*(self._compute_one(request) for request in requests))

    async def _compute_one(self, request: ComputeRequest) -> bytes | Failure:
        try:
            return await self.compute(request)
        except Exception as error:
            _log.exception("no list")
            return Failure(f"{type(error).__name__}: {error}")

    async def timing(self) -> tuple[int, float]:
        """Lists computed by this replica so far, and the seconds between their requests' coming and the lists' being there."""
        return self._answers, self._seconds

    async def _compute(self, requests: Sequence[ComputeRequest]) -> list[bytes | Exception]:
        # What is logged of several requests together has the id of one of them.
        first = requests[0].request_id
        begin(None if first is None else first.encode())
        known = [request.user_id for request in requests if request.user_id is not None]
        read = iter(await self._online.read(known))
        online = [None if request.user_id is None else next(read) for request in requests]
        return await self._computer.compute(requests, online, time.time_ns() // 1000)


def _follow_items(changes: ItemChanges, stage: RetrieverStage, every_s: float) -> None:
    """Keep candidates from being spent on items that the gateway would take out of the answer anyway. No trouble ends it."""
    while True:
        time.sleep(every_s)
        try:
            (stage.items,) = changes.apply([stage.items])
        except FeaturesError as error:
            _log.warning("availability not refreshed, the gateway's own still holds: %s", error)
        except Exception:
            _log.exception("availability not refreshed, the gateway's own still holds")
