"""Options: every declaration holds, every wrong value is refused with the name, the value and the bounds."""

from __future__ import annotations

import math
import warnings
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate.autoscaling import default_autoscaling_policy
from skate.core import options as declared
from skate.core.errors import OptionError
from skate.core.options import (
    HTTP_OPTIONS,
    AutoscalingConfig,
    AutoscalingPolicy,
    BackpressureConfig,
    DeploymentOptions,
    NotYetWarning,
    RayActorOptions,
    check_http_options,
    check_name,
    check_route_prefix,
    deployment_options,
    options_of,
    reconfigure_options,
    restart_options,
)
from skate.core.scaling import DEFAULT_POLICY
from skate.core.specs import HttpOptions

GROUPS = [group for group in vars(declared).values() if isinstance(group, type) and issubclass(group, msgspec.Struct)]


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_is_declared_wholly(group: type[msgspec.Struct]) -> None:
    for name, option in options_of(group).items():
        assert option.name == name
        assert option.about.endswith(".") and option.check.bounds
        if name.endswith("_s"):
            assert option.unit == "s", f"{name} is in seconds"


@pytest.mark.parametrize("group", [group for group in GROUPS if group.__name__ != "DeploymentActor"])
def test_every_default_passes_its_own_check(group: type[msgspec.Struct]) -> None:
    for option in options_of(group).values():
        assert option.check.read(option.default) == option.default


def test_names_and_defaults_are_those_of_ray_serve() -> None:
    made = DeploymentOptions()
    assert (made.num_replicas, made.max_ongoing_requests, made.max_queued_requests) == (1, 5, -1)
    assert (made.graceful_shutdown_timeout_s, made.graceful_shutdown_wait_loop_s) == (20, 2)
    assert (made.health_check_period_s, made.health_check_timeout_s) == (10, 30)
    assert (made.max_constructor_retry_count, made.rolling_update_percentage, made.max_surge_percent) == (20, 0.2, 0)
    assert made.backpressure_config == BackpressureConfig(503, None)
    assert made.autoscaling_config is made.user_config is made.logging_config is None


