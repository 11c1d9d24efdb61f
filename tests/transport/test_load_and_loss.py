"""The contract under load and loss: credit, promises, many calls at once, connections lost in every state of a call."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from skate.dataplane.transport.exchange import Exchange, Session
from skate.dataplane.wire.connection import WINDOW
from skate.dataplane.wire.frames import AHEAD, ASKS, GRANTED
from tests.transport.world import Heard, Open, Play, until


@pytest.fixture(autouse=True)
def nothing_fails_unseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What one call does wrong is logged and costs no other call; here nothing does."""
    yield
    assert [record.getMessage() for record in caplog.records] == []


class Tasks:
    """Accepts calls by running a coroutine for each."""

    def __init__(self, handler) -> None:  # type: ignore[no-untyped-def]
        self.handler = handler
        self.exchanges: list[Exchange] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.cancelled: list[str] = []
        self.ended = 0

    def __call__(self, exchange: Exchange) -> None:
        exchange.on_cancel = lambda reason, *cause: self.cancelled.append(reason)
        exchange.on_end = self._end
        exchange.begin()
        self.exchanges.append(exchange)
        self.tasks.append(asyncio.ensure_future(self.handler(exchange)))

    def _end(self) -> None:
        self.ended += 1


# -- credit, promises, cancellation ---------------------------------------------------------------


