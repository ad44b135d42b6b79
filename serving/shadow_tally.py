"""What the shadow's answers came to: sums that add up over batches, replicas and restarts, kept in the control store.

Each gateway replica writes its own row, so that nobody waits for anybody; the report is the sum of all rows of a version.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sqlalchemy import BigInteger, Column, String, Table, Text, delete, insert, select

from features.control_store import METADATA, ControlStore
from serving.audit import now_us

BOUNDS_MS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 1000, 2000, 5000)
"""Upper bounds of latency classes; one more class takes the rest."""
TOP = 10
"""Overlap is that of the first so many items."""
TALLIES = Table(
    "shadow_tallies",
    METADATA,
    Column("dataset", String(63), primary_key=True),
    Column("version", String(32), primary_key=True),
    Column("replica", String(64), primary_key=True),
    Column("document", Text, nullable=False),
    Column("updated_at_us", BigInteger, nullable=False),
)


def _classes() -> list[int]:
    return [0] * (len(BOUNDS_MS) + 1)


@dataclass
class ShadowTally:
    """Sums over answers of the live version that the shadow was to be asked for too.

    `overlap` adds the share of the live top 10 that the shadow has in its own; `common` counts items that are in both lists, and
    `live_score` and `shadow_score` add their scores there.
    """

    scored: int = 0
    shed: int = 0
    failed: int = 0
    overlap: float = 0.0
    common: int = 0
    live_score: float = 0.0
    shadow_score: float = 0.0
    live_ms: list[int] = field(default_factory=_classes)
    shadow_ms: list[int] = field(default_factory=_classes)

    def add(self, other: ShadowTally) -> None:
        """Add another's sums to this one."""
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(other, one.name)
            total = [a + b for a, b in zip(mine, theirs, strict=True)] if isinstance(mine, list) else mine + theirs
            setattr(self, one.name, total)

    def report(self) -> dict[str, Any]:
        """Means, the shift of scores, latencies and the share that was shed, as the API shows them."""
        offered = self.scored + self.shed + self.failed

        def mean(total: float, number: int) -> float | None:
            return round(total / number, 6) if number else None

        return {
            "scored": self.scored,
            "shed": self.shed,
            "failed": self.failed,
            "shed_share": mean(self.shed, offered),
            f"overlap_at_{TOP}": mean(self.overlap, self.scored),
            "score_mean_live": mean(self.live_score, self.common),
            "score_mean_shadow": mean(self.shadow_score, self.common),
            "score_drift": mean(self.shadow_score - self.live_score, self.common),
            "latency_ms": {
                "live": {"p50": _quantile(self.live_ms, 0.5), "p95": _quantile(self.live_ms, 0.95)},
                "shadow": {"p50": _quantile(self.shadow_ms, 0.5), "p95": _quantile(self.shadow_ms, 0.95)},
            },
        }


def count_ms(classes: list[int], milliseconds: float) -> None:
    """Count one latency in its class."""
    place = next((place for place, bound in enumerate(BOUNDS_MS) if milliseconds <= bound), len(BOUNDS_MS))
    classes[place] += 1


def _quantile(classes: Sequence[int], share: float) -> int | None:
    """Upper bound of the class that holds the quantile; None where there is nothing, or it is above all bounds."""
    seen, wanted = 0, share * sum(classes)
    for bound, number in zip(BOUNDS_MS, classes, strict=False):
        seen += number
        if number and seen >= wanted:
            return bound
    return None


class ShadowTallies:
    """Tallies of one dataset in the control store.

    Args:
        store: the control store; its tables must exist.
        dataset: the dataset's name.
    """

    def __init__(self, store: ControlStore, dataset: str) -> None:
        self._store, self._dataset = store, dataset

    def put(self, version: str, replica: str, tally: ShadowTally) -> None:
        """Replace a replica's sums.

        Raises:
            StoreError: the control store cannot be written.
        """
        key = {"dataset": self._dataset, "version": version, "replica": replica}
        here = (TALLIES.c.dataset == self._dataset) & (TALLIES.c.version == version) & (TALLIES.c.replica == replica)
        with self._store.begin() as connection:
            connection.execute(delete(TALLIES).where(here))
            connection.execute(insert(TALLIES).values(**key, document=json.dumps(asdict(tally)), updated_at_us=now_us()))

    def total(self, version: str) -> ShadowTally:
        """The sums of all replicas.

        Raises:
            StoreError: the control store cannot be read.
        """
        query = select(TALLIES.c.document).where(TALLIES.c.dataset == self._dataset, TALLIES.c.version == version)
        total = ShadowTally()
        with self._store.begin() as connection:
            for document in connection.execute(query).scalars():
                total.add(ShadowTally(**json.loads(document)))
        return total
