"""A script that starts an instance, as a user's script does: ``owner.py RUNTIME_DIR CONTROLLER(base64) DETACHED``."""

from __future__ import annotations

import base64
import os
import signal
import sys

import msgspec

from skate.core.specs import ProcessSpec
from skate.engine.process import launch

if __name__ == "__main__":
    controller = msgspec.msgpack.decode(base64.b64decode(sys.argv[2]), type=ProcessSpec)
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    detached = sys.argv[3] == "detached"
    launched = launch(sys.argv[1], controller, sys_path=[root], modules=["tests.engine.entries"], detached=detached)
    forked = 0
    if not detached:
        forked = os.fork()  # a user's multiprocessing; it must not keep the instance alive
    if forked == 0 and not detached:
        while True:
            signal.pause()
    print(launched.pid, forked, flush=True)
    if not detached:
        os.read(0, 1)
