"""Text of a config file, YAML or JSON, as plain values, each with its place in the text.

Law: what comes out is plain data (null, bool, int, float, str, list, dict) and nothing is read twice: the environment
is put into values after the text was parsed, so no value ever becomes structure. Everything has a limit: bytes,
depth, and values after anchors were followed. Why not ``yaml.safe_load``: it forgets lines, lets the last of two
equal keys win, and makes dates and sets of what was meant as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from skate.core.checks import nearest, shown
from skate.core.errors import ConfigError

BYTES_MAX = 1024 * 1024  # of one file
DEPTH_MAX = 64  # levels of nesting
VALUES_MAX = 100_000  # of one file, with every use of an anchor counted
MISTAKES_MAX = 20  # shown of one file
LOOKED_FOR_MAX = 500  # mistakes, after which it is not looked for more

Steps = tuple[str | int, ...]
_TAG = "tag:yaml.org,2002:"
_AS_TEXT = (f"{_TAG}str", f"{_TAG}timestamp", f"{_TAG}value", f"{_TAG}merge")
_DEFAULT = r":-[^}$]*(?:\$(?!\{)[^}$]*)*"  # ends at another variable, so that no text is looked through twice
_VARIABLE = re.compile(rf"\$\$\{{|\$\{{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>{_DEFAULT})?\}}|\$\{{")


def place(steps: Steps) -> str:
    """Steps as a user writes them: ``applications[0].deployments[1].num_replicas``."""
    said = ""
    for step in steps:
        if isinstance(step, str) and re.fullmatch(r"[\w-]+", step):
            said += f".{step}" if said else step
        else:
            said += f"[{step!r}]"
    return said


@dataclass
class Document:
    """Values of one text. ``name`` of the file as messages show it; ``spots``: line and column, by steps."""

    name: str
    value: Any = None
    keys: dict[Steps, tuple[int, int]] = field(default_factory=dict)
    spots: dict[Steps, tuple[int, int]] = field(default_factory=dict)
    mistakes: list[tuple[tuple[int, int], str]] = field(default_factory=list)

    def wrong(self, steps: Steps, sentence: str, *, key: bool = False) -> None:
        """Notes a mistake at a value, or with ``key`` at its key. ``sentence`` begins with what follows the place."""
        said = place(steps)
        self.wrong_at(self.spot(steps, key), f"{said}{sentence}" if said else sentence.lstrip(": "))

    def wrong_at(self, spot: tuple[int, int], text: str) -> None:
        """Notes a mistake at a line and column; (0, 0): at none."""
        self.mistakes.append((spot, text.rstrip(".") + "."))

    @property
    def hopeless(self) -> bool:
        """So many mistakes that looking for more costs more than it helps."""
        return len(self.mistakes) >= LOOKED_FOR_MAX

    def give_up(self, spot: tuple[int, int], text: str) -> None:
        """Notes the one mistake that leaves nothing to be read."""
        self.value = None
        self.mistakes.clear()
        self.wrong_at(spot, text)

    def spot(self, steps: Steps, key: bool = False) -> tuple[int, int]:
        """Where a value (or its key) is written; what is not written itself is in what is around it."""
        if key and steps in self.keys:
            return self.keys[steps]
        while steps and steps not in self.spots:
            steps = steps[:-1]
        return self.keys.get(steps) or self.spots.get(steps, (0, 0)) if key else self.spots.get(steps, (0, 0))

    def line(self, steps: Steps) -> int:
        """The line of a key, 0 where the values come from no text."""
        return self.spot(steps, key=True)[0]

    def refuse_mistakes(self) -> None:
        """Raises ConfigError with all that was noted, in the order of the text."""
        if not self.mistakes:
            return
        found = list(dict.fromkeys(self._said(spot, text) for spot, text in sorted(self.mistakes, key=lambda m: m[0])))
        kept = found[:MISTAKES_MAX]
        if len(found) > len(kept):
            more = len(found) - len(kept)
            kept.append(f"{self.name}: and {f'at least {more}' if self.hopeless else more} more mistakes.")
        head = f"{self.name}: {len(found)} mistakes\n" if len(found) > 1 else ""
        raise ConfigError(head + "\n".join(kept), tuple(kept))

    def _said(self, spot: tuple[int, int], text: str) -> str:
        line, column = spot
        return f"{self.name}:{line}:{column}: {text}" if line else f"{self.name}: {text}"


def parse(text: str, name: str, environment: Mapping[str, str] | None, *, as_json: bool = False) -> Document:
    """The values of a text; mistakes in single values are noted in the document.

    ``environment``: what ``${NAME}`` is taken from; None: it has no meaning. Raises ConfigError for a text that
    cannot be read at all.
    """
    document = Document(name)
    if len(text.encode(errors="replace")) > BYTES_MAX:
        document.wrong_at((0, 0), f"is larger than {BYTES_MAX} bytes, which no config file is")
        document.refuse_mistakes()
    if as_json:
        _check_json(text, document)
    try:
        loader = _Loader(text.replace("\t", " ") if as_json else text, document, environment, text if as_json else "")
        node = loader.get_single_node()
        document.value = loader.made(node, ()) if node is not None else None
        if document.value is None:
            document.wrong_at((0, 0), "holds nothing; write a list of applications into it: applications: [...]")
    except yaml.YAMLError as error:
        document.give_up(_spot_of(error, text), _reason(error, text))
    except _TooMuch as error:
        document.give_up(error.spot, str(error))
    if document.value is None:
        document.refuse_mistakes()
    return document


def decoded(data: bytes, name: str) -> str:
    """The text of a file. Raises ConfigError where it is not UTF-8 or too large."""
    document = Document(name)
    if len(data) > BYTES_MAX:
        document.wrong_at((0, 0), f"is larger than {BYTES_MAX} bytes, which no config file is")
    else:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
            document.wrong_at((line, column), f"byte {data[error.start]:#04x} is no UTF-8; save the file as UTF-8")
    document.refuse_mistakes()
    raise AssertionError("unreachable")


def written(value: Any, comment: str = "") -> str:
    """Plain values as YAML text that ``parse`` reads as the same values, whatever the environment."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    body: str = yaml.dump(_escaped(value), Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=110)
    return head + body


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list | tuple) else value


