"""Odd tokenizer files: transformers' or SentencePiece's ids everywhere, or a loss or refusal."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer

from tests.formats.test_tokenizer_differential import LLAMA, vocabulary_file, written
from tests.tokenizer_oddities import ODDITIES, lone
from tests.tokenizers_for_tests import evaluation_texts
from zenconvert.errors import CorruptFile, ZenError
from zenconvert.formats.gguf.stripping import Stripping, differences
from zenconvert.formats.gguf.tokenizer import tokenizer_from_metadata, tokenizer_metadata
from zenconvert.formats.hf.normal_table import NormalTable
from zenconvert.formats.hf.tokenizer import TextEncoder, read_tokenizer

TEXTS = (
    "Some words, the 12 of them.", " a", "  two  spaces ", "x\n\n y\t", "<s>in</s> it <s> ",
    " <l> a<r> b <r>  c", "word words sword the<<a>>b <a> <x <x>", "caféÉ ǅ ① ﬁ", "q r  xy ▁▁x",
    "going on   < x > <|im_end|> <|fim_prefix|>z<|fim_middle|>", "🚀漢字 नमस्ते", "",
    "<tool>xyz <ctl>", "<|nowhere|> <|e|> <S> <s >", "AAA", "\u3000wide \u00a0",
    "   ", "Ġxq it  xq zz Ġzz", "go <|user|> \n on  [MASK] it",
    "e\u0301 ﷺ ㍿ 한국어 ｶﾞ ¼", "tab\tnew\n\n line \u200b\ufeff", "नि ก็ 🇩🇪 👩\u200d👧",
)  # fmt: skip


def original(folder: Path) -> Callable[[str], list[int]]:
    if (folder / "tokenizer.json").exists():
        theirs = AutoTokenizer.from_pretrained(folder)
        return lambda text: list(theirs.encode(text, add_special_tokens=False))
    model = str(folder / "tokenizer.model")
    processor: Any = sentencepiece.SentencePieceProcessor(model_file=model)
    return lambda text: list(processor.encode(text))


@pytest.mark.parametrize("what", ODDITIES)
def test_ids_or_a_name_for_what_is_lost(what: str, tmp_path: Path) -> None:
    drawn = ODDITIES[what]()
    drawn.size = max(drawn.size, 1960)
    folder = drawn.write(tmp_path / "m")
    encode = original(folder)
    try:
        ours = read_tokenizer(folder, vocab_size=drawn.size)
        encoder = TextEncoder(ours)
    except ZenError as error:
        assert str(folder) in str(error) or "--pre" in str(error)  # noqa: PT017
        return
    is_lone = not (folder / "tokenizer.json").exists()
    texts = [t for t in TEXTS if not (is_lone and "<" in t)]  # SentencePiece knows them in no text
    for text in texts:
        assert encoder.encode(text) == encode(text), text
    try:
        metadata = tokenizer_metadata(ours, LLAMA)
    except ZenError:
        return
    engine = vocabulary_file(ours, tmp_path / "vocab.gguf")
    read = tokenizer_from_metadata(metadata, where="test")
    back = written(read, folder, tmp_path / "back")
    losses = (*ours.losses, *ours.score_losses, *differences(ours, Stripping()))
    composed = [
        t for t in texts if unicodedata.is_normalized("NFC", t)
    ]  # as GGUF takes texts to be
    for text in composed if not losses else ():
        found = list(engine.tokenize(text.encode(), add_bos=False, special=True))
        assert found == encode(text), text
        assert back.encode(text, add_special_tokens=False) == found, text
        if not is_lone:
            framed = AutoTokenizer.from_pretrained(folder).encode(text)
            assert list(engine.tokenize(text.encode(), add_bos=True, special=True)) == framed, text
    engine.close()


@pytest.mark.parametrize("name", ["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf"])
@pytest.mark.parametrize("removes", [False, True])
def test_a_lone_model_normalizes_all_languages(name: str, removes: bool, tmp_path: Path) -> None:
    drawn = lone({}, normalization_rule_name=name, remove_extra_whitespaces=removes)
    folder = drawn.write(tmp_path / "m")
    ours = read_tokenizer(folder, vocab_size=drawn.size)
    encoder, encode = TextEncoder(ours), original(folder)
    for texts in evaluation_texts().values():
        for text in [*texts[:4], "a\r\nb ｶﾞ a\u0323\u0302 \u1112\u1161\u11ab ⅓\u0323 ～｜"]:
            for form in ("NFC", "NFD", "NFKC"):
                changed = unicodedata.normalize(form, text)
                assert encoder.encode(changed) == encode(changed), changed


@pytest.mark.parametrize(
    "table", [b"x", b"\xff" * 64, b"\x08\0\0\0" + b"\xff" * 8, b"\4" + b"\0" * 7]
)
def test_a_table_that_leads_nowhere_is_one_error(table: bytes) -> None:
    with contextlib.suppress(CorruptFile):
        assert NormalTable(table).apply("a b é") == "a b é"
