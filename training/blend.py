"""The blend: sources' scores brought to one scale and summed. The floor that a learned ranker must beat.

A candidate that a source did not return counts 0 there, which is also what the source's last candidate gets (minmax) or comes
close to (softmax, rank). The search for weights is `training.blend_search`'s.

Legend: `B` queries, `K` candidates, `S` sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.candidates import CandidateSet
from training.funnel_config import SourceBlend
from training.interactions import FloatArray

EPSILON = 1e-9
"""A spread of scores below this counts as none: such a source says nothing about its candidates."""


@dataclass(frozen=True)
class Blend:
    """Parts of the sources, in the order of `CandidateSet.sources`."""

    sources: tuple[str, ...]
    parts: tuple[SourceBlend, ...]

    def contributions(self, candidates: CandidateSet) -> FloatArray:
        """(B, K, S) float32: what each source adds to each candidate's score; they sum to `score`."""
        parts = [
            part.weight * normalised(candidates.score[:, :, s], candidates.rank[:, :, s], part) for s, part in enumerate(self.parts)
        ]
        return np.stack(parts, axis=2)

    def score(self, candidates: CandidateSet) -> FloatArray:
        """(B, K) float32, 0 or more; padding gets 0."""
        total = np.zeros(candidates.item_idx.shape, dtype=np.float32)
        for s, part in enumerate(self.parts):
            if part.weight > 0:
                total += part.weight * normalised(candidates.score[:, :, s], candidates.rank[:, :, s], part)
        return total

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they stand in a bundle."""
        return {name: part.model_dump() for name, part in zip(self.sources, self.parts, strict=True)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Blend:
        """Read what `to_json` gave."""
        return cls(tuple(raw), tuple(SourceBlend.model_validate(part) for part in raw.values()))


def equal_blend(sources: tuple[str, ...]) -> Blend:
    """Every source with weight one on the minmax scale."""
    return Blend(sources, tuple(SourceBlend() for _ in sources))


def normalised(score: FloatArray, rank: FloatArray, part: SourceBlend) -> FloatArray:
    """One source's scores between 0 and 1, best 1, raised to `part.power`; 0 where the source did not return the item.

    A query whose candidates all have the same score gets 0 throughout, except by rank.

    Shapes: score, rank (B, K) float32, NaN where absent -> (B, K) float32.
    """
    present = ~np.isnan(score)
    scaled: npt.NDArray[np.floating[Any]]
    if part.normalisation == "rank":
        scaled = part.temperature / (part.temperature + np.where(present, rank, np.inf))
    else:
        low = np.where(present, score, np.inf).min(axis=1, keepdims=True, initial=np.inf)
        high = np.where(present, score, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
        some = (high - low) > EPSILON  # False too where the source returned nothing: -inf - inf
        if part.normalisation == "minmax":
            scaled = np.where(present & some, (score - low) / np.where(some, high - low, 1.0), 0.0)
        else:
            count = np.maximum(present.sum(axis=1, keepdims=True), 1)
            mean = np.where(present, score, 0.0).sum(axis=1, keepdims=True) / count
            centred = np.where(present, score - mean, 0.0)
            spread = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
            steepness = 1.0 / (part.temperature * np.maximum(spread, EPSILON))
            scaled = np.where(present & some, np.exp(np.where(some, (score - high) * steepness, -np.inf)), 0.0)
    if part.power != 1.0:
        scaled = np.power(scaled, part.power)
    return scaled.astype(np.float32)
