"""The bundle as an MLflow model: `mlflow.pyfunc.load_model("models:/shortlist-<dataset>@champion")`.

Models-from-code: MLflow stores `pyfunc_entry.py` and the bundle's files, never a pickle. Owns the form in which MLflow keeps and
loads a bundle; versions and aliases are `training.registry`'s.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel

from training.errors import RegistryError
from training.tracking import connect, experiment_id

BUNDLE_ARTIFACT = "bundle"
"""Name of the bundle among the MLflow model's artifacts."""
MAX_TOP_K = 1000


class ShortlistModel(PythonModel):
    """MLflow's view of a loaded pipeline."""

    def load_context(self, context: Any) -> None:
        """Load the bundle that lies beside the MLmodel file."""
        from training.pipeline import Pipeline

        self._pipeline = Pipeline.load(Path(context.artifacts[BUNDLE_ARTIFACT]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Recommend for each row of `model_input`.

        Args:
            model_input: a column `user_id` (known users get their history as of training, unknown ones the anonymous answer), a
                column `recent_items` (lists of item ids, oldest first; appended to the history of a known user), or both.
            params: `top_k`, 1 to 1000.

        Returns:
            A long frame `user_id, item_id, score, rank`: rank 1 is the best, rows in the order of the input, `user_id` null for
            rows that came without.

        Raises:
            ValueError: neither column is there, or `top_k` is out of range.
        """
        top_k = int((params or {}).get("top_k", 10))
        if not 1 <= top_k <= MAX_TOP_K:
            raise ValueError(f"top_k {top_k} is outside 1 to {MAX_TOP_K}")
        rows = len(model_input)
        users = _column(model_input, "user_id")
        recent = _column(model_input, "recent_items")
        if users is None and recent is None:
            raise ValueError(f"the input needs a column user_id or recent_items; it has {', '.join(map(str, model_input.columns))}")
        user_ids = [None] * rows if users is None else [None if _missing(u) else str(u) for u in users]
        sessions = [None] * rows if recent is None else [None if _missing(r) else [str(item) for item in r] for r in recent]
        frames = []
        by_session = np.array([s is not None for s in sessions])
        for is_session in (False, True):
            chosen = np.flatnonzero(by_session == is_session)
            if len(chosen) == 0:
                continue
            known = [user_ids[row] or "" for row in chosen]
            recent_items = [sessions[row] or [] for row in chosen] if is_session else None
            queries = self._pipeline.queries_for(known, recent_items=recent_items)
            lists = self._pipeline.recommend(queries, top_k)
            row, slot = np.nonzero(lists.item_idx >= 0)
            frames.append(
                pd.DataFrame(
                    {
                        "row": chosen[row],
                        "item_id": self._pipeline.item_ids[lists.item_idx[row, slot]],
                        "score": lists.score[row, slot].astype(np.float64),
                        "rank": slot + 1,
                    }
                )
            )
        long = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["row", "item_id", "score", "rank"])
        long = long.sort_values(["row", "rank"], kind="stable", ignore_index=True)
        owners = pd.Series(user_ids, dtype=object).reindex(long.pop("row")).to_numpy()
        long.insert(0, "user_id", owners)
        return long


def upload_model(tracking_uri: str, bundle: Path, *, name: str, run_id: str | None) -> tuple[str, str]:
    """Store a bundle as an MLflow model.

    Args:
        tracking_uri: the MLflow server.
        bundle: the bundle's folder.
        name: of the logged model, and of the experiment used when there is no run.
        run_id: the run that made the bundle.

    Returns:
        The source URI for `model-versions/create`, and the logged model's id.

    Raises:
        RegistryError: MLflow is unreachable or refuses.
    """
    from mlflow.exceptions import MlflowException

    client = connect(tracking_uri)
    with tempfile.TemporaryDirectory(prefix="shortlist-model-") as scratch:
        folder = Path(scratch) / "model"
        save_model_folder(bundle, folder)
        try:
            experiment = client.get_run(run_id).info.experiment_id if run_id else experiment_id(client, name)
            logged = client.create_logged_model(experiment, name=name, source_run_id=run_id, model_type="recommender")
            _stamp(folder / "MLmodel", logged.model_id, run_id)
            client.log_model_artifacts(logged.model_id, str(folder))
            client.finalize_logged_model(logged.model_id, "READY")
        except MlflowException as error:
            raise RegistryError(f"MLflow at {tracking_uri} refused the bundle: {str(error).splitlines()[0]}") from error
    return f"models:/{logged.model_id}", str(logged.model_id)


def save_model_folder(bundle: Path, folder: Path) -> None:
    """Write the MLflow model folder of a bundle. The bundle's files are hard-linked on the way where the disk allows it."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    signature = ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.string, "user_id", required=False),
                ColSpec(Array(DataType.string), "recent_items", required=False),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(DataType.string, "user_id", required=False),
                ColSpec(DataType.string, "item_id"),
                ColSpec(DataType.double, "score"),
                ColSpec(DataType.long, "rank"),
            ]
        ),
        params=ParamSchema([ParamSpec("top_k", DataType.integer, 10)]),
    )
    with tempfile.TemporaryDirectory(prefix="shortlist-bundle-", dir=bundle.parent) as scratch, warnings.catch_warnings():
        staged = Path(scratch) / BUNDLE_ARTIFACT
        shutil.copytree(bundle, staged, copy_function=_link_or_copy)
        # Our signature is complete; an example would be stored for nothing and run against the bundle at every registration.
        warnings.filterwarnings("ignore", message=".*input example was not provided.*")
        mlflow.pyfunc.save_model(
            path=str(folder),
            python_model=str(Path(__file__).with_name("pyfunc_entry.py")),
            artifacts={BUNDLE_ARTIFACT: str(staged)},
            signature=signature,
            pip_requirements=_requirements(),
        )


def download_model(tracking_uri: str, uri: str, folder: Path) -> None:
    """Copy a stored MLflow model from a remote artifact store into `folder`.

    Raises:
        RegistryError: the store is unreachable or has no such files.
    """
    connect(tracking_uri)
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    try:
        mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=tracking_uri)
    except (MlflowException, OSError) as error:
        raise RegistryError(f"{uri} cannot be fetched: {str(error).splitlines()[0]}") from error


def _stamp(mlmodel: Path, model_id: str, run_id: str | None) -> None:
    """Write the logged model's id into the MLmodel file, as MLflow's own logging does."""
    from mlflow.models import Model

    model = Model.load(str(mlmodel))
    model.model_id, model.run_id = model_id, run_id
    model.save(str(mlmodel))


def _requirements() -> list[str]:
    found = []
    for package in ("shortlist", "mlflow", "numpy", "scipy", "pandas", "pyarrow", "lightgbm", "torch", "safetensors"):
        try:
            found.append(f"{package}=={importlib.metadata.version(package).split('+')[0]}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _column(frame: pd.DataFrame, name: str) -> list[Any] | None:
    return frame[name].tolist() if name in frame.columns else None


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NA
