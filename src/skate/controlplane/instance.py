"""The instance that this process works with: found running, or started by it and ended with it.

Law: one instance per runtime directory; whoever started it owns it, whoever found it only uses it. Its end is the
end of all its processes. Everything here blocks; it is for scripts, notebooks and the command line.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Literal, TypeVar

import msgspec

from skate.controlplane.client import ControllerClient
from skate.controlplane.records import FAILURES
from skate.controlplane.restore import set_aside, take_up
from skate.core.clock import SystemClock
from skate.core.environment import environment
from skate.core.errors import (
    AddressInUseError,
    DeployError,
    NotRunningError,
    OptionError,
    RequestCancelledError,
    StoreError,
)
from skate.core.specs import AdminOptions, AppSpec, ControllerConfig, HttpOptions, ProcessSpec, ServeStatus
from skate.dataplane import caller as callers
from skate.dataplane.proxy.address import bind
from skate.dataplane.transport.peers import Peer, connect
from skate.engine import state_dir
from skate.engine.base import AlreadyRunningError, Life, resolve
from skate.engine.output import log_path
from skate.engine.process import SUPERVISOR, Launched, launch
from skate.engine.runtime_dir import running_pid

logger = logging.getLogger("skate")

T = TypeVar("T")
EngineName = Literal["process", "inline"]

START_TIMEOUT_S = 30.0
WATCHES_MAX = 100
WATCH_AGAIN_S = 0.05
READ_TIMEOUT_S = 30.0  # for a question and its answer, whatever happens to the controller meanwhile
READ_AGAIN_S = 0.05
STOP_TIMEOUT_S = 60.0
ASK_TIMEOUT_S = 5.0  # for the controller to hear that it shall end
CONTROLLER = "controller"  # the id of its process
CONTROLLER_ENTRY = "skate.controlplane.controller:run"
MODULES = (  # imported once by the supervisor, before everything else is forked from it
    "skate.controlplane.controller",
    "skate.dataplane.replica.worker",
    "skate.dataplane.proxy.server",
    "uvloop",
)
ADMIN_MODULE = "skate.admin.server"  # likewise, where there is a REST API
POLL_S = 0.005
LOG_SHOWN_MAX = 4000  # characters of a log in a message


class Instance:
    """A connection to a running controller, and the processes behind it if this process started them."""

    def __init__(self, address: str, launched: Launched | None, runtime_dir: str) -> None:
        self.address = address
        self.launched = launched
        self.runtime_dir = runtime_dir
        self._clock = SystemClock()
        self._client: ControllerClient | None = None
        self.announced = False  # its user was told that it is somebody else's
        self.told: tuple[str, ...] = ()  # what became of a former state, for its user
        self._inline: tuple[Life, Future[None]] | None = None

    @property
    def owned(self) -> bool:
        """Whether this process started it."""
        return self.launched is not None or self._inline is not None

    # -- connecting -----------------------------------------------------------------------------

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Runs a coroutine on the process's I/O thread and waits for it."""
        return callers.io_thread().run(coroutine, timeout_s)

    async def client(self) -> ControllerClient:
        """Calls to the controller, over a connection that is made again when it was lost."""
        if self._client is None or self._client.peer.closed:
            peer = await self._peer()
            if self._client is None or self._client.peer.closed:
                self._client = ControllerClient(peer)
            else:  # another thread's call was faster
                peer.close()
        return self._client

    async def _peer(self) -> Peer:
        until = self._clock.now() + START_TIMEOUT_S
        while True:
            try:
                return await connect(self.address, f"driver {os.getpid()}")
            except NotRunningError:
                if self.launched is not None and not self.launched.alive():
                    raise NotRunningError("the instance ended while it was starting; its messages are above") from None
                starting = self.owned or running_pid(self.runtime_dir) is not None
                if not starting or self._clock.now() > until:
                    raise
            await self._clock.sleep(POLL_S)

    async def read(self, question: Callable[[ControllerClient], Awaitable[T]], timeout_s: float = READ_TIMEOUT_S) -> T:
        """The answer to what changes nothing. It is asked again when the controller dies meanwhile, for ``timeout_s``.

        Raises NotRunningError when the instance has ended, or its controller did not come back.
        """
        until = self._clock.now() + timeout_s
        while True:
            try:
                return await question(await self.client())
            except (NotRunningError, RequestCancelledError) as error:
                if _gone(self):
                    raise NotRunningError("the instance ended before it answered") from error
                if self._clock.now() > until:
                    raise NotRunningError(f"the controller did not answer within {timeout_s:g} s: {error}") from error
            await self._clock.sleep(READ_AGAIN_S)

    async def wish(self, request: Callable[[ControllerClient], Awaitable[T]]) -> T:
        """The answer to what changes something, asked once. NotRunningError when the controller died before it."""
        client = await self.client()
        try:
            return await request(client)
        except RequestCancelledError as error:
            raise NotRunningError(
                "the controller died before it answered, so it is unknown whether it has stored what was asked: see "
                "`skate status` or `skate history`, and ask again if it has not"
            ) from error

    def wait_listening(self) -> None:
        """Waits until the proxies listen. Raises AddressInUseError when one cannot, CallTimeoutError after 30 s."""
        self.run(self._wait_listening(), START_TIMEOUT_S + 5)

    async def _wait_listening(self) -> None:
        client = await self.client()
        async for status in client.watch_status():
            for proxy in status.proxies.values():
                if proxy.status == "UNHEALTHY":
                    raise AddressInUseError(f"HTTP cannot be served at {proxy.address}: {proxy.message}")
            if all(proxy.status == "HEALTHY" for proxy in status.proxies.values()):
                return

    # -- applications ---------------------------------------------------------------------------

    def deploy(self, spec: AppSpec, on_status: Callable[[ServeStatus], None] | None = None, by: str = "") -> int:
        """Deploys an application, waits until it runs and returns its revision. ``by``: who asks, in words.

        Raises DeployError when it does not become ready.
        """
        revision = self.run(self._deploy(spec, on_status, by))
        caller = callers.start(self.address)
        self.run(_settled(caller, f"{spec.name}/{spec.ingress}"), START_TIMEOUT_S)
        return revision

    async def _deploy(self, spec: AppSpec, on_status: Callable[[ServeStatus], None] | None, by: str) -> int:
        revision = await self.wish(lambda client: client.deploy(spec, by))
        for _ in range(WATCHES_MAX):
            try:
                await self._watch_start(spec, on_status)
                return revision
            except NotRunningError:
                if _gone(self):
                    raise
            await self._clock.sleep(WATCH_AGAIN_S)  # the controller alone is gone; it comes back and goes on
        raise NotRunningError("the controller keeps ending while the application is starting; see its messages")

    async def _watch_start(self, spec: AppSpec, on_status: Callable[[ServeStatus], None] | None) -> None:
        async for status in (await self.client()).watch_status():
            if on_status is not None:
                on_status(status)
            app = status.applications.get(spec.name)
            if app is None:
                raise DeployError(f"application {spec.name!r} was deleted while it was starting")
            if app.status == "RUNNING":
                return
            if app.status == "DEPLOY_FAILED":
                raise DeployError(f"application {spec.name!r} did not start. {app.message}")
        raise NotRunningError("the instance ended while the application was starting")

    def delete(self, name: str, revision: int | None = None) -> None:
        """Deletes an application and waits until its replicas are gone. ``revision``: only if it is still that one."""
        self.run(self._delete(name, revision), STOP_TIMEOUT_S)

    async def _delete(self, name: str, revision: int | None) -> None:
        await self.wish(lambda client: client.delete(name, revision=revision))

    def status(self) -> ServeStatus:
        """What the controller knows now."""
        return self.run(self._status())

    async def _status(self) -> ServeStatus:
        await _tell_counts()
        return await self.read(lambda client: client.status())

    def metrics(self) -> str:
        """The same as Prometheus text."""
        return self.run(self._metrics())

    async def _metrics(self) -> str:
        await _tell_counts()
        return await self.read(lambda client: client.metrics())

    # -- ending ---------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Ends the whole instance, whoever started it, and waits until it is gone."""
        pid = running_pid(self.runtime_dir) if self._inline is None else None
        asked = False
        try:
            self.run(self._shutdown(), ASK_TIMEOUT_S)
            asked = True
        except Exception:
            if self.launched is None and self._inline is None:
                raise
        if self._inline is not None:
            life, future = self._inline
            callers.io_thread().loop.call_soon_threadsafe(life.stopping.set)
            future.result(STOP_TIMEOUT_S)
            self._inline = None
        elif self.launched is None and pid is not None:
            _wait_gone(self.runtime_dir, STOP_TIMEOUT_S)
        elif self.launched is not None and asked:
            self._wait_ended(self.launched)
        self.leave()

    def _wait_ended(self, launched: Launched) -> None:
        """Gives requests in flight the grace of their deployments; the controller ends the instance after that."""
        until = self._clock.now() + STOP_TIMEOUT_S
        while launched.alive() and self._clock.now() < until:
            threading.Event().wait(POLL_S)

    async def _shutdown(self) -> None:
        await (await self.client()).shutdown()

    def leave(self) -> None:
        """Lets go of the instance; one that this process started ends with it."""
        client, self._client = self._client, None
        if client is not None:
            callers.io_thread().loop.call_soon_threadsafe(client.peer.close)
        callers.stop()
        launched, self.launched = self.launched, None
        if launched is not None:
            launched.close(STOP_TIMEOUT_S)

    # -- starting -------------------------------------------------------------------------------

    def begin_inline(self, http: HttpOptions | None, admin: AdminOptions | None = None) -> None:
        """Runs the controller, and through it everything else, on this process's I/O thread."""
        config = ControllerConfig(self.runtime_dir, self.address, http, admin=admin)
        life_box: list[Life] = []

        async def main() -> None:
            life = Life(SystemClock(), inline=True)
            life_box.append(life)
            await resolve(CONTROLLER_ENTRY)(msgspec.msgpack.encode(config), life)

        future = callers.io_thread().submit(main())
        while not life_box and not future.done():
            threading.Event().wait(0.001)
        if future.done():
            future.result()
        self._inline = (life_box[0], future)


