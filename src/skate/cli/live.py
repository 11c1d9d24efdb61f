"""What a foreground run shows on a terminal while an application starts: a table that moves, then lines.

Law: this is the only module that imports rich, and it is loaded only when a terminal is there to draw on.
"""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from skate.cli.screen import COLOURS, Lines, brief, duration, replicas_of, url
from skate.core.specs import ApplicationStatus, ServeStatus

PERIOD_S = 0.1
ROWS_MAX = 24  # one row for each replica up to here, beyond that one for each deployment


class LiveTable:
    """Each replica's phase with the seconds it has been in it."""

    period_s: float | None = PERIOD_S

    def __init__(self) -> None:
        self._console = Console()
        self._lines = Lines()
        self._live: Live | None = None
        self._app = ""
        self._began = 0.0
        self._status = ServeStatus()
        self._seen_at = 0.0

    def begin(self, app: str, now: float) -> None:
        """Draws until ``settle``."""
        self.settle()
        self._app, self._began, self._seen_at = app, now, now
        self._lines.begin(app, now)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()
        self.tick(now)

    def show(self, status: ServeStatus, now: float) -> None:
        """Draws it, or after ``settle`` prints what is new."""
        self._status, self._seen_at = status, now
        if self._live is None:
            self._lines.show(status, now)
        else:
            self._lines.news(status, now)  # drawn, not printed
            self.tick(now)

    def tick(self, now: float) -> None:
        """Lets the seconds run."""
        if self._live is not None:
            self._live.update(self._drawing(now), refresh=True)

    def settle(self) -> None:
        """The table goes; lines follow."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            self.period_s = None

    def line(self, text: str) -> None:
        """Above the table, if there is one."""
        self._lines.line(text) if self._live is None else self._console.print(Text.from_ansi(text))

    def error(self, text: str) -> None:
        """The table goes first."""
        self.settle()
        self._lines.error(text)

    # -- drawing ------------------------------------------------------------------------------------

    def _drawing(self, now: float) -> Group:
        app = self._status.applications.get(self._app)
        where = url(self._status, app) if app is not None else None
        head = Text.assemble(
            ("Starting ", "bold"), (self._app, "bold"), f"  {where or ''}  ", (duration(now - self._began), "dim")
        )
        if app is None:
            return Group(head)
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        rows = list(replicas_of(app))
        if len(rows) > ROWS_MAX:
            self._add_counts(table, app)
        else:
            self._add_replicas(table, app, now - self._seen_at)
        return Group(head, table)

    def _add_replicas(self, table: Table, app: ApplicationStatus, since_s: float) -> None:
        for deployment in app.deployments.values():
            for replica in deployment.replicas:
                table.add_row(
                    "  " + deployment.name,
                    "#" + replica.id.rpartition("#")[2],
                    Text(replica.phase, COLOURS.get(replica.phase, "")),
                    "" if replica.phase == "ready" else duration(replica.phase_s + since_s),
                )
            if len(deployment.replicas) < deployment.target_replicas:
                missing = deployment.target_replicas - len(deployment.replicas)
                table.add_row("  " + deployment.name, "", Text(f"{missing} to start", "dim"), "")
            if said := brief(deployment.message):
                table.add_row("", "", Text(said, "red"), "")

    def _add_counts(self, table: Table, app: ApplicationStatus) -> None:
        for deployment in app.deployments.values():
            phases = [replica.phase for replica in deployment.replicas]
            counts = ", ".join(f"{phases.count(phase)} {phase}" for phase in dict.fromkeys(phases))
            table.add_row("  " + deployment.name, f"of {deployment.target_replicas}", counts, brief(deployment.message))
