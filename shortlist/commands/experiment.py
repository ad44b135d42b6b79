"""`shortlist experiment`: A/B tests from file to verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.spec import EXPERIMENT_NAME, ExperimentSpec, load_spec, parse_spec
from shortlist.commands import console
from shortlist.commands.connection import UrlOption, chosen_dataset, connected

app = typer.Typer(help="Start, follow and judge A/B tests.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(help="Experiment file, such as experiments/ab/demo.toml.", metavar="FILE.toml")]
NameArgument = Annotated[str, typer.Argument(help="Name of the experiment.", metavar="NAME")]


@app.command()
def check(file: FileArgument) -> None:
    """Validate an experiment file without a server, and show what it would split."""
    spec = load_spec(file)
    result = {"experiment": spec.name, "valid": True, "shares": _shares(spec)}
    console.finish(result, _split_text(spec))


@app.command()
def start(
    file: Annotated[Path, typer.Argument(help="Experiment file; or the name of a draft or paused one.", metavar="FILE.toml|NAME")],
    url: UrlOption = None,
) -> None:
    """Send an experiment file to the server and start it. Aliases are resolved to versions and pinned.

    A name instead of a file starts what the server has under it: a paused experiment, or a draft, which a failed start leaves.

    A paused experiment is resumed, with the share of traffic that it was ramped to. Everyone outside the experiment goes on with
    the champion.
    """
    by_name = not file.is_file() and EXPERIMENT_NAME.match(str(file)) is not None
    spec = None if by_name else load_spec(file)
    with connected(url) as client:
        known = client.experiments()
        if spec is None:
            spec = known_spec(str(file), known)
        else:
            ramped = ramped_to(spec, known)
            if ramped is not None:
                console.log.print(f"traffic stays at {ramped:g}, to which it was ramped; the file says {spec.traffic:g}")
                spec = spec.model_copy(update={"traffic": ramped})
            client.put_experiment(spec.name, spec.model_dump(mode="json", exclude_none=True))
        started = client.start_experiment(spec.name)
    pins = ", ".join(f"{variant} = version {version}" for variant, version in (started.get("pins") or {}).items())
    console.finish(_described(started), f"{spec.name} is running: {_split_text(spec)}" + (f"\npinned: {pins}" if pins else ""))


@app.command()
def ramp(
    name: NameArgument,
    to: Annotated[
        float | None, typer.Option(min=0, max=1, help="New share of traffic; the next step of the file's plan when left out.")
    ] = None,
    url: UrlOption = None,
) -> None:
    """Raise the share of units that take part. Nobody who is in moves to another variant."""
    with connected(url) as client:
        changed = client.ramp_experiment(name, to)
    console.finish(_described(changed))


@app.command()
def pause(name: NameArgument, url: UrlOption = None) -> None:
    """Send everyone to the champion for now; `start` with the same file resumes."""
    with connected(url) as client:
        changed = client.pause_experiment(name)
    console.finish(_described(changed))


@app.command()
def stop(name: NameArgument, url: UrlOption = None) -> None:
    """End an experiment for good, or discard a draft; its report stays."""
    with connected(url) as client:
        changed = client.stop_experiment(name)
    console.finish(_described(changed))


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="One experiment; all when left out.", metavar="NAME")] = None,
    url: UrlOption = None,
) -> None:
    """Experiments with their state, pinned versions and share of traffic."""
    from rich.table import Table

    with connected(url) as client:
        found = client.experiments() if name is None else [client.experiment(name)]
    table = Table("experiment", "status", "traffic", "variants", "started")
    for one in found:
        spec, pins = one.get("spec") or {}, one.get("pins") or {}
        names = [variant["name"] for variant in spec.get("variants", [])]
        variants = ", ".join(f"{variant} = v{pins[variant]}" if variant in pins else variant for variant in names)
        state, started = str(one.get("status")), str(one.get("started_at") or "")
        table.add_row(str(one.get("name", name)), state, f"{spec.get('traffic', 0):.0%}", variants, started)
    console.finish({"experiments": found}, table)


@app.command()
def report(
    name: NameArgument,
    local: Annotated[bool, typer.Option("--local", help="Read this home's data instead of asking the server.")] = False,
    dataset: Annotated[
        str | None, typer.Option("--dataset", "-d", help="With --local: dataset; the served or the only one when left out.")
    ] = None,
    url: UrlOption = None,
) -> None:
    """What an experiment shows: units, split, metrics with intervals, and the verdict by the file's rules."""
    from shortlist.experiment_report import local_report, render

    if local:
        settings = console.settings()
        found = local_report(settings, chosen_dataset(dataset), name).to_dict()
    else:
        with connected(url) as client:
            found = client.experiment_report(name)
    console.finish(found, render(found))


@app.command()
def power(
    file: FileArgument,
    baseline: Annotated[float, typer.Option(help="Mean of the primary metric in the control, such as 0.08 for a CTR of 8 %.")],
    lift: Annotated[float, typer.Option(help="Smallest relative lift worth finding: 0.05 is 5 %.")] = 0.05,
    std: Annotated[
        float | None,
        typer.Option(
            help="Standard deviation of one unit; only for proportions, such as active, may it be left out: sqrt(p (1 - p))."
        ),
    ] = None,
    probability: Annotated[float, typer.Option("--power", min=0.3, max=0.999, help="Chance of finding that lift.")] = 0.8,
    units_per_day: Annotated[
        float | None, typer.Option(min=0, help="New units a day before traffic and layer take their share.")
    ] = None,
) -> None:
    """How many units an experiment needs, and for how long it must run. Needs no server."""
    from shortlist.experiment_report import plan_power, render_power

    found = plan_power(load_spec(file), baseline=baseline, lift=lift, std=std, power=probability, units_per_day=units_per_day)
    console.finish(found, render_power(found))


def known_spec(name: str, known: list[dict[str, Any]]) -> ExperimentSpec:
    """What the server has under a name.

    Raises:
        CommandError: it has nothing; the message names what there is.
    """
    for one in known:
        if one["name"] == name:
            return parse_spec(one["spec"])
    there = ", ".join(one["name"] for one in known) or "none"
    raise console.CommandError(f"no experiment file {name}, and the server has no experiment of that name (there: {there})")


def ramped_to(spec: ExperimentSpec, known: list[dict[str, Any]]) -> float | None:
    """The share of traffic that an experiment of this name has been ramped to, where that is more than the file's."""
    for one in known:
        if one["name"] == spec.name and one["status"] not in {"draft", "stopped"} and one["spec"]["traffic"] > spec.traffic:
            return float(one["spec"]["traffic"])
    return None


def _shares(spec: ExperimentSpec) -> dict[str, float]:
    reach = spec.traffic * (1 - spec.holdout) * (spec.layer_range[1] - spec.layer_range[0])
    return {variant.name: reach * weight for variant, weight in zip(spec.variants, spec.weights, strict=True)}


def _split_text(spec: ExperimentSpec) -> str:
    shares = _shares(spec)
    parts = [f"{share:.1%} {name}" for name, share in shares.items()]
    return ", ".join(parts) + f", {1 - sum(shares.values()):.1%} outside (champion)"


def _described(changed: dict[str, Any]) -> dict[str, Any]:
    spec = changed.get("spec") or {}
    kept = {name: changed.get(name) for name in ("name", "status", "pins", "started_at", "stopped_at")}
    return {**kept, "traffic": spec.get("traffic")}
