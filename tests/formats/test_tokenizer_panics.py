"""Files over which the tokenizers library panics: one error of ours, and nothing else is shown."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as FastTokenizer

from tests.tokenizer_draws import byte_level_draw, draw
from zenconvert.base.native import NativeFailure, heard
from zenconvert.errors import CorruptFile, InvalidInput
from zenconvert.formats.hf.tokenizer import TextEncoder, read_tokenizer
from zenconvert.model.pretokenizer import rules
from zenconvert.model.tokenizer import Tokenizer

A, B = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
UNNAMED = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<q>", "type_id": 0}}, A],
    "pair": [A, B],
    "special_tokens": {},
}
PANICS: dict[str, dict[str, Any]] = {
    "a template's token that is nowhere": {"post_processor": UNNAMED},
    "chunks of no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "a broken table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
}


def folder_of(case: str, tmp_path: Path) -> tuple[Path, int]:
    drawn = draw(3)
    drawn.files["tokenizer.json"] |= PANICS[case]
    return drawn.write(tmp_path / "m"), drawn.size


@pytest.mark.parametrize("case", PANICS)
def test_a_panic_is_one_error(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, size = folder_of(case, tmp_path)
    with pytest.raises(BaseException, match=r"\S") as caught:
        FastTokenizer.from_file(str(folder / "tokenizer.json")).encode("a")
    assert not isinstance(caught.value, Exception)
    assert "panicked" in capfd.readouterr().err
    with pytest.raises(CorruptFile, match=r"tokenizer\.json: the tokenizers library refuses it"):
        read_tokenizer(folder, vocab_size=size)
    assert capfd.readouterr() == ("", "")


def test_a_text_that_no_token_stands_for_is_one_error(tmp_path: Path) -> None:
    definition = (
        b'{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, '
        b'"post_processor": null, "decoder": null, "truncation": null, "padding": null, '
        b'"model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"a": 0}}}'
    )
    encoder = TextEncoder(Tokenizer("other", ["a"], [1], definition=definition))
    assert encoder.encode("a") == [0]
    with pytest.raises(InvalidInput, match="cannot encode 'b'"):
        encoder.encode("b")


def said_and_raised(text: bytes, error: BaseException) -> None:
    with heard():
        os.write(2, text)
        raise error


def test_what_others_write_meanwhile_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    with heard():
        os.write(2, b"a word\n")
    assert capfd.readouterr().err == "a word\n"
    with pytest.raises(ValueError, match="ours"):
        said_and_raised(b"another\n", ValueError("ours"))
    assert capfd.readouterr().err == "another\n"
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(NativeFailure, match="theirs"):
        said_and_raised(b"thread panicked\n", panic("theirs"))
    assert capfd.readouterr().err == ""


def test_a_child_without_a_standard_error_encodes(tmp_path: Path) -> None:
    source = byte_level_draw(1, random.Random(1), rules()[0], plain=True)
    folder = source.write(tmp_path / "m")
    code = (
        "import os, pathlib; os.close(2)\n"
        "from zenconvert.formats.hf.tokenizer import TextEncoder, read_tokenizer\n"
        f"found = read_tokenizer(pathlib.Path({str(folder)!r}), vocab_size={source.size})\n"
        "print(len(TextEncoder(found).encode('some words')) > 0)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n"
