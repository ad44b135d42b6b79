"""A made-up shop: users with tastes, items with attributes, and the activity between them, from one seed.

Pure: it computes columns and writes nothing. What is planted, so that models have something to find: users prefer a few topics;
they stay on a topic for a while; topics have their season; some events continue a series (the next item of the same topic); better
items are chosen more and rated higher; items appear over time and are not chosen before; users choose items in their language and
region. When users are there is `features.simulated_clock`'s.

Any size: items are arrays of plain numbers, users and events come in blocks whose content depends on the seed and the block alone.

Legend: `N` items, `U` users, `T` topics, `b` users of a block, `E` events of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from features.simulated_clock import DAY_US, season_weight, session_times
from features.simulated_names import ADJECTIVES, SUB, ids, lists, titles, topic_name

LongArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

DEFAULT_END = datetime(2026, 6, 1, tzinfo=UTC)
"""End of simulated activity: fixed, so that a seed alone says what comes out."""

BLOCK_EVENTS = 500_000
"""Events of a block on average; bounds the memory."""

_REGIONS = ("us", "eu", "latam", "in", "jp")
_LANGUAGES = ("en", "de", "es", "hi", "ja")
_REGION_SHARE = np.array([0.35, 0.25, 0.2, 0.12, 0.08])
_FAVOURITE_SHARE = np.array([0.55, 0.25, 0.12, 0.08])
_ACTIONS = np.array(["view", "click", "add_to_cart", "purchase", "rating"])
_ACTION_SHARE = np.array([0.62, 0.18, 0.06, 0.04, 0.10])


class SimulationConfig(BaseModel):
    """What to simulate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    users: int = Field(ge=1, le=100_000_000)
    items: int = Field(ge=1, le=20_000_000)
    events: int = Field(ge=1, le=10_000_000_000)
    seed: int = Field(default=0, ge=0)
    days: int = Field(default=90, ge=1, le=3650)
    """Length of the activity in days."""
    end: datetime = DEFAULT_END
    """First moment after the activity."""
    new_item_share: float = Field(default=0.3, ge=0, le=1)
    """Share of items that appear while the activity goes on."""
    stay_on_topic: float = Field(default=0.6, ge=0, le=1)
    """Probability that an event keeps the topic of the user's event before."""
    continue_series: float = Field(default=0.25, ge=0, le=1)
    """Probability that an event is the next item after the user's item before."""
    session_events: float = Field(default=4.0, ge=1, le=1000)
    """Events of a session on average."""
    seasonality: float = Field(default=0.5, ge=0, le=1)
    """How much topics follow the time of the year: 0 not at all, 1 nobody wants them half a year from their peak."""


@dataclass(frozen=True)
class EventBlock:
    """Activity of some users, sorted by user and time.

    Shapes: user (E,) int64, item (E,) int64, time_us (E,) int64, action (E,) int64 row of the action names, value (E,) float64 (NaN
    where none).
    """

    user: LongArray
    item: LongArray
    time_us: LongArray
    action: LongArray
    value: FloatArray

    def rows(self) -> dict[str, pa.Array]:
        """The columns that an interactions file would have."""
        return {
            "user_id": ids("u", self.user),
            "item_id": ids("i", self.item),
            "action": pa.DictionaryArray.from_arrays(pa.array(self.action), pa.array(_ACTIONS)).cast(pa.string()),
            "value": pa.array(self.value, from_pandas=True),
            "time_us": pa.array(self.time_us),
        }


