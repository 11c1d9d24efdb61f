"""The JSON Schema: well formed, and never stricter than what reads the file."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate.authoring.config import APPLICATION, FILE, read_plain
from skate.authoring.schema import schema
from skate.core.checks import options_of
from skate.core.errors import ConfigError
from skate.core.options import HTTP_OPTIONS, DeploymentOptions
from tests.authoring.json_schema import complaints, malformed

MADE = schema()


def test_it_is_well_formed_and_plain() -> None:
    assert malformed(MADE, MADE) == []
    assert json.loads(json.dumps(MADE)) == MADE


def test_a_malformed_schema_is_told() -> None:
    for broken in ({"type": "word"}, {"minimum": "3"}, {"nix": 1}, {"$ref": "#/nix"}, {"anyOf": []}, {"items": 3}):
        assert malformed(broken, broken)


def test_every_option_is_in_it_with_its_sentence() -> None:
    definitions = MADE["definitions"]
    for declared, properties in (
        (FILE, MADE["properties"]),
        (APPLICATION, definitions["application"]["properties"]),
        (options_of(DeploymentOptions), definitions["deployment"]["properties"]),
        (HTTP_OPTIONS, definitions["http_options"]["properties"]),
    ):
        for name, option in declared.items():
            assert name == "name" or properties[name]["description"].startswith(option.about)
    assert definitions["deployment"]["properties"]["max_ongoing_requests"]["default"] == 5
    assert definitions["http_options"]["properties"]["port"]["default"] == 8000


def file(**more: Any) -> dict[str, Any]:
    return {"applications": [{"import_path": "m:a", **more}]}


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"applications": 3},
        {"applications": [{}]},
        {**file(), "nix": 1},
        {**file(), "http_options": {"port": 80_000}},
        {**file(), "target_capacity": 101},
        file(nix=1),
        file(route_prefix="api"),
        file(route_prefix="/api/"),
        file(import_path="a:b:c"),
        file(deployments=[{}]),
        file(deployments=[{"name": "D", "num_replicas": 0}]),
        file(deployments=[{"name": "D", "max_ongoing_requests": "many"}]),
        file(deployments=[{"name": "D", "autoscaling_config": {"max_replica": 3}}]),
        file(deployments=[{"name": "D", "autoscaling_config": {"upscaling_factor": 0}}]),
        file(deployments=[{"name": "D", "placement_group_bundles": []}]),
        file(runtime_env={"env_vars": {"A": 1}}),
    ],
)
def test_what_is_wrong_is_told_in_the_editor(wrong: dict[str, Any]) -> None:
    assert complaints(wrong, MADE)
    with pytest.raises(ConfigError):
        read_plain(wrong)


@pytest.mark.parametrize("prefix", [None, "/", "/a", "/a/b-c.d", "/é"])
def test_prefixes(prefix: str | None) -> None:
    assert not complaints(file(route_prefix=prefix), MADE)
    assert read_plain(file(route_prefix=prefix))


def test_a_variable_may_stand_for_a_number() -> None:
    one = file(deployments=[{"name": "D", "num_replicas": "${N:-2}"}], import_path="${PATH_OF:-m:a}")
    assert not complaints({**one, "http_options": {"port": "${PORT}"}}, MADE)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 200), st.floats(-2, 200), st.text("ab:/{}#", max_size=4),
    st.sampled_from(["auto", "PACK", "JSON", "INFO", 429, {}, [], [{}], {"A": "b"}, {"CPU": 1}, [{"CPU": 1}]]),
)  # fmt: skip


@given(st.sampled_from([*options_of(DeploymentOptions), "min_replicas"]), VALUES)
def test_what_is_read_fits_the_schema_options_of_deployments(name: str, value: Any) -> None:
    check(file(deployments=[{"name": "D", name: value}]))


@given(st.sampled_from([*APPLICATION, "nix"]), VALUES)
def test_what_is_read_fits_the_schema_options_of_applications(name: str, value: Any) -> None:
    check(file(**{name: value}))


@given(st.sampled_from([*FILE, "x-nix"]), st.sampled_from([*HTTP_OPTIONS, "location"]), VALUES)
def test_what_is_read_fits_the_schema_options_of_the_file(name: str, option: str, value: Any) -> None:
    check({**file(), name: value})
    check({**file(), "http_options": {option: value}})


@given(
    st.sampled_from(["autoscaling_config", "ray_actor_options", "request_router_config", "backpressure_config"]),
    st.data(),
)
def test_what_is_read_fits_the_schema_groups_of_options(group: str, data: st.DataObject) -> None:
    kind = options_of(DeploymentOptions)[group].check.group
    assert kind is not None
    name = data.draw(st.sampled_from(list(options_of(kind))))
    check(file(deployments=[{"name": "D", group: {name: data.draw(VALUES)}}]))


def check(given: dict[str, Any]) -> None:
    try:
        read_plain(given)
    except ConfigError:
        return
    assert complaints(given, MADE) == []
