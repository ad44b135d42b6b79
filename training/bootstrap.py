"""Intervals over users by the bootstrap. Owns resampling; what is averaged is the caller's.

Legend: `U` users, `M` metrics, `R` resamples.

Users are drawn with replacement and the mean is taken anew: the percentile interval (Efron 1979). The users are the sample; a
model's own randomness and the choice of the dataset are not in the interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PairedComparison:
    """Difference of two systems on the same users.

    Args:
        metric: what was compared.
        difference: mean of a minus mean of b.
        ci95: percentile interval of the difference.
        p: two-sided; the smallest value that R resamples can show is 2 / (R + 1).
        users: number of users compared.
    """

    metric: str
    difference: float
    ci95: tuple[float, float]
    p: float
    users: int


def resampled_means(values: DoubleArray, resamples: int = 1000, seed: int = 0) -> DoubleArray:
    """(R, M) float64: the means of (U, M) `values` over R samples of U users drawn with replacement.

    Works in blocks of resamples, so memory is bounded by 64 MB of counts.
    """
    num_users = len(values)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    block = max(1, min(resamples, 8_000_000 // max(num_users, 1)))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        counts = np.empty((size, num_users))
        for row in range(size):
            counts[row] = np.bincount(rng.integers(0, num_users, num_users), minlength=num_users)
        means[start : start + size] = counts @ values / num_users
    return means


def ci95(values: DoubleArray, resamples: int = 1000, seed: int = 0) -> DoubleArray:
    """(M, 2) float64: 2.5 and 97.5 percentiles of the resampled means of (U, M) `values`."""
    return np.percentile(resampled_means(values, resamples, seed), [2.5, 97.5], axis=0).T


def paired_difference(metric: str, a: DoubleArray, b: DoubleArray, resamples: int = 2000, seed: int = 0) -> PairedComparison:
    """Compare two systems by the bootstrap of the users' differences.

    p = 2 min(share of resampled differences <= 0, share >= 0), with one added to counts and resamples (Davison and Hinkley 1997).

    Args:
        metric: name, for the report.
        a, b: (U,) the metric of the same users in the same order.

    Raises:
        ValueError: the lengths differ or there is no user.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"a paired comparison needs the same users on both sides: got {len(a)} and {len(b)}")
    difference = np.asarray(a - b, dtype=np.float64)
    means = resampled_means(difference[:, None], resamples, seed)[:, 0]
    low, high = np.percentile(means, [2.5, 97.5])
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (resamples + 1))
    return PairedComparison(metric, float(difference.mean()), (float(low), float(high)), p, len(a))
