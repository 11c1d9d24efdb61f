"""Commands about config files: what they say, and that ``build`` writes a file that means the same application."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skate.authoring.config import plain, read_text
from skate.authoring.document import written
from skate.authoring.overrides import build_app, overridden
from skate.authoring.schema import schema
from skate.cli import main
from skate.cli.files import config_of
from skate.core.config import ServeConfig

MODULE = """
from skate import serve

@serve.deployment(num_replicas=2, user_config={"text": "${HOME} stays"})
class Hello:
    def __init__(self, *parts): ...
    def reconfigure(self, config): ...
    def __call__(self): ...

@serve.deployment
class Bare:
    def __call__(self): ...

print("imported")
app = Hello.bind(Bare.bind())
def build(args): return Hello.bind(args["word"])
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "filed_app.py").write_text(MODULE)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def invoke(*words: str) -> Result:
    return CliRunner().invoke(main, words)


# -- validate ------------------------------------------------------------------------------------------


def test_a_file_that_is_right(folder: Path) -> None:
    (folder / "serve.yaml").write_text(
        """
proxy_location: EveryNode
applications:
  - import_path: filed_app:app
    deployments: [{name: Hello, num_replicas: 4}]
  - {name: other, route_prefix: null, import_path: "filed_app:build", args: {word: 3}}
"""
    )
    result = invoke("validate", "serve.yaml")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "serve.yaml: ok",
        "  Application default  /  filed_app:app",
        "    Bare   1 replica",
        "    Hello  4 replicas  the file sets num_replicas",
        "  Application other  without HTTP  filed_app:build",
        "    Hello  2 replicas",
    ]
    assert (
        "warning: serve.yaml: has no meaning on one machine and is left aside: proxy_location (line 2)."
        in result.stderr
    )
    assert "filed_app" not in sys.modules


def test_mistakes_of_the_file_are_all_said_and_nothing_is_imported(folder: Path) -> None:
    (folder / "serve.yaml").write_text("applications: [{import_path: 'nix:app', nam: x}]\ntarget: 3\n")
    result = invoke("validate", "serve.yaml")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[0] == "error: serve.yaml: 2 mistakes"
    assert [line.split(": ")[0] for line in result.stderr.splitlines()[1:]] == ["serve.yaml:1:41", "serve.yaml:2:1"]


def test_mistakes_of_the_code_are_said_for_every_application(folder: Path) -> None:
    (folder / "filed_end.py").write_text("import os; os._exit(3)")
    (folder / "serve.yaml").write_text(
        """
applications:
  - {name: a, route_prefix: /a, import_path: "filed_app:app", deployments: [{name: Helo}]}
  - {name: b, route_prefix: /b, import_path: "filed_app:build"}
  - {name: c, route_prefix: /c, import_path: "filed_end:app"}
"""
    )
    result = invoke("validate", "serve.yaml")
    assert (result.exit_code, result.stdout) == (1, "")
    for words in (
        "error: application a: there is no deployment 'Helo' in filed_app:app; the nearest is 'Hello'",
        "error: application b: the builder filed_app:build raised KeyError: 'word' (filed_app.py:",
        "error: application c: importing filed_end:app ended its process (code 3)",
    ):
        assert words in result.stderr
    result = invoke("validate", "--no-import", "serve.yaml")
    assert result.exit_code == 0
    assert result.stdout.startswith("serve.yaml: ok\n  Application a  /a  filed_app:app\n    Helo  sets nothing\n")


@pytest.mark.parametrize(
    "words", [("validate", "nix.yaml"), ("validate",), ("build",), ("build", "a:b", "c:d", "--name", "x")]
)
def test_a_wrong_command_line(folder: Path, words: tuple[str, ...]) -> None:
    assert invoke(*words).exit_code == 2


# -- build -----------------------------------------------------------------------------------------------


def test_one_application(folder: Path) -> None:
    result = invoke("build", "filed_app:app", "--name", "greeter")
    assert result.exit_code == 0, result.output
    head, _, text = result.stdout.partition("applications:")
    assert head.splitlines()[-2:] == ["# Made by: skate build filed_app:app", "# Deploy it with: skate deploy FILE"]
    assert yaml.safe_load(f"applications:{text}")["applications"] == [
        {
            "name": "greeter",
            "route_prefix": "/",
            "import_path": "filed_app:app",
            "deployments": [{"name": "Hello", "num_replicas": 2, "user_config": {"text": "$${HOME} stays"}}],
        }
    ]


