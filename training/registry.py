"""Registered versions of one dataset's model: register, find, move aliases, roll back, prune, fetch.

Owns the model registry. Reads and alias moves go over MLflow's REST API directly: 6 ms and no `import mlflow`, which serving
processes would pay with 140 MB each; the client library is loaded for uploads and remote downloads alone. Runs are
`training.tracking`'s, the verdict on a candidate `training.gate`'s.

MLflow keeps no history of an alias, so `Registry` keeps it in the registered model's tag `shortlist.history.<alias>`: any machine
that can reach the registry can roll back, and a move made in the MLflow UI is added by whoever notices it first (`observe`).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import httpx

from training.errors import RegistryError

CHAMPION = "champion"
"""Alias that takes default traffic."""

GATE_TAG = "shortlist.gate"
"""Verdict of the gate: `pass`, `fail` or `first` (nothing to compare with)."""
GATE_REASON_TAG = "shortlist.gate_reason"
GATE_OVERRIDE_TAG = "shortlist.gate_override"
"""Set to a reason, it lets a version with verdict `fail` be promoted and served."""
DATASET_TAG = "shortlist.dataset"
METRICS_TAG = "shortlist.metrics"
"""Validation metrics before the refit, as JSON, so that a list of versions needs no look at runs."""
SERVING_TAG = "shortlist.serving"
"""Written by serving: `live`, `loading` or `refused:<why>`."""
HISTORY_TAG_PREFIX = "shortlist.history."

_HISTORY_LIMIT = 40
"""Alias moves kept: MLflow's SQL schema holds 5,000 characters in a registered model's tag, one move takes up to 110."""


@dataclass(frozen=True)
class ModelVersion:
    """One registered version. `version` is a decimal string, compared as text; `created_at` is UTC."""

    version: str
    created_at: datetime
    run_id: str | None
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    @property
    def gate(self) -> str | None:
        """The gate's verdict at registration, None for a version that somebody else registered."""
        return self.tags.get(GATE_TAG)

    @property
    def servable(self) -> bool:
        """False when the gate failed it and nobody overrode that."""
        return self.gate != "fail" or bool(self.tags.get(GATE_OVERRIDE_TAG))

    @property
    def metrics(self) -> dict[str, float]:
        """Validation metrics taken before the refit; empty where none were stored."""
        raw = self.tags.get(METRICS_TAG)
        return {str(name): float(value) for name, value in json.loads(raw).items()} if raw else {}


@dataclass(frozen=True)
class AliasMove:
    """One move of an alias. `kind` is `set` or `rollback`; `at` is UTC in ISO 8601."""

    version: str
    kind: str
    at: str
    by: str


