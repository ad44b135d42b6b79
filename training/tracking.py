"""MLflow runs: a parent run a study, a nested run a trial, their parameters, metrics and files.

Owns the tracking client. Which configurations are tried is `training.tune`'s, versions and aliases are `training.registry`'s.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from training.errors import RegistryError

PARENT_TAG = "mlflow.parentRunId"
_MAX_PARAM_LENGTH = 6000
"""MLflow refuses longer parameter values."""


def connect(tracking_uri: str) -> Any:
    """An `MlflowClient` that gives up on an unreachable server in seconds instead of minutes.

    Sets MLflow's request retries and time-out in this process's environment, unless the caller's environment has them.

    Raises:
        RegistryError: the server does not answer.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "1")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    try:
        client.search_experiments(max_results=1)
    except MlflowException as error:
        raise RegistryError(
            f"MLflow at {tracking_uri} cannot be reached: start it with `shortlist up`, or set mlflow.tracking_uri to a "
            f"running server ({str(error).splitlines()[0][:160]})"
        ) from error
    return client


def experiment_id(client: Any, name: str) -> str:
    """Id of the experiment of that name, created when missing and restored when deleted."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:
            # Two first runs at once: the other one created it.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


class Run:
    """One MLflow run, written through the client (no global active run, so trials and threads do not meet)."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self.run_id = run_id

    @classmethod
    def start(cls, client: Any, experiment: str, name: str, *, parent: str | None = None, tags: Mapping[str, str]) -> Run:
        """Create a run in the experiment of that name, below `parent` when given."""
        nested = {PARENT_TAG: parent} if parent else {}
        created = client.create_run(
            experiment_id(client, experiment), run_name=name, tags={"mlflow.source.type": "JOB", **tags, **nested}
        )
        return cls(client, str(created.info.run_id))

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters; nested mappings become dotted names, long values are cut to what MLflow takes."""
        from mlflow.entities import Param

        flat = [Param(name, str(value)[:_MAX_PARAM_LENGTH]) for name, value in flatten(params).items()]
        for start in range(0, len(flat), 100):
            self._client.log_batch(self.run_id, params=flat[start : start + 100])

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log the finite ones of `metrics` at one step, under the names of `metric_name`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [
            Metric(metric_name(name), float(value), now, step) for name, value in metrics.items() if math.isfinite(float(value))
        ]
        if batch:
            self._client.log_batch(self.run_id, metrics=batch)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, value)

    def log_json(self, value: object, path: str) -> None:
        """Store a JSON file among the run's artifacts."""
        self._client.log_text(self.run_id, json.dumps(value, indent=2, default=str) + "\n", path)

    def log_text(self, text: str, path: str) -> None:
        """Store a text file among the run's artifacts."""
        self._client.log_text(self.run_id, text, path)

    def log_file(self, file: Path, folder: str | None = None) -> None:
        """Store a file among the run's artifacts."""
        self._client.log_artifact(self.run_id, str(file), folder)

    def log_table(self, table: pd.DataFrame, path: str) -> None:
        """Store a frame as Parquet among the run's artifacts."""
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / name
            table.to_parquet(file, index=False)
            self.log_file(file, folder or None)

    def read_table(self, path: str) -> pd.DataFrame | None:
        """What `log_table` stored, None where the run has no such file."""
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory() as scratch:
            try:
                return pd.read_parquet(self._client.download_artifacts(self.run_id, path, scratch))
            except (MlflowException, OSError):
                return None

    def end(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self.run_id, status)


def metric_name(name: str) -> str:
    """`ndcg@10` as MLflow takes it, which refuses `@` in names: `ndcg_at_10`."""
    return name.replace("@", "_at_")


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested mappings as dotted names: `{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def git_commit() -> str:
    """Commit of the code that runs, with `-dirty` where files differ; `unknown` outside a checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    folder = Path(__file__).parent
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
