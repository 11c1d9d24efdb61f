"""Tells mypy what a handle may be given and what it answers: the second half of ``skate.authoring.mypy_plugin``.

Law: ``DeploymentHandle[T].remote`` has the parameters of what it calls. T is the class, and ``__call__`` is called; or
it is a callable, that of a function deployment or the method that ``handle.method`` names. Every parameter ``X`` also
takes a ``Response[X]``, the result is what is left after all awaiting. Where T is Any or too odd to be read, everything
is accepted: a false error is worse than a missed one. Loaded by mypy only; nothing of Skate imports this.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mypy.checker import TypeChecker
from mypy.errorcodes import ATTR_DEFINED, MISC
from mypy.expandtype import expand_type
from mypy.maptype import map_instance_to_supertype
from mypy.nodes import (
    ARG_NAMED,
    ARG_NAMED_OPT,
    ARG_OPT,
    ARG_POS,
    ARG_STAR2,
    CallExpr,
    Decorator,
    FuncDef,
    SymbolNode,
    SymbolTableNode,
    TypeInfo,
)
from mypy.plugin import AttributeContext, CheckerPluginInterface, MethodContext, MethodSigContext
from mypy.types import (
    AnyType,
    CallableType,
    FunctionLike,
    Instance,
    LiteralType,
    NoneType,
    Overloaded,
    ParamSpecType,
    ProperType,
    Type,
    TypeOfAny,
    TypeVarType,
    UninhabitedType,
    UnionType,
    UnpackType,
    get_proper_type,
)

_HOME = "skate.dataplane.handle"
_OPTIONS = {"method_name": "str", "stream": "bool", "timeout_s": "float", "retry": "int", "routing_key": "str"}
_PLAIN, _STREAMING = f"{_HOME}.DeploymentHandle", f"{_HOME}.StreamingHandle"
_RESPONSE, _STREAM = f"{_HOME}.Response", "skate.dataplane.stream.ResponseStream"
_REQUESTS = {"starlette.requests.Request", "starlette.requests.HTTPConnection", "builtins.object"}
_NOT_SERVED = {"bind", "func_or_class"}  # what the plugin adds to a class; replicas know nothing of it
_ANYTHING = AnyType(TypeOfAny.special_form)

Lookup = Callable[[str], SymbolTableNode | None]
Fail = Callable[..., object]


class HandleTypes:
    """The hooks for handles. ``lookup`` finds a class by its full name."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup

    def attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        owner, _, name = fullname.rpartition(".")
        return partial(_attribute, name) if owner in (_PLAIN, _STREAMING) else None

    def signature_hook(self, fullname: str) -> Callable[[MethodSigContext], FunctionLike] | None:
        owner, _, name = fullname.rpartition(".")
        if owner not in (_PLAIN, _STREAMING):
            return None
        return {"remote": self._remote, "options": self._options, "__call__": _called}.get(name)

    def method_hook(self, fullname: str) -> Callable[[MethodContext], Type] | None:
        return _flattened if fullname == f"{_PLAIN}.remote" else None

    # -- remote ---------------------------------------------------------------------------------

    def _remote(self, context: MethodSigContext) -> FunctionLike:
        handle, checker = context.type, context.api
        if not isinstance(handle, Instance) or not isinstance(checker, TypeChecker) or len(handle.args) != 1:
            return context.default_signature
        target = _served(handle.args[0])
        if target is None:
            return context.default_signature
        called = _callable(checker, target, "__call__", context)
        if called is None:
            return context.default_signature
        streaming = handle.type.fullname == _STREAMING
        bare = isinstance(context.context, CallExpr) and not context.context.args
        items = [
            self._signature(item, streaming, bare and not _is_method(target), _failing(checker, context))
            for item in called.items
        ]
        return items[0] if len(items) == 1 else Overloaded(items)

    def _signature(self, called: CallableType, streaming: bool, bare: bool, fail: Fail) -> CallableType:
        """``called`` as ``remote`` presents it. ``bare``: no arguments are given, and an empty Request steps in."""
        called = _simplified(called)
        value = _awaited(called.ret_type)
        if streaming:
            answer = self._named(_STREAM, [_item(called, value, fail)])
        else:
            _refuse_stream(called, value, fail)
            answer = self._named(_RESPONSE, [value])
        kinds = list(called.arg_kinds)
        needed = [place for place, kind in enumerate(kinds) if kind in (ARG_POS, ARG_NAMED)]
        if bare and len(needed) == 1 and kinds[needed[0]] == ARG_POS and _takes_request(called.arg_types[needed[0]]):
            kinds[needed[0]] = ARG_OPT
        return called.copy_modified(
            arg_types=[self._widened(kind) for kind in called.arg_types],
            arg_kinds=kinds,
            ret_type=answer,
            type_guard=None,
            type_is=None,
        )

    def _widened(self, wanted: Type) -> Type:
        """Takes a response in its place too: it is replaced by its value before the call is sent."""
        proper = get_proper_type(wanted)
        if isinstance(proper, AnyType | ParamSpecType | UnpackType | UninhabitedType):
            return wanted
        if isinstance(proper, TypeVarType):  # mypy cannot solve T | Response[T]; see method_hook
            return wanted
        if isinstance(proper, Instance) and proper.type.fullname == "builtins.object":
            return wanted
        return UnionType.make_union([wanted, self._named(_RESPONSE, [wanted])])

    # -- options --------------------------------------------------------------------------------

    def _options(self, context: MethodSigContext) -> FunctionLike:
        default, handle, checker, call = context.default_signature, context.type, context.api, context.context
        if not isinstance(handle, Instance) or not isinstance(call, CallExpr) or not isinstance(checker, TypeChecker):
            return default
        if len(handle.args) != 1 or ARG_STAR2 in call.arg_kinds:
            return default.copy_modified(ret_type=self._named(_PLAIN, [_ANYTHING]))
        given = dict(zip(call.arg_names, call.args, strict=True))
        literals = {name: _literal(checker.get_expression_type(value)) for name, value in given.items()}
        target, fullname = handle.args[0], handle.type.fullname
        if "stream" in given:
            stream = literals["stream"]
            fullname = _STREAMING if stream is True else _PLAIN
            target = target if isinstance(stream, bool) else _ANYTHING
        if "method_name" in given:
            method = literals["method_name"]
            target = _method(checker, target, method, context) if isinstance(method, str) else _ANYTHING
        types = [checker.named_generic_type(f"builtins.{name}", []) for name in _OPTIONS.values()]
        return default.copy_modified(
            arg_types=[*types[:2], *(UnionType.make_union([one, NoneType()]) for one in types[2:])],
            arg_kinds=[ARG_NAMED_OPT] * len(_OPTIONS),
            arg_names=list(_OPTIONS),
            ret_type=self._named(fullname, [target]),
        )

    def _named(self, fullname: str, arguments: list[Type]) -> Type:
        found = self._lookup(fullname)
        return Instance(found.node, arguments) if found and isinstance(found.node, TypeInfo) else _ANYTHING


