"""Graphs: names, order, references and versions; what is no graph is told with both places."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate.authoring import code
from skate.authoring.deployment import Application, Deployment, deployment
from skate.authoring.graph import build, nodes
from skate.authoring.ingress import ingress
from skate.autoscaling import requests_per_second_policy
from skate.core.errors import CodeError, GraphError, OptionError
from skate.core.specs import AppSpec, HandleRef
from tests.controlplane import policies_of_users as policies


@deployment
class Leaf:
    def __init__(self, value: Any = None) -> None:
        self.value = value


@deployment
class Tree:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


@deployment
def function(request: Any) -> int:
    return 1


async def _asgi(scope: Any, receive: Any, send: Any) -> None: ...


@ingress(_asgi)
class Web:
    def __init__(self, *args: Any) -> None: ...


@ingress(_asgi)
class OtherWeb:
    def __init__(self, *args: Any) -> None: ...


def names(app: Application[Any]) -> list[str]:
    return [spec.name for spec in build(app).deployments]


def init(app: Application[Any], position: int = -1) -> Any:
    return code.loads(build(app).deployments[position].init)


def test_a_single_deployment_is_an_application() -> None:
    spec = build(Leaf.bind(3), "shop", "/shop", sys_path=("/a", "/b", "/a"), cwd="/c")
    assert (spec.name, spec.route_prefix, spec.ingress) == ("shop", "/shop", "Leaf")
    assert (spec.sys_path, spec.cwd) == (("/a", "/b"), "/c")
    (only,) = spec.deployments
    assert (only.key, only.kind, only.ingress, only.asgi) == ("shop/Leaf", "class", True, False)
    assert code.loads(only.init) == ((3,), {})
    assert code.load(only.code) is Leaf.func_or_class
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=AppSpec) == spec


def test_replicas_look_where_this_process_looks() -> None:
    spec = build(Leaf.bind())
    assert spec.cwd == os.getcwd()
    assert all(os.path.isabs(entry) for entry in spec.sys_path)
    assert os.path.abspath(sys.path[0]) in spec.sys_path


def test_nodes_become_references_wherever_they_are() -> None:
    a, b, c, d, e = (Leaf.bind(number) for number in range(5))
    args, kwargs = init(Tree.bind(a, [b, 1], key={"x": (c, {"y": d})}, many={e}))
    refs = [HandleRef("default", name) for name in ("Leaf", "Leaf_1", "Leaf_2", "Leaf_3", "Leaf_4")]
    assert args == (refs[0], [refs[1], 1])
    assert kwargs == {"key": {"x": (refs[2], {"y": refs[3]})}, "many": {refs[4]}}


def test_names_are_given_bottom_up_from_left_to_right() -> None:
    inner = Tree.bind(Leaf.bind(1))
    assert names(Tree.bind(inner, Leaf.bind(2), function.bind(), [function.bind()])) == [
        "Leaf", "Tree", "Leaf_1", "function", "function_1", "Tree_1",
    ]  # fmt: skip


def test_a_shared_node_is_one_deployment() -> None:
    shared = Leaf.bind()
    app = Tree.bind(Tree.bind(shared), Tree.bind([shared]), shared)
    assert names(app) == ["Leaf", "Tree", "Tree_1", "Tree_2"]
    assert init(app)[0][2] == HandleRef("default", "Leaf")


def test_names_of_users_stay_and_the_others_give_way() -> None:
    app = Tree.bind(Leaf.bind(), Leaf.bind(), Leaf.options(name="Leaf_1").bind(), Leaf.options(name="Tree").bind())
    assert names(app) == ["Leaf", "Leaf_2", "Leaf_1", "Tree", "Tree_1"]
    assert build(app).ingress == "Tree_1"


def test_two_nodes_with_the_same_given_name_are_refused() -> None:
    named = Leaf.options(name="same")
    with pytest.raises(GraphError, match=r"'same': same.bind\(1\) .* and same.bind\(2\) .*\.options\(name="):
        build(Tree.bind(named.bind(1), named.bind(2)))
    twice = named.bind(1)
    assert names(Tree.bind(twice, twice)) == ["same", "Tree"]


def test_a_second_ingress_is_refused_with_both() -> None:
    web, other = deployment(Web), deployment(OtherWeb)
    assert [spec.asgi for spec in build(web.bind(Leaf.bind())).deployments] == [False, True]
    with pytest.raises(GraphError, match=r"'Web' .*Web\) and 'OtherWeb'"):
        build(web.bind(other.bind()))
    with pytest.raises(GraphError, match="at one place only"):
        build(Tree.bind(web.bind(), other.bind()))
    assert names(Tree.bind(web.bind())) == ["Web", "Tree"]


@pytest.mark.parametrize(
    ("target", "said"),
    [(Leaf, r"pass Leaf.bind"), (Web, "put @serve.deployment on it"), (3, "not 3"), (None, "not None")],
)
def test_what_is_not_bound_is_no_application(target: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        build(target)


def test_name_and_prefix_are_checked() -> None:
    with pytest.raises(OptionError, match="write '/x'"):
        build(Leaf.bind(), route_prefix="x")
    with pytest.raises(OptionError, match="application"):
        build(Leaf.bind(), "")
    assert build(Leaf.bind(), route_prefix=None).route_prefix is None


class Holder:
    def __init__(self, inner: Any) -> None:
        self.inner = inner


def test_a_hidden_node_is_told() -> None:
    for hidden in (Holder(Leaf.bind()), {Leaf.bind(): 1}):
        with pytest.raises(GraphError, match=r"deployment 'Tree': Leaf.bind\(\) .*not inside other objects"):
            build(Tree.bind(hidden))


def test_an_argument_that_does_not_pickle_is_named() -> None:
    with pytest.raises(CodeError, match=r"deployment 'Tree': argument 2 of Tree.bind, <unlocked .*cannot pickle"):
        build(Tree.bind(1, threading.Lock()))
    with pytest.raises(CodeError, match=r"'Tree_1': argument 'key' of Tree.bind"):
        build(Tree.bind(Tree.bind(), key=[threading.Lock()]))


def test_arguments_without_nodes_are_not_copied_and_may_contain_themselves() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    ((back, same),) = (init(Tree.bind(loop, loop))[0],)
    assert back is same and back[1] is back


def test_version_and_config_follow_what_a_change_does_to_replicas() -> None:
    def hashes(bound: Application[Any]) -> tuple[str, str]:
        spec = build(bound).deployments[-1]
        return spec.version, spec.config

    first = hashes(Leaf.bind(1))
    assert all(first) and first == hashes(Leaf.bind(1))
    assert first == hashes(Leaf.options(num_replicas=3, max_queued_requests=9).bind(1))  # nothing
    for soft in ({"max_ongoing_requests": 9}, {"max_threads": 2}, {"health_check_timeout_s": 2}):
        version, config = hashes(Leaf.options(**soft).bind(1))
        assert version == first[0] and config != first[1]
    hard = (Leaf.bind(2), Tree.bind(1), Leaf.options(ray_actor_options={"num_cpus": 2}).bind(1))
    for bound in hard:
        version, config = hashes(bound)
        assert version != first[0] and config == first[1]


def test_the_order_of_keys_is_no_change() -> None:
    @deployment
    class Tuned:
        def reconfigure(self, config: Any) -> None: ...

    def hashes(user_config: Any, env: Any) -> tuple[str, str]:
        options = {"user_config": user_config, "ray_actor_options": {"runtime_env": {"env_vars": env}}}
        spec = build(Tuned.options(**options).bind()).deployments[0]
        return spec.version, spec.config

    one = hashes({"a": 1, "b": {"c": 1, "d": 2}}, {"A": "1", "B": "2"})
    assert one == hashes({"b": {"d": 2, "c": 1}, "a": 1}, {"B": "2", "A": "1"})
    assert one[1] != hashes({"a": 1, "b": {"c": 2, "d": 1}}, {"A": "1", "B": "2"})[1]


def test_the_version_of_code_by_value_is_stable_and_follows_the_code() -> None:
    def made(number: int) -> Application[Any]:
        class Inner:
            def __call__(self) -> int:
                return number

        return deployment(Inner).bind()

    def version(bound: Application[Any]) -> str:
        return build(bound).deployments[-1].version

    one = made(1)
    assert version(one) == version(one) == version(made(1)) != version(made(2))


def test_too_many_deployments_are_refused() -> None:
    with pytest.raises(GraphError, match="more than 1000"):
        build(Tree.bind(*(Leaf.bind() for _ in range(1001))))


def test_a_deep_graph_builds() -> None:
    app: Application[Any] = Leaf.bind()
    for _ in range(300):
        app = Tree.bind(app, app)
    assert len(nodes(app)) == 301


# -- any graph --------------------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> Application[Any]:
    """A random graph of up to 12 nodes, with shared nodes, containers and given names."""
    pool: list[Application[Any]] = []
    given_names = iter(["Leaf", "Leaf_1", "Tree", "own", "Tree_2"])
    for _ in range(draw(st.integers(1, 12))):
        made: Deployment[..., Any] = draw(st.sampled_from([Tree, Leaf]))
        if draw(st.integers(0, 5)) == 0 and (name := next(given_names, None)):
            made = made.options(name=name)
        children = draw(st.lists(st.sampled_from(pool), max_size=3)) if pool else []
        if made.func_or_class is Leaf.func_or_class:
            pool.append(made.bind(children))
        else:
            shape = draw(st.sampled_from(["plain", "list", "dict", "tuple"]))
            args = {
                "plain": children,
                "list": [children],
                "dict": [{str(place): child for place, child in enumerate(children)}],
                "tuple": [(tuple(children),)],
            }[shape]
            pool.append(made.bind(*args))
    return pool[-1]


def references(value: Any) -> set[str]:
    if isinstance(value, HandleRef):
        return {value.deployment}
    if isinstance(value, dict):
        return references(list(value.values()))
    return set().union(*map(references, value)) if isinstance(value, list | tuple | set) else set()


@given(graphs())
def test_any_graph_has_unique_names_children_first_and_closed_references(app: Application[Any]) -> None:
    spec, found = build(app), nodes(app)
    given_names = [node._deployment.all_options.name for node in found]
    assert len({one.name for one in spec.deployments}) == len(spec.deployments) == len(found)
    assert found[-1] is app and spec.ingress == spec.deployments[-1].name
    assert [one.ingress for one in spec.deployments] == [False] * (len(found) - 1) + [True]
    before: set[str] = set()
    for one, given_name in zip(spec.deployments, given_names, strict=True):
        assert references(code.loads(one.init)) <= before
        assert one.name == (given_name or one.name)
        before.add(one.name)
    assert build(app) == spec


def scaled(**policy: Any) -> Application[Any]:
    return Leaf.options(autoscaling_config={"max_replicas": 2, "policy": policy}).bind()


def test_a_policy_that_the_controller_can_ask_is_accepted() -> None:
    for policy in (
        {"policy_function": "tests.controlplane.policies_of_users:counting"},
        {"policy_function": policies.Remembering, "policy_kwargs": {"start": 3}},
        {"policy_function": requests_per_second_policy, "policy_kwargs": {"target_per_replica": 10}},
        {},
    ):
        assert build(scaled(**policy)).deployments


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"policy_function": "no.such.module:policy"}, "does not import in this process"),
        ({"policy_function": "tests.controlplane.policies_of_users:countin"}, "'counting'"),
        ({"policy_function": "__main__:policy"}, "move it to a module of its own"),
        ({"policy_function": lambda context, memory: (1, memory)}, "move it to a module of its own"),
        ({"policy_function": policies.of_one}, r"a policy is called with \(context, memory\)"),
        ({"policy_function": policies.waiting}, "it is async"),
        ({"policy_function": policies.scaled_by}, r"cannot be used with policy_kwargs=\{\}.*share"),
        ({"policy_function": policies.Remembering, "policy_kwargs": {"stop": 1}}, "stop"),
        ({"policy_function": "tests.controlplane.policies_of_users:release"}, "cannot be called"),
        ({"policy_function": requests_per_second_policy}, "target_per_replica"),
    ],
)
def test_a_policy_that_nobody_can_ask_is_refused_at_deploy(policy: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said) as refused:
        build(scaled(**policy))
    assert "deployment 'Leaf': autoscaling_config.policy" in str(refused.value)
