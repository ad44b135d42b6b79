"""EASE with content where lists can be told by hand: who borrows from whom, and that a taken item keeps its own weights."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import pytest

from training.dataset import from_frame
from training.models.base import TrainingData
from training.models.content_ease import ContentEase, ContentEaseConfig
from training.models.ease import Ease, EaseConfig
from training.queries import queries_from_histories

TITLES = {"a": "brass lamp", "b": "oak table", "c": "silk cushion", "new-b": "oak table large", "new-c": "silk cushion large"}


def world() -> TrainingData:
    """Whoever takes `a` takes `b`; `c` goes alone with `d`. Nobody has taken `new-b` and `new-c`, which are like `b` and `c`."""
    rows = [(f"u{n}", item) for n in range(30) for item in ("ab" if n % 2 else "cd")]
    ids = np.array(list(TITLES), dtype=object)
    interactions = from_frame(pd.DataFrame(rows, columns=["user_id", "item_id"]), item_ids=ids)
    titles = np.array([TITLES.get(item) for item in interactions.item_ids], dtype=object)
    return TrainingData(interactions, {"title": titles})


def test_a_new_item_is_what_goes_with_the_items_like_it() -> None:
    data = world()
    row = {str(item): n for n, item in enumerate(data.interactions.item_ids)}
    model = ContentEase(ContentEaseConfig(l2=1.0, content_weight=0.0)).fit(data)
    scores = model.score(queries_from_histories([[row["a"]], [row["d"]]]))
    # Nobody's title says that `a` goes with oak, or `d` with silk: activity does, through `b` and `c`.
    assert scores[0, row["new-b"]] > 0.5 > abs(scores[0, row["new-c"]])
    assert scores[1, row["new-c"]] > 0.5 > abs(scores[1, row["new-b"]])


def test_content_speaks_beside_activity() -> None:
    data = world()
    row = {str(item): n for n, item in enumerate(data.interactions.item_ids)}
    model = ContentEase(ContentEaseConfig(l2=1.0, content_weight=1.0)).fit(data)
    best = model.retrieve(queries_from_histories([[row["new-b"]]]), 2).item_idx[0]
    # `b` is like it, and `a` goes with what is like it.
    assert set(best.tolist()) == {row["a"], row["b"]}


def test_transitions_carry_what_is_taken_soon_after_each_other() -> None:
    others = [f"x{n}" for n in range(6)]
    rows = [(f"u{n}", item) for n in range(30) for item in ("a", *others, "b")]
    titles = {"a": "brass lamp", "b": "oak table", "x0": "silk cushion", "new-b": "oak table large", "new-x": "silk cushion large"}
    ids = np.array([*titles, *others[1:]], dtype=object)
    interactions = from_frame(pd.DataFrame(rows, columns=["user_id", "item_id"]), item_ids=ids)
    data = TrainingData(interactions, {"title": np.array([titles.get(i, i) for i in interactions.item_ids], dtype=object)})
    row = {str(item): n for n, item in enumerate(interactions.item_ids)}
    asked = queries_from_histories([[row["a"]]])
    config = ContentEaseConfig(base="transitions", window=2, content_weight=0.0, freedom=0.0)
    near = ContentEase(config).fit(data).score(asked)[0]
    assert near[row["new-x"]] > 0.05
    assert near[row["new-b"]] < 1e-4
    far = ContentEase(config.model_copy(update={"window": 7})).fit(data).score(asked)[0]
    assert far[row["new-b"]] > 0.01


@pytest.mark.parametrize("carry", ["lend", "ridge"])
def test_a_history_of_new_items_alone_speaks_with_the_rows_of_items_like_them(carry: Literal["lend", "ridge"]) -> None:
    data = world()
    row = {str(item): n for n, item in enumerate(data.interactions.item_ids)}
    model = ContentEase(ContentEaseConfig(l2=1.0, content_weight=0.0, carry=carry, penalty=0.1)).fit(data)
    scores = model.score(queries_from_histories([[row["new-b"]], [row["new-c"]]]))
    assert scores[0, row["a"]] > 0.5 > abs(scores[0, row["d"]])
    assert scores[1, row["d"]] > 0.5 > abs(scores[1, row["a"]])


def test_new_items_of_a_history_speak_as_loud_as_taken_ones_of_other_new_items() -> None:
    rng = np.random.default_rng(0)
    kinds, taken, new = 8, 80, 40
    rows = [(f"u{n}", f"i{item}") for n in range(400) for item in n % kinds + kinds * rng.choice(taken // kinds, 4, replace=False)]
    ids = np.array([f"i{n}" for n in range(taken + new)], dtype=object)
    interactions = from_frame(pd.DataFrame(rows, columns=["user_id", "item_id"]), item_ids=ids)
    number = np.array([int(item[1:]) for item in interactions.item_ids.tolist()])
    titles = np.array([f"kind{n % kinds} look{n % 13} size{n % 7}" for n in number.tolist()], dtype=object)
    model = ContentEase(ContentEaseConfig(content_weight=0.0, carry="ridge")).fit(TrainingData(interactions, {"title": titles}))
    scores = model.score(queries_from_histories([[item] for item in range(taken + new)]))[:, number >= taken]
    scores[np.flatnonzero(number >= taken), np.arange(new)] = 0.0
    length = np.linalg.norm(scores, axis=1)
    assert length[number >= taken].mean() == pytest.approx(length[number < taken].mean(), rel=0.1)


def test_without_shrinkage_and_content_it_is_ease() -> None:
    data = world()
    taken = np.flatnonzero(np.bincount(data.interactions.item_idx, minlength=data.interactions.num_items))
    plain = Ease(EaseConfig(l2=1.0, dense_up_to=0)).fit(data).weights.toarray()
    model = ContentEase(ContentEaseConfig(l2=1.0, shrinkage=0.0, content_weight=0.0)).fit(data)
    found = model.weights.toarray()
    np.testing.assert_allclose(found[np.ix_(taken, taken)], plain[np.ix_(taken, taken)], rtol=1e-5)