async def _tell_counts() -> None:
    """Lets the controller know the counts of this process, so that they are in what it says next."""
    caller = callers.here()
    if caller is not None and caller.loop is asyncio.get_running_loop():
        await caller.uplink.tell_ledger()


async def _settled(caller: callers.Caller, key: str) -> None:
    """Waits until this process's router has heard of the deployment."""
    clock = caller.router.clock
    while key not in caller.router.lanes:
        await clock.sleep(POLL_S)


def _wait_gone(runtime_dir: str, timeout_s: float) -> None:
    clock = SystemClock()
    until = clock.now() + timeout_s
    while running_pid(runtime_dir) is not None:
        if clock.now() > until:
            raise NotRunningError(f"the instance in {runtime_dir} was told to end and still runs after {timeout_s} s")
        threading.Event().wait(POLL_S)


def _start(
    http: HttpOptions | None,
    proxies: int,
    preload: tuple[str, ...],
    detached: bool,
    output: int | None,
    runtime_dir: str,
    *,
    admin: AdminOptions | None,
    restore: bool,
) -> Instance:
    if http is not None:
        check_port(http)
    address = f"unix:{os.path.join(runtime_dir, 'controller.sock')}"
    kept = environment().state_dir if detached else ""
    config = ControllerConfig(runtime_dir, address, http, proxies, admin, kept)
    told: list[str] = []

    def hold() -> int:
        fd = state_dir.claim(kept, runtime_dir)
        try:
            told.extend(_former(kept, restore))
        except BaseException:
            os.close(fd)
            raise
        return fd

    controller = ProcessSpec(
        CONTROLLER, "controller", "skate: controller", CONTROLLER_ENTRY, msgspec.msgpack.encode(config)
    )
    launched = launch(
        runtime_dir,
        controller,
        modules=MODULES if admin is None else (*MODULES, ADMIN_MODULE),
        preload=preload,
        sys_path=tuple(map(os.path.abspath, sys.path)) if preload else (),
        detached=detached,
        output=output,
        hold=hold if detached else None,
    )
    instance = Instance(address, launched, runtime_dir)
    instance.told = tuple(told)
    return instance


