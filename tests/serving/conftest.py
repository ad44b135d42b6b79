"""A planted world (users walk along a chain of items), bundles trained on it, and one real stack on free ports for all tests."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import redis

from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.schema import Attribute, DatasetSchema
from serving.config import ServingConfig, hash_token
from serving.control import ServingControl, ServingState
from serving.environment import serve_env
from serving.placements import Exploration, Placement
from shortlist.stack.ports import free_port
from shortlist.stack.ray_cluster import short_temporary_folder, start_ray, stop_ray
from shortlist.stack.redis_server import start_redis
from tests.serving.admin_api import admin_api, admin_config  # noqa: F401 -- fixtures
from tests.serving.ladder import Ladder
from training.bundle import fingerprint
from training.dataset import from_frame
from training.first_stage import assemble, fit_sources
from training.funnel import FunnelConfig, RankerConfig, SourceConfig, fit_funnel, refit
from training.interactions import Interactions
from training.models.base import TrainingData
from training.pipeline import Pipeline
from training.splits import leave_one_out

DATASET = "planted"
NUM_ITEMS = 60
ADMIN_TOKEN = "admin-secret"


@pytest.fixture(scope="session")
def item_attributes() -> pa.Table:
    """Items i000 ... i059: even ones are Comedy, odd ones Drama; every fifth is German only; i050 and on are French."""
    number = range(NUM_ITEMS)
    return pa.table(
        {
            "item_id": [f"i{n:03d}" for n in number],
            "title": [f"Item {n}" for n in number],
            "categories": [["Comedy"] if n % 2 == 0 else ["Drama", "Film > Drama > Noir"] for n in number],
            "regions": [["DE"] if n % 5 == 0 else [] for n in number],
            "languages": [["fr"] if n >= 50 else [] for n in number],
            "year": pa.array([1980 + n for n in number], type=pa.int64()),
        }
    )


@pytest.fixture(scope="session")
def world(item_attributes: pa.Table) -> Interactions:
    """User u<n> has walked ten items from item n mod 50 on; low items are walked again by all users of the first half."""
    rows = []
    for user in range(200):
        start = user % 50
        rows += [(f"u{user}", f"i{(start + step) % 50:03d}", step) for step in range(8)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "position"])
    frame["timestamp"] = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(frame["position"], unit="D")
    return from_frame(frame, item_ids=np.array(item_attributes["item_id"].to_pylist(), dtype=object))


@pytest.fixture(scope="session")
def make_bundle(world: Interactions, item_attributes: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Fits the named sources on the world and saves a bundle; each gives `quota` candidates at most."""

    def build(*models: str, quota: int = 60) -> Path:
        columns = {}
        for name in item_attributes.column_names[1:]:
            values = item_attributes[name].to_pylist()
            array = np.empty(len(values), dtype=object)
            array[:] = values
            columns[name] = array
        data = TrainingData(world, columns)
        config = FunnelConfig(sources=tuple(SourceConfig(model=model, quota=quota) for model in models))
        pipeline = assemble(config, fit_sources(config.sources, data, seed=0), None, data, world, DATASET)
        folder = tmp_path_factory.mktemp("bundle") / "bundle"
        pipeline.save(folder, seed=0, fingerprint=fingerprint(world, trained_on="all", includes_test_rows=True))
        return folder

    return build


@pytest.fixture(scope="session")
def bundle(make_bundle: Callable[..., Path]) -> Path:
    """A bundle of transition kNN and popularity."""
    return make_bundle("transition_knn", "popularity")


@pytest.fixture(scope="session")
def popular_bundle(make_bundle: Callable[..., Path]) -> Path:
    """A bundle of popularity alone: its answers differ from `bundle`'s."""
    return make_bundle("popularity")


@pytest.fixture(scope="session")
def pipeline(bundle: Path) -> Pipeline:
    return Pipeline.load(bundle)


