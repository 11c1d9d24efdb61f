"""The command line as such: what is taken, what is refused with exit code 2, and how errors look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

import skate
from skate.authoring.traces import shortened
from skate.cli import main, table
from skate.cli.failure import Failure
from skate.controlplane import instance as instances
from skate.core.errors import NotRunningError, OptionError
from skate.core.specs import (
    AdminOptions,
    ApplicationStatus,
    AutoscalingStatus,
    CrashLoop,
    DeploymentStatus,
    HttpOptions,
    LedgerReport,
    ProxyStatus,
    ReplicaStatus,
    ScalingDecision,
    ServeStatus,
)
from tests.cli.world import HELLO


def invoke(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def test_version_and_help() -> None:
    assert skate.__version__ in invoke("--version").output
    for words in (("-h",), ("--help",), ("run", "-h")):
        assert invoke(*words).exit_code == 0
    assert "spec" not in invoke("-h").output.replace("specif", "")


@pytest.mark.parametrize(
    "words",
    [
        ("nix",),
        ("run",),
        ("run", "app:app", "--port", "x"),
        ("run", "app:app", "--port", "65536"),
        ("run", "app:app", "--proxies", "0"),
        ("run", "app:app", "word"),
        ("run", "app:app", "=1"),
        ("run", "app:app", "a=1", "a=2"),
        ("delete",),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(words: tuple[str, ...]) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_without_a_command_the_help_is_shown() -> None:
    assert "Commands:" in invoke().output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "nowhere:app"), "error: there is no module 'nowhere'"),
        (("run", "app.py"), "error: 'app.py' names a file"),
        (("status",), "error: no Skate instance is running"),
        (("start", "--preload", "not_there"), "error: --preload not_there"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(words: tuple[str, ...], said: str) -> None:
    result = invoke(*words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(said) and result.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [("-v", "run", "nowhere:app"), ("run", "-v", "nowhere:app")])
def test_v_shows_the_traceback(words: tuple[str, ...]) -> None:
    assert "Traceback (most recent call last)" in invoke(*words).stderr


def test_bad_names_and_prefixes_are_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "good_app.py").write_text(HELLO)
    for option, words in (("--name=a/b", "name='a/b'"), ("--route-prefix=api", "write '/api'")):
        result = invoke("run", "good_app:app", "--app-dir", str(tmp_path), option)
        assert result.exit_code == 1
        assert words in result.stderr


# -- errors as text -----------------------------------------------------------------------------------


def traceback_of(file: str) -> str:
    return (
        "it failed. The last error:\nTraceback (most recent call last):\n"
        f'  File "{Path(skate.__file__).parent}/serve.py", line 1, in run\n    call()\n    ^^^^^^\n'
        f'  File "{file}", line 7, in load\n    raise ValueError("x")\nValueError: x\n'
    )


def test_of_a_traceback_the_users_frames_stay() -> None:
    said = shortened(traceback_of("/somewhere/app.py"))
    assert said == (
        "it failed. The last error:\n"
        '  File "/somewhere/app.py", line 7, in load\n    raise ValueError("x")\nValueError: x'
    )


def test_paths_below_the_working_directory_are_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert 'File "app.py", line 7' in shortened(traceback_of(f"{tmp_path}/app.py"))


def test_a_mistake_of_ours_is_said_to_be_one() -> None:
    assert "should not happen" in Failure(KeyError("x"), False).message
    assert Failure(OptionError("port=x: takes a number"), False).message == "port=x: takes a number"


# -- status -------------------------------------------------------------------------------------------

STATUS = ServeStatus(
    controller_pid=11,
    proxies={"0": ProxyStatus("0", "HEALTHY", 12, "0.0.0.0:8000")},
    applications={
        "default": ApplicationStatus(
            "default",
            "DEPLOY_FAILED",
            "Bad: no more are tried. The last error:\nValueError: x",
            "/api",
            100.0,
            {
                "Bad": DeploymentStatus("Bad", "DEPLOY_FAILED", "", 1),
                "Good": DeploymentStatus(
                    "Good", "HEALTHY", "", 2, (ReplicaStatus("default/Good#4", "ready", 13, 4.0),)
                ),
            },
        )
    },
    calls=LedgerReport(accepted=1003, open=1, ok=1000, lost=2),
)


def test_the_table_shows_everything() -> None:
    lines = table.lines(STATUS, 10, 160.0)
    text = "\n".join(lines)
    for words in (
        "supervisor pid 10, controller pid 11",
        "http://0.0.0.0:8000",
        "http://localhost:8000/api/",
        "deployed 60 s ago",
        "1 of 2 ready",
        "#4",
        "pid 13",
        "ValueError: x",
    ):
        assert words in text
    assert lines[-1].split() == ["1003", "1", "1000", "0", "0", "0", "0", "2"]
    assert len(lines[-2]) == len(lines[-1])


COUNTS = {
    "default/Good": LedgerReport(accepted=1003, open=3, ok=998, lost=2, queued=1, started=2, retried=4),
    "(unknown)": LedgerReport(accepted=1, refused=1),
}


def test_calls_by_deployment_line_by_line() -> None:
    lines = table.calls_lines(COUNTS)
    assert [line.split()[0] for line in lines] == ["deployment", "default/Good", "(unknown)", "total"]
    assert lines[1].split()[1:] == ["1003", "1", "0", "2", "998", "0", "0", "0", "0", "2", "4"]
    assert lines[3].split()[1:] == ["1004", "1", "0", "2", "998", "0", "1", "0", "0", "2", "4"]
    assert len({len(line) for line in lines}) == 1
    assert table.calls_lines({})[1].split() == ["total", *("0" * 11)]
    assert len(table.calls_lines(table.counts_of(ServeStatus(calls_by_deployment=COUNTS), "default"))) == 2


def test_an_empty_instance_without_http() -> None:
    text = "\n".join(table.lines(ServeStatus(), None, 0.0))
    assert "runs without HTTP" in text
    assert "No applications" in text


# -- the REST API -------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What an instance would have been started with; none is."""
    given: dict[str, Any] = {}

    def start(http: HttpOptions, **options: Any) -> None:
        given.update(options)
        raise NotRunningError("not in this test")

    monkeypatch.setattr(instances, "start", start)
    return given


