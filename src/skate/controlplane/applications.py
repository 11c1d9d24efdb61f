"""What users may want of applications: deploy, order, scale, delete, return to a former revision.

Law: a wish is checked against all others, stored, and only then taken up; who was answered can rely on it. Each wish
concerns the applications that it names and no other.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from skate.controlplane.client import DeleteRequest, RollbackRequest, ScaleRequest
from skate.controlplane.decide.changes import changes
from skate.controlplane.decide.reconcile import gave_up
from skate.controlplane.decide.retire import last_that_worked, retiring
from skate.controlplane.decide.values import Goal, Happening, Order
from skate.controlplane.state import State
from skate.controlplane.store import Row, revision_row
from skate.core.checks import nearest
from skate.core.config import AppConfig, ApplyRequest, ServeConfig
from skate.core.errors import NotFoundError, NotRunningError, OptionError
from skate.core.options import deployment_options
from skate.core.specs import AppSpec, Revision

APPS_MAX = 1000  # applications of one instance


class Applications:
    """The wishes of users, taken up into the state."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._orders = max((order.number for order in state.orders.values()), default=0)

    # -- deploying ------------------------------------------------------------------------------

    def deploy(
        self,
        app: AppSpec,
        by: str,
        cause: str = "deploy",
        source: AppConfig | None = None,
        moving: Iterable[str] = (),
    ) -> int:
        """Wants this application, whatever had its name; its revision. ``moving``: who gives its route free."""
        state = self._state
        self.refuse_if_ending()
        self._refuse_conflicts([(app.name, app.route_prefix)], moving)
        before = state.goals.get(app.name)
        at = state.clock.wall()
        if before is not None and before.spec == app and not before.deleting and not self._is_failing(before):
            goal = replace(before, deployed_at=at, by=by, source=source)  # nothing is different: no new revision
            state.records.must_write([Row("goal", app.name, goal), Row("order", app.name)], (), at)
        else:
            goal = Goal(
                app,
                self._next_revision(app.name),
                at,
                cause=cause,
                by=by,
                source=source,
                retiring=retiring(before, app, state.memory),
                former=last_that_worked(before),
            )
            text = f"revision {goal.revision}, {cause}" + (f" by {by}" if by else "")
            said = Happening(app.name, "", "deployed", text, {"revision": goal.revision})
            rows = [Row("goal", app.name, goal), Row("order", app.name), revision_row(goal)]
            state.records.must_write(rows, [said], at)
        state.orders.pop(app.name, None)
        state.set_goal(goal)
        return goal.revision

    def order(self, request: ApplyRequest) -> dict[str, int]:
        """Wants these applications to be built and then deployed; the number of each order."""
        state, config = self._state, request.config
        self.refuse_if_ending()
        leaving = self.refuse_conflicts(request)
        at = state.clock.wall()
        orders: list[Order] = []
        for app in config.applications:
            self._orders += 1
            orders.append(
                Order(app, self._orders, at, request.by, config.logging_config, request.sys_path, request.cwd)
            )
        going = [replace(state.goals[name], deleting=True) for name in leaving if name in state.goals]
        rows = [Row("order", order.config.name, order) for order in orders]
        rows += [Row("goal", goal.spec.name, goal) for goal in going] + [Row("order", name) for name in leaving]
        state.records.must_write(
            [*rows, state.rest_row(config.target_capacity)], [_deleted(goal) for goal in going], at
        )
        for order in orders:
            state.set_order(order)
        for name in leaving:
            state.drop_order(name)
        for goal in going:
            state.set_goal(goal)
        state.set_capacity(config.target_capacity)
        return {order.config.name: order.number for order in orders}

    def refuse_conflicts(self, request: ApplyRequest) -> list[str]:
        """The applications that go with this request. Raises OptionError where a path would lead to two."""
        leaving = self.pruned(request)
        self._refuse_conflicts([(app.name, app.route_prefix) for app in request.config.applications], leaving)
        return leaving

    def pruned(self, request: ApplyRequest) -> list[str]:
        """The applications that a request with ``prune`` deletes: from a configuration, and not named any more."""
        if not request.prune:
            return []
        named, goals = {app.name for app in request.config.applications}, self._state.goals
        declared = [name for name, goal in goals.items() if goal.source is not None and not goal.deleting]
        ordered = [name for name in self._state.orders if name not in goals or goals[name].deleting]
        return [name for name in (*declared, *ordered) if name not in named]

    def built(self, order: Order, app: AppSpec) -> None:
        """An order was built. Others that are being built have agreed with it about routes: two may change places."""
        moving = [name for name, other in self._state.orders.items() if not other.error]
        self.deploy(app, order.by, source=order.config, moving=moving)

    def not_built(self, order: Order, error: str) -> None:
        """An order could not be built; what ran before goes on."""
        state = self._state
        state.records.happened(
            [Happening(order.config.name, "", "build_failed", error[-1000:], {"order": order.number})],
            state.clock.wall(),
        )
        state.set_order(replace(order, error=error))

    # -- changing -------------------------------------------------------------------------------

    def scale(self, request: ScaleRequest) -> None:
        """Wants another number of replicas; revisions are not concerned."""
        state = self._state
        self.refuse_if_ending()
        goal = self._goal(request.app)
        known = [spec.name for spec in goal.spec.deployments]
        if request.deployment not in known:
            near = nearest(request.deployment, known) or f"; its deployments are {', '.join(known)}"
            raise NotFoundError(f"application {request.app!r} has no deployment {request.deployment!r}{near}")
        spec = next(one for one in goal.spec.deployments if one.name == request.deployment)
        if isinstance(spec.options.num_replicas, str):
            raise OptionError(
                f"deployment {spec.key!r} is scaled by its load: change min_replicas and max_replicas of its "
                "autoscaling_config, or deploy it with a fixed num_replicas first"
            )
        options = deployment_options({"num_replicas": request.replicas}, spec.options, "scale", stacklevel=0)
        scaled = replace(spec, options=options)
        deployments = tuple(scaled if one is spec else one for one in goal.spec.deployments)
        after = replace(goal, spec=replace(goal.spec, deployments=deployments))
        state.records.must_write([Row("goal", request.app, after)], (), state.clock.wall())
        state.set_goal(after)

    def delete(self, request: DeleteRequest) -> Goal | None:
        """Wants an application to go; its goal, None when there was only an order or another revision is wanted."""
        state, name = self._state, request.app
        goal = state.goals.get(name)
        if goal is None and name not in state.orders:
            known = ", ".join(repr(one) for one in state.goals) or "none"
            raise NotFoundError(f"there is no application {name!r} to delete; there are: {known}")
        if goal is not None and request.revision not in (None, goal.revision):
            return None
        before = goal
        if goal is not None and not goal.deleting:
            goal = replace(goal, deleting=True)
        news = [goal] if goal is not None and goal is not before else []
        rows = [Row("order", name), *(Row("goal", name, one) for one in news)]
        state.records.must_write(rows, [_deleted(one) for one in news], state.clock.wall())
        state.drop_order(name)
        for one in news:
            state.set_goal(one)
        return goal

    def rollback(self, request: RollbackRequest) -> int:
        """Wants a former revision again; the number that it has now.

        Without a number: the last one that worked and differs from what was asked for last.
        """
        self.refuse_if_ending()
        goal = self._goal(request.app)
        kept = self._state.records.store.revisions(request.app)
        if request.revision is None and request.app in self._state.orders:  # what came last never became a revision
            wanted = goal
        elif request.revision is None:
            earlier = [one for one in kept if one.revision < goal.revision and changes(goal.spec, one.spec)]
            if not earlier:
                raise NotFoundError(f"application {request.app!r} has no earlier revision that differs from this one")
            wanted = ([one for one in earlier if one.worked] or earlier)[-1]
        else:
            found = [one for one in kept if one.revision == request.revision]
            if not found:
                numbers = ", ".join(str(one.revision) for one in kept) or "none"
                raise NotFoundError(
                    f"revision {request.revision} of application {request.app!r} is not kept; kept are: {numbers}"
                )
            wanted = found[0]
        return self.deploy(wanted.spec, request.by, f"rollback to {wanted.revision}", wanted.source)

    # -- telling --------------------------------------------------------------------------------

    def history(self, app: str) -> list[Revision]:
        """The kept revisions, oldest first."""
        goal = self._goal(app)
        return [
            Revision(
                app,
                one.revision,
                one.deployed_at,
                one.cause,
                one.by,
                {spec.name: spec.version for spec in one.spec.deployments},
                one.revision == goal.revision,
                one.worked,
            )
            for one in self._state.records.store.revisions(app)
        ]

    def config(self) -> ServeConfig:
        """What was applied and is in force."""
        state = self._state
        ordered = {name: order.config for name, order in state.orders.items() if not order.error}
        running = {
            name: goal.source for name, goal in state.goals.items() if goal.source is not None and not goal.deleting
        }
        return ServeConfig(tuple({**running, **ordered}.values()), target_capacity=state.capacity)

    # -- checks ---------------------------------------------------------------------------------

    def refuse_if_ending(self) -> None:
        """Raises NotRunningError while the instance ends."""
        if self._state.memory.ending:
            raise NotRunningError("this Skate instance is shutting down; start it again, then deploy")

    def _goal(self, name: str) -> Goal:
        goal = self._state.goals.get(name)
        if goal is None or goal.deleting:
            known = [one for one, it in self._state.goals.items() if not it.deleting]
            near = nearest(name, known) or f"; running are: {', '.join(known) or 'none'}"
            raise NotFoundError(f"no application {name!r} is running{near}")
        return goal

    def _next_revision(self, name: str) -> int:
        kept = self._state.records.store.revisions(name)
        before = self._state.goals.get(name)
        return max([one.revision for one in kept] + ([before.revision] if before is not None else [0])) + 1

    def _is_failing(self, goal: Goal) -> bool:
        """Whether a deployment has given up at this revision: asking again means trying again."""
        for spec in goal.spec.deployments:
            known = self._state.memory.deployments.get(spec.key)
            if known is not None and known.failures.last_at is not None and gave_up(spec, known):
                return True
            group = self._state.observed.replicas.get(spec.key, {})
            if any(seen.refused and seen.refused == spec.config for seen in group.values()):
                return True
        return False

    def _refuse_conflicts(self, wished: Iterable[tuple[str, str | None]], leaving: Iterable[str] = ()) -> None:
        """One path leads to one application, also to one that is being built."""
        state, wishes, going = self._state, dict(wished), set(leaving)
        taken = {
            goal.spec.route_prefix: name
            for name, goal in state.goals.items()
            if name not in wishes and name not in going and not goal.deleting
        }
        for name, order in state.orders.items():
            if name not in wishes and name not in going:
                taken[order.config.route_prefix] = name
        for name, prefix in wishes.items():
            other = taken.get(prefix)
            if prefix is not None and other is not None:
                raise OptionError(
                    f"route_prefix {prefix!r} of application {name!r} is in use by application {other!r}: "
                    f"give one of them another route_prefix, or delete {other!r} first"
                )
            taken[prefix] = name
        count = len(state.goals.keys() | state.orders.keys() | wishes.keys())
        if count > APPS_MAX:
            raise OptionError(f"{count} applications are too many: an instance runs at most {APPS_MAX}")


def _deleted(goal: Goal) -> Happening:
    return Happening(goal.spec.name, "", "deleted", f"revision {goal.revision} shall go")