@pytest.fixture(scope="session")
def ranked_bundle(world, item_attributes: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose ranker reads user features: it ships whatever the comparison says, the world being easy."""
    categories = np.empty(world.num_items, dtype=object)
    categories[:] = item_attributes["categories"].to_pylist()
    data = TrainingData(world, {"categories": categories})
    trees = RankerConfig(kind="lambdamart", config={"max_trees": 20, "min_data_in_leaf": 5, "num_leaves": 8}, confidence=0.001)
    config = FunnelConfig(sources=(SourceConfig(model="popularity", quota=60),), ranker=trees)
    fitted = fit_funnel(config, data, leave_one_out(world), dataset="planted", seed=1)
    pipeline = refit(fitted.pipeline, data, seed=1)
    assert pipeline.user_feature_names
    folder = tmp_path_factory.mktemp("ranked") / "bundle"
    pipeline.save(folder, seed=1, fingerprint=fingerprint(world, trained_on="all", includes_test_rows=True))
    return folder


def filled_catalogue(control_url: str, items: pa.Table) -> ControlStore:
    """A control store whose catalogue holds the world's items."""
    store = ControlStore(control_url).create()
    catalogue = Catalogue(store, DATASET)
    kinds = {"title": "string", "categories": "string_list", "regions": "string_list", "languages": "string_list", "year": "int"}
    catalogue.save_schema(DatasetSchema(DATASET, item_attributes=tuple(Attribute(n, n, k) for n, k in kinds.items())))  # type: ignore[arg-type]
    catalogue.upsert_items(items)
    return store


@pytest.fixture(scope="session")
def fill_catalogue() -> Callable[[str, pa.Table], ControlStore]:
    """Makes a control store at a URL whose catalogue holds some items."""
    return filled_catalogue


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., ServingConfig]:
    """A config whose Redis and MLflow URLs lead nowhere."""

    def build(**changes: object) -> ServingConfig:
        nowhere = "redis://127.0.0.1:1/0"
        values: dict[str, object] = {
            "dataset": DATASET,
            "home": tmp_path,
            "mlflow_uri": "http://127.0.0.1:1",
            "control_url": f"sqlite:///{tmp_path / 'control.db'}",
            "bus_url": nowhere,
            "features_url": nowhere,
            "cache_url": nowhere,
            "admin_token_sha256": hash_token(ADMIN_TOKEN),
        }
        return ServingConfig.model_validate(values | changes)

    return build


@dataclass
class Stack:
    """A running stack: its config, its control tables, and a client of its gateway."""

    config: ServingConfig
    control: ServingControl
    http: httpx.Client
    admin: httpx.Client

    def serve(self, champion: str | None, **versions: str) -> None:
        """Route to versions and wait until the gateway does, with each of them that it can read."""
        from serving.announce import announce

        state = ServingState(champion, {name.removeprefix("v"): folder for name, folder in versions.items()})
        self.control.set_state(state, actor="test", action="test")
        announce(self.config)
        ready = {"model_version": champion, "versions": sorted(state.versions)}
        self.wait(lambda: ready.items() <= self.http.get("/readyz").json().items())

    @staticmethod
    def wait(condition: Callable[[], bool], seconds: float = 60.0) -> float:
        """Poll until true; returns the seconds it took."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > seconds:
                raise AssertionError(f"not within {seconds} s")
            time.sleep(0.02)
        return time.monotonic() - started


@pytest.fixture(scope="session")
def stack(
    tmp_path_factory: pytest.TempPathFactory, bundle: Path, popular_bundle: Path, item_attributes: pa.Table
) -> Iterator[Stack]:
    """Real Redis, Ray and Serve with the gateway and versions 1 (kNN and popularity, champion) and 2 (popularity)."""
    home = tmp_path_factory.mktemp("home")
    bus, bus_url = start_redis("bus", "bus", home / "bus", durable=True)
    cache, cache_url = start_redis("cache", "cache", home / "cache", durable=False)
    temporary = short_temporary_folder()
    config = ServingConfig(
        dataset=DATASET,
        home=home,
        mlflow_uri="http://127.0.0.1:1",
        control_url=f"sqlite:///{home / 'control.db'}",
        bus_url=bus_url,
        features_url=bus_url,
        cache_url=cache_url,
        port=free_port(),
        precompute_k=30,
        deadline_ms=5_000,  # other work on the machine must not turn answers into fallbacks
        admin_token_sha256=hash_token(ADMIN_TOKEN),
    )
    before = dict(os.environ)
    try:
        store = filled_catalogue(config.control_url, item_attributes)
        start_ray(home, temporary, serve_env(temporary, stats_port=free_port(), metrics_port=free_port()))
        from serving.graph import deploy_gateway, deploy_version, start_serve, stop_serve

        start_serve(config)
        deploy_gateway(config)
        deploy_version(config, "1", bundle)
        deploy_version(config, "2", popular_bundle)
        base = f"http://{config.host}:{config.port}"
        admin = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        with httpx.Client(base_url=base, timeout=30) as http, httpx.Client(base_url=base, headers=admin, timeout=10) as client:
            running = Stack(config, ServingControl(store, DATASET), http, client)
            running.serve("1", v1=str(bundle), v2=str(popular_bundle))
            yield running
        stop_serve()
    finally:
        stop_ray(temporary)
        bus.stop()
        cache.stop()
        shutil.rmtree(temporary, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def empty_cache(stack: Stack) -> Iterator[redis.Redis]:
    """The cache Redis without a key."""
    with redis.Redis.from_url(stack.config.cache_url) as client:
        client.flushall()
        yield client


@pytest.fixture
def ladder(make_config, bundle) -> Ladder:
    """An answerer with placements of chance, of a filter, and of one that does not fit."""
    chance = Placement(top_k=5, exploration=Exploration(slots=1, floor=1000))
    placements = {"chance": chance, "late": Placement(filter="year >= 1985"), "wrong": Placement(filter='year == "x"')}
    return Ladder(make_config(deadline_ms=50, precompute_k=30, placements=placements), bundle)
