"""The worker's process: drains the bus into the activity store and the exposure log until it is told to stop.

The supervisor starts it as `python -m shortlist.stack.worker` with `--set` strings that name the stack's addresses.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

from experiments.errors import ExperimentError
from experiments.exposure import EXPOSURE_SCHEMA, decode_exposures
from features.activity_store import ActivityStore
from features.bus import EVENTS, EXPOSURES, STORE_GROUP
from features.catalogue import Catalogue
from features.consumer import Consumer, ConsumerConfig, run_all
from features.control_store import ControlStore
from features.daily_log import DailyLog
from features.ingest import KnownItems, StoreEvents, StoreRows
from features.paths import DatasetPaths
from features.redis_bus import RedisStreamBus
from shortlist.settings import Settings, load_settings
from shortlist.stack.errors import StackError

LINGER_MS = 200
"""How long a batch waits for more: fewer and larger files in the store."""


def consumers(settings: Settings) -> list[Consumer]:
    """What the worker runs for `serve.dataset` on `redis.bus_url`.

    Raises:
        StackError: a setting is missing.
    """
    if settings.serve.dataset is None or settings.redis.bus_url is None:
        raise StackError("the worker needs serve.dataset and redis.bus_url")
    paths = DatasetPaths(settings.home.absolute(), settings.serve.dataset)
    bus = RedisStreamBus(settings.redis.bus_url, paths.dataset)
    catalogue = Catalogue(ControlStore(settings.control_url).create(), paths.dataset)
    exposure_log = DailyLog(paths.exposures, EXPOSURE_SCHEMA, id_column="exposure_id", time_column="at")
    name = f"worker-{os.uname().nodename}"
    return [
        Consumer(
            bus,
            ConsumerConfig(EVENTS, STORE_GROUP, name, linger_ms=LINGER_MS),
            StoreEvents(ActivityStore(paths.activity), KnownItems(catalogue.existing_items)),
        ),
        Consumer(
            bus,
            ConsumerConfig(EXPOSURES, STORE_GROUP, name, linger_ms=5 * LINGER_MS),
            StoreRows(exposure_log, decode_exposures, ExperimentError),
        ),
    ]


def main() -> None:
    """Run until SIGTERM; the batch in hand is finished first."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run_all(consumers(load_settings(tuple(sys.argv[1:]))), stop)


if __name__ == "__main__":
    main()
