from __future__ import annotations

import asyncio

import pytest

from benchmarks import load
from benchmarks.load import OWN, WRK, AnswerReader, Load, LoadError, read_wrk

WRK_TEXT = """Running 1s test @ http://127.0.0.1:8000/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     5.51ms    1.29ms  20.32ms   85.71%
    Req/Sec    11.59k     0.93k   13.10k    70.00%
  Latency Distribution
     50%  937.00us
     75%    5.93ms
     90%    6.80ms
     99%    1.02s
  11632 requests in 1.01s, 1.64MB read
Requests/sec:  11516.02
Transfer/sec:      1.63MB
"""


def test_the_text_of_wrk_is_read_with_its_units() -> None:
    assert read_wrk(WRK_TEXT) == Load(
        requests=11632, seconds=1.01, p50_us=937.0, p90_us=6800.0, p99_us=1_020_000.0, max_us=20_320.0
    )
    assert read_wrk(WRK_TEXT).rate == pytest.approx(11632 / 1.01)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("  Non-2xx or 3xx responses: 17\n", "17 of 11632 answers"),
        ("  Socket errors: connect 0, read 3, write 0, timeout 0\n", "read 3"),
    ],
)
def test_a_load_with_errors_is_no_measurement(line: str, complaint: str) -> None:
    with pytest.raises(LoadError, match=complaint):
        read_wrk(WRK_TEXT.replace("Requests/sec", line + "Requests/sec"))


@pytest.mark.parametrize("missing", ["requests in", "99%", "Latency     5"])
def test_another_text_is_refused(missing: str) -> None:
    with pytest.raises(LoadError, match="something else"):
        read_wrk(WRK_TEXT.replace(missing, "?"))


# -- our own client -------------------------------------------------------------------------------

ANSWER = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 5\r\n\r\nhello"


@pytest.mark.parametrize("cut", range(1, len(ANSWER)))
def test_an_answer_is_whole_wherever_it_is_cut(cut: int) -> None:
    reader = AnswerReader()
    assert not reader.feed(ANSWER[:cut])
    assert reader.feed(ANSWER[cut:])
    assert reader.feed(ANSWER)  # the next one on the same connection


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (ANSWER.replace(b"200 OK", b"503 No"), "503"),
        (ANSWER.replace(b"Content-Length: 5", b"Transfer-Encoding: chunked"), "without a content-length"),
        (ANSWER.replace(b"Length: 5", b"Length: five"), "without a content-length"),
        (ANSWER + b"!", "more bytes"),
        (b"x" * (load.HEAD_MAX + 1), "longer than"),
    ],
)
def test_what_is_no_plain_answer_is_an_error(answer: bytes, complaint: str) -> None:
    with pytest.raises(LoadError, match=complaint):
        AnswerReader().feed(answer)


def _against(answer: bytes, connections: int) -> Load:
    """The own client against a server on the same loop."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer)
        except asyncio.IncompleteReadError:
            writer.close()

    async def main() -> Load:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await load.run_own(f"http://127.0.0.1:{port}/a?b=c", connections, 0.02)

    return asyncio.run(main())


def test_the_own_client_counts_answers() -> None:
    seen = _against(ANSWER, 4)
    assert seen.requests >= 4
    assert 0 < seen.p50_us <= seen.p90_us <= seen.p99_us <= seen.max_us


def test_the_own_client_takes_nothing_but_200() -> None:
    with pytest.raises(LoadError, match="404"):
        _against(ANSWER.replace(b"200 OK", b"404 No"), 2)


def test_the_own_client_says_when_nobody_listens(free_port: int) -> None:
    with pytest.raises(LoadError, match="cannot connect"):
        asyncio.run(load.run_own(f"http://127.0.0.1:{free_port}/", 1, 0.01))


# -- which one ------------------------------------------------------------------------------------


def test_wrk_is_taken_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load.shutil, "which", lambda name: f"/bin/{name}")
    assert load.generator() == WRK
    assert load.generator("own") == OWN


def test_without_wrk_the_own_client_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load.shutil, "which", lambda name: None)
    assert load.generator() == OWN
    with pytest.raises(LoadError, match="not on PATH"):
        load.generator("wrk")


@pytest.mark.parametrize(("connections", "seconds"), [(0, 1), (load.CONNECTIONS_MAX + 1, 1), (1, 0), (1, 3600)])
def test_a_load_is_bounded(connections: int, seconds: int) -> None:
    with pytest.raises(LoadError, match="beyond"):
        load.measure(WRK, "http://127.0.0.1:1/", connections, seconds)
