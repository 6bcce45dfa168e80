"""zenconvert inside a tool's environment, with the old transformers that is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from zenconvert import convert, open_checkpoint, verify
from zenconvert.errors import ZenError
from zenconvert.texts.windows import Window


def engine_refusal(engine: Callable[..., object]) -> Callable[[str], str]:
    """A handler: what an engine says of a folder that its tool would get wrong."""

    def refusal(folder: str) -> str:
        try:
            engine(open_checkpoint(folder), [Window("a", "und", (1, 2))], threads=2)
        except ZenError as error:
            return f"{type(error).__name__}: {error}"
        return "none"

    return refusal


def verified(source: str, out: str, steps: list[list[Any]], text: str) -> dict[str, Any]:
    """Convert ``source`` along ``[target, engines]`` steps, and verify with these engines.

    Returns the version of transformers and, by step, the mean KL that every engine found.
    """
    found: dict[str, Any] = {"transformers": transformers.__version__}
    before: str | Path = source
    for target, engines in steps:
        after = Path(out) / target.replace(":", "-")
        convert(before, after, target)
        for engine in engines:
            report = verify(source, after, engine=engine, text=text, context=128)
            found[f"{target} {engine}"] = report.overall.kl_mean
        before = after
    return found