class SimulatedWorld:
    """The made-up shop of one configuration."""

    def __init__(self, config: SimulationConfig) -> None:
        self.config = config
        self.end_us = int(config.end.timestamp() * 1_000_000)
        self.start_us = self.end_us - config.days * DAY_US
        self.num_topics = int(np.clip(config.items // 40, 1, 200))

    @cached_property
    def items(self) -> dict[str, npt.NDArray[np.generic]]:
        """Columns of all items, sorted by topic and, within one, by time of appearance.

        (N,) each: topic int64, created_us int64, quality float64, price float64, language int64, region int64 (-1: everywhere),
        available bool, cumulative float64 (running sum of the appeal).
        """
        rng, count, config = self._rng(0), self.config.items, self.config
        topic = np.sort(_zipf_choice(rng, self.num_topics, count, 0.7))
        new = rng.random(count) < config.new_item_share
        age_days = np.where(new, rng.uniform(0, config.days, count), config.days + rng.uniform(1, 1000, count))
        created_us = self.end_us - (age_days * DAY_US).astype(np.int64)
        order = np.lexsort((created_us, topic))
        quality = rng.normal(size=count)
        appeal = np.exp(quality + 0.8 * rng.normal(size=count))
        return {
            "topic": topic[order],
            "created_us": created_us[order],
            "quality": quality,
            "price": np.round(np.exp(rng.normal(2.5 + 1.5 * rng.random(self.num_topics)[topic[order]], 0.6)), 2),
            "language": np.where(rng.random(count) < 0.5, 0, rng.choice(len(_LANGUAGES), count)),
            "region": np.where(rng.random(count) < 0.8, -1, rng.choice(len(_REGIONS), count, p=_REGION_SHARE)),
            "available": rng.random(count) < 0.97,
            "cumulative": np.cumsum(appeal),
        }

    def item_tables(self, rows: int = 100_000) -> Iterator[pa.Table]:
        """The catalogue in blocks: `item_id`, title, categories, tags, price, created_at, year, languages, regions, available."""
        items = self.items
        for start in range(0, self.config.items, rows):
            part = slice(start, min(start + rows, self.config.items))
            number = np.arange(part.start, part.stop)
            topic, sub = items["topic"][part].astype(np.int64), number % len(SUB)
            created = items["created_us"][part].astype(np.int64)
            region = items["region"][part].astype(np.int64)
            yield pa.table(
                {
                    "item_id": ids("i", number),
                    "title": titles(number),
                    "categories": lists([f"{topic_name(int(t))} > {SUB[s]}" for t, s in zip(topic, sub, strict=True)]),
                    "tags": lists([ADJECTIVES[n % len(ADJECTIVES)].lower() for n in number // 7]),
                    "price": items["price"][part],
                    "created_at": pa.array(created, pa.timestamp("us", tz="UTC")),
                    "year": created.astype("datetime64[us]").astype("datetime64[Y]").astype(np.int64) + 1970,
                    "languages": lists([_LANGUAGES[k] for k in items["language"][part].astype(np.int64)]),
                    "regions": lists([None if k < 0 else _REGIONS[k] for k in region]),
                    "available": pa.array(items["available"][part]),
                }
            )

    def user_blocks(self) -> Iterator[tuple[pa.Table, EventBlock]]:
        """Users in blocks: their table (`user_id`, region, language, age, signed_up_at) and their activity."""
        counts = self._events_per_user()
        per_block = max(1, int(BLOCK_EVENTS * self.config.users / self.config.events))
        for block, start in enumerate(range(0, self.config.users, per_block)):
            user = np.arange(start, min(start + per_block, self.config.users))
            rng = self._rng(2, block)
            region = rng.choice(len(_REGIONS), len(user), p=_REGION_SHARE)
            foreign = rng.random(len(user)) < 0.15
            language = np.where(foreign, rng.choice(len(_LANGUAGES), len(user)), region)
            table = pa.table(
                {
                    "user_id": ids("u", user),
                    "region": np.array(_REGIONS)[region],
                    "language": np.array(_LANGUAGES)[language],
                    "age": np.clip(rng.normal(36, 13, len(user)), 16, 90).astype(np.int64),
                    "signed_up_at": pa.array(
                        self.start_us - rng.integers(0, 700, len(user)) * DAY_US, pa.timestamp("us", tz="UTC")
                    ),
                }
            )
            yield table, self._events(rng, user, counts[user], region, language)

    def _events_per_user(self) -> LongArray:
        """(U,) events of each user: heavy-tailed, one at least where there are enough."""
        rng, users, events = self._rng(1), self.config.users, self.config.events
        if events < users:
            counts = np.zeros(users, dtype=np.int64)
            counts[rng.choice(users, events, replace=False)] = 1
            return counts
        weight = rng.lognormal(0.0, 1.0, users)
        return 1 + rng.multinomial(events - users, weight / weight.sum())

    def _events(
        self, rng: np.random.Generator, user: LongArray, counts: LongArray, region: LongArray, language: LongArray
    ) -> EventBlock:
        row, time_us = session_times(rng, counts, self.config.session_events, self.start_us, self.config.days)
        topic = self._topics(rng, row, len(user), time_us)
        item, drawn = self._choices(rng, topic, time_us), np.arange(len(row))
        continued = (rng.random(len(row)) < self.config.continue_series) & (row == np.roll(row, 1)) & (drawn > 0)
        for _ in range(2):
            unfit = self._unfit(item, region[row], language[row]) & (rng.random(len(row)) < 0.9)
            item[unfit] = self._choices(rng, topic[unfit], time_us[unfit])
        item = self._continued(item, continued, time_us)
        action = rng.choice(len(_ACTIONS), len(row), p=_ACTION_SHARE)
        opinion = 3.6 + 0.7 * self.items["quality"][item].astype(np.float64) + rng.normal(0, 0.8, len(row))
        value = np.where(action == len(_ACTIONS) - 1, np.clip(np.rint(opinion), 1, 5), np.nan)
        return EventBlock(user[row], item, time_us, action, value)

    def _topics(self, rng: np.random.Generator, row: LongArray, users: int, time_us: LongArray) -> LongArray:
        """(E,) topic of each event: one of the user's four favourites, the one in season rather, kept for a while."""
        favourites = _zipf_choice(rng, self.num_topics, (users, 4), 0.7)
        weight = _FAVOURITE_SHARE * season_weight(favourites[row], time_us[:, None], self.config.seasonality)
        bound = np.cumsum(weight, axis=1)
        pick = (rng.random(len(row))[:, None] * bound[:, -1:] > bound).sum(axis=1).clip(max=3)
        fresh = (rng.random(len(row)) >= self.config.stay_on_topic) | (row != np.roll(row, 1))
        if len(fresh):
            fresh[0] = True
        last_fresh = np.maximum.accumulate(np.where(fresh, np.arange(len(row)), 0))
        return np.asarray(favourites[row, pick[last_fresh]])

    def _choices(self, rng: np.random.Generator, topic: LongArray, time_us: LongArray) -> LongArray:
        """(E,) an item of each topic by its appeal, among those that had appeared."""
        cumulative = self.items["cumulative"].astype(np.float64)
        start, known = self._start[topic], self._known(topic, time_us)
        low = np.where(start > 0, cumulative[start - 1], 0.0)
        high = cumulative[start + known - 1]
        return np.minimum(np.searchsorted(cumulative, low + rng.random(len(topic)) * (high - low), side="right"), start + known - 1)

    def _continued(self, item: LongArray, continued: BoolArray, time_us: LongArray) -> LongArray:
        """Events of a series become the items after the one that the series began with, within the topic's known items."""
        rows = np.arange(len(item))
        base = np.maximum.accumulate(np.where(continued, 0, rows))
        topic = self.items["topic"][item[base]].astype(np.int64)
        start, known = self._start[topic], self._known(topic, time_us)
        return np.where(continued, start + (item[base] - start + rows - base) % known, item)

    def _unfit(self, item: LongArray, region: LongArray, language: LongArray) -> BoolArray:
        where = self.items["region"][item].astype(np.int64)
        spoken = self.items["language"][item].astype(np.int64)
        available = self.items["available"][item].astype(bool)
        return ((where >= 0) & (where != region)) | ((spoken != 0) & (spoken != language)) | ~available

    def _known(self, topic: LongArray, time_us: LongArray) -> LongArray:
        """(E,) number of a topic's items that had appeared; one at least."""
        keys = self._appeared
        found = np.searchsorted(keys, topic * self._span + (time_us - self._earliest), side="right")
        return np.maximum(found - self._start[topic], 1)

    @cached_property
    def _start(self) -> LongArray:
        """(T,) row of each topic's first item. A topic without items borrows its neighbour's."""
        starts = np.searchsorted(self.items["topic"], np.arange(self.num_topics))
        return np.minimum(starts, self.config.items - 1).astype(np.int64)

    @cached_property
    def _earliest(self) -> int:
        return int(self.items["created_us"].min())

    @cached_property
    def _span(self) -> int:
        return self.end_us - self._earliest + 1

    @cached_property
    def _appeared(self) -> LongArray:
        """(N,) ascending keys: topic, then time of appearance."""
        return self.items["topic"].astype(np.int64) * self._span + (self.items["created_us"].astype(np.int64) - self._earliest)

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, *stream])


def _zipf_choice(rng: np.random.Generator, options: int, size: int | tuple[int, ...], exponent: float) -> LongArray:
    weight = 1.0 / np.arange(1, options + 1) ** exponent
    return np.searchsorted(np.cumsum(weight / weight.sum()), rng.random(size)).clip(max=options - 1).astype(np.int64)
