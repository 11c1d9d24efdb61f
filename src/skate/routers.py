"""Who chooses the replica of a call: ``from skate.routers import ConsistentHash``.

Law: nothing happens here; what there is stands in ``dataplane/routing/policies``. A deployment names its chooser by its
class or import path: ``request_router_config=RequestRouterConfig(request_router_class=ConsistentHash)``.
"""

from __future__ import annotations

from skate.core.options import RequestRouterConfig
from skate.dataplane.routing.policies import (
    CallView,
    Candidate,
    ConsistentHash,
    PowerOfTwo,
    RequestRouter,
    RoundRobin,
    SameNode,
)

__all__ = [
    "CallView",
    "Candidate",
    "ConsistentHash",
    "PowerOfTwo",
    "RequestRouter",
    "RequestRouterConfig",
    "RoundRobin",
    "SameNode",
]
