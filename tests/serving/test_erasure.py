"""Erasure: a person planted in every place that keeps people is found nowhere afterwards, and does not come back by old files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from experiments.exposure import EXPOSURE_SCHEMA, Exposure, decode_exposures
from features.activity_store import ActivityStore
from features.bus import EVENTS, EXPOSURES, FEATURES_GROUP, SERVED_FEATURES, SESSIONS, SLATES, STORE_GROUP, BusEntry
from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.daily_log import DailyLog
from features.event_codec import encode_event, event_table
from features.events import Event
from features.import_dataset import import_dataset
from features.online_keys import online_user_key
from features.person import Person
from features.redis_bus import RedisStreamBus
from features.schema import Attribute, DatasetSchema
from features.served import ServedRow, decode_feature_rows, decode_slates, feature_log, list_id, slate_log
from features.session_merges import encode_merge
from serving.cache import activity_key, list_key, session_unit, user_unit
from serving.config import ServingConfig
from serving.erasure import Eraser
from serving.precompute import precompute, precomputed_folder
from shortlist.scan_user import scan_user
from shortlist.settings import load_settings
from shortlist.stack.redis_server import start_redis
from training.bundle import BundleManifest, open_bundle, seal_bundle
from training.bundle_erasure import erase_user
from training.histories import Histories
from training.pipeline import Pipeline

USER, OTHER, SESSION = "erika-mustermann", "u7", "sess-of-erika"
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
def own_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle in which user u3 is called Erika."""
    folder = tmp_path / "home" / "bundles" / "shortlist-planted" / "1" / "bundle"
    shutil.copytree(bundle, folder)
    histories = Histories.load(folder)
    ids = np.where(histories.user_ids == "u3", USER, histories.user_ids)
    order = np.argsort(ids)
    lengths = np.diff(histories.indptr)[order]
    rows = np.concatenate([np.arange(histories.indptr[row], histories.indptr[row + 1]) for row in order])
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    renamed = Histories(
        ids[order], indptr, histories.item_idx[rows], histories.time_us[rows], histories.value[rows], histories.action[rows]
    )
    manifest = open_bundle(folder)
    renamed.save(folder)
    seal_bundle(folder, manifest)
    return folder


@dataclass
class Kept:
    """A dataset with people in every place."""

    config: ServingConfig
    control: ControlStore
    registry: Any
    bus: RedisStreamBus

    def eraser(self) -> Eraser:
        return Eraser(self.config, self.control, self.registry, readers_s=0.1, answers_s=0.1)

    def found(self, user: str) -> set[str]:
        settings = load_settings((f"home={self.config.home}",), environ={})
        urls = {"bus": self.config.bus_url, "features": self.config.features_url, "cache": self.config.cache_url}
        return {f"{one.kind} {one.place}" for one in scan_user(user, settings, urls)}


@pytest.fixture
def kept(make_config: Callable[..., ServingConfig], own_bundle: Path, tmp_path: Path) -> Iterator[Kept]:
    home = tmp_path / "home"
    child, url = start_redis("bus", "bus", home / "redis" / "bus", durable=True)
    cache, cache_url = start_redis("cache", "cache", home / "redis" / "cache", durable=False)
    urls = {"bus_url": url, "features_url": url, "cache_url": cache_url}
    config = make_config(home=home, control_url=f"sqlite:///{home / 'control.db'}", **urls)
    control = ControlStore(config.control_url).create()
    registry = SimpleNamespace(versions=lambda: [SimpleNamespace(version="1")], download=lambda version: own_bundle)
    bus = RedisStreamBus(url, config.dataset)
    everything = Kept(config, control, registry, bus)
    for user, session in ((USER, SESSION), (OTHER, "sess-of-other")):
        plant(everything, user, session)
    yield everything
    bus.close()
    control.close()
    child.stop()
    cache.stop()


