"""Who meets which variant: a pure function of unit id and salts, the one splitter of the platform.

Four independent hashes, each with its own seed, so that no decision leaks into another: is the unit held out of all experiments;
which part of the layer does it fall into; does it take part (`traffic`); which variant. Raising `traffic` therefore adds units
and moves none. A missing or empty id is in no experiment.

Shapes: `B` ids, `V` variants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.errors import OverlapError, SpecError
from experiments.hashing import fnv1a32, hash_v2_from, hash_v2_many
from experiments.spec import ExperimentSpec, Unit, Variant

BucketRange = tuple[float, float]
Targeting = Callable[[Mapping[str, Any]], bool]
"""A compiled targeting expression: the request's context to whether it takes part."""

HOLDOUT_SEED = "holdout"
NOT_ASSIGNED = -1
"""Variant index of a unit that is not in the experiment."""


class Assignment(NamedTuple):
    """A unit's place in one experiment."""

    experiment: str
    variant: str
    unit: Unit
    unit_id: str
    model: str | None
    params: Mapping[str, Any] | None


def get_equal_weights(num_variants: int) -> tuple[float, ...]:
    """Equal weights that sum to 1; empty for none."""
    return (1.0 / num_variants,) * num_variants if num_variants > 0 else ()


def get_bucket_ranges(num_variants: int, coverage: float = 1.0, weights: Sequence[float] | None = None) -> tuple[BucketRange, ...]:
    """Half-open ranges of [0, 1), one a variant: range i starts at the sum of the weights before it, is `coverage * weight` long.

    Coverage is clipped to [0, 1]; weights of the wrong number, or that do not sum to 1 within 0.01, are replaced by equal ones.

    Source: GrowthBook SDK specification, `getBucketRanges`.
    """
    coverage = min(max(coverage, 0.0), 1.0)
    if weights is None or len(weights) != num_variants or not 0.99 <= sum(weights) <= 1.01:
        weights = get_equal_weights(num_variants)
    ranges, start = [], 0.0
    for weight in weights:
        ranges.append((start, start + coverage * weight))
        start += weight
    return tuple(ranges)


def choose_variation(n: float, ranges: Sequence[BucketRange]) -> int:
    """Index of the range that holds `n`, or -1. Source: GrowthBook SDK specification, `chooseVariation`."""
    for index, (start, end) in enumerate(ranges):
        if start <= n < end:
            return index
    return NOT_ASSIGNED


class Splitter:
    """One experiment, compiled: seeds hashed, ranges laid out. Immutable and safe to share between threads."""

    def __init__(self, spec: ExperimentSpec) -> None:
        self.spec = spec
        self._ranges = get_bucket_ranges(len(spec.variants), 1.0, spec.weights)
        self._traffic_seed, self._variant_seed = f"{spec.salt}:traffic", f"{spec.salt}:variant"
        # Units are looked up in the layer only where the experiment leaves a part of it to others.
        self._layer_seed = f"layer:{spec.effective_layer}" if spec.layer_range != (0.0, 1.0) else None
        self._traffic_state, self._variant_state = fnv1a32(self._traffic_seed), fnv1a32(self._variant_seed)
        self._holdout_state, self._layer_state = fnv1a32(HOLDOUT_SEED), fnv1a32(self._layer_seed or "")

    def variant(self, unit_id: str | None) -> Variant | None:
        """The variant of one unit, or None when it is not in the experiment. A few microseconds."""
        spec = self.spec
        if not unit_id or (spec.traffic < 1.0 and hash_v2_from(self._traffic_state, unit_id) >= spec.traffic):
            return None
        if spec.holdout and hash_v2_from(self._holdout_state, unit_id) < spec.holdout:
            return None
        if self._layer_seed is not None:
            start, end = spec.layer_range
            if not start <= hash_v2_from(self._layer_state, unit_id) < end:
                return None
        index = choose_variation(hash_v2_from(self._variant_state, unit_id), self._ranges)
        return None if index == NOT_ASSIGNED else spec.variants[index]

    def variant_indices(self, unit_ids: Sequence[str]) -> NDArray[np.int64]:
        """Column form of `variant`: index of the variant, or -1.

        Shapes: (B,) ids to (B,) int64.
        """
        spec = self.spec
        taking_part_B = np.fromiter((bool(unit_id) for unit_id in unit_ids), dtype=bool, count=len(unit_ids))
        taking_part_B &= hash_v2_many(self._traffic_seed, unit_ids) < spec.traffic
        taking_part_B &= hash_v2_many(HOLDOUT_SEED, unit_ids) >= spec.holdout
        if self._layer_seed is not None:
            layer_B = hash_v2_many(self._layer_seed, unit_ids)
            taking_part_B &= (spec.layer_range[0] <= layer_B) & (layer_B < spec.layer_range[1])
        ends_V = [end for _, end in self._ranges]
        variants_B = np.searchsorted(ends_V, hash_v2_many(self._variant_seed, unit_ids), side="right")
        return np.where(taking_part_B & (variants_B < len(ends_V)), variants_B, NOT_ASSIGNED)


