"""`shortlist pipeline`: the nightly job, by hand or by a schedule."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from features.control_store import ControlStore
from features.paths import DatasetPaths
from shortlist.commands import console
from shortlist.commands.connection import DatasetOption, chosen_dataset
from shortlist.commands.console import CommandError
from shortlist.stack.state import StackState, running_stack, why_not_running

if TYPE_CHECKING:
    from shortlist.pipeline.record import PipelineOptions, PipelineRecord
    from shortlist.pipeline.schedule import Schedules

app = typer.Typer(
    help="The nightly job: ingest, features, materialize, tune or refit, gate, register, precompute, alias.", no_args_is_help=True
)

StudyOption = Annotated[
    Path | None, typer.Option("--study", help="Study file; the quickstart study when left out.", metavar="STUDY.toml")
]
ModeOption = Annotated[
    str, typer.Option(help="tune: search anew. refit: train what the study's last search chose, on today's data.")
]
MinutesOption = Annotated[float | None, typer.Option(min=0.1, help="Time for tuning, in place of the study's.")]
AliasOption = Annotated[str, typer.Option("--alias", "-a", help="Alias that a version gets when the gate passes it.")]
PromoteOption = Annotated[bool, typer.Option("--promote/--no-promote", help="Whether the alias moves at all.")]
AttemptsOption = Annotated[int, typer.Option(min=1, max=10, help="How often a step is tried before the run fails.")]


@app.command()
def run(
    dataset: DatasetOption = None,
    study: StudyOption = None,
    mode: ModeOption = "tune",
    minutes: MinutesOption = None,
    alias: AliasOption = "champion",
    promote: PromoteOption = True,
    attempts: AttemptsOption = 3,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the last run, which was interrupted or failed, with its own options.")
    ] = False,
) -> None:
    """From new activity to a promoted version, against the running stack.

    Every step is recorded and retried; finished ones are not repeated by --resume. A version that the gate refuses stays registered
    and gets no alias: that is no error. The run is an MLflow run too.
    """
    from shortlist.pipeline.record import only_run, resumable
    from shortlist.pipeline.run import begin, go, settle
    from shortlist.runner import Runner

    stack, paths = _stack(), _paths(dataset)
    if stack.dataset != paths.dataset:
        raise CommandError(f"the running stack serves {stack.dataset!r}: start one for {paths.dataset!r} with shortlist up")
    options = None if resume else _options(study, mode, minutes, alias if promote else None, attempts)
    with only_run(paths):
        settle(paths, stack)
        record = begin(paths, options) if options is not None else resumable(paths)
        if record is None:
            raise CommandError(f"the last pipeline run of {paths.dataset!r} ended: there is nothing to continue, start a new one")
        runner = Runner(console.options.overrides, stack_pid=stack.supervisor_pid)
        record = go(record, paths, stack, runner, notify=lambda what: console.log.print(f"[bold]{what}[/]", highlight=False))
    console.finish(_described(record), _table(record))


@app.command()
def schedule(
    cron: Annotated[str | None, typer.Argument(metavar="[CRON]", help="minute hour day month weekday, UTC: '0 3 * * *'.")] = None,
    dataset: DatasetOption = None,
    study: StudyOption = None,
    mode: ModeOption = "tune",
    minutes: MinutesOption = None,
    alias: AliasOption = "champion",
    promote: PromoteOption = True,
    attempts: AttemptsOption = 3,
    off: Annotated[bool, typer.Option("--off", help="Do not run by itself any more.")] = False,
) -> None:
    """Let the running stack start the pipeline by itself; without CRON, show when it is due next.

    A run that was missed while the stack was down is made up for once.
    """
    if cron is not None and off:
        raise typer.BadParameter("give a cron expression or --off, not both")
    paths = _paths(dataset)
    schedules = _schedules(paths)
    if off:
        removed = schedules.remove()
        console.finish({"dataset": paths.dataset, "removed": removed}, "removed" if removed else "there was no schedule")
        return
    if cron is not None:
        schedules.put(cron, _options(study, mode, minutes, alias if promote else None, attempts), datetime.now(UTC))
    found = schedules.get()
    if found is None:
        console.finish({"dataset": paths.dataset, "schedule": None}, "no schedule: shortlist pipeline schedule '0 3 * * *'")
        return
    result = {
        "dataset": paths.dataset,
        "schedule": found.cron,
        "next_due": found.due_at,
        "options": found.options.model_dump(mode="json"),
    }
    console.finish(result, f"{paths.dataset}: {found.cron!r} (UTC), next at {found.due_at:%Y-%m-%d %H:%M}")


@app.command()
def status(
    dataset: DatasetOption = None,
    last: Annotated[int, typer.Option("--last", "-n", min=1, help="How many runs.")] = 5,
) -> None:
    """The last runs, and when the next is due.

    A run whose process is gone is `interrupted`: --resume of shortlist pipeline run continues it.
    """
    from rich.console import Group

    from shortlist.pipeline.record import present_records

    paths = _paths(dataset)
    runs, scheduled = present_records(paths)[-last:], _schedules(paths).get()
    due = None if scheduled is None else scheduled.due_at
    line = "no schedule" if due is None else f"next run at {due:%Y-%m-%d %H:%M} UTC"
    console.finish({"runs": [_described(one) for one in runs], "next_due": due}, Group(*(_table(one) for one in runs), line))


def _options(study: Path | None, mode: str, minutes: float | None, alias: str | None, attempts: int) -> PipelineOptions:
    from shortlist.demo.flow import study as shipped
    from shortlist.pipeline.record import PipelineOptions
    from training.study import load_study

    if mode not in ("tune", "refit"):
        raise typer.BadParameter(f"--mode {mode!r}: tune or refit")
    file = str(study.absolute()) if study is not None else str(Path(shipped("quickstart")).absolute())
    load_study(Path(file))  # refused now rather than in the night
    return PipelineOptions(study=file, mode=mode, minutes=minutes, alias=alias, attempts=attempts)  # type: ignore[arg-type]


def _stack() -> StackState:
    home = console.settings().home.absolute()
    stack = running_stack(home)
    if stack is None:
        raise CommandError(why_not_running(home))
    return stack


def _paths(dataset: str | None) -> DatasetPaths:
    try:
        return console.settings().paths(chosen_dataset(dataset))
    except ValueError as error:
        raise CommandError(str(error)) from None


def _schedules(paths: DatasetPaths) -> Schedules:
    from shortlist.pipeline.schedule import Schedules

    return Schedules(ControlStore(console.settings().control_url).create(), paths.dataset)


def _described(record: PipelineRecord) -> dict[str, Any]:
    trained = record.steps["train"].result
    return {
        "run_id": record.run_id,
        "dataset": record.dataset,
        "status": record.status,
        "error": record.error,
        "model_version": trained.get("model_version"),
        "promoted": record.steps["alias"].status == "done",
        "gate": record.steps["gate"].result.get("verdict"),
        "metrics": trained.get("metrics", {}),
        "mlflow_run_id": record.mlflow_run_id,
        "steps": {name: step.model_dump(include={"status", "seconds", "attempts", "error"}) for name, step in record.steps.items()},
    }


def _table(record: PipelineRecord) -> Any:
    from rich.markup import escape
    from rich.table import Table

    title = f"pipeline {record.run_id} of {record.dataset}: {record.status}"
    table = Table("step", "status", "s", "attempts", "", title=title, caption=escape(record.error) if record.error else None)
    for name, step in record.steps.items():
        table.add_row(name, step.status, f"{step.seconds:.1f}", str(step.attempts), escape(step.error or ""))
    return table
