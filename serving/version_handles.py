"""The hop from a gateway to a version's replicas: handles of version applications, found by name when first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from serving.config import ServingConfig
from serving.messages import ComputeRequest, ShadowAsk
from serving.request_id import current
from serving.shadow_role import shadow_key
from serving.shadow_tally import ShadowTally


class VersionHandles:
    """The versions of one dataset as a gateway reaches them.

    Args:
        config: of the stack.
    """

    def __init__(self, config: ServingConfig) -> None:
        self._prefix = f"{config.paths.registered_model}-v"
        self._handles: dict[str, Any] = {}

    async def compute(self, version: str, request: ComputeRequest) -> bytes:
        """One hop to the version's replicas, for the request at hand."""
        return bytes(await self._call(version, "compute", replace(request, request_id=current())))

    async def score(self, version: str, asks: Sequence[ShadowAsk]) -> ShadowTally:
        """One hop to the version's shadow."""
        tally: ShadowTally = await self._call(shadow_key(version), "score", list(asks))
        return tally

    async def _call(self, key: str, method: str, argument: object) -> Any:
        handle = self._handles.get(key)
        if handle is None:
            # Ray reads where its token is when it is imported: not before whoever connects to it has said so.
            from ray import serve

            handle = self._handles[key] = serve.get_app_handle(self._prefix + key)
        try:
            return await getattr(handle, method).remote(argument)
        except asyncio.CancelledError:
            raise
        except Exception:
            # The application may have been deleted and deployed again: look it up anew next time.
            self._handles.pop(key, None)
            raise
