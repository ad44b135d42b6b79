"""`shortlist bench`: the measurements of docs/benchmarks.md, as Markdown to paste there."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from shortlist.bench.bulk_import import measure_import
from shortlist.bench.faults import faults_markdown, measure_faults
from shortlist.bench.idle import idle_markdown, measure_idle
from shortlist.bench.ingest import STEADY_EVENTS_PER_S, measure_freshness, measure_intake, measure_sync_policies
from shortlist.bench.ingest_report import ingest_markdown
from shortlist.bench.promotion import measure_promotions, promotions_markdown
from shortlist.bench.shadow import measure_shadow, shadow_markdown
from shortlist.bench.stack import bench_stack, known_users
from shortlist.client import Client
from shortlist.commands import console
from shortlist.demo.flow import DemoResult, run_demo, study, summary
from shortlist.runner import Runner
from shortlist.settings import load_settings
from shortlist.stack.control import stop_stack
from shortlist.stack.secrets import kept_secret
from training.tracking import git_commit

app = typer.Typer(help="Measure, and print what docs/benchmarks.md records.", no_args_is_help=True)

METRICS = ("ndcg@10", "hr@10", "recall@50", "coverage@10")
"""Columns of quality tables."""


@app.command()
def demo() -> None:
    """Time and memory of each step of the demo in a new home, and the validation metrics of its two versions."""
    with tempfile.TemporaryDirectory(prefix="shortlist-bench-") as folder:
        overrides = (f"home={folder}/home", "serve.port=0", "mlflow.port=0")
        settings = load_settings(overrides)
        try:
            result = run_demo(settings, overrides)
            with Client(result.state.base_url, token=result.admin_token) as client:
                versions = {row["version"]: row["metrics"] for row in client.models()["versions"]}
        finally:
            stop_stack(settings.home)
    console.finish({**summary(result), "metrics": versions, "machine": machine()}, demo_markdown(result, versions))


@app.command()
def quality(
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="An imported dataset.")],
    study_file: Annotated[
        Path | None, typer.Option("--study", help="Study to run; auto.toml when left out.", metavar="STUDY.toml")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="Tune and test under this protocol, in place of the study's.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Time of the tuning, in place of the study's.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials of the tuning, in place of the study's.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many times what was chosen is trained for each test.")] = 3,
    refit: Annotated[bool, typer.Option(help="Also measure refitted on the validation rows; else no time is kept for it.")] = True,
    published: Annotated[
        str | None, typer.Option(help="Usual name of the data, for published rows beside ours; the dataset's when left out.")
    ] = None,
) -> None:
    """Tune a study on validation, read the test with what it chose, strict and refitted, and print published rows beside.

    Nothing is chosen by a test figure or by the dataset's name: published rows are for display.
    """
    from shortlist.bench import quality as measured

    result = measured.measure_quality(
        Runner(console.options.overrides),
        dataset,
        study_file or Path(study("auto")),
        console.settings().home / "bench",
        protocol=protocol,
        minutes=minutes,
        trials=trials,
        seeds=seeds,
        refit=refit,
    )
    rows = measured.published(published or dataset, result["protocol"])
    markdown = measured.quality_markdown(result, rows, machine())
    console.finish({**result, "published": rows, "machine": machine()}, markdown)


HereOption = Annotated[bool, typer.Option("--here", help="Measure the running stack of this home, not a small one of its own.")]


@app.command()
def idle(
    here: HereOption = False, seconds: Annotated[float, typer.Option(help="How long to look.", min=1)] = 60, settle: float = 20
) -> None:
    """Processor time and memory of a stack that nobody asks."""
    with bench_stack(console.settings(), here=here) as state:
        time.sleep(settle)
        costs = measure_idle(state, seconds)
    result = {"machine": machine(), "seconds": seconds, "processes": [vars(cost) for cost in costs]}
    console.finish(result, f"{machine()}; {seconds:.0f} s\n\n{idle_markdown(costs)}")


@app.command()
def faults(here: HereOption = False, repeats: Annotated[int, typer.Option(help="Kills of each process.", min=1)] = 3) -> None:
    """kill -9 of HAProxy, of the proxy actor and of a gateway under load: until when do answers fail?"""
    settings = console.settings()
    with bench_stack(settings, here=here) as state:
        found = measure_faults(state, known_users(state), repeats)
    console.finish({"machine": machine(), "faults": [vars(one) for one in found]}, f"{machine()}\n\n{faults_markdown(found)}")


@app.command()
def ingest(
    here: HereOption = False,
    seconds: Annotated[float, typer.Option(help="Of each load over HTTP.", min=1)] = 10.0,
    rows: Annotated[int, typer.Option(help="Events of the bulk import.", min=1000)] = 2_000_000,
    http: Annotated[bool, typer.Option(help="Also measure a running stack: intake, lag, freshness.")] = True,
) -> None:
    """How fast events are taken in, over HTTP and by import; how soon an answer shows one; memory of a user online."""
    from shortlist.bench.user_memory import measure_user_memory

    result: dict[str, Any] = {"machine": machine(), "import": measure_import(rows), "sync": measure_sync_policies(1.5)}
    result["memory"] = measure_user_memory()
    if http:
        with bench_stack(console.settings(), here=here) as state:
            result["freshness"] = measure_freshness(state, seconds)
            result["steady"] = measure_intake(state, seconds, STEADY_EVENTS_PER_S)
            result["saturated"] = measure_intake(state, seconds, None)
    console.finish(result, ingest_markdown(result))


ItemsOption = Annotated[int, typer.Option("--items", help="Size of the simulated catalogue.", min=1_000)]
FolderOption = Annotated[
    Path, typer.Option("--folder", help="Where the simulated world is made and kept; a quarter of an hour at a million items.")
]
WORLDS = Path(".shortlist-bench")


@app.command()
def ease(
    items: Annotated[int, typer.Option(help="Items of the simulated world.", min=100, max=30_000)] = 8_000,
    rounds: Annotated[int, typer.Option(help="Best of so many.", min=1)] = 2,
) -> None:
    """Processor time of EASE's fit against a scipy inverse of the same size, in one run."""
    from shortlist.bench.ease import measure_ease

    found = measure_ease(items, rounds)
    rows = "\n".join(f"| {name} | {value} |" for name, value in found.items())
    console.finish({"machine": machine(), "items": items} | found, f"{machine()}; {items:,} items\n\n| | |\n|---|---|\n{rows}")