def _former(directory: str, restore: bool) -> list[str]:
    """Takes up the state that lies there, or sets it aside; what to tell the user."""
    try:
        return take_up(directory, SystemClock().wall()) if restore else set_aside(directory)
    except FAILURES as error:
        raise StoreError(
            f"the state in {directory} cannot be read or written now: {error}. Make room on that disk, or set "
            f"{state_dir.VARIABLE} to another directory"
        ) from error


def check_port(http: HttpOptions) -> None:
    """Raises AddressInUseError at once when nobody could listen there. The proxy's own attempt stays the last word."""
    bind(http.host, http.port).close()


# -- the one of this process ----------------------------------------------------------------------

_lock = threading.RLock()
_mine: Instance | None = None
_inline_count = 0


def find() -> Instance:
    """The instance this process works with, or the one that runs in its runtime directory.

    Raises NotRunningError when there is none.
    """
    global _mine
    with _lock:
        if _mine is not None and not _gone(_mine):
            return _mine
        runtime_dir = environment().runtime_dir
        if running_pid(runtime_dir) is None:
            raise NotRunningError(
                f"no Skate instance is running in {runtime_dir}: start one with `skate start`, `skate run module:app` "
                "or serve.run(app), or name another one with SKATE_INSTANCE or SKATE_RUNTIME_DIR"
            )
        _mine = Instance(f"unix:{os.path.join(runtime_dir, 'controller.sock')}", None, runtime_dir)
        return _mine