def plant(kept: Kept, user: str, session: str) -> None:
    paths = kept.config.paths
    catalogue = Catalogue(kept.control, paths.dataset)
    catalogue.save_schema(DatasetSchema(paths.dataset, user_attributes=(Attribute("city", "city", "string"),)))
    catalogue.upsert_users(pa.table({"user_id": [user], "city": ["Bonn"]}))
    events = [
        Event(f"{user}-1", "i1", "view", NOW, user),
        Event(f"{user}-2", "i2", "view", NOW, user, session),
        Event(f"{user}-3", "i3", "view", NOW, None, session),
    ]
    ActivityStore.of(paths).append(event_table([one.to_row(received_at=NOW) for one in events]))
    for stream in (EVENTS, EXPOSURES, SESSIONS):
        kept.bus.ensure_groups(stream)
    on_its_way = [*events, Event(f"{user}-4", "i4", "view", NOW, user)]
    kept.bus.publish(EVENTS, [encode_event(one, received_at=NOW) for one in on_its_way], [one.event_id for one in on_its_way])
    for payload in (b"no json at all: " + user.encode(), encode_event(events[0], received_at=NOW)):
        kept.bus.dead_letter(EVENTS, STORE_GROUP, BusEntry("1-1", payload), "planted")
    exposure = Exposure("r1" + user, "e", "a", "user_id", user, NOW, "cache", ["i1"], user, session)
    kept.bus.publish(EXPOSURES, [exposure.encode()])
    kept.bus.publish(SESSIONS, [encode_merge("m" + user, session, user, int(NOW.timestamp() * 1e6))])
    DailyLog(paths.exposures, EXPOSURE_SCHEMA, id_column="exposure_id", time_column="at").append(
        decode_exposures([exposure.encode()])
    )
    slates, lists = served_rows(user, session)
    for stream, rows in ((SLATES, slates), (SERVED_FEATURES, lists)):
        kept.bus.ensure_groups(stream)
        kept.bus.publish(stream, rows)
        kept.bus.dead_letter(stream, STORE_GROUP, BusEntry("1-1", rows[0]), "planted")
    slate_log(paths.root).append(decode_slates(slates))
    feature_log(paths.root).append(decode_feature_rows(lists))
    users = pa.table({"user_id": [user, "u8"], "list": pa.array([b"x", b"y"])})
    for folder in (kept.config.precomputed / "v1", paths.feature_tables):
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(users, folder / f"{session}.parquet".replace(session, f"part-{len(user)}"))
    paths.rejects.mkdir(parents=True, exist_ok=True)
    reject = {"user_id": user, "item_id": None}
    (paths.rejects / f"rejects-{len(user)}.csv").write_text(
        f'file,row,reason,content\na.csv,1,item_id is missing,"{json.dumps(reject).replace(chr(34), chr(34) * 2)}"\n'
        f'a.csv,2,bad,"{user};x"\na.csv,3,bad,"other;x"\n'
    )
    with redis.Redis.from_url(kept.config.features_url) as client:
        client.hset(online_user_key(paths.feast_project, user), "f", "1")
    with redis.Redis.from_url(kept.config.cache_url) as client:
        for unit in (user_unit(user), session_unit(session)):
            client.set(list_key(kept.config, "1", unit), "list")
            client.set(activity_key(kept.config, unit), "recent")


def served_rows(user: str, session: str) -> tuple[list[bytes], list[bytes]]:
    """Slates and feature rows of a user, and of the user's session before the login."""
    at_us = int(NOW.timestamp() * 1e6)
    slates, lists = [], []
    for number, (unit, who) in enumerate({f"u:{user}": {"user_id": user}, f"s:{session}": {"session_id": session}}.items()):
        row = {"site": "local", "at": at_us, "list_id": list_id(unit, "1", at_us), "model_version": "1", "item_ids": ["i1"]}
        row |= {"sample_rate": 1.0}
        slate = who | {"recommendation_id": f"r{number}{user}", "served_from": "online", "degraded": False, "assignments": []}
        slates.append(ServedRow(f"r{number}{user}", row | slate).encode())
        values = {"request_time_us": at_us, "from_online_store": True, "user_features": "{}", "feature_names": ["f"], "dropped": 0}
        ranked = row | values | {"user_id": who.get("user_id"), "values": np.ones(1, np.float32)}
        lists.append(ServedRow(row["list_id"], ranked).encode())
    return slates, lists


