"""What a shadow costs those who wait: latency of computed answers with and without one, at half of their saturation.

The shadow is the champion's own bundle once more, so it costs as much as the live version. With and without alternate, and each
round with it is compared to the one just before: the median of these ratios is what is told, with the least and the greatest.

A shadow is loaded anew for every round. Loading any version costs seconds of processor time, and so does the process that is then
kept ready for the next one: what those who ask meanwhile wait is told apart, and both kinds of rounds begin when the stack is as
quiet as without a load.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass

import numpy as np

from shortlist.bench.idle import measure_idle
from shortlist.bench.load import Outcome, run_load
from shortlist.bench.stack import second_version
from shortlist.client import Client
from shortlist.commands.console import CommandError
from shortlist.stack.ports import wait_until
from shortlist.stack.state import StackState

CONNECTIONS = 8
SATURATE_S, SATURATE_TIMES = 8.0, 8
STILL_FASTER = 1.1
"""A measurement so many times the one before says that the stack was not warm."""
ROUND_S = 20.0
LOADING_S = 30.0
"""From the call that makes a version the shadow: its loading, and the start of the process that is kept for the next version."""
QUIET_PERCENT, LOOK_S, LONGEST_SETTLING_S = 50.0, 3.0, 60.0
"""Of one core for a whole stack that is asked nothing: more says that it is still at something."""
ROUNDS = 5
"""Pairs of a round without and one with the shadow: the machine moves from one minute to the next, their ratio less."""
MUST_P50_RATIO = 1.2


@dataclass(frozen=True)
class ShadowCost:
    """Rates in answers a second; p50 and p99 of all rounds without the shadow, while it is loaded, and with it; of each pair of
    rounds the ratio of the medians; what became of what it was offered."""

    saturated_per_s: float
    offered_per_s: float
    without_ms: tuple[float, float]
    loading_ms: tuple[float, float]
    with_ms: tuple[float, float]
    p50_ratios: tuple[float, ...]
    scored: int
    shed: int
    failed: int

    @property
    def p50_ratio(self) -> float:
        """Median with the shadow over median without, of the pair in the middle."""
        return float(np.median(self.p50_ratios))

    @property
    def shed_share(self) -> float:
        """Of what the shadow was offered."""
        return self.shed / max(self.scored + self.shed + self.failed, 1)


def measure_shadow(state: StackState, token: str, users: list[str]) -> ShadowCost:
    """Load the champion's computed path with and without a shadow.

    Raises:
        CommandError: answers fail, or there is no champion.
    """
    model = f"shortlist-{state.dataset}"
    with Client(state.base_url, token=token, timeout=60) as client:
        rate = _saturated_per_s(state, users)
        version = second_version(state)
        without: list[list[float]] = []
        loading: list[list[float]] = []
        with_it: list[list[float]] = []

        def ask_for(seconds: float) -> list[float]:
            return asyncio.run(_load(state, users, seconds, rate / 2)).seconds

        for _ in range(ROUNDS):
            if "shadow" in client.models()["aliases"]:
                client.update_model(model, {"mode": "shadow", "traffic": 0})
            _wait_shadow(state, client, False)
            without.append(ask_for(ROUND_S))
            client.update_model(model, {"mode": "shadow", "version": version})
            loading.append(ask_for(LOADING_S))
            _wait_shadow(state, client, True)
            with_it.append(ask_for(ROUND_S))
        scored, report = -1, client.models()["shadow"]
        while report["scored"] > scored:  # what waits is still scored
            scored = report["scored"]
            time.sleep(5)
            report = client.models()["shadow"]
        client.update_model(model, {"mode": "shadow", "traffic": 0})
    without_ms, loading_ms, with_ms = (
        _percentiles_ms([one for part in rounds for one in part]) for rounds in (without, loading, with_it)
    )
    ratios = tuple(float(np.median(later) / np.median(first)) for first, later in zip(without, with_it, strict=True))
    counts = report["scored"], report["shed"], report["failed"]
    return ShadowCost(rate, rate / 2, without_ms, loading_ms, with_ms, ratios, *counts)


def shadow_markdown(cost: ShadowCost) -> str:
    """With and without, and what was shed."""
    offered = cost.scored + cost.shed + cost.failed
    lines = [
        f"Computed path saturated at {cost.saturated_per_s:.0f}/s, {CONNECTIONS} connections; offered {cost.offered_per_s:.0f}/s."
    ]
    lines += ["", "| | p50 ms | p99 ms |", "|---|---|---|"]
    named = (("without a shadow", cost.without_ms), ("while it is loaded", cost.loading_ms), ("100 % shadowed", cost.with_ms))
    for name, (p50, p99) in named:
        lines.append(f"| {name} | {p50:.2f} | {p99:.2f} |")
    verdict = "met" if cost.p50_ratio <= MUST_P50_RATIO else "**missed**"
    shed = f"shed {100 * cost.shed_share:.1f} % of {offered:,} (aim 0), {cost.failed} failed"
    spread = f"{min(cost.p50_ratios):.2f} to {max(cost.p50_ratios):.2f} of {len(cost.p50_ratios)} pairs"
    lines += ["", f"p50 ratio {cost.p50_ratio:.2f} ({spread}; must {MUST_P50_RATIO:g}: {verdict}; aim 1); {shed}."]
    return "\n".join(lines)


async def _load(state: StackState, users: list[str], seconds: float, rate: float | None) -> Outcome:
    stop = asyncio.Event()

    def body(number: int) -> bytes:
        # Lists with items that were seen are not cached: each is computed.
        return json.dumps({"user_id": users[number * 7919 % len(users)], "exclude_seen": False}).encode()

    loading = asyncio.create_task(
        run_load(
            state.base_url,
            lambda number: "/v1/recommendations",
            connections=CONNECTIONS if rate is None else 4 * CONNECTIONS,
            stop=stop,
            kind="POST",
            body_of=body,
            rate=rate,
        )
    )
    await asyncio.sleep(seconds)
    stop.set()
    outcome = await loading
    if outcome.failures():
        raise CommandError(f"{len(outcome.failures())} of {len(outcome.ended)} answers failed, first: {outcome.failures()[0][1:]}")
    return outcome


def _saturated_per_s(state: StackState, users: list[str]) -> float:
    """Answers a second of a closed loop; a version that has just become ready gets faster for a while: asked until it does not."""
    last, now = 0.0, 0.0
    for _ in range(SATURATE_TIMES):
        last, now = now, len(asyncio.run(_load(state, users, SATURATE_S, None)).ended) / SATURATE_S
        if now < STILL_FASTER * last:
            break
    return max(last, now)


def _wait_shadow(state: StackState, client: Client, wanted: bool) -> None:
    """Until it is there, or gone, and the stack is at rest; a machine that never is, is measured as it is."""

    def there() -> bool:
        shadow = client.models()["shadow"]
        return bool(shadow is not None and shadow["live"]) if wanted else shadow is None

    wait_until(there, seconds=300, what="the shadow" if wanted else "the shadow's end")
    time.sleep(6)  # until every gateway replica has looked at the routing state
    end = time.monotonic() + LONGEST_SETTLING_S
    while time.monotonic() < end and sum(one.core_percent for one in measure_idle(state, LOOK_S)) > QUIET_PERCENT:
        continue


def _percentiles_ms(seconds: list[float]) -> tuple[float, float]:
    p50, p99 = np.percentile(np.array(seconds) * 1000, [50, 99])
    return float(p50), float(p99)
