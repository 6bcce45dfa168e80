"""Values that break readers, and mutations of bytes, texts and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from tests.fuzz.choices import Choices

INTEGERS: Final = (
    0, 1, 2, 3, 4, 7, 8, 16, 31, 32, 33, 63, 64, 100, 127, 128, 255, 256, 1000, 4096, 65535, 65536,
    10**6, 10**7, 10**9, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**56, 2**61, 2**62,
    2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, -1, -2, -7, -128, -(2**31), -(2**63),
)  # fmt: skip
FLOATS: Final = (
    0.0, -0.0, 0.5, 1.0, 1.5, -1.5, 1e-9, 1e-45, 1e-300, 5e-324, 1e9, 3.5e38, 1e300, float("inf"),
    float("-inf"), float("nan"),
)  # fmt: skip
TEXTS: Final = (
    "", " ", "\0", "x", "0", "007", "-1", "1e400", "nan", "null", "true", "\ud800", "\udfff\ud800",
    "é", "日本", "🚀", "\x1b[31m", "\u202e", "a\nb", "../x", "/etc/passwd", "..", ".", "~", "a/b",
    "C:\\x", "a" * 300, "x" * 5000, "{{ 7*7 }}", "{% for i in range(9) %}", "%s%n", "<script>",
    "<|im_start|>", "<unused1>", "▁", "Ġ", "default", "none", "BPE", "Sequence", "ByteLevel",
    "yarn", "linear", "llama3", "dynamic", "gptq", "awq", "f32", "gguf:q8_0", "[INST]", "9" * 400,
)  # fmt: skip
_RAW: Final = {
    "@digits@": "9" * 4400,
    "@huge@": "1e400",
    "@negative@": "-1e400",
    "@deep@": "[" * 3000 + "]" * 3000,
    "@nested@": '{"a":' * 3000 + "1" + "}" * 3000,
    "@lists@": "[" * 300 + "]" * 300,
    "@tables@": '{"a":' * 300 + "1" + "}" * 300,
    "@edge@": "[" * 940 + "]" * 940,
    "@twice@": '{"a":1,"a":2}',
    "@broken@": '{"a":',
}
_MARKS: Final = tuple(_RAW)
_LONGEST: Final = 50_000
"""Signs of one word; more of them only take time."""
_LENGTHS: Final = (0, 1, 2, 3, 4, 8, 16, 64, 200, 1000)


def _word(choices: Choices, words: Sequence[str]) -> str:
    """One of some words or of :data:`TEXTS`."""
    at = choices.below(len(words) + len(TEXTS))
    return words[at] if at < len(words) else TEXTS[at - len(words)]


def atom(choices: Choices, words: Sequence[str] = ()) -> Any:
    """A value without parts that readers may not expect."""
    kind = choices.below(8)
    if kind < 2:
        return choices.pick(INTEGERS)
    if kind == 2:
        return choices.pick(FLOATS)
    if kind == 3:
        return choices.pick((None, True, False))
    if kind == 4 and words:
        return choices.pick(words)
    if kind == 5:
        return choices.pick(_MARKS)
    return choices.pick(TEXTS)


def value(choices: Choices, words: Sequence[str] = ()) -> Any:
    """An atom, or lists and objects of some."""
    kind = choices.below(8)
    if kind == 0:
        return [atom(choices, words) for _ in range(choices.below(4))]
    if kind == 1:
        keys = [_word(choices, words) for _ in range(choices.below(3))]
        return {key: atom(choices, words) for key in keys}
    if kind == 2:
        return [[atom(choices, words)], {}]
    return atom(choices, words)


def mutated(tree: Any, choices: Choices, words: Sequence[str] = ()) -> Any:
    """A copy of a JSON value with one to four changes; the original is left alone."""
    for _ in range(1 + choices.below(4)):
        tree = _changed(tree, choices, words, choices.below(6))
    return tree


def _changed(tree: Any, choices: Choices, words: Sequence[str], depth: int) -> Any:
    if isinstance(tree, dict) and tree:
        copy: Any = dict(tree)
        key = choices.pick(list(tree))
        if depth and isinstance(tree[key], dict | list):
            copy[key] = _changed(tree[key], choices, words, depth - 1)
            return copy
        _change_entry(copy, key, choices, words)
        return copy
    if isinstance(tree, list) and tree:
        copy = list(tree)
        at = choices.below(len(tree))
        if depth and isinstance(tree[at], dict | list):
            copy[at] = _changed(tree[at], choices, words, depth - 1)
            return copy
        _change_item(copy, at, choices, words)
        return copy
    return value(choices, words)


def _change_entry(table: dict[str, Any], key: str, choices: Choices, words: Sequence[str]) -> None:
    kind = choices.below(8)
    if kind == 0:
        del table[key]
    elif kind == 1:
        table[_word(choices, words)] = table[key]
    elif kind == 2:
        table[_word(choices, words)] = value(choices, words)
    else:
        table[key] = _other(table[key], choices, words)


def _change_item(items: list[Any], at: int, choices: Choices, words: Sequence[str]) -> None:
    kind = choices.below(8)
    if kind == 0:
        del items[at]
    elif kind == 1:
        items.insert(at, items[choices.below(len(items))])
    elif kind == 2:
        items.extend([items[at]] * choices.pick(_LENGTHS))
    else:
        items[at] = _other(items[at], choices, words)


def _other(old: Any, choices: Choices, words: Sequence[str]) -> Any:
    """A value near the old one, or any other."""
    kind = choices.below(6)
    if kind == 0:
        return [old]
    if kind == 1:
        return str(old)
    if kind == 2 and isinstance(old, int | float):
        return old + choices.pick((1, -1, 0.5))
    if kind == 2 and isinstance(old, str):
        return text(old, choices, words)
    return value(choices, words)


_parts: Final[dict[int, tuple[Any, str]]] = {}
_MOST_PARTS: Final = 256
_PART: Final = 1 << 16


def _written(tree: Any) -> str:
    """JSON of a value; what most inputs leave as it is, is written once."""
    if not isinstance(tree, dict):
        return json.dumps(tree)
    return "{" + ", ".join(f"{json.dumps(key)}: {_part(tree[key])}" for key in tree) + "}"


def _part(value: Any) -> str:
    if not isinstance(value, dict | list):
        return json.dumps(value)
    known = _parts.get(id(value))
    if known is not None and known[0] is value:
        return known[1]
    written = json.dumps(value)
    if len(written) < _PART:
        if len(_parts) >= _MOST_PARTS:
            _parts.clear()
        _parts[id(value)] = value, written
    return written


def json_bytes(tree: Any, choices: Choices) -> bytes:
    """JSON, some of it in forms that Python's writer does not know, now and then damaged."""
    text_form = _written(tree)
    if '"@' in text_form:
        for mark, raw in _RAW.items():
            text_form = text_form.replace(f'"{mark}"', raw)
    data = text_form.encode()
    return damaged(data, choices) if choices.chance(8) else data