BAD: list[tuple[dict[str, Any], str]] = [
    ({"num_replicas": 0}, "num_replicas=0: takes a whole number >= 1, or 'auto'"),
    ({"num_replicas": -1}, "num_replicas=-1"),
    ({"num_replicas": 1.5}, "num_replicas=1.5"),
    ({"num_replicas": True}, "num_replicas=True"),
    ({"num_replicas": "two"}, "num_replicas='two'"),
    ({"num_replica": 2}, "the nearest is 'num_replicas'"),
    ({"completely_else": 2}, "no such option; there are autoscaling_config"),
    ({"version": "1"}, "no option 'version' today"),
    ({"max_concurrent_queries": 3}, "use max_ongoing_requests"),
    ({"route_prefix": "/x"}, "pass route_prefix to serve.run"),
    ({"num_cpus": 1}, "ray_actor_options={'num_cpus'"),
    ({"name": ""}, "must not be empty"),
    ({"name": "a#b"}, "must not contain '#'"),
    ({"name": "a/b"}, "must not contain '/'"),
    ({"name": 3}, "must be a string, not int"),
    ({"max_ongoing_requests": None}, "max_ongoing_requests=None: takes a whole number >= 1"),
    ({"max_queued_requests": 0}, "max_queued_requests=0: takes a whole number >= 1, or -1"),
    ({"max_queued_requests": -2}, "max_queued_requests=-2"),
    ({"backpressure_config": {"status_code": 500}}, "backpressure_config.status_code=500: takes one of 503, 429"),
    ({"backpressure_config": {"retry_after_s": -1}}, "backpressure_config.retry_after_s=-1"),
    ({"backpressure_config": {"retry_after": 1}}, "the nearest is 'retry_after_s'"),
    ({"backpressure_config": 503}, "takes a dict or BackpressureConfig"),
    ({"graceful_shutdown_timeout_s": -1}, "takes a number >= 0"),
    ({"graceful_shutdown_timeout_s": math.inf}, "graceful_shutdown_timeout_s=inf"),
    ({"health_check_period_s": 0}, "takes a number > 0"),
    ({"health_check_timeout_s": "30"}, "health_check_timeout_s='30'"),
    ({"max_constructor_retry_count": 0}, "max_constructor_retry_count=0"),
    ({"retry": 11}, "retry=11: takes a whole number from 0 to 10, or a dict from names to"),
    ({"retry": True}, "retry=True: takes a whole number"),
    ({"retry": {"predict": 11}}, "retry['predict']=11: takes a whole number from 0 to 10."),
    ({"max_threads": 0}, "max_threads=0: takes a whole number from 1 to 1024"),
    ({"user_config": {"a": [1, {2}]}}, "user_config['a'][1]={2}: takes plain data"),
    ({"user_config": {1: 2}}, "dicts with strings as keys"),
    ({"user_config": math.nan}, "finite numbers"),
    ({"user_config": 2**70}, "at most 64 bits"),
    ({"ray_actor_options": {"num_cpu": 1}}, "ray_actor_options.num_cpu=1: no such option; the nearest is 'num_cpus'"),
    ({"ray_actor_options": {"num_gpus": -1}}, "ray_actor_options.num_gpus=-1"),
    ({"ray_actor_options": {"resources": {"tpu": "x"}}}, "ray_actor_options.resources['tpu']='x'"),
    ({"ray_actor_options": {"runtime_env": {"env_vars": {"A": 1}}}}, "runtime_env.env_vars['A']=1: takes a string"),
    ({"ray_actor_options": {"runtime_env": {"pipp": []}}}, "the nearest is 'pip'"),
    ({"ray_actor_options": 3}, "takes a dict or RayActorOptions"),
    ({"autoscaling_config": {"min_replicas": 3, "max_replicas": 2}}, "max_replicas=2: takes a whole number >= min_rep"),
    ({"autoscaling_config": {"initial_replicas": 9, "max_replicas": 2}}, "initial_replicas=9"),
    ({"autoscaling_config": {"target_num_ongoing_requests": 9}}, "the nearest is 'target_ongoing_requests'"),
    ({"autoscaling_config": {"aggregation_function": "sum"}}, "takes one of 'mean', 'max', 'min'"),
    ({"autoscaling_config": {"upscale_delay_s": -1}}, "upscale_delay_s=-1"),
    ({"autoscaling_config": {"min_replicas": 2}}, "max_replicas=1: takes a whole number >= min_replicas, which is 2"),
    ({"autoscaling_config": {"min_replicas": 200}, "num_replicas": "auto"}, "max_replicas=100: takes a whole"),
    ({"autoscaling_config": {"min_replicas": 2, "initial_replicas": 1}}, "initial_replicas=1: takes a whole number >="),
    ({"autoscaling_config": {"initial_replicas": 2}}, "initial_replicas=2: takes a whole number from 1 to 1"),
    ({"autoscaling_config": {"look_back_period_s": 0}}, "look_back_period_s=0"),
    ({"autoscaling_config": {"upscaling_factor": 0}}, "upscaling_factor=0"),
    ({"autoscaling_config": {"policy": {"policy_function": 3}}}, "policy.policy_function=3: takes an import path"),
    ({"autoscaling_config": {"policy": {"policy_kwarg": {}}}}, "the nearest is 'policy_kwargs'"),
    (
        {"autoscaling_config": {"target_ongoing_requests": 9}},
        "autoscaling_config.target_ongoing_requests=9.0: takes a number of at most max_ongoing_requests, which is 5",
    ),
    ({"num_replicas": "auto", "max_ongoing_requests": 1}, "autoscaling_config.target_ongoing_requests=2.0"),
    ({"num_replicas": 2, "autoscaling_config": {}}, "num_replicas=2 contradicts autoscaling_config"),
    ({"placement_group_strategy": "PACK"}, "takes None without placement_group_bundles"),
    ({"placement_group_strategy": "NEAR"}, "takes one of 'PACK'"),
    ({"placement_group_bundles": []}, "at least 1"),
    ({"placement_group_bundles": [{"CPU": 1}], "max_replicas_per_node": 2}, "together with placement_group_bundles"),
    ({"max_replicas_per_node": 101}, "max_replicas_per_node=101"),
    ({"gang_scheduling_config": {"gang_size": 2}, "num_replicas": 3}, "a multiple of gang_size, which is 2"),
    ({"gang_scheduling_config": {"runtime_failure_policy": "RESTART_REPLICA"}}, "runtime_failure_policy"),
    ({"deployment_actors": [{"name": "x"}]}, "lacks 'actor_class'"),
    ({"rolling_update_percentage": 0}, "takes a number above 0 and at most 1"),
    ({"max_surge_percent": 101}, "takes a whole number from 0 to 100"),
    ({"request_router_config": {"initial_backoff_s": 2}}, "max_backoff_s=0.5"),
    ({"logging_config": {"encoding": "XML"}}, "logging_config.encoding='XML'"),
]


