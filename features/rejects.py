"""The rejects file of an import: every row that was left out, with the reason, as CSV."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

MAX_CONTENT = 2000
"""Characters of a row that are shown."""

# What a reason says of one row alone: reasons are counted without it.
_VALUE = re.compile(r"^(timestamp|value|position|slate_position) .*(?= is not )", re.DOTALL)


class Rejects:
    """Collects rejected rows; the file is made with the first of them. A context manager.

    Args:
        folder: where the file goes.
        started_at: start of the import, for the file's name.
    """

    def __init__(self, folder: Path, started_at: datetime) -> None:
        self._folder = folder
        self._stem = started_at.strftime("%Y%m%dT%H%M%S%f")
        self._file: TextIO | None = None
        self._writer: Any = None
        self.path: Path | None = None
        self.count = 0
        self.reasons: Counter[str] = Counter()

    def __enter__(self) -> Rejects:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, file: str, row: int, reason: str, content: str | Mapping[str, Any]) -> None:
        """Keep one rejected row.

        Args:
            file: name of the file it stands in.
            row: 1-based row number (the line for text files).
            reason: why it was rejected.
            content: the row as text, or its columns.
        """
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self.path = self._folder / f"rejects-{self._stem}.csv"
            self._file = self.path.open("w", newline="", encoding="utf-8", errors="backslashreplace")
            self._writer = csv.writer(self._file)
            self._writer.writerow(["file", "row", "reason", "content"])
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
        self._writer.writerow([file, row, reason, text[:MAX_CONTENT]])
        self.count += 1
        self.reasons[_VALUE.sub(r"\1", reason)] += 1
