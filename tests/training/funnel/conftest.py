"""A planted world for the funnel's tests: users walk along chains of items, with popular items in between."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from training.dataset import from_frame
from training.funnel import BlendConfig, FunnelConfig, SourceConfig, fit_funnel
from training.interactions import Interactions
from training.models.base import TrainingData
from training.pipeline import Pipeline
from training.splits import leave_one_out


@pytest.fixture(scope="session")
def make_world() -> Callable[..., Interactions]:
    """Interactions of `users` walks: the next item is the chain's with probability 0.7, else a popular one."""

    def build(users: int = 400, items: int = 120, length: int = 8, seed: int = 3) -> Interactions:
        rng = np.random.default_rng(seed)
        popularity = 1.0 / np.arange(1, items + 1)
        popularity /= popularity.sum()
        rows = []
        for user in range(users):
            item = int(rng.integers(items))
            seen = set()
            for step in range(length):
                while item in seen:
                    item = (item + 1) % items if rng.random() < 0.7 else int(rng.choice(items, p=popularity))
                seen.add(item)
                rows.append((f"u{user}", f"i{item:03d}", step))
                item = (item + 1) % items if rng.random() < 0.7 else int(rng.choice(items, p=popularity))
        frame = pd.DataFrame(rows, columns=["user_id", "item_id", "position"])
        frame["timestamp"] = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(frame["position"], unit="D")
        frame["value"] = rng.integers(1, 6, len(frame)).astype(float)
        return from_frame(frame, item_ids=np.array([f"i{n:03d}" for n in range(items + 5)], dtype=object))

    return build


@pytest.fixture(scope="session")
def world(make_world: Callable[..., Interactions]) -> Interactions:
    return make_world()


@pytest.fixture(scope="session")
def data(world: Interactions) -> TrainingData:
    genres = np.empty(world.num_items, dtype=object)
    genres[:] = [["even"] if n % 2 == 0 else ["odd", "other"] for n in range(world.num_items)]
    return TrainingData(
        world, {"title": np.array([f"Item {n}" for n in range(world.num_items)], dtype=object), "categories": genres}
    )


@pytest.fixture(scope="session")
def config() -> FunnelConfig:
    return FunnelConfig(
        sources=(SourceConfig(model="transition_knn", quota=40), SourceConfig(model="popularity", quota=20)),
        blend=BlendConfig(trials=25),
    )


@pytest.fixture(scope="session")
def pipeline(config: FunnelConfig, data: TrainingData) -> Pipeline:
    return fit_funnel(config, data, leave_one_out(data.interactions), dataset="planted", seed=1).pipeline
