"""Deliveries of MLflow's webhooks: is one genuine, recent and new?

Owns the signature and the memory of what was delivered, which all gateway replicas share. A delivery is only a hint to look at the
registry now: the aliases themselves are always read from MLflow, so that even a forged one could change nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sqlalchemy import BigInteger, Column, String, Table, delete, insert
from sqlalchemy.exc import IntegrityError

from features.control_store import METADATA, ControlStore
from features.errors import StoreError
from serving.errors import RequestError

WINDOW_S = 300
"""How far a delivery's time may be from now. Source: Standard Webhooks, which MLflow follows, recommends five minutes."""
_ID_CHARACTERS = 128
_TIME_CHARACTERS = 20
"""More than any clock shows, and far below the length from which Python refuses to read digits."""
DELIVERIES = Table(
    "webhook_deliveries",
    METADATA,
    Column("delivery_id", String(_ID_CHARACTERS), primary_key=True),
    Column("at_s", BigInteger, nullable=False, index=True),
)


def sign(secret: str, delivery_id: str, timestamp: str, body: bytes) -> str:
    """MLflow's signature: `v1,` and the base64 of HMAC-SHA256 over id, time and body."""
    digest = hmac.new(secret.encode(), f"{delivery_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


class Deliveries:
    """Checks deliveries to one stack.

    Args:
        store: remembers ids of deliveries.
        secret_file: the secret shared with MLflow; None or missing refuses everything.
        clock: seconds since 1970.
    """

    def __init__(self, store: ControlStore, secret_file: Path | None, clock: Callable[[], float] = time.time) -> None:
        self._store, self._secret_file, self._clock = store, secret_file, clock

    def check(self, headers: Mapping[str, str], body: bytes) -> None:
        """Accept a delivery, once.

        Raises:
            RequestError: 401 unsigned, wrongly signed or outside the window; 409 delivered before; 503 no secret is known here.
        """
        delivery_id, timestamp = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
        given = headers.get("x-mlflow-signature", "")
        if not (delivery_id and timestamp and given) or len(delivery_id) > _ID_CHARACTERS:
            raise RequestError(
                "a delivery needs X-MLflow-Signature, X-MLflow-Delivery-Id and X-MLflow-Timestamp: give the webhook a secret",
                code="unsigned",
                status=401,
            )
        if not hmac.compare_digest(sign(self._secret(), delivery_id, timestamp, body).encode(), given.encode()):
            raise RequestError("the signature does not fit: secret or body differ", code="bad_signature", status=401)
        now = self._clock()
        readable = timestamp.isdecimal() and len(timestamp) <= _TIME_CHARACTERS
        if not readable or abs(now - int(timestamp)) > WINDOW_S:
            raise RequestError(
                f"the delivery's time is more than {WINDOW_S} s from this server's: an old delivery, or a clock is wrong",
                code="stale_delivery",
                status=401,
            )
        self._remember(delivery_id, int(now))

    def _remember(self, delivery_id: str, now_s: int) -> None:
        try:
            with self._store.begin() as connection:
                # Older ones would be refused for their time.
                connection.execute(delete(DELIVERIES).where(DELIVERIES.c.at_s < now_s - 3 * WINDOW_S))
                connection.execute(insert(DELIVERIES).values(delivery_id=delivery_id, at_s=now_s))
        except StoreError as error:
            if not isinstance(error.__cause__, IntegrityError):
                raise
            raise RequestError(f"delivery {delivery_id} was accepted before", code="replayed_delivery", status=409) from None

    def _secret(self) -> str:
        try:
            secret = self._secret_file.read_text().strip() if self._secret_file is not None else ""
        except OSError:
            secret = ""
        if not secret:
            raise RequestError("this server has no webhook secret; aliases are polled", code="no_secret", status=503)
        return secret
