"""Ray Serve as a system under test: ``python -m benchmarks.peers.ray_serve PORT APP``.

Its HAProxy mode is the same program with other variables in its environment (benchmarks/suite/systems.py). A local
cluster without a dashboard; replicas reserve no CPU, so that all find a place; no access log.
"""

from __future__ import annotations

import logging

import ray
from ray import serve

from benchmarks.peers.deployments import Deploys
from benchmarks.peers.program import HOST, answer_lines, told

EXTRA = {
    "ray_actor_options": {"num_cpus": 0},
    "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
    "health_check_timeout_s": 600,  # it pauses while others are measured
    "graceful_shutdown_timeout_s": 1,
    "graceful_shutdown_wait_loop_s": 0.1,
}


if __name__ == "__main__":
    port, first = told()
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    serve.start(http_options={"host": HOST, "port": port}, logging_config=EXTRA["logging_config"])
    deploys = Deploys(serve, EXTRA)
    deploys.deploy(first)
    answer_lines(deploys.answers())
    serve.shutdown()
    ray.shutdown()
