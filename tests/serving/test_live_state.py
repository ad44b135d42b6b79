"""What a gateway loads: a version or experiment that is wrong costs the others nothing; no trouble ends the loops that look."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis.asyncio
from sqlalchemy import insert, select, update

from experiments.spec import parse_spec
from features.activity_store import ActivityStore
from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.errors import StoreError
from features.events import EVENT_SCHEMA, Event
from serving import announce, trend_lists
from serving.config import ServingConfig
from serving.control import EXPERIMENTS, ServingControl, ServingState
from serving.gateway import GatewayApp
from serving.live_state import SnapshotLoader
from serving.retriever_replica import _follow_items
from serving.trend_lists import TrendLists
from training.bundle import FEATURES_FOLDER, ITEMS_FILE, POPULARITY_FILE
from training.ranking_features import ARRAYS_FILE

NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def config(make_config: Callable[..., ServingConfig]) -> ServingConfig:
    return make_config(reread_s=0.01)


@pytest.fixture
def control(
    config: ServingConfig, fill_catalogue: Callable[[str, pa.Table], ControlStore], item_attributes: pa.Table, bundle: Path
) -> ServingControl:
    """Version 1 is the champion."""
    control = ServingControl(fill_catalogue(config.control_url, item_attributes), config.dataset)
    control.set_state(ServingState("1", {"1": str(bundle)}), actor="test", action="test")
    return control


@pytest.mark.parametrize("spoilt", [POPULARITY_FILE, ITEMS_FILE, f"{FEATURES_FOLDER}/{ARRAYS_FILE}"])
def test_a_version_with_a_damaged_file_is_left_out(
    config: ServingConfig, control: ServingControl, bundle: Path, tmp_path: Path, spoilt: str
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle, damaged)
    (damaged / spoilt).parent.mkdir(exist_ok=True)
    (damaged / spoilt).write_bytes(b"\xff" * 64)
    control.set_state(ServingState("1", {"1": str(bundle), "2": str(damaged)}), actor="test", action="test")
    snapshot = SnapshotLoader(config).load()
    assert list(snapshot.versions) == ["1"]
    assert snapshot.champion is not None


def test_a_number_that_no_column_holds_and_that_was_stored_before_costs_its_item_the_attribute(
    config: ServingConfig, control: ServingControl
) -> None:
    loader = SnapshotLoader(config)
    before = loader.load()
    year = 10**400  # an earlier release took it
    item = {"item_id": "i001", "available": True}
    control.audit.record(actor="t", action="item", subject="item:i001", before=item, after={**item, "year": year})
    snapshot = loader.load(before)
    assert snapshot.items.fields(1, ["year"]) == {"year": None}
    assert snapshot.items.fields(2, ["year"]) == {"year": 1982}


def experiment(name: str, **changes: Any) -> dict[str, Any]:
    variants = [{"name": "a", "model": "champion", "weight": 1}, {"name": "b", "model": "challenger", "weight": 1}]
    return {"name": name, "salt": name, "variants": variants, "metrics": {"primary": "ctr"}, **changes}


def start(control: ServingControl, raw: dict[str, Any]) -> None:
    control.put_experiment(parse_spec(raw), actor="t")
    control.start_experiment(raw["name"], {"a": "1", "b": "1"}, actor="t")
    control.run_experiment(raw["name"], actor="t")


def test_an_experiment_that_cannot_be_read_or_applied_is_left_out(config: ServingConfig, control: ServingControl) -> None:
    start(control, experiment("good", layer_range=[0.0, 0.5]))
    start(control, experiment("blind", layer_range=[0.5, 0.6]))
    start(control, experiment("aside", layer_range=[0.6, 0.7], targeting="region =="))
    start(control, experiment("also-first", layer_range=[0.7, 0.9]))
    with control.store.begin() as connection:
        row = connection.execute(select(EXPERIMENTS.c.spec).where(EXPERIMENTS.c.name == "also-first")).scalar_one()
        moved = json.dumps(json.loads(row) | {"layer_range": [0.2, 0.4]})  # over the one that began before it
        connection.execute(update(EXPERIMENTS).where(EXPERIMENTS.c.name == "also-first").values(spec=moved))
        here = EXPERIMENTS.c.name == "blind"
        connection.execute(update(EXPERIMENTS).where(here).values(spec='{"of": "another release"}'))
        row = {"dataset": config.dataset, "name": "cut", "status": "running", "spec": '{"name"', "pins": "{}"}
        connection.execute(insert(EXPERIMENTS).values(row))
    assert [one.spec.name for one in control.experiments()] == ["also-first", "aside", "good"]
    snapshot = SnapshotLoader(config).load()
    assert set(snapshot.pins) == {"good"}
    assigned = {one.experiment for n in range(200) for one in snapshot.plan.assign(f"u{n}", None, {})}
    assert assigned == {"good"}
    control.end_experiment("also-first", "stopped", actor="t")
    start(control, experiment("next", layer_range=[0.9, 1.0]))  # what nobody can read bars nothing


def test_nobody_takes_part_in_an_experiment_one_of_whose_versions_is_not_here(
    config: ServingConfig, control: ServingControl, bundle: Path
) -> None:
    control.put_experiment(parse_spec(experiment("try")), actor="t")
    control.start_experiment("try", {"a": "1", "b": "2"}, actor="t")
    control.run_experiment("try", actor="t")
    loader = SnapshotLoader(config)
    before = loader.load()
    assert not before.pins
    assert not any(before.plan.assign(f"u{n}") for n in range(20))
    control.set_state(ServingState("1", {"1": str(bundle), "2": str(bundle)}), actor="test", action="test")
    after = loader.load(before)
    assert all(after.plan.assign(f"u{n}") for n in range(20))


def test_a_control_store_that_is_gone_takes_no_version_away(
    config: ServingConfig, control: ServingControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise StoreError("gone")

    monkeypatch.setattr("serving.live_state.as_of_now", gone)
    with pytest.raises(StoreError):
        SnapshotLoader(config).load()


@pytest.mark.parametrize("part", ["_control", "_rules"])
def test_changes_of_items_outlive_a_snapshot_that_fails(
    config: ServingConfig, control: ServingControl, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    loader = SnapshotLoader(config)
    before = loader.load()
    row = {"item_id": "i001", "title": "Renamed", "available": True}
    with control.audit.begin() as connection:
        control.audit.write(connection, "t", "item", "item:i001", {"item_id": "i001"}, row)
        control.audit.write(connection, "t", "item", "item:new", None, {"item_id": "new", "available": True})

    def locked() -> None:
        raise StoreError("database is locked")

    with monkeypatch.context() as patched:
        patched.setattr(getattr(loader, part), {"_control": "experiments", "_rules": "book"}[part], locked)
        with pytest.raises(StoreError):
            loader.load(before)
    items = loader.load(before).items
    assert items.fields(items.row("i001"), ["title"]) == {"title": "Renamed"}
    assert items.row("new") >= 0


def test_without_a_model_an_item_that_was_deleted_is_not_popular(config: ServingConfig, control: ServingControl) -> None:
    control.set_state(ServingState(), actor="test", action="test")
    catalogue, store = Catalogue(control.store, config.dataset), ActivityStore.of(config.paths)
    rows = [Event(f"e-{item_id}", item_id, "view", NOW, user_id="u").to_row(received_at=NOW) for item_id in ("i001", "i002")]
    store.append(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA))
    assert catalogue.delete_item("i001")
    items = SnapshotLoader(config).load().items
    assert items.available[items.row("i002")]
    assert not items.available[items.row("i001")]


class Failing:
    """A function that fails in a way nobody has foreseen, then works."""

    def __init__(self, works: Callable[..., Any]) -> None:
        self.works, self.calls = works, 0

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls < 3:
            raise KeyError("unforeseen")
        return self.works(*given, **named)


async def until(condition: Callable[[], bool], loop: Awaitable[None]) -> None:
    """Run a loop that never ends until something holds."""
    task = asyncio.ensure_future(loop)
    try:
        async with asyncio.timeout(60):
            while not condition():
                assert not task.done()
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_no_trouble_ends_what_a_gateway_follows(
    config: ServingConfig,
    control: ServingControl,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = GatewayApp(config)
    control.set_state(ServingState("1", {"1": str(bundle), "2": str(bundle)}), actor="test", action="test")
    load, applied = Failing(app._loader.load), Failing(lambda tables: None)
    monkeypatch.setattr(app._loader, "load", load)
    monkeypatch.setattr(app._loader.availability, "apply", applied)
    monkeypatch.setattr(trend_lists, "EVERY_S", 0.01)
    trends, refresh = TrendLists(config), Failing(lambda: None)
    monkeypatch.setattr(trends, "refresh", refresh)

    heard, connect = list[None](), Failing(redis.asyncio.Redis.from_url)
    monkeypatch.setattr(redis.asyncio.Redis, "from_url", connect)
    monkeypatch.setattr(announce, "RECONNECT_S", 0.01)

    async def follow() -> None:
        await until(lambda: connect.calls > 3, announce.listen(config, lambda: heard.append(None)))
        await until(lambda: list(app.snapshot().versions) == ["1", "2"], app._follow())
        await until(lambda: applied.calls > 3, app._follow_availability())
        await until(lambda: refresh.calls > 3, trends.follow())

    with caplog.at_level(logging.ERROR, "shortlist.serving"):
        asyncio.run(follow())
    told = [record.getMessage() for record in caplog.records if record.exc_info is not None]
    for what in ("routing state not", "availability not", "trending items not", "announcements are not heard"):
        assert sum(line.startswith(what) for line in told) == 2


def test_a_season_that_could_not_be_counted_is_counted_again_soon(config: ServingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    trends, read = TrendLists(config), Failing(lambda columns: EVENT_SCHEMA.empty_table().select(columns))
    monkeypatch.setattr(ActivityStore, "read", lambda self, columns: read(columns))
    monkeypatch.setattr(trends._board_reader, "get", lambda name: None)
    now = [1000.0]
    monkeypatch.setattr(trend_lists.time, "monotonic", lambda: now[0])
    for _ in range(2):
        with pytest.raises(KeyError):
            trends.refresh()
        trends.refresh()  # the board does not wait for it
        now[0] += trend_lists.SEASON_AGAIN_S
    trends.refresh()
    assert trends.season_at is not None
    now[0] += trend_lists.SEASON_AGAIN_S
    trends.refresh()
    assert read.calls == 3


def test_a_delisting_waits_for_no_thread_that_others_hold(config: ServingConfig, control: ServingControl) -> None:
    app, held = GatewayApp(config), threading.Event()
    items = app.snapshot().items

    async def follow() -> None:
        with ThreadPoolExecutor(1) as pool:
            asyncio.get_running_loop().set_default_executor(pool)
            holding = asyncio.create_task(asyncio.to_thread(held.wait, 60))
            try:
                item = {"item_id": "i001", "available": True}
                after = {**item, "available": False}
                control.audit.record(actor="t", action="item", subject="item:i001", before=item, after=after)
                await until(lambda: not items.available[1], app._follow_availability())
                assert not holding.done()
            finally:
                held.set()
                await holding

    asyncio.run(follow())


def test_no_trouble_ends_what_a_replica_follows() -> None:
    class Stage:
        items = "old"

    class Done(BaseException):
        pass

    class Changes:
        applied = Failing(lambda tables: ["new"])

        def apply(self, tables: list[str]) -> Any:
            if tables == ["new"]:
                raise Done
            return self.applied(tables)

    stage = Stage()
    with pytest.raises(Done):
        _follow_items(Changes(), stage, 0.0)  # type: ignore[arg-type]
    assert stage.items == "new"