@pytest.mark.integration
def test_an_erased_person_is_found_nowhere(kept: Kept, own_bundle: Path, tmp_path: Path) -> None:
    before = kept.found(USER)
    places = {place.split(" ")[0] for place in before}
    assert places == {"sql", "redis", "file"}
    assert len(before) >= 21, before
    for part in ("slates", "feature_log", "exposures", "precomputed", "feature_tables", "rejects", "activity", "bundle"):
        assert any(part in place for place in before if place.startswith("file")), (part, before)
    for stream in ("events", "slates", "served"):
        assert any(stream in place and "dead" in place for place in before if place.startswith("redis")), (stream, before)
    others = {place for place in kept.found(OTHER) if "appendonly" not in place}

    report = kept.eraser().erase(USER)
    assert report.unfinished == {}
    assert all(report.deleted.values()), report.deleted
    assert kept.found(USER) == set()
    assert kept.found(SESSION) == set()
    assert {place for place in kept.found(OTHER) if "appendonly" not in place} == others
    assert kept.eraser().erase(USER).total == 0

    # What the worker still holds, what a client sends late, and the old file do not bring the person back.
    store = ActivityStore.of(kept.config.paths)
    old = event_table([Event("again", "i1", "view", NOW, USER).to_row(received_at=datetime.now(UTC))])
    assert store.append(old).erased == 1
    source = tmp_path / "source"
    source.mkdir()
    (source / "interactions.csv").write_text(f"user_id,item_id,timestamp\n{USER},i1,2026-10-01\nnew,i1,2026-10-01\n")
    (source / "users.csv").write_text(f"user_id,city\n{USER},Bonn\nnew,Trier\n")
    imported = import_dataset(str(source), kept.config.paths, Catalogue(kept.control, kept.config.dataset))
    assert any("erased" in note for note in imported.notes), imported.notes
    assert kept.found(USER) == set()
    assert Catalogue(kept.control, kept.config.dataset).user("new") == {"user_id": "new", "city": "Trier"}
    comes_back = event_table(
        [Event("back", "i1", "view", datetime.now(UTC) + timedelta(seconds=1), USER).to_row(received_at=datetime.now(UTC))]
    )
    assert store.append(comes_back).added == 1


@pytest.mark.integration
def test_what_cannot_be_reached_is_named_and_done_by_the_next_call(kept: Kept) -> None:
    away = kept.config.model_copy(update={"features_url": "redis://127.0.0.1:1/0"})
    report = Eraser(away, kept.control, kept.registry, readers_s=0.1, answers_s=0.1).erase(USER)
    assert set(report.unfinished) == {"online_features"}
    assert kept.found(USER) != set()
    assert kept.eraser().erase(USER).unfinished == {}
    assert kept.found(USER) == set()


