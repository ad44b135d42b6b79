"""The gate on registered versions: fetches what both studies found and stores the verdict. The rule itself is `training.gate`'s."""

from __future__ import annotations

from training.errors import RegistryError
from training.gate import GateDecision, GateRule, Validated, decide
from training.model_version import CHAMPION, GATE_REASON_TAG, GATE_TAG, ModelVersion
from training.registry import Registry
from training.study_run import PER_USER_FILE, PROTOCOL_TAG
from training.tracking import Run, connect


def judge(registry: Registry, candidate: Validated, rule: GateRule | None = None) -> GateDecision:
    """The gate's verdict on a candidate against the present champion."""
    aliases = registry.aliases()
    if CHAMPION not in aliases:
        return decide(candidate, None, rule)
    champion = registry.version(CHAMPION)
    try:
        validated = validated_version(registry, champion)
    except RegistryError as error:
        return GateDecision("first", (f"the champion has no validation metrics to compare with ({error})",))
    return decide(candidate, validated, rule)


def validated_version(registry: Registry, version: ModelVersion) -> Validated:
    """What the study behind a version found on validation.

    Raises:
        RegistryError: the version has no run, or the run no such file.
    """
    name = f"version {version.version}"
    if version.run_id is None:
        raise RegistryError(f"{name} of {registry.model} was registered without a run")
    table = Run(connect(registry.tracking_uri), version.run_id).read_table(PER_USER_FILE)
    if table is None:
        raise RegistryError(f"run {version.run_id} of {name} has no {PER_USER_FILE}")
    return Validated(registry.dataset, version.tags.get(PROTOCOL_TAG, "unknown"), table, name)


def rejudge(registry: Registry, version: ModelVersion) -> GateDecision:
    """The gate's verdict on a registered version against the present champion; stored with it.

    Raises:
        RegistryError: the version has no validation metrics.
    """
    if CHAMPION in version.aliases:
        raise RegistryError(f"version {version.version} is the champion: there is nothing to judge it against")
    decision = judge(registry, validated_version(registry, version))
    registry.set_tag(version.version, GATE_TAG, decision.verdict)
    registry.set_tag(version.version, GATE_REASON_TAG, decision.reason)
    return decision
