"""The environment's one door: what the variables mean, and what is said about wrong ones."""

from __future__ import annotations

import pytest

from skate.core.environment import RUNTIME_DIR_MAX, Environment, environment, read
from skate.core.errors import OptionError


def test_nothing_set_is_a_private_folder_per_user() -> None:
    found = read({"HOME": "/people/ann"}, uid=7)
    assert found == Environment("/tmp/skate-7", "default", "INFO", None, "/people/ann/.local/state/skate")
    assert found.runtime_dir == "/tmp/skate-7/default" and found.state_dir == "/people/ann/.local/state/skate/default"


def test_own_folder_wins_over_the_desktops() -> None:
    desktop = {"XDG_RUNTIME_DIR": "/run/user/7/"}
    assert read(desktop, uid=7).runtime_dir == "/run/user/7/skate/default"
    both = desktop | {"SKATE_RUNTIME_DIR": "/run/mine/", "SKATE_INSTANCE": "b.2"}
    assert read(both, uid=7).runtime_dir == "/run/mine/b.2"


def test_empty_counts_as_not_set_and_a_relative_desktop_folder_is_ignored() -> None:
    variables = {"SKATE_RUNTIME_DIR": "", "SKATE_INSTANCE": "", "SKATE_LOG_LEVEL": "", "XDG_RUNTIME_DIR": "run"}
    assert read(variables, uid=7) == read({}, uid=7)


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"XDG_STATE_HOME": "/data/", "HOME": "/people/ann"}, "/data/skate/default"),
        ({"XDG_STATE_HOME": "data", "HOME": "/people/ann"}, "/people/ann/.local/state/skate/default"),
        ({"SKATE_RUNTIME_DIR": "/run/mine", "HOME": "/people/ann"}, "/run/mine/.state/default"),
        ({"SKATE_RUNTIME_DIR": "/run/mine", "SKATE_STATE_DIR": "/var/mine/", "SKATE_INSTANCE": "b"}, "/var/mine/b"),
        ({"HOME": "nowhere"}, "/tmp/skate-7/.state/default"),
    ],
)
def test_the_state_lies_where_it_outlives_the_machine_and_where_no_other_instance_keeps_it(
    variables: dict[str, str], folder: str
) -> None:
    assert read(variables, uid=7).state_dir == folder


def test_log_level_in_any_case() -> None:
    assert read({"SKATE_LOG_LEVEL": "debug"}, uid=7).log_level == "DEBUG"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SKATE_RUNTIME_DIR", "here"),
        ("SKATE_STATE_DIR", "here"),
        ("SKATE_RUNTIME_DIR", "/" + "x" * RUNTIME_DIR_MAX),
        ("SKATE_INSTANCE", "../other"),
        ("SKATE_INSTANCE", ".hidden"),
        ("SKATE_INSTANCE", "x" * 33),
        ("SKATE_LOG_LEVEL", "LOUD"),
    ],
)
def test_a_wrong_value_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(OptionError, match=name):
        read({name: value}, uid=7)


def test_it_is_read_once() -> None:
    assert environment() is environment()
