"""The part of Go's text/template that chat templates need: parsed, and executed on plain Python values.

Ollama executes a TEMPLATE with Go's text/template. Executing it here as well lets an export compare what it
writes with what the model's own chat template says, before anybody downloads or serves it. Covered: text, trim
markers, comments, if / else if / else, range with one or two variables, with, variables, pipelines, and the
functions in `_FUNCTIONS`; anything else is refused rather than guessed.
Source of the language: the documentation of Go's package text/template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from ewq_gguf.errors import EwqError

_ACTION = re.compile(r"\{\{(?P<left>-(?=\s))?(?P<body>.*?)(?P<right>(?<=\s)-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<raw>`[^`]*`)|(?P<number>-?\d+)|(?P<op>:=|=|\||\(|\)|,)"""
    r"""|(?P<word>\$?[A-Za-z_0-9]*(?:\.[A-Za-z_][A-Za-z_0-9]*)+|\$[A-Za-z_0-9]*|\.|[A-Za-z_][A-Za-z_0-9]*))"""
)
_MAX_LOOPS = 100_000


class GoTemplateError(EwqError):
    """A template that does not parse, or that uses what is not covered here."""


@dataclass
class _Node:
    """A piece of a template: `kind` is text, pipe, if, range or with."""

    kind: str
    text: str = ""
    pipe: tuple[Any, ...] = ()
    names: tuple[str, ...] = ()
    declares: bool = False
    body: list[_Node] = field(default_factory=list)
    otherwise: list[_Node] = field(default_factory=list)


@dataclass(frozen=True)
class GoTemplate:
    """A parsed template; see `parse_go_template`."""

    text: str
    nodes: tuple[_Node, ...]

    def execute(self, values: Mapping[str, Any], *, today: date | None = None) -> str:
        """The text for the given values.

        Args:
            values: what `.` is at the start; lists, mappings, strings, numbers, booleans.
            today: the day that `currentDate` names.

        Raises:
            GoTemplateError: a function or operand that does not fit.
        """
        run = _Run(values, today or date.today())
        run.all(self.nodes, values)
        return "".join(run.out)


def parse_go_template(text: str) -> GoTemplate:
    """Parse a template.

    Raises:
        GoTemplateError: a syntax that Go does not have or that is not covered here.
    """
    parser = _Parser(_pieces(text))
    nodes, end = parser.block()
    if end is not None:
        raise GoTemplateError(f"the template has {end!r} without a beginning")
    return GoTemplate(text, tuple(nodes))


def _pieces(text: str) -> list[tuple[bool, str]]:
    """(is an action, text) one after another, trim markers applied and comments gone."""
    found: list[tuple[bool, str]] = []
    at, trim = 0, False
    for match in _ACTION.finditer(text):
        piece = text[at : match.start()]
        piece = piece.lstrip(" \t\r\n") if trim else piece
        piece = piece.rstrip(" \t\r\n") if match["left"] else piece
        if piece:
            found.append((False, piece))
        body = match["body"].strip()
        if not (body.startswith("/*") and body.endswith("*/")):
            found.append((True, body))
        at, trim = match.end(), bool(match["right"])
    rest = text[at:].lstrip(" \t\r\n") if trim else text[at:]
    if "{{" in rest:
        raise GoTemplateError("the template has an action that is not closed")
    return [*found, (False, rest)] if rest else found


