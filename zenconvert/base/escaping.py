"""Text of strangers in what people look at: nothing in it is obeyed, and nothing is hidden.

Names, tokens, patterns and messages come from files of others. What a terminal or a browser would
obey, or what would turn the reading direction of a line, is shown as an escape. One function for
every kind of output: :func:`plain` for terminals, logs and pages, :func:`json_text` for JSON,
:func:`shell_word` for commands; Markdown has its own in ``verification.markdown``.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from typing import Any, Final

# C0 but tab and newline, DEL, C1, line separators, marks of direction, lone surrogates, marks of
# annotation, and tags, which are letters that nobody sees
_UNSAFE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def plain(text: str) -> str:
    """A text without anything that a terminal would obey or not show."""
    return _UNSAFE.sub(lambda found: _escape(ord(found[0])), text)


def is_plain(text: str) -> bool:
    """Whether a text has nothing that :func:`plain` would change."""
    return _UNSAFE.search(text) is None


def _escape(code: int) -> str:
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )


def json_text(
    value: Any, indent: int | None = None, default: Callable[[Any], Any] | None = None
) -> str:
    """JSON of a value, where the same signs are ``\\uXXXX``: it reads back the same.

    ``default`` is that of ``json.dumps``. Raises TypeError for what has no JSON form.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=default)
    return _UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1], text)


def shell_word(text: str) -> str:
    """A word of a shell command, for bash and zsh: ``$'…'`` where there is something to hide."""
    if is_plain(text) and not re.search("[\n\t]", text):
        return shlex.quote(text)
    signs = (_shell_sign(sign) for sign in text)
    return f"$'{''.join(signs)}'"


def _shell_sign(sign: str) -> str:
    if sign in "\\'":
        return f"\\{sign}"
    if is_plain(sign) and sign not in "\n\t":
        return sign
    return "".join(f"\\x{byte:02x}" for byte in sign.encode("utf-8", "surrogatepass"))
