"""Builds what was ordered: a builder process for each application, which imports the user's code and ends.

Law: the controller never imports user code. What ran before goes on until a build has succeeded; a builder that dies
or takes too long is an error of that application and of no other. After a restart of the controller orders are
built anew.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from skate.controlplane.applications import Applications
from skate.controlplane.broadcast import Tasks
from skate.controlplane.decide.changes import app_plan
from skate.controlplane.decide.values import Order
from skate.controlplane.processes import Processes
from skate.controlplane.state import State
from skate.core.config import ApplyRequest, BuildRequest, BuildResult
from skate.core.errors import SkateError
from skate.core.specs import AppPlan, AppSpec
from skate.engine.base import Action, Engine, EngineError, ForgetProcess, ProcessSeen, StopProcess

BUILDS_MAX = 4  # at a time; others wait
BUILD_MAX_S = 600.0  # for imports and the builder function of one application
BUILDER = "build "  # of the ids of builder processes

Engines = Callable[[Action], Coroutine[Any, Any, ProcessSeen | None]]


class Builds:
    """The builder processes of one controller."""

    def __init__(self, state: State, applications: Applications, processes: Processes, engine: Engine) -> None:
        self._state = state
        self._applications = applications
        self._processes = processes
        self._engine = engine
        self._slots = asyncio.Semaphore(BUILDS_MAX)
        self._results: dict[str, asyncio.Future[BuildResult]] = {}  # by process id
        self._started: set[str] = set()  # those of them whose process the engine has
        self._under_way: dict[str, tuple[int, asyncio.Task[None]]] = {}  # the order's number, by application

    def begin(self, tasks: Tasks) -> None:
        """Starts building every order that is not under way, and ends the builds of those that are wanted no more."""
        orders = self._state.orders
        for name, (number, task) in list(self._under_way.items()):
            order = orders.get(name)
            if order is None or order.number != number:
                del self._under_way[name]
                task.cancel()
        for name, order in orders.items():
            if not order.error and name not in self._under_way:
                self._under_way[name] = (order.number, tasks.start(self._build(order)))

    def answered(self, result: BuildResult) -> None:
        """A builder has said what came of it."""
        answer = self._results.get(result.id)
        if answer is not None and not answer.done():
            answer.set_result(result)

    async def process_ended(self, process: ProcessSeen) -> None:
        """A builder process ended; without a word it is an error."""
        code = process.exit_code
        if code is None or code < 0:
            how = "was killed" if code is None else f"was killed by signal {-code}"
        else:
            how = f"ended with exit code {code}"
        self.answered(BuildResult(process.id, error=f"the process that imported the application {how}"))
        await self._perform(ForgetProcess(process.id))

    @property
    def started(self) -> frozenset[str]:
        """The builder processes that must be there, by id."""
        return frozenset(self._started)

    async def sweep(self, found: list[ProcessSeen], started: frozenset[str]) -> None:
        """Ends the builders of a controller before this one, and hears of those that ended unheard. ``started``: before
        the engine was asked."""
        for process in found:
            if process.role != "builder":
                continue
            if not process.alive:
                await self.process_ended(process)
            elif process.id not in self._results:
                await self._perform(StopProcess(process.id, 0.0))
        for id in started - {process.id for process in found}:
            self.answered(BuildResult(id, error="the process that imported the application is gone without a trace"))

    async def plan(self, request: ApplyRequest) -> list[AppPlan]:
        """What deploying this would do; nothing of it is stored. Raises OptionError (routes in use)."""
        leaving = self._applications.refuse_conflicts(request)
        orders = [
            Order(app, 0, 0.0, request.by, request.config.logging_config, request.sys_path, request.cwd)
            for app in request.config.applications
        ]
        made = await asyncio.gather(*(self._result(order) for order in orders))
        plans = [self._app_plan(order, result) for order, result in zip(orders, made, strict=True)]
        return plans + [AppPlan(name, "remove") for name in leaving]

    def _app_plan(self, order: Order, result: BuildResult) -> AppPlan:
        goal = self._state.goals.get(order.config.name)
        before = goal.spec if goal is not None and not goal.deleting else None
        if result.spec is None:
            return AppPlan(order.config.name, "change" if before is not None else "add", error=result.error)
        return app_plan(before, result.spec)

    async def _build(self, order: Order) -> None:
        name = order.config.name
        result = await self._result(order)
        under_way = self._under_way.get(name)
        if under_way is not None and under_way[0] == order.number:
            del self._under_way[name]
        latest = self._state.orders.get(name)
        if latest is None or latest.number != order.number:
            return  # deleted, or ordered anew meanwhile
        try:
            if result.spec is None:
                self._applications.not_built(order, result.error)
            else:
                self._applications.built(order, _checked(result.spec, order))
        except SkateError as error:
            self._applications.not_built(order, str(error))

    async def _result(self, order: Order) -> BuildResult:
        """Runs one builder to its end."""
        async with self._slots:
            id = f"{BUILDER}{order.config.name}@{secrets.token_hex(4)}"  # the one before this controller may live on
            answer: asyncio.Future[BuildResult] = asyncio.get_running_loop().create_future()
            self._results[id] = answer
            request = BuildRequest(
                id, self._state.config.address, order.config, order.logging_config, order.sys_path, order.cwd
            )
            limit = asyncio.ensure_future(self._state.clock.sleep(BUILD_MAX_S))
            either: set[asyncio.Future[Any]] = {answer, limit}
            try:
                await self._engine.perform(self._processes.builder(request))
                self._started.add(id)
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if answer.done():
                    return answer.result()
                return BuildResult(id, error=f"importing {order.config.import_path} took more than {BUILD_MAX_S:g} s")
            except (SkateError, OSError) as error:
                return BuildResult(id, error=f"the application could not be built: {error}")
            finally:
                limit.cancel()
                del self._results[id]
                self._started.discard(id)
                await self._perform(StopProcess(id, 1.0))

    async def _perform(self, action: Action) -> None:
        try:
            await self._engine.perform(action)
        except (EngineError, OSError):
            self._state.touch()  # the engine is away: whoever lives is found at the next complete look


def _checked(spec: AppSpec, order: Order) -> AppSpec:
    assert spec.name == order.config.name, "a builder answered for another application"
    return spec
