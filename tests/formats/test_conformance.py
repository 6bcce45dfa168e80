"""Every format keeps to what all of them keep to."""

from __future__ import annotations

from tests.formats.conformance import FormatTests
from zenconvert.formats.registry import FORMATS


class TestHf(FormatTests):
    name, exact = "hf", "f32"


class TestGguf(FormatTests):
    name, exact = "gguf", "bf16"


class TestGptq(FormatTests):
    name, exact, again = "gptq", "w4g128", "w4g128"


class TestAwq(FormatTests):
    name, exact, again = "awq", "w4g128", "w4g128"


class TestCompressedTensors(FormatTests):
    name, exact, again = "ct", "w4a16-g128", "w4a16-g128"


class TestOnnx(FormatTests):
    name, exact = "onnx", "f32"


def test_no_format_is_left_out() -> None:
    assert {one.name for one in FormatTests.__subclasses__()} == set(FORMATS)
