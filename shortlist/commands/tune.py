"""`tune`, `train` and `evaluate`: from a study file to a registered version, and what it is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from shortlist.commands import console
from shortlist.stack.attach import mlflow_for_call, ray_for_call

# Training loads numerical libraries, which commands that do not train need not wait for.
if TYPE_CHECKING:
    from training.bootstrap import PairedComparison
    from training.evaluate import Evaluation
    from training.evaluate_version import StudyEvaluation
    from training.study_data import Place
    from training.train import Outcome
    from training.trial_log import TrialRecord
    from training.tune_progress import SearchProgress

DatasetOption = Annotated[str, typer.Option("--dataset", "-d", help="Name of the dataset.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(tune)
    app.command()(train)
    app.command()(evaluate)


def tune(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="What to tune, such as experiments/studies/quickstart.toml.")],
    dataset: DatasetOption,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials in all, in place of the study's.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Time in all, in place of the study's; funnel, refit and registration included.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue this study after Ctrl-C or a crash; at most the running trials are repeated.")
    ] = False,
) -> None:
    """Search the best configuration of each source, join them to a funnel and register it as a version.

    Every trial is an MLflow run below the study's. Choosing reads validation rows only. The version gets the gate's verdict; give
    it traffic with: shortlist models promote VERSION --alias champion
    """
    from training.study import load_study

    settings = console.settings()
    chosen = load_study(study)
    with mlflow_for_call(settings) as uri, ray_for_call(settings), _shown_search() as (on_progress, notify):
        # Ray reads its token's place when it is imported, so it must be connected before anything imports it.
        from training.tune_study import tune_study

        try:
            outcome = tune_study(
                chosen,
                place_of(dataset, uri),
                trials=trials,
                minutes=minutes,
                resume=resume,
                on_progress=on_progress,
                notify=notify,
            )
        except KeyboardInterrupt:
            goes_on = f"shortlist tune {quote(str(study))} --dataset {dataset} --resume"
            raise console.CommandError(f"stopped; what was tried is kept: go on with {goes_on}") from None
    console.finish(outcome.to_json(), outcome_table(outcome, dataset))


def train(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG", help="A study file; what it would search takes the model's defaults. Or a study's outcome.json."
        ),
    ],
    dataset: DatasetOption,
) -> None:
    """Train a funnel without a search and register it as a version."""
    from training.study import load_study
    from training.train import train_study

    settings = console.settings()
    chosen = load_study(config)
    with mlflow_for_call(settings) as uri, console.phases() as notify:
        outcome = train_study(chosen, place_of(dataset, uri), notify=notify)
    console.finish(outcome.to_json(), outcome_table(outcome, dataset))


def evaluate(
    dataset: DatasetOption,
    protocol: Annotated[str, typer.Option(help="leave-one-out, temporal, stratified, given or cold-items.")] = "leave-one-out",
    model: Annotated[
        str | None,
        typer.Option(help="A version: its number, an alias, models:/NAME@ALIAS, models:/NAME/VERSION or a bundle's folder."),
    ] = None,
    study: Annotated[
        Path | None, typer.Option(help="A study: its best configuration on this dataset is trained for the protocol.")
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="With a study: fit the sources on the validation rows too before the test.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="With a study: of all random choices, in place of the study's; the split stays.")
    ] = None,
) -> None:
    """Measure on the protocol's test rows: metrics, 95 % intervals over users.

    A version that was registered for serving has seen the test rows and is refused: pass the study behind it. With neither --model
    nor --study, the study behind the champion is taken.
    """
    from training.evaluate_version import evaluate_folder, evaluate_registered, evaluate_study, evaluate_study_of
    from training.study import load_study

    settings = console.settings()
    if model is not None and study is not None:
        raise typer.BadParameter("give --model or --study, not both")
    if (refit or seed is not None) and model is not None:
        raise typer.BadParameter("--refit and --seed train anew, which is for --study: a version is measured as it is")
    with console.phases() as notify:
        result: Evaluation | StudyEvaluation
        if study is not None:
            result = evaluate_study(load_study(study), place_of(dataset, ""), protocol, refit=refit, seed=seed, notify=notify)
        elif model is not None and Path(model).is_dir():
            result = evaluate_folder(Path(model), place_of(dataset, ""), protocol, notify=notify)
        else:
            with mlflow_for_call(settings) as uri:
                place = place_of(dataset, uri)
                if model is not None:
                    result = evaluate_registered(model, place, protocol, notify=notify)
                else:
                    result = evaluate_study_of("champion", place, protocol, refit=refit, seed=seed, notify=notify)
    console.finish(result.to_json(), evaluation_table(result))


def place_of(dataset: str, tracking_uri: str) -> Place:
    """Where a command on this dataset reads and writes, by the settings of this call."""
    from training.study_data import Place

    settings = console.settings()
    try:
        paths = settings.paths(dataset)
    except ValueError as error:
        raise console.CommandError(str(error)) from None
    return Place(paths, settings.control_url, tracking_uri)


def outcome_table(outcome: Outcome, dataset: str) -> Table:
    """A study's outcome for people."""
    metrics, intervals = outcome.evaluation.metrics, outcome.evaluation.ci95
    table = Table(title=f"version {outcome.model_version}, study {outcome.study}", show_header=False)
    for name in ("ndcg@10", "hr@10", "recall@50", "mrr@10", "coverage@10"):
        if name in metrics:
            interval = "  ({:z.4f} to {:z.4f})".format(*intervals[name]) if name in intervals else ""
            table.add_row(f"{name} on validation", f"{metrics[name]:z.4f}{interval}")
    for line in _gains(outcome.against):
        table.add_row(line[0], f"{line[1]}  ({line[2]})")
    table.add_row("ranker", outcome.shipped)
    table.add_row("trials", str(outcome.trials))
    table.add_row("gate", f"{outcome.gate.verdict}: {escape(outcome.gate.reason)}")
    table.add_row("MLflow run", outcome.run_id)
    table.add_row("give it traffic", f"shortlist models promote {outcome.model_version} --alias champion --dataset {dataset}")
    return table