@app.command()
def evaluation(
    users: Annotated[int, typer.Option(help="Users asked.", min=100)] = 22_000,
    items: Annotated[int, typer.Option(help="Items ranked for each.", min=100, max=1_000_000)] = 12_000,
) -> None:
    """Evaluation by blocks against a plain loop over users: time, memory, and that both say the same."""
    from shortlist.bench.evaluation import measure_evaluation

    found = measure_evaluation(users, items)
    rows = "\n".join(f"| {name} | {value} |" for name, value in found.items())
    console.finish({"machine": machine(), "items": items} | found, f"{machine()}; {items:,} items\n\n| | |\n|---|---|\n{rows}")


@app.command("cold-items")
def cold_items(
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="An imported dataset with texts.")],
    study_file: Annotated[Path, typer.Option("--study", help="Study, or a study's outcome; its fixed values are taken.")],
) -> None:
    """A study's funnel against plain text-kNN on items taken out of training, among cold items and among all, with intervals."""
    from shortlist.bench.cold_items import cold_items_markdown, measure_cold_items
    from shortlist.commands.tune import place_of
    from training.study import load_study
    from training.study_data import load_study_data

    study = load_study(study_file).model_copy(update={"protocol": "cold-items"})
    place = place_of(dataset, "")
    found = measure_cold_items(study, place, load_study_data(place, study), console.log.print)
    console.finish({"machine": machine(), "dataset": dataset} | found, f"{machine()}\n\n{cold_items_markdown(found)}")