def assign(spec: ExperimentSpec, unit_id: str | None) -> Assignment | None:
    """The assignment of one unit in one experiment, targeting aside; None when it is not in the experiment."""
    variant = Splitter(spec).variant(unit_id)
    return None if variant is None or unit_id is None else _assignment(spec, variant, unit_id)


class AssignmentPlan:
    """All running experiments, compiled once and asked at every request.

    Args:
        specs: the running experiments.
        compile_targeting: turns a `targeting` expression into a predicate over the request's context.

    Raises:
        OverlapError: two of them could both choose the model of one answer.
        SpecError: one has `targeting` and no compiler was given, or the compiler refuses it.
    """

    def __init__(self, specs: Sequence[ExperimentSpec], compile_targeting: Callable[[str], Targeting] | None = None) -> None:
        check_exclusive(specs)
        self._compiled: list[tuple[Splitter, Targeting | None]] = []
        for spec in specs:
            targeting: Targeting | None = None
            if spec.targeting is not None:
                if compile_targeting is None:
                    raise SpecError(f"experiment {spec.name!r} has targeting, which cannot be evaluated here", "targeting")
                targeting = compile_targeting(spec.targeting)
            self._compiled.append((Splitter(spec), targeting))

    def assign(
        self, user_id: str | None, session_id: str | None = None, context: Mapping[str, Any] | None = None
    ) -> list[Assignment]:
        """Assignments of one request, at most one of them with a model."""
        assigned = []
        for splitter, targeting in self._compiled:
            spec = splitter.spec
            unit_id = user_id if spec.unit == "user_id" else session_id
            variant = splitter.variant(unit_id)
            if variant is not None and unit_id is not None and (targeting is None or targeting(context or {})):
                assigned.append(_assignment(spec, variant, unit_id))
        return assigned


def check_exclusive(specs: Sequence[ExperimentSpec]) -> None:
    """Refuse experiments that could meet in one answer where they must not.

    Within a layer, ranges must not overlap. All experiments that choose the model must share one layer.

    Raises:
        OverlapError: names both experiments and the way out.
    """
    for index, one in enumerate(specs):
        for other in specs[:index]:
            if one.name == other.name:
                raise OverlapError(f"experiment {one.name!r} is there twice")
            same_layer = one.effective_layer is not None and one.effective_layer == other.effective_layer
            if one.chooses_model and other.chooses_model and not same_layer:
                raise OverlapError(
                    f"experiments {other.name!r} and {one.name!r} both choose the model, in layers {other.effective_layer!r} and "
                    f"{one.effective_layer!r}: give both the same layer and separate layer_range"
                )
            if not same_layer:
                continue
            if one.unit != other.unit:
                raise OverlapError(
                    f"experiments {other.name!r} and {one.name!r} share layer {one.effective_layer!r} but split by {other.unit} "
                    f"and {one.unit}: one request could fall into both; use one unit in a layer"
                )
            if max(one.layer_range[0], other.layer_range[0]) < min(one.layer_range[1], other.layer_range[1]):
                raise OverlapError(
                    f"experiments {other.name!r} and {one.name!r} overlap in layer {one.effective_layer!r}: layer_range "
                    f"{list(other.layer_range)} and {list(one.layer_range)}; stop one, or separate the ranges"
                )


def _assignment(spec: ExperimentSpec, variant: Variant, unit_id: str) -> Assignment:
    return Assignment(spec.name, variant.name, spec.unit, unit_id, variant.model, variant.params)
