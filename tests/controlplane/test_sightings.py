"""What is seen and what is said come in any order."""

from __future__ import annotations

from skate.controlplane.sightings import PROXY_PREFIX, Sightings
from skate.core.specs import ProxyReport, ReplicaReport
from skate.engine.base import ProcessSeen


def test_the_first_word_of_a_new_proxy_may_come_before_the_old_one_is_forgotten() -> None:
    here, name = Sightings(0.0), PROXY_PREFIX + "0"
    here.process(ProcessSeen(name, "proxy", 1, True), 0.0)
    here.proxy_said(ProxyReport("0", "ready", 1, "127.0.0.1", 8000))
    here.process(ProcessSeen(name, "proxy", 1, False, -9), 1.0)
    here.proxy_said(ProxyReport("0", "ready", 2, "127.0.0.1", 8000))  # before the engine's answers were read
    here.forgotten(name)
    here.process(ProcessSeen(name, "proxy", 2, True), 1.0)
    seen = here.observed.proxies["0"]
    assert (seen.pid, seen.phase, seen.address) == (2, "ready", "127.0.0.1:8000")
    here.process(ProcessSeen(name, "proxy", 2, False, 1), 2.0)
    here.forgotten(name)
    assert not here.observed.proxies and not here._proxy_reports


def test_the_end_of_one_telling_does_not_hide_the_next_one() -> None:
    here = Sightings(0.0)
    here.process(ProcessSeen("a/A#1", "replica", 1, True), 0.0)
    here.replica_said(ReplicaReport("a/A#1", "ready", 1, config="c1"), 0.0)
    here.telling("a/A#1", "c2")
    here.telling("a/A#1", "c3")
    here.told("a/A#1", "c2")
    assert here.observed.replicas["a/A"]["a/A#1"].telling == "c3"
    here.told("a/A#1", "c3")
    assert here.observed.replicas["a/A"]["a/A#1"].telling == ""
