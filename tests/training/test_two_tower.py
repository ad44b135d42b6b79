"""The two-tower hybrid in planted worlds: kinds of items told by their content, tastes told by history or by attributes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from training.dataset import from_frame
from training.errors import NotTrainableError
from training.models.base import Retriever, TrainingData
from training.models.two_tower import TwoTowerConfig, TwoTowerHybrid
from training.models.two_tower_features import dense_features
from training.models.two_tower_network import sampled_softmax
from training.queries import queries_from_histories
from training.testing import small_world

KINDS, PER_KIND, COLD = 4, 30, 5
CONFIG = TwoTowerConfig(width=16, epochs=6, batch_size=128, learning_rate=0.01)


def world(by_attribute: bool = False) -> TrainingData:
    """Users with one taste each, told by the attribute `club`, too; the first `COLD` items of each kind are taken by nobody.

    Items are numbered so that number % KINDS is the kind; words and prices go with the kind, and some prices are unknown.
    """
    rng = np.random.default_rng(5)
    count = KINDS * PER_KIND
    ids = np.array([f"i{n:03d}" for n in range(count)], dtype=object)
    kinds = np.arange(count) % KINDS
    rows = []
    for user in range(300):
        own = np.flatnonzero((kinds == user % KINDS) & (np.arange(count) >= KINDS * COLD))
        rows += [(f"u{user:03d}", ids[n]) for n in rng.choice(own, 6, replace=False)]
    interactions = from_frame(pd.DataFrame(rows, columns=["user_id", "item_id"]), item_ids=ids)
    titles = np.array([f"kind{kind} w{rng.integers(5)} w{rng.integers(5)}" for kind in kinds], dtype=object)
    price = np.where(rng.random(count) < 0.3, np.nan, 10.0 * kinds)
    clubs = np.array([f"club{int(name[1:]) % KINDS}" for name in interactions.user_ids], dtype=object)
    return TrainingData(interactions, {"title": titles, "price": price}, {"club": clubs} if by_attribute else {})


def test_cold_items_stand_with_their_kind() -> None:
    data = world()
    model = TwoTowerHybrid(CONFIG).fit(data)
    cold = np.arange(data.interactions.num_items) < KINDS * COLD
    histories = [[40 + kind, 60 + kind, 80 + kind] for kind in range(KINDS)]
    among_cold = model.retrieve(queries_from_histories(histories), COLD, cold).item_idx
    np.testing.assert_array_equal(among_cold % KINDS, np.repeat(np.arange(KINDS), COLD).reshape(KINDS, COLD))
    among_all = model.retrieve(queries_from_histories(histories), PER_KIND - 3).item_idx
    assert ((among_all % KINDS) == np.arange(KINDS)[:, None]).mean() > 0.95


def test_a_user_unseen_in_training_is_served_like_one_who_was_there() -> None:
    data = world()
    model = TwoTowerHybrid(CONFIG).fit(data)
    stranger = queries_from_histories([[41, 61]])
    known = replace(stranger, user_idx=np.array([7], dtype=np.int32))
    np.testing.assert_array_equal(model.score(stranger), model.score(known))


def test_attributes_tell_the_taste_of_a_user_without_history() -> None:
    data = world(by_attribute=True)
    model = TwoTowerHybrid(CONFIG).fit(data)
    users = np.arange(8, dtype=np.int32)
    empty = replace(queries_from_histories([[]] * 8), user_idx=users)
    found = model.retrieve(empty, 10).item_idx
    assert (found % KINDS == (users % KINDS)[:, None]).mean() > 0.9
    strangers = model.score(queries_from_histories([[], []]))
    np.testing.assert_array_equal(strangers[0], strangers[1])


def test_fewer_epochs_are_the_beginning_of_more() -> None:
    data = small_world()
    config = TwoTowerConfig(width=8, epochs=4, batch_size=32)
    seen: list[np.ndarray] = []

    def keep(epoch: int, model: Retriever) -> bool:
        assert isinstance(model, TwoTowerHybrid)
        seen.append(model.vectors.copy())
        return False

    TwoTowerHybrid(config).fit(data, seed=3, on_epoch=keep)
    two = TwoTowerHybrid(config.model_copy(update={"epochs": 2})).fit(data, seed=3)
    assert len(seen) == 4
    np.testing.assert_array_equal(two.vectors, seen[1])


def test_numbers_without_a_value_are_average_and_flagged() -> None:
    numbers = np.array([[1.0, 5.0, np.nan], [3.0, 5.0, np.nan], [np.nan, 5.0, np.nan]], dtype=np.float32)
    found = dense_features(numbers)
    np.testing.assert_allclose(found, [[-1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]])


def test_the_softmax_is_corrected_for_draws_and_knows_its_target_twice() -> None:
    users = torch.eye(2)
    candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    items = torch.tensor([7, 8, 7])
    log_q = torch.log(torch.tensor([0.5, 0.25, 0.5]))
    found = sampled_softmax(users, candidates, items[:2], items, log_q, 0.5)
    # User 0: its target against item 8 alone; user 1: its target against item 7 twice.
    first = np.exp(2) / 0.5 / (np.exp(2) / 0.5 + 1 / 0.25)
    second = np.exp(2) / 0.25 / (np.exp(2) / 0.25 + 2 / 0.5)
    assert float(found) == pytest.approx(-(np.log(first) + np.log(second)) / 2, rel=1e-5)


def test_users_of_one_item_are_refused() -> None:
    data = TrainingData(from_frame(pd.DataFrame({"user_id": list("ab"), "item_id": list("xy")})))
    with pytest.raises(NotTrainableError, match="two interactions or more"):
        TwoTowerHybrid().fit(data)
