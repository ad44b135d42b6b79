"""A request with everything that applies to it beside itself: its placement's defaults, the rules that hold, variants' parameters.

What an answer then does with it is `answers`'. Values that each request makes anew are plain dataclasses, here and in the modules
of lists and answers: a frozen one takes four times as long to make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from experiments.assignment import Assignment
from serving.errors import RequestError, blaming
from serving.item_table import ItemTable
from serving.placements import NO_PLACEMENT, Exploration, Placement
from serving.request_values import body_seen
from serving.rules import RuleBook, RulePlan
from serving.schemas import RecommendationRequest, Selection
from serving.slate import Wish
from training.interactions import FloatArray, IntArray


@dataclass(slots=True)
class Asked:
    """A resolved request.

    Args:
        request: as it came, with its variants' parameters.
        top_k: items of the answer.
        selection: the request's own, the placement's filter and the rules' includes, excludes and caps of none.
        diversity: 0 to 1.
        rules: that hold.
        exploration: of the placement.
    """

    request: RecommendationRequest
    top_k: int
    selection: Selection
    diversity: float
    rules: RulePlan
    exploration: Exploration | None

    def wish(self, items: ItemTable, vectors: FloatArray | None) -> Wish:
        """The same for one version's items."""
        boosts, candidates = self.request.boost, self.candidates(items)
        return Wish(self.top_k, self.selection, self.excluded(items), candidates, boosts, self.diversity, self.rules, vectors)

    def candidates(self, items: ItemTable) -> IntArray | None:
        """Rows of the request's own candidates; None where it has none."""
        return None if self.request.candidates is None else items.rows(self.request.candidates)

    def excluded(self, items: ItemTable) -> IntArray | None:
        """Rows of what the request excludes and of the items of earlier pages; None where there is nothing of the kind."""
        exclude, shown = self.request.exclude, self.request.shown
        if not (exclude or len(shown)):
            return None
        return np.concatenate([items.rows(exclude), items.rows_of_hashes(shown)]).astype(np.int32)

    def check(self, items: ItemTable) -> None:
        """Check that the items can be chosen and boosted as asked.

        Raises:
            FilterError: the filter or a boost does not fit the items' attributes; `field` says which.
        """
        items.matches(self.selection)
        if self.request.boost:
            with blaming("boost"):
                for expression, _ in self.request.boost:
                    items.matching(expression)

    def excluded_ids(self, items: ItemTable) -> tuple[str, ...]:
        """Ids of what the request excludes and of the items of earlier pages."""
        shown = self.request.shown
        if not len(shown):
            return self.request.exclude
        return (*self.request.exclude, *items.item_ids[items.rows_of_hashes(shown)].tolist())


def resolved(
    request: RecommendationRequest,
    placements: Mapping[str, Placement],
    rules: RuleBook,
    assignments: Sequence[Assignment],
    now: float,
) -> Asked:
    """A request with what applies to it.

    Args:
        request: as it came.
        placements: of the settings, by name.
        rules: of the dataset.
        assignments: variants whose parameters change the request.
        now: seconds since the epoch.

    Raises:
        RequestError: there is no such placement.
    """
    request = _with_params(request, assignments)
    placement = NO_PLACEMENT
    if request.placement is not None:
        found = placements.get(request.placement)
        if found is None:
            known = ", ".join(sorted(placements)) or "none; they are tables [serve.placements.NAME] of the settings"
            raise RequestError(f"there is no placement {request.placement!r}; there are: {known}", field="placement")
        placement = found
    plan = rules.plan(request.placement, _context(request), now, placement.rules)
    selection = request.selection
    if placement.filter is not None or plan.required or plan.barred or plan.capped:
        category, region, language, own, required, _, _ = selection
        placed = () if placement.filter is None else (placement.filter,)
        capped = tuple((attribute, None, counting) for attribute, counting in plan.capped)
        selection = Selection(category, region, language, own, required + placed + plan.required, plan.barred, capped)
    return Asked(
        request=request,
        top_k=placement.top_k if request.top_k is None else request.top_k,
        selection=selection,
        diversity=placement.diversity if request.diversity is None else request.diversity,
        rules=plan,
        exploration=placement.exploration,
    )


def _context(request: RecommendationRequest) -> Mapping[str, Any]:
    """What conditions of rules read: the context, and region and language where only the parameters name them."""
    wanted = request.selection
    if not wanted.region and not wanted.language:
        return request.context
    named = {name: words[0] for name, words in (("region", wanted.region), ("language", wanted.language)) if words}
    return {**named, **request.context}


def _with_params(request: RecommendationRequest, assignments: Sequence[Assignment]) -> RecommendationRequest:
    """The request as its variants' parameters (`live_state.VARIANT_PARAMS`) want it."""
    for one in assignments:
        if one.params:
            selection = request.selection
            if "filter" in one.params:
                selection = selection._replace(required=(*selection.required, one.params["filter"]))
            seen = request.seen
            if "exclude_seen" in one.params:
                seen = body_seen(one.params["exclude_seen"])
            request = replace(request, selection=selection, seen=seen)
    return request
