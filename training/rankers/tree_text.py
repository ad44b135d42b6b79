"""LightGBM's text format read into arrays, strictly: LightGBM's own parser ends the process on a number that it cannot read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

CATEGORICAL, DEFAULT_LEFT = 1, 2
"""Bits of a split's `decision_type`; the two above them say what counts as missing."""
MISSING_SHIFT, MISSING_MASK = 2, 3
MISSING_NONE, MISSING_NAN = 0, 2
END_OF_TREES = "end of trees"


@dataclass(frozen=True)
class Tree:
    """One tree of L leaves, of L - 1 splits; a row goes left where its feature is at most the threshold.

    Shapes: leaf_value (L,) float64; feature (L - 1,) int64; threshold (L - 1,) float64, infinite for a split between missing
    values and all others; nan_left (L - 1,) bool, where a missing value goes; left, right (L - 1,) int64, a split's row or `~leaf`.
    """

    leaf_value: npt.NDArray[np.float64]
    feature: npt.NDArray[np.int64]
    threshold: npt.NDArray[np.float64]
    nan_left: npt.NDArray[np.bool_]
    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]


def read_trees(text: str) -> tuple[tuple[str, ...], list[Tree]]:
    """Names of the features, and the trees, of a model that LightGBM saved as text.

    Raises:
        ValueError: a part is missing, cut short, not a number, infinite or NaN, or is not of a plain numerical tree.
    """
    head, *blocks = text.split("\nTree=")
    header = _fields(head)
    names = tuple(header.get("feature_names", "").split())
    if not blocks or END_OF_TREES not in blocks[-1]:
        raise ValueError("it holds no trees, or not all of them")
    blocks[-1] = blocks[-1].split(END_OF_TREES)[0]
    if len(header.get("tree_sizes", "").split()) != len(blocks):
        raise ValueError("it does not hold as many trees as it says")
    return names, [_tree(_fields(block), len(names)) for block in blocks]


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in block.splitlines())
    return {key: value for key, _, value in pairs if value}


def _tree(fields: dict[str, str], features: int) -> Tree:
    if fields.get("num_cat", "0") != "0" or fields.get("is_linear", "0") != "0":
        raise ValueError("a tree has splits by category or linear leaves, which Shortlist does not train")
    leaves = int(fields.get("num_leaves", "0"))
    splits = leaves - 1
    leaf_value, threshold = _array(fields, "leaf_value", leaves, np.float64), _array(fields, "threshold", splits, np.float64)
    feature, decision = _array(fields, "split_feature", splits, np.int64), _array(fields, "decision_type", splits, np.int64)
    left, right = _array(fields, "left_child", splits, np.int64), _array(fields, "right_child", splits, np.int64)
    if not np.isfinite(leaf_value).all() or np.isnan(threshold).any():
        raise ValueError("it holds NaN or infinite weights")
    if splits and not 0 <= feature.min() <= feature.max() < features:
        raise ValueError("a split names a feature that the model does not have")
    reached = np.sort(np.concatenate([left, right]))
    # Every leaf (negative) and every split but the root hangs from one split: leaf numbers end at ~(leaves - 1), splits begin at 1.
    if splits and not np.array_equal(reached, np.concatenate([np.arange(-leaves, 0), np.arange(1, splits)])):
        raise ValueError("the splits of a tree do not make a tree")
    missing = (decision >> MISSING_SHIFT) & MISSING_MASK
    if (decision & CATEGORICAL).any() or not np.isin(missing, (MISSING_NONE, MISSING_NAN)).all():
        raise ValueError("a tree has splits of a kind that Shortlist does not train")
    # Where training saw no missing value, LightGBM takes one for 0.
    nan_left = np.where(missing == MISSING_NAN, (decision & DEFAULT_LEFT) > 0, threshold >= 0.0)
    return Tree(leaf_value, feature, threshold, nan_left, left, right)


def _array(fields: dict[str, str], key: str, length: int, dtype: Any) -> npt.NDArray[Any]:
    values = np.array(fields.get(key, "").split(), dtype=dtype)
    if length < 0 or len(values) != length:
        raise ValueError(f"a tree has {len(values)} of {key} where {max(length, 0)} are due")
    return values
