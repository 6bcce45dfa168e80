"""JSON texts of others: how deep and how many their values are is known before any is made."""

from __future__ import annotations

import json
import re
from typing import Any, Final

MAX_NESTING: Final = 100
"""Files of models have ten levels at most."""
MAX_VALUES: Final = 8_000_000
"""Of one text; the largest ``tokenizer.json`` published has three million."""

_SLAB: Final = 1 << 20
_SIGNS: Final = b'",[{]}'
_OTHERS: Final = bytes(set(range(256)) - set(_SIGNS))
_HALF: Final = re.compile(r"\\ud[89a-f]", re.IGNORECASE)


def json_value(text: str) -> Any:
    """The value of a JSON text.

    Raises as :func:`check_shape`, ValueError also for half a pair of surrogates, which no file can
    hold again, and RecursionError.
    """
    check_shape(text)
    value = json.loads(text)
    if _HALF.search(text):  # a pair is a character, half of one is none
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def check_shape(text: str | bytes) -> None:
    """Raise ValueError for a text whose values nest deeper, or are more, than files of models have.

    Nothing is parsed: a text that is no JSON may pass.
    """
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    openings = data.count(b"[") + data.count(b"{")
    if openings <= MAX_NESTING and openings + data.count(b",") < MAX_VALUES:
        return
    import numpy as np  # where there is much to count; commands start without it

    data = data.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    quotes = depth = values = 0
    for begin in range(0, len(data), _SLAB):
        signs = np.frombuffer(data[begin : begin + _SLAB].translate(None, _OTHERS), np.uint8)
        if not signs.size:
            continue
        passed = np.cumsum(signs == ord('"')) + quotes
        outside = np.where(passed % 2 == 0, signs, 0)
        opened = (outside == ord("[")) | (outside == ord("{"))
        closed = (outside == ord("]")) | (outside == ord("}"))
        steps = np.cumsum(opened.astype(np.int8) - closed.astype(np.int8), dtype=np.int64) + depth
        values += int(np.count_nonzero(opened | (outside == ord(","))))
        if steps.max() > MAX_NESTING:
            raise ValueError(f"it is nested more than {MAX_NESTING} deep")
        if values > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES} values")
        quotes, depth = int(passed[-1]), int(steps[-1])
