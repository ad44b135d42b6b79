"""When simulated users are there: sessions of a few events, more in the evening and at weekends; and the seasons of topics.

Legend: `S` sessions, `E` events, `T` topics.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LongArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

DAY_US = 86_400_000_000
YEAR_DAYS = 365.25
GAP_S = 75.0
"""Mean time between two events of a session: well below the half hour after which analytics tools count a new one."""
WEEKEND_MOVES = 0.25
"""Share of the sessions of weekdays that happen on the next Saturday or Sunday instead."""

# Share of a day's activity in each hour, UTC: low at night, high in the evening.
_HOURS = np.array([2, 1, 1, 1, 1, 2, 3, 4, 5, 5, 5, 5, 6, 5, 5, 5, 5, 6, 7, 8, 8, 7, 5, 3], dtype=np.float64)


def session_times(
    rng: np.random.Generator, counts: LongArray, session_events: float, start_us: int, days: int
) -> tuple[LongArray, LongArray]:
    """Times of events, ascending within each user, in sessions.

    Args:
        rng: randomness.
        counts: (U,) events of each user.
        session_events: events of a session on average.
        start_us: first moment of the activity.
        days: its length.

    Returns:
        (E,) int64 row of each event's user, and (E,) int64 its time in microseconds.
    """
    sessions = np.maximum(np.rint(counts / session_events), np.minimum(counts, 1)).astype(np.int64)
    user_of_session = np.repeat(np.arange(len(counts)), sessions)
    begins_us = _begins(rng, user_of_session, len(counts), start_us, days)
    row = np.repeat(np.arange(len(counts)), counts)
    first_session = np.concatenate([[0], np.cumsum(sessions)])[:-1]
    session = np.sort(first_session[row] + (rng.random(len(row)) * sessions[row]).astype(np.int64))
    gap_us = (rng.exponential(GAP_S, len(row)) * 1e6).astype(np.int64) + 1
    elapsed = np.cumsum(gap_us)
    opens = np.searchsorted(session, session)  # position of the first event of each event's session
    time_us = begins_us[session] + elapsed - elapsed[opens] if len(row) else np.empty(0, dtype=np.int64)
    time_us = np.minimum(time_us, start_us + days * DAY_US - 1)
    return row, time_us[np.lexsort((time_us, row))]


def season_weight(topic: LongArray, time_us: LongArray, amplitude: float) -> FloatArray:
    """How much a topic is wanted at a time of the year: 1 on average, between 1 - `amplitude` and 1 + `amplitude`.

    Topics peak on days spread evenly over the year (the golden ratio keeps neighbours apart), the same every year.

    Shapes: topic and time_us broadcast; the result has their shape.
    """
    peak_day = (topic * 0.618_033_988_75 % 1.0) * YEAR_DAYS
    day = time_us / DAY_US % YEAR_DAYS
    return np.asarray(1.0 + amplitude * np.cos(2 * np.pi * (day - peak_day) / YEAR_DAYS))


def _begins(rng: np.random.Generator, user: LongArray, users: int, start_us: int, days: int) -> LongArray:
    """(S,) int64 beginnings, ascending within each user: everyone has a first day; hours follow the daily curve."""
    first_day = rng.beta(1.0, 3.0, users)[user]
    day = np.floor((first_day + (1 - first_day) * rng.random(len(user))) * days).astype(np.int64)
    weekday = (start_us // DAY_US + day + 3) % 7  # the first of January 1970 was a Thursday; 0 is Monday
    to_weekend = 5 - weekday + rng.integers(0, 2, len(user))
    moves = (weekday < 5) & (rng.random(len(user)) < WEEKEND_MOVES) & (day + to_weekend < days)
    day = np.where(moves, day + to_weekend, day)
    hour = rng.choice(24, len(user), p=_HOURS / _HOURS.sum())
    begins_us = start_us + day * DAY_US + hour * 3_600_000_000 + rng.integers(0, 3_600_000_000, len(user))
    return np.asarray(begins_us[np.lexsort((begins_us, user))])
