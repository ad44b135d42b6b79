"""The worker's process: drains the bus into the activity store, the online features and the exposure log until told to stop.

The supervisor starts it as `python -m shortlist.stack.worker` with `--set` strings that name the stack's addresses.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time

from experiments.errors import ExperimentError
from experiments.exposure import EXPOSURE_SCHEMA, decode_exposures
from features.activity_store import ActivityStore
from features.aggregates import categories_of
from features.bus import EVENTS, EXPOSURES, FEATURES_GROUP, STORE_GROUP
from features.catalogue import Catalogue
from features.consumer import Consumer, ConsumerConfig, run_all
from features.control_store import ControlStore
from features.daily_log import DailyLog
from features.ingest import KnownItems, StoreEvents, StoreRows
from features.live_features import UpdateUserFeatures, UserFeatureSink, UserHistories
from features.paths import DatasetPaths
from features.redis_bus import RedisStreamBus
from features.store import Features
from shortlist.settings import Settings, load_settings
from shortlist.stack.errors import StackError

LINGER_MS = 200
"""How long a batch waits for more: fewer and larger files in the store."""

CATEGORIES_S = 300.0
"""How long the catalogue's categories are taken to be current."""


def consumers(settings: Settings) -> list[Consumer]:
    """What the worker runs for `serve.dataset` on `redis.bus_url`; live features need `redis.features_url` too.

    Raises:
        StackError: a setting is missing.
    """
    chosen = settings.redis
    if settings.serve.dataset is None or chosen.bus_url is None or chosen.features_url is None:
        raise StackError("the worker needs serve.dataset, redis.bus_url and redis.features_url")
    paths = DatasetPaths(settings.home.absolute(), settings.serve.dataset)
    bus = RedisStreamBus(chosen.bus_url, paths.dataset)
    catalogue = Catalogue(ControlStore(settings.control_url).create(), paths.dataset)
    known_items, store = KnownItems(catalogue.existing_items), ActivityStore(paths.activity)
    exposure_log = DailyLog(paths.exposures, EXPOSURE_SCHEMA, id_column="exposure_id", time_column="at")
    live = UpdateUserFeatures(
        UserHistories(store),
        OnlineFeatures(paths, catalogue, chosen.features_url).when_applied,
        RefreshedCategories(catalogue),
        known_items,
        is_stored=lambda entry_id: bus.has_finished(EVENTS, STORE_GROUP, entry_id),
        has_times=catalogue.schema().has_times,
    )
    name = f"worker-{os.uname().nodename}"
    return [
        Consumer(bus, ConsumerConfig(EVENTS, STORE_GROUP, name, linger_ms=LINGER_MS), StoreEvents(store, known_items)),
        Consumer(bus, ConsumerConfig(EVENTS, FEATURES_GROUP, name, linger_ms=LINGER_MS // 4, max_entries=8000), live),
        Consumer(
            bus,
            ConsumerConfig(EXPOSURES, STORE_GROUP, name, linger_ms=5 * LINGER_MS),
            StoreRows(exposure_log, decode_exposures, ExperimentError),
        ),
    ]


class OnlineFeatures:
    """Opens the feature store once something was applied to it; a stack serves before that."""

    def __init__(self, paths: DatasetPaths, catalogue: Catalogue, redis_url: str) -> None:
        self._paths, self._catalogue, self._redis_url = paths, catalogue, redis_url
        self._features: UserFeatureSink | None = None

    def when_applied(self) -> UserFeatureSink | None:
        """The feature store, None as long as it has no registry."""
        if self._features is None and self._paths.feast_registry.exists():
            self._features = Features(self._paths, self._catalogue.schema(), self._redis_url)
        return self._features


class RefreshedCategories:
    """item_id -> categories, read from the catalogue again every five minutes."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._categories: dict[str, list[str]] = {}
        self._read_again_at = 0.0

    def __call__(self) -> dict[str, list[str]]:
        """The mapping as of the last read."""
        if time.monotonic() >= self._read_again_at:
            self._categories = categories_of(self._catalogue.items())
            self._read_again_at = time.monotonic() + CATEGORIES_S
        return self._categories


def main() -> None:
    """Run until SIGTERM; the batch in hand is finished first."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("feast").setLevel(logging.WARNING)  # it notes every push
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run_all(consumers(load_settings(tuple(sys.argv[1:]))), stop)


if __name__ == "__main__":
    main()
