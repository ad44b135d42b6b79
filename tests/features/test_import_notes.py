"""What an import tells beside its counts: what it left out, what nothing counts, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from features.errors import ImportFormatError

Folder = Callable[..., Path]
Written = Callable[[str, str | bytes], Path]


def test_actions_that_are_not_known_are_told(home: Any, written: Written) -> None:
    report = home.import_(written("a.csv", "user_id,item_id,action\nu,a,view\nu,b,hover\nv,b,Hover\n"))
    assert any("2 interactions have an action that is not known ('hover': 2)" in note for note in report.notes)


def test_an_action_that_is_made_known_later_needs_a_new_dataset(home: Any, written: Written) -> None:
    path = written("a.csv", "user_id,item_id,action\nu,a,view\nu,b,hover\nv,b,Hover\n")
    first = home.import_(path)
    assert any("events.extra_actions and import into a new dataset" in note for note in first.notes)
    again = home.import_(path, extra_actions=("hover", "zoom"))
    assert any("2 stored interactions have an action that was not known when they came ('hover': 2)" in n for n in again.notes)
    assert home.events().flag.notna().sum() == 2
    new = home.import_(path, dataset="new", extra_actions=("hover", "zoom"))
    assert not any("not known" in note for note in new.notes)
    assert home.events("new").flag.isna().all()


def test_columns_that_are_not_used_are_named(home: Any, written: Written) -> None:
    path = written("lone.csv", "user_id,item_id,title,price,shop\nu,a,A,3,s\nu,b,B,4,s\n")
    report = home.import_(path, mapping={"session_id": "shop"})
    assert report.to_dict()["unused_columns"] == ["title", "price"]
    assert any("lone.csv: not used: 'title', 'price'; " in note and "items.csv" in note for note in report.notes)
    report = home.import_(written("known.csv", "userId,item_id,rating\nu,a,3\n"))
    assert "unused_columns" not in report.to_dict()
    assert not any("not used" in note for note in report.notes)


def test_users_with_one_event_are_kept_and_mentioned(home: Any, folder: Folder) -> None:
    report = home.import_(folder({"user_id": ["u", "v", "v"], "item_id": ["a", "a", "b"]}))
    assert report.users == 2
    assert any("1 of 2 users have one interaction" in note for note in report.notes)


def test_a_catalogue_alone_is_told_what_a_folder_has(home: Any, written: Written) -> None:
    items = written("shop/items.csv", "item_id,title\na,A\n")
    expected = r"A folder has interactions.csv .* beside it.* items.csv .* POST /v1/items"
    with pytest.raises(ImportFormatError, match=r"no column that looks like user_id .*" + expected):
        home.import_(items)
    with pytest.raises(ImportFormatError, match=r"looks like a dataset.*" + expected):
        home.import_(items.parent)
