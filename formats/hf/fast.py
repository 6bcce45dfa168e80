"""The tokenizers library, which encodes text: one place that loads a ``tokenizer.json``."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from zenconvert.base.machine import memory_errors
from zenconvert.errors import CorruptFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer


_PREFIXED: Final = re.compile(r'"continuing_subword_prefix"\s*:\s*"[^"]')


def load(definition: bytes | str, where: str) -> FastTokenizer:
    """A tokenizer without truncation or padding. Raises CorruptFile where the library refuses it.

    ``where`` names the file.
    """
    from tokenizers import Tokenizer as FastTokenizer

    with memory_errors(where):
        try:
            text = definition if isinstance(definition, str) else definition.decode("utf-8")
            _refuse_prefix(text, where)
            fast = FastTokenizer.from_str(text)
        except CorruptFile:
            raise
        except BaseException as error:  # the library raises bare Exceptions, and panics beyond them
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = " ".join(str(error).split())
            told = f"{where}: the tokenizers library refuses it: {reason:.300}"
            raise CorruptFile(told) from error
    fast.no_truncation()
    fast.no_padding()
    return fast


def _refuse_prefix(text: str, where: str) -> None:
    """Raise CorruptFile for merges without the prefix that a BPE model says they have.

    The library cuts it off unseen and aborts the process where that parts a character.
    """
    if not _PREFIXED.search(text):
        return
    try:
        model = json.loads(text)["model"]
        prefix = model["continuing_subword_prefix"]
        pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
        whole = all(right.startswith(prefix) for _, right in pairs)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise CorruptFile(
            f"{where}: continuing_subword_prefix should begin the second part of every merge"
        )
