"""`shortlist data`: bring activity and catalogue in, look at them, take them out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.describe import describe, plot
from features.export_dataset import export_dataset
from features.import_dataset import import_dataset
from features.import_events import Progress as ReportProgress
from features.import_report import ImportReport
from features.paths import DatasetPaths
from features.simulate import simulate
from features.simulated_world import SimulationConfig
from serving.audit import AuditLog
from serving.recorded_import import recorded_import
from shortlist.commands import console
from shortlist.commands.connection import UrlOption, traffic_token
from shortlist.stack.state import running_stack

SHORT_ID = 8
"""Characters up to which an id is likely to stand for something else too."""

app = typer.Typer(help="Import, simulate, describe and export datasets.", no_args_is_help=True)

DatasetOption = Annotated[
    str, typer.Option("--dataset", "-d", help="Name of the dataset: lower-case letters, digits, '.', '_', '-'.")
]


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PATH_OR_NAME",
            help="Folder or file to import, or the name of a public dataset: movielens-100k.",
        ),
    ],
    dataset: DatasetOption,
    fmt: Annotated[
        str, typer.Option("--format", "-f", help="auto, movielens, sequences, csv or parquet; auto looks at what is there.")
    ] = "auto",
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", "-m", metavar="CANONICAL=COLUMN", help="Say which column means what, e.g. --map user_id=customer."),
    ] = None,
    default_action: Annotated[
        str, typer.Option("--default-action", help="Action of rows that have neither an action nor a value.")
    ] = "view",
) -> None:
    """Import users' activity and the catalogue into a dataset.

    The same import again adds nothing. Bad rows are left out and written, with the reason, to a rejects file. A running stack takes
    new and changed items over within seconds.
    """
    paths, catalogue = open_dataset(dataset)
    audit = AuditLog(catalogue.store, dataset)
    with _shown_progress() as progress:
        report = import_dataset(
            source,
            paths,
            catalogue,
            fmt=fmt,
            mapping=parse_mapping(mapping or []),
            default_action=default_action,
            extra_actions=console.settings().events.extra_actions,
            items_transaction=lambda: recorded_import(audit, actor="data import"),
            progress=progress,
        )
    for note in report.notes:
        console.log.print(f"note: {note}", highlight=False, markup=False)
    console.finish(report.to_dict(), report_table(report))


@app.command("simulate")
def simulate_(
    dataset: DatasetOption,
    users: Annotated[int, typer.Option("--users", "-u", min=1, help="Number of users.")] = 1_000,
    items: Annotated[int, typer.Option("--items", "-i", min=1, help="Number of items.")] = 2_000,
    events: Annotated[int, typer.Option("--events", "-e", min=1, help="Number of interactions.")] = 100_000,
    days: Annotated[int, typer.Option("--days", min=1, max=3650, help="Days that the activity spans.")] = 90,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same data.")] = 0,
) -> None:
    """Make up a dataset of any size: users with tastes who come in sessions, items with attributes and seasons, new ones over time.

    It goes through the same writer as imports and live events. Useful to try the platform without data, and for load tests.
    """
    paths, catalogue = open_dataset(dataset)
    try:
        config = SimulationConfig(users=users, items=items, events=events, days=days, seed=seed)
    except ValidationError as error:
        first = error.errors()[0]
        raise console.CommandError(f"--{first['loc'][0]} {first['input']}: {first['msg']}") from None
    with _shown_progress() as progress:
        report = simulate(config, paths, catalogue, progress=progress)
    console.finish(report.to_dict(), report_table(report))


@app.command("traffic")
def traffic_(
    dataset: DatasetOption,
    sessions: Annotated[int, typer.Option("--sessions", "-n", min=1, help="Visits in all.")] = 200,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.01, help="Visits begun a second; as fast as answers come when left out.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, max=500, help="Items of a list.")] = 10,
    anonymous: Annotated[float, typer.Option(min=0, max=1, help="Share of visits of people who are not logged in.")] = 0.1,
    eta: Annotated[float, typer.Option(min=0, help="How fast attention falls: place p is looked at with 1 / p ** eta.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed sends the same people.")] = 0,
    url: UrlOption = None,
) -> None:
    """Let simulated people use the running platform: they ask for lists over HTTP, look at them and click what they like.

    Tastes are those of the dataset's own activity, real or simulated; attention falls with the position. Impressions, clicks,
    purchases and ratings go back as events: for A/B tests, dashboards and load without real users.
    """
    from features.simulated_users import ClickModel
    from shortlist.live_traffic import TrafficConfig, drive, people_of

    stack = running_stack(console.settings().home.absolute())
    address = url or (stack.base_url if stack else None)
    if address is None:
        raise console.CommandError("no stack of this home is running: start one (shortlist up), or name a server with --url")
    people = people_of(*open_dataset(dataset), seed=seed)
    config = TrafficConfig(sessions=sessions, sessions_per_s=rate, top_k=top_k, anonymous=anonymous, seed=seed)
    with _shown_progress() as progress:
        report = drive(
            address,
            people,
            config,
            token=traffic_token(url),
            model=ClickModel(eta=eta),
            on_session=lambda so_far: progress("visits", so_far.sessions, sessions),
        )
    console.finish(report.to_dict())


@app.command("describe")
def describe_(
    dataset: DatasetOption,
    plot_path: Annotated[
        Path | None, typer.Option("--plot", metavar="PATH", help="Also draw activity, histories, popularity and values to a PNG.")
    ] = None,
) -> None:
    """Show what a dataset holds: counts, density, time span, history lengths, popularity."""
    description = describe(*open_dataset(dataset))
    result = dict(description.summary)
    if plot_path is not None:
        try:
            plot(description, plot_path)
        except (OSError, ValueError) as error:
            raise console.CommandError(f"--plot {plot_path} cannot be written: {error}") from None
        result["plot"] = str(plot_path)
    console.finish(result, _description_table(result))


@app.command("scan-user")
def scan_user_(
    user_id: Annotated[str, typer.Argument(metavar="USER", help="The id to look for.")],
) -> None:
    """Show where a user's id stands in this home and its Redis, in any dataset; after an erasure nowhere.

    The id is looked for as a word: a short one, such as 42, is found where it is an item's id or a number too.
    """
    from redis.exceptions import RedisError

    from shortlist.scan_user import scan_user
    from shortlist.stack.state import running_stack

    settings = console.settings()
    stack = running_stack(settings.home.absolute())
    chosen = {name: getattr(settings.redis, f"{name}_url") for name in ("bus", "features", "cache")}
    if stack is not None:
        chosen = {"bus": stack.bus_url, "features": stack.features_url, "cache": stack.cache_url}
    urls = {name: url for name, url in chosen.items() if url is not None}
    if len(urls) < len(chosen):
        console.log.print("note: no stack is running here, so its embedded Redis was not looked into", highlight=False)
    try:
        found = scan_user(user_id, settings, urls)
    except RedisError as error:
        raise console.CommandError(f"a Redis cannot be looked into: {error}; start the stack, then scan again") from None
    if found and len(user_id) <= SHORT_ID:
        console.log.print(
            f"note: {user_id!r} is short, so what is found may be an item's id or a number instead of the user",
            highlight=False,
            soft_wrap=True,
        )
    table = Table("kind", "place", "matches")
    for one in found:
        table.add_row(one.kind, one.place, f"{one.matches:,}")
    result = {"user_id": user_id, "found": [asdict(one) for one in found], "redis_scanned": sorted(urls)}
    console.finish(result, table if found else "found nowhere")


@app.command("export")
def export_(
    folder: Annotated[Path, typer.Argument(help="Folder to write interactions.parquet, items.parquet and users.parquet to.")],
    dataset: DatasetOption,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of an earlier export.")] = False,
) -> None:
    """Write a dataset as a folder of Parquet, which imports to the same again."""
    report = export_dataset(*open_dataset(dataset), folder, overwrite=overwrite)
    console.finish(asdict(report))


def open_dataset(dataset: str) -> tuple[DatasetPaths, Catalogue]:
    """Paths and catalogue of a dataset by the settings of this call; the control store's tables are made where missing."""
    settings = console.settings()
    try:
        paths = settings.paths(dataset)
    except ValueError as error:
        raise console.CommandError(str(error)) from None
    return paths, Catalogue(ControlStore(settings.control_url).create(), dataset)


