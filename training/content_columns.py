"""What an item's attributes say, as columns that models can learn from: words, tags and numbers. No attribute is known by its name.

| attribute | becomes |
|---|---|
| text | words of the item's document; with few distinct values also a tag `name=value` |
| list of texts | a tag for each entry; a path `A > B > C` also one for each beginning |
| true or false, and whole numbers of two values | a tag where it is not zero |
| other numbers, times | a number, NaN where unknown |

Legend: `N` items, `T` tags, `F` numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from training.interactions import FloatArray

MAX_VALUES = 200
"""Distinct values up to which a text attribute is a choice, and its values are tags."""
MAX_TAGS = 50_000
"""Tags kept, the most frequent: bounds memory on catalogues whose lists hold free text."""
PATH_SEPARATOR = " > "


@dataclass(frozen=True)
class ContentColumns:
    """Attributes of items (or users) in three forms.

    Args:
        documents: N texts, empty where an item has none.
        tags: (N, T) float32 of zeros and ones.
        tag_names: T names.
        numbers: (N, F) float32, NaN where unknown.
        number_names: F names.
    """

    documents: list[str]
    tags: sp.csr_matrix
    tag_names: tuple[str, ...]
    numbers: FloatArray
    number_names: tuple[str, ...]


def content_columns(attributes: Mapping[str, npt.NDArray[np.generic]], count: int) -> ContentColumns:
    """Read all attributes.

    Args:
        attributes: name -> (N,) array, as in `TrainingData`.
        count: N, for the case of no attributes.
    """
    words: list[list[str]] = [[] for _ in range(count)]
    tags: list[list[str]] = [[] for _ in range(count)]
    numbers: dict[str, FloatArray] = {}
    for name in sorted(attributes):
        column = attributes[name]
        if column.dtype.kind == "O":
            _read_objects(name, column, words, tags)
        elif column.dtype.kind == "M":
            days = column.astype("datetime64[us]").astype(np.int64) / 86_400e6
            numbers[name] = np.where(np.isnat(column), np.nan, days).astype(np.float32)
        elif _is_flag(column):
            for row in np.flatnonzero(np.nan_to_num(column.astype(np.float64)) != 0):
                tags[row].append(f"{name}=yes")
        else:
            numbers[name] = column.astype(np.float32)
    matrix, names = _tag_matrix(tags)
    columns = list(numbers.values())
    return ContentColumns(
        documents=[". ".join(parts) for parts in words],
        tags=matrix,
        tag_names=names,
        numbers=np.column_stack(columns) if columns else np.empty((count, 0), dtype=np.float32),
        number_names=tuple(numbers),
    )


def _read_objects(name: str, column: npt.NDArray[np.generic], words: list[list[str]], tags: list[list[str]]) -> None:
    values = column.tolist()
    texts = [value for value in values if isinstance(value, str)]
    is_choice = 1 < len(set(texts)) <= min(MAX_VALUES, len(values) // 2)
    for row, value in enumerate(values):
        if isinstance(value, str):
            words[row].append(value)
            if is_choice:
                tags[row].append(f"{name}={value.strip().casefold()}")
        elif isinstance(value, bool):
            if value:
                tags[row].append(f"{name}=yes")
        elif isinstance(value, list | tuple | np.ndarray):
            for entry in value:
                tags[row].extend(_path_tags(name, str(entry)))


def _path_tags(name: str, entry: str) -> list[str]:
    parts = [part.strip().casefold() for part in entry.split(PATH_SEPARATOR)]
    return [f"{name}={PATH_SEPARATOR.join(parts[: depth + 1])}" for depth in range(len(parts))]


def _is_flag(column: npt.NDArray[np.generic]) -> bool:
    if column.dtype.kind == "b":
        return True
    found = np.unique(column[~np.isnan(column.astype(np.float64))])
    return len(found) <= 2 and bool(np.isin(found, (0, 1)).all())


def _tag_matrix(tags: list[list[str]]) -> tuple[sp.csr_matrix, tuple[str, ...]]:
    """Zeros and ones; a tag that one item alone has, or that all have, says nothing of other items."""
    from sklearn.feature_extraction.text import CountVectorizer  # here: replicas import this file and do without

    most = sum(1 for own in tags if own)
    counter = CountVectorizer(analyzer=set, min_df=2, max_features=MAX_TAGS, binary=True, dtype=np.float32)
    try:
        matrix = counter.fit_transform(tags).tocsr()
    except ValueError:  # nothing is left
        return sp.csr_matrix(np.empty((len(tags), 0), dtype=np.float32)), ()
    names = counter.get_feature_names_out()
    telling = np.asarray(matrix.sum(axis=0)).ravel() < most
    return matrix[:, telling].tocsr(), tuple(names[telling].tolist())
