"""Where a search stands: what `training.tune` tells whoever shows it. Free of Ray, so that a screen need not load it."""

from __future__ import annotations

from dataclasses import dataclass

from training.trial_log import TrialRecord


@dataclass(frozen=True)
class SearchProgress:
    """Where a search stands, for the screen.

    Args:
        planned: trials in all; `finished`, `stopped` and `failed` of them have ended, `running` are under way.
        best: the best trial so far.
        last: the trial that ended last.
        elapsed_s, remaining_s: wall time; None before it can be told.
    """

    planned: int
    finished: int = 0
    stopped: int = 0
    failed: int = 0
    running: tuple[str, ...] = ()
    best: TrialRecord | None = None
    last: TrialRecord | None = None
    elapsed_s: float = 0.0
    remaining_s: float | None = None

    @property
    def ended(self) -> int:
        """Trials that will not run again."""
        return self.finished + self.stopped + self.failed
