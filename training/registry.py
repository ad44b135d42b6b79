"""Registered versions of one dataset's model: register, find, move aliases, roll back, prune, fetch.

Owns the model registry. Reads and alias moves go over MLflow's REST API (`training.mlflow_rest`); the client library is loaded for
uploads and remote downloads alone. Runs are `training.tracking`'s, the verdict on a candidate `training.gate`'s, the form of an
alias's history `training.alias_history`'s.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training.alias_history import HISTORY_TAG_PREFIX, AliasMove, history_value, read_history, version_before
from training.bundle_download import local_bundle
from training.errors import AliasNameError, NoEarlierVersionError, RegistryError, UnknownVersionError
from training.mlflow_rest import InvalidCallError, MlflowRest, NotFoundError
from training.model_version import CHAMPION, DATASET_TAG, METRICS_TAG, ModelVersion, check_alias_name

MAX_VERSION = 2**31 - 1
"""Numbers beyond are no version's; MLflow's database may not be able to look for them."""


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
        self._rest = MlflowRest(tracking_uri, timeout_s=timeout_s)
        self.tracking_uri = self._rest.tracking_uri
        self.dataset = dataset
        self.model = f"shortlist-{dataset}"
        self._cache = cache

    def close(self) -> None:
        """Close the connection pool."""
        self._rest.close()

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
            answer = self._rest.call("GET", "model-versions/search", params=query)
            found += [ModelVersion.of(raw, aliases) for raw in answer.get("model_versions", [])]
            page = answer.get("next_page_token")
            if not page:
                return sorted(found, key=lambda v: int(v.version), reverse=True)

    def version(self, name: str) -> ModelVersion:
        """A version by number or by alias.

        Raises:
            UnknownVersionError: there is none of that name; the message lists what there is.
            RegistryError: MLflow refused or is unreachable.
        """
        model = self._model()
        aliases = {} if model is None else _aliases(model)
        number = aliases.get(name, name)
        try:
            if not (number.isascii() and number.isdecimal() and len(number) <= 10 and int(number) <= MAX_VERSION):
                raise NotFoundError
            raw = self._rest.call("GET", "model-versions/get", params={"name": self.model, "version": number})["model_version"]
        except NotFoundError:
            if model is None:
                raise UnknownVersionError(
                    f"nothing is registered as {self.model}: run `shortlist tune … --dataset {self.dataset}` first"
                ) from None
            known = ", ".join(f"{alias}={v}" for alias, v in sorted(aliases.items())) or "no aliases"
            raise UnknownVersionError(f"{self.model} has no version or alias {name[:80]!r} (aliases: {known})") from None
        return ModelVersion.of(raw, aliases)

    def history(self, alias: str) -> list[AliasMove]:
        """Moves of an alias, oldest first, as far as they are kept."""
        model = self._model()
        return [] if model is None else read_history(model, alias)

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
        return str(self._rest.call("POST", "model-versions/create", json=body)["model_version"]["version"])

    def set_alias(self, alias: str, version: str, *, by: str = "shortlist") -> None:
        """Point `alias` at a version and remember where it was.

        Raises:
            AliasNameError: no alias can have that name.
            UnknownVersionError: no such version.
            RegistryError: MLflow refused or is unreachable.
        """
        check_alias_name(alias)
        number = self.version(version).version
        self.observe(alias)
        self._point(alias, number)
        self._remember(alias, AliasMove(number, "set", _now(), by))

    def delete_alias(self, alias: str) -> None:
        """Remove an alias; its history stays.

        Raises:
            UnknownVersionError: no such alias.
            RegistryError: MLflow refused or is unreachable.
        """
        if alias not in self.aliases():
            raise UnknownVersionError(f"{self.model} has no alias {alias!r}")
        self._rest.call("DELETE", "registered-models/alias", json={"name": self.model, "alias": alias})

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
        past = read_history(model, alias)
        if past and past[-1].version == present:
            return False
        self._remember(alias, AliasMove(present, "set", _now(), by))
        return True

    def rollback(self, alias: str = CHAMPION, *, by: str = "shortlist") -> tuple[str, str]:
        """Move `alias` to the version before that may be served. Rolling back twice goes back two versions.

        Returns:
            The version left and the version taken.

        Raises:
            UnknownVersionError: no such alias.
            NoEarlierVersionError: no earlier version is known that still exists and that the gate lets through.
            RegistryError: MLflow refused or is unreachable.
        """
        self.observe(alias)
        model = self._model()
        if model is None or alias not in _aliases(model):
            raise UnknownVersionError(f"{self.model} has no alias {alias!r} to roll back")
        present, previous = self._previous(model, alias)
        if previous is None:
            raise NoEarlierVersionError(
                f"{alias} of {self.model} is at version {present} and no earlier one that still exists and may be served is known: "
                f"name one with `shortlist models promote VERSION --alias {alias}`"
            )
        self._point(alias, previous)
        self._remember(alias, AliasMove(previous, "rollback", _now(), by))
        return present, previous

    def set_tag(self, version: str, key: str, value: str) -> None:
        """Set a tag of a version (number, not alias)."""
        self._rest.call("POST", "model-versions/set-tag", json={"name": self.model, "version": version, "key": key, "value": value})

    def delete(self, version: str) -> None:
        """Delete a version's entry. Its files stay with its run.

        Raises:
            RegistryError: no such version, or an alias points at it.
        """
        found = self.version(version)
        if found.aliases:
            raise RegistryError(f"version {found.version} of {self.model} is {', '.join(found.aliases)}: move the alias first")
        self._rest.call("DELETE", "model-versions/delete", json={"name": self.model, "version": found.version})

    def prune(self, keep: int, in_use: Collection[str] = ()) -> list[str]:
        """Delete all versions but the newest `keep`, the aliased ones, those that a rollback of an alias would take, and `in_use`.

        Returns:
            The versions deleted.
        """
        model = self._model()
        if model is None:
            return []
        kept = {v.version for v in self.versions()[:keep]} | set(_aliases(model).values())
        kept |= set(in_use) | {previous for alias in _aliases(model) if (previous := self.previous(alias)) is not None}
        gone = [v.version for v in self.versions() if v.version not in kept]
        for number in gone:
            self._rest.call("DELETE", "model-versions/delete", json={"name": self.model, "version": number})
        return gone

    # Fetching

    def download(self, version: str) -> Path:
        """Local folder of a version's bundle (`training.bundle_download`).

        Raises:
            RegistryError: no such version, its files are gone, or the store is remote and no cache folder was given.
        """
        try:
            answer = self._rest.call("GET", "model-versions/get-download-uri", params={"name": self.model, "version": version})
        except NotFoundError:
            self.version(version)
            raise
        what = f"version {version} of {self.model}"
        cached = None if self._cache is None else self._cache / self.model / version
        return local_bundle(self.tracking_uri, str(answer["artifact_uri"]), cached, what)

    # REST

    def _previous(self, model: Mapping[str, Any], alias: str) -> tuple[str, str | None]:
        present = _aliases(model)[alias]
        # One that the gate failed was never served, whoever pointed the alias at it: there is no way back to it.
        servable = {one.version for one in self.versions() if one.servable}
        return present, version_before(read_history(model, alias), present, servable)

    def _point(self, alias: str, number: str) -> None:
        try:
            self._rest.call("POST", "registered-models/alias", json={"name": self.model, "alias": alias, "version": number})
        except InvalidCallError as error:
            raise AliasNameError(str(error)) from None

    def _remember(self, alias: str, move: AliasMove) -> None:
        model = self._model() or {}
        value = history_value([*read_history(model, alias), move])
        body = {"name": self.model, "key": HISTORY_TAG_PREFIX + alias, "value": value}
        self._rest.call("POST", "registered-models/set-tag", json=body)

    def _model(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._rest.call("GET", "registered-models/get", params={"name": self.model})["registered_model"]
        except NotFoundError:
            return None
        return found

    def _ensure_model(self) -> None:
        if self._model() is None:
            try:
                self._rest.call("POST", "registered-models/create", json={"name": self.model})
            except RegistryError:
                # Two first registrations at once: the other one created it.
                if self._model() is None:
                    raise


def _aliases(model: Mapping[str, Any]) -> dict[str, str]:
    return {str(entry["alias"]): str(entry["version"]) for entry in model.get("aliases", [])}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
