"""Config files: what they say is read exactly, and what is wrong is said at once, with its place and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate.authoring import config as configs
from skate.authoring import document
from skate.authoring.config import plain, read_file, read_plain, read_text
from skate.core.checks import Refused, options_of
from skate.core.config import AppConfig, ServeConfig
from skate.core.errors import ConfigError
from skate.core.options import DeploymentOptions

APP = "applications:\n  - import_path: module:app\n"


def read(text: str, environment: dict[str, str] | None = None) -> ServeConfig:
    return read_text(text, environment or {}, "f.yaml")[0]


def mistakes(text: str, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_text(text, environment or {}, "f.yaml")
    assert all(one in str(caught.value) for one in caught.value.mistakes)
    return list(caught.value.mistakes)


def mistake(text: str, environment: dict[str, str] | None = None) -> str:
    """The only one, without the name of the file."""
    (said,) = mistakes(text, environment)
    assert said.startswith("f.yaml:") and said.endswith(".") and "\n" not in said
    return said.removeprefix("f.yaml:").strip()


def app(more: str) -> str:
    """A file with one application that says more; lines begin at column 5, in line 3."""
    return APP + "".join(f"    {line}\n" for line in more.splitlines())


def deployment(more: str) -> str:
    """A file with one deployment that says more; lines begin at column 9, in line 5."""
    return app("deployments:\n  - name: D\n" + "".join(f"    {line}\n" for line in more.splitlines()))


# -- what is right -----------------------------------------------------------------------------------


def test_the_least_file() -> None:
    assert read(APP) == ServeConfig((AppConfig("default", "module:app"),))
    assert read("applications: []") == ServeConfig()


def test_everything_that_a_file_may_say(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "serve.yaml").write_text(
        """
http_options: {host: 0.0.0.0, port: 9001, root_path: /models, request_timeout_s: 5, keep_alive_timeout_s: 3}
target_capacity: 50
applications:
  - name: one
    route_prefix: /one
    import_path: module.inner.app
    args: {size: 3, share: 0.5, word: "on", deep: [{a: null}, true]}
    runtime_env: {env_vars: {A: "1"}, working_dir: code}
    external_scaler_enabled: true
    deployments:
      - name: D
        num_replicas: 3
        user_config: {a: [1]}
        ray_actor_options: {num_cpus: 0.5, runtime_env: {env_vars: {B: "2"}}}
  - name: two
    import_path: other:app
    route_prefix: null
