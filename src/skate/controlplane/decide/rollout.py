"""How many replicas may come and go at once while versions or numbers change. Law: what is ready is only stopped when
enough others are ready, so a change never makes a deployment smaller than it was wanted to be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from skate.core.options import DeploymentOptions
from skate.core.specs import DeploymentSpec

Stage = Literal["starting", "ready"]


class Standing(msgspec.Struct, frozen=True):
    """A replica that lives and is not about to end. ``fresh``: it was seen ready for the first time.

    ``config``: what it runs with, None as long as it has not said so; ``telling``: what it is being told; ``refused``:
    what it could not take up, and ``config_error`` why.
    """

    id: str
    version: str
    stage: Stage
    ordinal: int
    fresh: bool = False
    config: str | None = None
    telling: str = ""
    refused: str = ""
    config_error: str = ""


class Pace(msgspec.Struct, frozen=True):
    """``surge`` replicas more than wanted may exist, ``unavailable`` fewer than wanted may be ready."""

    surge: int
    unavailable: int = 0


def pace_of(options: DeploymentOptions, target: int) -> Pace:
    """New ones start before old ones stop: a batch of ``rolling_update_percentage``, more if the surge allows it."""
    batch = int(options.rolling_update_percentage * target)
    surge = math.ceil(options.max_surge_percent * target / 100)
    return Pace(surge=max(1, batch, surge))


def to_stop(version: str, target: int, pace: Pace, standing: Sequence[Standing]) -> list[Standing]:
    """Who shall leave: what starts in vain at once, and of the ready ones what is above the number that must stay."""
    ready = [one for one in standing if one.stage == "ready"]
    new = sorted((one for one in ready if one.version == version), key=lambda one: one.ordinal)
    old = sorted((one for one in ready if one.version != version), key=lambda one: one.ordinal)
    spare = max(0, len(ready) - max(0, target - pace.unavailable))
    surplus = list(reversed(new[target:]))  # the newest leave first
    coming = [one for one in standing if one.stage == "starting"]
    vain = [one for one in coming if one.version != version]
    hoped = sorted((one for one in coming if one.version == version), key=lambda one: one.ordinal)
    vain += hoped[max(0, target - len(new)) :]
    return vain + (surplus + old)[:spare]


def to_start(version: str, target: int, pace: Pace, staying: Sequence[Standing]) -> int:
    """How many of the wanted version shall be started now."""
    missing = target - sum(one.version == version for one in staying)
    room = target + pace.surge - len(staying)
    return max(0, min(missing, room))


def to_reconfigure(spec: DeploymentSpec, target: int, standing: Sequence[Standing]) -> list[Standing]:
    """Whom to tell the wanted configuration now: as many at a time as are replaced at a time, none after a failure."""
    mine = [one for one in standing if one.version == spec.version and one.stage == "ready"]
    if any(one.refused == spec.config for one in mine):
        return []
    behind = [one for one in mine if one.config not in (None, spec.config)]
    waiting = sorted((one for one in behind if one.telling != spec.config), key=lambda one: one.ordinal)
    room = max(1, int(spec.options.rolling_update_percentage * target)) - (len(behind) - len(waiting))
    return waiting[: max(0, room)]
