"""``python -m skate`` is the command line."""

from __future__ import annotations

from skate.cli import main

main()
