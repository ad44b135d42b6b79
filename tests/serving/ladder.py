"""An answerer whose compute hop and cache do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from experiments.assignment import AssignmentPlan
from serving.answer import Answer
from serving.answers import Answerer
from serving.cache import CacheRead
from serving.cached_list import CachedList
from serving.exploration import NewItems
from serving.item_table import ItemTable
from serving.live_state import LiveVersion, Snapshot
from serving.messages import ComputeRequest
from serving.metrics import GatewayMetrics
from serving.redis_wire import RedisWire
from serving.rules import Rule, RuleBook
from serving.schemas import RecommendationRequest

TRAINED = datetime(2026, 1, 1, tzinfo=UTC)


class StubCache:
    """A cache that holds one value for everybody."""

    def __init__(self) -> None:
        self.held = CacheRead(None, b"", True)
        self.written: list[tuple[str, str]] = []
        self.new_items = NewItems(RedisWire("redis://127.0.0.1:1/0", 0.1), "shown")

    async def read(self, version: str | None, unit: str) -> CacheRead:
        return self.held

    def write(self, version: str, unit: str, blob: bytes) -> None:
        self.written.append((version, unit))


def ranked(*rows: int, mark: int = 0, complete: bool = False, anonymous: bool = False) -> CachedList:
    count = len(rows)
    return CachedList(
        np.array(rows, np.int32),
        np.linspace(1, 0.5, count, dtype=np.float32),
        np.zeros(count, np.uint8),
        5,
        mark,
        complete,
        anonymous,
    )


class Ladder:
    """An answerer over a world of 60 items with whatever goes wrong."""

    def __init__(self, config, bundle) -> None:
        items = ItemTable.from_bundle(bundle)
        self.live = {v: LiveVersion(v, items, ("knn", "popularity", "popular"), TRAINED) for v in ("1", "2")}
        self.snapshot = Snapshot(self.live["1"], self.live, AssignmentPlan([]), {}, items, TRAINED)
        self.cache, self.asked = StubCache(), list[tuple[str, ComputeRequest]]()
        self.reply: Callable[[], bytes] | None = lambda: ranked(*range(30, 60)).encode()
        self.answerer = Answerer(config, self.cache, self.compute, lambda: self.snapshot, GatewayMetrics())  # type: ignore[arg-type]

    async def compute(self, version: str, request: ComputeRequest) -> bytes:
        self.asked.append((version, request))
        if self.reply is None:
            await asyncio.sleep(60)
            raise AssertionError("not cancelled")
        return self.reply()

    def ask(self, **changes: object) -> Answer:
        return asyncio.run(self.answerer.recommend(RecommendationRequest(**({"user_id": "u", "top_k": 5} | changes))))


def rows(ladder: Ladder, answer: Answer) -> list[int]:
    return [ladder.live["1"].items.row(item["item_id"]) for item in answer.items]


def fail() -> bytes:
    raise RuntimeError("replica died")


def with_items(ladder: Ladder, items: dict[str, dict[str, object]]) -> None:
    live = replace(ladder.live["1"], items=ladder.live["1"].items.with_items(items))
    ladder.snapshot = replace(ladder.snapshot, champion=live, versions={"1": live})


def with_rules(ladder: Ladder, *rules: dict[str, object]) -> None:
    ladder.snapshot = replace(
        ladder.snapshot, rules=RuleBook([Rule.model_validate({"name": f"r{n}"} | one) for n, one in enumerate(rules)])
    )
