"""What the end of a limited search goes to: more members of a source's best trial, not one more trial that may be no better.

A model whose `members_parameter` averages fits of different seeds gains with every member, surely though ever less; a search gains
by luck. So ordinary trials go on while they leave time for some members and their refit, and then the best one gets them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.budget import Budget, refit_seconds
from training.models.registry import MODELS
from training.study import Study
from training.trial_log import TrialRecord

WANTED = 3
"""Members that ordinary trials leave time for: three averaged networks gained 3.7 % of NDCG on one where it was measured."""
MOST = 4


def with_members(
    source: str,
    study: Study,
    records: Sequence[TrialRecord],
    best: Mapping[str, TrialRecord],
    budget: Budget,
    now: float,
    *,
    over: bool,
) -> dict[str, Any] | None:
    """Configuration of a last trial of a source, its best one with more members; None where it is too early, too late or of no use.

    Args:
        source: whose trial.
        study: the study.
        records: its trials so far.
        best: the best of them.
        budget: of the call; without a limit a study says itself how many members it wants.
        now: `time.time()`.
        over: whether the source has no ordinary trial left.
    """
    record = best.get(source)
    if record is None or budget.minutes is None or "epoch_seconds" not in record.metrics:
        return None
    parameter = MODELS[record.model].members_parameter
    if parameter is None or any(members(one, parameter) > 1 for one in records if one.source == source):
        return None
    left = budget.left_for(source, study, best, now)
    one = refit_seconds(record) * (1.0 + budget.refit_share)
    if not over and left - record.seconds >= WANTED * one:
        return None
    count = min(MOST, int(left / max(one, 1e-9)))
    return {**record.config, parameter: count} if count > 1 else None


def members(record: TrialRecord, parameter: str) -> int:
    """How many members a trial had."""
    return int(getattr(MODELS[record.model].Config.model_validate(record.config), parameter))
