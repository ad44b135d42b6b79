"""Feature views of one's own: one entry, and the same values in tables, training, online and in what a ranker reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from feature_repo import own_views
from feature_repo.own_views import OwnView
from feature_repo.repository import build_repository
from feature_repo.specs import ITEM_METADATA, USER_ACTIVITY, FeatureSpec
from features.activity_log import activity_log
from features.aggregates import UserStates, categories_of
from features.checks import check_features
from features.columns import equal_columns, table_columns
from features.errors import FeatureJoinError
from features.feature_tables import build_tables
from features.own_tables import own_rows
from features.paths import DatasetPaths
from features.schema import Attribute, DatasetSchema
from features.store import Features
from features.training_set import item_features_at, user_features_at

START_US = 1_709_251_200_000_000
CUTOFF_US = START_US + 45 * 86_400_000_000
SCHEMA = DatasetSchema("own", item_attributes=(Attribute("title", "title", "string"),), has_values=True)


def _wording(rows: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {"wording_letters": pc.utf8_length(rows["metadata_title"])}


def _habits(rows: pa.Table) -> dict[str, object]:
    events, distinct = rows["user_events"].to_numpy(), rows["recent_distinct_items"].to_numpy()
    return {"habit_repeats": distinct / np.maximum(events, 1), "habit_loyal": distinct * 2 < events, "habit_twice": events * 2}


WORDING = OwnView(
    "item_wording",
    ITEM_METADATA,
    (FeatureSpec("wording_letters", "integer", "letters", "Letters of the title."),),
    _wording,
    "How an item is named.",
    needs=("metadata_title",),
)
HABITS = OwnView(
    "user_habits",
    USER_ACTIVITY,
    (
        FeatureSpec("habit_repeats", "number", "1", "Distinct recent items for an event."),
        FeatureSpec("habit_loyal", "flag", "1", "Whether most events are repeats."),
        FeatureSpec("habit_twice", "count", "events", "Twice the events."),
    ),
    _habits,
    "How a user goes about it.",
)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_views, "OWN_VIEWS", (WORDING, HABITS))


@pytest.fixture
def events(rng: np.random.Generator) -> pa.Table:
    size = 800
    seconds = np.sort(rng.choice(44 * 86_400, size, replace=False))
    return pa.table(
        {
            "user_id": [f"u{n}" for n in rng.integers(0, 20, size)],
            "item_id": [f"i{n}" for n in rng.integers(0, 30, size)],
            "timestamp": pa.array(START_US + seconds * 1_000_000).cast(pa.timestamp("us", tz="UTC")),
            "value": pa.nulls(size, pa.float64()),
            "action": ["view"] * size,
            "flag": pa.nulls(size, pa.string()),
            "recommendation_id": pa.nulls(size, pa.string()),
        }
    )


ITEMS = pa.table({"item_id": [f"i{n}" for n in range(30)], "title": ["x" * n if n else None for n in range(30)]})
USERS = pa.table({"user_id": [f"u{n}" for n in range(20)]})


@pytest.mark.integration
def test_the_values_are_the_same_in_tables_training_online_and_after_a_push(
    own: None, events: pa.Table, redis_server: str, tmp_path: Path
) -> None:
    paths = DatasetPaths(tmp_path, "own")
    built = {table.view for table in build_tables(paths.feature_tables, SCHEMA, events, USERS, ITEMS, CUTOFF_US)}
    assert {"item_wording", "user_habits"} <= built
    store = Features(paths, SCHEMA, redis_server, user_ttl_s=10**9)
    store.apply()
    written = store.materialize()
    assert (written["item_wording"], written["user_habits"]) == (written["item_metadata"], written["user_activity"]) == (30, 20)

    users, items = np.array([f"u{n}" for n in range(21)], dtype=object), np.array([f"i{n}" for n in range(31)], dtype=object)
    cutoffs = np.full(21, CUTOFF_US)
    online = store.online_users(list(users)) | {"item": store.online_items(list(items))["wording_letters"]}
    trained = user_features_at(events, ITEMS, users, cutoffs, names=("user_events", "habit_repeats", "habit_loyal", "habit_twice"))
    offline = store.historical("user", users, cutoffs + 1)
    for name in trained:
        assert equal_columns(online[name], trained[name]).all(), name
        assert equal_columns(online[name], offline[name]).all(), name
    np.testing.assert_array_equal(online["habit_twice"], 2 * online["user_events"])
    letters = item_features_at(events, ITEMS, items, CUTOFF_US)["wording_letters"]
    np.testing.assert_array_equal(letters, [np.nan, *range(1, 30), np.nan])
    np.testing.assert_array_equal(online["item"], letters)
    report = check_features(store, CUTOFF_US + 1)
    assert report.ok, report
    assert report.null_share["wording_letters"] == round(1 / 30, 6)

    more = pa.concat_tables([events, events.filter(pc.equal(events["user_id"], "u3"))])
    log = activity_log(more, "user", has_times=True)
    for block in UserStates(log, categories_of(ITEMS)).after(np.arange(len(log.ids)), log.indptr[1:]):
        store.push_users(block)
    pushed = store.online_users(["u3", "u4"])
    assert pushed["habit_twice"].tolist() == [4 * trained["user_events"][3], 2 * trained["user_events"][4]]
    store.write_attributes("item", pa.table({"item_id": ["i1"], "metadata_title": ["four"]}))
    assert store.online_items(["i1"])["wording_letters"].tolist() == [4]


def test_a_training_join_sees_what_was_before_the_label(own: None, events: pa.Table) -> None:
    whole = events.filter(pc.equal(events["user_id"], "u1"))
    label_us = int(pc.cast(whole["timestamp"], pa.int64())[5].as_py())
    found = user_features_at(events, None, np.array(["u1"], dtype=object), np.array([label_us]))
    assert found["habit_twice"].tolist() == [10]


def test_a_dataset_without_the_needed_column_lacks_the_view(own: None, tmp_path: Path) -> None:
    from dataclasses import asdict

    bare = build_repository(asdict(DatasetSchema("bare")), tmp_path)
    assert [view.name for view in bare.item_views] == ["item_activity", "item_engagement"]
    assert "user_habits" in [view.name for view in bare.user_views]


def test_a_name_that_another_view_has_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dataclasses import asdict

    taken = replace(HABITS, specs=(FeatureSpec("user_events", "count", "1", "Taken."),))
    monkeypatch.setattr(own_views, "OWN_VIEWS", (taken,))
    with pytest.raises(ValueError, match="feature 'user_events' is in the views 'user_activity' and 'user_habits'"):
        build_repository(asdict(SCHEMA), tmp_path)


def test_what_cannot_be_based_on_or_is_not_declared_is_refused() -> None:
    with pytest.raises(ValueError, match="based on 'item_engagement'; allowed: user_activity"):
        replace(HABITS, base="item_engagement")
    rows = pa.table({"item_id": ["a", "b"], "metadata_title": ["x", None]})
    assert table_columns(own_rows(WORDING, rows), WORDING.specs)["wording_letters"].tolist()[0] == 1
    for computed, said in (
        ({"letters": [1, 2]}, "computes letters; it declares wording_letters"),
        ({"wording_letters": ["a", "b"]}, "is no integer"),
        ({"wording_letters": [1]}, "has 1 rows for 2"),
    ):
        with pytest.raises(FeatureJoinError, match=said):
            own_rows(replace(WORDING, compute=lambda _, computed=computed: computed), rows)
