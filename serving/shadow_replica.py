"""The shadow's replica: scores what live users asked for and compares, while nobody waits. Its Serve deployment.

It runs at the lowest priority, so that on a full machine it is the shadow that waits. Priority alone does not keep it out of the
way where cores are few: they share caches, and while it is kept off the processor, live answers wait too. So it pauses until it
has had no more than a tenth of what the machine's cores would have idled without it, and what it does not get to is shed by its
sender. The comparison is made here and not in the gateway, which only hands over what the live version has answered.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence

import numpy as np
import psutil

from serving.cached_list import decode_list
from serving.gathered import MOST
from serving.messages import ComputeRequest, ShadowAsk
from serving.retriever_replica import Retriever
from serving.shadow_tally import TOP, ShadowTally, count_ms

_log = logging.getLogger("shortlist.serving")
NICENESS = 19
SHARE = 0.1
"""Of the processor time that would be idle without it, what a shadow takes."""
LONGEST_PAUSE_S = 1.0


class ShadowReplica:
    """Serve deployment of a version as shadow.

    Args:
        config_json: ServingConfig as JSON.
        bundle_folder: the version's bundle.
    """

    def __init__(self, config_json: str, bundle_folder: str) -> None:
        self._retriever = Retriever(config_json, bundle_folder)
        os.nice(NICENESS)  # not before: on a full machine it would not be ready in time
        self._idle = IdleCores()

    async def compute(self, request: ComputeRequest) -> bytes:
        """As of `Retriever.compute`: for the check before the version is used."""
        return await self._retriever.compute(request)

    async def score(self, asks: Sequence[ShadowAsk]) -> ShadowTally:
        """Score and compare; what fails is counted and logged once a batch."""
        tally, trouble = ShadowTally(), None
        for start in range(0, len(asks), MOST):
            together = asks[start : start + MOST]
            began, used = time.perf_counter(), time.process_time()
            answers = await asyncio.gather(*(self._retriever.compute(ask.request) for ask in together), return_exceptions=True)
            seconds, worked = time.perf_counter() - began, time.process_time() - used
            for ask, found in zip(together, answers, strict=True):
                answer = None if isinstance(found, BaseException) else decode_list(found)
                if answer is None:  # a shadow's failure is a finding, never an error of anybody's request
                    tally.failed, trouble = tally.failed + 1, found if isinstance(found, BaseException) else trouble
                    continue
                shown = answer.item_idx[: ask.request.k]
                compare(tally, ask, self._retriever.items.item_ids[shown].tolist(), answer.score[: len(shown)].tolist())
                count_ms(tally.shadow_ms, 1000 * seconds)
                count_ms(tally.live_ms, ask.milliseconds)
            await asyncio.sleep(pause_s(seconds, worked, self._idle.without(time.process_time())))
        if trouble is not None:
            _log.warning("shadow: %d of %d failed, the last with %s: %s", tally.failed, len(asks), type(trouble).__name__, trouble)
        return tally


class IdleCores:
    """How many of the machine's cores would have been idle lately without this process."""

    def __init__(self) -> None:
        self._at, self._idle_s, self._own_s = time.monotonic(), psutil.cpu_times().idle, time.process_time()

    def without(self, own_s: float) -> float:
        """Since the last call; `own_s`: processor time of this process so far."""
        now, idle_s = time.monotonic(), psutil.cpu_times().idle
        cores = (idle_s - self._idle_s + own_s - self._own_s) / max(now - self._at, 1e-6)
        self._at, self._idle_s, self._own_s = now, idle_s, own_s
        return float(max(cores, 0.0))


def pause_s(seconds: float, worked_s: float, idle_cores: float) -> float:
    """How long to pause after `seconds` of which the processor was had for `worked_s`, so that it was `SHARE` of the idle cores."""
    return min(max(worked_s / max(SHARE * idle_cores, 1e-6) - seconds, 0.0), LONGEST_PAUSE_S)


def compare(tally: ShadowTally, ask: ShadowAsk, item_ids: Sequence[str], scores: Sequence[float]) -> None:
    """Add one pair of answers: overlap of the first ten items, and the scores of items that are in both lists."""
    tally.scored += 1
    first = set(ask.item_ids[:TOP])
    if first:
        tally.overlap += len(first & set(item_ids[:TOP])) / len(first)
    elif not item_ids:
        tally.overlap += 1.0  # both have nothing to say
    mine = dict(zip(item_ids, scores, strict=True))
    pairs = [(score, mine[item]) for item, score in zip(ask.item_ids, ask.scores, strict=True) if item in mine]
    if pairs:
        live, shadow = np.array(pairs).sum(axis=0)
        tally.common += len(pairs)
        tally.live_score += float(live)
        tally.shadow_score += float(shadow)
