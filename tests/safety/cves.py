"""Files built after public vulnerabilities of model files, by the number that each has.

A builder writes its file below a folder and returns what a user would name. Mechanisms are told in
words of our own after the advisories; nothing of the attacks themselves is needed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.fuzz import gguf_shape, models
from tests.fuzz.gguf_shape import F32, Gguf, Info, Key
from zenconvert.errors import CorruptFile, ZenError

WRAP = (1 << 64) - 1


@dataclass(frozen=True)
class Case:
    """One number: what the file does, and what has to be said of it."""

    mechanism: str
    build: Callable[[Path], Path]
    said: str
    """A regular expression for the error's message."""
    error: type[ZenError] = CorruptFile


def written(place: Path, data: bytes) -> Path:
    path = place / "model.gguf"
    path.write_bytes(data)
    return path


def gguf(change: Callable[[Gguf], Gguf]) -> Callable[[Path], Path]:
    """A whole small model with one thing changed."""

    def build(place: Path) -> Path:
        whole = models.gguf()
        copy = replace(whole, keys=list(whole.keys), infos=list(whole.infos))
        return written(place, gguf_shape.pack(change(copy)))

    return build


def keyed(key: Key) -> Callable[[Path], Path]:
    return gguf(lambda file: replace(file, keys=[*file.keys, key]))


def informed(**changes: Any) -> Callable[[Path], Path]:
    """The first tensor's row changed."""

    def change(file: Gguf) -> Gguf:
        return replace(file, infos=[replace(file.infos[0], **changes), *file.infos[1:]])

    return gguf(change)


def headed(version: int, tensors: int, keys: int, rest: bytes = b"") -> Callable[[Path], Path]:
    """Nothing but a header and some bytes."""
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, keys)
    return lambda place: written(place, head + rest)


def two_tensors_that_sum_to_nothing(place: Path) -> Path:
    """Sizes whose sum modulo 2⁶⁴ is small."""
    infos = [
        Info("a", (1 << 62, 1, 1, 1), F32, 0), Info("b", (1 << 62, 1, 1, 1), F32, 0),
        Info("token_embd.weight", (32, 24), F32, 0),
    ]  # fmt: skip
    return written(place, gguf_shape.pack(Gguf([], infos, 4096)))


def key_of_array(element: int, count: int, rest: bytes = b"") -> bytes:
    """A key ``k`` with an array."""
    head = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, element, count)
    return head + rest


GGUF = {
    "CVE-2024-21802": Case(
        "a tensor of more dimensions than its array of sizes has room for",
        informed(dims=(1,) * 64), "claims 64 dimensions",
    ),
    "CVE-2024-21825": Case(
        "an array of strings whose count times their size wraps around",
        headed(3, 0, 1, key_of_array(8, 1 << 60, bytes(64))), "claims 1152921504606846976 strings",
    ),
    "CVE-2024-21836": Case(
        "a count of tensors that wraps around when memory for them is taken",
        headed(3, 1 << 60, 0, bytes(64)), "tensors cannot fit",
    ),
    "CVE-2024-23496": Case(
        "a text of 2⁶⁴ - 1 bytes, to which one is added for its end",
        keyed(Key("general.x", "str", "", WRAP)), "claims 18446744073709551615 bytes",
    ),
    "CVE-2024-23605": Case(
        "a count of key/values that wraps around when memory for them is taken",
        headed(3, 0, 1 << 61, bytes(64)), "key/values cannot fit",
    ),
    "CVE-2024-25664": Case(
        "a count of key/values that is not checked",
        headed(3, 0, WRAP, bytes(64)), "key/values cannot fit",
    ),
    "CVE-2024-25665": Case(
        "the length of a key that is not checked",
        headed(3, 0, 1, struct.pack("<Q", 1 << 40) + bytes(64)), "a metadata key claims",
    ),
    "CVE-2024-25666": Case(
        "a count of tensors that is not checked",
        headed(3, WRAP, 0, bytes(64)), "tensors cannot fit",
    ),
    "CVE-2024-25667": Case(
        "the length of an array of numbers that is not checked",
        headed(3, 0, 1, key_of_array(10, 1 << 61, bytes(64))), "claims 2305843009213693952 elem",
    ),
    "CVE-2024-25668": Case(
        "the length of a string of an array that is not checked",
        headed(3, 0, 1, key_of_array(8, 1, struct.pack("<Q", WRAP) + bytes(64))),
        "string 0 of the array 'k' claims",
    ),
    "CVE-2025-53630": Case(
        "tensors whose sizes sum to something small modulo 2⁶⁴",
        two_tensors_that_sum_to_nothing, "impossible shape",
    ),
    "CVE-2026-27940": Case(
        "the same past the first mend: one size below the limit, padding beyond it",
        informed(dims=(1 << 48, 3, 1, 1)), "ends at byte|truncated",
    ),
    "CVE-2026-33298": Case(
        "a product of dimensions that wraps around, so that an exabyte seems to take 4 MB",
        informed(dims=(1 << 30, 1 << 30, 1 << 4, 1)), "impossible shape",
    ),
    "CVE-2026-7482": Case(
        "a tensor larger than its file, whose missing bytes come from memory into the output",
        informed(dims=(32, 1 << 20)), "ends at byte .* truncated",
    ),
    "llama.cpp-24263": Case(
        "a dimension of zero, by which sizes are divided", informed(dims=(32, 0)),
        "impossible shape",
    ),
    "llama.cpp-25596": Case(
        "an alignment of another type",
        keyed(Key("general.alignment", "str", "32")), "general.alignment should be",
    ),
    "llama.cpp-26318": Case(
        "an alignment to which no size can be padded without wrapping around",
        keyed(Key("general.alignment", "u32", 1 << 31)), "general.alignment should be",
    ),
    "ggml-1516": Case(
        "an alignment of a gigabyte in 160 bytes",
        keyed(Key("general.alignment", "u32", 1 << 30)), "general.alignment should be",
    ),
    "gguf-tools-25": Case(
        "an alignment of zero, by which offsets are divided",
        keyed(Key("general.alignment", "u32", 0)), "general.alignment should be",
    ),
    "gguf-tools-27": Case(
        "nine dimensions for eight places", informed(dims=(1,) * 9), "claims 9 dimensions",
    ),
    "gguf-rs-15": Case(
        "an offset near 2⁶⁴ that wraps around when the data's start is added",
        informed(offset=(1 << 64) - 32), "overlaps|ends at byte|truncated",
    ),
    "imp-532-kv": Case(
        "2⁶⁰ key/values", headed(3, 0, 1 << 60, bytes(40)), "key/values cannot fit"
    ),
    "imp-532-array": Case(
        "an array of elements of an unknown type, skipped for ever",
        headed(3, 0, 1, key_of_array(77, 1 << 50, bytes(64))), "unknown type 77",
    ),
    "nested-arrays": Case(
        "arrays of arrays, read by recursion",
        headed(3, 0, 1, key_of_array(9, 1, bytes(64))), "nested arrays",
    ),
    "empty-key": Case(
        "a key of no letters", keyed(Key("", "u32", 1)), "a metadata key is empty"
    ),
    "twice": Case(
        "a key that is there twice", keyed(Key("general.name", "str", "x")), "appears twice"
    ),
    "bool": Case(
        "a truth value that is neither 0 nor 1",
        headed(3, 0, 1, struct.pack("<Q", 1) + b"k" + struct.pack("<IB", 7, 2) + bytes(9)),
        "should be a bool",
    ),
}  # fmt: skip
