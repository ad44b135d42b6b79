"""Precompute: lists of all of a version's users into Parquet beside the version, and from there into the cache.

The Parquet (`user_id`, and `list`, which `serving.cached_list.decode_list` reads) outlives Redis: an empty cache is refilled from
it without computing anything. Parts are written aside and put in place together.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from features.activity_store import ActivityStore
from features.event_codec import to_microseconds
from features.file_erasure import replace_rows, writing_alone
from serving.batch_lists import BatchLists
from serving.cache import MARK_EXTRA_S, activity_key, list_key, user_unit
from serving.cached_list import decode_list
from serving.config import ServingConfig
from serving.errors import ServingError
from serving.recent_activity import APPEND_SCRIPT, CHANGING_ACTIONS, MAX_BYTES, MOST_EVENTS, RecentEvent, encode_events
from serving.redis_cluster import blocking_client

SCHEMA = pa.schema([pa.field("user_id", pa.string(), nullable=False), pa.field("list", pa.binary(), nullable=False)])
CLUSTER_FROM_USERS = 50_000
"""From so many users on, a connected Ray computes them: below, starting its workers takes longer than the work."""
USERS_PER_PART = 50_000
COMMANDS_PER_PIPELINE = 2_000
ERASURES_EVERY_S = 1.0
"""Between two looks at who was erased while lists are put into the cache: an erasure looks there again two seconds later."""
ROWS_AT_ONCE = 10_000
"""Events that are Python objects at a time."""

Progress = Callable[[str, int, int], None]
"""Stage (`compute` or `load`), users done, users in all."""


@dataclass(frozen=True)
class PrecomputeReport:
    """Outcome of a run. `seconds` is everything; `bytes_per_user` is of the lists alone, Redis adds some 100 bytes a key."""

    version: str
    users: int
    seconds: float
    bytes_per_user: float
    folder: Path

    def to_json(self) -> dict[str, Any]:
        """The result of the command."""
        return {
            "version": self.version,
            "users": self.users,
            "seconds": round(self.seconds, 3),
            "users_per_s": round(self.users / max(self.seconds, 1e-9), 1),
            "bytes_per_user": round(self.bytes_per_user, 1),
            "path": str(self.folder),
        }


def precompute(config: ServingConfig, version: str, bundle_folder: Path, *, progress: Progress | None = None) -> PrecomputeReport:
    """Compute, keep and cache the lists of all users of a version.

    Raises:
        BundleError: the bundle cannot be read.
        ServingError: the cache cannot be reached; the Parquet is in place by then.
    """
    started = time.monotonic()
    erasures = ActivityStore.of(config.paths).erasures()
    target = precomputed_folder(config, version)
    staging = target.with_name(f".{target.name}.{time.time_ns()}")
    staging.mkdir(parents=True)
    try:
        _compute(config, version, bundle_folder, staging, progress)
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if ActivityStore.of(config.paths).erasures() != erasures:
        _take_out_erased(config, sorted(target.glob("*.parquet")))
    users, size = load(config, version, erasures=erasures, progress=progress)
    return PrecomputeReport(version, users, time.monotonic() - started, size / max(users, 1), target)


def load_only(config: ServingConfig, version: str, *, progress: Progress | None = None) -> PrecomputeReport:
    """Refill the cache from the Parquet of an earlier run. Lists that the cache has are left alone: they are newer.

    Users who were active since those lists were computed get their marks and last events back from the activity store, so that no
    list is taken for fresh that is not.

    Raises:
        ServingError: nothing was precomputed for this version, or the cache cannot be reached.
    """
    started = time.monotonic()
    folder = precomputed_folder(config, version)
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ServingError(
            f"nothing is precomputed for version {version} in {folder}: run `shortlist precompute` without --load-only"
        )
    _restore_marks(config, files)
    users, size = load(config, version, only_missing=True, progress=progress)
    return PrecomputeReport(version, users, time.monotonic() - started, size / max(users, 1), folder)


def precomputed_folder(config: ServingConfig, version: str) -> Path:
    """Where the lists of a version are kept."""
    return config.precomputed / f"v{version}"


def load(
    config: ServingConfig,
    version: str,
    *,
    only_missing: bool = False,
    erasures: int | None = None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Put a version's Parquet into the cache; returns users and bytes of their lists.

    Args:
        config: of the stack.
        version: whose lists.
        only_missing: leave alone what the cache has.
        erasures: how many there had been when the lists were begun; now where not given. Lists of people who are erased meanwhile
            are taken out again: the erasure may have passed the cache before they came.
        progress: told of each batch.
    """
    store = ActivityStore.of(config.paths)
    erasures = store.erasures() if erasures is None else erasures
    new, looked_at = list[str](), time.monotonic()
    files = sorted(precomputed_folder(config, version).glob("*.parquet"))
    total = sum(pq.read_metadata(path).num_rows for path in files)
    done = size = 0
    with _connect(config) as client:
        for users, blobs in _batches(files):
            with client.pipeline(transaction=False) as steps:
                for user, blob in zip(users, blobs, strict=True):
                    steps.set(list_key(config, version, user_unit(user)), blob, ex=config.cache_ttl_s, nx=only_missing)
                    size += len(blob)
                steps.execute()
            done += len(users)
            new += users
            if done == total or time.monotonic() - looked_at >= ERASURES_EVERY_S:
                for user in store.erased(new) if store.erasures() != erasures else ():
                    client.unlink(list_key(config, version, user_unit(user)))
                new, looked_at = [], time.monotonic()
            if progress is not None:
                progress("load", done, total)
    return done, size