def _tokens(body: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(body):
        match = _TOKEN.match(body, at)
        if match is None or match.end() == at:
            if not body[at:].strip():
                break
            raise GoTemplateError(f"the template has {body[at : at + 40]!r}, which is not covered")
        found.append((str(match.lastgroup), match[str(match.lastgroup)]))
        at = match.end()
    return found


class _Parser:
    def __init__(self, pieces: list[tuple[bool, str]]) -> None:
        self.pieces = pieces
        self.at = 0

    def block(self) -> tuple[list[_Node], str | None]:
        """Nodes up to the next `end` or `else`, which is returned as well."""
        nodes: list[_Node] = []
        while self.at < len(self.pieces):
            is_action, text = self.pieces[self.at]
            self.at += 1
            if not is_action:
                nodes.append(_Node("text", text))
                continue
            word = text.split(None, 1)[0] if text else ""
            if word in ("end", "else"):
                return nodes, text
            if word in ("if", "range", "with"):
                nodes.append(self.branch(word, text[len(word) :]))
            else:
                nodes.append(_pipe_node("pipe", text))
        return nodes, None

    def branch(self, kind: str, head: str) -> _Node:
        node = _pipe_node(kind, head)
        node.body, end = self.block()
        if end is not None and end.split() == ["else"]:
            node.otherwise, end = self.block()
        elif end is not None and end.startswith("else"):
            word, _, rest = end[4:].strip().partition(" ")
            if word != kind or kind == "range":
                raise GoTemplateError(f"the template has {end!r}, which is not covered")
            node.otherwise, end = [self.branch(kind, rest)], "end"
        if end != "end":
            raise GoTemplateError(f"the template has {kind!r} without an end")
        return node


def _pipe_node(kind: str, text: str) -> _Node:
    tokens = _tokens(text)
    names: list[str] = []
    declares = False
    for i, (sort, value) in enumerate(tokens):
        if sort == "op" and value in (":=", "="):
            names = [name for form, name in tokens[:i] if form == "word"]
            declares, tokens = value == ":=", tokens[i + 1 :]
            break
    pipe, rest = _pipeline(tokens)
    if rest or not pipe:
        raise GoTemplateError(f"the template has {text.strip()!r}, which is not covered")
    return _Node(kind, names=tuple(names), declares=declares, pipe=pipe)


def _pipeline(tokens: list[tuple[str, str]]) -> tuple[tuple[Any, ...], list[tuple[str, str]]]:
    """Commands, each a list of operands, up to a closing parenthesis or the end."""
    commands: list[list[Any]] = [[]]
    while tokens:
        sort, value = tokens[0]
        if (sort, value) == ("op", ")"):
            break
        tokens = tokens[1:]
        if (sort, value) == ("op", "|"):
            commands.append([])
        elif (sort, value) == ("op", "("):
            inner, tokens = _pipeline(tokens)
            if not tokens:
                raise GoTemplateError("the template has a parenthesis that is not closed")
            tokens = tokens[1:]
            commands[-1].append(("pipe", inner))
        elif sort == "op":
            raise GoTemplateError(f"the template has {value!r} where a value belongs")
        else:
            commands[-1].append((sort, value))
    if not all(commands):
        raise GoTemplateError("the template has an empty command")
    return tuple(commands), tokens


class _Run:
    """One execution: output so far and variables in scope."""

    def __init__(self, root: Any, today: date) -> None:
        self.out: list[str] = []
        self.scopes: list[dict[str, Any]] = [{"$": root}]
        self.today = today
        self.loops = 0

    def all(self, nodes: Sequence[_Node], dot: Any) -> None:
        self.scopes.append({})
        for node in nodes:
            self.one(node, dot)
        self.scopes.pop()

    def one(self, node: _Node, dot: Any) -> None:
        if node.kind == "text":
            self.out.append(node.text)
            return
        value = self.pipeline(node.pipe, dot)
        if node.kind == "pipe":
            if node.names:
                self.assign(node.names[0], value, node.declares)
            else:
                self.out.append(_printed(value))
            return
        self.scopes.append({})
        if node.kind == "range":
            self.loop(node, dot, value)
        else:
            if node.names:
                self.assign(node.names[0], value, node.declares)
            inner = value if node.kind == "with" and _true(value) else dot
            self.all(node.body if _true(value) else node.otherwise, inner)
        self.scopes.pop()

    def loop(self, node: _Node, dot: Any, value: Any) -> None:
        if not isinstance(value, (list, tuple)):
            raise GoTemplateError(f"the template ranges over {type(value).__name__}, which is not covered")
        for i, item in enumerate(value):
            self.loops += 1
            if self.loops > _MAX_LOOPS:
                raise GoTemplateError("the template repeats without end")
            for name, what in zip(node.names, (i, item) if len(node.names) == 2 else (item,)):
                self.assign(name, what, True)
            self.all(node.body, item)
        if not value:
            self.all(node.otherwise, dot)

    def assign(self, name: str, value: Any, declares: bool) -> None:
        if declares:
            self.scopes[-1][name] = value
            return
        for scope in reversed(self.scopes):
            if name in scope:
                scope[name] = value
                return
        raise GoTemplateError(f"the template sets {name}, which was not declared")

    def pipeline(self, commands: Sequence[Any], dot: Any) -> Any:
        value: list[Any] = []
        for command in commands:
            value = [self.command(command, dot, value)]
        return value[0]

    def command(self, command: Sequence[Any], dot: Any, piped: list[Any]) -> Any:
        sort, name = command[0]
        if sort == "word" and name[0] not in ".$" and name not in _CONSTANTS:
            return self.call(name, command[1:], dot, piped)
        if len(command) > 1 or piped:
            raise GoTemplateError(f"the template gives arguments to {name!r}, which is no function")
        return self.operand(sort, name, dot)

    def call(self, name: str, operands: Sequence[Any], dot: Any, piped: list[Any]) -> Any:
        if name in ("and", "or"):
            # As in Go, what follows the deciding operand is not looked at.
            result: Any = None
            for result in (*(self.operand(s, v, dot) for s, v in operands), *piped):
                if _true(result) is (name == "or"):
                    break
            return result
        if name == "currentDate":
            return self.today.isoformat()
        arguments = [*(self.operand(s, v, dot) for s, v in operands), *piped]
        function = _FUNCTIONS.get(name)
        if function is None:
            raise GoTemplateError(f"the template calls {name!r}, which is not covered")
        try:
            return function(*arguments)
        except (TypeError, ValueError, IndexError, KeyError) as error:
            raise GoTemplateError(f"the template calls {name} on what does not fit: {error}") from error

    def operand(self, sort: str, value: Any, dot: Any) -> Any:
        if sort == "pipe":
            return self.pipeline(value, dot)
        if sort == "string":
            return json.loads(re.sub(r"\\([^\"\\/bfnrtu])", r"\\\\\1", value))
        if sort == "raw":
            return value[1:-1]
        if sort == "number":
            return int(value)
        if value in _CONSTANTS:
            return _CONSTANTS[value]
        first, *fields = value.split(".")
        if value == ".":
            return dot
        if value[0] not in ".$":
            return self.call(value, (), dot, [])
        found = dot if first == "" else self.variable(first)
        for part in fields:
            if found is not None and not isinstance(found, Mapping):
                raise GoTemplateError(f"the template reads .{part} of a {type(found).__name__}")
            found = None if found is None else found.get(part)
        return found

    def variable(self, name: str) -> Any:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        raise GoTemplateError(f"the template has {name!r}, which is neither declared nor covered")


_CONSTANTS = {"true": True, "false": False, "nil": None}


def _true(value: Any) -> bool:
    return bool(value)


def _printed(value: Any) -> str:
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int)):
        return str(value)
    raise GoTemplateError(f"the template prints a {type(value).__name__}, which is not covered")


def _slice(value: Any, *bounds: int) -> Any:
    start, stop = (*bounds, 0, len(value))[:2] if not bounds else (bounds[0], (*bounds, len(value))[1])
    if not 0 <= start <= stop <= len(value):
        raise IndexError(f"[{start}:{stop}] of {len(value)}")
    if isinstance(value, str):
        return value.encode()[start:stop].decode("utf-8", "replace")
    return value[start:stop]


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "not": lambda a: not _true(a),
    "eq": lambda a, *others: any(type(a) is type(b) and a == b for b in others),
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "len": lambda a: len(a.encode()) if isinstance(a, str) else len(a),
    "slice": _slice,
    "index": lambda a, *keys: a if not keys else a[keys[0]],
    "print": lambda *parts: "".join(_printed(p) for p in parts),
}
