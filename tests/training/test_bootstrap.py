"""The bootstrap against scipy's, and its coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from training.bootstrap import ci95, paired_difference, resampled_means


def test_interval_agrees_with_scipy(rng: np.random.Generator) -> None:
    values = rng.exponential(size=(400, 2))
    ours = ci95(values, resamples=4000, seed=1)
    for column in range(2):
        theirs = stats.bootstrap((values[:, column],), np.mean, n_resamples=4000, method="percentile", rng=2).confidence_interval
        np.testing.assert_allclose(ours[column], [theirs.low, theirs.high], atol=0.012)


def test_interval_covers_the_mean_about_as_often_as_it_says(rng: np.random.Generator) -> None:
    covered = 0
    for _ in range(200):
        low, high = ci95(rng.exponential(size=(150, 1)), resamples=400, seed=int(rng.integers(1 << 30)))[0]
        covered += low <= 1.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_paired_p_is_uniform_when_nothing_differs(rng: np.random.Generator) -> None:
    p = [
        paired_difference("m", a, a + rng.normal(size=120) * 0.1, resamples=400, seed=n).p
        for n, a in enumerate(rng.normal(size=(200, 120)))
    ]
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.12


def test_blocks_of_resamples_and_seeds() -> None:
    values = np.arange(10.0)[:, None]
    first = resampled_means(values, 50, seed=4)
    np.testing.assert_array_equal(first, resampled_means(values, 50, seed=4))
    assert first.min() >= 0
    assert first.max() <= 9
    with pytest.raises(ValueError, match="same users"):
        paired_difference("m", np.zeros(3), np.zeros(2))
