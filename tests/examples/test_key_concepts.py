"""The programs of examples/key_concepts and examples/hello.py, run as they stand."""

from __future__ import annotations

import json
import subprocess
import sys

import httpx
import pytest

from examples.running import ROOT, running

pytestmark = pytest.mark.e2e

# The programs use the default port, which may be taken here: this starts the instance on a free one first.
ON_ANOTHER_PORT = """
import runpy, sys

from skate import serve

if __name__ == "__main__":
    serve.start(http_options={"port": 0})
    runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize(("program", "printed"), [("deployment", "Hello world!"), ("composition", "4")])
def test_a_script_prints_its_answer_and_ends(program: str, printed: str) -> None:
    path = f"examples/key_concepts/{program}.py"
    command = [sys.executable, "-c", ON_ANOTHER_PORT, path]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1:] == [printed], run.stdout + run.stderr


def client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, trust_env=False, timeout=30)


def test_deployment_over_http() -> None:
    with running("examples.key_concepts.deployment:app", quiet=True) as instance, client(instance.url) as http:
        answer = http.get("/")
    assert (answer.status_code, answer.text) == (200, "Hello world!")


def test_composition_forwards_the_request() -> None:
    with running("examples.key_concepts.composition:app", quiet=True) as instance, client(instance.url) as http:
        answers = [http.get("/", params={"number": n}).json() for n in (1, 20)]
    assert answers == [(1 + 1) + 1 * 2, (20 + 1) + 20 * 2]


def test_ingress_reads_the_body_of_a_get() -> None:
    with running("examples.key_concepts.ingress:app", quiet=True) as instance, client(instance.url) as http:
        answers = [http.request(method, "/", json={"name": "Corey"}) for method in ("GET", "POST")]
    assert [(answer.status_code, answer.text) for answer in answers] == [(200, "Hello Corey")] * 2


def test_fastapi_ingress() -> None:
    with running("examples.key_concepts.fastapi_ingress:app", quiet=True) as instance, client(instance.url) as http:
        answer, page = http.get("/Corey"), http.get("/docs")
    assert (answer.status_code, answer.text) == (200, json.dumps("Hello Corey"))
    assert page.status_code == 200 and "swagger" in page.text.lower()


def test_hello() -> None:
    with running("examples.hello:app", quiet=True) as instance, client(instance.url) as http:
        answers = [http.get("/").text, http.get("/", params={"name": "Ada"}).text]
    assert answers == ["Hello world!", "Hello Ada!"]
