"""What a command shows on a terminal while it waits: a table that moves while applications start, then lines.

Law: this is the only module that imports rich, and it is loaded only when a terminal is there to draw on. Other
processes never write to that terminal themselves while the table is on it; what they print comes through a pipe.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from skate.cli.screen import Lines
from skate.cli.words import COLOURS, brief, building, duration, replicas_of, url
from skate.core.specs import ApplicationStatus, DeploymentStatus, ServeStatus

PERIOD_S = 0.1
ROWS_MAX = 24  # one row for each replica that is not ready up to here, beyond that only counts
CHUNK = 65_536
LINE_MAX = 10_000  # bytes; what has no end by then is shown as it is
LAST_OUTPUT_S = 1.0  # for what is still in the pipe when the instance has ended


class LiveTable:
    """Each replica's phase with the seconds it has been in it."""

    def __init__(self, listens: bool = False) -> None:
        """``listens``: processes are started that print into a pipe of this screen."""
        self.period_s: float | None = None
        self.output: int | None = None
        self._console = Console()
        self._lines = Lines()
        self._lock = threading.RLock()  # the thread that reads what replicas print draws, too
        self._live: Live | None = None
        self._names: Sequence[str] = ()
        self._began = 0.0
        self._status = ServeStatus()
        self._seen_at = 0.0
        self._half = b""  # a printed line without its end
        self._reader: threading.Thread | None = None
        if listens and sys.stderr.isatty():
            self._listen()

    def begin(self, names: Sequence[str], now: float) -> None:
        """Draws until ``settle``."""
        with self._lock:
            self.settle()
            self._names, self._began, self._seen_at = names, now, now
            self._lines.begin(names, now)
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
            self.period_s = PERIOD_S
            self.tick(now)

    def show(self, status: ServeStatus, now: float) -> None:
        """Draws it, or after ``settle`` prints what is new."""
        with self._lock:
            self._status, self._seen_at = status, now
            if self._live is None:
                self._lines.show(status, now)
            else:
                self._lines.news(status, now)  # drawn, not printed
                self.tick(now)

    def tick(self, now: float) -> None:
        """Lets the seconds run."""
        with self._lock:
            if self._live is not None:
                self._live.update(self._drawing(now), refresh=True)

    def settle(self) -> None:
        """The table goes; lines follow."""
        with self._lock:
            if self._live is not None:
                self._live.stop()
                self._live = None
                self.period_s = None
                self._write(self._half)
                self._half = b""

    def line(self, text: str) -> None:
        """Above the table, if there is one."""
        with self._lock:
            if self._live is None:
                self._lines.line(text)
            else:
                self._console.print(Text.from_ansi(text))

    def error(self, text: str) -> None:
        """The table goes first."""
        with self._lock:
            self.settle()
            self._lines.error(text)

    # -- what others print --------------------------------------------------------------------------

    def _listen(self) -> None:
        reading, self.output = os.pipe()
        self._reader = threading.Thread(target=self._pass_on, args=(reading,), name="skate-output", daemon=True)
        self._reader.start()

    def _pass_on(self, reading: int) -> None:
        with open(reading, "rb", buffering=0) as file:
            while data := file.read(CHUNK):
                with self._lock:
                    self._printed(data)

    def _printed(self, data: bytes) -> None:
        if self._live is None:
            self._write(data)
            return
        *lines, self._half = (self._half + data).split(b"\n")
        if len(self._half) > LINE_MAX:
            lines.append(self._half)
            self._half = b""
        for line in lines:
            last = line.rstrip(b"\r").rpartition(b"\r")[2]  # of a progress bar the state at its end
            self._console.print(Text.from_ansi(last.decode(errors="replace")), soft_wrap=True)

    def _write(self, data: bytes) -> None:
        if data:
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.flush()

    def close(self) -> None:
        """Shows the last words of an instance that has ended."""
        self.settle()
        if self.output is not None and self._reader is not None:
            os.close(self.output)
            self.output = None
            self._reader.join(LAST_OUTPUT_S)

    # -- drawing ------------------------------------------------------------------------------------

    def _drawing(self, now: float) -> Group:
        parts: list[Text | Table] = []
        for name in self._names:
            app = self._status.applications.get(name)
            where = (url(self._status, app) if app is not None else None) or ""
            took = (duration(now - self._began), "dim")
            parts.append(Text.assemble((f"Starting {name}", "bold"), "  ", took, f"  {where}"))
            if app is not None:
                parts += self._application(app, now - self._seen_at)
        return Group(*parts)

    def _application(self, app: ApplicationStatus, since_s: float) -> Iterator[Text | Table]:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        many = sum(replica.phase != "ready" for _, replica in replicas_of(app)) > ROWS_MAX
        for deployment in app.deployments.values():
            _add(table, deployment, since_s, many)
        if table.row_count:
            yield table
        said = {name: brief(deployment.message) for name, deployment in app.deployments.items()}
        yield from (Text(f"  {name}: {text}", "red") for name, text in said.items() if text)
        if said_before := building(app):
            yield Text(f"  {said_before}", "dim")


class Drawn:
    """A whole status, drawn again at every change and each second; what does not fit is cut off until the end."""

    def __init__(self, draw: Callable[[ServeStatus, float], list[str]]) -> None:
        self.period_s: float | None = 1.0
        self._draw = draw
        self._live = Live(console=Console(), auto_refresh=False)
        self._live.start()

    def show(self, status: ServeStatus, since_s: float) -> None:
        """The status, ``since_s`` seconds ago."""
        text = Text.from_ansi("\n".join(self._draw(status, since_s)))
        text.no_wrap, text.overflow = True, "ellipsis"
        self._live.update(text, refresh=True)

    def close(self) -> None:
        """The last drawing stays."""
        self._live.stop()


def _add(table: Table, deployment: DeploymentStatus, since_s: float, many: bool) -> None:
    """A row for the deployment, and one for each replica that is not ready."""
    phases = [replica.phase for replica in deployment.replicas]
    counts = ", ".join(f"{phases.count(phase)} {phase}" for phase in dict.fromkeys(phases))
    wanted = deployment.target_replicas
    table.add_row(f"  {deployment.name}", f"{phases.count('ready')} of {wanted} ready", counts if many else "")
    if many:
        return
    for place, replica in enumerate(deployment.replicas, 1):
        if replica.phase != "ready":
            table.add_row(
                "",
                f"replica {place}/{max(wanted, len(phases))}",
                Text(replica.phase, COLOURS.get(replica.phase, "")),
                duration(replica.phase_s + since_s),
            )
    if len(phases) < wanted:
        table.add_row("", Text(f"{wanted - len(phases)} to start", "dim"))
