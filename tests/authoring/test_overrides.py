"""What a file says lies over what the code says, and the versions follow from what comes out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from skate.authoring import code as travel
from skate.authoring.deployment import Application
from skate.authoring.overrides import build_app, overridden
from skate.core.config import AppConfig
from skate.core.errors import ImportPathError, OptionError
from skate.core.options import AutoscalingConfig, DeploymentOptions
from skate.core.specs import AppSpec, DeploymentSpec

pytestmark = pytest.mark.filterwarnings("ignore::skate.core.options.NotYetWarning")

MODULE = """
import dataclasses, os
import msgspec, pydantic
from skate import serve

SEEN = os.environ.get("SEEN"), os.getcwd()

@serve.deployment(num_replicas=3, max_ongoing_requests=7, ray_actor_options={
    "num_cpus": 2, "runtime_env": {"env_vars": {"A": "code", "B": "code"}}})
class Inner:
    def reconfigure(self, config): ...

@serve.deployment
def function(): ...

@serve.deployment(autoscaling_config={"min_replicas": 2, "max_replicas": 5})
class Outer:
    def __init__(self, *parts): ...

app = Outer.bind(Inner.bind(), function.bind())

class Model(pydantic.BaseModel):
    size: int
    names: list[str] = []

class Record(msgspec.Struct):
    size: int

@dataclasses.dataclass
class Data:
    size: float

def plain(args): return Outer.bind(args)
def model(args: Model): return Outer.bind(args.size, args.names)
def record(args: Record): return Outer.bind(args.size)
def data(args: Data): return Outer.bind(args.size)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    before = set(sys.modules)
    (tmp_path / "overridden_app.py").write_text(MODULE)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def config(**more: Any) -> AppConfig:
    return AppConfig(**{"name": "one", "import_path": "overridden_app:app", **more})


def code() -> Application[Any]:
    """The application that was imported."""
    found: Application[Any] = sys.modules["overridden_app"].app
    return found


def built(folder: Path, **more: Any) -> dict[str, DeploymentSpec]:
    spec = build_app(config(**more), (str(folder),))
    return {one.name: one for one in spec.deployments}


def test_without_overrides_it_is_what_the_code_says(folder: Path) -> None:
    spec = build_app(config(route_prefix="/one"), (str(folder),), str(folder))
    assert (spec.name, spec.route_prefix, spec.ingress) == ("one", "/one", "Outer")
    assert (spec.sys_path, spec.cwd) == ((str(folder),), str(folder))
    assert [one.options.num_replicas for one in spec.deployments] == [3, 1, "auto"]


def test_the_file_wins_over_the_code_and_the_code_over_defaults(folder: Path) -> None:
    inner = built(folder, deployments={"Inner": {"num_replicas": 5, "user_config": {"a": 1}}})["Inner"].options
    assert (inner.num_replicas, inner.max_ongoing_requests, inner.user_config) == (5, 7, {"a": 1})
    assert inner.ray_actor_options.num_cpus == 2
    assert inner.max_queued_requests == DeploymentOptions().max_queued_requests


def test_what_the_file_no_longer_says_is_the_codes_again(folder: Path) -> None:
    before = built(folder)
    changed = built(folder, deployments={"Inner": {"max_threads": 4}})
    assert changed["Inner"] != before["Inner"]
    assert {**changed, "Inner": before["Inner"]} == before
    assert built(folder) == before


def test_versions_do_not_tell_who_said_it(folder: Path) -> None:
    spec = built(folder, deployments={"Inner": {"ray_actor_options": {"num_cpus": 1}}})["Inner"]
    text = (folder / "overridden_app.py").read_text()
    (folder / "overridden_app.py").write_text(text.replace('"num_cpus": 2', '"num_cpus": 3'))
    del sys.modules["overridden_app"]
    again = built(folder, deployments={"Inner": {"ray_actor_options": {"num_cpus": 1}}})["Inner"]
    assert again.options == spec.options and again.version != spec.version  # the code did change
    (folder / "overridden_app.py").write_text(text)
    del sys.modules["overridden_app"]
    assert built(folder, deployments={"Inner": {"ray_actor_options": {"num_cpus": 1}}})["Inner"] == spec
    assert spec.version != built(folder)["Inner"].version


@pytest.mark.parametrize(
    ("options", "version", "config"),
    [
        ({"num_replicas": 9, "max_queued_requests": 3}, True, True),
        ({"user_config": {"a": 1}}, True, False),
        ({"max_threads": 2}, True, False),
        ({"ray_actor_options": {"num_cpus": 1}}, False, True),
    ],
)
def test_what_a_change_does_follows_from_what_comes_out(
    folder: Path, options: dict[str, Any], version: bool, config: bool
) -> None:
    before, after = built(folder)["Inner"], built(folder, deployments={"Inner": options})["Inner"]
    assert (before.version == after.version, before.config == after.config) == (version, config)


@pytest.mark.parametrize(
    ("options", "number", "scaled"),
    [
        ({"num_replicas": 4}, 4, False),
        ({"autoscaling_config": {"max_replicas": 9}}, "auto", True),
        ({"num_replicas": "auto", "autoscaling_config": {"max_replicas": 9}}, "auto", True),
    ],
)
def test_a_number_and_autoscaling_take_each_others_place(
    folder: Path, options: dict[str, Any], number: Any, scaled: bool
) -> None:
    found = built(folder, deployments={"Outer": options})["Outer"].options
    assert found.num_replicas == number
    assert (found.autoscaling_config is not None) == scaled
    if found.autoscaling_config is not None:
        assert found.autoscaling_config == AutoscalingConfig(max_replicas=9)


