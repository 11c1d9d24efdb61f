"""What is new in a status since the last one, as lines: for pipes, files and logs.

Law: it is told whole statuses and compares; a change that came and went between two of them is not news.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from skate.cli.words import brief, building, coloured, replicas_of
from skate.core.specs import ApplicationStatus, DeploymentStatus, ReplicaStatus, ServeStatus


class News:
    """``names``: of these applications only; None: of all. ``since``: what replicas have been since before is no news.
    ``states``: tell those of applications, too."""

    def __init__(
        self, names: Collection[str] | None = None, since: float = float("-inf"), *, states: bool = False
    ) -> None:
        self._names = names
        self._since = since
        self._states_too = states
        self._states: dict[str, str] = {}
        self._phases: dict[str, str] = {}
        self._first_seen: dict[str, float] = {}
        self._failures: dict[str, str] = {}

    def of(self, status: ServeStatus, now: float) -> list[str]:
        """What is new; it counts as said from now on."""
        apps = {name: app for name, app in status.applications.items() if self._names is None or name in self._names}
        news = list(self._of_replicas(apps, now))
        for app in apps.values():
            news += self._of_building(app)
            news += self._of_failures(app)
        return [*news, *self._of_states(status, apps)]

    def _of_replicas(self, apps: dict[str, ApplicationStatus], now: float) -> Iterator[str]:
        seen = {replica.id: (one, replica) for app in apps.values() for one, replica in replicas_of(app)}
        for id, (deployment, replica) in seen.items():
            self._first_seen.setdefault(id, now - replica.phase_s)
            if self._phases.get(id) != replica.phase:
                if now - replica.phase_s >= self._since:
                    yield f"{id}  {coloured(replica.phase)}{self._after(deployment, replica, now)}"
                self._phases[id] = replica.phase
        for id in sorted(self._phases.keys() - seen.keys()):
            if self._phases.pop(id) != "failed":
                yield f"{id}  ended"
            del self._first_seen[id]

    def _after(self, deployment: DeploymentStatus, replica: ReplicaStatus, now: float) -> str:
        if replica.phase != "ready":
            return ""
        ready = sum(one.phase == "ready" for one in deployment.replicas)
        after_s = max(0.0, now - replica.phase_s - self._first_seen[replica.id])
        return f" after {after_s:.1f} s, {ready} of {deployment.target_replicas}"

    def _of_building(self, app: ApplicationStatus) -> Iterator[str]:
        said = building(app)
        if said and said != self._failures.get(app.name) and not self._states_too:
            yield f"{app.name}: {said}"
        self._failures[app.name] = said

    def _of_failures(self, app: ApplicationStatus) -> Iterator[str]:
        for deployment in app.deployments.values() if app.status != "DELETING" else ():
            key = f"{app.name}/{deployment.name}"
            said = brief(deployment.message)
            if said and said != self._failures.get(key) and deployment.status != "DEPLOY_FAILED":
                yield f"{deployment.name}: {said}"
            self._failures[key] = said

    def _of_states(self, status: ServeStatus, apps: dict[str, ApplicationStatus]) -> Iterator[str]:
        if not self._states_too:
            return
        found = {f"Proxy {one.id}": f"{coloured(one.status)}  {one.message}" for one in status.proxies.values()}
        for app in apps.values():
            found[app.name] = f"{coloured(app.status)}  {brief(app.message)}"
            for name, one in app.deployments.items():
                replicas = f"{one.target_replicas} replica{'s' * (one.target_replicas != 1)} wanted"
                found[f"{app.name}/{name}"] = f"{coloured(one.status)}  {replicas}"
        for key, said in found.items():
            if self._states.get(key) != said:
                yield f"{key}  {said}".rstrip()
        for key in self._states.keys() - found.keys():
            yield f"{key}  gone"
        self._states = found
