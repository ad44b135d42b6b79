"""Every registered model keeps the retriever contract; models without content rank items that nobody took last."""

from __future__ import annotations

import numpy as np
import pytest

from training.errors import StudyError
from training.models.calendar import Calendar
from training.models.content import Content
from training.models.content_ease import ContentEase
from training.models.ease import Ease
from training.models.ials import Ials
from training.models.popularity import Popularity
from training.models.registry import MODELS, build_model
from training.models.sequential import Sequential
from training.models.text_knn import TextKnn
from training.models.transition_knn import TransitionKnn
from training.models.two_tower import TwoTowerHybrid
from training.testing import ITEMS_WITHOUT_ACTIVITY, RetrieverContract


class KnowsNothingOfNewItems(RetrieverContract):
    """Models of ids alone."""

    def test_items_without_activity_come_last(self) -> None:
        data, model, queries = self.world()
        new = np.isin(data.interactions.item_ids, ITEMS_WITHOUT_ACTIVITY)
        scores = model.score(queries)
        assert (scores[:, new].max(axis=1) <= scores[:, ~new].min(axis=1)).all()


class TestPopularity(KnowsNothingOfNewItems):
    model = Popularity
    config = {"half_life_days": 30.0}  # noqa: RUF012


class TestPopularityBySegments(KnowsNothingOfNewItems):
    model = Popularity
    config = {"segments": True, "shrinkage": 5.0}  # noqa: RUF012


class TestTransitionKnn(KnowsNothingOfNewItems):
    model = TransitionKnn


class TestEase(KnowsNothingOfNewItems):
    model = Ease
    config = {"l2": 5.0}  # noqa: RUF012


class TestIals(KnowsNothingOfNewItems):
    model = Ials
    config = {"factors": 8, "iterations": 3}  # noqa: RUF012


class TestSequential(KnowsNothingOfNewItems):
    model = Sequential
    config = {"targets": "last", "width": 16, "epochs": 2, "batch_size": 32, "max_len": 8}  # noqa: RUF012


class TestSequentialOfEveryPosition(KnowsNothingOfNewItems):
    model = Sequential
    config = {  # noqa: RUF012
        "targets": "every",
        "width": 16,
        "epochs": 2,
        "batch_size": 8,
        "max_len": 6,
        "time_bias": True,
        "temperature": 0.1,
        "members": 2,
        "filter_share": 0.3,
        "content_width": 8,
    }


class TestContent(RetrieverContract):
    model = Content
    config = {"width": 8}  # noqa: RUF012


class TestTextKnn(RetrieverContract):
    model = TextKnn


class TestTextKnnOfTheStrongest(RetrieverContract):
    model = TextKnn
    config = {"strongest": 2, "text_weight": 0.5, "history_decay": 0.9}  # noqa: RUF012


class TestContentEase(RetrieverContract):
    model = ContentEase
    config = {"l2": 5.0}  # noqa: RUF012


class TestContentEaseOfTransitions(RetrieverContract):
    model = ContentEase
    config = {"base": "transitions", "carry": "ridge", "own_weight": 0.1}  # noqa: RUF012


class TestCalendar(RetrieverContract):
    model = Calendar


class TestTwoTower(RetrieverContract):
    model = TwoTowerHybrid
    config = {"width": 8, "epochs": 2, "batch_size": 32}  # noqa: RUF012


def test_every_registered_model_has_a_contract_test() -> None:
    cases = [case for case in globals().values() if isinstance(case, type) and issubclass(case, RetrieverContract)]
    assert {case.model for case in cases if hasattr(case, "model")} == set(MODELS.values())


def test_registry_refuses_what_it_does_not_know() -> None:
    with pytest.raises(StudyError, match=f"known: {', '.join(sorted(MODELS))}"):
        build_model("sasrec2")
    with pytest.raises(StudyError, match=r"'windows'.*parameters: .*window"):
        build_model("transition_knn", {"windows": 3})
    with pytest.raises(StudyError, match="'window'"):
        build_model("transition_knn", {"window": 0})