def test_environment_variables_are_merged_and_the_deployment_wins(folder: Path) -> None:
    found = built(folder, runtime_env={"env_vars": {"A": "app", "C": "app"}, "pip": ["x"]})
    assert found["Inner"].options.env_vars == {"A": "code", "B": "code", "C": "app"}
    assert found["Outer"].options.env_vars == {"A": "app", "C": "app"}
    assert found["Inner"].options.ray_actor_options.runtime_env.pip == ["x"]
    assert found["Inner"].options.ray_actor_options.num_cpus == 2
    own = {"ray_actor_options": {"runtime_env": {"env_vars": {"A": "file"}, "pip": ["y"]}}}
    inner = built(folder, runtime_env={"env_vars": {"A": "app", "C": "app"}, "pip": ["x"]}, deployments={"Inner": own})
    assert inner["Inner"].options.env_vars == {"A": "file", "C": "app"}
    assert inner["Inner"].options.ray_actor_options.runtime_env.pip == ["y"]


def test_logging_is_that_of_the_deployment_the_application_or_the_file(folder: Path) -> None:
    def level(spec: AppSpec, name: str) -> Any:
        (found,) = (one.options.logging_config for one in spec.deployments if one.name == name)
        return found.log_level if found is not None else None

    bare = build_app(config(), (str(folder),))
    own = config(logging_config={"log_level": "ERROR"}, deployments={"Inner": {"logging_config": {"log_level": 10}}})
    for logged, inner, outer in (
        (overridden(code(), bare, own, {"log_level": "DEBUG"}), 10, "ERROR"),
        (overridden(code(), bare, config(), {"log_level": "DEBUG"}), "DEBUG", "DEBUG"),
        (bare, None, None),
    ):
        assert (level(logged, "Inner"), level(logged, "Outer")) == (inner, outer)


def test_the_environment_and_the_folder_are_there_while_the_code_is_imported(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "overridden_app.py").rename(folder / "deep" / "overridden_app.py")
    (folder / "overridden_app.py").write_text("raise ValueError('the wrong one')")
    environment = {"env_vars": {"SEEN": "yes"}, "working_dir": str(folder / "deep")}
    spec = build_app(config(runtime_env=environment), (str(folder),), str(folder))
    seen = sys.modules["overridden_app"].SEEN
    assert seen == ("yes", str(folder / "deep"))
    assert (spec.sys_path, spec.cwd) == ((str(folder / "deep"), str(folder)), str(folder / "deep"))


def test_a_process_of_others_stays_as_it_is(folder: Path) -> None:
    (folder / "deep").mkdir()
    environment = {"env_vars": {"SEEN": "yes"}, "working_dir": str(folder / "deep")}
    build_app(config(runtime_env=environment), (str(folder),), settle=False)
    seen = sys.modules["overridden_app"].SEEN
    assert seen == (None, str(folder))


@pytest.mark.parametrize(
    ("builder", "args", "parts"),
    [
        ("plain", {"size": 3, "deep": [{"a": None}, True, 0.5]}, ({"size": 3, "deep": [{"a": None}, True, 0.5]},)),
        ("model", {"size": 3, "names": ["x"]}, (3, ["x"])),
        ("record", {"size": 3}, (3,)),
        ("data", {"size": 3}, (3.0,)),
    ],
)
def test_arguments_keep_their_types(folder: Path, builder: str, args: dict[str, Any], parts: tuple[Any, ...]) -> None:
    found = built(folder, import_path=f"overridden_app:{builder}", args=args)["Outer"]
    got, _ = travel.loads(found.init)
    assert got == parts and list(map(type, got)) == list(map(type, parts))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"deployments": {"Iner": {}}}, "no deployment 'Iner' in overridden_app:app; the nearest is 'Inner'; its dep"),
        ({"deployments": {"X": {}}}, "its deployments are: Inner, function, Outer"),
        ({"deployments": {"Inner": {"num_replicas": 0}}}, "deployment 'Inner': num_replicas=0: takes"),
        ({"deployments": {"Inner": {"placement_group_strategy": "PACK"}}}, "None without placement_group_bundles"),
        ({"deployments": {"Outer": {"user_config": 1}}}, "deployment 'Outer': user_config is passed to Outer.reconfig"),
        ({"deployments": {"function": {"user_config": 1}}}, "needs a class with a method reconfigure"),
        (
            {"deployments": {"Inner": {"request_router_config": {"request_router_class": "nix:R"}}}},
            "request_router_class='nix:R'",
        ),
        ({"runtime_env": {"env_vars": {"A": 1}}}, "application 'one': runtime_env.env_vars['A']=1: takes a string"),
    ],
)
def test_what_does_not_fit_the_code_is_said(folder: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        build_app(config(**more), (str(folder),))
    assert words in str(caught.value)


def test_a_module_or_folder_that_is_not_there(folder: Path) -> None:
    with pytest.raises(
        ImportPathError, match=f"no module 'nix' in {folder} or on Python's import path; name the folder"
    ):
        build_app(config(import_path="nix:app"), (str(folder),))
    with pytest.raises(ImportPathError, match="cannot be gone into: No such file"):
        build_app(config(runtime_env={"working_dir": str(folder / "nix")}))


def test_overrides_alone_touch_nothing_else(folder: Path) -> None:
    spec = build_app(config(), (str(folder),))
    assert overridden(code(), spec, config()) == spec
    changed = overridden(code(), spec, config(deployments={"Inner": {"num_replicas": 9}}))
    assert replace(changed, deployments=()) == replace(spec, deployments=())
