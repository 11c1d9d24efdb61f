"""Files as users of Ray Serve write them: each is read as it is, or its warnings say what means nothing here."""

from __future__ import annotations

from pathlib import Path

import pytest

from skate.authoring.config import plain, read_file, read_plain
from skate.authoring.schema import schema
from skate.core.config import ServeConfig
from tests.authoring.json_schema import complaints

FOLDER = Path(__file__).parent / "configs"
ALONE = "has no meaning on one machine and is left aside"
LATER = "has no effect in this version of Skate"
NAMED = {  # what must be named, with its line
    "as_built.yaml": {
        ALONE: ["proxy_location (line 3)"],
        LATER: ["grpc_options (line 11)", "logging_config (line 17)"],
    },
    "two_applications.yaml": {ALONE: ["proxy_location (line 1)"]},
    "autoscaling.yaml": {
        ALONE: ["applications[0].deployments[0].ray_actor_options.accelerator_type (line 24)"],
    },
    "language_model.yaml": {
        ALONE: [
            "applications[0].deployments[0].placement_group_bundles (line 19)",
            "applications[0].deployments[0].placement_group_strategy (line 22)",
        ]
    },
    "logging.yaml": {
        LATER: [
            "logging_config (line 1)",
            "applications[0].logging_config (line 10)",
            "applications[0].deployments[0].logging_config (line 14)",
        ]
    },
    "servers.yaml": {
        ALONE: [
            "proxy_location (line 2)",
            "controller_options (line 16)",
            "http_options.location (line 7)",
            "http_options.num_cpus (line 8)",
        ],
        LATER: ["grpc_options (line 12)", "tracing_config (line 18)"],
    },
    "shared_parts.yaml": {
        ALONE: ["applications[0].deployments[1].max_replicas_per_node (line 20)"],
        LATER: ["applications[0].runtime_env.pip (line 14)"],
    },
}


def read(name: str) -> tuple[ServeConfig, list[str]]:
    return read_file(str(FOLDER / name), {"MODEL_TOKEN": "secret"})


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir()))
def test_every_file_is_read_and_what_means_nothing_here_is_named(name: str) -> None:
    config, warnings = read(name)
    assert config.applications and all(app.import_path.count(":") == 1 for app in config.applications)
    assert read_plain(plain(config)) == config
    said = dict(one.split(f"{name}: ", 1)[1].rstrip(".").split(": ", 1) for one in warnings)
    for why, keys in NAMED.get(name, {}).items():
        assert set(keys) <= set(said[why].split(", "))
    for keys in said.values():
        assert not any(
            f"{key} (" in keys for key in ("name", "import_path", "num_replicas", "user_config", "working_dir")
        )


@pytest.mark.parametrize("name", ["one_application.yaml", "builder_arguments.yaml", "no_http.yaml"])
def test_what_means_something_here_is_not_named(name: str) -> None:
    assert read(name)[1] == []


def test_files_have_a_warning_for_each_reason_and_no_more() -> None:
    assert all(len(read(path.name)[1]) <= 2 for path in FOLDER.iterdir())


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir()))
def test_the_schema_takes_every_file(name: str) -> None:
    assert complaints(plain(read(name)[0]), schema()) == []


def test_details_of_some() -> None:
    assistant = read("language_model.yaml")[0].applications[0]
    assert assistant.args["models"][0]["engine_kwargs"]["gpu_memory_utilization"] == 0.85
    assert assistant.args["stop_words"] == [None, "<end>"]
    assert assistant.runtime_env["env_vars"] == {"MODEL_TOKEN": "secret", "USE_FAST_KERNELS": "1"}
    assert read("builder_arguments.yaml")[0].applications[0].import_path == "search.app:build"
    assert read("no_http.yaml")[0].proxy_location == "Disabled"
    detector, labeller = read("shared_parts.yaml")[0].applications[0].deployments.values()
    assert (detector["max_ongoing_requests"], detector["max_queued_requests"], detector["num_replicas"]) == (2, 64, 1)
    assert labeller["ray_actor_options"]["num_cpus"] == 1
