"""The steps of a pipeline run, in order. Each is what one would type by hand, and each may be repeated without harm.

    ingest -> features -> materialize -> train -> gate -> precompute -> alias

`ingest` waits until all activity accepted before it is stored; `train` tunes or refits, which registers a version with the gate's
verdict; `gate` decides whether the run goes on; lists are precomputed before the alias moves, so that the first answers are cached.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.activity_store import ActivityStore
from features.bus import EVENTS, FEATURES_GROUP, STORE_GROUP
from features.paths import DatasetPaths
from features.redis_bus import RedisStreamBus
from shortlist.commands.console import CommandError
from shortlist.pipeline.record import PipelineRecord
from shortlist.runner import Runner
from shortlist.stack.state import StackState
from training.model_version import GATE_REASON_TAG, SERVING_TAG, ModelVersion
from training.registry import Registry
from training.study import load_study
from training.study_run import OUTCOME_FILE, STUDY_TAG
from training.trial_log import TrialLog

DRAIN_S = 900.0
"""How long `ingest` waits for the worker before it fails and is tried again."""
LIVE_S = 180.0
"""How long a promoted version may take until it answers."""


@dataclass(frozen=True)
class StepContext:
    """What steps work with."""

    record: PipelineRecord
    paths: DatasetPaths
    stack: StackState
    runner: Runner

    @property
    def dataset(self) -> tuple[str, str]:
        """The option that names the dataset."""
        return ("--dataset", self.record.dataset)

    def registry(self) -> Registry:
        """The dataset's versions."""
        return Registry(self.stack.mlflow_uri, self.record.dataset, cache=self.paths.home / "bundles")


StepFunction = Callable[[StepContext], dict[str, Any]]


def ingest(context: StepContext) -> dict[str, Any]:
    """Wait until the store and the online features have all that the bus held when this began; then tidy the store."""
    bus = RedisStreamBus(context.stack.bus_url, context.record.dataset)
    try:
        newest = bus.tail(EVENTS, 1)
        deadline = time.monotonic() + DRAIN_S
        for group in (STORE_GROUP, FEATURES_GROUP):
            while newest and not bus.has_finished(EVENTS, group, newest[-1].id):
                if time.monotonic() > deadline:
                    raise CommandError(f"the worker's group {group!r} is behind: see `shortlist events lag` and logs/worker.log")
                time.sleep(0.2)
    finally:
        bus.close()
    store = ActivityStore.of(context.paths)
    return {"compacted_dates": store.compact(), "events": store.count()}


def features(context: StepContext) -> dict[str, Any]:
    """Feature tables as of the run's start, and Feast's registry."""
    built = context.runner.run("features", "build", *context.dataset, "--as-of", context.record.as_of.isoformat())
    context.runner.run("features", "apply", *context.dataset)
    return {"as_of": built["as_of"], "rows": {table["view"]: table["rows"] for table in built["tables"]}}


def materialize(context: StepContext) -> dict[str, Any]:
    """The online store from the tables, and the check that both agree."""
    written = context.runner.run("features", "materialize", *context.dataset)
    context.runner.run("features", "check", *context.dataset)
    return {"rows": written["rows"]}


def train(context: StepContext) -> dict[str, Any]:
    """A registered version: tuned, or refitted from what the last search chose. A version of this run is not trained again."""
    options, folder = context.record.options, context.paths.root / "studies"
    study = load_study(Path(options.study))
    made = _version_of_this_run(context, study.name)
    if made is None:
        outcome = folder / study.name / OUTCOME_FILE
        if options.mode == "refit" and outcome.exists():
            context.runner.run("train", str(outcome), *context.dataset)
        else:
            begun = TrialLog(folder / study.name).begun_at()
            flags = ["--resume"] if begun is not None and begun >= context.record.started_at else []
            flags += [] if options.minutes is None else ["--minutes", str(options.minutes)]
            context.runner.run("tune", options.study, *context.dataset, *flags)
        made = _version_of_this_run(context, study.name)
    if made is None:
        raise CommandError(f"study {study.name!r} registered no version: see its run in MLflow")
    return {"model_version": made.version, "run_id": made.run_id, "metrics": dict(made.metrics)}


def gate(context: StepContext) -> dict[str, Any]:
    """The verdict that was stored when the version was registered."""
    found = context.registry().version(context.record.result_of("train")["model_version"])
    return {"verdict": found.gate, "reason": found.tags.get(GATE_REASON_TAG, ""), "servable": found.servable}


def precompute(context: StepContext) -> dict[str, Any]:
    """Lists of all users, in Parquet beside the version and in the cache."""
    return context.runner.run("precompute", "--alias", context.record.result_of("train")["model_version"])


def alias(context: StepContext) -> dict[str, Any]:
    """Move the alias, and wait until serving follows. A version that serving refuses loses the alias again."""
    name, version = str(context.record.options.alias), context.record.result_of("train")["model_version"]
    moved = context.runner.run("models", "promote", version, "--alias", name, *context.dataset)
    registry, deadline = context.registry(), time.monotonic() + LIVE_S
    while (said := registry.version(version).tags.get(SERVING_TAG, "")) != "live":
        if said.startswith("refused"):
            if moved["previous"] not in (None, version):
                registry.set_alias(name, moved["previous"], by="pipeline")
            raise CommandError(f"serving refused version {version} ({said}); {name} is back at {moved['previous']}")
        if time.monotonic() > deadline:
            raise CommandError(f"version {version} is not live after {LIVE_S:.0f} s: see logs/supervisor.log")
        time.sleep(0.5)
    return {"alias": name, "version": version, "previous": moved["previous"]}


STEPS: dict[str, StepFunction] = {
    "ingest": ingest,
    "features": features,
    "materialize": materialize,
    "train": train,
    "gate": gate,
    "precompute": precompute,
    "alias": alias,
}
"""Name -> what it does; to add a step, write its function and name it here."""


def _version_of_this_run(context: StepContext, study: str) -> ModelVersion | None:
    """The version that this run has registered, if it came so far before."""
    versions = context.registry().versions()
    own = [v for v in versions if v.tags.get(STUDY_TAG) == study and v.created_at >= context.record.started_at]
    return max(own, key=lambda v: v.created_at, default=None)
