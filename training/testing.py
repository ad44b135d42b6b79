"""What every candidate model must do, as tests to inherit: shipped, so that models written elsewhere have them too.

    class TestMine(RetrieverContract):
        model = Mine
        config = {"factors": 8}

Owns the contract of `training.models.base.Retriever` and a small world to check it in; a model's own behaviour is its own test.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from training.dataset import from_frame
from training.errors import NotTrainableError
from training.excluded_items import ExcludedItems
from training.interactions import FloatArray, IdArray
from training.models.base import Retriever, TrainingData
from training.queries import QueryBatch, queries_from_histories, queries_from_users

ITEMS_WITHOUT_ACTIVITY = ("zz-new-1", "zz-new-2")


def small_world(seed: int = 7, users: int = 40, items: int = 30) -> TrainingData:
    """Users who walk through two groups of items in order, with noise; two items nobody took; attributes on both sides."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        first = rng.integers(0, items // 2) + (user % 2) * (items // 2)
        for place in range(int(rng.integers(1, 12))):
            item = (first + place) % items if rng.random() < 0.8 else rng.integers(0, items)
            rows.append((f"u{user:02d}", f"i{item:02d}", 1_700_000_000 + user * 1000 + place, place, float(rng.integers(1, 6))))
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "seconds", "position", "value"])
    frame["timestamp"] = pd.to_datetime(frame.pop("seconds"), unit="s", utc=True)
    interactions = from_frame(frame, item_ids=np.array(ITEMS_WITHOUT_ACTIVITY, dtype=object))
    categories = _objects([["even"] if n % 2 == 0 else ["odd", "rare"] for n in range(interactions.num_items)])
    titles = _objects([f"Title number {n}" for n in range(interactions.num_items)])
    ages = np.where(np.arange(interactions.num_users) % 3 == 0, np.nan, 30.0)
    return TrainingData(interactions, {"categories": categories, "title": titles}, {"age": ages})