def parse_mapping(given: list[str]) -> dict[str, str]:
    """`canonical=column` strings as a mapping.

    Raises:
        typer.BadParameter: a string of another form.
    """
    mapping = {}
    for text in given:
        canonical, separator, column = text.partition("=")
        if not separator or not canonical or not column:
            raise typer.BadParameter(f"--map {text!r} must look like canonical=column, e.g. user_id=customer")
        mapping[canonical.strip()] = column
    return mapping


def report_table(report: ImportReport) -> Table:
    """An import's counts for people."""
    table = Table(title=f"imported into {report.dataset}", show_header=False)
    for name, value in report.to_dict().items():
        if name == "dataset" or value is None:
            continue
        shown = f"{value:,}" if isinstance(value, int) else ", ".join(value) if isinstance(value, list) else str(value)
        table.add_row(name.replace("_", " "), escape(shown))
    return table


def _description_table(result: dict[str, Any]) -> Table:
    table = Table(title=str(result["dataset"]), show_header=False)
    for name, value in result.items():
        if name == "dataset" or value is None or value == {}:
            continue
        shown = ", ".join(f"{key} {_figure(part)}" for key, part in value.items()) if isinstance(value, dict) else _figure(value)
        table.add_row(name.replace("_", " "), shown)
    return table


def _figure(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


@contextmanager
def _shown_progress() -> Iterator[ReportProgress]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console.log, transient=True) as bars:
        tasks = {}

        def progress(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield progress
