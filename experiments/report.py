"""The report of one experiment: who was exposed, whether the split is sound, what each metric shows, and what to do.

Pure: tables in, a `Report` out. The primary metric's error rate is shared out among treatments (Bonferroni), secondary metrics are
Holm-corrected, guardrails are read at the primary's level.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from experiments.decision import Decision, GuardrailState, TreatmentEvidence, decide, guardrail_state
from experiments.inference import Difference, Estimate, NotEstimable, anytime, holm, welch
from experiments.metrics import Guardrail, Metric
from experiments.outcomes import Outcomes, compute_outcomes
from experiments.spec import ExperimentSpec
from experiments.srm import RatioCheck, check_ratio
from experiments.summary import Statistic, summarize

Role = Literal["primary", "secondary", "guardrail"]


@dataclass(frozen=True)
class VariantCounts:
    """Units and answers of one variant."""

    name: str
    model: str | None
    weight: float
    units: int
    exposures: int


@dataclass(frozen=True)
class Comparison:
    """One treatment against the control in one metric. `adjusted_p_value` is Holm's, of secondary metrics alone."""

    variant: str
    absolute: Estimate | NotEstimable
    relative: Estimate | NotEstimable
    adjusted_p_value: float | None = None
    guardrail: GuardrailState | None = None


@dataclass(frozen=True)
class MetricReport:
    """One metric: its mean a variant (None without data) and its comparisons."""

    name: str
    role: Role
    kind: str
    direction: str
    means: dict[str, float | None]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Report:
    """Everything that is known about an experiment at one time."""

    experiment: str
    unit: str
    as_of: datetime
    started_at: datetime | None
    intervals: Literal["anytime-valid", "fixed-horizon"]
    alpha: float
    variants: tuple[VariantCounts, ...]
    complete_windows: float | None
    ratio: RatioCheck | NotEstimable
    metrics: tuple[MetricReport, ...]
    decision: Decision
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; what could not be estimated is `{"reason": ...}`."""
        result = asdict(self)
        result["as_of"] = self.as_of.isoformat()
        result["started_at"] = self.started_at.isoformat() if self.started_at else None
        if isinstance(self.ratio, RatioCheck):
            result["ratio"]["mismatch"] = self.ratio.mismatch
        return result


def build_report(
    spec: ExperimentSpec,
    exposures: pa.Table,
    events: pa.Table,
    *,
    now: datetime,
    started_at: datetime | None = None,
    stopped: bool = False,
) -> Report:
    """Report on an experiment.

    Args:
        spec: the experiment.
        exposures, events: as `outcomes.compute_outcomes`.
        now: until when the tables are complete.
        started_at: of the experiment; with the horizon it says when the last look is.
        stopped: whether the experiment has ended.
    """
    outcomes = compute_outcomes(spec, exposures, events, now)
    masks = [outcomes.variant == index for index in range(len(spec.variants))]
    units = [int(mask.sum()) for mask in masks]
    ratio = check_ratio(units, spec.weights)
    metrics = [_metric_report(spec, metric, outcomes, masks) for metric in spec.metrics.all]
    metrics = _holm_adjusted(metrics)
    used = [count for count, weight in zip(units, spec.weights, strict=True) if weight > 0]
    final_look = stopped or (started_at is not None and now >= started_at + timedelta(days=spec.decision.horizon_days))
    decision = decide(
        spec.metrics.primary,
        _evidence(metrics),
        ratio_mismatch=isinstance(ratio, RatioCheck) and ratio.mismatch,
        fewest_units=min(used),
        minimum_units=spec.decision.minimum_exposures,
        final_look=final_look,
        may_decide_early=spec.decision.sequential,
    )
    return Report(
        experiment=spec.name,
        unit=spec.unit,
        as_of=now,
        started_at=started_at,
        intervals="anytime-valid" if spec.decision.sequential else "fixed-horizon",
        alpha=spec.decision.alpha,
        variants=tuple(
            VariantCounts(variant.name, variant.model, weight, count, int(outcomes.exposures[mask].sum()))
            for variant, weight, count, mask in zip(spec.variants, spec.weights, units, masks, strict=True)
        ),
        complete_windows=float(outcomes.complete.mean()) if len(outcomes.complete) else None,
        ratio=ratio,
        metrics=tuple(metrics),
        decision=decision,
        notes=_notes(spec, outcomes, decision, final_look),
    )


def _metric_report(spec: ExperimentSpec, metric: Metric, outcomes: Outcomes, masks: list[np.ndarray]) -> MetricReport:
    columns = outcomes.metrics[metric.name]
    statistics = [
        summarize(metric, columns.numerator[mask], None if columns.denominator is None else columns.denominator[mask])
        for mask in masks
    ]
    comparisons = []
    for variant, weight, statistic in list(zip(spec.variants, spec.weights, statistics, strict=True))[1:]:
        if weight > 0:
            relative = _estimate(spec, statistics[0], statistic, "relative")
            absolute = _estimate(spec, statistics[0], statistic, "absolute")
            both = statistics[0].mean, statistic.mean
            state = guardrail_state(metric, relative, absolute, *both) if isinstance(metric, Guardrail) else None
            comparisons.append(Comparison(variant.name, absolute, relative, None, state))
    role: Role = "guardrail" if isinstance(metric, Guardrail) else "primary" if metric == spec.metrics.primary else "secondary"
    means = {variant.name: None if np.isnan(one.mean) else one.mean for variant, one in zip(spec.variants, statistics, strict=True)}
    return MetricReport(metric.name, role, metric.kind, metric.direction, means, tuple(comparisons))


def _estimate(spec: ExperimentSpec, control: Statistic, treatment: Statistic, difference: Difference) -> Estimate | NotEstimable:
    treatments = sum(weight > 0 for weight in spec.weights) - 1
    alpha = spec.decision.alpha / treatments
    if spec.decision.sequential:
        return anytime(control, treatment, alpha=alpha, difference=difference, tuning_units=spec.decision.tuning_units)
    return welch(control, treatment, alpha=alpha, difference=difference)


def _holm_adjusted(metrics: list[MetricReport]) -> list[MetricReport]:
    """The reports with Holm's p-values in the secondary metrics, over all of their comparisons together."""
    tests = [
        comparison.absolute.p_value
        for metric in metrics
        if metric.role == "secondary"
        for comparison in metric.comparisons
        if isinstance(comparison.absolute, Estimate)
    ]
    adjusted = iter(holm(tests))

    def with_adjusted(comparison: Comparison) -> Comparison:
        return replace(comparison, adjusted_p_value=next(adjusted) if isinstance(comparison.absolute, Estimate) else None)

    return [
        replace(metric, comparisons=tuple(map(with_adjusted, metric.comparisons))) if metric.role == "secondary" else metric
        for metric in metrics
    ]


