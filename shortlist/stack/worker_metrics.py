"""Prometheus metrics of the event worker, on a port of its own on loopback.

Lag is asked of the bus when Prometheus asks; everything else is counted as it happens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from features.activity_store import AppendResult
from features.bus import EVENTS, FEATURES_GROUP, GROUPS, EventBus
from features.click_rates import ClickRates
from features.errors import BusUnavailableError
from features.events import ACTIONS
from features.store_follower import StoreFollower
from serving.metrics import keep_values_in_process

DELAY_BUCKETS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 600.0)
OTHER = "other"
"""Label of actions that are not known by default: clients must not be able to make labels."""


class WorkerMetrics:
    """All metrics of one worker.

    Args:
        bus: asked for lag.
        rates: asked for click rates, under the follower's lock.
        follower: keeps `rates` level with the store.
    """

    def __init__(self, bus: EventBus, rates: ClickRates, follower: StoreFollower) -> None:
        keep_values_in_process()
        self.registry = CollectorRegistry()
        self._events = Counter(
            "shortlist_worker_events",
            "Events by action and outcome: stored, duplicate, or the flag under which they were stored.",
            ["action", "outcome"],
            registry=self.registry,
        )
        self._delay = Histogram(
            "shortlist_feature_delay_seconds",
            "From an event's receipt to its push into the online features.",
            buckets=DELAY_BUCKETS_S,
            registry=self.registry,
        )
        self._pushed_at = Gauge(
            "shortlist_feature_push_timestamp_seconds", "When online features were last pushed.", registry=self.registry
        )
        self.registry.register(_BusLag(bus))
        self.registry.register(_ClickRates(rates, follower))

    def stored(self, result: AppendResult) -> None:
        """Count what an append did."""
        for row in result.stored.group_by(["action", "flag"]).aggregate([("event_id", "count")]).to_pylist():
            action = row["action"] if row["action"] in ACTIONS else OTHER
            self._events.labels(action, row["flag"] or "stored").inc(row["event_id_count"])
        if result.duplicates:
            self._events.labels("", "duplicate").inc(result.duplicates)

    def pushed(self, received_at: pa.ChunkedArray | pa.Array) -> None:
        """Time events that have reached the online features."""
        now = time.time()
        for received_us in pc.cast(received_at, pa.int64()).to_pylist():
            self._delay.observe(max(0.0, now - received_us / 1e6))
        self._pushed_at.set(now)

    def serve(self, port: int) -> int:
        """Answer on 127.0.0.1; returns the port, a free one for 0."""
        server, _ = start_http_server(port, addr="127.0.0.1", registry=self.registry)
        return int(server.server_port)


class _BusLag(Collector):
    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    def collect(self) -> Iterator[Metric]:
        entries = GaugeMetricFamily(
            "shortlist_bus_lag_entries", "Entries that a group has not finished.", labels=["stream", "group"]
        )
        seconds = GaugeMetricFamily(
            "shortlist_bus_lag_seconds", "Age of the oldest entry that a group has not finished.", labels=["stream", "group"]
        )
        dead = GaugeMetricFamily("shortlist_bus_dead_letters", "Entries that could not be processed.", labels=["stream"])
        fresh = GaugeMetricFamily(
            "shortlist_feature_freshness_seconds",
            "How far the online features are behind the bus: age of the oldest event that is not in them, 0 when level.",
        )
        try:
            lags = [self._bus.lag(stream) for stream in GROUPS]
        except BusUnavailableError:
            lags = []  # no samples: an alert on absence sees it
        for lag in lags:
            dead.add_metric([lag.stream], lag.dead)
            for group in lag.groups:
                entries.add_metric([lag.stream, group.group], group.entries)
                seconds.add_metric([lag.stream, group.group], group.seconds)
                if (lag.stream, group.group) == (EVENTS, FEATURES_GROUP):
                    fresh.add_metric([], group.seconds)
        return iter((entries, seconds, dead, fresh))

    def describe(self) -> Sequence[Metric]:
        """Nothing: registering must not ask the bus."""
        return ()


class _ClickRates(Collector):
    def __init__(self, rates: ClickRates, follower: StoreFollower) -> None:
        self._rates, self._follower = rates, follower

    def collect(self) -> Iterator[Metric]:
        labels = ["experiment", "variant", "placement", "window"]
        rate = GaugeMetricFamily("shortlist_click_rate", "Attributed clicks per answer.", labels=labels)
        answers = GaugeMetricFamily("shortlist_click_rate_answers", "Answers that the rate is of.", labels=labels)
        with self._follower.lock:
            found = self._rates.rates()
        for (group, window), one in sorted(found.items()):
            rate.add_metric([*group, window], one.value)
            answers.add_metric([*group, window], one.answers)
        return iter((rate, answers))

    def describe(self) -> Sequence[Metric]:
        """Nothing: names are made when asked."""
        return ()