def test_a_callee_that_takes_nothing_stops_the_caller(play: Play) -> None:
    async def scene(open: Open) -> None:
        go = asyncio.Event()
        taken: list[int] = []

        async def late(exchange: Exchange) -> None:
            await go.wait()
            while (chunk := await exchange.receive()) is not None:
                taken.append(len(chunk))
            exchange.reply(b"")

        _, peer = await open(Tasks(late))
        heard = Heard(peer).open(complete=False)
        piece, sent = b"x" * (WINDOW // 10), 0
        while peer.may_send(heard.id):
            peer.send(heard.id, piece)
            sent += 1
        assert sent == 10  # what each chunk counts beside its bytes takes the eleventh's place
        await until(lambda: heard.marks == ["started"])
        for _ in range(50):
            await asyncio.sleep(0)
        assert not peer.may_send(heard.id) and heard.marks == ["started"]
        go.set()
        await until(lambda: "credit" in heard.marks and peer.may_send(heard.id))
        peer.send(heard.id, b"end", True)
        assert await heard.ends() == "last"
        assert taken == [len(piece)] * sent + [3]

    play(scene)


def test_a_chunk_may_be_larger_than_the_credit_and_the_next_one_waits(play: Play) -> None:
    async def scene(open: Open) -> None:
        order: list[str] = []

        async def two(exchange: Exchange) -> None:
            await exchange.send(b"x" * (3 * WINDOW))
            order.append("first")
            await exchange.send(b"y")
            order.append("second")
            exchange.end()

        _, peer = await open(Tasks(two))
        heard = Heard(peer, takes=False).open()
        await until(lambda: heard.chunks and order)
        for _ in range(50):
            await asyncio.sleep(0)
        assert order == ["first"] and not heard.end.done()
        peer.take(heard.id, 3 * WINDOW)
        assert await heard.ends() == "last" and len(heard.chunks) == 3

    play(scene)


def test_what_is_sent_without_waiting_spends_the_credit_too(play: Play) -> None:
    async def scene(open: Open) -> None:
        exchanges: list[Exchange] = []
        _, peer = await open(exchanges.append)
        heard = Heard(peer, takes=False).open()
        await until(lambda: exchanges)
        (exchange,) = exchanges
        sent = 0
        while exchange.send_nowait(b"x" * (WINDOW // 10)):
            sent += 1
        assert sent == 10
        await until(lambda: len(heard.chunks) == sent)
        for chunk in heard.chunks:
            peer.take(heard.id, len(chunk))
        await until(lambda: exchange.send_nowait(b"more"))
        exchange.end()
        assert await heard.ends() == "last"
        assert exchange.send_nowait(b"nobody hears")  # one that has ended takes everything

    play(scene)


def test_promises_are_granted_used_and_given_back(play: Play) -> None:
    async def scene(open: Open) -> None:
        granted: list[bool] = []
        released: list[tuple[Session, int]] = []
        sessions: list[Session] = []
        ready: list[int] = []

        def accept(exchange: Exchange) -> None:
            granted.append(exchange.granted)
            sessions.append(exchange.session)
            exchange.reply(b"") if exchange.granted else exchange.refuse()

        listener, peer = await open(accept)
        listener.listening.on_release = lambda session, count: released.append((session, count))
        listener.listening.load = lambda: 7
        peer.on_ready = ready.append
        assert await Heard(peer).open().ends() == "refused"
        assert peer.load == 7
        sessions[0].grant(3)
        await until(lambda: ready)
        assert await Heard(peer).open(how=GRANTED).ends() == "last"
        peer.release(2)
        await until(lambda: released)
        assert (granted, ready, released) == ([False, True], [3], [(sessions[0], 2)])
        peer.on_ready = None  # who does not want it gives it back
        sessions[0].grant(4)
        await until(lambda: released[1:] == [(sessions[0], 4)])

    play(scene)


def test_a_cancel_that_crosses_the_answer_ends_the_call_for_both(play: Play) -> None:
    async def scene(open: Open) -> None:
        async def flood(exchange: Exchange) -> None:
            for _ in range(1000):
                await exchange.send(b"x" * 1000)
            exchange.end()

        accepted = Tasks(flood)
        _, peer = await open(accepted)
        for turns in range(20):  # of the loop, between the call and its cancellation
            heard = Heard(peer).open(complete=False)
            for _ in range(turns):
                await asyncio.sleep(0)
            ended = heard.end.done()
            before = len(heard.chunks)
            peer.cancel(heard.id, "enough")
            await until(lambda turns=turns: accepted.ended == turns + 1)
            peer.send(heard.id, b"too late")
            assert heard.end.done() == ended and len(heard.chunks) == before
        await asyncio.gather(*accepted.tasks)
        answered = Tasks(flood)
        accepted.handler = answered.handler
        assert await Heard(peer).open().ends() == "last"
        session = accepted.exchanges[0].session
        await until(lambda: not session.exchanges)
        assert not peer.sinks and not peer.wire.calls and not session.wire.calls

    play(scene)


# -- many at once ---------------------------------------------------------------------------------


def test_many_calls_of_all_kinds_at_once(play: Play) -> None:
    async def scene(open: Open) -> None:
        chance = random.Random(1)

        async def anything(exchange: Exchange) -> None:
            kind = exchange.body[:1]
            if kind == b"e":
                while (chunk := await exchange.receive()) is not None:
                    await exchange.send(chunk)
                exchange.end()
            elif kind == b"f":
                exchange.fail(ValueError("f"))
            elif kind == b"r":
                exchange.refuse()
            elif kind == b"w":
                await asyncio.sleep(0.01)
                exchange.reply(exchange.body)
            else:
                exchange.reply(exchange.body)

        accepted = Tasks(anything)
        _, peer = await open(accepted)
        wanted = {b"e": "last", b"f": "failed", b"r": "refused", b"w": "last", b"u": "last"}
        calls: list[tuple[bytes, Heard]] = []

        async def one() -> None:
            kind = chance.choice(list(wanted))
            body = kind + chance.randbytes(chance.choice([0, 10, 5000, 100_000]))
            heard = Heard(peer).open(body, complete=kind != b"e")
            calls.append((body, heard))
            if kind == b"e":
                for i in range(30):
                    while not peer.may_send(heard.id):
                        await asyncio.sleep(0)
                    peer.send(heard.id, b"%d" % i, i == 29)
                    if i % 7 == 0:
                        await asyncio.sleep(0)

        await asyncio.gather(*(one() for _ in range(600)))
        for body, heard in calls:
            assert await heard.ends() == wanted[body[:1]]
            if body[:1] == b"e":
                assert heard.chunks == [b"%d" % i for i in range(30)] + [b""]
            elif body[:1] in b"wu":
                assert heard.chunks == [body]
        assert accepted.ended == 600 and accepted.cancelled == []
        assert not peer.sinks and not peer.wire.calls and not accepted.exchanges[0].session.wire.calls

    play(scene)


# -- loss -----------------------------------------------------------------------------------------


async def answers_late(exchange: Exchange) -> None:
    await asyncio.sleep(60)


async def reads(exchange: Exchange) -> None:
    while await exchange.receive() is not None:
        pass


async def waits_for_credit(exchange: Exchange) -> None:
    while not exchange.ended:
        await exchange.send(b"x" * (WINDOW // 3))


async def streams(exchange: Exchange) -> None:
    while not exchange.ended:
        await exchange.send(b"x")
        await asyncio.sleep(0.001)


STATES = [answers_late, reads, waits_for_credit, streams]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.parametrize("who", ["caller", "callee"])
def test_a_connection_lost_in_any_state_ends_the_call_once_for_both(play: Play, state, how: str, who: str) -> None:  # type: ignore[no-untyped-def]
    async def scene(open: Open) -> None:
        accepted = Tasks(state)
        listener, peer = await open(accepted)
        heard = Heard(peer, takes=state is not waits_for_credit).open(complete=state is not reads)
        await until(lambda: "started" in heard.marks)
        if state is reads:
            peer.send(heard.id, b"some")
        elif state in (waits_for_credit, streams):
            await until(lambda: len(heard.chunks) > 2)
        (exchange,) = accepted.exchanges
        lost: list[object] = []
        peer.on_lost = lost.append
        end = peer if who == "caller" else exchange.session
        assert end.transport is not None
        end.close() if how == "close" else end.transport.abort()
        assert await heard.ends() == "lost"
        await until(lambda: accepted.cancelled and not listener.listening.sessions)
        assert exchange.ended and accepted.ended == 1 and len(accepted.cancelled) == 1 and lost == [peer]
        if state is not answers_late:
            await asyncio.wait_for(accepted.tasks[0], 5)  # nobody waits for ever for who is gone
        else:
            accepted.tasks[0].cancel()
        assert not peer.sinks and peer.closed and exchange.session.closed
        with_the_dead = Heard(peer)
        assert await exchange.receive() is None
        await exchange.send(b"dropped")
        exchange.reply(b"dropped")
        assert not with_the_dead.end.done()

    play(scene)


@pytest.mark.parametrize("how", [0, ASKS])
def test_what_had_begun_is_known_when_the_callee_is_lost_and_nothing_else(play: Play, how: int) -> None:
    """A router may send again what was not started, and must not send again what was."""

    async def scene(open: Open) -> None:
        exchanges: list[Exchange] = []
        _, peer = await open(exchanges.append)
        begun, waiting = Heard(peer).open(how=how), Heard(peer).open(how=how)
        await until(lambda: len(exchanges) == 2)
        exchanges[0].begin()
        exchanges[0].session.close()
        assert [await begun.ends(), await waiting.ends()] == ["lost", "lost"]
        assert set(begun.marks) == {"started"} and waiting.marks == []

    play(scene)


def test_calls_that_are_asked_back_are_returned_and_those_that_began_go_on(play: Play) -> None:
    async def scene(open: Open) -> None:
        exchanges: list[Exchange] = []
        recalled: list[Session] = []
        listener, peer = await open(exchanges.append)
        listener.listening.on_recall = recalled.append
        began, waits = Heard(peer).open(how=AHEAD), Heard(peer).open(how=AHEAD)
        await until(lambda: len(exchanges) == 2)
        assert [exchange.ahead for exchange in exchanges] == [True, True]
        exchanges[0].begin()
        peer.recall()
        await until(lambda: recalled == [exchanges[0].session])
        exchanges[1].refuse(returned=True)
        assert await waits.ends() == "returned" and waits.marks == []
        exchanges[0].reply(b"")
        assert await began.ends() == "last"

    play(scene)


def test_many_connections_come_and_go_and_leave_nothing(play: Play) -> None:
    async def scene(open: Open) -> None:
        accepted = Tasks(streams)
        peers = []
        for _ in range(30):
            listener, peer = await open(accepted)
            peers.append((listener, peer, Heard(peer).open()))
            await listener.close() if len(peers) % 2 else peer.close()
        for listener, peer, heard in peers:
            assert await heard.ends() == "lost"
            await until(lambda listener=listener: not listener.listening.sessions)
            assert not peer.sinks
        await asyncio.gather(*accepted.tasks)

    play(scene)
