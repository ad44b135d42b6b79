"""`shortlist data scan-user`: where a user's id stands in what this home and its Redis keep. Looks, and changes nothing.

Owns no deletion: `serving.erasure` does that, and this proves it. Parquet, JSON, Redis keys and SQL are read as what they are; any
other file is searched for the id as a word of its bytes, so a short id (`42`) may be found where it means something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import redis
from sqlalchemy import MetaData, String, Text, cast, func, or_, select

from features.control_store import ControlStore
from shortlist.settings import Settings

_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True)
class Finding:
    """A place that holds the id."""

    kind: str
    place: str
    matches: int


def scan_user(user_id: str, settings: Settings, redis_urls: dict[str, str]) -> list[Finding]:
    """Everything that holds a user's id.

    Args:
        user_id: the id.
        settings: of the home; the control store is its.
        redis_urls: name of what a Redis is for -> URL.

    Raises:
        StoreError: the control store cannot be read.
        RedisError: a Redis cannot be reached.
    """
    found = list(_in_sql(user_id, settings.control_url))
    for url, names in _by_url(redis_urls).items():
        found += _in_redis(user_id, url, names)
    found += _in_files(user_id, settings.home.absolute())
    return sorted(found, key=lambda one: (one.kind, one.place))


def _by_url(urls: dict[str, str]) -> dict[str, str]:
    names: dict[str, list[str]] = {}
    for name, url in urls.items():
        names.setdefault(url, []).append(name)
    return {url: " and ".join(sorted(several)) for url, several in names.items()}


def _in_sql(user_id: str, url: str) -> Iterator[Finding]:
    store = ControlStore(url)
    quoted = json.dumps(user_id)[1:-1]
    try:
        metadata = MetaData()
        with store.begin() as connection:
            metadata.reflect(connection)
            for table in metadata.sorted_tables:
                texts = [cast(column, Text) for column in table.columns if isinstance(column.type, String)]
                tests = [or_(text == user_id, text.contains(f'"{quoted}"', autoescape=True)) for text in texts]
                number = connection.execute(select(func.count()).select_from(table).where(or_(*tests))).scalar() if tests else 0
                if number:
                    yield Finding("sql", table.name, int(number))
    finally:
        store.close()


def _in_redis(user_id: str, url: str, name: str) -> Iterator[Finding]:
    word = _word(user_id)
    counts: dict[str, int] = {}
    with redis.Redis.from_url(url, socket_timeout=30) as client:
        for key in client.scan_iter(count=1000):
            held = word.search(key) is not None or _feast_key(user_id) in key
            if held or any(word.search(value) for value in _values(client, key)):
                shown = key.decode(errors="replace")
                counts[shown] = counts.get(shown, 0) + 1
    for key, number in counts.items():
        yield Finding(f"redis ({name})", key, number)


def _values(client: Any, key: bytes) -> Iterator[bytes]:
    kind = client.type(key)
    if kind == b"string":
        yield client.get(key) or b""
    elif kind == b"hash":
        for name, value in client.hscan_iter(key):
            yield from (name, value)
    elif kind == b"set":
        yield from client.sscan_iter(key)
    elif kind == b"zset":
        for member, _ in client.zscan_iter(key):
            yield member
    elif kind == b"list":
        yield from client.lrange(key, 0, -1)
    elif kind == b"stream":
        after = b"-"
        while rows := client.xrange(key, min=after, count=1000):
            for _, fields in rows:
                yield from fields.values()
            after = b"(" + rows[-1][0]


def _in_files(user_id: str, home: Path) -> Iterator[Finding]:
    word = _word(user_id)
    for path in sorted(home.rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        number = _in_parquet(user_id, path) if path.suffix == ".parquet" else _in_bytes(word, path)
        if number:
            yield Finding("file", str(path.relative_to(home)), number)


def _in_parquet(user_id: str, path: Path) -> int:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid):
        return _in_bytes(_word(user_id), path)
    names = [field.name for field in file.schema_arrow if pa.types.is_string(field.type) or pa.types.is_list(field.type)]
    number, quoted = 0, json.dumps(user_id)
    for batch in file.iter_batches(columns=names) if names else ():
        for column in batch.columns:
            if pa.types.is_list(column.type):
                column = column.flatten()
                if not pa.types.is_string(column.type):
                    continue
            number += pc.sum(pc.or_(pc.equal(column, user_id), pc.match_substring(column, quoted))).as_py() or 0
    return number


def _in_bytes(word: re.Pattern[bytes], path: Path) -> int:
    number, tail = 0, b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            number += len(word.findall(tail + block))
            tail = block[-512:] if len(block) == _BLOCK_BYTES else b""
    return number


def _word(user_id: str) -> re.Pattern[bytes]:
    """The id as UTF-8 or as JSON writes it, not within a longer word."""
    forms = {user_id.encode(), json.dumps(user_id)[1:-1].encode()}
    return re.compile(rb"(?<![A-Za-z0-9_-])(?:" + b"|".join(re.escape(form) for form in forms) + rb")(?![A-Za-z0-9_-])")


def _feast_key(user_id: str) -> bytes:
    """The id as it stands in the key of Feast's hash, which goes on with the project's name."""
    text = user_id.encode()
    return len(text).to_bytes(4, "little") + text
