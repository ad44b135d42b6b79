"""DuckDB connections without its progress bar, which a long query writes into the output of the command that asks.

DuckDB takes a process for a person's session, and turns the bar on, where the main module has no file: `python -c`, a debugger,
programs that embed Python. The setting is a connection's own and cannot be made for all.
"""

from __future__ import annotations

import duckdb

_OFF = "SET enable_progress_bar = false"


def connect() -> duckdb.DuckDBPyConnection:
    """A new connection in memory."""
    connection = duckdb.connect()
    connection.execute(_OFF)
    return connection


def quiet_feast() -> None:
    """The same for the connection that Feast's offline store takes: the default one of ibis."""
    import ibis

    ibis.get_backend().con.execute(_OFF)