class _Dumper(yaml.SafeDumper):
    """Writes equal lists twice; an anchor is nothing for people to read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# -- from nodes to values ---------------------------------------------------------------------------


class _TooMuch(ValueError):
    def __init__(self, message: str, node: Node) -> None:
        super().__init__(message)
        self.spot = _spot(node)


def _spot(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


class _Loader(yaml.SafeLoader):
    """Makes nodes, and values of nodes."""

    def __init__(self, text: str, document: Document, environment: Mapping[str, str] | None, json_text: str) -> None:
        super().__init__(text)
        self._document = document
        self._environment = environment
        self._json_text = json_text
        self._depth = 0
        self._count = 0
        self._open: set[int] = set()  # nodes that are being made; one of them again is a circle

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            assert parent is not None
            raise _TooMuch(f"is nested deeper than {DEPTH_MAX} levels", parent)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def made(self, node: Node, steps: Steps) -> Any:
        """The plain value of a node."""
        self._count += 1
        if self._count > VALUES_MAX:
            raise _TooMuch(f"holds more than {VALUES_MAX} values, with every use of an anchor counted", node)
        if id(node) in self._open or len(steps) > DEPTH_MAX:
            raise _TooMuch(f"an anchor that contains itself, or more than {DEPTH_MAX} levels of nesting", node)
        self._document.spots.setdefault(steps, _spot(node))
        if isinstance(node, ScalarNode):
            value = self._scalar(node, steps)
            if isinstance(value, str) and not value.isascii() and any("\ud800" <= sign <= "\udfff" for sign in value):
                self._document.wrong(steps, f"={shown(value)}: holds half a character (a lone surrogate)")
            return value
        if node.tag not in (f"{_TAG}map", f"{_TAG}seq"):
            self._strange(node, steps)
        self._open.add(id(node))
        try:
            if isinstance(node, SequenceNode):
                return [self.made(item, (*steps, index)) for index, item in enumerate(node.value)]
            assert isinstance(node, MappingNode)
            return self._mapping(node, steps)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: MappingNode, steps: Steps) -> dict[str, Any]:
        made: dict[str, Any] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                merged += value_node.value if isinstance(value_node, SequenceNode) else [value_node]
                continue
            key = self._key(key_node, steps)
            here = (*steps, key)
            if key in made:
                before = self._document.keys.get(here, (0, 0))[0]
                said = f"{place(here)}: stands twice, first in line {before}; keep one of the two"
                self._document.wrong_at(_spot(key_node), said)
            self._document.keys.setdefault(here, _spot(key_node))
            value = self.made(value_node, here)
            made.setdefault(key, value)
        for one in merged:
            if not isinstance(one, MappingNode):
                self._document.wrong_at(_spot(one), f"{place(steps)}: '<<' takes a mapping, or a list of mappings")
                continue
            for key, value in self.made(one, steps).items():
                made.setdefault(key, value)
        return made

    def _key(self, node: Node, steps: Steps) -> str:
        if isinstance(node, ScalarNode):
            text = self._json_string(node) if self._json_text else node.value
            if node.tag not in _AS_TEXT:
                read = {f"{_TAG}bool": "true or false", f"{_TAG}null": "null"}.get(node.tag, "a number")
                said = f"{place((*steps, text))}: YAML reads this key as {read}, and keys are text; quote it: '{text}'"
                self._document.wrong_at(_spot(node), said)
            return str(text)
        self._document.wrong_at(_spot(node), f"{place(steps)}: keys are text, not lists or mappings")
        return f"?{self._count}"

    def _strange(self, node: Node, steps: Steps) -> None:
        tag = node.tag.replace(_TAG, "!!")
        self._document.wrong(steps, f": the tag {tag} has no meaning here; write plain values without it")

    # -- scalars ------------------------------------------------------------------------------------

    def _scalar(self, node: ScalarNode, steps: Steps) -> Any:
        if self._json_text:
            return self._json_string(node) if node.style == '"' else json.loads(node.value)
        if node.tag in _AS_TEXT:
            if "${" not in node.value or self._environment is None:
                return node.value
            return self._interpolated(node, steps)
        return self._read(node, steps)

    def _read(self, node: ScalarNode, steps: Steps) -> Any:
        try:
            match node.tag.removeprefix(_TAG):
                case "null":
                    return None
                case "bool":
                    return self.construct_yaml_bool(node)
                case "int":
                    return self.construct_yaml_int(node)
                case "float":
                    return self.construct_yaml_float(node)
        except (ValueError, KeyError, IndexError):
            self._document.wrong(steps, f"={shown(node.value)}: is no value of its tag")
            return None
        if node.tag in _AS_TEXT:
            return node.value
        self._strange(node, steps)
        return node.value

    def _json_string(self, node: ScalarNode) -> Any:
        if node.style != '"':
            return node.value
        return json.loads(self._json_text[node.start_mark.index : node.end_mark.index])

    def _interpolated(self, node: ScalarNode, steps: Steps) -> Any:
        """The value with the environment in it; one that is nothing but a variable, without quotes, is read again."""

        def put(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            if self._document.hopeless:
                return ""
            name = match["name"]
            if name is None:
                said = (
                    "${ is not closed, or no name follows; write ${NAME}, ${NAME:-default} without a variable in it, "
                )
                said += "or $${ for the text ${"
                self._document.wrong(steps, f"={shown(node.value)}: {said}")
                return ""
            assert self._environment is not None
            value = self._environment.get(name)
            if match["default"] is not None:
                return value or match["default"][2:]
            if value is None:
                near = nearest(name, self._environment)
                said = f": the environment has no variable {name}{near}; set it, or write ${{{name}:-default}}"
                self._document.wrong(steps, said)
            return value or ""

        text = _VARIABLE.sub(put, node.value)
        whole = _VARIABLE.fullmatch(node.value)
        if whole is None or whole["name"] is None or node.style is not None:
            return text
        tag = self.resolve(ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        return self._read(ScalarNode(tag, text, node.start_mark, node.end_mark), steps)


# -- texts that cannot be read ----------------------------------------------------------------------


def _check_json(text: str, document: Document) -> None:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        if text.strip():
            document.wrong_at((error.lineno, error.colno), f"is no JSON here: {error.msg}")
    except RecursionError:
        document.wrong_at((1, 1), f"is nested deeper than {DEPTH_MAX} levels")
    document.refuse_mistakes()


def _spot_of(error: yaml.YAMLError, text: str) -> tuple[int, int]:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        return mark.line + 1, mark.column + 1
    index = getattr(error, "position", None)  # of a character that no text holds
    if isinstance(index, int):
        return text.count("\n", 0, index) + 1, index - (text.rfind("\n", 0, index) + 1) + 1
    return 0, 0


def _reason(error: yaml.YAMLError, text: str) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        return f"the character {error.character!r} cannot stand in YAML text"
    problem = str(getattr(error, "problem", "") or error)
    line = _spot_of(error, text)[0]
    lines = text.splitlines()
    written = lines[line - 1] if 0 < line <= len(lines) else ""
    return f"is no YAML here: {problem}{''.join(_ways_out(problem, written))}"


def _ways_out(problem: str, line: str) -> Iterator[str]:
    if "\\t" in problem:
        yield "; YAML indents with blanks, replace the tab"
    elif "single document" in problem or "but found another document" in problem:
        yield "; write one document, with all applications in its list"
    elif "${" in line:
        yield "; between braces or brackets, and where ': ' follows, ${NAME} must be quoted: \"${NAME}\""
    elif "mapping values are not allowed" in problem:
        yield "; a text with ': ' in it must be quoted, and keys of one mapping begin in the same column"
