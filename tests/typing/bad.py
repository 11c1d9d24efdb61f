"""Programs with a mistake each; the comment names the error code of mypy that must stand at that line."""

from __future__ import annotations

from skate.authoring.deployment import deployment
from skate.authoring.graph import build


@deployment
class Model:
    def __init__(self, path: str, *, scale: float = 1.0) -> None: ...


@deployment(num_replicas=2)
class Bare: ...


class Written:
    def __init__(self, size: int) -> None: ...


Called = deployment(Written)


@deployment
def function(number: int) -> int:
    return number


Model.bind()  # E: call-arg
Model.bind(3)  # E: arg-type
Model.bind("a", 2.0)  # E: call-arg
Model.bind("a", scale="big")  # E: arg-type
Model.bind("a", size=1)  # E: call-arg
Model.options(num_replicas=2).bind()  # E: call-arg
Model.options(num_replicas=2).bind(3)  # E: arg-type
Bare.bind(1)  # E: call-arg
Called.bind("a")  # E: arg-type
Called.bind()  # E: call-arg
function.bind(1)  # E: call-arg
function.opts()  # E: attr-defined
build(Called)  # E: arg-type
build(Written(3))  # E: arg-type
deployment(3)  # E: call-overload
