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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from experiments.errors import ExperimentError
from experiments.exposure import EXPOSURE_SCHEMA, decode_exposures
from features.activity_store import ActivityStore, AppendResult
from features.aggregates import categories_of
from features.bus import EVENTS, EXPOSURES, FEATURES_GROUP, SERVED_FEATURES, SESSIONS, SLATES, STORE_GROUP
from features.catalogue import Catalogue
from features.click_rates import WINDOWS_S, ClickRates
from features.consumer import PASSING_FAILURES, Consumer, ConsumerConfig, run_all
from features.control_store import ControlStore
from features.daily_log import DailyLog
from features.errors import EventError, StoreError
from features.ingest import KnownItems, StoreEvents, StoreRows
from features.item_totals import ItemTotals, LockedTotals
from features.live_features import FeatureSink, RefreshMergedUsers, UpdateFeatures, UserHistories
from features.paths import DatasetPaths
from features.redis_board import RedisBoard
from features.redis_bus import RedisStreamBus
from features.served import decode_feature_rows, decode_slates, feature_log, slate_log
from features.session_merges import decode_merges, merge_log
from features.store_follower import StoreFollower
from features.trending import TRENDING, TrendingCounts
from features.user_dates import LockedDates, UserDates
from shortlist.settings import Settings, load_settings
from shortlist.stack.errors import StackError
from shortlist.stack.sole_worker import sole_worker
from shortlist.stack.worker_metrics import WorkerMetrics

LOG = logging.getLogger(__name__)

LINGER_MS = 200
"""How long a batch waits for more: fewer and larger files in the store."""

DAY_S = 86_400

TRENDING_S = 2.0
"""Seconds between posts of the trending board."""

TRENDING_TTL_S = 3600
"""A board without a worker behind it is gone after this long."""

CATEGORIES_S = 300.0
"""How long the catalogue's categories are taken to be current."""


