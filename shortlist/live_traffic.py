"""Live traffic of simulated people over the HTTP API: they come in sessions, ask for lists, look at them, and act on some items.

What people like and how they look at a list is `features.simulated_users`'s; here they meet the platform as applications do.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from features.activity_store import ActivityStore
from features.aggregates import categories_of
from features.catalogue import Catalogue
from features.paths import DatasetPaths
from features.simulated_users import ClickModel, SimulatedUsers
from shortlist.client import ApiError, AsyncClient
from shortlist.commands.console import CommandError

MAX_USERS = 20_000
"""Users whose tastes are read, drawn at random where there are more: bounds memory and start."""


class TrafficConfig(BaseModel):
    """What traffic to send."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sessions: int = Field(default=200, ge=1)
    """Visits in all."""
    sessions_per_s: float | None = Field(default=None, gt=0)
    """Visits begun in a second, whether earlier ones have ended or not; None begins one when another ends."""
    concurrency: int = Field(default=4, ge=1, le=1000)
    """Visits under way at once where no rate is given."""
    lists: float = Field(default=2.0, ge=1)
    """Lists that a visitor asks for, on average."""
    top_k: int = Field(default=10, ge=1, le=500)
    anonymous: float = Field(default=0.1, ge=0, le=1)
    """Share of visits of people who are not logged in."""
    seed: int = Field(default=0, ge=0)


@dataclass
class TrafficReport:
    """What came back."""

    sessions: int = 0
    requests: int = 0
    events: int = 0
    clicks: int = 0
    shown: int = 0
    failures: int = 0
    seconds: float = 0.0
    served_from: Counter[str] = field(default_factory=Counter)
    variants: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        latencies = np.array(self.latencies_ms or [np.nan])
        return {
            "sessions": self.sessions,
            "requests": self.requests,
            "events": self.events,
            "clicks": self.clicks,
            "ctr": round(self.clicks / self.shown, 4) if self.shown else None,
            "failures": self.failures,
            "seconds": round(self.seconds, 2),
            "served_from": dict(self.served_from),
            "variants": dict(self.variants),
            "took_ms_p50": round(float(np.median(latencies)), 2),
            "took_ms_p99": round(float(np.quantile(latencies, 0.99)), 2),
        }


def people_of(paths: DatasetPaths, catalogue: Catalogue, seed: int = 0) -> SimulatedUsers:
    """The people of a dataset, with the tastes of its activity.

    Raises:
        CommandError: the dataset has no users.
    """
    activity = ActivityStore.of(paths).read(columns=["user_id", "item_id"])
    people = SimulatedUsers(activity, categories_of(catalogue.items()), max_users=MAX_USERS, seed=seed)
    if not people.user_ids:
        raise CommandError(f"dataset {paths.dataset!r} has no users whose tastes could be simulated: import activity first")
    return people


def drive(
    base_url: str,
    people: SimulatedUsers,
    config: TrafficConfig,
    *,
    token: str | None = None,
    model: ClickModel | None = None,
    on_session: Callable[[TrafficReport], None] = lambda _: None,
) -> TrafficReport:
    """Send traffic and report it.

    Args:
        base_url: of the gateway.
        people: who visits.
        config: how many, and how fast.
        token: that reads and writes, where the gateway asks for one.
        model: how they look and click; `ClickModel()` where None.
        on_session: told after every visit.
    """
    return asyncio.run(_Drive(base_url, token, people, config, model or ClickModel(), on_session).run())


class _Drive:
    def __init__(
        self,
        base_url: str,
        token: str | None,
        people: SimulatedUsers,
        config: TrafficConfig,
        model: ClickModel,
        on_session: Callable[[TrafficReport], None],
    ) -> None:
        self._base_url, self._token, self._people, self._config, self._model = base_url, token, people, config, model
        self._on_session = on_session
        self._report = TrafficReport()

    async def run(self) -> TrafficReport:
        config, rng, began = self._config, np.random.default_rng(self._config.seed), time.monotonic()
        users = self._people.draw(rng, config.sessions)
        seeds = rng.integers(2**32, size=config.sessions).tolist()
        async with AsyncClient(self._base_url, token=self._token) as client:
            if config.sessions_per_s is None:
                places = asyncio.Semaphore(config.concurrency)

                async def in_place(user: str, seed: int) -> None:
                    async with places:
                        await self._visit(client, user, seed)

                await asyncio.gather(*(in_place(user, seed) for user, seed in zip(users, seeds, strict=True)))
            else:
                visits = set()
                for number, (user, seed) in enumerate(zip(users, seeds, strict=True)):
                    await asyncio.sleep(max(0.0, began + number / config.sessions_per_s - time.monotonic()))
                    visits.add(asyncio.create_task(self._visit(client, user, seed)))
                await asyncio.gather(*visits)
        self._report.seconds = time.monotonic() - began
        return self._report

    async def _visit(self, client: AsyncClient, user_id: str, seed: int) -> None:
        """One session: some lists, each looked at and acted upon."""
        config, rng = self._config, np.random.default_rng(seed)
        anonymous = rng.random() < config.anonymous
        who = {"session_id": f"visit-{seed:08x}"} if anonymous else {"user_id": user_id}
        for _ in range(int(rng.geometric(1.0 / config.lists))):
            try:
                await self._list(client, who, None if anonymous else user_id, rng)
            except (ApiError, httpx.HTTPError):  # counted: the caller reports the number
                self._report.failures += 1
        self._report.sessions += 1
        self._on_session(self._report)

    async def _list(self, client: AsyncClient, who: dict[str, str], taste_of: str | None, rng: np.random.Generator) -> None:
        report = self._report
        report.requests += 1
        answer = await client.recommend(who.get("user_id"), session_id=who.get("session_id"), top_k=self._config.top_k)
        report.served_from[answer["served_from"]] += 1
        report.latencies_ms.append(answer["took_ms"])
        report.variants.update(assignment["variant"] for assignment in answer["assignments"])
        items = [item["item_id"] for item in answer["recommended_items"]]
        clicked = self._model.clicks(self._people.fit(taste_of, items), rng)
        report.shown += len(items)
        report.clicks += int(clicked.sum())
        accepted = await client.log_events(self._events(answer["recommendation_id"], who, items, clicked, rng))
        report.events += int(accepted["accepted"])

    def _events(
        self, recommendation_id: str, who: dict[str, str], items: list[str], clicked: Any, rng: np.random.Generator
    ) -> list[dict[str, Any]]:
        events = []
        for position, item_id in enumerate(items):
            shown = {**who, "item_id": item_id, "recommendation_id": recommendation_id, "position": position}
            events.append({**shown, "action": "impression"})
            if clicked[position]:
                events.append({**shown, "action": "click"})
                if rng.random() < self._model.purchase:
                    events.append({**shown, "action": "purchase"})
                if rng.random() < self._model.rating:
                    events.append({**shown, "action": "rating", "value": float(rng.integers(3, 6))})
        return events