class RetrieverContract:
    """Inherit, and name the `model` and a `config` that fits in a moment. One fit serves all tests that do not need their own."""

    model: ClassVar[type[Retriever]]
    config: ClassVar[dict[str, Any]] = {}
    fitted: ClassVar[dict[type, tuple[TrainingData, Retriever]]] = {}

    def fit(self, data: TrainingData, seed: int = 0) -> Retriever:
        """A fresh model, fitted."""
        return self.model(self.model.Config(**self.config)).fit(data, seed=seed)

    def world(self) -> tuple[TrainingData, Retriever, QueryBatch]:
        """The small world, the model fitted on it, and one query a user."""
        if type(self) not in self.fitted:
            data = small_world()
            self.fitted[type(self)] = (data, self.fit(data))
        data, model = self.fitted[type(self)]
        return data, model, _all_users(data)

    def test_scores_are_float32_and_finite(self) -> None:
        """(B, N) float32, finite."""
        data, model, queries = self.world()
        scores = model.score(queries)
        assert scores.shape == (len(queries), data.interactions.num_items)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()

    def test_saved_and_loaded_model_scores_the_same(self, tmp_path: Path) -> None:
        """Bit for bit, and nothing pickled."""
        _, model, queries = self.world()
        model.save(tmp_path)
        again = self.model.load(tmp_path, model.config)
        np.testing.assert_array_equal(again.score(queries), model.score(queries))
        found, expected = again.retrieve(queries, 5), model.retrieve(queries, 5)
        np.testing.assert_array_equal(found.item_idx, expected.item_idx)
        assert not [path for path in tmp_path.rglob("*") if path.suffix in {".pkl", ".pickle", ".pt", ".npy"}]

    def test_batch_equals_one_by_one(self) -> None:
        """Padding, blocks and neighbours in the batch change nothing."""
        _, model, queries = self.world()
        together = model.score(queries)
        for start, one in queries.blocks(1):
            _assert_close(model.score(one)[0], together[start])

    def test_equal_seeds_give_equal_models(self) -> None:
        """Two fits with one seed score alike."""
        data, model, queries = self.world()
        np.testing.assert_array_equal(self.fit(data, seed=0).score(queries), model.score(queries))

    def test_fit_leaves_the_data_alone(self) -> None:
        """Folds are shared between models."""
        data, untouched = small_world(), small_world()
        self.fit(data)
        for name in ("user_idx", "item_idx", "time_us", "value"):
            np.testing.assert_array_equal(getattr(data.interactions, name), getattr(untouched.interactions, name))

    def test_retrieval_is_the_best_of_the_scores(self) -> None:
        """Best first, scores those of `score`, history left out."""
        _, model, queries = self.world()
        scores, found = model.score(queries), model.retrieve(queries, 7)
        scores[queries.row, queries.item_idx] = -np.inf
        best = -np.sort(-scores, axis=1)[:, :7]
        _assert_close(found.score, best)
        _assert_close(np.take_along_axis(scores, found.item_idx, axis=1), found.score)

    def test_history_can_be_kept(self) -> None:
        """`exclude_history=False` returns every item at full length."""
        data, model, queries = self.world()
        found = model.retrieve(queries, data.interactions.num_items, exclude_history=False)
        assert (np.sort(found.item_idx, axis=1) == np.arange(data.interactions.num_items)).all()

    def test_items_that_a_query_leaves_out_do_not_come_back(self) -> None:
        """Each query its own, with the history and without; the others are as before."""
        data, model, queries = self.world()
        num_items = data.interactions.num_items
        before = model.retrieve(queries, 4)
        rows = np.repeat(np.arange(0, len(queries), 2, dtype=np.int32), 2)
        asked = replace(queries, left_out=ExcludedItems(rows, before.item_idx[::2, :2].ravel()))
        for history in (True, False):
            found = model.retrieve(asked, num_items, exclude_history=history)
            for row in range(len(queries)):
                out = set(before.item_idx[row, :2].tolist()) if row % 2 == 0 else set()
                out |= set(queries.history(row).tolist()) if history else set()
                assert set(found.item_idx[row][found.item_idx[row] >= 0].tolist()) == set(range(num_items)) - out
        _assert_close(model.retrieve(asked, 2).score[::2], before.score[::2, 2:])
        _assert_close(model.retrieve(asked, 4).score[1::2], before.score[1::2])

    def test_only_allowed_items_come_back(self) -> None:
        """One mask for all, and one a query."""
        data, model, queries = self.world()
        rng = np.random.default_rng(3)
        common = rng.random(data.interactions.num_items) < 0.4
        own = rng.random((len(queries), data.interactions.num_items)) < 0.4
        for mask in (common, own):
            found = model.retrieve(queries, 10, mask)
            full = np.broadcast_to(mask, own.shape)
            rows, places = np.nonzero(found.item_idx >= 0)
            assert full[rows, found.item_idx[rows, places]].all()
            seen = np.zeros(own.shape, dtype=bool)
            seen[queries.row, queries.item_idx] = True
            np.testing.assert_array_equal((found.item_idx >= 0).sum(axis=1), np.minimum((full & ~seen).sum(axis=1), 10))

    def test_more_than_the_catalogue_is_padded(self) -> None:
        """k above N: each item once, then -1 and -inf."""
        data, model, queries = self.world()
        num_items = data.interactions.num_items
        found = model.retrieve(queries, num_items + 9)
        assert found.item_idx.shape == found.score.shape == (len(queries), num_items + 9)
        for row in range(len(queries)):
            items = found.item_idx[row][found.item_idx[row] >= 0]
            assert len(set(items)) == len(items) == num_items - len(set(queries.history(row)))
            assert (found.item_idx[row][len(items) :] == -1).all()
            assert np.isneginf(found.score[row][len(items) :]).all()

    def test_strangers_and_empty_histories_get_an_answer(self) -> None:
        """A user unseen in training is served from the history alone; none at all gets the model's answer for anybody."""
        _, model, _ = self.world()
        scores = model.score(queries_from_histories([[], [3, 4], []]))
        assert np.isfinite(scores).all()
        np.testing.assert_array_equal(scores[0], scores[2])

    def test_no_queries(self) -> None:
        """An empty batch is an empty answer."""
        data, model, queries = self.world()
        assert model.score(queries.slice(0, 0)).shape == (0, data.interactions.num_items)
        assert model.retrieve(queries.slice(0, 0), 5).item_idx.shape == (0, 5)

    def test_longer_history_than_any_in_training(self) -> None:
        """Repeats and length do no harm."""
        _, model, _ = self.world()
        assert np.isfinite(model.score(queries_from_histories([[n % 20 for n in range(500)]]))).all()

    def test_one_item(self) -> None:
        """A catalogue of one."""
        self._check_tiny(pd.DataFrame({"user_id": ["a", "b"], "item_id": ["x", "x"]}))

    def test_users_of_length_one(self) -> None:
        """No sequence anywhere."""
        self._check_tiny(pd.DataFrame({"user_id": ["a", "b", "c"], "item_id": ["x", "y", "x"]}))

    def test_repeats_of_one_item(self) -> None:
        """A user with one item over and over."""
        self._check_tiny(pd.DataFrame({"user_id": ["a"] * 5 + ["b"] * 2, "item_id": ["x"] * 5 + ["x", "y"]}))

    def test_an_item_in_every_history(self) -> None:
        """An item without contrast."""
        self._check_tiny(pd.DataFrame({"user_id": list("aabbccdd"), "item_id": ["x", "p", "x", "q", "x", "p", "x", "r"]}))

    def test_unknown_parameter_is_refused(self) -> None:
        """Configurations are closed."""
        refusal = ""
        try:
            self.model.Config(**{"no_such_parameter": 1})
        except ValueError as error:
            refusal = str(error)
        assert "no_such_parameter" in refusal

    def test_epochs_can_be_watched_and_stopped(self) -> None:
        """`on_epoch` sees a model that can score; True ends the training."""
        data = small_world()
        queries = _all_users(data)
        epochs: list[int] = []

        def stop(epoch: int, model: Retriever) -> bool:
            epochs.append(epoch)
            assert np.isfinite(model.score(queries)).all()
            return True

        model = self.model(self.model.Config(**self.config)).fit(data, on_epoch=stop)
        assert len(epochs) <= 1
        assert np.isfinite(model.score(queries)).all()

    def _check_tiny(self, frame: pd.DataFrame) -> None:
        """Either trains and answers, or says that there is too little to learn from."""
        data = TrainingData(from_frame(frame))
        try:
            model = self.fit(data)
        except NotTrainableError:
            return
        queries = _all_users(data)
        assert np.isfinite(model.score(queries)).all()
        assert model.retrieve(queries, 3).item_idx.shape == (len(queries), 3)


def _all_users(data: TrainingData) -> QueryBatch:
    return queries_from_users(data.interactions, np.arange(data.interactions.num_users, dtype=np.int32))


def _assert_close(found: FloatArray, expected: FloatArray) -> None:
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(found), finite)
    scale = float(np.abs(expected[finite]).max(initial=1e-6))
    np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-4, atol=1e-5 * scale)


def _objects(values: list[Any]) -> IdArray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