def evaluation_table(result: Evaluation | StudyEvaluation) -> Table:
    """An evaluation for people."""
    from training.evaluate import Evaluation

    found = result if isinstance(result, Evaluation) else result.evaluation
    table = Table("metric", "mean", "95 % interval", title=f"{found.protocol}, {found.stage}, {len(found.per_user):,} users")
    for name, value in found.metrics.items():
        interval = found.ci95.get(name)
        table.add_row(name, f"{value:z.4f}", f"{interval[0]:z.4f} to {interval[1]:z.4f}" if interval else "")
    if not isinstance(result, Evaluation):
        table.add_section()
        for line in _gains(result.against):
            table.add_row(*line)
    return table


def _gains(against: Mapping[str, PairedComparison]) -> Iterator[tuple[str, str, str]]:
    for source, found in against.items():
        low, high = found.ci95
        yield f"{found.metric} over {source} alone", f"{found.difference:+z.4f}", f"{low:+z.4f} to {high:+z.4f}"


@contextmanager
def _shown_search() -> Iterator[tuple[Callable[[SearchProgress], None], Callable[[str], None]]]:
    """A bar of trials with the best so far and the time left; failed trials as lines above it."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console.log, transient=True, disable=not console.log.is_terminal) as progress:
        bar, line = progress.add_task("starting", total=None, note=""), console.lines()

        def on_progress(state: SearchProgress) -> None:
            note = f"best {state.best.value:.4f} ({state.best.name})" if state.best and state.best.value is not None else ""
            progress.update(bar, description="trials", total=state.planned, completed=state.ended, note=note + _left(state))
            if state.last is not None:
                _log_trial(progress, state.last)
                if progress.disable:
                    line(f"trial {state.ended} of {state.planned}, {state.last.name}: {state.last.status}; {note}")

        def notify(what: str) -> None:
            progress.update(bar, description=escape(what))
            if progress.disable:
                line(what)

        yield on_progress, notify


def _left(state: SearchProgress) -> str:
    return "" if state.remaining_s is None else f", {state.remaining_s:.0f} s left"


def _log_trial(progress: Progress, trial: TrialRecord) -> None:
    if trial.status == "failed":
        progress.console.print(f"trial {trial.name} failed: {escape(trial.reason or '')}", highlight=False)