@app.command()
def serving(
    items: ItemsOption = 1_000_000,
    folder: FolderOption = WORLDS,
    seconds: Annotated[float, typer.Option("--seconds", help="Length of each measurement.", min=0.5)] = 5.0,
    connections: Annotated[int, typer.Option("--connections", help="Connections kept open.", min=1, max=64)] = 8,
    rounds: Annotated[int, typer.Option("--rounds", help="How often each is measured; medians are told.", min=1)] = 3,
    replicas: Annotated[int, typer.Option("--replicas", help="Of the version, which computes; one a core.", min=1)] = 2,
) -> None:
    """Cached and computed answers over HTTP against a no-op on Ray Serve in the same run; memory and cold start."""
    from shortlist.bench.serving import bench_serving, serving_markdown
    from shortlist.bench.world import large_world

    world = large_world(folder.absolute() / f"items-{items}", items, console.log.print)
    result = bench_serving(
        world, seconds=seconds, connections=connections, rounds=rounds, replicas=replicas, notify=console.log.print
    )
    console.finish({**result, "machine": machine()}, serving_markdown(result, machine()))


@app.command()
def scale(items: ItemsOption = 1_000_000, folder: FolderOption = WORLDS) -> None:
    """One version of a large catalogue in one process: index, filters, the computed path, memory, cold start."""
    from shortlist.bench.scale import bench_scale, scale_markdown
    from shortlist.bench.world import large_world

    world = large_world(folder.absolute() / f"items-{items}", items, console.log.print)
    result = bench_scale(world, console.log.print)
    console.finish({**result, "machine": machine()}, scale_markdown(result, machine()))


@app.command()
def sequential(
    rounds: Annotated[int, typer.Option("--rounds", help="Epochs of each in turn.", min=1)] = 3,
    users: Annotated[int, typer.Option("--users", help="Short histories; a tenth as many long ones.", min=20)] = 4_000,
) -> None:
    """An epoch of the sequential transformer against plain torch with equal settings."""
    from shortlist.bench.sequential import bench_sequential, sequential_markdown
    from training.models.sequential_config import SequentialConfig

    last = SequentialConfig(targets="last", max_len=50, batch_size=512)
    every, long = SequentialConfig(max_len=50), SequentialConfig(batch_size=32)
    settings = [(every, users, 12_000, 9), (last, users, 12_000, 9), (long, users // 10, 3_500, 165)]
    results = [bench_sequential(config, count, items, length, rounds) for config, count, items, length in settings]
    console.finish({"machine": machine(), "results": results}, sequential_markdown(results, machine()))


@app.command()
def shadow(here: HereOption = False) -> None:
    """Latency of computed answers at half of their saturation, with and without a shadow that is asked for all of them."""
    settings = console.settings()
    with bench_stack(settings, here=here) as state:
        home = Path(state.log_dir).parent
        given = settings.token.admin.get_secret_value() if settings.token.admin and here else None
        cost = measure_shadow(state, given or kept_secret(home, "admin-token"), known_users(state))
    result = {"machine": machine(), **vars(cost), "p50_ratio": cost.p50_ratio, "shed_share": cost.shed_share}
    console.finish(result, f"{machine()}\n\n{shadow_markdown(cost)}")


@app.command()
def promotion(here: HereOption = False, repeats: Annotated[int, typer.Option(help="Promotions.", min=1)] = 4) -> None:
    """An alias is moved in MLflow under load: when does the first answer follow, when all, and does any request fail?"""
    with bench_stack(console.settings(), here=here) as state:
        found = measure_promotions(state, known_users(state), repeats)
    console.finish(
        {"machine": machine(), "promotions": [vars(one) for one in found]}, f"{machine()}\n\n{promotions_markdown(found)}"
    )


def demo_markdown(result: DemoResult, versions: dict[str, dict[str, float]]) -> str:
    """The demo's tables."""
    lines = [machine(), "", "| step | s | MB in all |", "|---|---|---|"]
    lines += [f"| `{record.command}` | {record.seconds:.1f} | {record.peak_mb:,} |" for record in result.runner.records]
    lines += ["", f"| version | {' | '.join(METRICS)} |", f"|---|{'---|' * len(METRICS)}"]
    for version, metrics in sorted(versions.items()):
        lines.append(f"| {version} | " + " | ".join(_figure(metrics.get(name)) for name in METRICS) + " |")
    return "\n".join(lines)


def machine() -> str:
    """Hardware, system and commit in one line."""
    memory_gb = psutil.virtual_memory().total / 2**30
    python = f"Python {platform.python_version()}"
    return f"commit {git_commit()[:10]}, {os.cpu_count()} cores, {memory_gb:.0f} GB, {platform.system()}, {python}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