@pytest.mark.parametrize(("options", "said"), BAD, ids=lambda value: str(value)[:50])
def test_bad_options_are_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as refused:
        deployment_options(options, where="@serve.deployment on Model", stacklevel=0)
    assert said in str(refused.value)
    assert "@serve.deployment on Model" in str(refused.value)


def test_user_config_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(OptionError, match="levels of nesting"):
        deployment_options({"user_config": loop})


LATER: list[dict[str, Any]] = [
    {"placement_group_bundles": [{"CPU": 1}]},
    {"max_replicas_per_node": 2},
    {"gang_scheduling_config": {"gang_size": 1}},
    {"deployment_actors": [{"name": "x", "actor_class": "a:b"}]},
    {"request_router_config": {"request_router_class": "a:b", "initial_backoff_s": 0.1}},
    {"logging_config": {"encoding": "JSON"}},
    {"ray_actor_options": {"runtime_env": {"pip": ["numpy"]}}},
    {"ray_actor_options": {"accelerator_type": "H100"}},
]


@pytest.mark.parametrize("options", LATER, ids=lambda value: str(value)[:40])
def test_options_without_effect_say_so_once(options: dict[str, Any]) -> None:
    with pytest.warns(NotYetWarning, match="without effect in this version") as seen:
        made = deployment_options(options)
    assert len(seen) == 1
    assert next(iter(options)) in str(seen[0].message)
    assert seen[0].filename == __file__
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=DeploymentOptions) == made
    assert made.replicas == 1


def test_several_options_without_effect_are_one_warning() -> None:
    with pytest.warns(NotYetWarning) as seen:
        deployment_options({"max_replicas_per_node": 2, "logging_config": {"encoding": "JSON"}})
    assert len(seen) == 1


NOW: list[dict[str, Any]] = [
    {"num_replicas": 3, "max_ongoing_requests": 100, "max_queued_requests": 7, "name": "m"},
    {"user_config": {"a": [1, 2.5, None, "x", True]}},
    {"backpressure_config": {"status_code": 429, "retry_after_s": 1.5}},
    {"graceful_shutdown_wait_loop_s": 1, "graceful_shutdown_timeout_s": 0, "max_surge_percent": 1},
    {"ray_actor_options": {"num_cpus": 0.5, "num_gpus": 1, "memory": 1e9, "resources": {"tpu": 1}}},
    {"ray_actor_options": {"runtime_env": {"env_vars": {"A": "b"}}}},
    {"retry": 2},
    {"request_router_config": {"request_router_class": "a:b", "request_router_kwargs": {"x": [1]}}},
    {"retry": {"predict": 1, "__call__": 0}},
    {"health_check_period_s": 5, "health_check_timeout_s": 2.5},
    {"max_threads": 4, "max_constructor_retry_count": 1, "num_replicas": None},
    {"num_replicas": "auto"},
    {"num_replicas": "auto", "autoscaling_config": {"target_ongoing_requests": 1, "smoothing_factor": 0.5}},
    {"autoscaling_config": AutoscalingConfig(max_replicas=4, initial_replicas=2, metrics_interval_s=1)},
    {"num_replicas": None, "autoscaling_config": {"min_replicas": 0, "max_replicas": 4}},
    {"rolling_update_percentage": 0.2, "autoscaling_config": None, "max_surge_percent": 0},
]


@pytest.mark.parametrize("options", NOW, ids=lambda value: str(value)[:40])
def test_options_with_effect_are_silent(options: dict[str, Any]) -> None:
    made = deployment_options(options)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=DeploymentOptions) == made
    assert deployment_options({"max_threads": made.max_threads}, made) == made


def test_env_vars_reach_the_replica() -> None:
    made = deployment_options({"ray_actor_options": {"runtime_env": {"env_vars": {"A": "b"}}}})
    assert made.env_vars == {"A": "b"}


def test_the_default_router_may_be_spelled_out_as_ray_serve_does() -> None:
    path = "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter"
    for said in (path, path.replace(":", ".")):
        made = deployment_options({"request_router_config": {"request_router_class": said}})
        assert made.request_router_config == declared.RequestRouterConfig()


