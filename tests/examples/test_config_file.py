"""The file of the digits example is read, and fits its code."""

from __future__ import annotations

from pathlib import Path

from examples.digits import app as digits
from skate.authoring.config import read_file
from skate.authoring.graph import build
from skate.authoring.overrides import overridden

FILE = str(Path(digits.__file__).with_name("serve.yaml"))


def test_the_file_says_what_the_code_does_not() -> None:
    config, warnings = read_file(FILE, {"MODEL_REPLICAS": "3"})
    (app,) = config.applications
    assert (warnings, config.http_options, app.import_path) == ([], {"port": 8000}, "examples.digits.app:app")
    made = overridden(digits.app, build(digits.app, app.name, app.route_prefix), app)
    options = {one.name: one.options for one in made.deployments}
    assert [options[name].num_replicas for name in ("SVM", "Forest", "Ingress")] == [3, 3, 1]
    assert options["Ingress"].max_ongoing_requests == 64
    assert all(one.env_vars == {"OMP_NUM_THREADS": "1"} for one in options.values())
