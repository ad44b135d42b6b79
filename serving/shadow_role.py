"""The shadow: the version that the alias `shadow` names is asked what is asked of the champion, and never shown.

It runs as an application of its own, at a low priority, also where the version is shown as well: a version's own replicas keep the
priority of answers that somebody waits for. Here is how it is named and how much of the traffic it sees; `serving.shadow` sends,
`serving.shadow_replica` scores, `serving.shadow_tally` adds up.
"""

from __future__ import annotations

from training.model_version import ModelVersion

SHADOW = "shadow"
"""The alias."""
SAMPLE_TAG = "shortlist.shadow_sample"
"""Share of computed answers that the shadow is asked for too, a tag of the version; 1 where it is missing."""
_PREFIX = "shadow-"


def shadow_key(version: str) -> str:
    """Key of a version's shadow application."""
    return _PREFIX + version


def version_of(key: str) -> str:
    """The version of an application's key, shadow or not."""
    return key.removeprefix(_PREFIX)


def is_shadow(key: str) -> bool:
    """Whether a key is a shadow's."""
    return key.startswith(_PREFIX)


def shadow_sample(version: ModelVersion) -> float:
    """The share in the version's tag; what is not a number between 0 and 1 counts as 1."""
    try:
        share = float(version.tags.get(SAMPLE_TAG, "1"))
    except ValueError:
        return 1.0
    return share if 0 <= share <= 1 else 1.0
