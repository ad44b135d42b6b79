"""Prometheus metrics of one gateway replica, in a registry of its own.

What each answer counts is added up in plain numbers and handed to Prometheus when somebody reads: its own counters take a lock and
several calls each, a seventh of a cached answer's time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, values
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from features.events import ACTIONS

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

OTHER_ACTION = "other"
_ACTIONS = frozenset((*ACTIONS, ""))


def keep_values_in_process() -> None:
    """Make metrics from now on hold their values in memory, each in its own registry.

    Importing Feast sets `PROMETHEUS_MULTIPROC_DIR`, for its own server; under it prometheus_client keeps values in files that all
    registries of a process share. Child processes inherit the variable, so neither the order of imports nor the environment can be
    relied on.
    """
    values.ValueClass = values.MutexValue


class LatencyHistogram(Collector):
    """Times of answers by where the list came from and by version, in `LATENCY_BUCKETS_S`."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * (len(LATENCY_BUCKETS_S) + 1))
        self._sums: dict[tuple[str, str], float] = defaultdict(float)

    def observe(self, key: tuple[str, str], seconds: float) -> None:
        """Count one answer."""
        self._counts[key][bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        self._sums[key] += seconds

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """See `Collector.collect`."""
        family = HistogramMetricFamily(
            "shortlist_recommendation_seconds",
            "Time in the gateway of answered recommendations, by where the list came from and model version.",
            labels=["served_from", "version"],
        )
        edges = [*map(str, LATENCY_BUCKETS_S), "+Inf"]
        for key, counts in list(self._counts.items()):
            family.add_metric(list(key), list(zip(edges, accumulate(counts), strict=True)), self._sums[key])
        yield family


class GatewayMetrics(Collector):
    """All counters of one gateway replica.

    Args:
        replica: label of every series, so that those of several replicas behind one address are told apart; none when empty.
    """

    def __init__(self, replica: str = "") -> None:
        keep_values_in_process()
        self._replica = replica
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "shortlist_http_requests", "HTTP requests by route and status.", ["route", "status"], registry=registry
        )
        self._latency = LatencyHistogram()
        self.registry.register(self._latency)
        self._cache_reads = Counter(
            "shortlist_cache_reads", "Cache reads: hit, stale (newer activity), miss, down.", ["outcome"], registry=registry
        )
        self._fallbacks = Counter("shortlist_fallbacks", "Answers from a lower rung, by reason.", ["reason"], registry=registry)
        self._events = Counter(
            "shortlist_events",
            "Events by action (empty where rejected) and outcome: accepted, duplicate, rejected.",
            ["action", "outcome"],
            registry=registry,
        )
        self._exposures = Counter(
            "shortlist_exposures", "Exposures by outcome: published, dropped.", ["outcome"], registry=registry
        )
        self._slates = Counter("shortlist_slates", "Logged slates by outcome: published, dropped.", ["outcome"], registry=registry)
        self.model_trained_at = Gauge(
            "shortlist_model_trained_timestamp_seconds", "When the champion was trained.", registry=registry
        )
        self._candidates = Counter(
            "shortlist_candidates",
            "Entries of computed lists by source.",
            ["source", "version"],
            registry=registry,
        )
        self._shadow = Counter(
            "shortlist_shadow",
            "Answers for the shadow: scored, shed, failed.",
            ["version", "outcome"],
            registry=registry,
        )
        self._overlap = Counter(
            "shortlist_shadow_overlap", "Sum of the overlaps of scored answers' first ten items.", ["version"], registry=registry
        )
        self._counted: dict[tuple[Counter, str, str], int] = defaultdict(int)

    def request(self, route: str, status: int) -> None:
        """Count one HTTP request."""
        self._counted[self._requests, route, str(status)] += 1

    def answer(self, served_from: str, version: str | None, seconds: float) -> None:
        """Count and time one answer."""
        self._latency.observe((served_from, version or ""), seconds)

    def cache_read(self, outcome: str) -> None:
        """Count one cache read."""
        self._counted[self._cache_reads, outcome, ""] += 1

    def fallback(self, reason: str) -> None:
        """Count one answer that came from a lower rung."""
        self._counted[self._fallbacks, reason, ""] += 1

    def events(self, outcome: str, number: int, action: str = "") -> None:
        """Count events of one call. Actions that are not known by default count as `other`: clients make no labels."""
        if number:
            self._events.labels(action if action in _ACTIONS else OTHER_ACTION, outcome).inc(number)

    def exposures(self, outcome: str, number: int) -> None:
        """Count exposures."""
        self._exposures.labels(outcome).inc(number)

    def slates(self, outcome: str, number: int) -> None:
        """Count logged slates."""
        self._slates.labels(outcome).inc(number)

    def computed(self, version: str, sources: Sequence[str], source: npt.NDArray[Any]) -> None:
        """Count the entries of one computed list by where they came from."""
        for number, entries in enumerate(np.bincount(source, minlength=len(sources)).tolist()):
            if entries:
                source_name = sources[number] if number < len(sources) else "other"
                self._counted[self._candidates, source_name, version] += entries

    def shadow(self, version: str, *, scored: int, shed: int, failed: int, overlap: float) -> None:
        """Count what became of answers that were to be scored by the shadow."""
        for outcome, number in (("scored", scored), ("shed", shed), ("failed", failed)):
            if number:
                self._shadow.labels(version, outcome).inc(number)
        if overlap:
            self._overlap.labels(version).inc(overlap)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        counted, self._counted = self._counted, defaultdict(int)
        for (counter, first, second), number in counted.items():
            counter.labels(*((first, second) if second else (first,))).inc(number)
        return generate_latest(self)

    def collect(self) -> Iterable[Metric]:
        """See `Collector.collect`: everything, with the replica's label."""
        for family in self.registry.collect():
            if self._replica:
                family.samples = [one._replace(labels={**one.labels, "replica": self._replica}) for one in family.samples]
            yield family
