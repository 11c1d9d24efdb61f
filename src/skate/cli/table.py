"""``skate status`` for people. Law: everything that needs a look is shown; of many replicas that are well, the number.

Functions of values: a status, and how many seconds ago it was true. ``--json`` shows every replica.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from skate.authoring.traces import shortened
from skate.cli.words import COLOURS, brief, coloured, duration, url
from skate.controlplane.decide.ledger import total
from skate.core.specs import (
    ApplicationStatus,
    AutoscalingStatus,
    Counts,
    DeploymentStatus,
    LedgerReport,
    ReplicaStatus,
    ServeStatus,
)
from skate.observe.metrics import OUTCOMES

REPLICAS_MAX = 24  # of one deployment, one by one; beyond that those that are well are counted
STRIKES_MAX = 3  # then a replica is replaced

Row = list[str]


def lines(status: ServeStatus, supervisor_pid: int | None, now: float, since_s: float = 0.0) -> list[str]:
    """The whole instance; ``now`` is the wall time, ``since_s`` the age of the status."""
    said = [f"Instance  supervisor pid {supervisor_pid or '?'}, controller pid {status.controller_pid or '?'}"]
    if status.target_capacity is not None:
        said[0] += f", target capacity {status.target_capacity:g} %"
    said += _proxies(status)
    for app in status.applications.values():
        said += ["", *application_lines(status, app, now, since_s)]
    if not status.applications:
        said += ["", "No applications; deploy one with: skate run module:app, or skate deploy module:app"]
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


# -- applications -------------------------------------------------------------------------------------


def application_lines(status: ServeStatus, app: ApplicationStatus, now: float, since_s: float = 0.0) -> list[str]:
    """One application with its deployments and replicas."""
    reached = url(status, app) or "without HTTP"
    said = [
        f"Application {click.style(app.name, bold=True)}  {coloured(app.status)}  {reached}",
        f"  {_deployed(app, now)}",
    ]
    rows = {name: _rows(one, since_s) for name, one in app.deployments.items()}
    drawn = iter(aligned([row for block in rows.values() for row in block]))
    for name, one in app.deployments.items():
        said += [next(drawn) for _ in rows[name]]
        said += [f"    {note}" for note in _notes(one, now, since_s)]
    if app.message:
        said += [f"  {line}" for line in shortened(app.message).splitlines()]
    return said


def _deployed(app: ApplicationStatus, now: float) -> str:
    age = duration(max(0.0, now - app.last_deployed_time_s))
    revision = f"revision {app.revision}, " if app.revision else ""
    return f"{revision}deployed {age} ago{f' by {app.deployed_by}' if app.deployed_by else ''}"


def _rows(deployment: DeploymentStatus, since_s: float) -> list[Row]:
    """The deployment, and its replicas one by one as long as they are few."""
    ready = sum(replica.phase == "ready" for replica in deployment.replicas)
    rows = [
        [f"  {deployment.name}", coloured(deployment.status), f"{ready} of {deployment.target_replicas} ready", "", ""]
    ]
    rows += [_replica(deployment, replica, since_s) for replica in _shown(deployment)]
    return rows


def _shown(deployment: DeploymentStatus) -> list[ReplicaStatus]:
    many = len(deployment.replicas) > REPLICAS_MAX
    return [one for one in deployment.replicas if not many or not _is_well(deployment, one)][:REPLICAS_MAX]


def _is_well(deployment: DeploymentStatus, replica: ReplicaStatus) -> bool:
    return replica.phase == "ready" and not replica.strikes and not _is_old(deployment, replica)


def _is_old(deployment: DeploymentStatus, replica: ReplicaStatus) -> bool:
    return bool(replica.version and deployment.version) and replica.version != deployment.version


def _replica(deployment: DeploymentStatus, replica: ReplicaStatus, since_s: float) -> Row:
    notes = []
    if _is_old(deployment, replica):
        notes.append("of the version before")
    if replica.strikes:
        failed = f"{replica.strikes} of {STRIKES_MAX} health checks failed"
        notes.append(click.style(failed, fg=COLOURS["UNHEALTHY"]))
    if replica.message and replica.phase != "failed":
        notes.append(brief(replica.message))
    return [
        f"    #{replica.id.rpartition('#')[2]}",
        coloured(replica.phase),
        duration(replica.phase_s + since_s),
        f"pid {replica.pid}" if replica.pid else "",
        ", ".join(notes),
    ]


def _notes(deployment: DeploymentStatus, now: float, since_s: float) -> Iterator[str]:
    """Who is not shown, what the autoscaler thinks, and why starts are slowed down."""
    hidden = len(deployment.replicas) - len(_shown(deployment))
    if hidden:
        yield f"and {hidden} more (--json has them all)"
    if deployment.autoscaling is not None:
        yield from autoscaling(deployment.autoscaling, now)
    loop = deployment.crash_loop
    if loop is not None:
        head = click.style("crash loop:", fg=COLOURS["UNHEALTHY"])
        if loop.next_try_in_s is None:
            then = "no more tries"  # and the message of the application has the error
        else:
            in_s = loop.next_try_in_s - since_s
            then = f"next try in {duration(in_s)}" if in_s > 0 else "being tried again"
            then += f": {brief(loop.error)}" if loop.error else ""
        yield f"{head} {loop.failures} failures within a minute, {then}"


def autoscaling(seen: AutoscalingStatus, now: float) -> Iterator[str]:
    """How the autoscaler sees a deployment, and what it did last."""
    load = f"{seen.ongoing:.3g} ongoing + {seen.queued:.3g} queued"
    waits = f", waits: {seen.waiting}" if seen.waiting else ""
    yield (
        f"autoscaled {seen.min_replicas} to {seen.max_replicas} by {seen.policy}: "
        f"{load}, desired {seen.desired:.3g}{waits}"
    )
    if seen.decisions:
        last = seen.decisions[-1]
        yield f"  {duration(max(0.0, now - last.at))} ago {last.before} → {last.after}: {last.reason}"
    if seen.error:
        yield click.style("  the policy failed: ", fg=COLOURS["UNHEALTHY"]) + brief(seen.error)


# -- calls --------------------------------------------------------------------------------------------


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


# -- lines --------------------------------------------------------------------------------------------


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, every column as wide as its widest cell on the screen."""
    widths = [max(len(click.unstyle(cell)) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