"""
    )
    config, warnings = read_file(str(tmp_path / "serve.yaml"), {})
    assert warnings == []
    assert config == ServeConfig(
        applications=(
            AppConfig(
                "one",
                "module.inner:app",
                "/one",
                {"size": 3, "share": 0.5, "word": "on", "deep": [{"a": None}, True]},
                {"env_vars": {"A": "1"}, "working_dir": str(tmp_path / "code")},
                {
                    "D": {
                        "num_replicas": 3,
                        "user_config": {"a": [1]},
                        "ray_actor_options": {"num_cpus": 0.5, "runtime_env": {"env_vars": {"B": "2"}}},
                    }
                },
                external_scaler_enabled=True,
            ),
            AppConfig("two", "other:app", None),
        ),
        http_options={
            "host": "0.0.0.0",
            "port": 9001,
            "root_path": "/models",
            "request_timeout_s": 5.0,
            "keep_alive_timeout_s": 3.0,
        },
        target_capacity=50.0,
    )
    assert read_plain(plain(config)) == config


def test_json_is_read_as_json(tmp_path: Path) -> None:
    path = tmp_path / "serve.json"
    path.write_text('{"applications":\n\t[{"import_path": "m:a", "args": {"n": 1e3, "t": "${HOME} \\u00e9\\/"}}]}')
    assert read_file(str(path), {})[0].applications[0].args == {"n": 1000.0, "t": "${HOME} é/"}
    path.write_text('{"applications":\n\t[{"import_path": "m:a", "nam": 1}]}')
    with pytest.raises(ConfigError, match=r"serve.json:2:26: applications\[0\].nam=1"):
        read_file(str(path), {})
    path.write_text('{"applications": [}')
    with pytest.raises(ConfigError, match=r"serve.json:1:19: is no JSON here"):
        read_file(str(path), {})


def test_anchors_and_merges() -> None:
    text = "x-all: &all {num_replicas: 2, max_ongoing_requests: 7}\n" + deployment("<<: *all\nnum_replicas: 3")
    assert read(text).applications[0].deployments["D"] == {"num_replicas": 3, "max_ongoing_requests": 7}


def test_dates_and_the_like_stay_text() -> None:
    assert read(app("args: {d: 2024-01-31, v: '1.10', n: 1_000, e: }")).applications[0].args == {
        "d": "2024-01-31",
        "v": "1.10",
        "n": 1000,
        "e": None,
    }


def test_what_was_said_with_nulls() -> None:
    assert read(app("args:\nruntime_env:\ndeployments:\n") + "http_options:\n") == read(APP)


# -- the environment ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${N}", 3),
        ("'${N}'", "3"),
        ("${N} ", 3),
        ("a${N}b${N}", "a3b3"),
        ("${M:-}", None),
        ("${M:-7.5}", 7.5),
        ("${E:-7}", 7),
        ("'${E:-a$b:-c$}'", "a$b:-c$"),
        ("${E}", None),
        ("${S}", "a: [b, {c: d"),
        ("$${N} $N $", "${N} $N $"),
        ("$${N}", "${N}"),
        ("${M:-no}", False),
        ("${T}", "2024-01-31"),
        ("&x ${N}", 3),
    ],
)
def test_variables_in_values(written: str, value: Any) -> None:
    environment = {"N": "3", "E": "", "S": "a: [b, {c: d", "T": "2024-01-31"}
    (found,) = read(app(f"args:\n  key: {written}"), environment).applications[0].args.values()
    assert found == value and type(found) is type(value)


def test_a_variable_is_never_structure_and_never_a_key() -> None:
    environment = {"X": "{a: 1}", "Y": "b\nnum_replicas: 3"}
    assert read(app("args: {k: '${X}', '${X}': '${Y}'}"), environment).applications[0].args == {
        "k": "{a: 1}",
        "${X}": "b\nnum_replicas: 3",
    }


def test_a_variable_that_is_not_there() -> None:
    said = mistake(app("args:\n  key: ${PROT}"), {"PORT": "1"})
    assert said.startswith(
        "4:12: applications[0].args.key: the environment has no variable PROT; the nearest is 'PORT'"
    )
    assert "${PROT:-default}" in said
    for written in ("${a b}", "${A", "${A:-${B}}", "${}", "${1}"):
        assert "not closed" in mistakes(app(f"args:\n  key: '{written}'"), {"B": "x"})[0]


def test_a_variable_with_a_wrong_value() -> None:
    said = mistake(APP + "http_options:\n  port: ${PORT}\n", {"PORT": "abc"})
    assert said.startswith("4:9: http_options.port='abc': takes a whole number")


# -- what is wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            app("num_replicas: 2"),
            "3:5: applications[0].num_replicas=2: does not belong here; write it into an entry of",
        ),
        (app("host: x"), "3:5: applications[0].host='x': does not belong here; write it into http_options"),
        (app("prefix: /x"), "3:5: applications[0].prefix='/x': there is no such key here"),
        (app("route_prefx: /x"), "the nearest is 'route_prefix'"),
        (app("route_prefix: x"), "3:19: applications[0].route_prefix='x': must begin with '/'; write '/x'"),
        (app("route_prefix: '/a: b'"), "must be a plain path such as '/api', without ' '"),
        (app("route_prefix: /-/x"), "must not begin with '/-'"),
        (app("name: a/b"), "3:11: applications[0].name='a/b': the name must not contain '/'"),
        (app("name: null"), "applications[0].name=None: the name must be a string"),
        (app("args: [1]"), "applications[0].args=[1]: takes a dict"),
        (app("args: {a: {b: [.inf]}}"), "applications[0].args.a.b[0]=inf: takes finite numbers"),
        (app("args: {a: 99999999999999999999}"), "takes whole numbers of at most 64 bits"),
        (
            app("runtime_env: {env_vars: {A: 1}}"),
            "3:33: applications[0].runtime_env.env_vars.A=1: takes a string; quote",
        ),
        (app("runtime_env: {env_vars: {A: yes}}"), "quote it: 'true'"),
        (app("runtime_env: {working_dir: 's3://a/b'}"), "lies elsewhere; unpack it on this machine"),
        (app("runtime_env: {working_dir: here}"), "is relative, and there is no file"),
        (app("runtime_env: {working_dir: /not/there}"), "there is no folder /not/there"),
        (app("deployments: {D: {}}"), "3:18: applications[0].deployments={'D': {}}: takes a list of mappings"),
        (
            app("deployments:\n  - num_replicas: 1"),
            "4:9: applications[0].deployments[0]={'num_replicas': 1}: takes a m",
        ),
        (app("deployments:\n  - name: D\n  - name: D"), "5:15: applications[0].deployments[1].name='D': the applicat"),
        (
            deployment("num_replicas: 0"),
            "5:23: applications[0].deployments[0].num_replicas=0: takes a whole number >= 1",
        ),
        (deployment("route_prefix: /x"), "does not belong here; write it into an entry of applications"),
        (deployment("num_cpus: 1"), "does not belong here; write it into ray_actor_options"),
        (deployment("min_replicas: 1"), "does not belong here; write it into autoscaling_config"),
        (deployment("max_concurrent_queries: 1"), "use max_ongoing_requests"),
        (deployment("version: '1'"), "leave it out"),
        (
            deployment("autoscaling_config: {max_ongoing_requests: 5}"),
            "5:30: applications[0].deployments[0].autoscaling_config.max_ongoing_requests=5: does not belong here; "
            "write it into an entry of the application's deployments",
        ),
        (
            deployment("autoscaling_config:\n  min_replicas: 5\n  max_replicas: 3"),
            "7:25: applications[0].deployments[0]",
        ),
        (deployment("autoscaling_config: {}\nnum_replicas: 3"), "num_replicas=3 contradicts autoscaling_config"),
        (
            deployment("placement_group_bundles: null\nplacement_group_strategy: PACK"),
            "6:35: applications[0].deployments[0]: placement_group_strategy='PACK': takes None without placement",
        ),
        (deployment("deployment_actors: [{name: a}]"), "deployment_actors[0]={'name': 'a'}: lacks 'actor_class'"),
        (
            deployment("ray_actor_options: {num_cpus: -1}"),
            "5:39: applications[0].deployments[0].ray_actor_options.num_c",
        ),
        (APP + "import_path: a:b", "3:1: import_path='a:b': does not belong here; write it into an entry of applicat"),
        (APP + "http_options: {port: 80000}", "3:22: http_options.port=80000: takes a whole number from 0 to 65535"),
        (APP + "http_options: {prt: 1}", "3:16: http_options.prt=1: there is no such key here; the nearest is 'port'"),
        (APP + "http_options: {middlewares: [a]}", "add middleware to the FastAPI"),
        (
            APP + "http_options: {ssl_keyfile: a}",
            "3:16: http_options: there is no option 'ssl_keyfile' here; TLS comes",
        ),
        (APP + "http_options: 8000", "3:15: http_options=8000: takes a mapping of options"),
        (APP + "grpc_options: {prot: 8000}", "3:16: grpc_options.prot=8000: there is no such key"),
        (APP + "target_capacity: 101", "3:18: target_capacity=101: takes a number from 0 to 100"),
        (APP + "proxy_location: Here", "takes one of 'EveryNode'"),
        (APP + "proxy_locaton: EveryNode", "the nearest is 'proxy_location'"),
        (APP + "logging_config: {log_levl: INFO}", "3:18: logging_config.log_levl='INFO': there is no such key"),
        ("applications: {a: 1}", "1:15: applications={'a': 1}: takes a list of applications"),
        ("applications: [3]", "1:16: applications[0]=3: takes a mapping with import_path"),
        ("applications: [{name: a}]", "1:16: applications[0]: lacks import_path"),
        (
            "applications: [{import_path: 'a:b:c'}]",
            "1:30: applications[0].import_path='a:b:c': has more than one colon",
        ),
        ("applications: [{import_path: './some/where.py:app'}]", "names a file; write it as a module: some.where:app"),
        ("applications: [{import_path: some/where.py}]", "write it as a module: some.where:app"),
        ("applications: [{import_path: 3}]", "takes an import path"),
        ("applications: [{import_path: 'a b:c'}]", "takes an import path"),
        ("target_capacity: 5", "1:1: lacks applications"),
        ("- a", "1:1: takes a mapping with the key applications at the top, not a list"),
        ("just words", "takes a mapping with the key applications at the top, not 'just words'"),
    ],
)
def test_a_mistake_is_said_with_its_place_and_the_way_out(text: str, said: str) -> None:
    assert said in mistake(text)


def test_what_the_code_may_complete_is_no_mistake_yet() -> None:
    """The bundles may stand in the code; whoever imports it sees."""
    assert read(deployment("placement_group_strategy: PACK")).applications[0].deployments["D"]


def test_all_mistakes_are_said_at_once_in_the_order_of_the_file() -> None:
    found = mistakes(APP + "    nam: x\n" + "targt: 3\n" + "http_options: {port: x}\n")
    assert [one.split(" ")[0] for one in found] == ["f.yaml:3:5:", "f.yaml:4:1:", "f.yaml:5:22:"]


def test_of_very_many_mistakes_the_first_are_shown() -> None:
    found = mistakes(app("".join(f"wrong{number}: 1\n" for number in range(50))))
    assert len(found) == document.MISTAKES_MAX + 1
    assert found[-1] == "f.yaml: and 30 more mistakes."


def test_a_file_of_mistakes_is_not_read_to_its_end() -> None:
    many = mistakes(app("".join(f"wrong{number}: ${{NIX}}\n" for number in range(20_000))))
    assert many[-1] == f"f.yaml: and at least {document.LOOKED_FOR_MAX - document.MISTAKES_MAX} more mistakes."


def test_two_applications_of_one_name_or_prefix() -> None:
    one, two = mistakes(APP + "  - import_path: other:app\n")
    assert "f.yaml:3:5: applications[1].name='default' (which is what it is when nothing is said): application 0" in one
    assert "applications[1].route_prefix='/' (which is" in two
    said = mistake(
        "applications:\n  - {name: a, import_path: m:a, route_prefix: /x}\n"
        "  - {name: b, import_path: m:b, route_prefix: /x}"
    )
    assert said.startswith("3:47: applications[1].route_prefix='/x': application 0 in line 2 has it too")
    assert read(
        "applications:\n  - {name: a, import_path: m:a, route_prefix: null}\n"
        "  - {name: b, import_path: m:b, route_prefix: null}"
    )


def test_an_external_scaler_and_autoscaling() -> None:
    text = deployment("num_replicas: auto") + "    external_scaler_enabled: true\n"
    assert "5:23: applications[0].deployments[0].num_replicas='auto': external_scaler_enabled says" in mistake(text)


# -- texts that cannot be read -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds nothing; write a list of applications into it"),
        ("# only words\n", "holds nothing"),
        ("null", "holds nothing"),
        (
            "a:\n\t- b",
            "2:1: is no YAML here: found character '\\t' that cannot start any token; YAML indents with blanks",
        ),
        ("a: b: c", "1:5: is no YAML here: mapping values are not allowed here"),
        ("a: {b: ${C}}", 'must be quoted: "${NAME}"'),
        ("a: [1\nb: 2", "is no YAML here"),
        ("a: *b", "1:4: is no YAML here: found undefined alias"),
        ("a: 1\n---\nb: 1", "write one document"),
        ("a: \x00", "1:4: the character 0 cannot stand in YAML text"),
        ("&a [*a]", "an anchor that contains itself"),
        ("[" * 200 + "]" * 200, "is nested deeper than 64 levels"),
        ("x" * (document.BYTES_MAX + 1), f"is larger than {document.BYTES_MAX} bytes"),
        ("a: !!python/object/apply:os.system ['x']", "the tag !!python/object/apply:os.system has no meaning here"),
        ("a: !env X", "the tag !env has no meaning here"),
        ("a: !!int x", "a='x': is no value of its tag"),
        ('a: "\\ud800"', "half a character"),
        ("a: 1\na: 2", "2:1: a: stands twice, first in line 1"),
        ("a: {<<: 3}", "'<<' takes a mapping"),
        ("1: a", "1:1: 1: YAML reads this key as a number, and keys are text; quote it: '1'"),
        ("on: a", "reads this key as true or false"),
        ("? [a]\n: b", "keys are text, not lists"),
    ],
)
def test_what_is_no_config_at_all(text: str, said: str) -> None:
    assert any(said in one for one in mistakes(text)), mistakes(text)


def test_anchors_cannot_blow_a_file_up() -> None:
    lines = ["x-a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"x-{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    assert "holds more than 100000 values" in mistake("\n".join(lines))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + APP.encode())
    assert read_file(str(path), {})[0] == read(APP)
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ConfigError, match=r"serve.yaml:2:4: byte 0xff is no UTF-8"):
        read_file(str(path), {})
    path.write_bytes(b"#" * (document.BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="is larger than"):
        read_file(str(path), {})
    with pytest.raises(FileNotFoundError):
        read_file(str(tmp_path / "nix.yaml"), {})


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    for as_json in (False, True):
        try:
            read_text(text, {}, as_json=as_json)
        except ConfigError as error:
            assert error.mistakes


PARTS = st.sampled_from(
    ["applications", "- ", "  ", "\n", ": ", "[", "]", "{", "}", "&a", "*a", "<<", "${A}", "1", "'"]
)


@given(st.lists(PARTS, max_size=30).map("".join))
def test_any_text_that_is_nearly_yaml_is_read_or_refused(text: str) -> None:
    try:
        read_text(text, {"A": "x"})
    except ConfigError as error:
        assert error.mistakes


KEYS = st.sampled_from([*configs.FILE, *configs.APPLICATION, "num_replicas", "port", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 99) | st.floats() | st.sampled_from(["a:b", "/x", "auto", "${A}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_values_are_read_or_refused(given: dict[str, Any]) -> None:
    try:
        config = read_plain(given)
    except ConfigError as error:
        assert error.mistakes
        assert not any(one.startswith("config:0") for one in error.mistakes)
    else:
        assert read_plain(plain(config)) == config


# -- values that come as such, and back ----------------------------------------------------------------


def test_values_of_rest_have_places_and_no_lines() -> None:
    with pytest.raises(ConfigError) as caught:
        read_plain({"applications": [{"import_path": "m:a", "nam": "x"}]}, "request body")
    (said,) = caught.value.mistakes
    assert said.startswith("request body: applications[0].nam='x': there is no such key here; the nearest is 'name'")


def test_values_of_rest_do_not_see_the_environment() -> None:
    config = read_plain({"applications": [{"import_path": "m:a", "args": {"x": "${HOME}"}}]})
    assert config.applications[0].args == {"x": "${HOME}"}


TEXTS = st.text(st.characters(codec="utf-8"))
PLAIN_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS | st.sampled_from(["${A}", "$${", "2024-01-31", "1e5", "yes", "~", "0x1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(TEXTS, PLAIN_VALUES, max_size=4))
def test_what_is_written_is_read_again_as_it_was(args: dict[str, Any]) -> None:
    config = ServeConfig((AppConfig("default", "m:a", args=args),))
    text = document.written(plain(config), "made by a test")
    assert text.startswith("# made by a test\n")
    assert read_text(text, {})[0] == config


@given(st.sampled_from(sorted(options_of(DeploymentOptions).keys() - {"name"})), VALUES)
def test_a_file_takes_what_the_decorator_takes(option: str, value: Any) -> None:
    try:
        options_of(DeploymentOptions)[option].check.read(value)
        right = True
    except Refused:
        right = False
    try:
        read_plain({"applications": [{"import_path": "m:a", "deployments": [{"name": "D", option: value}]}]})
        assert right
    except ConfigError:
        assert not right