def test_the_later_place_wins_between_fixed_and_scaled() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        two = deployment_options({"num_replicas": 2})
        scaled = deployment_options({"autoscaling_config": {"max_replicas": 4}}, two)
        fixed = deployment_options({"num_replicas": 2}, scaled)
    assert scaled.num_replicas == "auto" and scaled.autoscaling_config is not None
    assert fixed.num_replicas == 2 and fixed.autoscaling_config is None


def test_auto_means_what_it_means_in_ray_serve() -> None:
    plain = deployment_options({"num_replicas": "auto"})
    own = deployment_options({"num_replicas": "auto", "autoscaling_config": {"min_replicas": 3}})
    bounded = deployment_options({"num_replicas": "auto", "autoscaling_config": AutoscalingConfig(max_replicas=1)})
    alone = deployment_options({"autoscaling_config": {"min_replicas": 0}})
    for made, bounds in ((plain, (1, 100)), (own, (3, 100)), (bounded, (1, 1)), (alone, (0, 1))):
        config = made.autoscaling_config
        assert made.num_replicas == "auto" and config is not None
        assert (config.min_replicas, config.max_replicas) == bounds and made.replicas == bounds[0]
        assert config.target_ongoing_requests == 2.0
    config = AutoscalingConfig()
    assert (config.upscale_delay_s, config.downscale_delay_s, config.to_zero_delay_s) == (30, 600, 600)
    assert (config.look_back_period_s, config.aggregation_function, config.up, config.down) == (30, "mean", 1, 1)


def test_deprecated_factors_work_and_the_new_names_win() -> None:
    assert (AutoscalingConfig(smoothing_factor=0.5).up, AutoscalingConfig(smoothing_factor=0.5).down) == (0.5, 0.5)
    old = AutoscalingConfig(smoothing_factor=0.5, upscale_smoothing_factor=2, downscale_smoothing_factor=3)
    assert (old.up, old.down) == (2, 3)
    new = AutoscalingConfig(upscale_smoothing_factor=2, upscaling_factor=4, downscaling_factor=0.1)
    assert (new.up, new.down) == (4, 0.1)


def test_the_default_policy_has_one_name_however_it_is_said() -> None:
    for said in ("ray.serve.autoscaling_policy:default_autoscaling_policy", default_autoscaling_policy, DEFAULT_POLICY):
        made = deployment_options({"autoscaling_config": {"policy": {"policy_function": said}}})
        assert made.autoscaling_config is not None
        assert made.autoscaling_config.policy == AutoscalingPolicy()


def test_other_policies_are_not_bound_to_ongoing_requests() -> None:
    deployment_options({"autoscaling_config": {"target_ongoing_requests": 9, "policy": {"policy_function": "a:b"}}})


def test_scaling_that_is_taken_away_leaves_one_replica() -> None:
    scaled = deployment_options({"num_replicas": "auto"})
    assert deployment_options({"autoscaling_config": None}, scaled) == DeploymentOptions()


def test_each_option_counts_for_what_its_change_does() -> None:
    assert restart_options(DeploymentOptions()) == reconfigure_options(DeploymentOptions()) == {}
    untouched = deployment_options({"num_replicas": 4, "max_queued_requests": 9, "retry": 2, "max_surge_percent": 50})
    assert restart_options(untouched) == reconfigure_options(untouched) == {}
    given = {"max_threads": 2, "user_config": {"a": 1}, "graceful_shutdown_timeout_s": 3, "health_check_period_s": 1}
    seen = deployment_options({**given, "ray_actor_options": {"num_cpus": 2}})
    assert reconfigure_options(seen) == given
    assert restart_options(seen) == {"ray_actor_options": {"num_cpus": 2.0}}


def test_an_empty_group_is_no_change() -> None:
    for said in ({}, {"runtime_env": {}}, {"runtime_env": {"env_vars": {}}}, {"resources": {}, "num_cpus": None}):
        assert restart_options(deployment_options({"ray_actor_options": said})) == {}
    inner = deployment_options({"ray_actor_options": {"num_cpus": 1, "runtime_env": {"env_vars": {}}}})
    assert restart_options(inner) == {"ray_actor_options": {"num_cpus": 1.0}}


