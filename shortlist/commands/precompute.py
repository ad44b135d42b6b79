"""`shortlist precompute`: lists of all known users into Parquet and the cache, so that the first answer is a cached one."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from shortlist.commands import console
from shortlist.stack.ray_cluster import attach_ray
from shortlist.stack.serving_config import serving_config
from shortlist.stack.state import running_stack, why_not_running
from training.histories import Histories
from training.model_version import CHAMPION
from training.registry import Registry


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("precompute")(run)


def run(
    alias: Annotated[str, typer.Option("--alias", "-a", help="Alias or number of the version whose lists are wanted.")] = CHAMPION,
    only_load: Annotated[
        bool, typer.Option("--load-only", help="Compute nothing: refill an empty cache from the lists of an earlier run.")
    ] = False,
) -> None:
    """Compute the lists of all known users with a version, keep them as Parquet beside it, and fill the cache.

    Users whose activity is newer than their list get a computed answer all the same. Run it after a promotion; with --load-only
    after the cache was lost. Large user bases are computed on all CPUs of the stack's Ray.
    """
    # Here: models take seconds to import, and this file is read for every command.
    from serving.precompute import CLUSTER_FROM_USERS, load_only, precompute

    settings = console.settings()
    home = settings.home.absolute()
    state = running_stack(home)
    if state is None:
        raise console.CommandError(why_not_running(home))
    config = serving_config(settings, state, port=1)  # nothing here looks at the gateway's port
    registry = Registry(state.mlflow_uri, state.dataset, cache=home / "bundles")
    version = registry.version(alias).version
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console.log,
        transient=True,
    )
    with bar:
        tasks = {
            "compute": bar.add_task("computing lists", total=None, visible=not only_load),
            "load": bar.add_task("filling the cache", total=None),
        }

        def show(stage: str, done: int, total: int) -> None:
            bar.update(tasks[stage], completed=done, total=total)

        if only_load:
            report = load_only(config, version, progress=show)
        else:
            folder = registry.download(version)
            if len(Histories.load(folder).user_ids) >= CLUSTER_FROM_USERS:
                attach_ray(home, state.ray_address)
            report = precompute(config, version, folder, progress=show)
    result = report.to_json()
    console.finish(
        result,
        f"version {report.version}: {report.users:,} users in {report.seconds:.1f} s ({result['users_per_s']:,.0f} a second), "
        f"{report.bytes_per_user:.0f} bytes each",
    )
