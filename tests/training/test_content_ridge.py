"""The regression against its definition, and EASE that carries its weights with it."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
import scipy.sparse as sp

from tests.training.test_content_ease import world
from training.errors import NotTrainableError
from training.models.content_ease import ContentEase, ContentEaseConfig
from training.models.content_ridge import ridge_lending
from training.queries import queries_from_histories
from training.text_vectors import unit_rows

COUNTS = np.array([3, 0, 1, 2, 0, 5, 0])
"""The last item has no words."""


def tokens() -> sp.csr_matrix:
    drawn = np.random.default_rng(0).random((7, 12)) * (np.random.default_rng(1).random((7, 12)) < 0.6)
    drawn[6] = 0
    return sp.csr_matrix(drawn, dtype=np.float32)


@pytest.mark.parametrize("squared", [0.0, 0.4, 1.0])
def test_coefficients_are_those_of_the_definition(squared: float) -> None:
    found = ridge_lending(tokens(), COUNTS, penalty=0.7, squared=squared, lenders=100).toarray()
    cosines = (unit_rows(tokens()) @ unit_rows(tokens()).T).toarray()
    likeness = (1 - squared) * cosines + squared * cosines**2
    taken, new = np.flatnonzero(COUNTS), [1, 4]
    wanted = np.linalg.solve(likeness[np.ix_(taken, taken)] + 0.7 * np.eye(len(taken)), likeness[np.ix_(taken, new)])
    np.testing.assert_allclose(found[np.ix_(taken, new)], wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found[:, taken], np.eye(7, dtype=np.float32)[:, taken])
    assert not found[:, 6].any()


def test_only_the_largest_coefficients_are_kept() -> None:
    whole = ridge_lending(tokens(), COUNTS, penalty=0.7, squared=0.0, lenders=100).toarray()[:, 1]
    found = ridge_lending(tokens(), COUNTS, penalty=0.7, squared=0.0, lenders=2).toarray()[:, 1]
    kept = np.argsort(-np.abs(whole))[:2]
    np.testing.assert_array_equal(np.flatnonzero(found), np.sort(kept))
    np.testing.assert_allclose(found[kept], whole[kept])


def test_without_new_items_everybody_stands_alone() -> None:
    found = ridge_lending(tokens(), np.ones(7, dtype=np.int64), penalty=1.0, squared=0.0, lenders=5)
    np.testing.assert_array_equal(found.toarray(), np.eye(7))


def test_a_new_item_is_what_goes_with_the_items_that_it_is_made_of() -> None:
    data = world()
    row = {str(item): n for n, item in enumerate(data.interactions.item_ids)}
    model = ContentEase(ContentEaseConfig(l2=1.0, content_weight=0.0, carry="ridge", penalty=0.1)).fit(data)
    scores = model.score(queries_from_histories([[row["a"]], [row["d"]]]))
    assert scores[0, row["new-b"]] > 0.5 > abs(scores[0, row["new-c"]])
    assert scores[1, row["new-c"]] > 0.5 > abs(scores[1, row["new-b"]])


def test_an_entry_itself_speaks_for_items_like_it() -> None:
    data = world()
    row = {str(item): n for n, item in enumerate(data.interactions.item_ids)}
    query = queries_from_histories([[row["b"]]])
    scores = [
        ContentEase(ContentEaseConfig(l2=1.0, content_weight=0.0, carry="ridge", penalty=0.1, own_weight=weight))
        .fit(data)
        .score(query)
        for weight in (0.0, 1.0)
    ]
    assert scores[1][0, row["new-b"]] > scores[0][0, row["new-b"]] + 0.5
    np.testing.assert_allclose(scores[1][0, row["a"]], scores[0][0, row["a"]], rtol=1e-5)


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10})())
    with pytest.raises(NotTrainableError, match='set carry = "lend"'):
        ridge_lending(tokens(), COUNTS, penalty=1.0, squared=0.0, lenders=5)
