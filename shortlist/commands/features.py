"""`shortlist features`: build, register, materialize and check the features of a dataset."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.errors import DatasetNotFoundError
from features.events import parse_timestamp
from features.feature_tables import Progress as ReportProgress
from features.parquet_codec import PARQUET_CODEC
from features.paths import DatasetPaths
from shortlist.commands import console
from shortlist.stack.state import running_stack

if TYPE_CHECKING:
    from features.checks import CheckReport
    from features.store import Features

app = typer.Typer(
    help="Features: aggregates as of a cutoff, Feast's registry, the online store, and checks that offline equals online.",
    no_args_is_help=True,
)

DatasetOption = Annotated[str, typer.Option("--dataset", "-d", help="Name of the dataset.")]
AsOfOption = Annotated[
    str | None,
    typer.Option("--as-of", metavar="TIME", help="Cutoff: ISO 8601 (read as UTC unless it says) or epoch seconds; now by default."),
]


@app.command("build")
def build_(dataset: DatasetOption, as_of: AsOfOption = None) -> None:
    """Compute the feature tables from the activity store and the catalogue, counting events before the cutoff.

    Each table is a change log: one row for every day on which an entity's state changed, and the newest state under the cutoff.
    """
    from features.build_features import build_features

    started = time.perf_counter()
    paths, catalogue = _dataset(dataset)
    with _shown_progress() as progress:
        cutoff, tables = build_features(paths, catalogue, _moment(as_of), progress)
    result = {
        "dataset": dataset,
        "as_of": cutoff.isoformat(),
        "tables": [
            {"view": built.view, "entities": built.entities, "rows": built.rows, "bytes": built.path.stat().st_size}
            for built in tables
        ],
        "folder": str(paths.feature_tables),
        "seconds": round(time.perf_counter() - started, 3),
    }
    shown = Table(title=f"feature tables of {dataset} as of {cutoff:%Y-%m-%d %H:%M:%S} UTC")
    for column in ("view", "entities", "rows", "MB"):
        shown.add_column(column, justify="left" if column == "view" else "right")
    for built in tables:
        shown.add_row(built.view, f"{built.entities:,}", f"{built.rows:,}", f"{built.path.stat().st_size / 1e6:.1f}")
    console.finish(result, shown)


@app.command("apply")
def apply_(dataset: DatasetOption) -> None:
    """Register entities, views and feature services with Feast, built from the dataset's schema; what left it is removed."""
    features = _features(dataset, online=False)
    applied = features.apply()
    console.finish({"dataset": dataset, **applied, "registry": str(features.paths.feast_registry)})


@app.command("materialize")
def materialize_(dataset: DatasetOption, as_of: AsOfOption = None) -> None:
    """Write the newest state of every user and item from the tables into the online store (Redis).

    Values that live events brought since the tables were built stay.
    """
    started = time.perf_counter()
    features = _features(dataset, online=True)
    with _shown_progress() as progress:
        written = features.materialize(_moment(as_of), progress)
    seconds = time.perf_counter() - started
    rate = sum(written.values()) / max(seconds, 1e-9)
    console.finish({"dataset": dataset, "rows": written, "seconds": round(seconds, 3), "rows_per_s": round(rate)})


@app.command("check")
def check_(
    dataset: DatasetOption,
    sample: Annotated[int, typer.Option("--sample", min=1, help="Users, items and pairs compared offline against online.")] = 1_000,
) -> None:
    """Compare offline with online values, and report freshness, null shares and impossible values.

    Exits 1 when a value differs or cannot be true.
    """
    from features.checks import check_features

    report = check_features(_features(dataset, online=True), int(time.time() * 1e6), sample=sample)
    console.finish(report.to_dict(), _report_table(report))
    if not report.ok:
        # Without the example, which is an id: pipelines keep the line.
        differing = [f"{one.feature} differs in {one.different:,} of {one.rows:,}" for one in report.differences]
        raise console.CommandError(
            f"the features of {dataset} are not what they should be: {_some([*report.violations, *differing])}; call an erasure "
            "that was unfinished again, then build and materialize again"
        )