class Registry:
    """The versions of `shortlist-<dataset>` in one MLflow server.

    Args:
        tracking_uri: http(s) URL of the MLflow server.
        dataset: the namespace.
        cache: folder for bundles fetched from a remote artifact store; needed by `download` only where the store is remote.
        timeout_s: of each call; an unreachable server is a `RegistryError` after at most this time.

    Raises:
        RegistryError: `tracking_uri` is not an http(s) URL.
    """

    def __init__(self, tracking_uri: str, dataset: str, *, cache: Path | None = None, timeout_s: float = 5.0) -> None:
        if not tracking_uri.startswith(("http://", "https://")):
            raise RegistryError(
                f"mlflow.tracking_uri {tracking_uri!r} is not an http(s) URL: aliases and webhooks need a tracking server"
            )
        self.tracking_uri = tracking_uri.rstrip("/")
        self.dataset = dataset
        self.model = f"shortlist-{dataset}"
        self._cache = cache
        user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
        token = os.environ.get("MLFLOW_TRACKING_TOKEN")
        self._http = httpx.Client(
            base_url=f"{self.tracking_uri}/api/2.0/mlflow/",
            timeout=timeout_s,
            auth=httpx.BasicAuth(user, password) if user and password else None,
            headers={"Authorization": f"Bearer {token}"} if token else None,
        )

    def close(self) -> None:
        """Close the connection pool."""
        self._http.close()

    # Reading

    def aliases(self) -> dict[str, str]:
        """Alias -> version; empty while nothing is registered."""
        model = self._model()
        return {} if model is None else _aliases(model)

    def versions(self) -> list[ModelVersion]:
        """All versions, newest first; empty while nothing is registered."""
        model = self._model()
        if model is None:
            return []
        aliases = _aliases(model)
        found: list[ModelVersion] = []
        page: str | None = None
        while True:
            query = {"filter": f"name='{self.model}'", "max_results": "200"} | ({"page_token": page} if page else {})
            answer = self._call("GET", "model-versions/search", params=query)
            found += [_version(raw, aliases) for raw in answer.get("model_versions", [])]
            page = answer.get("next_page_token")
            if not page:
                return sorted(found, key=lambda v: int(v.version), reverse=True)

    def version(self, name: str) -> ModelVersion:
        """A version by number or by alias.

        Raises:
            RegistryError: there is none of that name; the message lists what there is.
        """
        model = self._model()
        aliases = {} if model is None else _aliases(model)
        number = aliases.get(name, name)
        try:
            if not number.isdecimal():
                raise _NotFound
            raw = self._call("GET", "model-versions/get", params={"name": self.model, "version": number})["model_version"]
        except _NotFound:
            if model is None:
                raise RegistryError(
                    f"nothing is registered as {self.model}: run `shortlist tune … --dataset {self.dataset}` first"
                ) from None
            known = ", ".join(f"{alias}={v}" for alias, v in sorted(aliases.items())) or "no aliases"
            raise RegistryError(f"{self.model} has no version or alias {name!r} (aliases: {known})") from None
        return _version(raw, aliases)

    def history(self, alias: str) -> list[AliasMove]:
        """Moves of an alias, oldest first, as far as they are kept."""
        model = self._model()
        return [] if model is None else _history(model, alias)

    def previous(self, alias: str) -> str | None:
        """The version that a rollback of `alias` would take, None where there is none."""
        model = self._model()
        if model is None or alias not in _aliases(model):
            return None
        return self._previous(model, alias)[1]

    # Writing

    def register(
        self,
        bundle: Path,
        *,
        run_id: str | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Upload a bundle folder as a new version and return its number.

        Args:
            bundle: what `training.bundle.save_bundle` wrote.
            run_id: MLflow run that produced it.
            metrics: validation metrics before the refit; stored in the tag `shortlist.metrics`.
            tags: further tags, such as the gate's.

        Raises:
            RegistryError: MLflow refused or is unreachable.
        """
        from training.pyfunc import upload_model

        source, model_id = upload_model(self.tracking_uri, bundle, name=self.model, run_id=run_id)
        self._ensure_model()
        stored = {DATASET_TAG: self.dataset, **(tags or {})}
        if metrics:
            stored[METRICS_TAG] = json.dumps({name: round(float(value), 6) for name, value in metrics.items()})
        body: dict[str, Any] = {
            "name": self.model,
            "source": source,
            "model_id": model_id,
            "tags": [{"key": key, "value": value} for key, value in stored.items()],
        }
        if run_id:
            body["run_id"] = run_id
        return str(self._call("POST", "model-versions/create", json=body)["model_version"]["version"])

    def set_alias(self, alias: str, version: str, *, by: str = "shortlist") -> None:
        """Point `alias` at a version and remember where it was.

        Raises:
            RegistryError: no such version.
        """
        number = self.version(version).version
        self.observe(alias)
        self._point(alias, number)
        self._remember(alias, AliasMove(number, "set", _now(), by))

    def delete_alias(self, alias: str) -> None:
        """Remove an alias; its history stays.

        Raises:
            RegistryError: no such alias.
        """
        if alias not in self.aliases():
            raise RegistryError(f"{self.model} has no alias {alias!r}")
        self._call("DELETE", "registered-models/alias", json={"name": self.model, "alias": alias})

    def observe(self, alias: str, *, by: str = "mlflow") -> bool:
        """Add the alias's present version to its history when it was moved elsewhere (the MLflow UI).

        Whoever sees a move calls this; without it a rollback could not know the version in between.

        Returns:
            Whether a move was added.
        """
        model = self._model()
        present = None if model is None else _aliases(model).get(alias)
        if model is None or present is None:
            return False
        past = _history(model, alias)
        if past and past[-1].version == present:
            return False
        self._remember(alias, AliasMove(present, "set", _now(), by))
        return True

    def rollback(self, alias: str = CHAMPION, *, by: str = "shortlist") -> tuple[str, str]:
        """Move `alias` to the version before. Rolling back twice goes back two versions.

        Returns:
            The version left and the version taken.

        Raises:
            RegistryError: no such alias, or no earlier version is known and still exists.
        """
        self.observe(alias)
        model = self._model()
        if model is None or alias not in _aliases(model):
            raise RegistryError(f"{self.model} has no alias {alias!r} to roll back")
        present, previous = self._previous(model, alias)
        if previous is None:
            raise RegistryError(
                f"{alias} of {self.model} is at version {present} and no earlier one that still exists is known: "
                f"name one with `shortlist models promote VERSION --alias {alias}`"
            )
        self._point(alias, previous)
        self._remember(alias, AliasMove(previous, "rollback", _now(), by))
        return present, previous

    def set_tag(self, version: str, key: str, value: str) -> None:
        """Set a tag of a version (number, not alias)."""
        self._call("POST", "model-versions/set-tag", json={"name": self.model, "version": version, "key": key, "value": value})

    def delete(self, version: str) -> None:
        """Delete a version's entry. Its files stay with its run.

        Raises:
            RegistryError: no such version, or an alias points at it.
        """
        found = self.version(version)
        if found.aliases:
            raise RegistryError(f"version {found.version} of {self.model} is {', '.join(found.aliases)}: move the alias first")
        self._call("DELETE", "model-versions/delete", json={"name": self.model, "version": found.version})

    def prune(self, keep: int) -> list[str]:
        """Delete all versions but the newest `keep`, the aliased ones and those that a rollback of an alias would take.

        Returns:
            The versions deleted.
        """
        model = self._model()
        if model is None:
            return []
        kept = {v.version for v in self.versions()[:keep]} | set(_aliases(model).values())
        kept |= {previous for alias in _aliases(model) if (previous := self.previous(alias)) is not None}
        gone = [v.version for v in self.versions() if v.version not in kept]
        for number in gone:
            self._call("DELETE", "model-versions/delete", json={"name": self.model, "version": number})
        return gone

    # Fetching

    def download(self, version: str) -> Path:
        """Local folder of a version's bundle. Nothing is copied where the artifact store is a local folder.

        Remote stores are copied once into the cache: versions never change, so a copy is good for ever.

        Raises:
            RegistryError: no such version, its files are gone, or the store is remote and no cache folder was given.
        """
        try:
            answer = self._call("GET", "model-versions/get-download-uri", params={"name": self.model, "version": version})
        except _NotFound:
            self.version(version)
            raise
        uri = str(answer["artifact_uri"])
        local = _local_path(uri)
        if local is not None:
            return _bundle_folder(local, f"version {version} of {self.model}")
        if self._cache is None:
            raise RegistryError(f"version {version} of {self.model} is at {uri}: a cache folder is needed to fetch it")
        target = self._cache / self.model / version
        if not target.exists():
            from training.pyfunc import download_model

            target.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=target.parent))
            try:
                download_model(self.tracking_uri, uri, staging)
                os.rename(staging, target)
            except OSError as error:
                # Another process of this machine may have finished first.
                if not target.exists():
                    raise RegistryError(f"version {version} of {self.model} cannot be stored at {target}: {error}") from error
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        return _bundle_folder(target, f"version {version} of {self.model}")

    # REST

    def _previous(self, model: Mapping[str, Any], alias: str) -> tuple[str, str | None]:
        present = _aliases(model)[alias]
        stack: list[str] = []
        for move in _history(model, alias):
            if move.kind == "rollback" and move.version in stack:
                del stack[stack.index(move.version) + 1 :]
            elif not stack or stack[-1] != move.version:
                stack.append(move.version)
        existing = {v.version for v in self.versions()}
        # The alias may have gone elsewhere since the last note: then the last note is the version before.
        earlier = stack[:-1] if stack and stack[-1] == present else stack
        return present, next((v for v in reversed(earlier) if v in existing and v != present), None)

    def _point(self, alias: str, number: str) -> None:
        self._call("POST", "registered-models/alias", json={"name": self.model, "alias": alias, "version": number})

    def _remember(self, alias: str, move: AliasMove) -> None:
        model = self._model() or {}
        moves = [*_history(model, alias), move][-_HISTORY_LIMIT:]
        value = json.dumps([asdict(m) for m in moves], separators=(",", ":"))
        body = {"name": self.model, "key": HISTORY_TAG_PREFIX + alias, "value": value}
        self._call("POST", "registered-models/set-tag", json=body)

    def _model(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._call("GET", "registered-models/get", params={"name": self.model})["registered_model"]
        except _NotFound:
            return None
        return found

    def _ensure_model(self) -> None:
        if self._model() is None:
            try:
                self._call("POST", "registered-models/create", json={"name": self.model})
            except RegistryError:
                # Two first registrations at once: the other one created it.
                if self._model() is None:
                    raise

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise RegistryError(
                f"MLflow at {self.tracking_uri} cannot be reached ({type(error).__name__}): start it with `shortlist up`, "
                "or set mlflow.tracking_uri to a running server"
            ) from error
        if answer.status_code == 200:
            body: dict[str, Any] = answer.json()
            return body
        try:
            code, message = answer.json()["error_code"], answer.json()["message"]
        except (ValueError, KeyError, TypeError):
            raise RegistryError(
                f"{self.tracking_uri} answered {answer.status_code} to {path}: is it an MLflow server, and are its credentials "
                "in MLFLOW_TRACKING_TOKEN or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD?"
            ) from None
        if code == "RESOURCE_DOES_NOT_EXIST":
            raise _NotFound(f"MLflow at {self.tracking_uri}: {message}")
        raise RegistryError(f"MLflow at {self.tracking_uri} refused {path}: {message}")


class _NotFound(RegistryError):
    """MLflow says that the thing does not exist."""


def _aliases(model: Mapping[str, Any]) -> dict[str, str]:
    return {str(entry["alias"]): str(entry["version"]) for entry in model.get("aliases", [])}


def _history(model: Mapping[str, Any], alias: str) -> list[AliasMove]:
    for tag in model.get("tags", []):
        if tag["key"] == HISTORY_TAG_PREFIX + alias:
            try:
                return [AliasMove(**move) for move in json.loads(tag["value"])]
            except (ValueError, TypeError) as error:
                raise RegistryError(f"tag {tag['key']} of {model.get('name')} is damaged ({error}): delete it in MLflow") from error
    return []


def _version(raw: Mapping[str, Any], aliases: Mapping[str, str]) -> ModelVersion:
    number = str(raw["version"])
    return ModelVersion(
        version=number,
        created_at=datetime.fromtimestamp(int(raw["creation_timestamp"]) / 1000, UTC),
        run_id=raw.get("run_id") or None,
        tags={tag["key"]: tag.get("value", "") for tag in raw.get("tags", [])},
        aliases=tuple(sorted(alias for alias, v in aliases.items() if v == number)),
    )


def _local_path(uri: str) -> Path | None:
    parts = urlparse(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(uri) if not parts.scheme and Path(uri).is_absolute() else None


def _bundle_folder(model_folder: Path, what: str) -> Path:
    """The one folder below `artifacts/` of a stored MLflow model is the bundle."""
    folder = model_folder / "artifacts"
    found = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    if len(found) != 1:
        raise RegistryError(f"{what} has no bundle below {folder}: its files were moved, deleted or never uploaded by Shortlist")
    return found[0]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
