"""The run: groups, and in each rounds of all works, every system in turn.

Law: who is not measured does not run: systems that are busy by themselves are paused, the others idle at nothing. What
fails costs its own line in the table and nothing else. Everything has a limit.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic

from benchmarks import load
from benchmarks.load import LoadError
from benchmarks.processes import ProcessError
from benchmarks.suite.results import Results
from benchmarks.suite.running import Running, running
from benchmarks.suite.systems import System
from benchmarks.suite.works import Group, Work

SCRIPT = str(Path(__file__).parent.parent / "request.lua")
STARTS_MAX = 2  # of one system that fails
WARM_S, WARM_CONNECTIONS = 1, 8

Values = dict[str, float]


class Crew:
    """The systems that run. Those that can deploy stay from group to group, the others are started for each."""

    def __init__(self, folder: Path, results: Results) -> None:
        self._folder = folder
        self._results = results
        self._staying: dict[str, tuple[Running, contextlib.ExitStack]] = {}
        self._starts: dict[str, int] = {}

    @contextlib.contextmanager
    def serving(self, group: Group, systems: Sequence[System]) -> Iterator[list[Running]]:
        """Those of the systems that serve the group's application, each paused if it has to be."""
        able = [system for system in systems if group.app in system.apps]
        with contextlib.ExitStack() as leaving:
            ready: list[Running] = []
            for system in able:
                say(f"  {system.name}: {group.app} ...")
                try:
                    one = self._stay(system, group) if system.deploys else self._start(system, group, leaving)
                except (ProcessError, OSError) as error:
                    self._results.fail(system.name, group.name, "", str(error))
                    self.dismiss(system)
                    continue
                rest(one)
                ready.append(one)
            yield ready
            for one in ready:
                if one.system.deploys and one.system.name in self._staying:
                    self._leave(one, group)

    def _start(self, system: System, group: Group, stack: contextlib.ExitStack) -> Running:
        ready = system.request(group.ready) if group.ready else None
        return stack.enter_context(running(system, group.app, ready, self._folder))

    def _stay(self, system: System, group: Group) -> Running:
        if system.name in self._staying:
            one = self._staying[system.name][0]
            one.resume()
            one.ask("deploy", system.start_max_s, app=group.app)
            if group.ready:
                one.wait_ready(system.request(group.ready), system.start_max_s)
            return one
        self._starts[system.name] = self._starts.get(system.name, 0) + 1
        if self._starts[system.name] > STARTS_MAX:
            raise ProcessError(f"it failed {STARTS_MAX} times before and is left out")
        stack = contextlib.ExitStack()
        one = self._start(system, group, stack)
        self._staying[system.name] = one, stack
        return one

    def _leave(self, one: Running, group: Group) -> None:
        try:
            one.resume()
            one.ask("delete", one.system.start_max_s, app=group.app)
            rest(one)
        except (ProcessError, OSError):
            self.dismiss(one.system)

    def dismiss(self, system: System) -> None:
        """Ends a system that stays; the next group starts it again."""
        if (found := self._staying.pop(system.name, None)) is not None:
            found[1].close()

    def close(self) -> None:
        """Ends all of them."""
        for name in list(self._staying):
            with contextlib.suppress(Exception):
                self._staying.pop(name)[1].close()


def rest(one: Running) -> None:
    """Pauses a system that would be busy while others are measured."""
    if one.system.pauses:
        one.pause()


def measure_group(group: Group, crew: Crew, systems: Sequence[System], rounds: int, results: Results) -> None:
    """All rounds of one group."""
    say(f"{group.name}:")
    with crew.serving(group, systems) as ready:
        for number in range(rounds):
            for work in group.works:
                if number >= work.rounds_max:
                    continue
                turn = number % max(1, len(ready))
                for one in ready[turn:] + ready[:turn]:  # not always the same one first
                    if one.system.name in work.only or not work.only:
                        measure_one(one, group, work, number, results)
            say(f"  round {number + 1} of {rounds}")


def measure_one(one: Running, group: Group, work: Work, number: int, results: Results) -> None:
    """One work once. What goes wrong is noted, and that system is spared the work's other rounds."""
    name = one.system.name
    if reason := one.system.lacks.get(work.path):
        results.fail(name, group.name, work.name, reason)
    if results.failed(name, group.name, work.name):
        return
    one.resume()
    try:
        results.add(name, group.name, work.name, METHODS[work.kind](one, work, number))
    except (LoadError, ProcessError, OSError) as error:
        results.fail(name, group.name, work.name, str(error))
    finally:
        rest(one)


def by_load(one: Running, work: Work, number: int) -> Values:
    """wrk keeps so many connections busy; CPU time of all processes meanwhile."""
    request = one.system.request(work.path, work.body, work.size)
    script: tuple[str, ...] = ()
    if request.kind:
        body = one.folder / "body"
        body.write_bytes(request.body)
        script = (SCRIPT, request.method, request.kind, str(body))
    url = one.url + request.path
    if url not in one.warm:  # nobody's first requests are counted
        load.measure(load.WRK, url, WARM_CONNECTIONS, WARM_S, script)
        one.warm.add(url)
    before = one.cpu()
    seen = load.measure(load.WRK, url, work.connections, round(work.seconds), script)
    used = spent(before, one.cpu())
    return {
        "requests/s": seen.rate,
        "p50 µs": seen.p50_us,
        "p99 µs": seen.p99_us,
        "CPU µs": used / seen.requests * 1e6,
        "load cores": seen.cores,
    }


def spent(before: dict[int, float], after: dict[int, float]) -> float:
    """CPU seconds between two looks, of all that lived at the second."""
    return sum(used - before.get(pid, 0.0) for pid, used in after.items())


METHODS: dict[str, Callable[[Running, Work, int], Values]] = {"load": by_load}


def say(text: str) -> None:
    """Where the run is."""
    print(f"[{monotonic() - BEGAN:5.0f} s] {text}", file=sys.stderr, flush=True)


BEGAN = monotonic()