def _attribute(name: str, context: AttributeContext) -> Type:
    """``handle.method``: a handle for that method. Other attributes of the handle itself come by here too."""
    handle, checker = get_proper_type(context.default_attr_type), context.api
    if not isinstance(handle, Instance) or handle.type.fullname not in (_PLAIN, _STREAMING):
        return handle
    if not isinstance(checker, TypeChecker) or len(handle.args) != 1:
        return handle
    if name.startswith("__") and name.endswith("__"):
        _failing(checker, context)(f'a handle has no attribute "{name}"', ATTR_DEFINED)
        return checker.named_generic_type("builtins.object", [])
    return handle.copy_modified(args=[_method(checker, handle.args[0], name, context)])


def _called(context: MethodSigContext) -> FunctionLike:
    _failing(context.api, context)("a handle is not called itself: write handle.remote(...)", MISC)
    return context.default_signature.copy_modified(ret_type=_ANYTHING)


def _method(checker: TypeChecker, target: Type, name: str, context: AttributeContext | MethodSigContext) -> Type:
    """The type of the method, which is what a handle for it stands for; says what is wrong where it is none."""
    served = _served(target)
    if isinstance(served, FunctionLike):
        if name == "__call__" or isinstance(context, MethodSigContext):
            return _ANYTHING
        what = "a method" if _is_method(served) else "a function"
        _failing(checker, context)(f'this handle calls {what}, which has no method "{name}"', ATTR_DEFINED)
        return _ANYTHING
    if served is None or name == "__call__":
        return target
    if name.startswith("_"):
        _failing(checker, context)(f'"{name}" is private: a handle calls public methods', ATTR_DEFINED)
        return _ANYTHING
    return _callable(checker, served, name, context) or _ANYTHING


def _callable(
    checker: TypeChecker, target: ProperType, name: str, context: AttributeContext | MethodSigContext
) -> FunctionLike | None:
    """The signature of a method without ``self``, that of a function itself; None where there is none to be had."""
    if isinstance(target, FunctionLike):
        return target
    if not isinstance(target, Instance):
        return None
    fail = _failing(checker, context)
    symbol = target.type.get(name)
    if name in _NOT_SERVED and symbol is not None and symbol.plugin_generated:
        fail(f'"{target.type.name}" has no method "{name}" in a replica', ATTR_DEFINED)
        return None
    if name == "__call__" and symbol is None and not target.type.fallback_to_any:
        fail(f'"{target.type.name}" has no "__call__": name a method, handle.<method>.remote(...)', ATTR_DEFINED)
        return None
    found = get_proper_type(checker.expr_checker.analyze_external_member_access(name, target, context.context))
    if isinstance(found, CallableType) and symbol is not None and _yields(symbol.node):
        return found.copy_modified(ret_type=_generator(checker, found.ret_type))
    if isinstance(found, FunctionLike):
        return found
    if isinstance(found, Instance) and name != "__call__":
        if found.type.get("__call__") is not None:
            return _callable(checker, found, "__call__", context)
        if not found.type.fallback_to_any:
            fail(f'"{name}" of "{target.type.name}" is no method', ATTR_DEFINED)
    return None