@dataclass(frozen=True)
class Worker:
    """What the process runs: readers of the bus, and what they keep in memory.

    Args:
        consumers: a thread each.
        load: what to read before the first batch.
        metrics: of the process.
        tasks: run beside the consumers, each in a thread.
    """

    consumers: Sequence[Consumer]
    load: Sequence[Callable[[], None]]
    metrics: WorkerMetrics
    tasks: Sequence[Periodic]

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; batches in hand are finished first."""
        for load in self.load:  # before the first append: nobody else in this process writes yet
            try:
                load()
            except StoreError as error:
                LOG.warning("live aggregates are loaded with the first stored event: %s", error)
        threads = [threading.Thread(target=task.run, args=(stop,), name=task.name) for task in self.tasks]
        for thread in threads:
            thread.start()
        run_all(self.consumers, stop)
        for thread in threads:
            thread.join()


@dataclass(frozen=True)
class Periodic:
    """A step that is done again and again; one that fails is logged and tried at the next turn."""

    name: str
    seconds: float
    step: Callable[[], None]

    def run(self, stop: threading.Event) -> None:
        """Do it until `stop` is set."""
        while True:
            try:
                self.step()
            except PASSING_FAILURES as error:
                LOG.warning("%s: %s", self.name, error)
            except Exception:
                LOG.exception("%s failed", self.name)
            if stop.wait(self.seconds):
                return


def build_worker(settings: Settings) -> Worker:
    """The worker of `serve.dataset` on `redis.bus_url`; live features need `redis.features_url` too.

    Raises:
        StackError: a setting is missing.
    """
    chosen = settings.redis
    if settings.serve.dataset is None or chosen.bus_url is None or chosen.features_url is None:
        raise StackError("the worker needs serve.dataset, redis.bus_url and redis.features_url")
    paths = settings.paths(settings.serve.dataset)
    bus = RedisStreamBus(chosen.bus_url, paths.dataset)
    catalogue = Catalogue(ControlStore(settings.control_url).create(), paths.dataset)
    known_items, store = KnownItems(catalogue.existing_items), ActivityStore.of(paths)
    categories = RefreshedCategories(catalogue)
    trending = TrendingCounts(categories, now_us)
    rates = ClickRates(time.time)
    totals = ItemTotals(lambda: catalogue.schema().has_times)
    user_dates = UserDates()
    follower = StoreFollower(store, [trending, rates, totals, user_dates])
    days = LockedDates(user_dates, follower.lock)
    metrics = WorkerMetrics(bus, rates, follower)
    board = RedisBoard(chosen.features_url, paths.dataset)
    exposure_log = DailyLog(paths.exposures, EXPOSURE_SCHEMA, id_column="exposure_id", time_column="at")
    live = UpdateFeatures(
        UserHistories(store, dates=days.dates),
        OnlineFeatures(paths, catalogue, chosen.features_url, settings.features.user_ttl_days * DAY_S).when_applied,
        categories,
        known_items,
        is_stored=lambda entry_id: bus.has_finished(EVENTS, STORE_GROUP, entry_id),
        has_times=catalogue.schema().has_times,
        pushed=metrics.pushed,
        items=LockedTotals(totals, follower.lock),
    )
    answers = RecentAnswers(rates, follower, exposure_log, slate_log(paths.root))
    name = f"worker-{os.uname().nodename}"
    stored = StoreEvents(store, known_items, in_turn(follower, metrics.stored))
    readers = [
        Consumer(bus, ConsumerConfig(EVENTS, STORE_GROUP, name, linger_ms=LINGER_MS), stored),
        Consumer(bus, ConsumerConfig(EVENTS, FEATURES_GROUP, name, linger_ms=LINGER_MS // 4, max_entries=8000), live),
        Consumer(
            bus,
            ConsumerConfig(EXPOSURES, STORE_GROUP, name, linger_ms=5 * LINGER_MS),
            StoreRows(exposure_log, decode_exposures, ExperimentError, answers.exposures),
        ),
        Consumer(
            bus,
            ConsumerConfig(SLATES, STORE_GROUP, name, linger_ms=5 * LINGER_MS),
            StoreRows(slate_log(paths.root), decode_slates, EventError, answers.slates),
        ),
        Consumer(
            bus,
            ConsumerConfig(SERVED_FEATURES, STORE_GROUP, name, linger_ms=5 * LINGER_MS),
            StoreRows(feature_log(paths.root), decode_feature_rows, EventError),
        ),
        Consumer(
            bus,
            ConsumerConfig(SESSIONS, STORE_GROUP, name),
            StoreRows(merge_log(paths.activity, paths.activity_state), decode_merges, EventError),
        ),
        Consumer(
            bus,
            ConsumerConfig(SESSIONS, FEATURES_GROUP, name),
            RefreshMergedUsers(
                live,
                lambda entry_id: bus.has_finished(SESSIONS, STORE_GROUP, entry_id),
                lambda: stored_until_us(bus),
                joined=days.join,
            ),
        ),
    ]
    return Worker(
        readers, [follower.load, answers.load], metrics, [Periodic("trending", TRENDING_S, PostTrending(follower, trending, board))]
    )


class PostTrending:
    """Posts the trending board when events have changed it, and often enough that it does not expire."""

    def __init__(self, follower: StoreFollower, counts: TrendingCounts, board: RedisBoard) -> None:
        self._follower, self._counts, self._board = follower, counts, board
        self._posted: tuple[int, float] = (-1, 0.0)

    def __call__(self) -> None:
        """Post it if need be."""
        posted, at = self._posted
        if posted == self._counts.added and time.monotonic() - at < TRENDING_TTL_S / 4:
            return
        with self._follower.lock:
            added, encoded = self._counts.added, self._counts.board()
        self._board.put(TRENDING, encoded.encode(), TRENDING_TTL_S)
        self._posted = (added, time.monotonic())


class RecentAnswers:
    """Gives answers of the last hour to the click rates: those in the logs at first, then what comes."""

    def __init__(self, rates: ClickRates, follower: StoreFollower, exposures: DailyLog, slates: DailyLog) -> None:
        self._rates, self._follower, self._exposures, self._slates = rates, follower, exposures, slates

    def load(self) -> None:
        """Take in what the logs have of the last hour."""
        since = datetime.now(UTC) - timedelta(seconds=max(WINDOWS_S.values()))
        self.exposures(self._exposures.read(since=since))
        self.slates(self._slates.read(since=since))

    def exposures(self, rows: pa.Table) -> None:
        """Take in exposures."""
        with self._follower.lock:
            self._rates.exposures(rows)

    def slates(self, rows: pa.Table) -> None:
        """Take in slates."""
        with self._follower.lock:
            self._rates.slates(rows)


def in_turn(*steps: Callable[[AppendResult], None]) -> Callable[[AppendResult], None]:
    """All of the steps, one after the other."""

    def follow(result: AppendResult) -> None:
        for step in steps:
            step(result)

    return follow


def stored_until_us(bus: RedisStreamBus) -> int:
    """Time up to which the activity store has every event of the bus."""
    asked = now_us()
    unfinished = [group.seconds for group in bus.lag(EVENTS).groups if group.group == STORE_GROUP and group.entries]
    return asked - int(max(unfinished) * 1e6) if unfinished else asked


def now_us() -> int:
    """The clock, in microseconds."""
    return time.time_ns() // 1000


class OnlineFeatures:
    """Opens the feature store once something was applied to it; a stack serves before that."""

    def __init__(self, paths: DatasetPaths, catalogue: Catalogue, redis_url: str, user_ttl_s: int) -> None:
        self._paths, self._catalogue, self._redis_url, self._user_ttl_s = paths, catalogue, redis_url, user_ttl_s
        self._features: FeatureSink | None = None

    def when_applied(self) -> FeatureSink | None:
        """The feature store, None as long as it has no registry."""
        if self._features is None and self._paths.feast_registry.exists():
            # Here, not above: Feast takes a second and 100 MB, and a stack without features needs none of it.
            from features.store import Features

            self._features = Features(self._paths, self._catalogue.schema(), self._redis_url, user_ttl_s=self._user_ttl_s)
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
    settings = load_settings(tuple(sys.argv[1:]))
    worker = build_worker(settings)
    LOG.info("metrics at http://127.0.0.1:%d/metrics", worker.metrics.serve(settings.worker.metrics_port))
    with sole_worker(settings.paths(settings.serve.dataset or "").activity_state / "worker.lock", stop) as alone:
        if alone:
            worker.run(stop)


if __name__ == "__main__":
    main()
