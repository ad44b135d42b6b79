"""One reader of one group of one stream: batches, retries, poison, trimming. What a batch means is its `process` function's.

A batch is acknowledged after it was processed, so a reader that dies in between is handed the batch again, and `process` must make
nothing of seeing an entry twice. Three outcomes of a batch:
- processed: acknowledged; entries that `process` rejected go to the dead letters with the reason;
- a passing failure (store, disk or bus): the same batch is tried again, with growing pauses, for as long as it takes;
- any other error: its entries are tried one by one, and those that fail alone are dead letters.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from features.bus import BusEntry, EventBus
from features.errors import BusUnavailableError, FeatureStoreError, StoreError

LOG = logging.getLogger(__name__)

PASSING_FAILURES = (StoreError, FeatureStoreError, BusUnavailableError, OSError)
"""Errors that say nothing about the entries: the batch waits."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """An entry that can never be processed, and why."""

    entry: BusEntry
    reason: str


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of a batch: entries that took effect, that were there already, and that cannot be processed."""

    added: int = 0
    duplicates: int = 0
    rejected: Sequence[Rejected] = ()


Process = Callable[[Sequence[BusEntry]], BatchResult]


@dataclass
class Totals:
    """Counters of one consumer since it started."""

    entries: int = 0
    added: int = 0
    duplicates: int = 0
    rejected: int = 0
    batches: int = 0
    failures: int = 0
    last_failure: str | None = None


@dataclass(frozen=True)
class ConsumerConfig:
    """How a consumer reads.

    Args:
        stream, group: what it reads, and as whom.
        name: of this consumer; one that comes back under its name first gets what it left unfinished.
        max_entries: size of a batch.
        linger_ms: how long a batch that is not full waits for more.
        block_ms: how long one wait for a first entry lasts; bounds how fast `run` stops.
        abandoned_after_ms: entries that another consumer has held for so long are taken over.
        max_deliveries: an entry handed out more often than this without being finished is taken to be what kills the reader.
        upkeep_s: seconds between looks for abandoned entries and trimming.
    """

    stream: str
    group: str
    name: str
    max_entries: int = 2000
    linger_ms: int = 0
    block_ms: int = 500
    abandoned_after_ms: int = 60_000
    max_deliveries: int = 5
    upkeep_s: float = 5.0


@dataclass
class Consumer:
    """Runs `process` over the entries of a group until told to stop.

    Args:
        bus: the bus.
        config: how to read.
        process: does the work of one batch; must be idempotent.
    """

    bus: EventBus
    config: ConsumerConfig
    process: Process
    totals: Totals = field(default_factory=Totals)
    _held: list[BusEntry] = field(default_factory=list)
    _next_upkeep: float = 0.0

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; the batch in hand is finished first. Failures pause it and never end it."""
        pause_s = 0.0
        while not stop.is_set():
            try:
                self.step()
                pause_s = 0.0
            except PASSING_FAILURES as error:
                pause_s = min(5.0, max(0.1, 2 * pause_s))
                self.totals.failures += 1
                self.totals.last_failure = str(error)
                LOG.warning("%s/%s waits %.1f s: %s", self.config.stream, self.config.group, pause_s, error)
                stop.wait(pause_s)

    def step(self) -> int:
        """Read and process one batch; returns how many entries it had.

        Raises:
            StoreError, BusUnavailableError, OSError: a passing failure; the batch is kept for the next call.
        """
        if not self._held:
            self._held = self._next_batch()
        entries = self._held
        if entries and entries[0].deliveries > self.config.max_deliveries:
            self._bury(Rejected(entries[0], f"handed out {entries[0].deliveries} times and never finished"))
            entries = self._held = entries[1:]
        if entries:
            result = self._outcome(entries)
            for rejected in result.rejected:
                self._bury(rejected)
            buried = {rejected.entry.id for rejected in result.rejected}
            self.bus.ack(self.config.stream, self.config.group, [entry.id for entry in entries if entry.id not in buried])
            self.totals.entries += len(entries)
            self.totals.added += result.added
            self.totals.duplicates += result.duplicates
            self.totals.batches += 1
        self._held = []
        return len(entries)

    def _next_batch(self) -> list[BusEntry]:
        config = self.config
        if time.monotonic() >= self._next_upkeep:
            self._next_upkeep = time.monotonic() + config.upkeep_s
            self.bus.ensure_groups(config.stream)
            self.bus.trim(config.stream)
            abandoned = self.bus.claim_abandoned(
                config.stream, config.group, config.name, config.abandoned_after_ms, config.max_entries
            )
            if abandoned:
                return abandoned
        entries = self.bus.read_group(config.stream, config.group, config.name, config.max_entries, config.block_ms)
        deadline = time.monotonic() + config.linger_ms / 1e3
        while entries and len(entries) < config.max_entries and (left_ms := int(1e3 * (deadline - time.monotonic()))) > 0:
            entries += self.bus.read_group(config.stream, config.group, config.name, config.max_entries - len(entries), left_ms)
        return entries

    def _outcome(self, entries: Sequence[BusEntry]) -> BatchResult:
        # What was handed out often already may hold an entry that kills the process: alone, the others get past it.
        if entries[0].deliveries < 3:
            try:
                return self.process(entries)
            except PASSING_FAILURES:
                raise
            except Exception as error:
                LOG.warning("batch of %d failed (%s), trying its entries one by one", len(entries), error)
        return self._one_by_one(entries)

    def _one_by_one(self, entries: Sequence[BusEntry]) -> BatchResult:
        added, duplicates, rejected = 0, 0, list[Rejected]()
        for entry in entries:
            try:
                result = self.process([entry])
            except PASSING_FAILURES:
                raise
            except Exception as error:
                rejected.append(Rejected(entry, f"{type(error).__name__}: {error}"))
                continue
            if not result.rejected:
                self.bus.ack(self.config.stream, self.config.group, [entry.id])
            added, duplicates = added + result.added, duplicates + result.duplicates
            rejected += result.rejected
        return BatchResult(added, duplicates, rejected)

    def _bury(self, rejected: Rejected) -> None:
        self.bus.dead_letter(self.config.stream, self.config.group, rejected.entry, rejected.reason)
        self.totals.rejected += 1
        LOG.warning("dead letter in %s/%s: %s", self.config.stream, self.config.group, rejected.reason)


def run_all(consumers: Sequence[Consumer], stop: threading.Event) -> None:
    """Run consumers side by side, a thread each, until `stop` is set and all have finished their batch."""
    threads = [
        threading.Thread(target=consumer.run, args=(stop,), name=f"{consumer.config.stream}-{consumer.config.group}")
        for consumer in consumers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
