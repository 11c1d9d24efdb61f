"""The command line: ``skate`` and ``serve`` are this program, and so is ``python -m skate``.

Law: a command translates words to the floors below and their answers to lines; it decides nothing about an instance.
What goes wrong is one readable line on stderr, with what to do, and exit code 1 (2 for a wrong command line).
"""

from __future__ import annotations

from skate.cli.program import main

__all__ = ["main"]
