"""How soon answers follow an alias that is moved in MLflow, under load: first and last answer, and whether any request failed.

The version is the champion's own bundle once more, and is loaded anew each time: what is not wanted is dropped in between.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from shortlist.bench.stack import second_version
from shortlist.commands.console import CommandError
from shortlist.stack.state import StackState
from training.model_version import CHAMPION
from training.registry import Registry

CONNECTIONS, PAUSE_S = 4, 0.02
PATIENCE_S = 120.0
QUIET_S = 3.0
"""All answers are of the new version when none has been of the old one for so long."""
DROPPED_AFTER_S = 12.0
"""Until the version that was replaced is gone."""
MUST_S = 10.0
"""Serving follows an alias within so long."""


@dataclass(frozen=True)
class Promotion:
    """Seconds from the call of MLflow to the first answer of the new version and to the last of the old one."""

    first_s: float
    all_s: float
    failed: int
    answered: int


@dataclass
class _Seen:
    """Answers: when, of which version (None where the request failed)."""

    at: list[float] = field(default_factory=list)
    version: list[str | None] = field(default_factory=list)

    def last_without(self, version: str) -> float:
        return max((at for at, one in zip(self.at, self.version, strict=True) if one != version), default=0.0)

    def first_of(self, version: str) -> float | None:
        return min((at for at, one in zip(self.at, self.version, strict=True) if one == version), default=None)


def measure_promotions(state: StackState, users: list[str], repeats: int) -> list[Promotion]:
    """Move the champion alias back and forth `repeats` times; where it was is where it ends only for an even number.

    Raises:
        CommandError: answers do not follow, or there is no champion.
    """
    registry = Registry(state.mlflow_uri, state.dataset, cache=Path(state.log_dir).parent / "bundles")
    champion = registry.aliases()[CHAMPION]
    versions = [second_version(state), champion]
    found = []
    for number in range(repeats):
        time.sleep(DROPPED_AFTER_S)
        found.append(asyncio.run(_promotion(state, users, registry, versions[number % 2])))
    return found


async def _promotion(state: StackState, users: list[str], registry: Registry, version: str) -> Promotion:
    seen, stop = _Seen(), asyncio.Event()
    asking = [asyncio.create_task(_ask(state.base_url, users[number:], seen, stop)) for number in range(CONNECTIONS)]
    await asyncio.sleep(1)
    started = time.monotonic()
    await asyncio.to_thread(registry.set_alias, CHAMPION, version)
    while (first := seen.first_of(version)) is None or time.monotonic() < seen.last_without(version) + QUIET_S:
        await asyncio.sleep(0.2)
        if time.monotonic() > started + PATIENCE_S:
            raise CommandError(f"answers do not follow to version {version} within {PATIENCE_S:.0f} s")
    stop.set()
    await asyncio.gather(*asking)
    return Promotion(first - started, seen.last_without(version) - started, seen.version.count(None), len(seen.at))


async def _ask(base_url: str, users: list[str], seen: _Seen, stop: asyncio.Event) -> None:
    number = 0
    async with httpx.AsyncClient(base_url=base_url, timeout=10) as client:
        while not stop.is_set():
            number += CONNECTIONS
            try:
                answer = await client.get(f"/v1/recommendations/{users[number % len(users)]}")
                version = answer.json()["model_version"] if answer.status_code == 200 else None
            except httpx.HTTPError:
                version = None
            seen.at.append(time.monotonic())
            seen.version.append(version)
            await asyncio.sleep(PAUSE_S)


def promotions_markdown(found: list[Promotion]) -> str:
    """A row a promotion."""
    lines = [
        f"| promotion | first answer after, s | all answers after, s (must {MUST_S:.0f}) | failed | of answers |",
        "|---|---|---|---|---|",
    ]
    for number, one in enumerate(found, 1):
        lines.append(f"| {number} | {one.first_s:.2f} | {one.all_s:.2f} | {one.failed} | {one.answered:,} |")
    worst = max(one.all_s for one in found)
    return "\n".join([*lines, "", f"Worst {worst:.2f} s: {'met' if worst <= MUST_S else '**missed**'}."])
