"""What is trending and what is of the season, as a gateway replica knows it: read in the background, never while a request waits.

The trending board is the worker's (`features.trending`); the season is counted here from the activity store, twice a day.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from features.activity_store import ActivityStore
from features.errors import FeaturesError
from features.redis_board import RedisBoard
from features.seasonal import COLUMNS, seasonal_items
from features.trending import TRENDING, WINDOWS_S, TrendingBoard
from serving.config import ServingConfig

_log = logging.getLogger("shortlist.serving")

EVERY_S = 3.0
SEASON_EVERY_S, SEASON_AGAIN_S = 12 * 3600.0, 60.0
"""Between two counts of the season, and after one that has failed."""
SEASON = "season"
WINDOWS = (*WINDOWS_S, SEASON)
"""Values of the parameter `window`."""

Scored = tuple[npt.NDArray[np.object_], npt.NDArray[np.float64]]
_NOTHING: Scored = (np.empty(0, dtype=np.object_), np.empty(0))


class TrendLists:
    """Trending and seasonal items of one gateway replica.

    Args:
        config: of the stack.
    """

    def __init__(self, config: ServingConfig) -> None:
        self._config = config
        self._board_reader = RedisBoard(config.features_url, config.dataset, site=config.site)
        self.board: TrendingBoard | None = None
        self.season: Scored = _NOTHING
        self.season_at: datetime | None = None
        self._season_due = 0.0

    async def follow(self) -> None:
        """Keep up to date until cancelled. No trouble ends it."""
        while True:
            try:
                await asyncio.to_thread(self.refresh)
            except FeaturesError as error:
                _log.warning("trending items not refreshed, the last ones stay: %s", error)
            except Exception:
                _log.exception("trending items not refreshed, the last ones stay")
            await asyncio.sleep(EVERY_S)

    def refresh(self) -> None:
        """Read the board, and count the season where that is due.

        Raises:
            FeaturesError: Redis or the activity store cannot be read.
        """
        if time.monotonic() >= self._season_due:
            self._season_due = time.monotonic() + SEASON_AGAIN_S
            now = datetime.now(UTC)
            self.season = seasonal_items(ActivityStore.of(self._config.paths).read(columns=list(COLUMNS)), now)
            self.season_at = now
            self._season_due = time.monotonic() + SEASON_EVERY_S
        self.board = TrendingBoard.decode(self._board_reader.get(TRENDING)) or self.board

    def top(self, window: str, **segment: Any) -> Scored:
        """Items of a window and segment (`region`, `language` or `category`), best first; the season has no segments."""
        if window == SEASON:
            return self.season
        return self.board.top(window, **segment) if self.board is not None else _NOTHING

    def as_of(self, window: str) -> datetime | None:
        """When a window was last known."""
        if window == SEASON:
            return self.season_at
        return datetime.fromtimestamp(self.board.as_of_us / 1e6, UTC) if self.board is not None else None
