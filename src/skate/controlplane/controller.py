"""The controller: observe, decide, store, publish, perform, wait. Law: it holds no opinion of its own; every decision
comes from ``decide`` and every event only means "look again", at the deployments that it concerns.

Store before publish before perform: after a crash at any point the memory knows everything that may have been
started, and no router is sent to a replica that was told to stop. Nothing ticks while nothing happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from skate.controlplane.applications import Applications
from skate.controlplane.arrivals import Arrivals
from skate.controlplane.broadcast import Tasks
from skate.controlplane.builds import Builds
from skate.controlplane.calls import ControlCalls
from skate.controlplane.decide.load import Load
from skate.controlplane.decide.publish import address_of, deployment
from skate.controlplane.decide.values import PROXIES, Action, Loaded, Plan, Reconfigure
from skate.controlplane.decide.whole import decide, every_key
from skate.controlplane.policies import Place
from skate.controlplane.processes import Processes
from skate.controlplane.records import FAILURES, Records
from skate.controlplane.sightings import PROXY_PREFIX
from skate.controlplane.state import State
from skate.controlplane.store import MemoryStore, Row, SqliteStore, Store
from skate.controlplane.tellings import Tellings
from skate.core.clock import Clock, within
from skate.core.errors import SkateError
from skate.core.specs import ControllerConfig
from skate.dataplane.transport.peers import listen, sweep
from skate.engine.base import Action as EngineAction
from skate.engine.base import Engine, EngineError, ForgetProcess, Life, ProcessSeen, StartProcess
from skate.engine.inline import InlineEngine
from skate.engine.process import ProcessEngine

logger = logging.getLogger("skate.controller")

OBSERVE_AGAIN_S = 0.2  # after the engine could not be asked
OBSERVE_TRIES_MAX = 25  # in a row; then the supervisor is gone and so are we
OPEN_AGAIN_S = 0.5  # after the store could not be opened
WRITE_AGAIN_S = 1.0  # after the store could not be written
ACTIONS_MAX = 256  # asked of the engine at a time; it takes no more than it can have answered within its limit
GOODBYE_TURNS = 5  # of the loop, for the last answers to leave


async def run(config: bytes, life: Life) -> None:
    """The entry: serves until the instance was told to end and nothing of it is left."""
    read = msgspec.msgpack.decode(config, type=ControllerConfig)
    engine: Engine = ProcessEngine(life.engine_address, life.clock) if life.engine_address else InlineEngine(life.clock)
    try:
        controller = await _opened(read, engine, life)
        if controller is not None:
            with contextlib.closing(controller):
                await controller.serve(life.stopping)
    finally:
        await engine.close()


async def _opened(config: ControllerConfig, engine: Engine, life: Life) -> Controller | None:
    """A controller, as soon as what is stored can be read; None when it was told to end before that."""
    failing = False
    while not life.stopping.is_set():
        try:
            controller = _made(config, engine, life)
        except FAILURES as error:
            if not failing:
                logger.error(
                    "the state in %s cannot be read: %s. What serves goes on, and it is tried again; nothing is "
                    "healed, scaled or deployed until then. Is the disk full?",
                    config.state_dir or config.runtime_dir,
                    error,
                )
            failing = True
            await within(life.clock, life.stopping.wait(), OPEN_AGAIN_S)
        else:
            if failing:
                logger.info("the state could be read again")
            return controller
    return None


def _made(config: ControllerConfig, engine: Engine, life: Life) -> Controller:
    """A controller with what is stored. Raises OSError or sqlite3.Error if that cannot be read now."""
    store: Store = MemoryStore()
    if life.engine_address:
        store = SqliteStore(config.state_dir or config.runtime_dir, durable=bool(config.state_dir))
    try:
        return Controller(config, engine, store, life.clock)
    except BaseException:
        store.close()
        raise


class Controller:
    """One instance's controller. ``serve`` is its life; everything else happens inside it."""

    def __init__(self, config: ControllerConfig, engine: Engine, store: Store, clock: Clock) -> None:
        self.config = config
        self._engine = engine
        self._clock = clock
        saved = store.load()
        for damaged in saved.damaged:
            logger.error("the stored %s is damaged and was left out; deploy it again if it is missing", damaged)
        self._state = State(config, saved, Records(store), clock)
        self._failure: BaseException | None = None
        self._tasks = Tasks(self._task_failed)
        self._processes = Processes(config)
        self._tellings = Tellings(self._state, self._processes.place, self._tasks)
        applications = Applications(self._state)
        self._builds = Builds(self._state, applications, self._processes, engine)
        self.calls = ControlCalls(self._state, applications, self._builds, self._tasks)
        self._wakes: dict[str, float] = {}  # when to look at a deployment although nothing happened
        self._unknown = True  # what processes there are must be asked as a whole
        self._write_at: float | None = None  # the store failed
        self._arrivals = Arrivals(self._state)
        self._arrive_at: float | None = None

    # -- the loop -------------------------------------------------------------------------------

    async def serve(self, stopping: asyncio.Event) -> None:
        """Listens and decides until the instance has ended."""
        listener = await listen(self.config.address, self.calls.accept, "controller")
        listener.listening.on_session_lost = self.calls.session_lost
        self._engine.on_change(self._engine_changed)
        self._tasks.start(self._end_when(stopping))
        try:
            while True:
                self._state.changed.clear()
                if await self._step():
                    break
                await self._until(self._next_look())
        finally:
            self._state.policies.close()
            await self._tasks.close()  # ends the answers of those who watch
            await listener.close()
            self._processes.close()
            for _ in range(GOODBYE_TURNS):
                await asyncio.sleep(0)

    def close(self) -> None:
        """Lets go of what is stored."""
        self._state.records.store.close()

    async def _step(self) -> bool:
        """One look, one decision and what follows from it; whether all is over."""
        if self._failure is not None:
            raise self._failure
        state = self._state
        if self._unknown:
            self._unknown = False
            await self._look()
        now = self._clock.now()
        dirty = state.take_dirty()
        if dirty is not None:
            dirty.update([key for key, at in self._wakes.items() if at <= now])
        observed = state.observed = state.sightings.observed
        keys = state.desired.wanted if dirty is None else dirty
        plan = decide(state.desired, observed, state.memory, now, dirty, self._loaded(keys, now))
        self._note_wakes(plan)
        if plan.waiting:
            state.dirty = None
            return False
        state.sightings.all_have_reported()
        actions = [(action, self._for_engine(action)) for action in plan.actions]
        self._remember(plan)
        self._ask_policies(plan)
        names = state.goals if dirty is None else {key.partition("/")[0] for key in plan.changed}
        self._arrive_at = self._arrivals.look(names, now)
        self._publish(every_key(state.desired, observed, state.memory) if dirty is None else dirty)
        if dirty is None or dirty:
            state.statuses.bump()
        state.decisions.bump()
        self._builds.begin(self._tasks)
        await self._perform_all(actions)
        return plan.ended

    def _loaded(self, keys: Iterable[str], now: float) -> Loaded:
        """What the autoscaler goes by, for these deployments."""
        state, loads = self._state, dict[str, Load]()
        for key in keys:
            wanted = state.desired.wanted.get(key)
            config = wanted.spec.options.autoscaling_config if wanted is not None else None
            if config is not None:
                loads[key] = state.loads.watch(key, config.look_back_period_s, now)
            elif state.scalings.pop(key, None) is not None:
                state.loads.forget(key)
                state.policies.forget(key)
        return Loaded(loads, state.policies.answers, self._clock.wall())

    def _ask_policies(self, plan: Plan) -> None:
        state = self._state
        state.scalings.update(plan.scalings)
        for key, scaling in plan.scalings.items():
            if scaling.ask is not None:
                goal = state.desired.wanted[key].goal
                place = Place(goal.spec.sys_path, goal.spec.cwd, goal.revision)
                state.policies.ask(key, scaling.ask, scaling.memory.policy_memory, place)

    async def _look(self) -> None:
        """What processes there are, all of them."""
        builders = self._builds.started
        found = await self._all_processes()
        self._state.sightings.all_processes(found, self._clock.now())
        await self._builds.sweep(found, builders)

    async def _all_processes(self) -> list[ProcessSeen]:
        for attempt in range(OBSERVE_TRIES_MAX):
            try:
                return await self._engine.observe()
            except EngineError as error:
                logger.warning("the engine cannot be asked (attempt %s): %s", attempt + 1, error)
                await self._clock.sleep(OBSERVE_AGAIN_S)
        return await self._engine.observe()

    def _engine_changed(self, process: ProcessSeen | None) -> None:
        """A process ended, or (None) some may have."""
        if process is None:
            self._unknown = True
        elif process.role == "builder":
            self._tasks.start(self._builds.process_ended(process))
        else:
            self._state.sightings.process(process, self._clock.now())
        self._state.touch()

    def _note_wakes(self, plan: Plan) -> None:
        for key, at in plan.wakes.items():
            if at is None:
                self._wakes.pop(key, None)
            else:
                self._wakes[key] = at

    def _next_look(self) -> float | None:
        others = [at for at in (self._write_at, self._arrive_at) if at is not None]
        return min([*self._wakes.values(), *others], default=None)

    async def _until(self, wake_at: float | None) -> None:
        """Waits until something happens, or until ``wake_at``."""
        changed = self._state.changed
        if wake_at is None or changed.is_set():
            await changed.wait()
            return
        waits = [
            asyncio.ensure_future(changed.wait()),
            asyncio.ensure_future(self._clock.sleep(max(0.0, wake_at - self._clock.now()))),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _end_when(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._state.end()

    def _task_failed(self, error: BaseException) -> None:
        self._failure = error
        self._state.touch()

    # -- store, publish, perform ----------------------------------------------------------------

    def _remember(self, plan: Plan) -> None:
        state, before = self._state, self._state.memory
        memory = replace(plan.memory, ended_calls=state.accounts.ended)
        state.memory = memory
        records = state.records
        records.put(*(Row("deployment", key, memory.deployments.get(key)) for key in plan.changed))
        rest = (memory.next_ordinal, memory.proxies, memory.ended_calls, memory.ending)
        if rest != (before.next_ordinal, before.proxies, before.ended_calls, before.ending):
            records.put(state.rest_row(state.capacity))
        for name in plan.gone:
            state.drop_goal(name)
        records.happened(plan.events, self._clock.wall())
        self._write_at = None if records.write() else self._clock.now() + WRITE_AGAIN_S

    def _publish(self, keys: Iterable[str]) -> None:
        state = self._state
        wanted = state.desired.wanted
        news = {
            key: deployment(key, wanted[key], state.observed, state.memory, self._processes.place)
            if key in wanted
            else None
            for key in keys
            if key != PROXIES
        }
        state.publications.put(news, state.desired.routes)

    def _for_engine(self, action: Action) -> EngineAction | None:
        """The engine's form of an action, with the goal as it is at the moment of the decision."""
        state = self._state
        if isinstance(action, Reconfigure):
            return None
        return self._processes.told(action, state.desired, state.observed, state.memory)

    async def _perform_all(self, actions: list[tuple[Action, EngineAction | None]]) -> None:
        for action, _ in actions:
            if isinstance(action, Reconfigure):
                self._tellings.begin(action)
        turn = asyncio.Semaphore(ACTIONS_MAX)
        await asyncio.gather(*(self._perform(told, turn) for _, told in actions if told is not None))

    async def _perform(self, action: EngineAction, turn: asyncio.Semaphore) -> None:
        sightings = self._state.sightings
        try:
            async with turn:
                process = await self._engine.perform(action)
        except (SkateError, OSError) as error:
            logger.warning("the engine could not do %s: %s", type(action).__name__, error)
            self._unknown = True  # or it did, and its answer came too late
            self._state.touch()
            if isinstance(action, StartProcess):
                sightings.not_started(action.spec.id, f"the engine could not start it: {error}")
            process = None
        if process is not None:
            sightings.process(process, self._clock.now())
        if isinstance(action, ForgetProcess):
            sightings.forgotten(action.id)
            proxy = action.id.startswith(PROXY_PREFIX)
            self._state.accounts.fold(action.id if proxy else f"replica {action.id}")
            if not proxy:
                sweep(address_of(action.id, self._processes.place))  # one that was killed could not
        if sightings.changed:
            self._state.changed.set()