@pytest.mark.integration
def test_of_people_who_are_erased_at_once_none_comes_back(kept: Kept, own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles and tables are written anew for each: whoever read them before another had written would bring that one back."""

    def seal_slowly(folder: Path, manifest: BundleManifest) -> BundleManifest:  # as of a large bundle, all of which is hashed
        time.sleep(0.7)
        return seal_bundle(folder, manifest)

    monkeypatch.setattr("training.bundle_erasure.seal_bundle", seal_slowly)
    people = [USER, OTHER, "u1", "u2", "u4", "u5"]
    table = kept.config.precomputed / "v1" / "all.parquet"
    pq.write_table(pa.table({"user_id": [*people, "u8"]}), table)
    with ThreadPoolExecutor(len(people)) as pool:
        reports = list(pool.map(lambda user: kept.eraser().erase(user), people))
    assert [report.unfinished for report in reports] == [{}] * len(people)
    assert pq.read_table(table)["user_id"].to_pylist() == ["u8"]
    open_bundle(own_bundle)
    assert not set(people) & set(Histories.load(own_bundle).user_ids)
    assert kept.found(USER) == set()
    assert kept.found(OTHER) == set()


@pytest.mark.integration
@pytest.mark.parametrize(("stage", "user", "other"), [("compute", USER, OTHER), ("load", OTHER, USER)])
def test_lists_that_are_made_during_an_erasure_bring_nobody_back(
    kept: Kept, own_bundle: Path, monkeypatch: pytest.MonkeyPatch, stage: str, user: str, other: str
) -> None:
    """While they are computed, part of a file is written; while they are loaded, the user is among those still to come."""
    monkeypatch.setattr("serving.precompute.COMMANDS_PER_PIPELINE", 50)
    erased = []

    def during(now: str, done: int, total: int) -> None:
        if now == stage and not erased:
            erased.append(kept.eraser().erase(user))

    precompute(kept.config, "1", own_bundle, progress=during)
    assert [report.unfinished for report in erased] == [{}]
    assert kept.found(user) == set()
    files = precomputed_folder(kept.config, "1").glob("*.parquet")
    listed = [one for path in files for one in pq.read_table(path, partitioning=None)["user_id"].to_pylist()]
    assert user not in listed
    assert other in listed


def test_a_bundle_without_a_user_answers_all_others_as_before(own_bundle: Path) -> None:
    before = Pipeline.load(own_bundle)
    users = [one for one in before.histories.user_ids if one != USER]
    assert erase_user(own_bundle, USER)
    after = Pipeline.load(own_bundle)
    assert after.histories.users.rows([USER])[0] < 0
    assert len(after.histories.user_ids) == len(before.histories.user_ids)
    first, second = (one.recommend(one.queries_for(users), 10) for one in (before, after))
    np.testing.assert_array_equal(first.item_idx, second.item_idx)
    assert not erase_user(own_bundle, USER)


def test_the_key_of_a_user_online_is_feasts() -> None:
    code = (
        "from feast.infra.online_stores.helpers import _redis_key\n"
        "from feast.protos.feast.types.EntityKey_pb2 import EntityKey\n"
        "from feast.protos.feast.types.Value_pb2 import Value\n"
        "import sys\n"
        "for user in ('u1', 'é中😀', 'x' * 300):\n"
        "    key = EntityKey(join_keys=['user_id'], entity_values=[Value(string_val=user)])\n"
        "    print(_redis_key('shortlist_d', key, 3).hex())\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said == [online_user_key("shortlist_d", user).hex() for user in ("u1", "é中😀", "x" * 300)]


@pytest.mark.parametrize(
    ("row", "theirs"),
    [
        ({"user_id": "u", "item_id": "i"}, True),
        ({"user_id": "v", "item_id": "u"}, False),
        ({"user_id": "v", "session_id": "s"}, False),
        ({"session_id": "s", "item_id": "i"}, True),
        ({"session_id": "t", "item_id": "s"}, False),
        ({"unit_id": "u", "session_id": "t"}, True),
        ({"unit_id": "s"}, True),
        ({"list_id": "u:u@1@5"}, True),
        ({"list_id": "s:s@1@5"}, True),
        ({"list_id": "u:uu@1@5", "user_id": "uu"}, False),
    ],
)
def test_whose_a_row_is(row: dict[str, str], theirs: bool) -> None:
    person = Person("u", {"s"})
    assert person.has_sent(json.dumps(row).encode()) == theirs
    columns = {name: pa.array([row.get(name)], pa.string()) for name in ("user_id", "unit_id", "session_id", "list_id")}
    assert person.rows(pa.table(columns)).to_pylist() == [theirs]


def test_groups_find_nothing_to_do_for_what_was_erased(kept: Kept) -> None:
    held = kept.bus.read_group(EVENTS, FEATURES_GROUP, "worker", 100, 1)
    kept.eraser().erase(USER)
    again = RedisStreamBus(kept.config.bus_url, kept.config.dataset)
    left = again.read_group(EVENTS, FEATURES_GROUP, "worker", 100, 1)
    assert len(held) == 8
    assert {json.loads(entry.payload)["event_id"] for entry in left} == {f"{OTHER}-{n}" for n in range(1, 5)}
    again.ack(EVENTS, FEATURES_GROUP, [entry.id for entry in left])
    lag = {group.group: group.entries for group in again.lag(EVENTS).groups}
    assert lag[FEATURES_GROUP] == 0
    again.close()
