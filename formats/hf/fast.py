"""The tokenizers library, which encodes text: one place that loads a ``tokenizer.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenconvert.errors import CorruptFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer


def load(definition: bytes | str, where: str) -> FastTokenizer:
    """A tokenizer without truncation or padding. Raises CorruptFile where the library refuses it.

    ``where`` names the file.
    """
    from tokenizers import Tokenizer as FastTokenizer

    try:
        text = definition if isinstance(definition, str) else definition.decode("utf-8")
        fast = FastTokenizer.from_str(text)
    except BaseException as error:  # the library raises bare Exceptions, and panics beyond them
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        raise CorruptFile(f"{where}: the tokenizers library refuses it: {reason:.300}") from error
    fast.no_truncation()
    fast.no_padding()
    return fast


def texts_by_id(fast: FastTokenizer) -> dict[int, str]:
    """Every token of a loaded tokenizer, added ones included."""
    return {number: text for text, number in fast.get_vocab(with_added_tokens=True).items()}