@pytest.mark.parametrize(
    ("words", "admin"),
    [
        ((), AdminOptions()),
        (("--admin-port", "0"), AdminOptions(port=0)),
        (("--admin-host", "::1"), AdminOptions(host="::1")),
        (("--no-admin",), None),
    ],
)
def test_an_instance_that_stays_has_a_rest_api_unless_it_shall_not(
    started: dict[str, Any], words: tuple[str, ...], admin: AdminOptions | None
) -> None:
    invoke("start", *words)
    assert started["admin"] == admin


def test_one_in_the_foreground_has_it_when_asked(started: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "admin_app.py").write_text(HELLO)
    run = ("run", "admin_app:app", "--app-dir", str(tmp_path))
    invoke(*run)
    assert started["admin"] is None
    invoke(*run, "--admin-port", "8266")
    assert started["admin"] == AdminOptions(port=8266)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--admin-host", "0.0.0.0"), 1, "set a token in SKATE_ADMIN_TOKEN"),
        (("--admin-port", "65536"), 1, "port=65536"),
        (("--admin-token-file", "/nowhere"), 1, "cannot be read"),
        (("--admin-port", "1", "--no-admin"), 2, "contradicts"),
        (("--admin-token", "secret"), 2, "No such option"),
    ],
)
def test_a_rest_api_open_to_others_is_refused(
    started: dict[str, Any], words: tuple[str, ...], code: int, said: str
) -> None:
    result = invoke("start", *words)
    assert (result.exit_code, started) == (code, {})
    assert said in result.stderr


def test_where_the_rest_api_is_or_why_it_is_not_stands_in_the_table() -> None:
    admin = ProxyStatus("admin", "UNHEALTHY", 0, "127.0.0.1:8265", "another process uses this port")
    lines = [click.unstyle(line) for line in table.lines(ServeStatus(admin=admin), None, 0.0)]
    assert "Proxies   none, this instance runs without HTTP" in lines
    assert "REST  UNHEALTHY  http://127.0.0.1:8265    another process uses this port" in lines


# -- what needs a look ----------------------------------------------------------------------------------


def of_deployment(**given: Any) -> str:
    """How a deployment is shown 3 s after the status was made, at wall time 100."""
    app = replace(STATUS.applications["default"], deployments={"A": DeploymentStatus("A", "HEALTHY", "", 2, **given)})
    return click.unstyle("\n".join(table.application_lines(STATUS, app, 100.0, 3.0)))


def test_replicas_that_are_not_well_are_told_from_the_others() -> None:
    old = ReplicaStatus("default/A#1", "ready", 13, 4.0, version="v1")
    sick = ReplicaStatus("default/A#2", "ready", 14, 4.0, version="v2", strikes=2)
    text = of_deployment(replicas=(old, sick), version="v2")
    assert "#1  ready    7.0 s         pid 13  of the version before" in text
    assert "#2  ready    7.0 s         pid 14  2 of 3 health checks failed" in text


def test_many_that_are_well_are_counted() -> None:
    well = [ReplicaStatus(f"default/A#{n}", "ready", n, 4.0) for n in range(40)]
    loading = ReplicaStatus("default/A#99", "loading", 99, 4.0)
    text = of_deployment(replicas=(*well, loading))
    assert "#99" in text and "#7" not in text
    assert "40 of 2 ready" in text and "and 40 more (--json has them all)" in text


def test_autoscaling_says_why() -> None:
    seen = AutoscalingStatus(
        1, 10, "ongoing_requests", 8.25, 3.0, 5.6, "up to 6 in 12 s", "ZeroDivisionError: x",
        (ScalingDecision(90.0, 2, 4, "5.6 wanted for 30 s"),),
    )  # fmt: skip
    text = of_deployment(autoscaling=seen)
    for words in (
        "autoscaled 1 to 10 by ongoing_requests: 8.25 ongoing + 3 queued, desired 5.6, waits: up to 6 in 12 s",
        "10 s ago 2 → 4: 5.6 wanted for 30 s",
        "the policy failed: ZeroDivisionError: x",
    ):
        assert words in text


def test_a_crash_loop_counts_down_and_has_its_last_error() -> None:
    text = of_deployment(crash_loop=CrashLoop(5, 7.5, f"{traceback_of('/x/app.py')}"))
    assert "crash loop: 5 failures within a minute, next try in 4.5 s: it failed: ValueError: x" in text
    text = of_deployment(crash_loop=CrashLoop(5, 2.5, "replica a/b#1 ended with exit code 3"))  # was told 3 s ago
    assert "within a minute, being tried again: replica a/b#1 ended" in text
    assert "within a minute, no more tries" in of_deployment(crash_loop=CrashLoop(5, None, "x"))


def test_who_deployed_it() -> None:
    app = replace(STATUS.applications["default"], revision=3, deployed_by="python train.py in ~/x (pid 7)")
    text = "\n".join(table.application_lines(STATUS, app, 160.0))
    assert "revision 3, deployed 60 s ago by python train.py in ~/x (pid 7)" in text
