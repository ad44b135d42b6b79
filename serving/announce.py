"""Announcements: a word over Redis that something has changed, so that nobody waits for the next regular look.

`CONTROL`: the control store differs, gateways read it. `WANTED`: other versions may be wanted (an alias moved, an experiment starts
or ends), the reconciler looks. The word carries nothing: receivers read the control store or the registry. A lost one costs the few
seconds until the next look.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from serving.config import ServingConfig

_log = logging.getLogger("shortlist.serving")
RECONNECT_S = 1.0
CONTROL, WANTED = "control", "wanted"
"""Topics."""


def channel(config: ServingConfig, topic: str = CONTROL) -> str:
    """Name of the channel of a topic of one dataset."""
    return f"{config.key_prefix}:{topic}"


def announce(config: ServingConfig, topic: str = CONTROL) -> bool:
    """Say that something has changed; returns whether Redis took it. Waits half a second at most."""
    try:
        # redis-py's own retries would make a refused connection take seconds.
        with redis.Redis.from_url(
            config.bus_url, socket_timeout=0.5, socket_connect_timeout=0.5, retry=Retry(NoBackoff(), 0)
        ) as client:
            client.publish(channel(config, topic), b"changed")
        return True
    except RedisError as error:
        _log.warning("announcement not sent, the change is seen within %.0f s: %s", max(config.reread_s, config.poll_s), error)
        return False


async def listen(config: ServingConfig, changed: Callable[[], None], topic: str = CONTROL) -> None:
    """Call `changed` at every announcement and at every reconnection (one may have been missed), until cancelled.

    No trouble ends it.
    """
    while True:
        try:
            await _hear(config, changed, topic)
        except (RedisError, OSError, TimeoutError) as error:
            _log.debug("no announcements: %s", error)
        except Exception:
            _log.exception("announcements are not heard, tried again")
        await asyncio.sleep(RECONNECT_S)


async def _hear(config: ServingConfig, changed: Callable[[], None], topic: str) -> None:
    """Listen on one connection until it is lost."""
    client = redis.asyncio.Redis.from_url(
        config.bus_url, socket_connect_timeout=1.0, retry=AsyncRetry(NoBackoff(), 0), health_check_interval=15
    )
    try:
        async with client.pubsub() as subscription:
            await subscription.subscribe(channel(config, topic))
            changed()
            while True:
                message = await subscription.get_message(ignore_subscribe_messages=True, timeout=30.0)
                if message is not None:
                    changed()
    finally:
        await client.aclose()
