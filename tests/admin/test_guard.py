"""Who may ask: tokens, names of this machine, and pages of others in a browser."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate.admin.guard import LINES_MAX, refusal
from skate.core.admin_options import TOKEN_MIN, admin_options, is_loopback
from skate.core.environment import read
from skate.core.errors import OptionError
from skate.core.options import ADMIN_OPTIONS
from skate.core.specs import AdminOptions
from tests.admin.world import FILE, FakeController, api

TOKEN = "t" * 16
JSON = (b"content-type", b"application/json")
HERE = (b"host", b"127.0.0.1:8265")
BEARER = (b"authorization", b"Bearer " + TOKEN.encode())
FORMS = (b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data")
APPS = "/api/serve/applications/"


def status_of(method: str, *headers: tuple[bytes, bytes], token: str | None = None) -> int:
    refused = refusal(method, list(headers), token)
    return 200 if refused is None else refused.status


# -- without a token ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", [b"localhost", b"LOCALHOST:8265", b"localhost.:1", b"127.0.0.1", b"127.8.9.1:80", b"[::1]:8265", b"[::1]"]
)
def test_names_of_this_machine_are_taken(host: bytes) -> None:
    assert status_of("GET", (b"host", host)) == 200
    assert status_of("PUT", (b"host", host), JSON) == 200


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"evil.example:8265",
        b"localhost.evil.example",
        b"127.0.0.1.evil.example",
        b"evil-localhost",
        b"evil.localhost",
        b"127.0.0.1@evil.example",
        b"0.0.0.0",
        b"192.168.0.7:8265",
        b"[::]",
        b"::1",
        b"localhost:8265:1",
        b"local host",
        b"\xc4\xb0localhost",
        b"",
    ],
)
def test_other_names_are_not_dns_rebinding(host: bytes) -> None:
    assert status_of("GET", (b"host", host)) == 403
    assert status_of("PUT", (b"host", host), JSON) == 403


def test_no_host_and_two_hosts_are_refused() -> None:
    assert status_of("GET") == 403
    assert status_of("GET", HERE, (b"host", b"evil.example")) == 403


@pytest.mark.parametrize("name", [b"X-Forwarded-For", b"Forwarded", b"Via", b"x-real-ip"])
def test_whom_a_proxy_speaks_for_needs_a_token(name: bytes) -> None:
    assert status_of("GET", HERE, (name, b"1.2.3.4")) == 403
    assert status_of("GET", HERE, (name, b"1.2.3.4"), BEARER, token=TOKEN) == 200


# -- pages of others, with and without a token ----------------------------------------------------


@pytest.mark.parametrize(
    "foreign",
    [
        (b"origin", b"https://evil.example"),
        (b"origin", b"http://127.0.0.1:9999"),
        (b"origin", b"null"),
        (b"Origin", b""),
        (b"sec-fetch-site", b"cross-site"),
        (b"Sec-Fetch-Site", b"same-site"),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH"])
def test_a_page_of_others_changes_nothing(method: str, foreign: tuple[bytes, bytes]) -> None:
    assert status_of(method, HERE, JSON, foreign) == 403
    assert status_of(method, HERE, JSON, (b"origin", b"http://127.0.0.1:8265"), foreign) == 403
    assert status_of(method, HERE, JSON, foreign, BEARER, token=TOKEN) == 403


def test_a_page_of_ours_and_no_page_at_all_may() -> None:
    own = ((b"origin", b"http://127.0.0.1:8265"), (b"sec-fetch-site", b"same-origin"))
    assert status_of("PUT", HERE, JSON, *own) == 200
    assert status_of("DELETE", HERE, (b"sec-fetch-site", b"none")) == 200


@pytest.mark.parametrize("kind", [None, *FORMS, b"text/json", b"application/jsonx"])
@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_a_form_is_no_order(method: str, kind: bytes | None) -> None:
    headers = () if kind is None else ((b"content-type", kind),)
    assert status_of(method, HERE, *headers) == 415
    assert status_of(method, HERE, JSON, (b"content-type", b"text/plain")) == 415


def test_json_may_name_its_charset() -> None:
    assert status_of("PUT", HERE, (b"Content-Type", b"Application/JSON; charset=utf-8")) == 200


# -- with a token ---------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [b"Bearer " + TOKEN.encode(), b"bearer  " + TOKEN.encode()])
def test_the_bearer_of_the_token_may_whatever_the_host_is_called(given: bytes) -> None:
    assert status_of("PUT", (b"host", b"models.example"), JSON, (b"Authorization", given), token=TOKEN) == 200


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer wrong",
        b"Basic " + TOKEN.encode(),
        TOKEN.encode(),
        b"Bearer \xff\xfe",
        b"Bearer " + TOKEN.encode() * 2,
    ],
)
def test_without_the_token_nobody_may(given: bytes) -> None:
    for method in ("GET", "PUT", "DELETE"):
        assert status_of(method, HERE, JSON, (b"authorization", given), token=TOKEN) == 401
    assert status_of("GET", HERE, BEARER, (b"authorization", given), token=TOKEN) == 401
    assert status_of("GET", HERE, token=TOKEN) == 401


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=40))), st.sampled_from(["GET", "PUT", "DELETE"]))
def test_whatever_the_headers_are_only_the_token_opens(headers: list[tuple[bytes, bytes]], method: str) -> None:
    assert status_of(method, *headers, token=TOKEN) == 401


def test_the_answer_says_how_to_authenticate_and_lets_no_page_read_it() -> None:
    async def test() -> None:
        controller = FakeController()
        async with api(controller, TOKEN, base="http://models.example") as web:
            answer = await web.put(APPS, json=FILE)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer realm="skate"')
            assert controller.calls == []
            bearer = {"authorization": f"Bearer {TOKEN}"}
            answer = await web.put(APPS, json=FILE, headers=bearer)
            assert answer.status_code == 200
            told = (await web.get("/openapi.json", headers=bearer)).json()
            assert told["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
            answer = await web.options(APPS, headers=bearer | {"origin": "https://evil.example"})
            assert answer.status_code == 405
            for name in answer.headers:
                assert not name.startswith("access-control")
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"

    asyncio.run(test())


def test_who_is_refused_stands_in_the_log_but_not_too_often(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with api(FakeController(), TOKEN) as web:
            for _ in range(LINES_MAX + 3):
                await web.get(APPS, headers={"authorization": "Bearer wrong-one"})

    asyncio.run(test())
    assert caplog.text.count("a GET from 127.0.0.1 was refused: the request names another token") == LINES_MAX
    assert "wrong-one" not in caplog.text


def test_a_body_is_not_read_before_its_sender_is_known() -> None:
    async def test() -> None:
        async def body() -> Any:
            raise AssertionError("it was read")
            yield b""

        for token, base in ((TOKEN, "http://localhost"), (None, "http://evil.example")):
            async with api(FakeController(), token, base) as web:
                answer = await web.put(APPS, content=body(), headers={"content-type": "application/json"})
                assert answer.status_code in (401, 403)

    asyncio.run(test())


# -- what is configured ---------------------------------------------------------------------------


def test_admin_options_have_the_defaults_of_the_spec_and_bounds() -> None:
    assert set(ADMIN_OPTIONS) == {*AdminOptions.__struct_fields__, "token_file"} - {"token"}
    assert admin_options({}, None) == AdminOptions("127.0.0.1", 8265, None)
    assert admin_options({"port": 0, "host": "::1"}, TOKEN) == AdminOptions("::1", 0, TOKEN)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "models.example", "localhost.example"])
def test_elsewhere_than_on_this_machine_a_token_is_needed(host: str) -> None:
    with pytest.raises(OptionError, match="SKATE_ADMIN_TOKEN"):
        admin_options({"host": host}, None)
    assert admin_options({"host": host}, TOKEN).token == TOKEN


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"port": 65536}, "port=65536: takes a whole number from 0 to 65535"),
        ({"host": ""}, "host=''"),
        ({"prot": 1}, "the nearest is 'port'"),
        ({"token": TOKEN}, "the token comes from SKATE_ADMIN_TOKEN"),
        ({"token_file": "/nowhere/token"}, "cannot be read: No such file"),
    ],
)
def test_bad_options_are_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as refused:
        admin_options(given, None)
    assert said in str(refused.value)
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize("token", ["short", "with a space in it", "x" * 2000, "line\nbreak-and-more", "ümlaut" * 4])
def test_a_token_that_is_none_is_refused_and_not_repeated(token: str, tmp_path: Any) -> None:
    path = tmp_path / "token"
    path.write_text(token)
    path.chmod(0o600)
    for options, env in (({}, token), ({"token_file": str(path)}, None)):
        with pytest.raises(OptionError, match=f"must have {TOKEN_MIN} to") as refused:
            admin_options(options, env)
        assert token not in str(refused.value)


def test_the_token_of_a_file_wins_and_its_line_end_is_none_of_it(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    assert admin_options({"token_file": str(path)}, "other" * 4).token == TOKEN
    assert caplog.text == ""
    path.chmod(0o644)
    admin_options({"token_file": str(path)}, None)
    assert "chmod 600" in caplog.text and TOKEN not in caplog.text


def test_the_environment_keeps_the_token_to_itself() -> None:
    assert read({"SKATE_ADMIN_TOKEN": TOKEN}, uid=7).admin_token == TOKEN
    assert read({"SKATE_ADMIN_TOKEN": ""}, uid=7).admin_token is None
    assert TOKEN not in repr(read({"SKATE_ADMIN_TOKEN": TOKEN}, uid=7))


def test_what_is_this_machine() -> None:
    assert all(map(is_loopback, ["localhost", "127.0.0.1", "127.255.0.1", "::1", "[::1]", "::ffff:127.0.0.1"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "example.org", "", "127.1", "::ffff:10.0.0.1"]))
