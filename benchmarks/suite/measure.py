"""The run: groups, and in each rounds of all works, every system in turn.

Law: who is not measured does not run: systems that are busy by themselves are paused, the others idle at nothing. What
fails costs its own line in the table and nothing else. Everything has a limit.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic, sleep

from benchmarks.processes import ProcessError
from benchmarks.suite.methods import METHODS, start
from benchmarks.suite.results import Results, processes_of
from benchmarks.suite.running import Running, running
from benchmarks.suite.systems import System
from benchmarks.suite.works import Group, Work

STARTS_MAX = 2  # in a row of one system that fails
AWAKE_S = 1.5  # after a pause: whoever looked after whom while time stood still must have looked again
STARTS_LONG_S, STARTS_OF_LONG = 100.0, 2  # who may take longer starts so often, and not just to fill caches


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
                except Exception as error:
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
            raise ProcessError(f"it did not start {STARTS_MAX} times in a row and is left out")
        stack = contextlib.ExitStack()
        one = self._start(system, group, stack)
        self._staying[system.name] = one, stack
        self._starts[system.name] = 0
        return one

    def _leave(self, one: Running, group: Group) -> None:
        try:
            one.resume()
            one.ask("delete", one.system.start_max_s, app=group.app)
            rest(one)
        except Exception:
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
    say(f"{group.name}: {group.title}")
    wanted = [one for one in systems if any(takes(work, one) for work in group.works)]
    with crew.serving(group, wanted) as ready:
        for number in range(rounds):
            works = [work for work in group.works if number < work.rounds_max]
            turn = number % max(1, len(ready))
            awake = [one for one in ready[turn:] + ready[:turn] if not one.system.pauses]  # each is the first one once
            for work in works:
                for one in awake:
                    measure_one(one, group, work, results)
            for one in ready:
                if one.system.pauses:
                    measure_awake(one, group, works, results)
            say(f"  round {number + 1} of {rounds}")


def measure_awake(one: Running, group: Group, works: Sequence[Work], results: Results) -> None:
    """All works of a round while a system does not pause."""
    one.resume()
    sleep(AWAKE_S)
    for work in works:
        measure_one(one, group, work, results)
    rest(one)


def takes(work: Work, system: System) -> bool:
    """Whether this work is meant for it."""
    return system.name in work.only or not work.only


def measure_one(one: Running, group: Group, work: Work, results: Results) -> None:
    """One work once. What goes wrong is noted, and that system is spared the work's other rounds."""
    name = one.system.name
    if takes(work, one.system) and (reason := one.system.lacks.get(work.path)):
        results.fail(name, group.name, work.name, reason)
    if not takes(work, one.system) or results.failed(name, group.name, work.name):
        return
    try:
        results.add(name, group.name, work.name, METHODS[work.kind](one, work))
    except Exception as error:  # of whatever kind: it costs this line and nothing else
        say(f"  {name}: {work.name}: {error}")
        results.fail(name, group.name, work.name, str(error) or type(error).__name__)


def measure_starts(group: Group, folder: Path, systems: Sequence[System], rounds: int, results: Results) -> None:
    """Each system alone and fresh, round by round. One start goes before, which fills the caches of the files."""
    say(f"{group.name}: {group.title}")
    (work,) = group.works
    rounds = min(rounds, work.rounds_max)
    for number in range(rounds + 1):
        for system in systems:
            if group.app not in system.apps or results.failed(system.name, group.name, work.name):
                continue
            if system.start_max_s > STARTS_LONG_S and not 0 < number <= STARTS_OF_LONG:
                continue
            try:
                with running(system, group.app, system.request(group.ready), folder) as one:
                    if number:
                        results.add(system.name, group.name, work.name, start(one))
                        results.processes[system.name] = processes_of(one.costs())
            except Exception as error:
                say(f"  {system.name}: {error}")
                results.fail(system.name, group.name, work.name, str(error))
        say(f"  round {number} of {rounds}")


def say(text: str) -> None:
    """Where the run is."""
    print(f"[{monotonic() - BEGAN:5.0f} s] {text}", file=sys.stderr, flush=True)


BEGAN = monotonic()
