"""Tells mypy what ``@serve.deployment`` makes of a class: ``plugins = ["skate.authoring.mypy_plugin"]``.

Law: the class stays a class (so that it can stand in annotations), and gets ``bind`` with the parameters of its
constructor and ``options``. Why: mypy leaves out what a class decorator returns, so without this ``Model.bind`` is
unknown to it. Type checkers that do follow class decorators, and functions in mypy, need no plugin for that.
Calls through handles are the matter of ``skate.authoring.mypy_handles``. Loaded by mypy only; nothing of Skate
imports this.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from mypy.errorcodes import ARG_TYPE
from mypy.messages import format_type
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
from mypy.options import Options
from mypy.plugin import AttributeContext, ClassDefContext, MethodContext, MethodSigContext, Plugin, ReportConfigContext
from mypy.plugins.common import add_attribute_to_class, add_method_to_class
from mypy.subtypes import is_subtype
from mypy.types import (
    AnyType,
    CallableType,
    FunctionLike,
    Instance,
    NoneType,
    Parameters,
    Type,
    TypeOfAny,
    TypeType,
    UnionType,
    get_proper_type,
)

from skate.authoring import mypy_handles
from skate.authoring.mypy_handles import HandleTypes

_HOME = "skate.authoring.deployment"
_DECORATOR = f"{_HOME}.deployment"
_HANDLE = "skate.dataplane.handle.DeploymentHandle"
_EDITION = sha256(Path(mypy_handles.__file__).read_bytes()).hexdigest()
_ACCEPTED = (ARG_POS, ARG_OPT, ARG_STAR, ARG_NAMED, ARG_NAMED_OPT, ARG_STAR2)


class DeploymentPlugin(Plugin):
    """Finds classes under the decorator, and handles."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._handles = HandleTypes(self.lookup_fully_qualified)

    def report_config_data(self, ctx: ReportConfigContext) -> str:
        """What mypy's cache was made with; of a plugin it looks at the one file that the configuration names."""
        return _EDITION

    def get_class_decorator_hook_2(self, fullname: str) -> Callable[[ClassDefContext], bool] | None:
        return _declare if fullname == _DECORATOR else None

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        return self._handles.attribute_hook(fullname)

    def get_method_hook(self, fullname: str) -> Callable[[MethodContext], Type] | None:
        return _check_nodes if fullname.endswith(".bind") else self._handles.method_hook(fullname)

    def get_method_signature_hook(self, fullname: str) -> Callable[[MethodSigContext], FunctionLike] | None:
        return self._handles.signature_hook(fullname)


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


# -- a node where a handle is wanted ----------------------------------------------------------------


def _check_nodes(context: MethodContext) -> Type:
    """``Driver.bind(Model.bind())``: the constructor of Driver gets a handle of Model; is that what it wants?"""
    made = get_proper_type(context.default_return_type)
    if not isinstance(made, Instance) or made.type.fullname != f"{_HOME}.Application":
        return context.default_return_type
    formals = zip(context.callee_arg_names, _wanted(context), context.arg_types, context.args, strict=False)
    for name, wanted, given, expressions in formals:
        for kind, expression in zip(given, expressions, strict=True):
            node = get_proper_type(kind)
            if isinstance(node, Instance) and node.type.fullname == made.type.fullname and not _fits(node, wanted):
                got, expected = (format_type(one, context.api.options) for one in (node, wanted))
                what = f'Argument "{name}"' if name else "An argument"
                context.api.fail(f"{what} of bind is {got}, but a {expected} is wanted", expression, code=ARG_TYPE)
    return context.default_return_type


def _wanted(context: MethodContext) -> list[Type]:
    """The types of the parameters that this ``bind`` has."""
    owner = context.type
    if isinstance(owner, Instance) and owner.type.fullname == f"{_HOME}.Deployment" and owner.args:
        shape = get_proper_type(owner.args[0])
        return list(shape.arg_types) if isinstance(shape, Parameters) else []
    if isinstance(owner, FunctionLike) and owner.is_type_obj():
        method = owner.type_object().get_method("bind")
        if method is not None and isinstance(method.type, CallableType):
            return list(method.type.arg_types)
    return []


def _fits(node: Instance, wanted: Type) -> bool:
    """Whether the handle that takes the place of the node is of a type that is wanted; yes where that is no handle."""
    proper = get_proper_type(wanted)
    if isinstance(proper, UnionType):
        return any(_fits(node, item) for item in proper.items if not isinstance(get_proper_type(item), NoneType))
    if not isinstance(proper, Instance) or proper.type.fullname != _HANDLE:
        return True
    return is_subtype(node.args[0], proper.args[0])