@app.command("skew")
def skew_(
    dataset: DatasetOption,
    since: Annotated[str | None, typer.Option("--since", metavar="TIME", help="Only lists computed from this time on.")] = None,
    sample: Annotated[int, typer.Option("--sample", min=1, max=100_000, help="Logged lists compared.")] = 500,
) -> None:
    """Compare the feature values that ranked lists with those that the offline store gives for the same moment.

    Exits 1 when serving gets a feature wrong. Features that training saw otherwise, such as windows that are empty because the
    dataset is old, are named without an alarm.
    """
    from features.skew import describe, skew_report

    paths, catalogue = _dataset(dataset)
    has_times = catalogue.schema().has_times
    report = skew_report(paths, catalogue.items(), has_times=has_times, since=_moment(since), sample=sample)
    shown = Table(title=f"skew of {dataset}, {report.lists} lists: {'NOT OK' if report.alarms else 'ok'}", show_header=False)
    for name, line in describe(report).items():
        shown.add_row(f"[red]{name}[/red]" if name in report.alarms else name, escape(line))
    console.finish(report.to_dict(), shown)
    if report.alarms:
        raise console.CommandError(f"{dataset} was ranked by features that training would not have seen: {_some(report.alarms)}")


@app.command("logged")
def logged_(
    dataset: DatasetOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Parquet file to write.")],
    since: Annotated[str | None, typer.Option("--since", metavar="TIME", help="Only slates from this time on.")] = None,
) -> None:
    """Write training rows out of what was served: each shown item, the logged values that ranked it, and what was done with it."""
    import pyarrow.parquet as pq

    from features.logged_examples import logged_examples

    paths, _ = _dataset(dataset)
    rows = logged_examples(paths, since=_moment(since))
    try:
        pq.write_table(rows, out, compression=PARQUET_CODEC)
    except OSError as error:
        raise console.CommandError(f"{out} cannot be written: {error}") from None
    labels = sum(rows["label"].to_pylist())
    result = {"dataset": dataset, "rows": rows.num_rows, "positive": labels, "columns": rows.num_columns, "file": str(out)}
    console.finish(result, f"{rows.num_rows:,} rows, {labels:,} positive: {out}")


def _dataset(dataset: str) -> tuple[DatasetPaths, Catalogue]:
    settings = console.settings()
    try:
        paths = settings.paths(dataset)
    except ValueError as error:
        raise console.CommandError(str(error)) from None
    catalogue = Catalogue(ControlStore(settings.control_url).create(), dataset)
    if not catalogue.exists():
        raise DatasetNotFoundError(f"no dataset {dataset!r} in {settings.home}: import it with `shortlist data import`")
    return paths, catalogue


def _features(dataset: str, *, online: bool) -> Features:
    from features.store import Features

    paths, catalogue = _dataset(dataset)
    ttl_s = console.settings().features.user_ttl_days * 86_400
    return Features(paths, catalogue.schema(), _online_url() if online else None, user_ttl_s=ttl_s)


def _online_url() -> str:
    settings = console.settings()
    if settings.redis.features_url is not None:
        return settings.redis.features_url
    stack = running_stack(settings.home.absolute())
    if stack is None:
        raise console.CommandError(
            f"no stack is running in {settings.home}, so no online store: start one (shortlist up), or set redis.features_url"
        )
    return stack.features_url


def _moment(given: str | None) -> datetime | None:
    if given is None:
        return None
    number = given.replace(".", "", 1)
    moment = parse_timestamp(float(given) if number.isdigit() else given)
    return None if moment is None else moment.astimezone(UTC)


def _some(found: list[str], most: int = 3) -> str:
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def _report_table(report: CheckReport) -> Table:
    shown = Table(title=f"features of {report.dataset}: {'ok' if report.ok else 'NOT OK'}", show_header=False)
    for side, count in report.compared.items():
        pushed = report.pushed_since.get(side, 0)
        shown.add_row(f"{side}s compared", f"{count:,}" + (f" ({pushed:,} pushed since the build)" if pushed else ""))
    for found in report.differences:
        shown.add_row(
            f"[red]{found.feature}[/red]",
            f"{found.different:,} of {found.rows:,} differ, e.g. {found.example}: offline {found.offline}, online {found.online}",
        )
    for line in report.violations:
        shown.add_row("[red]impossible[/red]", line)
    for name, seconds in report.freshness.items():
        shown.add_row(name.removesuffix("_s").replace("_", " "), "unknown" if seconds is None else f"{seconds:,.0f} s")
    nulls: dict[str, Any] = {name: share for name, share in report.null_share.items() if share}
    shown.add_row("null shares", ", ".join(f"{name} {share:.1%}" for name, share in nulls.items()) or "none")
    return shown


@contextmanager
def _shown_progress() -> Iterator[ReportProgress]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console.log, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def progress(view: str, done: int, total: int) -> None:
            if view not in tasks:
                tasks[view] = bars.add_task(view, total=total)
            bars.update(tasks[view], completed=done, total=total)

        yield progress
