"""Commands that change applications, against an instance in memory: what they ask for, say and end with."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from skate.cli import main, waiting
from skate.cli.inbox import Inbox
from skate.core.config import AppConfig, ApplyRequest, ServeConfig
from skate.core.errors import NotFoundError, OptionError
from skate.core.specs import (
    ApplicationStatus,
    AppPlan,
    Change,
    DeploymentStatus,
    ProxyStatus,
    ReplicaPhase,
    ReplicaStatus,
    Revision,
    ServeStatus,
)
from tests.cli.fakes import FakeInstance, install, with_app

FILE = """
applications:
  - name: one
    import_path: pack:app
  - name: two
    import_path: pack:other
    route_prefix: /two
"""


def model(app: str, *phases: ReplicaPhase) -> dict[str, DeploymentStatus]:
    replicas = tuple(ReplicaStatus(f"{app}/Model#{n}", phase, 10 + n, 0.0) for n, phase in enumerate(phases))
    return {"Model": DeploymentStatus("Model", "UPDATING", "", 2, replicas)}


def starting(name: str, revision: int, prefix: str = "/") -> ApplicationStatus:
    return ApplicationStatus(name, "DEPLOYING", "", prefix, 0.0, model(name, "loading", "starting"), revision)


BEGINNING = ServeStatus(
    proxies={"0": ProxyStatus("0", "HEALTHY", 2, "127.0.0.1:80")},
    applications={"one": starting("one", 3), "two": starting("two", 1, "/two")},
)
ONE_RUNS = with_app(BEGINNING, "one", status="RUNNING", deployments=model("one", "ready", "ready"))
BOTH_RUN = with_app(ONE_RUNS, "two", status="RUNNING")
TWO_FAILED = with_app(ONE_RUNS, "two", status="DEPLOY_FAILED", message="Model: it failed.\nValueError: no model")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeInstance:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "apps.yaml").write_text(FILE)
    (tmp_path / "pack.py").write_text("raise RuntimeError('never imported here')")
    made = install(monkeypatch, str(tmp_path))
    made.controller.numbers = {"one": 3, "two": 1}
    made.controller.statuses = [BEGINNING, ONE_RUNS, BOTH_RUN]
    return made


def invoke(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def order_of(instance: FakeInstance, what: str = "apply") -> ApplyRequest:
    ((asked, request),) = instance.controller.asked
    assert asked == what
    assert isinstance(request, ApplyRequest)
    return request


# -- deploy -------------------------------------------------------------------------------------------


def test_a_file_is_applied_and_waited_for(here: FakeInstance) -> None:
    result = invoke("deploy", "apps.yaml")
    assert result.exit_code == 0, result.output
    order = order_of(here)
    assert [app.name for app in order.config.applications] == ["one", "two"]
    assert order.sys_path[0] == order.cwd == os.getcwd()
    assert order.prune is False
    assert order.by.startswith(f"skate deploy apps.yaml in {os.getcwd()} (pid ")
    lines = result.stdout.splitlines()
    assert "two/Model#0  loading" in lines
    ready = [line for line in lines if line.startswith("Application ")]
    assert ready[0].startswith("Application one is ready after") and ready[0].endswith("http://127.0.0.1:80/")
    assert ready[1].startswith("Application two is ready after")


def test_an_import_path_becomes_one_application(here: FakeInstance) -> None:
    here.controller.numbers = {"mine": 3}
    words = ("deploy", "pack:app", "size=3", "--name", "mine", "--route-prefix", "/mine", "--prune", "--no-wait")
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    order = order_of(here)
    assert order.config == ServeConfig((AppConfig("mine", "pack:app", "/mine", {"size": "3"}),))
    assert order.prune
    assert "Stored: mine" in result.stdout and here.controller.watched == 0


def test_an_application_that_fails_is_exit_code_1_with_its_reason(here: FakeInstance) -> None:
    here.controller.statuses = [BEGINNING, TWO_FAILED]
    result = invoke("deploy", "apps.yaml")
    assert result.exit_code == 1
    assert "Application one is ready" in result.stdout
    assert "error: application 'two' did not start. Model: it failed." in result.stderr
    assert "ValueError: no model" in result.stderr


def test_an_application_that_somebody_else_replaced_meanwhile_is_a_failure(here: FakeInstance) -> None:
    here.controller.statuses = [BEGINNING, with_app(BOTH_RUN, "two", deployed_by="skate deploy other.yaml (pid 7)")]
    result = invoke("deploy", "apps.yaml")
    assert result.exit_code == 1
    assert "'two' was replaced before it was ready, by skate deploy other.yaml (pid 7)" in result.stderr
    assert "goes on serving" not in result.stdout


def test_what_is_being_built_is_not_there_yet(here: FakeInstance) -> None:
    built_again = with_app(ONE_RUNS, "one", status="DEPLOYING", message="importing pack:app; what ran before goes on")
    here.controller.statuses = [built_again, BOTH_RUN]
    assert invoke("deploy", "apps.yaml").exit_code == 0


def test_a_rollback_waits_for_its_revision(here: FakeInstance) -> None:
    old = with_app(BOTH_RUN, "one", revision=2)
    here.controller.statuses = [old, with_app(old, "one", status="DEPLOY_FAILED"), BOTH_RUN]
    result = invoke("rollback", "one")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "revision 3 is the one before that worked" in result.stdout


def test_a_deleted_application_is_a_failure(here: FakeInstance) -> None:
    here.controller.statuses = [BEGINNING, replace(ONE_RUNS, applications={"one": ONE_RUNS.applications["one"]})]
    result = invoke("deploy", "apps.yaml")
    assert result.exit_code == 1
    assert "application 'two' was deleted while it was starting" in result.stderr


def test_the_wait_goes_over_to_the_next_controller(here: FakeInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    here.controller.losses = 2
    monkeypatch.setattr("skate.cli.following.running_pid", lambda _: 1)
    monkeypatch.setattr("skate.cli.following.AGAIN_S", 0.0)
    assert invoke("deploy", "apps.yaml").exit_code == 0
    assert here.controller.watched == 3


def test_the_end_of_the_instance_ends_the_wait(here: FakeInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    here.controller.losses = 1
    monkeypatch.setattr("skate.cli.following.running_pid", lambda _: None)
    result = invoke("deploy", "apps.yaml")
    assert result.exit_code == 1
    assert "error: the instance has ended" in result.stderr


def test_the_end_of_the_time_leaves_the_deploy_going(here: FakeInstance) -> None:
    here.controller.statuses = [BEGINNING, ONE_RUNS]
    result = invoke("deploy", "apps.yaml", "--timeout", "0.3")
    assert result.exit_code == 1
    assert "not ready within 0.3 s; the deploy of two goes on" in result.stderr


def test_ctrl_c_leaves_the_deploy_going(here: FakeInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Inbox[object]):
        interrupted = True

    monkeypatch.setattr(waiting, "Inbox", Interrupted)
    here.controller.statuses = [BEGINNING]
    result = invoke("deploy", "apps.yaml")
    assert result.exit_code == 130
    assert "interrupted; the deploy of one, two goes on, see how with: skate status" in result.stderr
    assert [what for what, *_ in here.controller.asked] == ["apply"]


def test_somebody_elses_application_is_not_replaced_in_silence(here: FakeInstance) -> None:
    own = f"skate deploy apps.yaml in {os.getcwd()} (pid 1)"
    mixed = with_app(with_app(BOTH_RUN, "one", deployed_by="python train.py in ~/x (pid 7)"), "two", deployed_by=own)
    here.controller.statuses = [mixed]
    result = invoke("deploy", "apps.yaml")
    assert "warning: application one was deployed by python train.py in ~/x (pid 7); it is replaced" in result.stderr
    assert "application two was" not in result.stderr


def test_what_only_counts_at_the_start_of_an_instance_is_not_dropped_in_silence(here: FakeInstance) -> None:
    Path("apps.yaml").write_text("http_options: {port: 1}\nproxy_location: Disabled\n" + FILE)
    said = "warning: http_options and proxy_location of apps.yaml count when an instance is started; this one keeps its"
    assert said in invoke("deploy", "apps.yaml").stderr


def test_what_the_instance_refuses_is_one_line(here: FakeInstance) -> None:
    here.controller.refusal = OptionError("route_prefix '/' is in use")
    result = invoke("deploy", "apps.yaml")
    assert (result.exit_code, result.stderr) == (1, "error: route_prefix '/' is in use\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("apps.yaml", "a=1"), "write the arguments (a) under args in it"),
        (("apps.yaml", "--name", "x"), "write there what --name would say"),
        (("pack:app", "word"), "write key=value"),
        (("pack:app", "--timeout", "0"), "--timeout"),
    ],
)
@pytest.mark.parametrize("command", ["deploy"])
def test_words_that_do_not_fit_are_exit_code_2(
    here: FakeInstance, command: str, words: tuple[str, ...], said: str
) -> None:
    result = invoke(command, *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not here.controller.asked


def test_a_wrong_file_is_said_and_nothing_is_asked(here: FakeInstance) -> None:
    Path("apps.yaml").write_text("applications: [{name: one, import_pat: a:b}]")
    result = invoke("deploy", "apps.yaml")
    assert result.exit_code == 1
    assert "import_pat" in result.stderr and "apps.yaml" in result.stderr
    assert not here.controller.asked


def test_without_an_instance_it_says_how_to_start_one() -> None:
    result = invoke("deploy", "pack:app")
    assert result.exit_code == 1
    assert "skate start" in result.stderr


# -- plan ---------------------------------------------------------------------------------------------

PLAN = AppPlan(
    "one",
    "change",
    (
        Change("Model", "restart", ("code", "init arguments")),
        Change("Front", "leave"),
        Change("Old", "remove", ("not in the application any more",)),
    ),
)


def test_a_plan_is_a_line_for_each_deployment(here: FakeInstance) -> None:
    here.controller.plans = [PLAN, AppPlan("two", "leave")]
    result = invoke("plan", "apps.yaml", "--prune")
    assert result.exit_code == 0
    assert order_of(here, "plan").prune
    assert result.stdout.splitlines() == [
        "Application one changes",
        "  Model  restart  code; init arguments",
        "  Front  leave",
        "  Old    remove   not in the application any more",
        "Application two stays as it is",
    ]


@pytest.mark.parametrize(
    ("plans", "code"),
    [
        ([AppPlan("one", "leave")], 0),
        ([AppPlan("one", "leave"), PLAN], 2),
        ([AppPlan("two", "remove")], 2),
        ([AppPlan("one", "change", error="module 'pack' does not import")], 1),
    ],
)
def test_the_exit_code_of_a_plan(here: FakeInstance, plans: list[AppPlan], code: int) -> None:
    here.controller.plans = plans
    assert invoke("plan", "apps.yaml", "--exit-code").exit_code == code
    assert invoke("plan", "apps.yaml").exit_code == (1 if code == 1 else 0)


def test_a_plan_for_programs(here: FakeInstance) -> None:
    here.controller.plans = [PLAN]
    assert json.loads(invoke("plan", "apps.yaml", "--json").stdout)[0]["changes"][0]["action"] == "restart"


# -- one application ----------------------------------------------------------------------------------


def test_scale(here: FakeInstance) -> None:
    result = invoke("scale", "one/Model", "5")
    assert (result.exit_code, result.stdout) == (0, "one/Model: 2 → 5 replicas\n")
    ((*asked, by),) = here.controller.asked
    assert asked == ["scale", "one", "Model", 5]
    assert by.startswith("skate scale one/Model 5 in ")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("one", "5"), 2, "write application/deployment"),
        (("one/Model", "-1"), 2, ""),
        (("nix/Model", "5"), 1, "no application 'nix' is running; running are: one, two"),
        (("one/Nix", "5"), 1, "has no deployment 'Nix'; it has: Model"),
    ],
)
def test_scale_of_what_is_not_there(here: FakeInstance, words: tuple[str, ...], code: int, said: str) -> None:
    result = invoke("scale", *words)
    assert result.exit_code == code
    assert said in result.stderr
    assert not here.controller.asked


def test_history_shows_which_versions_are_new(here: FakeInstance) -> None:
    here.controller.revisions = [
        Revision("one", 1, 0.0, "deploy", "skate deploy a (pid 1)", {"Model": "abcdefghijk", "Front": "f1"}),
        Revision("one", 2, 0.0, "deploy", "", {"Model": "b2", "Front": "f1"}),
        Revision("one", 3, 0.0, "scale", "", {"Model": "b2", "Front": "f1"}),
        Revision("one", 4, 0.0, "rollback to 1", "", {"Model": "abcdefghijk"}, current=True),
    ]
    lines = invoke("history", "one").stdout.splitlines()
    assert lines[0].split() == ["revision", "when", "cause", "versions", "by"]
    assert "Model abcdefgh, Front f1" in lines[1] and lines[1].endswith("skate deploy a (pid 1)")
    assert "Model b2" in lines[2] and "Front" not in lines[2]
    assert "no version changed" in lines[3]
    assert "current" in lines[4] and "rollback to 1" in lines[4] and "Model abcdefgh, without Front" in lines[4]
    assert json.loads(invoke("history", "one", "--json").stdout)[3]["current"] is True


def test_history_of_nothing(here: FakeInstance) -> None:
    result = invoke("history", "nix")
    assert (result.exit_code, result.stderr) == (1, "error: there is no application 'nix'\n")


@pytest.mark.parametrize(("words", "to", "said"), [((), None, "what serves already"), (("--to", "1"), 1, "revision 1")])
def test_a_rollback_waits_like_a_deploy(here: FakeInstance, words: tuple[str, ...], to: int | None, said: str) -> None:
    result = invoke("rollback", "one", *words)
    assert result.exit_code == 0
    ((*asked, by),) = here.controller.asked
    assert asked == ["rollback", "one", to]
    assert by.startswith("skate rollback one in ")
    assert result.stdout.startswith(f"Application one: revision 3 is {said}\n")
    assert "Application one is ready after" in result.stdout


def test_a_rollback_that_cannot_be(here: FakeInstance) -> None:
    here.controller.refusal = NotFoundError("revision 9 of application 'one' is not kept")
    result = invoke("rollback", "one", "--to", "9", "--no-wait")
    assert (result.exit_code, result.stderr) == (1, "error: revision 9 of application 'one' is not kept\n")


def test_delete(here: FakeInstance) -> None:
    result = invoke("delete", "two")
    assert (result.exit_code, result.stdout) == (0, "Application two is deleted.\n")
    assert here.controller.asked == [("delete", "two", None)]
