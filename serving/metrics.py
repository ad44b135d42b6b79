"""Prometheus metrics of one gateway replica, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from features.events import ACTIONS

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

OTHER_ACTION = "other"
_ACTIONS = frozenset((*ACTIONS, ""))


class GatewayMetrics:
    """All counters of the gateway. Children are kept, so that counting an answer takes one dictionary look-up."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "shortlist_http_requests", "HTTP requests by route and status.", ["route", "status"], registry=self.registry
        )
        self._latency = Histogram(
            "shortlist_recommendation_seconds",
            "Time in the gateway of answered recommendations, by where the list came from and model version.",
            ["served_from", "version"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._cache_reads = Counter(
            "shortlist_cache_reads", "Cache reads: hit, stale (newer activity), miss, down.", ["outcome"], registry=self.registry
        )
        self._fallbacks = Counter(
            "shortlist_fallbacks", "Answers from a lower rung, by reason.", ["reason"], registry=self.registry
        )
        self._events = Counter(
            "shortlist_events",
            "Events by action (empty where rejected) and outcome: accepted, duplicate, rejected.",
            ["action", "outcome"],
            registry=self.registry,
        )
        self._exposures = Counter(
            "shortlist_exposures", "Exposures by outcome: published, dropped.", ["outcome"], registry=self.registry
        )
        self._slates = Counter(
            "shortlist_slates", "Logged slates by outcome: published, dropped.", ["outcome"], registry=self.registry
        )
        self.model_trained_at = Gauge(
            "shortlist_model_trained_timestamp_seconds", "When the champion was trained.", registry=self.registry
        )
        self._children: dict[tuple[str, ...], Counter] = {}
        self._timers: dict[tuple[str, str], Histogram] = {}

    def request(self, route: str, status: int) -> None:
        """Count one HTTP request."""
        self._count(self._requests, "request", route, str(status))

    def answer(self, served_from: str, version: str | None, seconds: float) -> None:
        """Count and time one answer."""
        key = (served_from, version or "")
        timer = self._timers.get(key)
        if timer is None:
            timer = self._timers[key] = self._latency.labels(*key)
        timer.observe(seconds)

    def cache_read(self, outcome: str) -> None:
        """Count one cache read."""
        self._count(self._cache_reads, "cache", outcome)

    def fallback(self, reason: str) -> None:
        """Count one answer that came from a lower rung."""
        self._count(self._fallbacks, "fallback", reason)

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

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _count(self, counter: Counter, kind: str, *labels: str) -> None:
        key = (kind, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = counter.labels(*labels)
        child.inc()