def _take_out_erased(config: ServingConfig, files: list[Path]) -> None:
    """Write files anew without people who were ever erased: those who came back have their lists computed when they ask."""
    store = ActivityStore.of(config.paths)
    with writing_alone(config.paths.root):
        for path in files:
            erased = store.erased(pq.read_table(path, columns=["user_id"], partitioning=None)["user_id"].to_pylist())
            if erased:
                rows = pq.read_table(path, partitioning=None)
                gone = pc.is_in(rows["user_id"], value_set=pa.array(sorted(erased), pa.string()))
                replace_rows(path, rows.filter(pc.invert(gone)))


def _compute(config: ServingConfig, version: str, bundle_folder: Path, staging: Path, progress: Progress | None) -> None:
    arguments = (config.model_dump_json(), str(bundle_folder), config.precompute_k, version)
    batch = BatchLists(*arguments)
    total = len(batch.pipeline.histories.user_ids)
    if total >= CLUSTER_FROM_USERS and _compute_on_cluster(arguments, total, batch.block_size, staging):
        if progress is not None:
            progress("compute", total, total)
        return
    for part, start in enumerate(range(0, total, USERS_PER_PART)):
        with pq.ParquetWriter(staging / f"part-{part:05d}.parquet", SCHEMA, compression="zstd") as writer:
            stop = min(start + USERS_PER_PART, total)
            for first in range(start, stop, batch.block_size):
                rows = np.arange(first, min(first + batch.block_size, stop))
                columns = batch({"id": rows})
                writer.write_table(pa.table([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA))
                if progress is not None:
                    progress("compute", int(rows[-1]) + 1, total)


def _compute_on_cluster(arguments: tuple[str, str, int, str], total: int, block_size: int, staging: Path) -> bool:
    """By Ray Data, on every CPU of the connected Ray; False where none is connected."""
    import ray

    if not ray.is_initialized():
        return False
    workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
    users = ray.data.range(total, override_num_blocks=max(workers, total // USERS_PER_PART))
    # Processes that asked for CPUs would leave none for Ray Data's own reading and writing on a small machine: it waits for ever.
    pool = ray.data.ActorPoolStrategy(size=workers)
    lists = users.map_batches(BatchLists, fn_constructor_args=arguments, batch_size=block_size, compute=pool, num_cpus=0)
    quiet = ray.data.DataContext.get_current()
    quiet.enable_progress_bars = False
    quiet.print_on_execution_start = False
    lists.write_parquet(str(staging))
    return True


def _batches(files: list[Path]) -> Iterator[tuple[list[str], list[bytes]]]:
    for path in files:
        for batch in pq.ParquetFile(path).iter_batches(COMMANDS_PER_PIPELINE, columns=SCHEMA.names):
            yield batch.column(0).to_pylist(), batch.column(1).to_pylist()


def _restore_marks(config: ServingConfig, files: list[Path]) -> None:
    """Marks and last events of users who were active after the lists' activity ends."""
    listed_until_us = _activity_end_us(files)
    if listed_until_us <= 0:  # histories without real times: there is no telling, and every mark is newer
        return
    since = datetime.fromtimestamp(listed_until_us / 1e6, UTC) + timedelta(microseconds=1)
    columns = ["user_id", "item_id", "action", "timestamp"]
    events = ActivityStore.of(config.paths).read(columns, since=since, actions=CHANGING_ACTIONS)
    now_us, time_to_live = time.time_ns() // 1000, config.cache_ttl_s + MARK_EXTRA_S
    with _connect(config) as client, client.pipeline(transaction=False) as steps:
        for number, (user, new) in enumerate(_last_events(events), start=1):
            key = activity_key(config, user_unit(user))
            steps.eval(APPEND_SCRIPT, 1, key, now_us, encode_events(new), MAX_BYTES, time_to_live)
            if number % COMMANDS_PER_PIPELINE == 0:
                steps.execute()
        steps.execute()


def _last_events(events: pa.Table) -> Iterator[tuple[str, Iterable[RecentEvent]]]:
    """Each user with the last events, oldest first: as many as a mark has room for. The table is sorted by user and time."""
    rows = chain.from_iterable(batch.to_pylist() for batch in events.to_batches(max_chunksize=ROWS_AT_ONCE))
    for user, own in groupby(rows, key=itemgetter("user_id")):
        if user is not None:
            last = deque(own, maxlen=MOST_EVENTS)
            yield user, [RecentEvent.of(row["item_id"], to_microseconds(row["timestamp"]), row["action"]) for row in last]


def _activity_end_us(files: list[Path]) -> int:
    for _, blobs in _batches(files):
        first = decode_list(blobs[0]) if blobs else None
        if first is not None:
            return first.activity_at_us
    return 0


@contextmanager
def _connect(config: ServingConfig) -> Iterator[redis.Redis]:
    # redis-py's own retries would make a refused connection take seconds.
    retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), 3)
    try:
        with blocking_client(config.cache_url, socket_connect_timeout=2.0, socket_timeout=30.0, retry=retry) as client:
            yield client
    except RedisError as error:
        raise ServingError(
            f"the cache Redis cannot be filled ({error}): start it, then run `shortlist precompute --load-only`"
        ) from error
