"""Feature views of one's own: columns computed from the rows of a base view. Free of Feast.

One entry in `OWN_VIEWS` is all there is to write. Wherever a row of the base view is made, this view's row is computed from it: in
the batch tables, in training just before each label, when live events are pushed, and in serving where there is only a history.
So the values are the same everywhere, and none is stored that the base row of the same moment does not give.

An example, of what a title says::

    def _wording(rows: pa.Table) -> dict[str, pa.ChunkedArray]:
        return {"wording_letters": pc.utf8_length(rows["metadata_title"])}

    OWN_VIEWS = (
        OwnView(
            "item_wording",
            ITEM_METADATA,
            (FeatureSpec("wording_letters", "integer", "letters", "Letters of the title."),),
            _wording,
            "How an item is named.",
            needs=("metadata_title",),
        ),
    )
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from feature_repo.specs import ITEM_ACTIVITY, ITEM_METADATA, USER_ACTIVITY, USER_ACTIVITY_SPECS, FeatureSpec

BASES = (USER_ACTIVITY, ITEM_ACTIVITY, ITEM_METADATA)
"""Views whose rows others may be computed from: those that rankers read."""


@dataclass(frozen=True)
class OwnView:
    """One view.

    Args:
        name: of the view, and of its table.
        base: view whose rows it is computed from, one of `BASES`.
        specs: its features. Their names are unique over all views.
        compute: (rows,) -> name -> array as long as `rows`, for each of `specs`. `rows` has the id and the columns of the base,
            null where a value is missing. Each value may depend on its own row alone: rows come in blocks of any size, none too.
        description: one sentence.
        needs: columns of the base that `compute` reads; a dataset that lacks one does not have the view.

    Raises:
        ValueError: another base.
    """

    name: str
    base: str
    specs: tuple[FeatureSpec, ...]
    compute: Callable[[pa.Table], Mapping[str, Any]]
    description: str
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.base not in BASES:
            raise ValueError(f"view {self.name!r} is based on {self.base!r}; allowed: {', '.join(BASES)}")

    @property
    def side(self) -> str:
        """`user` or `item`."""
        return "user" if self.base == USER_ACTIVITY else "item"


OWN_VIEWS: tuple[OwnView, ...] = ()
"""All of them."""


def own_views(base: str, columns: Collection[str]) -> tuple[OwnView, ...]:
    """Those on `base` for a dataset in which it has these columns; without any column there is no base, so none."""
    return tuple(view for view in OWN_VIEWS if view.base == base and columns and set(view.needs) <= set(columns))


def own_user_specs() -> tuple[FeatureSpec, ...]:
    """Features of users that are computed from `user_activity`, which every dataset has."""
    columns = {spec.name for spec in USER_ACTIVITY_SPECS}
    return tuple(spec for view in own_views(USER_ACTIVITY, columns) for spec in view.specs)
