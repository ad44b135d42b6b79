"""What the tests of the admin API share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.schema import Attribute, DatasetSchema
from serving.answers import Answerer
from serving.api.app import build_api
from serving.api.context import ApiContext
from serving.cache import ListCache
from serving.config import ServingConfig, hash_token
from serving.live_state import SnapshotLoader
from serving.messages import ComputeRequest
from serving.metrics import GatewayMetrics
from serving.placements import Placement

ADMIN = {"Authorization": "Bearer admin-secret"}
NOWHERE = "http://127.0.0.1:9"

SPEC = {
    "name": "try",
    "salt": "try-1",
    "variants": [
        {"name": "control", "model": "champion", "weight": 0.5},
        {"name": "treatment", "model": "challenger", "weight": 0.5},
    ],
    "metrics": {"primary": "ctr"},
    "ramp": {"steps": [0.1, 0.5]},
    "traffic": 0.1,
}
BURY = {"name": "old", "kind": "bury", "items": "year < 1995"}


@pytest.fixture(name="config")
def admin_config(tmp_path: Path) -> ServingConfig:
    return ServingConfig(
        dataset="shop",
        home=tmp_path,
        mlflow_uri=NOWHERE,
        control_url=f"sqlite:///{tmp_path / 'control.db'}",
        bus_url="redis://127.0.0.1:9/0",
        features_url="redis://127.0.0.1:9/0",
        cache_url="redis://127.0.0.1:9/0",
        admin_token_sha256=hash_token("admin-secret"),
        read_token_sha256=hash_token("read-secret"),
        placements={"home": Placement(top_k=3)},
    )


@pytest.fixture(name="api")
def admin_api(config: ServingConfig) -> Iterator[TestClient]:
    catalogue = Catalogue(ControlStore(config.control_url).create(), "shop")
    columns = (Attribute("title", "title", "string"), Attribute("year", "year", "int"), Attribute("price", "price", "float"))
    of_users = (Attribute("age", "age", "int"), Attribute("spent", "spent", "float"))
    catalogue.save_schema(DatasetSchema("shop", item_attributes=columns, user_attributes=of_users))
    catalogue.upsert_items(pa.table({"item_id": ["a", "b"], "title": ["A", "B"], "year": [1990, 2000]}))
    snapshot = SnapshotLoader(config).load()
    answerer = Answerer(config, ListCache(config), no_version, lambda: snapshot, GatewayMetrics())
    with TestClient(build_api(ApiContext(config, lambda: None, answerer)), raise_server_exceptions=False) as client:
        yield client


async def no_version(version: str, request: ComputeRequest) -> bytes:
    raise AssertionError("there is no version to ask")
