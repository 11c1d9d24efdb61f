"""Applications: graphs of deployments, several side by side, replaced, deleted, and wrong ones."""

from __future__ import annotations

import os
import threading
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from skate import serve
from skate.core.errors import CodeError, DeployError, NotFoundError, OptionError
from tests.e2e.conftest import Deploy
from tests.e2e.notes import Gate, Notes
from tests.e2e.world import Instance, until


@pytest.fixture(scope="module")
def parts() -> Any:
    @serve.deployment
    class Child:
        def __init__(self, n: int = 0) -> None:
            self.n = n

        def __call__(self) -> tuple[int, int]:
            return self.n, os.getpid()

    @serve.deployment
    class Parent:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.args, self.kwargs = args, kwargs

        async def __call__(self) -> Any:
            return await resolved([*self.args, self.kwargs])

    async def resolved(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [await resolved(item) for item in value]
        if isinstance(value, dict):
            return {key: await resolved(item) for key, item in value.items()}
        return await value.remote() if hasattr(value, "remote") else value

    return Child, Parent


def names(app: str) -> set[str]:
    return set(serve.status().applications[app].deployments)


def test_handles_in_lists_dicts_and_tuples(deploy: Deploy, parts: Any) -> None:
    Child, Parent = parts
    app = Parent.bind(Child.bind(1), [Child.bind(2), 7], last={"deep": (Child.bind(3), {"er": Child.bind(4)})})
    first, (second, seven), kwargs = deploy(app).remote().result()
    deep = kwargs["last"]["deep"]
    assert [first[0], second[0], seven, deep[0][0], deep[1]["er"][0]] == [1, 2, 7, 3, 4]
    assert len({first[1], second[1], deep[0][1], deep[1]["er"][1]}) == 4
    assert names("a1") == {"Child", "Child_1", "Child_2", "Child_3", "Parent"}


def test_one_node_in_several_places_is_one_deployment(deploy: Deploy, parts: Any) -> None:
    Child, Parent = parts
    shared = Child.bind(5)
    value = deploy(Parent.bind(Parent.bind(shared), [shared, shared], x=shared)).remote().result()
    inner, (one, two), kwargs = value
    assert inner[0] == one == two == kwargs["x"]
    assert names("a1") == {"Child", "Parent", "Parent_1"}


def test_two_applications_side_by_side(deploy: Deploy, http: httpx.Client) -> None:
    def app(word: str) -> Any:
        @serve.deployment(name="Same")
        def same(request: Request) -> str:
            return word

        return same.bind()

    one, two = deploy(app("one"), "one"), deploy(app("two"), "two")
    assert (http.get("/one").text, http.get("/two").text) == ("one", "two")
    assert (one.remote(None).result(), two.remote(None).result()) == ("one", "two")
    serve.delete("one")
    assert (http.get("/one").status_code, http.get("/two").text) == (404, "two")
    assert set(serve.status().applications) == {"two"}
    with pytest.raises(NotFoundError, match="one"):
        serve.delete("one")


def test_redeploying_changed_code_replaces_it(deploy: Deploy, http: httpx.Client) -> None:
    def app(word: str) -> Any:
        @serve.deployment(name="Word")
        def speak(request: Request) -> str:
            return word

        return speak.bind()

    for word in ("first", "second", "third"):
        deploy(app(word))
        assert http.get("/a1").text == word


def test_redeploying_the_same_changes_nothing(deploy: Deploy, parts: Any) -> None:
    Child, _ = parts
    before = deploy(Child.bind(3)).remote().result()
    assert deploy(Child.bind(3)).remote().result() == before
    after = deploy(Child.bind(4)).remote().result()
    assert after[0] == 4 and after[1] != before[1]


def test_an_application_may_lose_and_gain_deployments(deploy: Deploy, parts: Any) -> None:
    Child, Parent = parts
    deploy(Parent.bind(Child.bind(1), Child.bind(2)))
    handle = deploy(Parent.bind(Child.options(name="Other").bind(3)))
    assert handle.remote().result()[0][0] == 3
    until(lambda: names("a1") == {"Other", "Parent"})


def test_deleting_lets_requests_finish_and_calls_del(
    deploy: Deploy, notes: Notes, gate: Gate, instance: Instance
) -> None:
    @serve.deployment
    class Slow:
        async def __call__(self) -> str:
            notes.add("in")
            await gate.passed()
            notes.add("out")
            return "finished"

        def __del__(self) -> None:
            notes.add("del")

    response = deploy(Slow.bind()).remote()
    until(lambda: notes.has("in"))
    pid = serve.status().applications["a1"].deployments["Slow"].replicas[0].pid

    deleting = threading.Thread(target=serve.delete, args=("a1",))
    deleting.start()
    until(lambda: not_running("a1"))
    gate.open()
    assert response.result(timeout_s=5) == "finished"
    deleting.join(10)
    assert notes.read() == ["in", "out", "del"]
    assert not os.path.exists(f"/proc/{pid}")


def not_running(name: str) -> bool:
    app = serve.status().applications.get(name)
    return app is None or app.status == "DELETING"


def test_a_grace_that_is_over_ends_requests(deploy: Deploy, notes: Notes, gate: Gate) -> None:
    @serve.deployment(graceful_shutdown_timeout_s=0.1)
    class Slow:
        async def __call__(self) -> str:
            notes.add("in")
            try:
                await gate.passed()
            finally:
                notes.add("stopped")
            return "finished"

    response = deploy(Slow.bind()).remote()
    until(lambda: notes.has("in"))
    serve.delete("a1")
    with pytest.raises(Exception, match="grace period"):
        response.result(timeout_s=5)
    assert notes.has("stopped")


def test_user_config_reaches_reconfigure(deploy: Deploy) -> None:
    @serve.deployment(user_config={"factor": 3})
    class Configured:
        def reconfigure(self, config: dict[str, int]) -> None:
            self.factor = config["factor"]

        async def __call__(self, x: int) -> int:
            return x * self.factor

    assert deploy(Configured.bind()).remote(5).result() == 15
    assert deploy(Configured.options(user_config={"factor": 4}).bind()).remote(5).result() == 20


def test_blocking_start_tells_its_status(deploy: Deploy, instance: Instance) -> None:
    @serve.deployment
    class Plain:
        def __call__(self) -> int:
            return 1

    seen: list[str] = []
    serve.run(Plain.bind(), name="a1", on_status=lambda status: seen.append(status.applications["a1"].status))
    assert seen[-1] == "RUNNING" and "DEPLOYING" in seen
    serve.delete("a1")


# -- bad input --------------------------------------------------------------------------------------


def test_a_constructor_that_raises(deploy: Deploy, http: httpx.Client) -> None:
    def app(fails: bool) -> Any:
        @serve.deployment(name="Model", max_constructor_retry_count=2)
        class Model:
            def __init__(self) -> None:
                if fails:
                    self.load_weights()

            def load_weights(self) -> None:
                raise FileNotFoundError("weights.bin is not there")

            def __call__(self, request: Request) -> str:
                return "works"

        return Model.bind()

    with pytest.raises(DeployError) as raised:
        deploy(app(True))
    text = str(raised.value)
    assert "weights.bin is not there" in text and "self.load_weights()" in text and "Model" in text
    failed = serve.status().applications["a1"]
    assert failed.status == "DEPLOY_FAILED" and "weights.bin" in failed.message
    answer = http.get("/a1")
    assert answer.status_code == 503 and "Traceback" not in answer.text
    with pytest.raises(Exception, match="Model"):
        serve.get_deployment_handle("Model", "a1").remote(None).result(timeout_s=5)
    deploy(app(False))
    assert http.get("/a1").text == "works"
    assert serve.status().applications["a1"].status == "RUNNING"


def test_a_failing_new_version_leaves_the_old_one_serving(deploy: Deploy, http: httpx.Client) -> None:
    def app(fails: bool) -> Any:
        @serve.deployment(name="Model", max_constructor_retry_count=1)
        class Model:
            def __init__(self) -> None:
                if fails:
                    raise ValueError("new and bad")

            def __call__(self, request: Request) -> str:
                return "old"

        return Model.bind()

    deploy(app(False))
    with pytest.raises(DeployError, match="new and bad"):
        deploy(app(True))
    assert http.get("/a1").text == "old"


def test_a_constructor_that_fails_twice_and_then_works(deploy: Deploy, notes: Notes) -> None:
    @serve.deployment
    class Shaky:
        def __init__(self) -> None:
            notes.add("try")
            if not notes.has("try", 3):
                raise ConnectionError("not yet")

        def __call__(self) -> str:
            return "works"

    assert deploy(Shaky.bind()).remote().result() == "works"
    assert notes.read() == ["try"] * 3
    assert serve.status().applications["a1"].status == "RUNNING"


def test_a_constructor_that_ends_the_process(deploy: Deploy) -> None:
    @serve.deployment(max_constructor_retry_count=1)
    class Exits:
        def __init__(self) -> None:
            os._exit(3)

    with pytest.raises(DeployError, match=r"3"):
        deploy(Exits.bind())


def test_a_module_that_does_not_import_in_the_replica(
    deploy: Deploy, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, http: httpx.Client
) -> None:
    module = tmp_path / "only_here.py"
    text = "\n".join(
        [
            "import os",
            "from skate import serve",
            "{}",
            "@serve.deployment(max_constructor_retry_count=1)",
            "class A:",
            "    def __call__(self, request):",
            "        return 'here'",
        ]
    )
    check = f"if os.getpid() != {os.getpid()}: import does_not_exist\n"
    module.write_text(text.format(check))
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_here  # type: ignore[import-not-found]

    with pytest.raises(DeployError, match=r"does_not_exist") as raised:
        deploy(only_here.A.bind())
    assert "only_here" in str(raised.value)
    module.write_text(text.format(""))
    deploy(only_here.A.bind())
    assert http.get("/a1").text == "here"


def test_wrong_options_and_arguments_are_said_before_anything_runs(instance: Instance, parts: Any) -> None:
    Child, _ = parts
    before = serve.status().applications
    with pytest.raises(OptionError, match="num_replica"):
        serve.deployment(num_replica=2)
    with pytest.raises(OptionError, match="max_ongoing_requests"):
        Child.options(max_ongoing_requests=0)
    with pytest.raises(TypeError, match="bind"):
        Child.bind(1, 2, 3)
    with pytest.raises(TypeError, match=r"bind"):
        serve.run(Child)
    with pytest.raises(OptionError, match="'x'"):
        serve.run(Child.bind(), route_prefix="x")
    with pytest.raises(OptionError, match="name"):
        serve.run(Child.bind(), name="")
    with pytest.raises(CodeError, match="lock"):
        serve.run(Child.bind(threading.Lock()))
    assert serve.status().applications == before
