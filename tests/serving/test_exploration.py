"""Exploration: logged propensities are those of the draws, caps and pins hold, and new items get the exposures that they need."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import chisquare

from experiments.exposure import Exposure, decode_exposures
from serving.exploration import NewItems, draws, explored
from serving.item_table import ItemTable
from serving.placements import Exploration
from serving.redis_wire import RedisWire
from serving.rules import NO_RULES, RulePlan
from serving.schemas import Selection
from serving.slate import EXPLORED, Slate
from shortlist.stack.ports import free_port
from shortlist.stack.redis_server import start_redis

NONE = np.zeros(0, dtype=np.int32)
ITEMS = ItemTable.from_arrow(
    pa.table({"item_id": [f"i{n}" for n in range(60)], "brand": [f"b{n % 6}" for n in range(60)]}), np.arange(60, dtype=np.int32)
)


def slate(**changes: object) -> Slate:
    rows = np.arange(60, dtype=np.int32)
    plain = Slate(rows[:10], np.linspace(1, 0.5, 10, dtype=np.float32), np.zeros(10, np.int64), rows[10:], 10)
    return replace(plain, **changes)


def new_items() -> NewItems:
    return NewItems(RedisWire("redis://127.0.0.1:1/0", 0.1), "shown")


def test_probabilities_sum_to_one_over_disjoint_pools_and_draws_follow_them() -> None:
    settings = Exploration(slots=2, pool=9, temperature=3)
    pools = draws(slate(), ITEMS, NO_RULES, settings, NONE)
    assert [pool.place for pool in pools] == [8, 9]
    assert sorted(row for pool in pools for row in pool.rows.tolist()) == list(range(8, 19))
    for pool in pools:
        assert pool.probability.sum() == pytest.approx(1.0)
    rng, times = random.Random(1), 20_000
    counts: list[Counter[int]] = [Counter(), Counter()]
    for _ in range(times):
        shown, propensities = explored(slate(), pools, rng)
        assert propensities[:8] == (1.0,) * 8
        assert len(set(shown.rows.tolist())) == 10
        for slot, pool in enumerate(pools):
            row = int(shown.rows[8 + slot])
            counts[slot][row] += 1
            assert propensities[8 + slot] == pool.probability[pool.rows.tolist().index(row)]
            assert (shown.sources[8 + slot] == EXPLORED) == (row != 8 + slot)
    for slot, pool in enumerate(pools):
        assert chisquare([counts[slot][row] for row in pool.rows.tolist()], pool.probability * times).pvalue > 1e-4


def test_a_known_policy_is_estimated_from_the_log_within_its_interval() -> None:
    """Clicks on the explored place have known rates: inverse propensity scoring finds the rate of a uniform policy."""
    rng, world = random.Random(7), np.random.default_rng(7)
    rates = world.uniform(0.05, 0.6, 60)
    (pool,) = draws(slate(), ITEMS, NO_RULES, Exploration(slots=1, pool=20, temperature=2), NONE)
    truth = float(rates[pool.rows].mean())
    values = []
    for _ in range(20_000):
        shown, propensities = explored(slate(), [pool], rng)
        clicked = rng.random() < rates[shown.rows[9]]
        values.append(clicked * (1 / len(pool.rows)) / propensities[9])
    mean, error = float(np.mean(values)), float(np.std(values) / np.sqrt(len(values)))
    assert abs(mean - truth) < 3.5 * error
    logged = float(np.dot(pool.probability, rates[pool.rows]))
    assert abs(truth - logged) > 3.5 * error  # the policies differ: without the weights the estimate would be off


def test_pins_stay_and_caps_hold_whatever_chance_says() -> None:
    pinned = slate(pinned={9: "rule"})
    assert [pool.place for pool in draws(pinned, ITEMS, NO_RULES, Exploration(slots=2), NONE)] == [8]
    plan = RulePlan(caps=(("brand", 3, None),))
    capped = slate(rows=np.arange(10, dtype=np.int32))
    rng = random.Random(2)
    pools = draws(capped, ITEMS, plan, Exploration(slots=3, pool=50), np.arange(40, 60, dtype=np.int32))
    for _ in range(500):
        shown, _ = explored(capped, pools, rng)
        assert max(Counter(row % 6 for row in shown.rows.tolist()).values()) <= 3
    assert draws(slate(rows=NONE + 1, scores=np.ones(0, np.float32), sources=NONE), ITEMS, plan, Exploration(), NONE) == []


def test_no_place_is_lost_where_there_is_little_to_draw_from() -> None:
    rng = random.Random(4)
    for _ in range(300):
        shown, rest = rng.randint(2, 5), rng.randint(0, 3)
        rows = np.array(rng.sample(range(60), shown + rest), dtype=np.int32)
        few = slate(rows=rows[:shown], scores=np.ones(shown, np.float32), sources=np.zeros(shown, np.int64), rest=rows[shown:])
        new = np.array(rng.sample(range(60), rng.randint(0, 2)) if rng.random() < 0.5 else rows[-1:], dtype=np.int32)
        plan = RulePlan(caps=(("brand", rng.randint(1, 2), None),)) if rng.random() < 0.5 else NO_RULES
        pools = draws(few, ITEMS, plan, Exploration(slots=3, floor=1), new)
        drawn = [row for pool in pools for row in pool.rows.tolist()]
        assert len(set(drawn)) == len(drawn)
        for _ in range(5):
            chosen, propensities = explored(few, pools, rng)
            assert len(set(chosen.rows.tolist())) == len(propensities) == shown


def test_every_new_item_gets_its_floor_and_then_the_places_go_back() -> None:
    grown = ITEMS.with_items({f"new{n}": {} for n in range(7)})
    counter, rng, settings = new_items(), random.Random(3), Exploration(slots=1, floor=5)
    requests = 0
    while len(due := counter.due(grown, settings, 0)):
        requests += 1
        pools = draws(slate(), grown, NO_RULES, settings, due)
        shown, propensities = explored(slate(), pools, rng)
        assert propensities[9] == pytest.approx(1 / len(due))
        counter.note(grown.item_ids[shown.rows[np.isin(shown.rows, due)]].tolist())
    assert requests == 35
    assert counter.counts == {f"new{n}": 5 for n in range(7)}
    assert all(row < 60 for pool in draws(slate(), grown, NO_RULES, settings, due) for row in pool.rows.tolist())


@pytest.mark.integration
def test_counts_of_items_that_are_new_no_longer_go_where_they_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.exploration.MANY_COUNTS", 4)
    child, url = start_redis("cache", "test", tmp_path, durable=False, port=free_port())
    grown = ITEMS.with_items({"new0": {}, "new1": {}})

    async def looked() -> tuple[dict[str, int], int]:
        wire = RedisWire(url, 2.0)
        await wire.start()
        counter = NewItems(wire, "shown")
        counter.note([f"old{n}" for n in range(5)] + ["new0"])
        await counter.refresh()
        assert len(counter.counts) == 6  # not known yet which are new
        assert [grown.item_ids[row] for row in counter.due(grown, Exploration(floor=3), 0)] == ["new1", "new0"]
        await counter.refresh()
        kept = dict(counter.counts), int(await wire.call("HLEN", "shown"))
        await wire.stop()
        return kept

    try:
        assert asyncio.run(looked()) == ({"new0": 1}, 1)
    finally:
        child.stop()


def test_an_item_is_new_for_its_days_and_without_a_date_until_it_is_trained() -> None:
    now = datetime(2026, 6, 10, tzinfo=UTC)
    dates = [datetime(2026, 6, 9, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC), None]
    table = ItemTable.from_arrow(
        pa.table({"item_id": ["a", "b", "c"], "created_at": pa.array(dates, pa.timestamp("us", tz="UTC"))}),
        np.arange(3, dtype=np.int32),
    ).with_items({"d": {}, "e": {"created_at": "2026-01-01T00:00:00+00:00"}, "f": {"created_at": "2026-06-10T00:00:00+00:00"}})
    due = new_items().due(table, Exploration(floor=1), round(now.timestamp() * 1e6))
    assert [table.item_ids[row] for row in due] == ["a", "d", "f"]
    assert len(new_items().due(table, Exploration(), round(now.timestamp() * 1e6))) == 0


def test_exposures_carry_propensities_and_old_ones_none() -> None:
    row = Exposure(
        "r", "placement:home", "exploration", "user_id", "u", datetime.now(UTC), "cache", ["a", "b"], propensities=[1, 0.25]
    )
    old = replace(row, propensities=None)
    assert decode_exposures([row.encode(), old.encode()])["propensities"].to_pylist() == [[1.0, 0.25], None]


def test_many_new_items_that_a_request_may_not_show_hide_none_that_it_may() -> None:
    """Of 3,000 new items with no exposure those of one region come after all others: they must not wait for these."""
    new = {f"new{n:04d}": {"regions": ["US" if n < 2_900 else "DE"]} for n in range(3_000)}
    grown, settings = ITEMS.with_items(new), Exploration(slots=1, floor=1)
    german = Selection(region=("DE",))
    due = new_items().due(grown, settings, 0, lambda rows: grown.passing(german, rows))
    assert [grown.item_ids[row] for row in due] == [f"new{n:04d}" for n in range(2_900, 3_000)]
    assert len(new_items().due(grown, settings, 0)) == 1_000
