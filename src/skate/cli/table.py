"""``skate status`` for people. Law: everything the status holds is shown; what is long is shortened, never left out."""

from __future__ import annotations

from collections.abc import Sequence

import click

from skate.authoring.traces import shortened
from skate.cli.screen import coloured, duration, url
from skate.controlplane.decide.ledger import total
from skate.core.specs import ApplicationStatus, Counts, LedgerReport, ServeStatus
from skate.observe.metrics import OUTCOMES


def lines(status: ServeStatus, supervisor_pid: int | None, now: float) -> list[str]:
    """The whole instance; ``now`` is the wall time."""
    said = [f"Instance  supervisor pid {supervisor_pid or '?'}, controller pid {status.controller_pid or '?'}"]
    said += _proxies(status)
    for app in status.applications.values():
        said += ["", *application_lines(status, app, now)]
    if not status.applications:
        said += ["", "No applications; deploy one with: skate run module:app"]
    return [*said, "", *calls(status.calls)]


def _proxies(status: ServeStatus) -> list[str]:
    none = [] if status.proxies else ["Proxies   none, this instance runs without HTTP"]
    named = [(f"Proxy {proxy.id}", proxy) for proxy in status.proxies.values()]
    if status.admin is not None:
        named.append(("REST", status.admin))
    rows = []
    for name, proxy in named:
        address = f"http://{proxy.address}" if proxy.address else ""
        pid = f"pid {proxy.pid}" if proxy.pid else ""
        rows.append([name, coloured(proxy.status), address, pid, proxy.message])
    return none + aligned(rows)


def application_lines(status: ServeStatus, app: ApplicationStatus, now: float) -> list[str]:
    """One application with its deployments and replicas."""
    reached = url(status, app) or "without HTTP"
    age = duration(max(0.0, now - app.last_deployed_time_s))
    said = [f"Application {click.style(app.name, bold=True)}  {coloured(app.status)}  {reached}  deployed {age} ago"]
    rows: list[list[str]] = []
    for deployment in app.deployments.values():
        ready = sum(replica.phase == "ready" for replica in deployment.replicas)
        count = f"{ready} of {deployment.target_replicas} ready"
        rows.append([f"  {deployment.name}", coloured(deployment.status), count, ""])
        for replica in deployment.replicas:
            name = "#" + replica.id.rpartition("#")[2]
            pid = f"pid {replica.pid}" if replica.pid else ""
            rows.append([f"    {name}", coloured(replica.phase), duration(replica.phase_s), pid])
    said += aligned(rows)
    if app.message:
        said += [f"  {line}" for line in shortened(app.message).splitlines()]
    return said


def calls(ledger: LedgerReport) -> list[str]:
    """Every call that was accepted, by what became of it; accepted is the sum of all others."""
    kinds = ("accepted", "open", *OUTCOMES)
    heads = [kind.replace("_", " ") for kind in kinds]
    counts = [str(getattr(ledger, kind)) for kind in kinds]
    widths = [max(len(head), len(count)) for head, count in zip(heads, counts, strict=True)]
    return [
        "Calls  " + "  ".join(head.rjust(width) for head, width in zip(heads, widths, strict=True)),
        "       " + "  ".join(count.rjust(width) for count, width in zip(counts, widths, strict=True)),
    ]


def counts_of(status: ServeStatus, app: str | None) -> Counts:
    """The counts by deployment; of one application, where one is named."""
    return {
        key: report
        for key, report in status.calls_by_deployment.items()
        if app is None or key.rpartition("/")[0] == app
    }


def calls_lines(counts: Counts) -> list[str]:
    """One line for each deployment, and the sum: accepted = queued + sent + started + the outcomes."""
    kinds = ("accepted", "queued", "sent", "started", *OUTCOMES, "retried")
    rows = [(key, report) for key, report in counts.items()]
    if len(rows) != 1:
        rows.append(("total", total(counts.values())))
    cells = [[kind.replace("_", " ") for kind in kinds]]
    cells += [[str(getattr(report, kind)) for kind in kinds] for _, report in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    names = ["deployment", *(name for name, _ in rows)]
    width = max(map(len, names))
    return [
        "  ".join((name.ljust(width), *(cell.rjust(wide) for cell, wide in zip(row, widths, strict=True))))
        for name, row in zip(names, cells, strict=True)
    ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, every column as wide as its widest cell on the screen."""
    widths = [max(len(click.unstyle(cell)) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
