"""The count of all calls of an instance, from its first one on, through deaths: it balances to the last one."""

from __future__ import annotations

import os
import random
import signal

from skate import serve
from skate.core.errors import ReplicaDiedError
from tests.e2e.conftest import Deploy
from tests.e2e.traffic import CLIENTS, ready, traffic, version
from tests.e2e.world import Instance, calls, until

DEATHS = 5


def test_deaths_cost_only_what_the_dead_had_in_hand(deploy: Deploy, instance: Instance) -> None:
    handle = deploy(version("alive", num_replicas=3))
    with traffic(instance.url, handle) as seen:
        for _ in range(DEATHS):
            seen.grows(30)
            os.kill(random.choice(until(ready)), signal.SIGKILL)
        seen.grows(30)
        until(lambda: len(ready()) == 3)
    bad = [word for word in seen.bad("alive") if not (word.startswith("500") and "died" in word)]
    assert [word for word in bad if not word.startswith(ReplicaDiedError.__name__)] == []
    until(lambda: serve.status().calls.accepted == seen.seen.total())  # proxies tell their counts now and then
    told, failed = calls(), seen.seen.total() - seen.seen["alive"]
    assert (told.ok, told.lost, told.open) == (seen.seen["alive"], failed, 0)
    assert failed <= DEATHS * (CLIENTS + 1)
