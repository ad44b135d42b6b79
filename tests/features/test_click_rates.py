"""Click rates: answers and clicks meet in any order, windows slide, nothing counts twice."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from features import click_rates
from features.click_rates import ClickRates, Group

START = datetime(2026, 11, 1, 12, tzinfo=UTC)
CONTROL, TREATMENT, ALL = Group("demo", "control", ""), Group("demo", "treatment", "home"), Group("", "", "home")


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now.timestamp()


def exposures(*answers: tuple[str, Group], at: datetime = START) -> pa.Table:
    rows = [
        {"recommendation_id": answer, "experiment": g.experiment, "variant": g.variant, "placement": g.placement or None, "at": at}
        for answer, g in answers
    ]
    return pa.Table.from_pylist(
        rows, schema=pa.schema([*((n, pa.string()) for n in rows[0] if n != "at"), ("at", pa.timestamp("us", "UTC"))])
    )


def clicks(*answers: str | None, at: datetime = START, action: str = "click") -> pa.Table:
    times = pa.array([at] * len(answers), pa.timestamp("us", "UTC"))
    return pa.table({"action": [action] * len(answers), "recommendation_id": pa.array(answers, pa.string()), "timestamp": times})


@pytest.mark.parametrize("clicks_first", [False, True])
def test_clicks_per_answer_by_group(clicks_first: bool) -> None:
    rates = ClickRates(Clock())
    steps = [
        lambda: rates.exposures(exposures(("a", CONTROL), ("b", CONTROL), ("c", TREATMENT), ("a", CONTROL))),
        lambda: rates.add(clicks("a", "a", "c", "elsewhere", None)),
        lambda: rates.slates(exposures(("c", ALL), ("d", ALL))),
        lambda: rates.add(clicks("b", action="view")),
    ]
    for step in steps[::-1] if clicks_first else steps:
        step()
    found = rates.rates()
    assert found[CONTROL, "5m"] == (2, 2)
    assert found[TREATMENT, "1h"] == (1, 1)
    assert found[ALL, "5m"] == (2, 1)


def test_variants_and_placements_are_counted_together_in_both_windows() -> None:
    clock = Clock()
    rates = ClickRates(clock)
    groups = [Group("demo", variant, placement) for variant in ("control", "treatment") for placement in ("home", "basket")]
    for number, group in enumerate(groups):
        answers = [f"{number}-{n}" for n in range(4)]
        rates.exposures(exposures(*((answer, group) for answer in answers)))
        rates.add(clicks(*answers[:number]))
    for number, group in enumerate(groups):
        assert [rates.rates()[group, window] for window in ("5m", "1h")] == [(4, number), (4, number)]
    clock.now += timedelta(minutes=10)
    late = rates.rates()
    assert {group: late[group, "1h"] for group in groups} == {group: (4, number) for number, group in enumerate(groups)}
    assert not any(late.get((group, "5m"), (0, 0))[0] for group in groups)


def test_windows_slide() -> None:
    clock = Clock()
    rates = ClickRates(clock)
    rates.exposures(exposures(("a", CONTROL)))
    rates.add(clicks("a"))
    clock.now = START + timedelta(minutes=6)
    rates.exposures(exposures(("b", CONTROL), at=clock.now))
    assert rates.rates()[CONTROL, "5m"] == (1, 0)
    assert rates.rates()[CONTROL, "1h"] == (2, 1)
    clock.now = START + timedelta(minutes=62)
    assert rates.rates()[CONTROL, "1h"] == (1, 0)
    assert math.isnan(rates.rates()[CONTROL, "5m"].value)
    clock.now = START + timedelta(hours=3)
    assert rates.rates() == {}
    rates.exposures(exposures(("old", CONTROL)))
    rates.add(clicks("old"))
    assert rates.rates() == {}


def test_events_loaded_anew_count_once() -> None:
    rates = ClickRates(Clock())
    rates.exposures(exposures(("a", CONTROL)))
    for _ in range(2):
        rates.reset()
        rates.add(clicks("a"))
    assert rates.rates()[CONTROL, "5m"] == (1, 1)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click_rates, "MAX_ANSWERS", 10)
    rates = ClickRates(Clock())
    rates.exposures(exposures(*((f"r{number}", CONTROL) for number in range(100))))
    rates.add(clicks("r0", "r99", *(f"unknown-{number}" for number in range(100))))
    assert rates.rates()[CONTROL, "5m"] == (100, 1)
    assert (len(rates._answers), len(rates._clicks_of)) == (10, 10)
