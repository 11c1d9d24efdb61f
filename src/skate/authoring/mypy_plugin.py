"""Tells mypy what ``@serve.deployment`` makes of a class: ``plugins = ["skate.authoring.mypy_plugin"]``.

Law: the class stays a class (so that it can stand in annotations), and gets ``bind`` with the parameters of its
constructor and ``options``. Why: mypy leaves out what a class decorator returns, so without this ``Model.bind`` is
unknown to it. Type checkers that do follow class decorators, and functions in mypy, need no plugin.
Loaded by mypy only; nothing of Skate imports this.
"""

from __future__ import annotations

from collections.abc import Callable

from mypy.nodes import (
    ARG_NAMED,
    ARG_NAMED_OPT,
    ARG_OPT,
    ARG_POS,
    ARG_STAR,
    ARG_STAR2,
    ArgKind,
    Argument,
    FuncDef,
    Var,
)
from mypy.plugin import ClassDefContext, Plugin
from mypy.plugins.common import add_attribute_to_class, add_method_to_class
from mypy.types import AnyType, CallableType, Instance, Parameters, Type, TypeOfAny, TypeType

_HOME = "skate.authoring.deployment"
_DECORATOR = f"{_HOME}.deployment"
_ACCEPTED = (ARG_POS, ARG_OPT, ARG_STAR, ARG_NAMED, ARG_NAMED_OPT, ARG_STAR2)


class DeploymentPlugin(Plugin):
    """Finds classes under the decorator."""

    def get_class_decorator_hook_2(self, fullname: str) -> Callable[[ClassDefContext], bool] | None:
        return _declare if fullname == _DECORATOR else None


def plugin(version: str) -> type[Plugin]:
    """mypy's entry."""
    return DeploymentPlugin


def _declare(context: ClassDefContext) -> bool:
    info, api = context.cls.info, context.api
    anything = AnyType(TypeOfAny.explicit)
    made = Instance(info, [anything] * len(info.type_vars))
    parameters = _constructor(context)
    bound = api.named_type_or_none(f"{_HOME}.Application", [made])
    shape = Parameters(
        [argument.type_annotation or anything for argument in parameters],
        [argument.kind for argument in parameters],
        [None if argument.pos_only else argument.variable.name for argument in parameters],
    )
    deployment = api.named_type_or_none(f"{_HOME}.Deployment", [shape, made])
    if bound is None or deployment is None:
        return True
    keywords = Argument(Var("options", anything), anything, None, ARG_STAR2)
    for name, arguments, result in (("bind", parameters, bound), ("options", [keywords], deployment)):
        if _is_free(context, name):
            add_method_to_class(api, context.cls, name, arguments, result, is_staticmethod=True)
    if _is_free(context, "func_or_class"):
        add_attribute_to_class(api, context.cls, "func_or_class", TypeType(made), is_classvar=True)
    return True


def _is_free(context: ClassDefContext, name: str) -> bool:
    found = context.cls.info.names.get(name)
    return found is None or found.plugin_generated


def _constructor(context: ClassDefContext) -> list[Argument]:
    """The parameters of ``__init__`` after ``self``; any at all where they cannot be read."""
    method = context.cls.info.get_method("__init__")
    if isinstance(method, FuncDef) and method.info.fullname == "builtins.object":
        return []
    if not isinstance(method, FuncDef) or any(kind not in _ACCEPTED for kind in method.arg_kinds):
        return [_any("args", ARG_STAR), _any("kwargs", ARG_STAR2)]
    typed = method.type if isinstance(method.type, CallableType) else None
    types: list[Type] = list(typed.arg_types) if typed else [AnyType(TypeOfAny.unannotated)] * len(method.arguments)
    return [
        Argument(Var(old.variable.name, kind), kind, None, old.kind, pos_only=old.pos_only)
        for old, kind in zip(method.arguments[1:], types[1:], strict=True)
    ]


def _any(name: str, kind: ArgKind) -> Argument:
    anything = AnyType(TypeOfAny.explicit)
    return Argument(Var(name, anything), anything, None, kind)
