"""Names of a simulated world: ids, titles, topics and the other words of its catalogue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

TOP = [
    "Books",
    "Music",
    "Film",
    "Games",
    "Sport",
    "Garden",
    "Kitchen",
    "Travel",
    "Fashion",
    "Beauty",
    "Toys",
    "Tools",
    "Pets",
    "Health",
    "Office",
    "Outdoor",
    "Art",
    "Audio",
]
SUB = ["Classic", "Modern", "Compact", "Premium", "Family", "Travel", "Studio", "Vintage", "Sport", "Eco", "Smart", "Kids"]
ADJECTIVES = [
    "Quiet",
    "Golden",
    "Little",
    "Northern",
    "Bright",
    "Hidden",
    "Rapid",
    "Gentle",
    "Wild",
    "Silver",
    "Distant",
    "Humble",
    "Clever",
    "Broken",
    "Endless",
    "Warm",
]
NOUNS = [
    "River",
    "Lamp",
    "Story",
    "Engine",
    "Garden",
    "Mirror",
    "Harbor",
    "Signal",
    "Forest",
    "Compass",
    "Letter",
    "Winter",
    "Window",
    "Bridge",
    "Planet",
    "Kettle",
]


def ids(prefix: str, numbers: npt.NDArray[np.int64]) -> pa.Array:
    """(n,) str: `prefix` and the number."""
    return pa.array(np.char.add(prefix, numbers.astype(str)))


def topic_name(topic: int) -> str:
    """Name of a topic; those beyond the list are numbered."""
    name = TOP[topic % len(TOP)]
    return name if topic < len(TOP) else f"{name} {topic // len(TOP) + 1}"


def titles(number: npt.NDArray[np.int64]) -> list[str]:
    """Titles by number; the number's last part keeps them apart."""
    adjectives, nouns = len(ADJECTIVES), len(NOUNS)
    return [f"{ADJECTIVES[n % adjectives]} {NOUNS[n // adjectives % nouns]} {n // (adjectives * nouns) + 1}" for n in number]


def lists(values: Sequence[str | None]) -> pa.Array:
    """(n,) lists of one value each, empty where there is none."""
    return pa.array([[] if value is None else [value] for value in values], pa.list_(pa.string()))
