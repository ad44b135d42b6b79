"""Exposures and slates of answers on their way to the bus; `serving.bus_sender` sends them."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from experiments.assignment import Assignment
from experiments.exposure import Exposure
from features.bus import EXPOSURES, SLATES, EventBus
from features.served import ServedRow, is_sampled, list_id
from serving.answer import Answer
from serving.bus_sender import BusSender
from serving.cache import session_unit, user_unit
from serving.config import ServingConfig
from serving.metrics import GatewayMetrics

EXPLORATION_PREFIX = "placement:"
"""Of the experiment under which answers that chance took part in are logged; no experiment's own name has a colon."""


class ExposureLog:
    """Notes what one gateway replica shows: an exposure for each experiment, and the slates of sampled units."""

    def __init__(self, config: ServingConfig, bus: EventBus, metrics: GatewayMetrics) -> None:
        self._site, self._rate = config.site, config.feature_log_rate
        self._exposures = BusSender(EXPOSURES, bus, metrics.exposures)
        self._slates = BusSender(SLATES, bus, metrics.slates)

    def start(self) -> None:
        """Begin to send."""
        self._exposures.start()
        self._slates.start()

    async def stop(self) -> None:
        """Send what is left, as far as the bus takes it, and end."""
        await self._exposures.stop()
        await self._slates.stop()

    def add(self, answer: Answer) -> None:
        """Note what an answer shows: an exposure for each experiment that it is in, and its slate where its unit is sampled."""
        for one in (*answer.assignments, *_exploration(answer)):
            self._exposures.put(
                Exposure(
                    recommendation_id=answer.recommendation_id,
                    experiment=one.experiment,
                    variant=one.variant,
                    unit=one.unit,
                    unit_id=one.unit_id,
                    at=datetime.now(UTC),
                    served_from=answer.served_from,
                    item_ids=[item["item_id"] for item in answer.items],
                    user_id=answer.request.user_id,
                    session_id=answer.request.session_id,
                    model_version=answer.model_version,
                    degraded=answer.degraded,
                    placement=answer.request.placement,
                    propensities=answer.propensities,
                    site=self._site,
                )
            )
        unit = unit_of(answer.request.user_id, answer.request.session_id)
        # Who cannot be told apart is sampled by answer.
        if is_sampled(unit or answer.recommendation_id, self._rate):
            self._slates.put(self._slate(answer, unit))

    def _slate(self, answer: Answer, unit: str | None) -> ServedRow:
        values = {
            "recommendation_id": answer.recommendation_id,
            "site": self._site,
            "at": time.time_ns() // 1000,
            "list_id": _list_of(answer, unit),
            "user_id": answer.request.user_id,
            "session_id": answer.request.session_id,
            "model_version": answer.model_version,
            "served_from": answer.served_from,
            "degraded": answer.degraded,
            "placement": answer.request.placement,
            "assignments": [f"{one.experiment}:{one.variant}" for one in answer.assignments],
            "item_ids": [item["item_id"] for item in answer.items],
            "sample_rate": self._rate,
        }
        return ServedRow(answer.recommendation_id, values)


def _exploration(answer: Answer) -> list[Assignment]:
    """What an answer that chance took part in is logged as, so that its propensities are kept without an experiment, too."""
    if answer.propensities is None:
        return []
    request = answer.request
    name = f"{EXPLORATION_PREFIX}{request.placement}"
    if request.user_id is not None:
        return [Assignment(name, "exploration", "user_id", request.user_id, None, None)]
    return [] if request.session_id is None else [Assignment(name, "exploration", "session_id", request.session_id, None, None)]


def unit_of(user_id: str | None, session_id: str | None) -> str | None:
    """Whose answer it is, as the cache and the logs name it; None for somebody who cannot be told apart."""
    if user_id is not None:
        return user_unit(user_id)
    return None if session_id is None else session_unit(session_id)


def _list_of(answer: Answer, unit: str | None) -> str | None:
    if unit is None or answer.model_version is None or answer.served_from not in ("cache", "online", "stale"):
        return None
    return list_id(unit, answer.model_version, answer.computed_at_us)