def _gone(instance: Instance) -> bool:
    if instance.launched is not None:
        return not instance.launched.alive()
    return instance._inline is None and running_pid(instance.runtime_dir) is None


def start(
    http: HttpOptions | None,
    *,
    engine: EngineName = "process",
    proxies: int = 1,
    preload: tuple[str, ...] = (),
    detached: bool = False,
    output: int | None = None,
    admin: AdminOptions | None = None,
    restore: bool = False,
) -> tuple[Instance, bool]:
    """The running instance, or a new one. The flag says whether it is new.

    ``admin``: where its REST API is served; None: nowhere.
    ``output``: a descriptor for what the processes of a new one print; None: where this process prints.
    ``restore``: a new detached one begins with the applications of the last detached one, not with none.
    Raises AddressInUseError, OptionError for an unknown engine, ContextError inside a replica's process.
    """
    global _mine, _inline_count
    with _lock:
        try:
            return find(), False
        except NotRunningError:
            pass
        if engine == "inline":
            _inline_count += 1
            name = f"{os.getpid()}-{_inline_count}"
            _mine = Instance(f"memory:controller-{name}", None, name)
            _mine.begin_inline(http, admin)
        elif engine == "process":
            _mine = _launch(http, proxies, preload, detached, output, admin=admin, restore=restore)
        else:
            raise OptionError(f"engine must be 'process' or 'inline', not {engine!r}")
        instance = _mine
    try:
        instance.wait_listening()
    except NotRunningError as error:
        said = _log_of(instance) if detached else "; its messages are above"
        forget()
        raise NotRunningError(f"the instance ended while it was starting{said}") from error
    except BaseException:
        forget()
        raise
    if detached and instance.launched is not None:
        instance.launched.let_go()  # it lives on when this process ends
        instance.launched = None
    return instance, True


def _log_of(instance: Instance) -> str:
    """What a detached instance has printed, for a message; it goes with the instance."""
    if instance.launched is None:
        return ""
    said = []
    for id in (CONTROLLER, SUPERVISOR):
        try:
            with open(log_path(instance.launched.logs, id), encoding="utf-8", errors="replace") as log:
                said.append(log.read().strip())
        except OSError:
            continue
    text = "\n".join(filter(None, said))
    return f":\n{text[-LOG_SHOWN_MAX:]}" if text else ""


def _launch(
    http: HttpOptions | None,
    proxies: int,
    preload: tuple[str, ...],
    detached: bool,
    output: int | None,
    *,
    admin: AdminOptions | None,
    restore: bool,
) -> Instance:
    runtime_dir = environment().runtime_dir
    try:
        return _start(http, proxies, preload, detached, output, runtime_dir, admin=admin, restore=restore)
    except AlreadyRunningError:  # another process was faster, or the last one is still ending
        until = SystemClock().now() + START_TIMEOUT_S
        while SystemClock().now() < until:
            if running_pid(runtime_dir) is not None:
                return Instance(f"unix:{os.path.join(runtime_dir, 'controller.sock')}", None, runtime_dir)
            threading.Event().wait(POLL_S)
            try:
                return _start(http, proxies, preload, detached, output, runtime_dir, admin=admin, restore=restore)
            except AlreadyRunningError:
                continue
        raise


def forget() -> None:
    """Leaves the instance; what this process started ends."""
    global _mine
    with _lock:
        instance, _mine = _mine, None
    if instance is None:
        return
    if instance.owned:
        with contextlib.suppress(Exception):  # whatever the orderly way meets, the end comes
            instance.shutdown()
    instance.leave()


def _at_exit() -> None:
    """The process ends: nobody is left to hear the answers of its own calls, others' requests get their grace."""
    caller = callers.here()
    try:
        if caller is not None and _mine is not None:
            with contextlib.suppress(Exception):
                _mine.run(caller.router.close(), ASK_TIMEOUT_S)
        forget()
    except KeyboardInterrupt:  # a second Ctrl-C: the lifeline ends what is left, at once
        logger.warning("the instance is cut off")


def _forget_in_child() -> None:
    global _lock, _mine
    _lock = threading.RLock()  # another thread of the parent may have held it
    _mine = None


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_forget_in_child)
