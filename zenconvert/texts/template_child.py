"""The process that renders chat templates: jinja2's sandbox under limits of time and memory.

    python -I template_child.py SECONDS BYTES [FOLDER …]

reads one JSON object a line (``template``, ``values``) and answers each with one (``text``, or
``error``). FOLDERs are where jinja2 is, if it is not where Python looks by itself. A template that
takes more than SECONDS of processor time ends the process; one that wants more than BYTES beyond
what the process has gets an error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from jinja2 import Environment
    from jinja2.nodes import Node
    from jinja2.parser import Parser

DAY: Final = datetime(2024, 7, 26)
"""What templates are told of the time: the day that Llama 3.1's take where they are told none."""


def environment() -> Environment:
    """What transformers renders chat templates in, on :data:`DAY`: texts do not depend on when
    they are rendered."""
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension
    from jinja2.nodes import CallBlock
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """``{% generation %}`` marks what the model said: a block with a scope of its own."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("said"), [], [], body).set_lineno(line)

        def said(self, caller: Callable[[], str]) -> str:
            return caller()

    class Names(Namespace):
        """A namespace that keeps nothing under names that begin with an underscore."""

        def __init__(*args: Any, **named: Any) -> None:
            for name in dict(*args[1:], **named):
                Names.check(name)
            Namespace.__init__(*args, **named)

        def __setitem__(self, name: str, value: Any) -> None:
            Names.check(name)
            super().__setitem__(name, value)

        @staticmethod
        def check(name: object) -> None:
            if str(name).startswith("_"):
                raise SecurityError(f"a namespace keeps no {name!r}")

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    found = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    found.globals["raise_exception"] = refuse
    found.globals["strftime_now"] = DAY.strftime
    found.globals["namespace"] = Names
    found.filters["tojson"] = to_json
    return found


def limit_memory(count: int) -> None:
    """Let the process have ``count`` bytes more than it has, where the system can limit that."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    try:
        pages = Path("/proc/self/statm").read_bytes().split()[0]
        count += int(pages) * resource.getpagesize()
    except OSError:  # only on Linux
        count += 1 << 30
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard != resource.RLIM_INFINITY:
        count = min(count, hard)
    resource.setrlimit(resource.RLIMIT_AS, (count, hard))


def limit_time(seconds: float) -> None:
    """End the process after so much processor time; 0 for never."""
    import signal

    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def answer(found: Environment, line: bytes) -> dict[str, str]:
    """What one request is answered with."""
    request = json.loads(line)
    try:
        return {"text": found.from_string(request["template"]).render(**request["values"])}
    except MemoryError:
        return {"error": "it takes more memory than a template may"}
    except Exception as error:  # noqa: BLE001 - a template is a program and may raise anything
        return {"error": repr(error)[:1000]}


def main() -> None:
    """Answer until the parent has no more requests."""
    seconds, count, *folders = sys.argv[1:]
    sys.path += folders
    found = environment()
    limit_memory(int(count))
    for line in sys.stdin.buffer:
        limit_time(float(seconds))
        reply = answer(found, line)
        limit_time(0)
        try:
            data = json.dumps(reply).encode()
        except MemoryError:
            data = json.dumps({"error": "its text takes more memory than one may"}).encode()
        sys.stdout.buffer.write(data + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
