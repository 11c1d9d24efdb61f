"""Request routers on real processes: in the proxy, in a script, and where they cannot be."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from skate import serve
from skate.core.errors import OptionError
from skate.routers import ConsistentHash, RequestRouterConfig
from tests.e2e.choosers import Ordinal
from tests.e2e.conftest import Deploy
from tests.e2e.notes import Gate, Notes
from tests.e2e.world import until


def who(**config: Any) -> Any:
    @serve.deployment(num_replicas=3, request_router_config=RequestRouterConfig(**config))
    class Who:
        def __call__(self) -> str:
            return serve.get_replica_context().replica_id

    return Who.bind()


def all_ready(name: str) -> list[str]:
    """The ids of the three replicas, oldest first, once all of them are there."""

    def ready() -> list[str]:
        replicas = serve.status().applications[name].deployments["Who"].replicas
        return [replica.id for replica in replicas if replica.phase == "ready"]

    return until(lambda: ready() if len(ready()) == 3 else [])


def test_a_key_leads_to_one_replica_from_wherever_the_call_comes(
    deploy: Deploy, http: httpx.Client, notes: Notes, gate: Gate
) -> None:
    handle = deploy(who(request_router_class=ConsistentHash, request_router_kwargs={"header": "X-User"}))
    name = handle.app_name
    all_ready(name)
    homes = set()
    for user in "abcdefgh":
        until(lambda: len({http.get(f"/{name}", headers={"x-user": user}).text for _ in range(5)}) == 1)  # noqa: B023
        (home,) = {http.get(f"/{name}", headers={"x-user": user}).text for _ in range(5)}
        until(lambda: {handle.options(routing_key=user).remote().result() for _ in range(5)} == {home})  # noqa: B023
        homes.add(home)
    assert len(homes) > 1


def test_a_class_of_the_users_own(deploy: Deploy, http: httpx.Client, notes: Notes, gate: Gate) -> None:
    handle = deploy(who(request_router_class=Ordinal, request_router_kwargs={"header": "x-number"}))
    ids = all_ready(handle.app_name)
    for number, id in enumerate(ids):
        until(
            lambda: {
                http.get(f"/{handle.app_name}", headers={"x-number": str(number)}).text for _ in range(3)  # noqa: B023
            } == {id}  # noqa: B023
        )  # fmt: skip
        until(
            lambda: {handle.options(routing_key=str(number)).remote().result() for _ in range(3)} == {id}  # noqa: B023
        )


def test_what_a_proxy_could_not_load_is_refused_at_once(deploy: Deploy) -> None:
    for config, said in (
        ({"request_router_class": "tests.e2e.nowhere:X"}, "does not import"),
        ({"request_router_class": "tests.e2e.choosers:Ordinary"}, "the nearest is 'Ordinal'"),
        ({"request_router_class": "tests.e2e.choosers:Ordinal"}, "cannot be made with request_router_kwargs={}"),
        ({"request_router_class": "collections:Counter"}, "no method choose"),
        ({"request_router_class": "__main__:Mine"}, "move the class to a module of its own"),
    ):
        with pytest.raises(OptionError) as error:
            deploy(who(**config))
        assert said in str(error.value) and "deployment 'Who': request_router_config" in str(error.value)
