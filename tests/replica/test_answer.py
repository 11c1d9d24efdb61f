from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import pathlib
import re
import sys
import uuid
from collections import OrderedDict, deque, namedtuple
from ipaddress import ip_address
from typing import Any

import msgspec
import numpy as np
import pydantic
import pytest
from starlette.datastructures import QueryParams
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)

from skate.dataplane.replica.answer import is_stream, render, stream_chunk, stream_head
from skate.dataplane.replica.jsonable import encode_json


def rendered(value: Any) -> tuple[int, str, bytes]:
    reply = render(value)
    assert reply is not None
    head, body = reply
    headers = dict(head.headers)
    assert headers[b"content-length"] == str(len(body)).encode()
    return head.status, headers[b"content-type"].decode(), body


class Color(enum.Enum):
    RED = "red"


class Word(str, enum.Enum):  # noqa: UP042  # what users write
    YES = "yes"


class Number(enum.IntEnum):
    ONE = 1


class Item(pydantic.BaseModel):
    name: str = pydantic.Field("x", alias="Name")
    when: datetime.date = datetime.date(2026, 1, 2)


class Holder(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    array: np.ndarray


@dataclasses.dataclass
class Point:
    x: int
    inner: Any = None


class Packed(msgspec.Struct, rename="camel"):
    some_name: int
    blob: bytes = b"abc"
    cost: decimal.Decimal = decimal.Decimal("1.50")


class Plain:
    def __init__(self) -> None:
        self.a = 1


Pair = namedtuple("Pair", "a b")

TEXT, UTF8, JSON = "text/plain", "text/plain; charset=utf-8", "application/json"


@pytest.mark.parametrize(
    ("value", "kind", "body"),
    [
        (None, TEXT, b""),
        (b"\x00\xff", TEXT, b"\x00\xff"),
        (bytearray(b"ab"), TEXT, b"ab"),
        (memoryview(b"ab"), TEXT, b"ab"),
        ("", UTF8, b""),
        ("Hello \u00e9", UTF8, "Hello \u00e9".encode()),
        ('"quoted"', UTF8, b'"quoted"'),
        (Word.YES, UTF8, b"yes"),
        (True, JSON, b"true"),
        (1, JSON, b"1"),
        (1.5, JSON, b"1.5"),
        ({}, JSON, b"{}"),
        ([], JSON, b"[]"),
        ((1, "a", None), JSON, b'[1,"a",null]'),
        ({"count": 1, "x": [1, 2]}, JSON, b'{"count":1,"x":[1,2]}'),
        ({"a": "\u00e9"}, JSON, '{"a":"\u00e9"}'.encode()),
        ({1: "a", None: 2, False: 3, 1.5: 4}, JSON, b'{"1":"a","null":2,"false":3,"1.5":4}'),
        (OrderedDict(a=1), JSON, b'{"a":1}'),
        ({"v"}, JSON, b'["v"]'),
        (frozenset([1]), JSON, b"[1]"),
        (deque([1, 2]), JSON, b"[1,2]"),
        (range(3), JSON, b"[0,1,2]"),
        (Pair(1, 2), JSON, b"[1,2]"),
        ({"b": b"bytes", "c": bytearray(b"x")}, JSON, b'{"b":"bytes","c":"x"}'),
        (Color.RED, JSON, b'"red"'),
        (Number.ONE, JSON, b"1"),
        ({Color.RED: 1, uuid.UUID(int=1): 2}, JSON, b'{"red":1,"00000000-0000-0000-0000-000000000001":2}'),
        ([uuid.UUID(int=1)], JSON, b'["00000000-0000-0000-0000-000000000001"]'),
        ([datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC)], JSON, b'["2026-01-02T03:00:00+00:00"]'),
        ([datetime.time(3, 4), datetime.timedelta(minutes=1)], JSON, b'["03:04:00",60.0]'),
        ([decimal.Decimal("1.5"), decimal.Decimal("10"), decimal.Decimal("NaN")], JSON, b"[1.5,10,null]"),
        ([pathlib.PurePosixPath("/a"), ip_address("127.0.0.1"), re.compile("a+")], JSON, b'["/a","127.0.0.1","a+"]'),
        (QueryParams("a=b&c=d"), JSON, b'{"a":"b","c":"d"}'),
        (ValueError("no good"), JSON, b'"no good"'),
        ([float("nan"), float("inf"), {"x": -float("inf")}], JSON, b'[null,null,{"x":null}]'),
        (Item(), JSON, b'{"Name":"x","when":"2026-01-02"}'),
        ({"items": [Item(), Point(1, Point(2))]}, JSON, None),
        (Point(1, {Color.RED}), JSON, b'{"x":1,"inner":["red"]}'),
        (Packed(1), JSON, b'{"someName":1,"blob":"abc","cost":1.5}'),
        (Holder(array=np.array([1, 2])), JSON, b'{"array":[1,2]}'),
        (np.zeros(2), JSON, b"[0.0,0.0]"),
        ({"a": np.array([[1, 2]]), "s": np.float32(0.5), "i": np.int64(3), "b": np.bool_(True)}, JSON, None),
        (np.int64(7), JSON, b"7"),
        (np.float64(0.5), JSON, b"0.5"),
        (np.array([np.nan, 1.0]), JSON, b"[null,1.0]"),
        ({"k": {(1): np.float32("nan")}}, JSON, b'{"k":{"1":null}}'),
        (Plain(), JSON, b'{"a":1}'),
        ({"bad": "\ud800"}, JSON, b'{"bad":"\\ud800"}'),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(type(value).__name__),
)
def test_values_become_text_or_json(value: Any, kind: str, body: bytes | None) -> None:
    status, content_type, sent = rendered(value)
    assert (status, content_type) == (200, kind)
    if body is None:
        json.loads(sent)
    else:
        assert sent == body


def test_numbers_of_numpy_inside_keep_their_values() -> None:
    value = {"a": np.array([[1, 2]]), "s": np.float32(0.5), "i": np.int64(3), "b": np.bool_(True)}
    assert json.loads(rendered(value)[2]) == {"a": [[1, 2]], "s": 0.5, "i": 3, "b": True}


def test_frames_become_records() -> None:
    class Frame:  # what pandas.DataFrame has of it
        def iterrows(self) -> None: ...
        def to_dict(self, orient: str) -> Any:
            assert orient == "records"
            return [{"a": np.int64(1)}]

    assert encode_json(Frame()) == b'[{"a":1}]'


def test_pydantic_values_that_are_no_models() -> None:
    assert encode_json([pydantic.AnyUrl("http://a.b/c"), pydantic.SecretStr("s")]) == b'["http://a.b/c","**********"]'


@pytest.mark.parametrize("with_fastapi", [True, False])
def test_what_json_cannot_say_is_named(with_fastapi: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if with_fastapi:
        pytest.importorskip("fastapi.encoders")
    else:
        monkeypatch.delitem(sys.modules, "fastapi.encoders", raising=False)
    with pytest.raises(TypeError, match="base64"):
        render({"a": b"\xff"})
    with pytest.raises(TypeError, match=r"object"):
        render([object()])
    with pytest.raises(TypeError, match="key of type tuple"):
        render({(1, 2): 3})
    assert encode_json(Plain()) == b'{"a":1}'


def test_what_the_user_taught_fastapi_counts() -> None:
    encoders = pytest.importorskip("fastapi.encoders")

    class Odd:
        __slots__ = ()

    encoders.ENCODERS_BY_TYPE[Odd] = lambda value: "odd"
    try:
        assert encode_json(Odd()) == b'"odd"'
    finally:
        del encoders.ENCODERS_BY_TYPE[Odd]


@pytest.mark.parametrize(
    ("response", "status", "kind", "body"),
    [
        (Response("x", 418, media_type="image/x"), 418, "image/x", b"x"),
        (HTMLResponse("<p>"), 200, "text/html; charset=utf-8", b"<p>"),
        (PlainTextResponse("t"), 200, UTF8, b"t"),
        (JSONResponse({"a": 1}, 201), 201, JSON, b'{"a":1}'),
    ],
)
def test_responses_are_themselves(response: Response, status: int, kind: str, body: bytes) -> None:
    assert rendered(response) == (status, kind, body)


def test_headers_and_cookies_of_a_response_survive() -> None:
    response = RedirectResponse("/there")
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    reply = render(response)
    assert reply is not None
    assert (b"location", b"/there") in reply[0].headers
    assert sum(name == b"set-cookie" for name, _ in reply[0].headers) == 2


def _generator() -> Any:
    yield 1


async def _async_generator() -> Any:
    yield 1


async def _coroutine() -> None: ...


def test_what_takes_more_than_one_step_is_left_to_others() -> None:
    class Own(Response):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    coroutine = _coroutine()
    streams = (_generator(), _async_generator(), iter([1]), map(str, [1]), StreamingResponse(_generator()))
    for value in (*streams, Own(), coroutine):
        assert render(value) is None
    assert is_stream(_generator()) and is_stream(_async_generator()) and is_stream(map(str, []))
    assert not is_stream([1]) and not is_stream("x") and not is_stream(coroutine)
    coroutine.close()


def test_a_stream_is_text_or_lines_of_json() -> None:
    assert dict(stream_head("x").headers)[b"content-type"] == UTF8.encode()
    assert dict(stream_head(b"x").headers)[b"content-type"] == UTF8.encode()
    assert dict(stream_head({}).headers)[b"content-type"] == b"application/x-ndjson"
    assert [stream_chunk(v) for v in ("\u00e9", b"b", bytearray(b"c"), {"a": 1}, None)] == [
        "\u00e9".encode(), b"b", b"c", b'{"a":1}\n', b"null\n",
    ]  # fmt: skip