def _evidence(metrics: list[MetricReport]) -> list[TreatmentEvidence]:
    """The primary is judged on the absolute scale: it needs no control mean above 0, and its test is the sharper one."""
    guardrails = [metric for metric in metrics if metric.role == "guardrail"]
    evidence = []
    for place, comparison in enumerate(metrics[0].comparisons):
        states = tuple((metric.name, metric.comparisons[place].guardrail or "unclear") for metric in guardrails)
        evidence.append(TreatmentEvidence(comparison.variant, comparison.absolute, states))
    return evidence


def _notes(spec: ExperimentSpec, outcomes: Outcomes, decision: Decision, final_look: bool) -> tuple[str, ...]:
    notes = []
    if outcomes.mixed_units:
        notes.append(f"{outcomes.mixed_units} units met more than one variant and are left out; was the salt used before?")
    if outcomes.unknown_variants:
        notes.append(f"{outcomes.unknown_variants} units have a variant that the file does not name and are left out")
    if len(outcomes.complete) and not outcomes.complete.all():
        share = 1 - outcomes.complete.mean()
        notes.append(
            f"{share:.0%} of the units are still within their {spec.decision.horizon_days:g} days: late outcomes will be added"
        )
    if decision.verdict == "ship" and spec.decision.sequential and not final_look:
        notes.append("stopping at the first crossing overstates the effect: expect a smaller one")
    return tuple(notes)
