"""`shortlist events`: look into the event bus, and repair what its readers could not process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from shortlist.commands import console
from shortlist.commands.connection import DatasetOption, chosen_dataset
from shortlist.stack.state import running_stack

if TYPE_CHECKING:
    from features.bus import BusEntry
    from features.redis_bus import RedisStreamBus

app = typer.Typer(help="Event bus: lag of its readers, newest entries, dead letters.", no_args_is_help=True)

StreamOption = Annotated[str, typer.Option("--stream", "-s", help="events, exposures, sessions, slates or served_features.")]
LastOption = Annotated[int, typer.Option("--last", "-n", min=1, max=100_000, help="How many entries.")]


@app.command()
def lag(dataset: DatasetOption = None) -> None:
    """How far each reader is behind, in entries and seconds."""
    from rich.table import Table

    from features.bus import GROUPS

    with _bus(dataset) as bus:
        streams = [bus.lag(stream) for stream in GROUPS]
    table = Table("stream", "held", "dead", "reader", "not delivered", "not finished", "oldest, s")
    for stream in streams:
        for group in stream.groups or [None]:
            row = [stream.stream, f"{stream.length:,}", f"{stream.dead:,}"]
            if group is not None:
                row += [group.group, f"{group.undelivered:,}", f"{group.pending:,}", f"{group.seconds:.1f}"]
            table.add_row(*row)
    result = {
        stream.stream: {
            "length": stream.length,
            "dead": stream.dead,
            "groups": {
                group.group: {
                    "entries": group.entries,
                    "undelivered": group.undelivered,
                    "pending": group.pending,
                    "seconds": round(group.seconds, 3),
                }
                for group in stream.groups
            },
        }
        for stream in streams
    }
    console.finish({"streams": result}, table)


@app.command()
def tail(
    stream: StreamOption = "events",
    last: LastOption = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    dataset: DatasetOption = None,
) -> None:
    """The newest entries on the bus, oldest first. Entries that all readers finished are trimmed after some seconds."""
    with _bus(dataset) as bus:
        entries = bus.tail(_checked(stream), last)
        lines = [_line(entry) for entry in entries]
        if not follow:
            shown = [{"id": entry.id, "payload": entry.payload.decode(errors="replace")} for entry in entries]
            console.finish({"stream": stream, "entries": shown}, "\n".join(lines) or "the stream is empty")
            return
        while True:
            for line in lines:
                console.log.print(line, soft_wrap=True)
            seen = {entry.id for entry in entries}
            time.sleep(0.5)
            entries = bus.tail(stream, 1000)
            lines = [_line(entry) for entry in entries if entry.id not in seen]


@app.command()
def dead(
    stream: StreamOption = "events",
    last: LastOption = 20,
    discard: Annotated[bool, typer.Option("--discard", help="Delete those listed for good.")] = False,
    dataset: DatasetOption = None,
) -> None:
    """Entries that a reader could not process, with the reason; the oldest first."""
    from rich.table import Table

    with _bus(dataset) as bus:
        letters = bus.dead(_checked(stream), last)
        gone = bus.discard(stream, [letter.id for letter in letters]) if discard else 0
    table = Table("id", "reader", "reason", "payload")
    for letter in letters:
        table.add_row(letter.id, letter.group, escape(letter.reason), escape(letter.payload.decode(errors="replace")[:200]))
    found = [
        {"id": one.id, "group": one.group, "reason": one.reason, "payload": one.payload.decode(errors="replace")} for one in letters
    ]
    console.finish({"stream": stream, "dead": found, "discarded": gone}, table if letters else f"no dead letters in {stream}")


@app.command()
def replay(
    ids: Annotated[
        list[str] | None, typer.Argument(help="Ids of dead letters, as `events dead` shows them.", metavar="ID...")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters of the stream.")] = False,
    stream: StreamOption = "events",
    dataset: DatasetOption = None,
) -> None:
    """Give dead letters back to the reader that failed on them, once its cause is mended."""
    if bool(ids) == everything:
        raise console.CommandError("which dead letters? Pass their ids, or --all")
    with _bus(dataset) as bus:
        replayed = bus.replay(_checked(stream), ids or None)
    console.finish({"stream": stream, "replayed": replayed}, f"replayed {replayed} of {stream}")


def _line(entry: BusEntry) -> str:
    return f"[dim]{entry.id}[/] {escape(entry.payload.decode(errors='replace'))}"


@contextmanager
def _bus(dataset: str | None) -> Iterator[RedisStreamBus]:
    from features.redis_bus import RedisStreamBus

    settings = console.settings()
    stack = running_stack(settings.home.absolute())
    url = settings.redis.bus_url or (stack.bus_url if stack else None)
    if url is None:
        raise console.CommandError(f"no stack is running in {settings.home}: start one (shortlist up), or set redis.bus_url")
    bus = RedisStreamBus(url, chosen_dataset(dataset))
    try:
        yield bus
    finally:
        bus.close()


def _checked(stream: str) -> str:
    from features.bus import GROUPS

    if stream not in GROUPS:
        raise console.CommandError(f"no stream {stream!r}: one of {', '.join(GROUPS)}")
    return stream
