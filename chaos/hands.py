"""What does the deeds. Law: every deed is written down with its time before anybody can feel it, and what is wanted of
each application is known here; processes are hit by their pid, and only those of our own instance.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import asdict, replace
from time import monotonic
from typing import Any

from chaos import apps, judge
from chaos.apps import ELASTIC, FLEETING, Want
from chaos.judge import Done, Story
from chaos.place import Place
from chaos.schedule import FULL_S, HALT_S, Deed
from skate import serve
from skate.controlplane import instance as instances
from skate.controlplane.client import ControllerClient
from skate.core.config import AppConfig, ApplyRequest, ServeConfig
from skate.core.errors import DeployError, NotFoundError, SkateError
from skate.engine import runtime_dir
from soak.watch import processes_of

AGAIN_S = 20.0  # for what the death of a controller interrupts: until it must have worked
PAUSE_S = 0.05  # between tries
CONTROL_S = 10.0  # for one control call
BUILD_S = 0.4  # that a build takes whose process shall be killed
CALM_S, KILLS_MAX = 60.0, 4  # so many deaths of one replica's width in that time: else starts are slowed down, rightly
REPLICAS = (1, 5)  # to scale between


class Failed(Exception):
    """A deed could not be done, and that is a fault."""


class Hands:
    """Does one deed after the other, several at once."""

    def __init__(self, place: Place, story: Story, seed_wants: dict[str, Want], session: int) -> None:
        self.place = place
        self.session = session
        self.story = story
        self.wants = dict(seed_wants)
        self.kills: list[tuple[float, str]] = []
        self.locks = {name: asyncio.Lock() for name in seed_wants}
        self.family = asyncio.Lock()  # supervisor and standby are not hit at once
        self.skipped: list[str] = []
        self.strange: set[str] = set()  # errors of control calls that are none of ours
        self.versions = 1
        self.revisions: dict[str, dict[int, Want]] = {name: {} for name in seed_wants}

    async def do(self, deed: Deed) -> None:
        """One deed, to its end."""
        await DEEDS[deed.kind](self, deed)

    def write(self, how: str, role: str, target: str, began: float, pid: int = 0) -> None:
        self.story.done.append(Done(how, role, target, began, monotonic(), pid))

    async def status(self) -> Any:
        """What the controller says; asked again while it is away."""
        return await self.again(serve.status)

    async def again(self, ask: Callable[[], Any]) -> Any:
        """The result of something that a dead controller may interrupt. Raises Failed when it never works."""
        end = monotonic() + AGAIN_S
        while True:
            try:
                return await asyncio.to_thread(ask)
            except (DeployError, NotFoundError):
                raise
            except Exception as error:
                if not isinstance(error, SkateError):  # whatever is wrong, the control calls have errors for it
                    self.strange.add(f"{type(error).__name__}: {error}")
                if monotonic() > end:
                    raise Failed(f"not within {AGAIN_S:g} s: {type(error).__name__}: {error}") from error
            await asyncio.sleep(PAUSE_S)

    # -- processes ------------------------------------------------------------------------------

    async def hit(self, how: str, role: str, target: str, pid: int, deed: Deed) -> None:
        """A signal for a process, or two. Raises Failed where there is none: to 0 it would go to ourselves."""
        if pid <= 1:
            raise Failed(f"there is no {target} to {how}")
        began = monotonic()
        try:
            if how == "kill":
                os.kill(pid, signal.SIGKILL)
            elif how == "term":
                os.kill(pid, signal.SIGTERM)
            else:
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(deed.within(HALT_S))
                os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass  # it has ended meanwhile
        self.write(how, role, target, began, pid)

    async def hit_replica(self, deed: Deed, how: str) -> None:
        ready = judge.said_ready(await self.status())
        spared = self.exhausted() if how == "kill" else set()
        candidates = [id for id in ready if id.partition("#")[0] not in spared]
        if not candidates:
            self.skipped.append(deed.kind)
            return
        id = deed.one_of(candidates)
        if how == "kill":
            self.kills.append((monotonic(), id.partition("#")[0]))
        await self.hit(how, "replica", id, ready[id], deed)

    def exhausted(self) -> set[str]:
        """Deployments that lost so many replicas lately that their starts would be slowed down."""
        recent = [key for at, key in self.kills if at > monotonic() - CALM_S]
        width = {key: max(1, self.wants[key.partition("/")[0]].replicas) for key in recent}
        return {key for key in recent if recent.count(key) >= KILLS_MAX * width[key]}

    async def hit_proxy(self, deed: Deed, how: str) -> None:
        proxies = {id: one.pid for id, one in (await self.status()).proxies.items() if one.status == "HEALTHY"}
        if len(proxies) < 2:
            self.skipped.append(deed.kind)  # the others serve meanwhile
            return
        id = deed.one_of(list(proxies))
        await self.hit(how, "proxy", id, proxies[id], deed)

    async def hit_controller(self, deed: Deed, how: str) -> None:
        await self.hit(how, "controller", "controller", (await self.status()).controller_pid, deed)

    async def hit_admin(self, deed: Deed, how: str) -> None:
        admin = (await self.status()).admin
        if admin is None or admin.status != "HEALTHY":
            self.skipped.append(deed.kind)
            return
        await self.hit(how, "admin", "admin", admin.pid, deed)

    async def hit_supervisor(self, deed: Deed, how: str) -> None:
        """Only while its standby lives: without one its death is the end, rightly."""
        async with self.family:
            pid, _ = await self.guarded()
            await self.hit(how, "supervisor", "supervisor", pid, deed)

    async def hit_standby(self, deed: Deed, how: str) -> None:
        async with self.family:
            _, standby = await self.guarded()
            await self.hit(how, "standby", "standby", standby, deed)

    async def guarded(self) -> tuple[int, int]:
        """The supervisor and its standby, as soon as both live."""
        folder, end = instances.find().runtime_dir, monotonic() + AGAIN_S
        while True:
            primary = runtime_dir.read_pid(folder)
            standby = runtime_dir.read_pid(folder, runtime_dir.STANDBY)
            if primary and standby and primary != standby and judge.lives(primary) and judge.lives(standby):
                return primary, standby
            if monotonic() > end:
                raise Failed(f"not within {AGAIN_S:g} s: a supervisor ({primary}) and a standby ({standby}) that live")
            await asyncio.sleep(PAUSE_S)

    async def kill_supervisor_and_controller(self, deed: Deed) -> None:
        await asyncio.gather(self.hit_supervisor(deed, "kill"), self.hit_controller(deed, "kill"))

    async def kill_both(self, deed: Deed) -> None:
        await asyncio.gather(self.hit_replica(deed, "kill"), self.hit_controller(deed, "kill"))

    # -- applications ---------------------------------------------------------------------------

    def chosen(self, deed: Deed) -> str:
        """An application that is never deleted."""
        return deed.one_of([name for name in self.wants if name != FLEETING])

    def next_version(self) -> int:
        self.versions += 1
        return self.versions

    async def deploy(self, name: str, want: Want) -> None:
        """Until it runs, or DeployError."""
        began = monotonic()
        self.wants[name] = want
        self.write("deploy", name, f"{want.version}", began)
        app = apps.app_of(name, want)
        try:
            await self.again(lambda: serve.run(app, name=name, route_prefix=f"/{name}"))
        finally:
            await self.learn_revisions(name, want)
        self.write("running", name, f"{want.version}", began)

    async def learn_revisions(self, name: str, want: Want) -> None:
        """Whatever revisions are new were made by the deploy of this; several if a controller died meanwhile."""
        for one in await self.control(lambda client: client.history(name)):
            self.revisions[name].setdefault(one.revision, want)

    async def control(self, ask: Callable[[ControllerClient], Coroutine[Any, Any, Any]]) -> Any:
        """A control call that has no function in ``serve``."""

        def blocking() -> Any:
            instance = instances.find()

            async def asked() -> Any:
                return await ask(await instance.client())

            return instance.run(asked(), CONTROL_S)

        return await self.again(blocking)

    async def settled(self, name: str) -> None:
        """Waits until one application is as it is wanted, by what is said."""
        end = monotonic() + AGAIN_S
        while left := judge.unsettled_app(await self.status(), name, self.wants[name], {}):
            if monotonic() > end:
                raise Failed(f"not within {AGAIN_S:g} s: {'; '.join(left)}")
            await asyncio.sleep(PAUSE_S)

    async def change(self, name: str, **fields: Any) -> None:
        async with self.locks[name]:
            await self.deploy(name, replace(self.wants[name], **fields))

    async def deploy_the_same(self, deed: Deed) -> None:
        await self.change(self.chosen(deed))

    async def deploy_another(self, deed: Deed) -> None:
        await self.change(self.chosen(deed), version=self.next_version())

    async def reconfigure(self, deed: Deed) -> None:
        name = self.chosen(deed)
        await self.change(name, factor=self.wants[name].factor + 1)

    async def scale(self, deed: Deed) -> None:
        name, replicas = deed.one_of(["again", "plain", "shop"]), int(deed.within(REPLICAS))
        async with self.locks[name]:
            self.wants[name] = replace(self.wants[name], replicas=replicas)
            for deployment in (await self.status()).applications[name].deployments:
                await self.control(lambda client, one=deployment: client.scale(name, one, replicas))  # type: ignore[misc]
            await self.settled(name)

    async def roll_back(self, deed: Deed) -> None:
        """To any sound revision that is kept."""
        name = self.chosen(deed)
        async with self.locks[name]:
            kept = [one.revision for one in await self.control(lambda client: client.history(name))]
            sound = {
                str(number): self.revisions[name][number] for number in kept if not self.revisions[name][number].broken
            }
            number = deed.one_of(list(sound))
            began, want = monotonic(), sound[number]
            self.wants[name] = want
            self.write("deploy", name, f"{want.version}", began)
            await self.control(lambda client: client.rollback(name, int(number)))
            await self.learn_revisions(name, want)
            await self.settled(name)
            self.write("running", name, f"{want.version}", began)

    async def apply(self, deed: Deed) -> None:
        await self.ordered(deed, kills=False)

    async def apply_and_kill(self, deed: Deed) -> None:
        await self.ordered(deed, kills=True)

    async def ordered(self, deed: Deed, kills: bool) -> None:
        """Another version by way of a file. The process that imports it may be killed; it is ordered again then."""
        name = self.chosen(deed)
        async with self.locks[name]:
            began, want = monotonic(), replace(self.wants[name], version=self.next_version())
            self.wants[name] = want
            self.write("deploy", name, f"{want.version}", began)
            args = {"name": name, "want": asdict(want), "slow_s": BUILD_S if kills else 0.0}
            config = AppConfig(name, "chaos.apps:ordered", f"/{name}", args)
            request = ApplyRequest(ServeConfig((config,)), (os.getcwd(),))
            await self.control(lambda client: client.apply(request))
            if kills:
                await self.kill_builder(name)
            end = monotonic() + AGAIN_S
            while left := judge.unsettled_app(status := await self.status(), name, want, {}):
                message = status.applications[name].message
                if monotonic() > end:
                    raise Failed(f"not within {AGAIN_S:g} s: {'; '.join(left)}")
                if any(words in message for words in ("imported the application was killed", "cannot be stored")):
                    await self.control(lambda client: client.apply(request))
                await asyncio.sleep(PAUSE_S)
            await self.learn_revisions(name, want)
            self.write("running", name, f"{want.version}", began)

    async def kill_builder(self, name: str) -> None:
        end = monotonic() + BUILD_S
        while monotonic() < end:
            for pid, title in processes_of(self.session).items():
                if title == f"skate: building {name}":
                    os.kill(pid, signal.SIGKILL)
                    return
            await asyncio.sleep(PAUSE_S)
        self.skipped.append("kill the builder")

    async def deploy_broken(self, deed: Deed) -> None:
        """It must be refused, with the reason, and the one before must be wanted again."""
        name = deed.one_of([name for name in self.wants if name not in (FLEETING, ELASTIC)])  # the latter may have none
        async with self.locks[name]:
            before = self.wants[name]
            try:
                await self.deploy(name, replace(before, version=self.next_version(), broken=True))
            except DeployError as error:
                if "broken on purpose" not in str(error):
                    raise Failed(f"a deploy failed for another reason than its own: {error}") from error
            else:
                raise Failed(f"a broken version of {name} was deployed as if it were sound")
            await self.deploy(name, before)

    async def delete_and_deploy(self, deed: Deed) -> None:
        """One after the other, or the deploy while the delete is under way."""
        async with self.locks[FLEETING]:
            began, want = monotonic(), replace(self.wants[FLEETING], version=self.next_version())
            place = len(self.story.done)
            self.story.done.append(Done("delete", "app", FLEETING, began, began + 3600))
            if deed.amount < 0.5:
                await self.again(lambda: _deleted(FLEETING))
                await self.deploy(FLEETING, want)
            else:  # once only: tried again it would delete what is deployed meanwhile
                deleting = asyncio.create_task(asyncio.to_thread(_deleted, FLEETING))
                while _runs((await self.status()).applications.get(FLEETING)) and not deleting.done():
                    await asyncio.sleep(PAUSE_S / 10)
                await self.deploy(FLEETING, want)
                await asyncio.wait([deleting])
                deleting.exception()
            self.story.done[place] = Done("delete", "app", FLEETING, began, monotonic())

    # -- the disk -------------------------------------------------------------------------------

    async def fill_disk(self, deed: Deed) -> None:
        """And asks for something meanwhile that cannot be stored, or kills who would have to read it again."""
        began = monotonic()
        meanwhile: list[asyncio.Future[None]] = []
        try:
            await asyncio.to_thread(self.place.fill)
            act = MEANWHILE[int(deed.amount * len(MEANWHILE))]
            meanwhile.append(asyncio.ensure_future(act(self, deed)))
            await asyncio.sleep(deed.within(FULL_S))
        finally:
            self.place.free()
            self.write("fill", "disk", "disk", began)
        await asyncio.gather(*meanwhile)


def _runs(app: Any) -> bool:
    return app is not None and app.status != "DELETING"


def _deleted(name: str) -> None:
    try:
        serve.delete(name)
    except NotFoundError:
        pass  # the try before did it


Act = Callable[[Hands, Deed], Awaitable[None]]


def _hitting(hit: Callable[[Hands, Deed, str], Awaitable[None]], how: str) -> Act:
    return lambda hands, deed: hit(hands, deed, how)


DEEDS: dict[str, Act] = {
    "kill replica": _hitting(Hands.hit_replica, "kill"),
    "term replica": _hitting(Hands.hit_replica, "term"),
    "halt replica": _hitting(Hands.hit_replica, "halt"),
    "kill proxy": _hitting(Hands.hit_proxy, "kill"),
    "term proxy": _hitting(Hands.hit_proxy, "term"),
    "halt proxy": _hitting(Hands.hit_proxy, "halt"),
    "kill controller": _hitting(Hands.hit_controller, "kill"),
    "halt controller": _hitting(Hands.hit_controller, "halt"),
    "kill admin": _hitting(Hands.hit_admin, "kill"),
    "kill supervisor": _hitting(Hands.hit_supervisor, "kill"),
    "halt supervisor": _hitting(Hands.hit_supervisor, "halt"),
    "kill standby": _hitting(Hands.hit_standby, "kill"),
    "kill replica and controller": Hands.kill_both,
    "kill supervisor and controller": Hands.kill_supervisor_and_controller,
    "deploy the same": Hands.deploy_the_same,
    "deploy another version": Hands.deploy_another,
    "deploy a broken version": Hands.deploy_broken,
    "apply a file": Hands.apply,
    "apply a file and kill its builder": Hands.apply_and_kill,
    "reconfigure": Hands.reconfigure,
    "scale": Hands.scale,
    "roll back": Hands.roll_back,
    "delete and deploy again": Hands.delete_and_deploy,
    "fill the disk": Hands.fill_disk,
}

MEANWHILE: tuple[Act, ...] = (  # while the disk is full
    Hands.deploy_another,
    Hands.scale,
    _hitting(Hands.hit_replica, "kill"),
    Hands.kill_both,
    _hitting(Hands.hit_supervisor, "kill"),
    _hitting(Hands.hit_standby, "kill"),
)
