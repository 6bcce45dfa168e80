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

_ACTION: Final = re.compile(r"\{\{(-\s)?\s*(.*?)\s*(\s-)?\}\}", re.DOTALL)
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


def render_go(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """What Ollama gives the model for messages with ``role`` and ``content``.

    Raises CorruptFile for a template beyond this part of the language.
    """
    parts = list(_parts(template))
    nodes, _, ended = _block(parts)
    if ended:
        raise CorruptFile(f"the Go template has an {{{{ {ended} }}}} too many")
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    turns = [{"Role": m["role"], "Content": m["content"]} for m in messages]
    return "".join(_written(nodes, {"System": system, "Messages": turns}))


def _parts(template: str) -> Iterator[tuple[bool, str]]:
    """(is an action, text) pieces, trimmed as the marks say."""
    at, trim = 0, False
    for match in _ACTION.finditer(template):
        text = template[at : match.start()]
        text = text.lstrip() if trim else text
        yield False, text.rstrip() if match[1] else text
        yield True, match[2]
        at, trim = match.end(), bool(match[3])
    text = template[at:]
    yield False, text.lstrip() if trim else text


def _block(parts: list[tuple[bool, str]]) -> tuple[tuple[_Node, ...], list[tuple[bool, str]], str]:
    """Nodes up to ``end`` or ``else``; what follows; and which of these it was."""
    nodes: list[_Node] = []
    while parts:
        (is_action, text), *parts = parts
        if not is_action:
            nodes.append(_Text(text))
        elif text == "end" or text.split(" ")[0] == "else":
            return tuple(nodes), parts, text
        elif text.startswith("range ") and _FIELD.fullmatch(text[6:]):
            body, parts, ended = _block(parts)
            _expect_end(ended, text)
            nodes.append(_Range(text[7:], body))
        elif text.startswith("if "):
            node, parts = _branch(text[3:], parts)
            nodes.append(node)
        elif _FIELD.fullmatch(text):
            nodes.append(_Field(text[1:]))
        else:
            raise CorruptFile(f"the Go template's {{{{ {text} }}}} is not understood here")
    return tuple(nodes), [], ""


def _branch(test: str, parts: list[tuple[bool, str]]) -> tuple[_If, list[tuple[bool, str]]]:
    match = _TEST.fullmatch(test)
    if match is None:
        raise CorruptFile(f"the Go template's condition {test!r} is not understood here")
    body, parts, ended = _block(parts)
    other: tuple[_Node, ...] = ()
    if ended.startswith("else if "):
        node, parts = _branch(ended.removeprefix("else if "), parts)
        other = (node,)
        return _If((match[1] or match[3])[1:], match[2], body, other), parts
    if ended == "else":
        other, parts, ended = _block(parts)
    _expect_end(ended, f"if {test}")
    return _If((match[1] or match[3])[1:], match[2], body, other), parts


def _expect_end(ended: str, opened: str) -> None:
    if ended != "end":
        raise CorruptFile(f"the Go template's {{{{ {opened} }}}} does not end")


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
