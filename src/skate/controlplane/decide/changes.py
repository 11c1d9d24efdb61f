"""What a deploy changes, and because of what: the answer of ``plan``. Law: says what reconcile would do, no more."""

from __future__ import annotations

import msgspec

from skate.core.checks import shown
from skate.core.options import DeploymentOptions, options_of
from skate.core.specs import AppPlan, AppSpec, Change, ChangeAction, DeploymentSpec

SCALING = ("num_replicas", "autoscaling_config")


def app_plan(before: AppSpec | None, after: AppSpec) -> AppPlan:
    """What deploying ``after`` does to the application that runs as ``before`` (None: does not run)."""
    if before is None:
        return AppPlan(after.name, "add", tuple(Change(spec.name, "add") for spec in after.deployments))
    found = changes(before, after)
    return AppPlan(after.name, "change" if found else "leave", all_changes(before, after))


def changes(before: AppSpec, after: AppSpec) -> tuple[Change, ...]:
    """Everything that is not left alone; a change of the route too, under no deployment's name."""
    found = [change for change in all_changes(before, after) if change.action != "leave"]
    if before.route_prefix != after.route_prefix or before.ingress != after.ingress:
        why = f"route_prefix {before.route_prefix} -> {after.route_prefix}"
        found.append(Change(after.ingress, "settings", (why,)))
    return tuple(found)


def all_changes(before: AppSpec, after: AppSpec) -> tuple[Change, ...]:
    """One for each deployment, the wanted ones first."""
    old = {spec.name: spec for spec in before.deployments}
    found = [change_of(old.get(spec.name), spec) for spec in after.deployments]
    names = {spec.name for spec in after.deployments}
    return (*found, *(Change(name, "remove") for name in old if name not in names))


def change_of(before: DeploymentSpec | None, after: DeploymentSpec) -> Change:
    """What becomes of one deployment."""
    if before is None:
        return Change(after.name, "add")
    why = differences(before.options, after.options)
    action: ChangeAction = "leave"
    if before.version != after.version:
        action = "restart"
        declared = options_of(DeploymentOptions)
        by_option = any(declared[line.partition(" ")[0]].change == "restart" for line in why)
        if not by_option or before.code != after.code or before.init != after.init:
            why = (*why, "code or constructor arguments")
    elif before.config != after.config:
        action = "reconfigure"
    elif any(line.partition(" ")[0] in SCALING for line in why):
        action = "scale"
    elif why:
        action = "settings"
    return Change(after.name, action, why)


def differences(before: DeploymentOptions, after: DeploymentOptions) -> tuple[str, ...]:
    """The options that differ, as ``name old -> new``."""
    old, new = msgspec.structs.asdict(before), msgspec.structs.asdict(after)
    return tuple(
        f"{name} {shown(old[name])} -> {shown(new[name])}"
        for name in options_of(DeploymentOptions)
        if old[name] != new[name]
    )
