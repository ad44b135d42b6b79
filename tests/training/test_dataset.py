"""From the store, and from a frame, to training data."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from features.activity_store import ActivityStore
from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.events import ACTION_CODES, EVENT_SCHEMA, Event
from features.import_dataset import import_dataset
from features.paths import DatasetPaths
from training.dataset import fold_events, from_frame, load_training_data
from training.errors import NotTrainableError
from training.study import parse_study
from training.study_data import Place, load_study_data

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
def place(tmp_path: Path) -> tuple[DatasetPaths, str]:
    """An imported dataset of five rows, four items, three of them with activity."""
    folder = tmp_path / "files"
    folder.mkdir()
    pd.DataFrame(
        {
            "user_id": ["b", "a", "a", "b", "a"],
            "item_id": ["x", "y", "x", "z", "z"],
            "timestamp": pd.to_datetime(["2026-01-05", "2026-01-02", "2026-01-01", "2026-01-06", None], utc=True),
            "value": [1.0, 2.0, None, 4.0, 5.0],
            "position": [0, 1, 0, 1, 2],
        }
    ).to_parquet(folder / "interactions.parquet")
    pd.DataFrame(
        {
            "item_id": ["new", "x", "y", "z"],
            "title": ["New", None, "Why", "Zed"],
            "categories": [["c"], ["a", "b"], None, []],
            "price": [1.5, None, 3.0, 4.0],
            "pages": [1, 2, 3, 4],
        }
    ).to_parquet(folder / "items.parquet")
    paths, url = DatasetPaths(tmp_path / "home", "tiny"), f"sqlite:///{tmp_path}/control.db"
    import_dataset(str(folder), paths, Catalogue(ControlStore(url).create(), "tiny"))
    return paths, url


def ids(data, what: str) -> list[str]:
    return getattr(data, f"{what}_ids")[getattr(data, f"{what}_idx")].tolist()


def test_store_and_catalogue_become_columns(place: tuple[DatasetPaths, str]) -> None:
    data = load_training_data(*place)
    found = data.interactions
    assert found.item_ids.tolist() == ["new", "x", "y", "z"]
    assert ids(found, "user") == ["a", "a", "a", "b", "b"]
    assert ids(found, "item") == ["x", "y", "z", "x", "z"]
    assert found.time_known.tolist() == [True, True, False, True, True]
    assert (np.diff(found.time_us)[[0, 1, 3]] > 0).all()
    np.testing.assert_array_equal(found.value, np.array([np.nan, 2, 5, 1, 4], np.float32))
    assert data.item_attributes["title"].tolist() == ["New", None, "Why", "Zed"]
    assert data.item_attributes["categories"].tolist() == [["c"], ["a", "b"], None, []]
    np.testing.assert_array_equal(data.item_attributes["price"], [1.5, np.nan, 3.0, 4.0])
    assert data.item_attributes["pages"].dtype == np.int64


def test_only_known_positive_activity_of_users_is_trained_on(place: tuple[DatasetPaths, str]) -> None:
    paths, url = place
    events = [
        Event("1", "y", "purchase", NOW, user_id="b"),
        Event("2", "z", "dislike", NOW, user_id="c"),
        Event("3", "z", "impression", NOW, user_id="c"),
        Event("4", "q", "click", NOW, user_id="c", flag="unknown_item"),
        Event("5", "x", "click", NOW, session_id="s"),
        Event("6", "x", "saved", NOW, user_id="d", flag=None),
    ]
    rows = [event.to_row(received_at=NOW) for event in events]
    ActivityStore(str(paths.activity)).append(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA))
    found = load_training_data(paths, url).interactions
    assert found.user_ids.tolist() == ["a", "b"]
    assert ids(found, "item") == ["x", "y", "z", "x", "z", "y"]
    assert load_training_data(paths, url, extra_actions=frozenset({"saved"})).interactions.user_ids.tolist() == ["a", "b", "d"]
    assert len(load_training_data(paths, url, as_of=NOW - timedelta(seconds=1)).interactions) == 5


def test_a_study_knows_nothing_of_after_it_has_read(place: tuple[DatasetPaths, str]) -> None:
    """Else lists that were made before what users do during the training would be taken for fresh: see `serving.batch_lists`."""
    paths, url = place
    study = parse_study({"name": "s", "protocol": "leave-one-out", "sources": [{"model": "popularity"}]}, "of the test")
    known = load_study_data(Place(paths, url, "http://127.0.0.1:1"), study)
    assert known.fingerprint.as_of == known.as_of == datetime(2026, 1, 6, 0, 0, 0, 1, tzinfo=UTC)
    ahead = datetime.now(UTC) + timedelta(days=365)
    rows = [Event("wrong year", "y", "view", ahead, user_id="b").to_row(received_at=ahead)]
    ActivityStore(str(paths.activity)).append(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA))
    before = datetime.now(UTC)
    found = load_study_data(Place(paths, url, "http://127.0.0.1:1"), study)
    assert found.as_of == ahead  # so that a continued study reads the same
    assert found.fingerprint.as_of is not None
    assert before <= found.fingerprint.as_of <= datetime.now(UTC)


def test_equal_live_times_are_put_apart(place: tuple[DatasetPaths, str]) -> None:
    paths, url = place
    rows = [Event(f"e{n}", "xyz"[n], "view", NOW, user_id="a").to_row(received_at=NOW) for n in range(3)]
    ActivityStore(str(paths.activity)).append(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA))
    found = load_training_data(paths, url).interactions
    times = found.time_us[found.user_idx == 0]
    assert (np.diff(times) > 0).all()
    assert times[-3:].tolist() == [int(NOW.timestamp() * 1e6) + n for n in range(3)]


def test_nothing_to_train_on_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotTrainableError, match=r"'empty' has no activity .* import data"):
        load_training_data(DatasetPaths(tmp_path, "empty"), f"sqlite:///{tmp_path}/control.db")
    with pytest.raises(NotTrainableError, match="empty"):
        from_frame(pd.DataFrame({"user_id": [], "item_id": []}))


def test_frame_without_times_counts_within_users() -> None:
    found = from_frame(pd.DataFrame({"user_id": [2, 1, 2], "item_id": [10, 10, 9]}))
    assert found.user_ids.tolist() == ["1", "2"]
    assert found.item_ids.tolist() == ["10", "9"]
    assert ids(found, "item") == ["10", "10", "9"]
    assert found.time_us.tolist() == [0, 0, 1]
    assert not found.has_times


@pytest.mark.parametrize("name", ["ml-latest-small", "lastfm"])
def test_import_and_frame_give_the_same(shared: Path, tmp_path: Path, name: str) -> None:
    folder = shared / "data" / name
    paths, url = DatasetPaths(tmp_path, name), f"sqlite:///{tmp_path}/control.db"
    import_dataset(str(folder), paths, Catalogue(ControlStore(url).create(), name))
    loaded = load_training_data(paths, url).interactions
    direct = from_frame(
        pd.read_parquet(folder / "interactions.parquet"), pd.read_parquet(folder / "items.parquet").item_id.to_numpy()
    )
    for column in ("user_ids", "item_ids", "user_idx", "item_idx", "time_us", "time_known", "value"):
        np.testing.assert_array_equal(getattr(loaded, column), getattr(direct, column))


def test_actions_come_along_in_the_order_of_the_history() -> None:
    frame = pd.DataFrame(
        {"user_id": ["b", "a", "a", "a"], "item_id": list("wxyz"), "action": ["view", "purchase", "own-action", "like"]}
    )
    frame["position"] = [0, 2, 1, 0]
    codes = from_frame(frame).action.tolist()
    assert codes == [ACTION_CODES["like"], 0, ACTION_CODES["purchase"], ACTION_CODES["view"]]
    assert from_frame(frame.drop(columns="action")).action.tolist() == [0, 0, 0, 0]


def test_fold_events_are_the_rows() -> None:
    frame = pd.DataFrame({"user_id": ["a", "a"], "item_id": ["x", "y"], "value": [3.0, np.nan]})
    frame["timestamp"] = pd.to_datetime(["2026-01-01", "2026-01-02"], utc=True)
    table = fold_events(from_frame(frame))
    assert table.schema.field("timestamp").type == pa.timestamp("us", tz="UTC")
    assert table["value"].to_pylist() == [3.0, None]
    assert table["item_id"].to_pylist() == ["x", "y"]
    assert table["timestamp"].to_pylist()[0] == datetime(2026, 1, 1, tzinfo=UTC)


def test_what_users_rejected_is_kept_and_not_learned_from(place: tuple[DatasetPaths, str]) -> None:
    paths, url = place
    assert load_training_data(paths, url).rejected is None
    events = [
        Event("1", "z", "dislike", NOW, user_id="b"),
        Event("2", "new", "dismiss", NOW, user_id="b"),
        Event("3", "z", "dismiss", NOW, user_id="b"),
        Event("4", "x", "dislike", NOW, user_id="c"),
        Event("5", "x", "dislike", NOW, session_id="s"),
        Event("6", "q", "dislike", NOW, user_id="a", flag="unknown_item"),
    ]
    rows = [event.to_row(received_at=NOW) for event in events]
    ActivityStore(str(paths.activity)).append(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA))
    found = load_training_data(paths, url)
    assert len(found.interactions) == 5
    assert found.rejected is not None
    users = found.interactions.user_ids.tolist()
    assert [found.interactions.item_ids[found.rejected.of_user(row)].tolist() for row in range(len(users))] == [[], ["new", "z"]]