def damaged(data: bytes, choices: Choices) -> bytes:
    """One to four changes of single bytes, runs of bytes and the length."""
    found = bytearray(data)
    for _ in range(1 + choices.below(4)):
        at, kind = choices.below(len(found) + 1), choices.below(8)
        if kind == 0:
            del found[at : at + choices.pick(_LENGTHS)]
        elif kind == 1:
            found[at:at] = choices.blob(1 + choices.below(8))
        elif kind == 2:
            found[at : at + 1] = choices.blob(1)
        elif kind == 3 and at < len(found):
            found[at] ^= 1 << choices.below(8)
        elif kind == 4:
            size = choices.pick((1, 2, 4, 8))
            number = choices.pick(INTEGERS) % (1 << (8 * size))
            found[at : at + size] = number.to_bytes(size, "little")
        elif kind == 5:
            begin = choices.below(len(found) + 1)
            found[at:at] = found[begin : begin + choices.pick(_LENGTHS)]
        elif kind == 6:
            del found[at:]
        else:
            found[at:at] = choices.pick(
                (b"\xff", b"\xed\xa0\x80", b"\0" * 8, b"\xc3", b"\xef\xbb\xbf")
            )
    return bytes(found)


_TOKEN: Final = re.compile(r"\s+|\w+|[^\w\s]")


@lru_cache(maxsize=64)
def _tokens(source: str) -> tuple[str, ...]:
    return tuple(_TOKEN.findall(source))


def text(source: str, choices: Choices, words: Sequence[str] = ()) -> str:
    """One to four changes of words, signs and runs of them."""
    tokens = list(_tokens(source))
    for _ in range(1 + choices.below(4)):
        at, kind = choices.below(len(tokens) + 1), choices.below(7)
        if kind == 0:
            del tokens[at : at + 1 + choices.below(4)]
        elif kind == 1:
            begin = choices.below(len(tokens) + 1)
            tokens[at:at] = tokens[begin : begin + 1 + choices.below(12)]
        elif kind == 2:
            tokens[at:at] = [_word(choices, words)]
        elif kind == 3:
            tokens[at : at + 1] = [_word(choices, words)]
        elif kind == 4:
            tokens[at : at + 1] = [str(choices.pick([*INTEGERS, *FLOATS]))]
        elif kind == 5 and at < len(tokens):
            tokens[at] = (tokens[at] * choices.pick((2, 10, 500, 3000)))[:_LONGEST]
        else:
            tokens[at:at] = [
                choices.pick(("[" * 2000, "{" * 2000, "9" * 4400, "(" * 999, '"', "\n"))
            ]
    return "".join(tokens)


def text_bytes(source: str, choices: Choices, words: Sequence[str] = ()) -> bytes:
    """A changed text as UTF-8; lone surrogates become bytes that are none."""
    data = text(source, choices, words).encode("utf-8", "surrogatepass")
    return damaged(data, choices) if choices.chance(8) else data