def test_a_group_and_what_is_in_it_do_the_same_to_replicas() -> None:
    groups = {
        "backpressure_config": BackpressureConfig,
        "ray_actor_options": RayActorOptions,
        "autoscaling_config": AutoscalingConfig,
        "gang_scheduling_config": declared.GangSchedulingConfig,
        "deployment_actors": declared.DeploymentActor,
        "request_router_config": declared.RequestRouterConfig,
        "logging_config": declared.LoggingConfig,
    }
    whole = options_of(DeploymentOptions)
    for name, group in groups.items():
        assert {option.change for option in options_of(group).values()} == {whole[name].change}, name


@given(st.integers())
def test_bounds_of_whole_numbers_hold(value: int) -> None:
    for name, low, high in [("max_ongoing_requests", 1, None), ("max_threads", 1, 1024), ("num_replicas", 1, None)]:
        fits = value >= low and (high is None or value <= high)
        if fits:
            assert getattr(deployment_options({name: value}), name) == value
        else:
            with pytest.raises(OptionError, match=name):
                deployment_options({name: value})


@given(st.floats() | st.integers())
def test_bounds_of_seconds_hold(value: float) -> None:
    grace = "graceful_shutdown_timeout_s"
    if math.isfinite(value) and 0 <= value < 1e300:
        assert getattr(deployment_options({grace: value}), grace) == float(value)
    elif not math.isfinite(value) or value < 0:
        with pytest.raises(OptionError, match=grace):
            deployment_options({grace: value})


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just(object()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(options_of(DeploymentOptions))), ANYTHING)
def test_no_value_gives_anything_but_options_or_one_clear_error(name: str, value: Any) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotYetWarning)
            made = deployment_options({name: value})
    except OptionError as refused:
        assert name in str(refused) and len(str(refused)) < 1500
    else:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=DeploymentOptions) == made


def test_http_options_have_the_defaults_of_the_spec_and_bounds() -> None:
    assert set(HTTP_OPTIONS) == set(HttpOptions.__struct_fields__)
    for name, option in HTTP_OPTIONS.items():
        assert option.check.read(getattr(HttpOptions(), name)) == getattr(HttpOptions(), name)
    assert HttpOptions(**check_http_options({"port": 0, "root_path": "/a", "request_timeout_s": 2})).port == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"port": 65536}, "port=65536: takes a whole number from 0 to 65535"),
        ({"port": "80"}, "port='80'"),
        ({"host": ""}, "host=''"),
        ({"root_path": "a/"}, "root_path='a/'"),
        ({"request_timeout_s": 0}, "request_timeout_s=0"),
        ({"keep_alive_timeout_s": -1}, "keep_alive_timeout_s=-1"),
        ({"max_body_bytes": 0}, "max_body_bytes=0"),
        ({"show_traceback": 1}, "show_traceback=1"),
        ({"prot": 1}, "the nearest is 'port'"),
        ({"ssl_keyfile": "x"}, "TLS comes with a later version"),
        ({"location": "EveryNode"}, "leave it out"),
    ],
)
def test_bad_http_options_are_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as refused:
        check_http_options(options)
    assert said in str(refused.value)


@pytest.mark.parametrize("prefix", [None, "/", "/a", "/a/b", "/ä-1._~"])
def test_good_prefixes_stay(prefix: str | None) -> None:
    assert check_route_prefix(prefix) == prefix


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("", "begin with '/'; write '/'"),
        ("api", "begin with '/'; write '/api'"),
        ("/api/", "write '/api'"),
        ("//", "write '/'"),
        ("/a//b", "write '/a/b'"),
        ("/a/{x}", "without '{' '}'"),
        ("/a b", "without ' '"),
        (3, "route_prefix=3"),
    ],
)
def test_bad_prefixes_are_told_the_right_form(prefix: Any, said: str) -> None:
    with pytest.raises(OptionError) as refused:
        check_route_prefix(prefix)
    assert said in str(refused.value)


@given(st.text(max_size=30))
def test_a_prefix_that_passes_is_normal(prefix: str) -> None:
    try:
        kept = check_route_prefix(prefix)
    except OptionError:
        return
    assert kept == prefix and prefix.startswith("/") and (prefix == "/" or not prefix.endswith("/"))


def test_names_of_applications_are_checked() -> None:
    assert check_name("default") == "default"
    for bad in ["", "a/b", "a#b", None, "x" * 201, " a", "a\n"]:
        with pytest.raises(OptionError, match="application"):
            check_name(bad)
