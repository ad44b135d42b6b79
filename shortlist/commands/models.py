"""`shortlist models`: versions in the registry, their gate, their aliases."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from shortlist.commands import console
from shortlist.commands.connection import DatasetOption, UrlOption, chosen_dataset, connected
from shortlist.stack.attach import mlflow_for_call
from shortlist.stack.control import choose_dataset
from training.model_version import CHAMPION, GATE_OVERRIDE_TAG, GATE_REASON_TAG, METRICS_TAG, SERVING_TAG, ModelVersion

if TYPE_CHECKING:
    from training.study_data import Place

app = typer.Typer(help="List, promote, roll back and prune model versions.", no_args_is_help=True)

VersionArgument = Annotated[str, typer.Argument(help="Number of the version, or an alias.")]
AliasOption = Annotated[str, typer.Option("--alias", "-a", help="Name of the alias; champion takes default traffic.")]


@app.command("list")
def list_(dataset: DatasetOption = None) -> None:
    """All versions, newest first, with aliases, gate and validation metrics."""
    with _opened(dataset) as place:
        registry = place.registry()
        versions = registry.versions()
    if not versions:
        choose_dataset(console.settings(), place.dataset)  # no version of a dataset, or no such dataset
    result = {"model": registry.model, "versions": [_described(v) for v in versions]}
    table = Table("version", "aliases", "gate", "serving", "ndcg@10", "study", "registered (UTC)", title=registry.model)
    for v in versions:
        ndcg = v.metrics.get("ndcg@10")
        table.add_row(
            v.version,
            ", ".join(v.aliases),
            (v.gate or "") + (" (overridden)" if v.tags.get(GATE_OVERRIDE_TAG) else ""),
            v.tags.get(SERVING_TAG, ""),
            "" if ndcg is None else f"{ndcg:.4f}",
            v.tags.get("shortlist.study", ""),
            f"{v.created_at:%Y-%m-%d %H:%M}",
        )
    console.finish(result, table)


@app.command()
def show(version: VersionArgument, dataset: DatasetOption = None) -> None:
    """One version: tags, metrics, aliases, and the history of each alias."""
    with _opened(dataset) as place:
        registry = place.registry()
        found = registry.version(version)
        folder = registry.download(found.version)
        history = {alias: [move.__dict__ for move in registry.history(alias)] for alias in found.aliases}
    result = _described(found) | {"bundle": str(folder), "history": history}
    console.finish(result, version_tables(registry.model, found, str(folder), history))


@app.command()
def promote(
    version: VersionArgument,
    alias: AliasOption = CHAMPION,
    override: Annotated[
        str | None, typer.Option("--override", metavar="REASON", help="Promote although the gate failed it; the reason is kept.")
    ] = None,
    dataset: DatasetOption = None,
) -> None:
    """Point an alias at a version; serving follows within seconds.

    A version that the gate failed is refused unless --override says why it should be served all the same.
    """
    with _opened(dataset) as place:
        registry = place.registry()
        found = registry.version(version)
        if override is not None and found.gate == "fail":
            registry.set_tag(found.version, GATE_OVERRIDE_TAG, override)
        elif not found.servable:
            raise console.CommandError(
                f"the gate failed version {found.version}: {found.tags.get(GATE_REASON_TAG, 'no reason stored')}. "
                'To promote it all the same: --override "why"'
            )
        before = registry.aliases().get(alias)
        registry.set_alias(alias, found.version)
    result = {"model": registry.model, "alias": alias, "version": found.version, "previous": before}
    console.finish(result, f"{alias} of {registry.model}: version {found.version} (before: {before or 'none'})")


@app.command()
def rollback(alias: AliasOption = CHAMPION, dataset: DatasetOption = None) -> None:
    """Move an alias back to the version before. Twice goes back two versions."""
    with _opened(dataset) as place:
        registry = place.registry()
        left, taken = registry.rollback(alias)
    result = {"model": registry.model, "alias": alias, "version": taken, "previous": left}
    console.finish(result, f"{alias} of {registry.model}: back to version {taken} from {left}")


@app.command()
def history(
    at: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"], help="Show what was so at this time (UTC)."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Entries shown, the newest.")] = 50,
    url: UrlOption = None,
) -> None:
    """What was changed, when and by whom: aliases, routing, experiments. With --at, the state at that time."""
    with connected(url) as client:
        if at is not None:
            state = client.audit(at=at.replace(tzinfo=UTC))
            table = Table("subject", "was", title=f"at {state['at']}")
            for subject, value in state["state"].items():
                table.add_row(subject, escape(json.dumps(value)))
            console.finish(state, table)
            return
        entries: list[dict[str, Any]] = []
        after = 0
        while page := client.audit(after=after, limit=1000)["entries"]:
            entries = (entries + [one for one in page if not one["subject"].startswith(("item:", "user:"))])[-limit:]
            after = page[-1]["id"]
    table = Table("at (UTC)", "what", "change")
    for one in entries:
        what = f"{one['action']}\n{one['subject']}\nby {one['actor']}"
        table.add_row(one["at"][:19].replace("T", "\n"), escape(what), escape(console.change_text(one["before"], one["after"])))
    console.finish({"entries": entries}, table)


@app.command()
def gate(version: VersionArgument, dataset: DatasetOption = None) -> None:
    """Judge a version against the present champion again and store the verdict."""
    from training.judge import rejudge

    with _opened(dataset) as place:
        registry = place.registry()
        found = registry.version(version)
        decision = rejudge(registry, found)
    result = {
        "model": registry.model,
        "version": found.version,
        "verdict": decision.verdict,
        "reasons": list(decision.reasons),
    }
    console.finish(result, f"version {found.version}: {decision.verdict}: {escape(decision.reason)}")


@app.command()
def prune(
    keep: Annotated[int, typer.Option(min=1, help="Versions to keep besides those in use.")] = 10,
    dataset: DatasetOption = None,
) -> None:
    """Delete old versions from the registry.

    What an alias points at, a rollback would take or an experiment that is not over assigns, is kept.
    """
    from features.control_store import ControlStore
    from serving.control import ServingControl

    with _opened(dataset) as place:
        registry = place.registry()
        pinned = ServingControl(ControlStore(place.control_url).create(), place.dataset).pinned_versions()
        gone = registry.prune(keep, in_use=pinned)
        left = [v.version for v in registry.versions()]
    if not gone and not left:
        choose_dataset(console.settings(), place.dataset)  # nothing to delete, or no such dataset
    console.finish({"model": registry.model, "deleted": gone, "kept": left}, f"deleted {len(gone)}, kept {len(left)}")


def version_tables(model: str, version: ModelVersion, bundle: str, history: Mapping[str, Sequence[Mapping[str, Any]]]) -> Group:
    """A version for people: what it is, its metrics, where its aliases pointed; each fact once.

    Args:
        model: name of the registered model.
        version: to show.
        bundle: folder of its bundle.
        history: moves of each of its aliases, oldest first.
    """
    facts = Table(title=f"{model} version {version.version}", show_header=False)
    facts.add_row("aliases", ", ".join(version.aliases) or "none")
    facts.add_row("servable", "yes" if version.servable else "no: the gate failed it")
    facts.add_row("registered (UTC)", f"{version.created_at:%Y-%m-%d %H:%M:%S}")
    facts.add_row("MLflow run", version.run_id or "")
    facts.add_row("bundle", Text(bundle, overflow="fold"))
    for name, value in sorted(version.tags.items()):
        if name != METRICS_TAG:
            facts.add_row(escape(name), Text(value, overflow="fold"))
    shown: list[Table] = [facts]
    if version.metrics:
        metrics = Table("metric", "on validation", title="metrics")
        for name, figure in version.metrics.items():
            metrics.add_row(escape(name), f"{figure:z.4f}")
        shown.append(metrics)
    if history:
        moves = Table("alias", "at (UTC)", "version", "how", "by", title="history")
        for alias, of_alias in history.items():
            for move in of_alias:
                moves.add_row(alias, move["at"][:19].replace("T", " "), move["version"], move["kind"], escape(move["by"]))
        shown.append(moves)
    return Group(*shown)


@contextmanager
def _opened(dataset: str | None) -> Iterator[Place]:
    from shortlist.commands.tune import place_of

    settings = console.settings()
    name = chosen_dataset(dataset)
    if settings.mlflow.tracking_uri is None:
        choose_dataset(settings, name)  # the home's own registry has no version of a dataset that is not here
    with mlflow_for_call(settings) as uri:
        yield place_of(name, uri)


def _described(version: ModelVersion) -> dict[str, Any]:
    return {
        "version": version.version,
        "aliases": list(version.aliases),
        "gate": version.gate,
        "servable": version.servable,
        "metrics": version.metrics,
        "run_id": version.run_id,
        "created_at": version.created_at,
        "tags": dict(version.tags),
    }
