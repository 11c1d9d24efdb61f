"""Skate serves Python models: decorate a class, bind it, run it; replicas, routing and healing are Skate's work.

``from skate import serve`` is the programming interface; ``skate.get`` waits for the values of responses.
"""

from __future__ import annotations

from skate import serve
from skate.dataplane.handle import get

__version__ = "0.1.0"
__all__ = ["__version__", "get", "serve"]
