"""Clicks per answer over the last minutes, by experiment, variant and placement: what a dashboard watches while a test runs.

Answers come from the exposure log (all of an experiment's) and the slate log (a sample of all traffic, under no experiment), clicks
from the activity store, and the two meet by `recommendation_id` in whichever order they arrive. Counts stand in slots of ten
seconds, so windows slide and nothing is summed twice. Statistics of experiments are `experiments.report`'s, from the logs.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

SLOT_S = 10
WINDOWS_S: dict[str, int] = {"5m": 300, "1h": 3600}
MAX_ANSWERS = 200_000
"""Answers remembered for clicks to come, about 60 MB; the oldest are forgotten first."""

CLICK = "click"


class Group(NamedTuple):
    """Whose rate it is; `experiment` and `variant` are empty for the sample of all traffic."""

    experiment: str
    variant: str
    placement: str


class Rate(NamedTuple):
    """What a window holds."""

    answers: int
    clicks: int

    @property
    def value(self) -> float:
        """Clicks per answer, NaN without answers."""
        return self.clicks / self.answers if self.answers else float("nan")


class ClickRates:
    """Sliding counts. A state for `features.store_follower`, which feeds it the events; `shown` takes the answers.

    Args:
        now_s: the clock, seconds since the epoch.
    """

    columns = ("action", "recommendation_id", "timestamp")

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._answers: OrderedDict[str, tuple[Group, ...]] = OrderedDict()
        self._clicks_of: OrderedDict[str, list[int]] = OrderedDict()
        self._shown: defaultdict[int, Counter[Group]] = defaultdict(Counter)
        self._clicked: defaultdict[int, Counter[Group]] = defaultdict(Counter)

    def reset(self) -> None:
        """Forget the clicks; answers stay."""
        self._clicks_of.clear()
        self._clicked.clear()

    def add(self, events: pa.Table) -> None:
        """Count the clicks among events."""
        oldest_us = int((self._now_s() - max(WINDOWS_S.values())) * 1e6)
        time_us = pc.cast(events["timestamp"], pa.int64())
        wanted = pc.and_(pc.equal(events["action"], CLICK), pc.greater(time_us, oldest_us))
        clicks = events.filter(pc.and_(wanted, pc.is_valid(events["recommendation_id"])))
        for answer, at_us in zip(
            clicks["recommendation_id"].to_pylist(), pc.cast(clicks["timestamp"], pa.int64()).to_pylist(), strict=True
        ):
            slot = self._slot(at_us / 1e6)
            self._clicked[slot].update(self._answers.get(answer, ()))
            self._clicks_of.setdefault(answer, []).append(slot)  # for groups of the answer that are not known yet
            if len(self._clicks_of) > MAX_ANSWERS:
                self._clicks_of.popitem(last=False)
        self._sweep()

    def exposures(self, rows: pa.Table) -> None:
        """Take in exposures."""
        names = ("recommendation_id", "experiment", "variant", "placement", "at")
        self._note(zip(*(rows[name].to_pylist() for name in names), strict=True))

    def slates(self, rows: pa.Table) -> None:
        """Take in logged slates: one group for all, by placement."""
        columns = [rows[name].to_pylist() for name in ("recommendation_id", "placement", "at")]
        self._note((answer, "", "", placement, at) for answer, placement, at in zip(*columns, strict=True))

    def rates(self) -> dict[tuple[Group, str], Rate]:
        """By group and window, for every group with an answer or a click in the longest."""
        self._sweep()
        newest = self._slot(self._now_s())
        found: dict[tuple[Group, str], Rate] = {}
        groups = {group for slots in (self._shown, self._clicked) for counts in slots.values() for group in counts}
        for window, seconds in WINDOWS_S.items():
            first = newest - seconds // SLOT_S + 1
            shown, clicked = (_sum(slots, first) for slots in (self._shown, self._clicked))
            for group in groups:
                found[group, window] = Rate(shown[group], clicked[group])
        return found

    def _note(self, answers: Iterable[Sequence[object]]) -> None:
        oldest_s = self._now_s() - max(WINDOWS_S.values())
        for answer, experiment, variant, placement, at in answers:
            at_s = at.timestamp()  # type: ignore[attr-defined]
            if at_s < oldest_s:
                continue
            group, key = Group(str(experiment), str(variant), str(placement or "")), str(answer)
            known = self._answers.get(key, ())
            if group in known:
                continue  # handed out again
            self._answers[key] = (*known, group)
            self._shown[self._slot(at_s)][group] += 1
            for slot in self._clicks_of.get(key, ()):
                self._clicked[slot][group] += 1
        while len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)

    def _slot(self, at_s: float) -> int:
        return int(min(at_s, self._now_s())) // SLOT_S

    def _sweep(self) -> None:
        oldest = self._slot(self._now_s()) - max(WINDOWS_S.values()) // SLOT_S
        for slots in (self._shown, self._clicked):
            for slot in [one for one in slots if one < oldest]:
                del slots[slot]


def _sum(slots: dict[int, Counter[Group]], first: int) -> Counter[Group]:
    total: Counter[Group] = Counter()
    for slot, counts in slots.items():
        if slot >= first:
            total.update(counts)
    return total
