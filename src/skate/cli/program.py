"""The program: its name, and its commands. Law: a command reads its words, calls one thing, and prints what came of it.

Exit codes: 0 it is done; 1 it failed, with one line on stderr that says why; 2 the command line was wrong (and
`plan --exit-code`: something would change); 130 interrupted before it was done.
"""

from __future__ import annotations

import sys

import click

from skate.cli import applications, files, looking, printed, running
from skate.cli.group import Program, verbose

COMMANDS = (
    *(running.run, running.start, running.shutdown, running.spec),
    *(applications.deploy, applications.plan, applications.delete, applications.scale),
    *(applications.history, applications.rollback),
    *files.COMMANDS,
    *(looking.status, printed.logs, looking.events, looking.metrics, looking.config, looking.completion),
)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(vars(sys.modules["skate"]).get("__version__", "unknown"), prog_name="skate")
@verbose
def main() -> None:
    """Serves Python models: skate run module:app"""


for command in COMMANDS:
    main.add_command(command)
