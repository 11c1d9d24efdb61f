"""Ids: in the right form, and never the same twice, also after a fork."""

from __future__ import annotations

import os
import random
import uuid

from skate.core import ids


def test_a_request_id_is_a_uuid_of_version_4() -> None:
    made = ids.request_id()
    assert uuid.UUID(made).version == 4 and str(uuid.UUID(made)) == made
    assert uuid.UUID(made).variant == uuid.RFC_4122


def test_ids_do_not_repeat_nor_follow_the_users_seed() -> None:
    seen = set()
    for _ in range(2000):
        random.seed(1)
        seen |= {ids.request_id(), ids.random_id()}
    assert len(seen) == 4000


def test_a_forked_child_draws_other_ids() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, ids.request_id().encode())
        os._exit(0)
    os.close(writing)
    theirs = os.read(reading, 100).decode()
    os.close(reading)
    os.waitpid(child, 0)
    assert theirs != ids.request_id() and uuid.UUID(theirs).version == 4


def test_a_replica_id_names_its_deployment() -> None:
    made = ids.replica_id("default", "Model")
    assert made.startswith("default/Model#") and len(made) == len("default/Model#") + 8