def _served(target: Type) -> ProperType | None:
    """What T of a handle says, None where it says nothing."""
    proper = get_proper_type(target)
    if isinstance(proper, TypeVarType):
        proper = get_proper_type(proper.upper_bound)
    if isinstance(proper, FunctionLike):
        return proper
    return proper if isinstance(proper, Instance) and proper.type.fullname != "builtins.object" else None


def _is_method(target: Type) -> bool:
    """Told by its name, "predict of Model"; its definition is not kept in mypy's cache."""
    return isinstance(target, CallableType) and " of " in (target.name or "")


def _takes_request(wanted: Type) -> bool:
    proper = get_proper_type(wanted)
    if isinstance(proper, UnionType):
        return any(_takes_request(item) for item in proper.items)
    return isinstance(proper, AnyType) or (isinstance(proper, Instance) and proper.type.fullname in _REQUESTS)


def _simplified(called: CallableType) -> CallableType:
    """Without type variables that no response could be: those with a bound or with values become Any."""
    narrow = [one for one in called.variables if isinstance(one, TypeVarType) and (one.values or _is_bound(one))]
    if not narrow:
        return called
    rest = [one for one in called.variables if one not in narrow]
    free = called.copy_modified(variables=rest)
    return expand_type(free, {one.id: _ANYTHING for one in narrow})


def _is_bound(variable: TypeVarType) -> bool:
    bound = get_proper_type(variable.upper_bound)
    return not (isinstance(bound, Instance) and bound.type.fullname == "builtins.object")


# -- what comes back --------------------------------------------------------------------------------


def _flattened(context: MethodContext) -> Type:
    """A response given for a parameter ``T`` made T a Response, and so the result; its value is meant."""
    answer = get_proper_type(context.default_return_type)
    if isinstance(answer, Instance) and answer.type.fullname == _RESPONSE and len(answer.args) == 1:
        inner = get_proper_type(answer.args[0])
        if isinstance(inner, Instance) and inner.type.fullname == _RESPONSE:
            return inner
    return answer


def _awaited(value: Type) -> Type:
    """The value that is left when awaitables have been awaited."""
    proper = get_proper_type(value)
    if isinstance(proper, UnionType):
        return UnionType.make_union([_awaited(item) for item in proper.items])
    return _argument(proper, "typing.Awaitable") or value


def _argument(value: ProperType, base: str) -> Type | None:
    """The type argument that ``value`` has as a ``base``, None if it is no such thing."""
    if isinstance(value, Instance):
        for info in value.type.mro:
            if info.fullname == base:
                return map_instance_to_supertype(value, info).args[0]
    return None


def _yields(node: SymbolNode | None) -> bool:
    function = node.func if isinstance(node, Decorator) else node
    return isinstance(function, FuncDef) and (function.is_generator or function.is_async_generator)


def _generator(checker: TypeChecker, declared: Type) -> Type:
    """What a function with ``yield`` really returns, where less was declared; so that the type alone tells."""
    proper = get_proper_type(declared)
    if isinstance(proper, Instance) and proper.type.fullname in ("typing.Iterator", "typing.Iterable"):
        return checker.named_generic_type("typing.Generator", [proper.args[0], _ANYTHING, _ANYTHING])
    if isinstance(proper, Instance) and proper.type.fullname == "typing.AsyncIterable":
        return checker.named_generic_type("typing.AsyncIterator", [proper.args[0]])
    return declared


def _item(called: CallableType, value: Type, fail: Fail) -> Type:
    """The items of a stream."""
    proper = get_proper_type(value)
    if not isinstance(proper, Instance):
        return _ANYTHING
    bases = ["typing.AsyncIterator", "typing.Iterator"]
    if proper.type.fullname in ("typing.AsyncIterable", "typing.Iterable"):
        bases.append(proper.type.fullname)
    found = next((item for base in bases if (item := _argument(proper, base)) is not None), None)
    if found is None:
        fail(f"{_shown(called)} is no generator: call it through a handle without stream=True")
    return found or _ANYTHING


def _refuse_stream(called: CallableType, value: Type, fail: Fail) -> None:
    proper = get_proper_type(value)
    if any(_argument(proper, base) is not None for base in ("typing.AsyncIterator", "typing.Generator")):
        fail(f"{_shown(called)} is a generator: call it through handle.options(stream=True)")


def _shown(called: CallableType) -> str:
    return f'"{called.name.partition(" of ")[0]}"' if called.name else "what is called"


def _literal(value: Type) -> object:
    """The value of an expression that mypy knows beforehand, else None."""
    proper = get_proper_type(value)
    if isinstance(proper, Instance) and proper.last_known_value is not None:
        proper = proper.last_known_value
    return proper.value if isinstance(proper, LiteralType) else None


def _failing(checker: CheckerPluginInterface, context: AttributeContext | MethodSigContext) -> Fail:
    return lambda message, code=MISC: checker.fail(message, context.context, code=code)
