"""Reports and plans of experiments as commands show them: read from this home's data, and rendered for a terminal."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from experiments.power import minimum_detectable_effect, sample_size
from experiments.report import Report, build_report
from experiments.spec import ExperimentSpec
from features.control_store import ControlStore
from serving.control import ServingControl
from serving.experiment_tables import events_of, exposures_of
from shortlist.commands.console import CommandError
from shortlist.settings import Settings

VERDICT_STYLES = {"ship": "bold green", "do_not_ship": "bold red", "blocked": "bold red"}


def local_report(settings: Settings, dataset: str, name: str) -> Report:
    """The report of an experiment from control store, exposure log and activity store of this home.

    Raises:
        CommandError: there is no such experiment.
    """
    paths = settings.paths(dataset)
    control = ServingControl(ControlStore(settings.control_url).create(), dataset)
    record = control.experiment(name)
    if record is None:
        known = ", ".join(one.spec.name for one in control.experiments()) or "none"
        raise CommandError(f"no experiment {name!r} in dataset {dataset!r}; there are: {known}")
    exposures, events = exposures_of(paths, record), events_of(paths, record)
    stopped = record.status == "stopped"
    return build_report(record.spec, exposures, events, now=datetime.now(UTC), started_at=record.started_at, stopped=stopped)


def render(report: dict[str, Any]) -> RenderableType:
    """A report (`Report.to_dict`) as tables and a verdict."""
    units = Table("variant", "model", "weight", "units", "answers", title=f"{report['experiment']} as of {report['as_of'][:16]}")
    for variant in report["variants"]:
        row = (
            variant["name"],
            variant["model"] or "",
            f"{variant['weight']:.1%}",
            f"{variant['units']:,}",
            f"{variant['exposures']:,}",
        )
        units.add_row(*row)
    metrics = Table("metric", "variant", "mean", "against control", "p", title=f"{report['intervals']} intervals")
    for metric in report["metrics"]:
        control, *_ = metric["means"]
        metrics.add_row(f"{metric['name']} ({metric['role']})", control, _number(metric["means"][control]), "", "")
        for one in metric["comparisons"]:
            p_value = one["adjusted_p_value"] if one["adjusted_p_value"] is not None else one["absolute"].get("p_value")
            notes = [note for note in (one["guardrail"], "Holm" if one["adjusted_p_value"] is not None else None) if note]
            shown = " ".join([_number(p_value), *(f"({note})" for note in notes)])
            metrics.add_row("", one["variant"], _number(metric["means"][one["variant"]]), _difference(one), shown.strip())
    ratio, decision = report["ratio"], report["decision"]
    split = ratio["reason"] if "reason" in ratio else f"p = {ratio['p_value']:.3g}" + (" MISMATCH" if ratio["mismatch"] else "")
    style = VERDICT_STYLES.get(decision["verdict"], "bold yellow")
    verdict = f"[{style}]{decision['verdict']}[/]" + (f" {decision['variant']}" if decision["variant"] else "")
    lines = [f"sample ratio: {split}", *(f"note: {note}" for note in report["notes"]), f"verdict: {verdict}"]
    return Group(units, metrics, *lines, *(f"  {reason}" for reason in decision["reasons"]))


def plan_power(
    spec: ExperimentSpec, *, baseline: float, lift: float, std: float | None, power: float, units_per_day: float | None
) -> dict[str, Any]:
    """Units and days that an experiment needs to find a relative lift of its primary metric.

    Args:
        baseline: mean of the primary metric in the control.
        lift: relative.
        std: of one unit; may be left out for proportions.
        units_per_day: new units before traffic, holdout and layer.

    Raises:
        CommandError: a standard deviation is needed, or a number is out of range.
        ExperimentError: as `experiments.power`.
    """
    metric, decision = spec.metrics.primary, spec.decision
    if std is None:
        if metric.kind != "proportion":
            raise CommandError(
                f"the primary metric {metric.name!r} is a {metric.kind}: give the standard deviation of a unit with --std"
            )
        if not 0 < baseline < 1:
            raise CommandError(f"--baseline {baseline} of a proportion must be between 0 and 1")
        if not 0 <= baseline * (1 + lift) <= 1:
            raise CommandError(f"--lift {lift} of {baseline:g} makes {baseline * (1 + lift):g}, which no proportion can be")
        std = math.sqrt(baseline * (1 - baseline))
    treatments = [weight for weight in spec.weights[1:] if weight > 0]
    pair = (spec.weights[0], min(treatments))
    options: dict[str, Any] = {"weights": pair, "alpha": decision.alpha / len(treatments), "power": power}
    tuned = {**options, "tuning_units": decision.tuning_units}
    chosen = tuned if decision.sequential else options

    def units(how: dict[str, Any]) -> int:
        return math.ceil(sample_size(lift * baseline, std, **how).total / sum(pair))

    needed = units(chosen)
    result: dict[str, Any] = {
        "experiment": spec.name,
        "metric": metric.name,
        "baseline": baseline,
        "lift": lift,
        "power": power,
        "alpha": decision.alpha,
        "units": needed,
        "units_fixed_horizon": units(options),
        "units_anytime_valid": units(tuned),
    }
    if units_per_day is not None:
        daily = units_per_day * spec.traffic * (1 - spec.holdout) * (spec.layer_range[1] - spec.layer_range[0])
        if daily <= 0:
            raise CommandError("no unit a day takes part: raise --units-per-day or the file's traffic")
        of_pair = int(daily * decision.horizon_days * sum(pair))
        result["days"] = needed / daily
        result["detectable_lift_at_horizon"] = minimum_detectable_effect(max(4, of_pair), std, **chosen) / abs(baseline)
    return result


def render_power(plan: dict[str, Any]) -> RenderableType:
    """A plan of `plan_power` in words."""
    lines = [
        f"{plan['metric']} {plan['baseline']:g}, relative lift {plan['lift']:.1%}, "
        f"power {plan['power']:.0%}, alpha {plan['alpha']:g}:",
        f"  {plan['units']:,} units in the experiment "
        f"(one look at the end: {plan['units_fixed_horizon']:,}; any number of looks: {plan['units_anytime_valid']:,})",
    ]
    if "days" in plan:
        lines.append(f"  {plan['days']:,.1f} days; at its horizon it finds a lift of {plan['detectable_lift_at_horizon']:.1%}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _difference(comparison: dict[str, Any]) -> str:
    """The relative difference with its interval, the absolute one where there is none."""
    for name, form in (("relative", "{:+.1%}"), ("absolute", "{:+.4g}")):
        estimate = comparison[name]
        if "reason" not in estimate:
            point, low, high = (form.format(estimate[part]) for part in ("point", "low", "high"))
            return f"{point} \\[{low}, {high}]"
    return f"not estimable: {comparison['absolute']['reason']}"
