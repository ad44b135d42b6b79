"""The hop from a gateway to a version's replicas: handles of version applications, found by name when first needed.

A gateway has at most one call under way for each replica of a version, and what comes meanwhile goes with the next: a call of its
own for each list costs a replica a quarter of its time, and the gateway two fifths.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from serving.config import ServingConfig
from serving.errors import ListFailedError, ServingError
from serving.gathered import Gathered
from serving.messages import ComputeRequest, Failure, ShadowAsk
from serving.request_id import current
from serving.shadow_role import shadow_key
from serving.shadow_tally import ShadowTally

PATIENCE = 0.5
"""Of what a batch takes (`Gathered`)."""


class VersionHandles:
    """The versions of one dataset as a gateway reaches them.

    Args:
        config: of the stack.
    """

    def __init__(self, config: ServingConfig) -> None:
        self._prefix = f"{config.paths.registered_model}-v"
        self._replicas, self._deadline_s = config.version_replicas, config.deadline_ms / 1000
        self._handles: dict[str, Any] = {}
        self._gathered: dict[str, Gathered[ComputeRequest, bytes]] = {}

    async def compute(self, version: str, request: ComputeRequest) -> bytes:
        """A list of the version, for the request at hand; what waits at the same time shares the hop."""
        gathered = self._gathered.get(version)
        if gathered is None:
            gathered = Gathered(partial(self._compute, version), at_once=self._replicas, patience=PATIENCE)
            self._gathered[version] = gathered
        return await gathered.ask(replace(request, request_id=current()))

    async def _compute(self, version: str, requests: Sequence[ComputeRequest]) -> list[bytes | Exception]:
        # Nobody waits any longer than this, and the next must not wait for a replica that hangs.
        async with asyncio.timeout(self._deadline_s):
            answers: list[bytes | Failure] = await self._call(version, "compute_all", list(requests))
        return [ListFailedError(answer.reason) if isinstance(answer, Failure) else answer for answer in answers]

    async def score(self, version: str, asks: Sequence[ShadowAsk]) -> ShadowTally:
        """One hop to the version's shadow."""
        tally: ShadowTally = await self._call(shadow_key(version), "score", list(asks))
        return tally

    async def _call(self, key: str, method: str, argument: object) -> Any:
        handle = self._handles.get(key)
        if handle is None:
            # Ray reads where its token is when it is imported: not before whoever connects to it has said so.
            import ray
            from ray import serve

            if not ray.is_initialized():  # Serve would start a cluster of its own
                raise ServingError("this process is not connected to Ray")
            handle = self._handles[key] = serve.get_app_handle(self._prefix + key)
        try:
            return await getattr(handle, method).remote(argument)
        except asyncio.CancelledError:
            raise
        except Exception:
            # The application may have been deleted and deployed again: look it up anew next time.
            self._handles.pop(key, None)
            raise
