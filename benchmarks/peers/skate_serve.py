"""Skate as a system under test: ``python -m benchmarks.peers.skate_serve PORT APP``. Its own defaults, one proxy."""

from __future__ import annotations

from benchmarks.peers.deployments import Deploys
from benchmarks.peers.program import answer_lines, told
from skate import serve

ROBIN = {"request_router_config": {"request_router_class": "skate.routers:RoundRobin"}}

if __name__ == "__main__":
    port, first = told()
    serve.start(http_options={"port": port})
    deploys = Deploys(serve, {}, ROBIN)
    deploys.deploy(first)
    answer_lines(deploys.answers())
    serve.shutdown()
