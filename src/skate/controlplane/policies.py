"""Autoscaling policies of users' own: loaded by import path, asked on a thread, and never trusted.

Law: nothing that a policy does disturbs the controller. One that cannot be loaded, raises, answers nonsense or does not
answer in time becomes an ``Answer`` with the error, and the number of replicas stays. Each deployment has at most one
question under way; a thread that hangs is left to itself, and its deployment is not asked again before it returns.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from skate.authoring.code import resolve_within
from skate.authoring.policy import made
from skate.authoring.sources import forget, imported
from skate.controlplane.decide.policy import Answer, AutoscalingContext, checked
from skate.controlplane.decide.restart import clipped
from skate.core.clock import Clock
from skate.core.scaling import AutoscalingPolicy

ANSWER_S = 1.0  # for a policy to answer
LOAD_S = 30.0  # the same where its module has to be imported first
MEMORY_MAX = 64 * 1024  # bytes of a policy's memory, which is stored with every change
THREADS_MAX = 64  # questions under way, those that hang included

_importing = threading.Lock()
_Stamp = tuple[tuple[str, ...], tuple[int, int]]  # where a module was looked for, and what its file was
_ours: set[str] = set()  # modules that were imported for policies and for nobody else; inline there are others
_stamps: dict[str, _Stamp] = {}  # of the modules that policies were imported from


class Place(msgspec.Struct, frozen=True):
    """Where the policy's module is looked for. ``revision``: of the application; a new one loads the policy anew."""

    sys_path: tuple[str, ...] = ()
    cwd: str | None = None
    revision: int = 0


class Policies:
    """The policies of all deployments, and what each said last. Belongs to the loop that it is made on."""

    def __init__(
        self, clock: Clock, on_answer: Callable[[str], None], answer_s: float = ANSWER_S, load_s: float = LOAD_S
    ) -> None:
        self.answers: dict[str, Answer] = {}  # by deployment; the last word of each
        self._clock = clock
        self._on_answer = on_answer
        self._answer_s, self._load_s = answer_s, load_s
        self._loop = asyncio.get_running_loop()
        self._asked: dict[str, _Question] = {}
        self._loaded: dict[str, tuple[AutoscalingPolicy, Place, Callable[[Any, Any], Any]]] = {}
        self._threads = 0

    def ask(self, key: str, context: AutoscalingContext, memory: Any, place: Place) -> None:
        """Asks the policy of a deployment, unless that is under way; ``on_answer`` is told when ``answers`` has it."""
        asked, policy, now = self._asked.get(key), context.config.policy, self._clock.now()
        if asked is not None and not asked.late:
            return
        if asked is not None:
            self._take(key, Answer(policy, now, error=f"{policy.policy_function} still has not returned"))
            return
        if self._threads >= THREADS_MAX:
            self._take(key, Answer(policy, now, error=f"{THREADS_MAX} policies are under way; this one waits"))
            return
        loaded = self._loaded.get(key)
        ready = loaded[2] if loaded is not None and loaded[:2] == (policy, place) else None
        question = _Question(key, context, memory, place, now, ready)
        question.timer = self._loop.call_later(self._answer_s if ready else self._load_s, self._too_late, question)
        self._asked[key] = question
        self._threads += 1
        threading.Thread(target=self._work, args=(question,), name=f"policy of {key}", daemon=True).start()

    def forget(self, key: str) -> None:
        """The deployment is gone, or has another policy."""
        self.answers.pop(key, None)
        self._loaded.pop(key, None)
        asked = self._asked.pop(key, None)
        if asked is not None:
            asked.close()

    def close(self) -> None:
        """Nobody is asked any more; threads that are under way end by themselves, or with the process."""
        for key in [*self._asked, *self.answers]:
            self.forget(key)

    def _work(self, question: _Question) -> None:
        """Runs on a thread of its own."""
        policy = question.context.config.policy
        try:
            if question.ready is None:
                question.ready = _load(policy, question.place)
            number, memory = checked(question.ready(question.context, question.memory))
            answer = Answer(policy, question.asked_at, number, _plain(memory))
        except BaseException as error:  # whatever it is, it is the user's
            answer = Answer(policy, question.asked_at, error=_said(policy, error))
        try:
            self._loop.call_soon_threadsafe(self._returned, question, answer)
        except RuntimeError:
            pass  # the loop has ended, and nobody wants to know

    def _returned(self, question: _Question, answer: Answer) -> None:
        self._threads -= 1
        if self._asked.get(question.key) is not question:
            return
        del self._asked[question.key]
        question.close()
        if question.ready is not None:
            self._loaded[question.key] = (answer.policy, question.place, question.ready)
        if not question.late:
            self._take(question.key, answer)

    def _too_late(self, question: _Question) -> None:
        question.late = True
        policy, limit_s = question.context.config.policy, self._answer_s if question.ready else self._load_s
        error = f"{policy.policy_function} did not answer within {limit_s:g} s"
        self._take(question.key, Answer(policy, self._clock.now(), error=error))

    def _take(self, key: str, answer: Answer) -> None:
        self.answers[key] = answer
        self._on_answer(key)


class _Question:
    """One question under way."""

    def __init__(
        self,
        key: str,
        context: AutoscalingContext,
        memory: Any,
        place: Place,
        asked_at: float,
        ready: Callable[[Any, Any], Any] | None,
    ) -> None:
        self.key, self.context, self.memory, self.place, self.asked_at = key, context, memory, place, asked_at
        self.ready = ready  # the policy, when it was loaded before
        self.late = False
        self.timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


def _load(policy: AutoscalingPolicy, place: Place) -> Callable[[Any, Any], Any]:
    """The policy, from its file as it is now."""
    path = policy.policy_function
    name = path.partition(":")[0] if ":" in path else path.rpartition(".")[0]
    folders = (*place.sys_path, *([place.cwd] if place.cwd is not None else []))
    with _importing:
        others = {folder for known, _ in _stamps.values() for folder in known if folder not in folders}
        elsewhere = tuple(folder.rstrip(os.sep) + os.sep for folder in others)
        before = imported()
        forget(module for module in _ours if before.get(module, "").startswith(elsewhere))  # of the same names, maybe
        if name in _ours and name in _stamps and _stamps[name] != (folders, _stamp(name)):
            sys.modules.pop(name, None)
            importlib.invalidate_caches()
        try:
            found = resolve_within(path, folders)
        finally:
            _ours.update(imported().keys() - before.keys())
        _stamps[name] = (folders, _stamp(name))
    return made(found, policy.policy_kwargs)


def _stamp(name: str) -> tuple[int, int]:
    """What changes when somebody writes the module's file."""
    try:
        seen = os.stat(getattr(sys.modules.get(name), "__file__", None) or "")
    except OSError:
        return (0, 0)
    return (seen.st_mtime_ns, seen.st_size)


def _plain(memory: Any) -> Any:
    """The memory as it will come back from the store. Raises ``TypeError`` for what cannot be stored."""
    try:
        data = msgspec.msgpack.encode(memory)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise TypeError(f"its memory is not plain data as in JSON: {error}") from None
    if len(data) > MEMORY_MAX:
        raise TypeError(f"its memory takes {len(data)} bytes; {MEMORY_MAX} is the limit")
    return msgspec.msgpack.decode(data)


def _said(policy: AutoscalingPolicy, error: BaseException) -> str:
    return clipped(f"{policy.policy_function}: {''.join(traceback.format_exception(error))}")
