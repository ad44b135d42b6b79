"""MLflow's REST API with the errors of this package: one HTTP client, one place that reads MLflow's answers.

6 ms a call and no `import mlflow`, which serving processes would pay with 140 MB each. What the calls mean is `training.registry`'s
and `training.webhooks`'.
"""

from __future__ import annotations

import os
from typing import Any

import httpx
import tenacity

from training.errors import RegistryDownError, RegistryError


class NotFoundError(RegistryError):
    """MLflow says that the thing does not exist."""


class ConflictError(RegistryError):
    """Two wrote the same new row at once, MLflow kept the other's: the same call again finds it there and goes through."""


class InvalidCallError(RegistryError):
    """MLflow says that a parameter of the call cannot have that value."""


_CONFLICTS = ("UNIQUE constraint failed", "violates unique constraint", "Duplicate entry")
"""What SQLite, PostgreSQL and MySQL say, as MLflow passes it on."""
_ATTEMPTS = 5


class MlflowRest:
    """REST calls to one MLflow server; credentials come from MLflow's own environment variables.

    Args:
        tracking_uri: http(s) URL of the server.
        timeout_s: of each call; an unreachable server is a `RegistryDownError` after at most this time.

    Raises:
        RegistryError: `tracking_uri` is not an http(s) URL.
    """

    def __init__(self, tracking_uri: str, *, timeout_s: float = 5.0) -> None:
        if not tracking_uri.startswith(("http://", "https://")):
            raise RegistryError(
                f"mlflow.tracking_uri {tracking_uri!r} is not an http(s) URL: aliases and webhooks need a tracking server"
            )
        self.tracking_uri = tracking_uri.rstrip("/")
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

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(ConflictError),
        wait=tenacity.wait_random_exponential(multiplier=0.05, max=0.5),
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        reraise=True,
    )
    def call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        """One call; `arguments` as of `httpx.Client.request`. A race with another writer of the same row is run again.

        Raises:
            NotFoundError: what it asks for does not exist.
            ConflictError: another writer came first, several times in a row.
            InvalidCallError: MLflow does not take a parameter.
            RegistryDownError: MLflow is unreachable, or answers that it has failed.
            RegistryError: it is something else, or refused.
        """
        try:
            answer = self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise RegistryDownError(
                f"MLflow at {self.tracking_uri} cannot be reached ({type(error).__name__}): start it with `shortlist up`, "
                "or set mlflow.tracking_uri to a running server"
            ) from error
        if answer.status_code == 200:
            body: dict[str, Any] = answer.json()
            return body
        try:
            code, message = answer.json()["error_code"], answer.json()["message"]
        except (ValueError, KeyError, TypeError):
            raise (RegistryDownError if answer.is_server_error else RegistryError)(
                f"{self.tracking_uri} answered {answer.status_code} to {path}: is it an MLflow server, and are its credentials "
                "in MLFLOW_TRACKING_TOKEN or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD?"
            ) from None
        if code == "RESOURCE_DOES_NOT_EXIST":
            raise NotFoundError(f"MLflow at {self.tracking_uri}: {message}")
        refused = f"MLflow at {self.tracking_uri} refused {path}: {message}"
        if any(words in message for words in _CONFLICTS):
            raise ConflictError(refused)
        if code == "INVALID_PARAMETER_VALUE":
            raise InvalidCallError(refused)
        raise RegistryDownError(refused) if answer.is_server_error else RegistryError(refused)
