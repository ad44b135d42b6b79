"""Structured logs of the serving processes: one JSON object a line, in files below SHORTLIST_HOME/logs that rotate.

Ray keeps its own logs in a session folder that goes away with the stack; these stay. Requests are logged when they fail or are
answered by a lower rung; a line for every cached answer would cost a tenth of it. What is logged while a request is answered, by
the gateway or by a version's replica, has the request's id (`serving.request_id`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import traceback
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler

from serving.config import ServingConfig
from serving.request_id import current

LOGGER = "shortlist.serving"
MAX_BYTES, KEPT_FILES, KEPT_DAYS = 20 << 20, 3, 30
FIELDS = ("request_id", "route", "status", "version", "served_from", "reason")
"""Extra fields of a record that are written beside the message."""


class JsonLines(logging.Formatter):
    """A record as one JSON object."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "message": record.getMessage(),
        }
        line |= {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            # Not by formatException: it prints into a buffer, and Ray Serve's own print writes a line as a tuple's text there.
            line["error"] = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return json.dumps(line, ensure_ascii=False, default=str)


class LastingFile(RotatingFileHandler):
    """A file that is made again where another process has removed it, as one that nobody had written to for long."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        if self.stream is not None and not os.path.exists(self.baseFilename):
            self.stream.close()
            self.stream = None  # opened again with the next line, as after a rollover
        super().emit(record)


class WithRequestId(logging.Filter):
    """Puts the id of the request at hand on records that have none; made for handlers, in the thread that logs."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter.filter`."""
        if getattr(record, "request_id", None) is None:
            record.request_id = current()
        return True


def log_to_file(config: ServingConfig, process: str) -> None:
    """Send this process's serving log to `logs/<process>.jsonl`. Called once, by whatever starts the process's work.

    Every promotion starts processes, each with files of its own: those that nobody has written to for 30 days are removed.
    """
    folder = config.home / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jsonl*"):
        with contextlib.suppress(OSError):  # another process may be at it, too
            if old.stat().st_mtime < time.time() - KEPT_DAYS * 86_400:
                old.unlink()
    handler = LastingFile(folder / f"{process}.jsonl", maxBytes=MAX_BYTES, backupCount=KEPT_FILES, encoding="utf-8", delay=True)
    handler.setFormatter(JsonLines(process))
    handler.addFilter(WithRequestId())
    logger = logging.getLogger(LOGGER)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
