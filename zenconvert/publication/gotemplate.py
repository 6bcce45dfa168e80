"""As much of Go's text/template as the chat templates of Modelfiles here need.

``{{ .Field }}``, ``{{ range .Messages }}``, ``{{ if .Field }}``, ``{{ if eq .Field "text" }}``,
``{{ else if … }}``, ``{{ else }}``, ``{{ end }}`` and the trim marks ``{{-`` and ``-}}``. What a
template gives here is what it gives in Ollama, whose data has ``System`` and ``Messages`` (system
messages included), each with ``Role`` and ``Content``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from zenconvert.errors import CorruptFile

Fields = Mapping[str, "Fields | None"]
"""Names of fields → the fields of their items, None for a text."""

_FIELDS: Final[Fields] = {"System": None, "Messages": {"Role": None, "Content": None}}
_DEEPEST: Final = 50
_TRIM_LEFT: Final = re.compile(r"-\s")
_TRIM_RIGHT: Final = re.compile(r"\s-\Z")
_FIELD: Final = re.compile(r"\.[A-Z]\w*")
_TEST: Final = re.compile(r'(?:eq (\.[A-Z]\w*) "([^"\\]*)"|(\.[A-Z]\w*))')


@dataclass(frozen=True, slots=True)
class _Text:
    text: str


@dataclass(frozen=True, slots=True)
class _Field:
    name: str


@dataclass(frozen=True, slots=True)
class _Range:
    name: str
    body: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _If:
    name: str
    equals: str | None
    """None: whether the field is not empty."""
    body: tuple[_Node, ...]
    other: tuple[_Node, ...]


_Node = _Text | _Field | _Range | _If
_Parts = Iterator[tuple[bool, str]]


def render_go(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """What Ollama gives the model for messages with ``role`` and ``content``.

    Raises CorruptFile for a template beyond this part of the language.
    """
    nodes, ended = _block(_parts(template), _FIELDS, 0)
    if ended:
        raise CorruptFile(f"the Go template has an {{{{ {ended:.100} }}}} too many")
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    turns = [{"Role": m["role"], "Content": m["content"]} for m in messages]
    return "".join(_written(nodes, {"System": system, "Messages": turns}))


def _parts(template: str) -> Iterator[tuple[bool, str]]:
    """(is an action, text) pieces, trimmed as the marks say."""
    at, trim = 0, False
    while (begin := template.find("{{", at)) >= 0 and (end := template.find("}}", begin + 2)) >= 0:
        text, action = template[at:begin], template[begin + 2 : end]
        text = text.lstrip() if trim else text
        left = _TRIM_LEFT.match(action) is not None
        action = action[2:] if left else action
        trim = _TRIM_RIGHT.search(action[-2:]) is not None
        yield False, text.rstrip() if left else text
        yield True, (action[:-2] if trim else action).strip()
        at = end + 2
    text = template[at:]
    yield False, text.lstrip() if trim else text


def _block(parts: _Parts, fields: Fields, depth: int) -> tuple[tuple[_Node, ...], str]:
    """Nodes up to ``end`` or ``else``, and which of these it was."""
    if depth > _DEEPEST:
        raise CorruptFile(f"the Go template is nested more than {_DEEPEST} times")
    nodes: list[_Node] = []
    for is_action, text in parts:
        if not is_action:
            nodes.append(_Text(text))
        elif text == "end" or text.split(" ")[0] == "else":
            return tuple(nodes), text
        elif text.startswith("range "):
            nodes.append(_loop(text[6:], parts, fields, depth))
        elif text.startswith("if "):
            nodes.append(_branch(text[3:], parts, fields, depth))
        else:
            nodes.append(_Field(_known(text, fields)))
    return tuple(nodes), ""


def _known(text: str, fields: Fields) -> str:
    """The name of a field that is there. Raises CorruptFile."""
    name = text[1:] if _FIELD.fullmatch(text) else ""
    if name not in fields:
        raise CorruptFile(f"the Go template's {{{{ {text:.100} }}}} is not understood here")
    return name


def _loop(text: str, parts: _Parts, fields: Fields, depth: int) -> _Range:
    name = _known(text, fields)
    if fields[name] is None:
        raise CorruptFile(f"the Go template's {{{{ range {text:.100} }}}} goes through no list")
    body, ended = _block(parts, fields[name] or {}, depth + 1)
    _expect_end(ended, f"range {text}")
    return _Range(name, body)


def _branch(test: str, parts: _Parts, fields: Fields, depth: int) -> _If:
    match = _TEST.fullmatch(test)
    if match is None:
        raise CorruptFile(f"the Go template's condition {test!r:.100} is not understood here")
    name = _known(match[1] or match[3], fields)
    body, ended = _block(parts, fields, depth + 1)
    other: tuple[_Node, ...] = ()
    if ended.startswith("else if "):
        return _If(name, match[2], body, (_branch(ended[8:], parts, fields, depth + 1),))
    if ended == "else":
        other, ended = _block(parts, fields, depth + 1)
    _expect_end(ended, f"if {test}")
    return _If(name, match[2], body, other)


def _expect_end(ended: str, opened: str) -> None:
    if ended != "end":
        raise CorruptFile(f"the Go template's {{{{ {opened:.100} }}}} does not end")


def _written(nodes: Sequence[_Node], dot: Mapping[str, Any]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, _Text):
            yield node.text
        elif isinstance(node, _Field):
            yield str(dot[node.name])
        elif isinstance(node, _Range):
            for item in dot[node.name]:
                yield from _written(node.body, item)
        else:
            value = dot[node.name]
            holds = bool(value) if node.equals is None else value == node.equals
            yield from _written(node.body if holds else node.other, dot)
