"""The simulated world: the asked sizes, one result a seed, and tastes that a model could find."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from features import simulated_world
from features.simulate import simulate
from features.simulated_world import SimulatedWorld, SimulationConfig

CONFIG = SimulationConfig(users=200, items=400, events=20_000, seed=3, days=30)


def activity(config: SimulationConfig = CONFIG) -> tuple[SimulatedWorld, pd.DataFrame]:
    world = SimulatedWorld(config)
    blocks = [block for _, block in world.user_blocks()]
    names = ("user", "item", "time_us", "action", "value")
    return world, pd.DataFrame({name: np.concatenate([getattr(block, name) for block in blocks]) for name in names})


def test_it_writes_the_asked_sizes_and_a_second_run_adds_nothing(home: Any) -> None:
    report = simulate(CONFIG, home.paths(), home.catalogue())
    assert (report.interactions, report.catalogue_items, report.duplicates, report.rejected) == (20_000, 400, 0, 0)
    assert report.users == 200
    assert home.store().count() == 20_000
    again = simulate(CONFIG, home.paths(), home.catalogue())
    assert (again.interactions, again.duplicates) == (20_000, 20_000)
    schema = home.catalogue().schema()
    kinds = {attribute.name: attribute.type for attribute in schema.item_attributes}
    assert kinds == {
        "title": "string",
        "categories": "string_list",
        "tags": "string_list",
        "price": "float",
        "created_at": "timestamp",
        "year": "int",
        "languages": "string_list",
        "regions": "string_list",
        "available": "bool",
    }
    items = home.catalogue().items().to_pandas()
    assert items.title.is_unique
    assert 0.9 < items.available.mean() < 1
    assert (items.price > 0).all()
    assert set(home.events().action) == {"view", "click", "add_to_cart", "purchase", "rating"}
    assert home.events().query("action == 'rating'").value.between(1, 5).all()


def test_a_seed_gives_one_world_and_another_seed_another() -> None:
    one, other = activity()[1], activity(CONFIG.model_copy(update={"seed": 4}))[1]
    pd.testing.assert_frame_equal(one, activity()[1])
    assert not one.item.equals(other.item)


def test_nothing_is_chosen_before_it_appears_and_new_items_are_chosen() -> None:
    world, frame = activity()
    created = world.items["created_us"][frame.item]
    first_of_topic = np.isin(frame.item, world._start)  # a topic offers its oldest item even before that appears
    assert (created[~first_of_topic] <= frame.time_us[~first_of_topic]).all()
    assert (world.items["created_us"][frame.item.unique()] > world.start_us).mean() > 0.1
    assert frame.time_us.between(world.start_us, world.end_us - 1).all()


def test_users_have_tastes_and_series_continue() -> None:
    world, frame = activity()
    topic = pd.Series(world.items["topic"][frame.item])
    own = topic.groupby(frame.user).agg(lambda t: t.value_counts(normalize=True).iloc[0]).mean()
    assert own > 2 * topic.value_counts(normalize=True).iloc[0]
    same_user = frame.user.to_numpy()[1:] == frame.user.to_numpy()[:-1]
    steps = np.diff(frame.item.to_numpy())[same_user]
    assert (steps == 1).mean() > 10 * (steps == 2).mean() > 0
    popularity = frame.item.value_counts(normalize=True)
    assert popularity.iloc[: len(popularity) // 10].sum() > 0.25


def test_activity_follows_the_hours() -> None:
    _, frame = activity()
    hour = frame.time_us // 3_600_000_000 % 24
    assert (hour.isin([19, 20, 21])).mean() > 3 * (hour.isin([2, 3, 4])).mean()


def test_events_come_in_sessions_and_more_at_weekends() -> None:
    _, frame = activity(CONFIG.model_copy(update={"days": 84}))
    gap_s = frame.groupby("user").time_us.diff().dropna() / 1e6
    assert (gap_s < 1800).mean() > 0.6
    assert ((gap_s > 1800) & (gap_s < 3600)).mean() < 0.05
    opened = (gap_s > 1800).sum() + frame.user.nunique()
    assert 3 < len(frame) / opened < 5
    weekend = pd.to_datetime(frame.time_us, unit="us").dt.dayofweek >= 5
    assert weekend.mean() > 1.2 * 2 / 7


def test_topics_have_their_season_every_year() -> None:
    config = SimulationConfig(users=300, items=400, events=60_000, seed=3, days=730, session_events=1, new_item_share=0)
    day_of_year = 2 * np.pi / 365.25

    def seasonal_share(seasonality: float) -> float:
        """How far the events of the topics lean towards the season of each, between -1 and 1."""
        world, frame = activity(config.model_copy(update={"seasonality": seasonality}))
        topic = world.items["topic"][frame.item].astype(np.int64)
        angle = (frame.time_us.to_numpy() / 86_400_000_000 % 365.25 - topic * 0.618_033_988_75 % 1.0 * 365.25) * day_of_year
        return float(np.cos(angle).mean())

    assert abs(seasonal_share(0.0)) < 0.05
    assert seasonal_share(1.0) > 0.15


@pytest.mark.parametrize(("users", "items", "events"), [(1, 1, 1), (1, 1, 50), (50, 1, 10), (3, 5000, 10), (7, 30, 5000)])
def test_any_size_works(home: Any, users: int, items: int, events: int) -> None:
    config = SimulationConfig(users=users, items=items, events=events)
    report = simulate(config, home.paths(), home.catalogue())
    assert report.interactions == events
    assert report.users == min(users, events)


def test_blocks_bound_the_memory_and_do_not_repeat_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated_world, "BLOCK_EVENTS", 1000)
    blocks = list(SimulatedWorld(CONFIG).user_blocks())
    assert len(blocks) == 20
    ids = [user for table, _ in blocks for user in table["user_id"].to_pylist()]
    assert len(set(ids)) == len(ids) == 200
    assert sum(len(block.user) for _, block in blocks) == 20_000


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValidationError):
        SimulationConfig(users=0, items=1, events=1)
