"""What Feast's online store says of a user at the moment of asking: recent items, and the features that a ranker reads.

Feast takes a second or more to import, so it is loaded in the background: until then, and whenever it cannot be read in time, a
request goes on with the history that it has, from which the same features follow. A reader that was slow once is left alone for a
while, so that a store that is gone costs one short wait and not one a request.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo.request_columns import SECOND_US
from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.events import OTHER_ACTION_CODE
from serving.config import ServingConfig
from serving.recent_activity import RecentEvent

_log = logging.getLogger("shortlist.serving")

TIMEOUT_S = 0.1
PAUSE_S = 5.0
"""How long the store is left alone after a failure."""

Columns = Mapping[str, npt.NDArray[Any]]
ReadUsers = Callable[[Sequence[str]], Columns]
OpenReader = Callable[[ServingConfig, bool], ReadUsers]


@dataclass(frozen=True, slots=True)
class OnlineUser:
    """One user as the online store has it.

    Args:
        features: name -> (1,) arrays, as training sees them.
        events: recent positive events, oldest first.
        num_events: positive events of the user in all.
        last_event_us: time of the newest, 0 where times are not known.
    """

    features: Columns
    events: tuple[RecentEvent, ...]
    num_events: int
    last_event_us: int


class OnlineUsers:
    """Reads users for one replica.

    Args:
        config: of the stack.
        open_reader: takes seconds; gives the function that reads users. Feast by default.
        with_ranking: read all that rankers need, not only the recent items.
    """

    def __init__(
        self,
        config: ServingConfig,
        *,
        with_ranking: bool = True,
        open_reader: Callable[[ServingConfig, bool], ReadUsers] | None = None,
    ) -> None:
        self._config, self._with_ranking = config, with_ranking
        self._open = open_reader or feast_reader
        self._read: ReadUsers | None = None
        self._not_before = 0.0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feast")

    @property
    def ready(self) -> bool:
        """Whether the store has been opened."""
        return self._read is not None

    def start(self) -> None:
        """Load in the background; reads give None until it is done."""
        threading.Thread(target=self._load, name="feast-load", daemon=True).start()

    async def read(self, user_ids: Sequence[str]) -> list[OnlineUser | None]:
        """The users, None for those that the store has never met, and for all of them where it cannot say in time."""
        if self._read is None or time.monotonic() < self._not_before or not user_ids:
            return [None] * len(user_ids)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                columns = await asyncio.get_running_loop().run_in_executor(self._pool, self._read, user_ids)
        except Exception as error:  # features are an extra: nothing that ails them may cost the answer
            self._not_before = time.monotonic() + PAUSE_S
            _log.warning("online features left alone for %.0f s: %s: %s", PAUSE_S, type(error).__name__, error)
            return [None] * len(user_ids)
        return [parse_user(columns, row) for row in range(len(user_ids))]

    def _load(self) -> None:
        while self._read is None:
            try:
                self._read = self._open(self._config, self._with_ranking)
            except Exception as error:  # not built yet, or not readable: tried again
                _log.info("online features are not there yet: %s", error)
                time.sleep(PAUSE_S)


def feast_reader(config: ServingConfig, with_ranking: bool) -> ReadUsers:
    """A function that reads users through Feast.

    Raises:
        FeaturesError: nothing was applied, or the store cannot be reached.
    """
    from feature_repo.services import RANKING_V1, RETRIEVAL_V1
    from features.store import Features

    schema = Catalogue(ControlStore(config.control_url), config.dataset).schema()
    features = Features(config.paths, schema, config.features_url)
    service = RANKING_V1 if with_ranking else RETRIEVAL_V1
    features.online_users(["-"], service)  # refuses what was never applied
    return lambda user_ids: features.online_users(user_ids, service)


def parse_user(columns: Columns, row: int = 0) -> OnlineUser | None:
    """One of several users' columns as `OnlineUser`, None for a user without events."""
    columns = {name: column[row : row + 1] for name, column in columns.items()}
    num_events = int(columns["user_events"][0])
    if num_events == 0:
        return None
    last_us = columns["user_last_event_us"][0]
    known_time = bool(np.isfinite(last_us))
    items, ages_s = columns["recent_items"][0], columns["recent_ages_s"][0]
    told = columns.get("recent_actions")  # a store that was applied by an earlier release has none
    actions = "" if told is None else told[0] or ""
    if len(actions) != len(items):
        actions = str(OTHER_ACTION_CODE) * len(items)
    events: tuple[RecentEvent, ...] = ()
    if known_time and len(items) == len(ages_s):
        # Whole seconds are kept; the place in the list orders the events of one second.
        seconds = (int(last_us) // SECOND_US - ages_s).tolist()
        events = tuple(
            RecentEvent(str(item), second * SECOND_US + place, True, int(action))
            for place, (item, second, action) in enumerate(zip(items, seconds, actions, strict=True))
        )
    return OnlineUser(columns, events, num_events, int(last_us) if known_time else 0)
