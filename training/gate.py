"""The gate: may a candidate version take the champion's place? Compares validation metrics of both, taken before any refit.

Owns the rule. Where the metrics are kept is `training.tracking`'s, who is champion `training.registry`'s.

The rule (per metric, over users that both were validated on, paired by user):
    fail  the upper end of the 95 % bootstrap interval of candidate - champion is below -`tolerance` of the champion's mean
          (it is worse, beyond doubt and by more than a trifle), or the mean difference is below -`margin` of it.
    pass  otherwise.
The same with `segment_margin` for users with short histories, so that a gain on regulars does not pay for newcomers. A plain
non-inferiority test (lower end above -margin) is not used: with 943 users two equal models fail it more often than not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from training.bootstrap import paired_difference

Verdict = Literal["pass", "fail", "first"]


@dataclass(frozen=True)
class GateRule:
    """Limits of the gate, as shares of the champion's mean.

    Args:
        metric: compared; higher is better.
        tolerance: a certain loss up to this is none.
        margin: a mean loss beyond this fails, certain or not.
        segment_margin: as `margin`, for the segment of short histories.
        short_history: users with at most this many interactions form the segment.
        segment_users: the segment counts from this many users on.
    """

    metric: str = "ndcg@10"
    tolerance: float = 0.01
    margin: float = 0.10
    segment_margin: float = 0.25
    short_history: int = 10
    segment_users: int = 50


@dataclass(frozen=True)
class Validated:
    """What a version's study found on validation.

    Args:
        dataset, protocol: of the study.
        per_user: `user_id`, `history_length` and the metric, one row a user.
        name: for messages, such as `version 3`.
    """

    dataset: str
    protocol: str
    per_user: pd.DataFrame
    name: str


@dataclass(frozen=True)
class GateDecision:
    """The verdict and why, one line each."""

    verdict: Verdict
    reasons: tuple[str, ...]

    @property
    def reason(self) -> str:
        """All reasons in one line."""
        return "; ".join(self.reasons)


def decide(candidate: Validated, champion: Validated | None, rule: GateRule | None = None) -> GateDecision:
    """The gate's verdict on `candidate`.

    Args:
        candidate: the version that asks.
        champion: the version in place, None where there is none.
        rule: limits; the defaults where None.
    """
    rule = rule or GateRule()
    if champion is None:
        return GateDecision("first", ("no champion to compare with",))
    if candidate.dataset != champion.dataset:
        return GateDecision("fail", (f"it was trained on dataset {candidate.dataset!r}, the champion on {champion.dataset!r}",))
    if candidate.protocol != champion.protocol:
        return GateDecision(
            "fail",
            (
                f"not comparable: validated by {candidate.protocol}, {champion.name} by {champion.protocol}; "
                f"run its study with protocol {champion.protocol}",
            ),
        )
    both = candidate.per_user.merge(champion.per_user, on="user_id", suffixes=("", "_champion"))
    if len(both) < max(2, len(champion.per_user) // 2):
        return GateDecision(
            "fail",
            (
                f"not comparable: only {len(both)} of the {len(champion.per_user)} users that {champion.name} was validated on are "
                "among the candidate's; run the champion's study again on today's data",
            ),
        )
    everyone, worse = _compare("all users", both, rule, rule.margin)
    reasons, failed = [everyone], worse
    short = both[both["history_length"] <= rule.short_history]
    if len(short) >= rule.segment_users:
        segment, worse = _compare(f"users with {rule.short_history} interactions or fewer", short, rule, rule.segment_margin)
        reasons.append(segment)
        failed = failed or worse
    return GateDecision("fail" if failed else "pass", tuple(reasons))


def _compare(who: str, both: pd.DataFrame, rule: GateRule, margin: float) -> tuple[str, bool]:
    mine = both[rule.metric].to_numpy(dtype=np.float64)
    theirs = both[f"{rule.metric}_champion"].to_numpy(dtype=np.float64)
    found = paired_difference(rule.metric, mine, theirs)
    mean = float(theirs.mean())
    surely_worse = found.ci95[1] < -rule.tolerance * mean
    far_below = found.difference < -margin * mean
    low, high = found.ci95
    text = (
        f"{rule.metric} {mine.mean():.4f} against {mean:.4f} for {who} (difference {found.difference:+z.4f}, 95 % interval "
        f"{low:+z.4f} to {high:+z.4f}, {found.users} users)"
    )
    if surely_worse:
        text += f": worse beyond the tolerance of {rule.tolerance:.0%}"
    elif far_below:
        text += f": below the margin of {margin:.0%}"
    return text, surely_worse or far_below
