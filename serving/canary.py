"""Canaries: experiments that the system creates, between the champion and one version, and stops when a guardrail says so.

There is one splitter: a canary is an experiment like any other, its two variants of equal size, so that what the version does is
measured against as many units of the champion. Owns what a canary's experiment file says and when it is stopped; its life in
between is that of `serving.control`'s experiments.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime

import numpy as np
import pyarrow.compute as pc

from experiments.spec import ExperimentSpec, parse_spec
from serving.config import ServingConfig
from serving.control import ExperimentRecord, ServingControl

_log = logging.getLogger("shortlist.serving")

PREFIX = "canary-"
"""Of the names of canaries' experiments."""
DEFAULT_SHARE, MAX_SHARE = 0.05, 0.5
"""Share of units that get the version. As many get the champion as control, so there is no more than one half."""
CONTROL_VARIANT, CANARY_VARIANT = "champion", "canary"
METRICS = {
    "primary": "ctr",
    "guardrails": [{"name": "engagement", "margin": 0.1}, {"name": "rejections", "margin": 0.1}],
}
DEGRADED_MARGIN = 0.01
"""Share of answers from a lower rung of the fallback ladder by which a canary may exceed the champion: one in a hundred."""
DEGRADED_P_VALUE = 1e-4
"""Of the one-sided test that it does: small, as it is looked at again and again."""
ACTOR = "canary"


def canary_spec(version: str, champion: str, share: float, taken: Collection[str]) -> ExperimentSpec:
    """The experiment of a new canary.

    Args:
        version: that is tried.
        champion: the version that it is compared with.
        share: of all units, that get the version.
        taken: names of experiments that exist: a stopped one's name and salt are never used again.
    """
    names = (f"{PREFIX}{version}" + (f"-{number}" if number > 1 else "") for number in range(1, 1 << 30))
    name = next(name for name in names if name not in taken)
    variants = [
        {"name": CONTROL_VARIANT, "model": champion, "weight": 0.5},
        {"name": CANARY_VARIANT, "model": version, "weight": 0.5},
    ]
    salt = f"{name}-{secrets.token_hex(4)}"
    return parse_spec({"name": name, "salt": salt, "traffic": 2 * share, "variants": variants, "metrics": METRICS})


def running_canary(control: ServingControl, version: str | None = None) -> ExperimentRecord | None:
    """The canary that is starting, running or paused, of a version or of any."""
    for one in control.experiments():
        live = one.spec.name.startswith(PREFIX) and one.status in {"starting", "running", "paused"}
        if live and (version is None or one.pins.get(CANARY_VARIANT) == version):
            return one
    return None


class CanaryWatch:
    """Looks at running canaries and stops those that do harm.

    Args:
        config: of the stack.
        control: its experiments.
        clock: seconds, monotonic.
    """

    def __init__(self, config: ServingConfig, control: ServingControl, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._control, self._clock = config, control, clock
        self._looked_at: float | None = None

    def look(self) -> list[str]:
        """Names of the canaries that were stopped now. Looks at the figures every `canary_check_s` seconds at most.

        Raises:
            FeaturesError: the stores cannot be read.
        """
        now = self._clock()
        if self._looked_at is not None and now - self._looked_at < self._config.canary_check_s:
            return []
        self._looked_at = now
        stopped = []
        for one in self._control.experiments():
            if one.spec.name.startswith(PREFIX) and one.status == "running":
                reason = self._harm(one)
                if reason is not None:
                    self._stop(one, reason)
                    stopped.append(one.spec.name)
        return stopped

    def _harm(self, record: ExperimentRecord) -> str | None:
        # Statistics libraries are loaded when there is a canary, and not before.
        from experiments.report import build_report
        from serving.experiment_tables import events_of, exposures_of

        exposures = exposures_of(self._config.paths, record)
        reason = degraded_more(
            *(
                (len(mine), int(pc.sum(mine["degraded"]).as_py() or 0))
                for mine in (exposures.filter(pc.equal(exposures["variant"], name)) for name in (CONTROL_VARIANT, CANARY_VARIANT))
            )
        )
        if reason is not None:
            return reason
        events = events_of(self._config.paths, record)
        decision = build_report(record.spec, exposures, events, now=datetime.now(UTC), started_at=record.started_at).decision
        return "; ".join(decision.reasons) if decision.verdict == "do_not_ship" else None

    def _stop(self, record: ExperimentRecord, reason: str) -> None:
        name = record.spec.name
        _log.error("canary %s of version %s is stopped: %s", name, record.pins.get(CANARY_VARIANT), reason)
        self._control.end_experiment(name, "stopped", actor=ACTOR)
        self._control.audit.record(actor=ACTOR, action="canary.harm", subject=f"canary:{name}", before=None, after=reason)


def degraded_more(control: tuple[int, int], canary: tuple[int, int]) -> str | None:
    """Why a canary's answers come from lower rungs more often than the champion's, None where they do not.

    Args:
        control, canary: answers, and those of them that were degraded.
    """
    from scipy.stats import fisher_exact

    (control_all, control_bad), (canary_all, canary_bad) = control, canary
    if not control_all or not canary_all or canary_bad / canary_all <= control_bad / control_all + DEGRADED_MARGIN:
        return None
    table = np.array([[canary_bad, canary_all - canary_bad], [control_bad, control_all - control_bad]])
    p_value = float(fisher_exact(table, alternative="greater").pvalue)
    if p_value >= DEGRADED_P_VALUE:
        return None
    return (
        f"{canary_bad} of {canary_all} answers were degraded, of the champion's {control_bad} of {control_all} (p = {p_value:.1g})"
    )