def test_several_applications_into_a_file_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config").mkdir()
    (folder / "code").mkdir()
    (folder / "filed_app.py").rename(folder / "code" / "filed_app.py")
    result = invoke("build", "-d", "code", "-o", "config/serve.yaml", "filed_app:app", "filed_app:app")
    assert result.exit_code == 0, result.output
    made = yaml.safe_load((folder / "config" / "serve.yaml").read_text())["applications"]
    assert [(app["name"], app["route_prefix"]) for app in made] == [("app1", "/app1"), ("app2", "/app2")]
    assert made[0]["runtime_env"] == {"working_dir": "../code"}
    assert invoke("validate", "config/serve.yaml").stdout.startswith("config/serve.yaml: ok")


def test_what_is_no_application(folder: Path) -> None:
    result = invoke("build", "filed_app:nix")
    assert result.exit_code == 1
    assert "error: module 'filed_app' has no 'nix'; its applications are: app" in result.stderr


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "max_ongoing_requests": st.integers(100, 200),
        "max_queued_requests": st.sampled_from([-1, 1, 50]),
        "user_config": st.none() | st.dictionaries(st.text(max_size=5), st.text() | st.integers(-9, 9), max_size=3),
        "graceful_shutdown_timeout_s": st.floats(0, 100),
        "backpressure_config": st.fixed_dictionaries({}, optional={"status_code": st.sampled_from([503, 429])}),
        "retry": st.integers(0, 3) | st.just({"__call__": 2}),
        "ray_actor_options": st.fixed_dictionaries(
            {}, optional={"num_cpus": st.floats(0, 4), "runtime_env": st.just({"env_vars": {"A": "${B} $${C}"}})}
        ),
        "loop_block_warning_s": st.none() | st.floats(0, 2),
        "request_router_config": st.none() | st.just({"request_router_class": "skate.routers:RoundRobin"}),
        "placement_group_bundles": st.none() | st.just([{"CPU": 1}]),
    },
)
NUMBERS = st.sampled_from(
    [
        {},
        {"num_replicas": 1},
        {"num_replicas": 3},
        {"autoscaling_config": {"max_replicas": 4}},
        {"num_replicas": "auto"},
    ]
)


@pytest.mark.filterwarnings("ignore::skate.core.options.NotYetWarning")
@given(NUMBERS, NUMBERS, OPTIONS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_build_writes_means_the_same_application(
    folder: Path, first: dict[str, Any], then: dict[str, Any], options: dict[str, Any]
) -> None:
    bare = build_app(_config("filed_app:app"), (str(folder),), settle=False)
    module: Any = sys.modules["filed_app"]
    plain_hello = module.Hello.func_or_class
    before = module.app
    try:
        changed = module.serve.deployment(plain_hello).options(**first).options(**then).options(**options)
        module.app = changed.bind(module.Bare.bind())
        said = config_of("filed_app:app", "one", "/one")
        (app,) = read_text(written(plain(ServeConfig((said,)))), {})[0].applications
        wanted = build_app(_config("filed_app:app"), (str(folder),), settle=False)
        assert overridden(module.app, wanted, app) == wanted
        module.app = module.serve.deployment(plain_hello).bind(module.Bare.bind())  # the file alone says it all
        alone = overridden(module.app, build_app(_config("filed_app:app"), (str(folder),), settle=False), app)
        assert alone == wanted
    finally:
        module.app = before
    assert bare == build_app(_config("filed_app:app"), (str(folder),), settle=False)


def _config(path: str) -> Any:
    return read_text(f"applications: [{{name: one, import_path: '{path}'}}]", {})[0].applications[0]


# -- schema ----------------------------------------------------------------------------------------------


def test_the_schema_is_printed_or_written(folder: Path) -> None:
    assert json.loads(invoke("schema").stdout) == msgspec.to_builtins(schema())
    assert invoke("schema", "-o", "serve.schema.json").exit_code == 0
    assert json.loads((folder / "serve.schema.json").read_text()) == msgspec.to_builtins(schema())
