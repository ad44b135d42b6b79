"""Some hundred requests and events as an application would send them: ask for a list, look at it, act on some of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shortlist.client import AsyncClient


@dataclass
class TrafficReport:
    """What came back."""

    requests: int = 0
    events: int = 0
    failures: int = 0
    served_from: Counter[str] = field(default_factory=Counter)
    variants: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        latencies = np.array(self.latencies_ms or [np.nan])
        return {
            "requests": self.requests,
            "events": self.events,
            "failures": self.failures,
            "served_from": dict(self.served_from),
            "variants": dict(self.variants),
            "took_ms_p50": round(float(np.median(latencies)), 2),
            "took_ms_p99": round(float(np.quantile(latencies, 0.99)), 2),
        }


def drive(base_url: str, user_ids: list[str], *, requests: int, seed: int, concurrency: int = 4) -> TrafficReport:
    """Send traffic and report it.

    A user asks for 10 items, sees them (impressions), and clicks with a probability that falls with the position; some clicks
    become ratings. One request in ten is of an unknown user.

    Args:
        base_url: of the gateway.
        user_ids: known users to draw from.
        requests: lists to ask for.
        seed: of every choice.
        concurrency: requests under way at once.
    """
    return asyncio.run(_drive(base_url, user_ids, requests, np.random.default_rng(seed), concurrency))


async def _drive(base_url: str, user_ids: list[str], requests: int, rng: np.random.Generator, concurrency: int) -> TrafficReport:
    report = TrafficReport()
    visitors = [f"visitor-{rng.integers(1_000_000)}" if rng.random() < 0.1 else str(rng.choice(user_ids)) for _ in range(requests)]
    seeds = rng.integers(2**32, size=requests)
    places = asyncio.Semaphore(concurrency)
    async with AsyncClient(base_url) as client:

        async def visit(user_id: str, seed: int) -> None:
            async with places:
                await _visit(client, user_id, np.random.default_rng(seed), report)

        await asyncio.gather(*(visit(user, int(seed)) for user, seed in zip(visitors, seeds, strict=True)))
    return report


async def _visit(client: AsyncClient, user_id: str, rng: np.random.Generator, report: TrafficReport) -> None:
    report.requests += 1
    try:
        answer = await client.recommend(user_id=user_id, top_k=10)
    except Exception:  # counted: the caller reports the number and the check fails on it
        report.failures += 1
        return
    report.served_from[answer["served_from"]] += 1
    report.latencies_ms.append(answer["took_ms"])
    for assignment in answer["assignments"]:
        report.variants[assignment["variant"]] += 1
    events = []
    for position, item in enumerate(answer["recommended_items"]):
        shown = {
            "user_id": user_id,
            "item_id": item["item_id"],
            "recommendation_id": answer["recommendation_id"],
            "position": position,
        }
        events.append({**shown, "action": "impression"})
        if rng.random() < 0.3 / (1 + position):
            events.append({**shown, "action": "click"})
            if rng.random() < 0.3:
                events.append({**shown, "action": "rating", "value": float(rng.integers(3, 6))})
    try:
        accepted = await client.log_events(events)
    except Exception:
        report.failures += 1
        return
    report.events += int(accepted["accepted"])
