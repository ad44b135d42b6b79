"""What follows from a report's numbers: one verdict with its reasons, by rules fixed in the experiment file before the start.

Owns the rules; the numbers are `experiments.report`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from experiments.inference import Estimate, NotEstimable
from experiments.metrics import Guardrail, Metric

Verdict = Literal["ship", "do_not_ship", "keep_running", "inconclusive", "blocked"]
GuardrailState = Literal["holds", "violated", "unclear"]


@dataclass(frozen=True)
class Decision:
    """The verdict, the variant to ship where there is one, and why."""

    verdict: Verdict
    reasons: tuple[str, ...]
    variant: str | None = None


@dataclass(frozen=True)
class TreatmentEvidence:
    """What speaks for and against one treatment: the primary's relative difference and the state of each guardrail."""

    variant: str
    primary: Estimate | NotEstimable
    guardrails: tuple[tuple[str, GuardrailState], ...]


def guardrail_state(
    guardrail: Guardrail,
    relative: Estimate | NotEstimable,
    absolute: Estimate | NotEstimable,
    control_mean: float,
    treatment_mean: float,
) -> GuardrailState:
    """Whether a treatment stays within the margin: `holds` and `violated` only when the whole interval is on that side.

    Where a variant has nothing at all there is no relative difference (none of a mean of 0, no spread around one): then the
    absolute one is held against the margin of the control's mean, so that a variant in which everything stopped is not "unclear".
    What should stay rare and happened in neither variant holds, though it has no interval.
    """
    found, margin = relative, guardrail.margin
    if isinstance(found, NotEstimable):
        found, margin = absolute, guardrail.margin * abs(control_mean)
    if isinstance(found, NotEstimable):
        return "holds" if guardrail.direction == "decrease" and control_mean == treatment_mean == 0 else "unclear"
    # Worsening is positive in what follows.
    worst, best = (-found.low, -found.high) if guardrail.direction == "increase" else (found.high, found.low)
    if worst <= margin:
        return "holds"
    return "violated" if best > margin else "unclear"


def is_better(metric: Metric, estimate: Estimate) -> bool | None:
    """True or False when the interval leaves out 0, None when it does not."""
    if estimate.low <= 0 <= estimate.high:
        return None
    return (estimate.low > 0) == (metric.direction == "increase")


def decide(
    primary: Metric,
    evidence: Sequence[TreatmentEvidence],
    *,
    ratio_mismatch: bool,
    fewest_units: int,
    minimum_units: int,
    final_look: bool,
    may_decide_early: bool,
) -> Decision:
    """Apply the rules, strictest first.

    Args:
        primary: the metric that decides.
        evidence: one entry a treatment.
        ratio_mismatch: the split is not what it should be.
        fewest_units: units of the smallest variant.
        minimum_units: that a variant needs before any verdict.
        final_look: the planned length is over, or the experiment was stopped.
        may_decide_early: intervals are valid at every look.
    """
    if ratio_mismatch:
        return Decision(
            "blocked", ("sample ratio mismatch: units are not split as the weights say; find the cause and start anew",)
        )
    if fewest_units < minimum_units:
        return Decision(
            "keep_running", (f"the smallest variant has {fewest_units} units, minimum_exposures asks for {minimum_units}",)
        )
    if not (final_look or may_decide_early):
        return Decision("keep_running", ("a fixed-horizon test is read once, at its end",))
    winners, reasons = list[tuple[float, str]](), list[str]()
    losers = 0
    for one in evidence:
        state, reason = _judge(primary, one)
        reasons.append(f"{one.variant}: {reason}")
        losers += state == "worse"
        if state == "better" and isinstance(one.primary, Estimate):
            winners.append((abs(one.primary.point), one.variant))
    if winners:
        return Decision("ship", tuple(reasons), max(winners)[1])
    if losers == len(evidence):
        return Decision("do_not_ship", tuple(reasons))
    return Decision("inconclusive" if final_look else "keep_running", tuple(reasons))


def _judge(primary: Metric, one: TreatmentEvidence) -> tuple[Literal["better", "worse", "open"], str]:
    violated = [name for name, state in one.guardrails if state == "violated"]
    if violated:
        return "worse", f"guardrail {', '.join(violated)} is violated"
    if isinstance(one.primary, NotEstimable):
        return "open", f"{primary.name} cannot be estimated: {one.primary.reason}"
    better = is_better(primary, one.primary)
    if better is None:
        return "open", f"{primary.name} shows no difference yet"
    if not better:
        return "worse", f"{primary.name} is worse"
    unclear = [name for name, state in one.guardrails if state == "unclear"]
    if unclear:
        return "open", f"{primary.name} is better, but guardrail {', '.join(unclear)} is not settled"
    return "better", f"{primary.name} is better and every guardrail holds"
