"""Random tokenizers and texts: transformers, llama.cpp on what is written, and back in HF.

``ZENCONVERT_TOKENIZER_SEEDS`` (a number, 40 by default) says how many tokenizers are drawn, and
``ZENCONVERT_TOKENIZER_SEED`` the first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import llama_cpp
import pytest
from transformers import AutoTokenizer

from tests.tokenizer_draws import Draw, draw
from zenconvert.errors import UnknownTokenizer
from zenconvert.formats.gguf import container
from zenconvert.formats.gguf.stripping import Stripping, differences
from zenconvert.formats.gguf.tokenizer import tokenizer_from_metadata, tokenizer_metadata
from zenconvert.formats.hf.tokenizer import TextEncoder, read_tokenizer
from zenconvert.formats.hf.tokenizer_json import write_tokenizer
from zenconvert.model.architecture import for_model_type
from zenconvert.model.gguf_family import GgufFamily
from zenconvert.model.pretokenizer import Rule, rules
from zenconvert.model.tokenizer import Tokenizer

LLAMA = for_model_type("llama").in_gguf

COUNT: Final = int(os.environ.get("ZENCONVERT_TOKENIZER_SEEDS", "40"))
FIRST: Final = int(os.environ.get("ZENCONVERT_TOKENIZER_SEED", "0"))
TEXTS: Final = 10


def vocabulary_file(
    tokenizer: Tokenizer, path: Path, family: GgufFamily = LLAMA
) -> llama_cpp.Llama:
    """llama.cpp on a GGUF file that holds a tokenizer and nothing else."""
    metadata = {"general.architecture": ("str", "llama"), **tokenizer_metadata(tokenizer, family)}
    path.write_bytes(container.pack_header(metadata, []))
    return llama_cpp.Llama(model_path=str(path), vocab_only=True, verbose=False)


def compare(drawn: Draw, folder: Path, texts: int = TEXTS) -> None:
    """Every reader and writer gives the ids of transformers, or says that llama.cpp cannot."""
    source = drawn.write(folder / "source")
    theirs = AutoTokenizer.from_pretrained(source)
    ours = read_tokenizer(source, vocab_size=drawn.size)
    who = f"seed {drawn.seed}, {drawn.kind}"
    for text, number in theirs.get_vocab().items():
        assert ours.tokens[number] == text, who
    encoder = TextEncoder(ours)
    for text in drawn.texts(texts):
        assert encoder.encode(text) == theirs.encode(text, add_special_tokens=False), (who, text)
    if drawn.refused:
        with pytest.raises(UnknownTokenizer):
            tokenizer_metadata(ours, LLAMA)
        return
    losses = (*ours.losses, *differences(ours, Stripping()))
    assert drawn.exact is None or bool(losses) != drawn.exact, (who, losses)
    engine = vocabulary_file(ours, folder / "vocab.gguf")
    read = tokenizer_from_metadata(tokenizer_metadata(ours, LLAMA), where=who)
    again = written(read, source, folder / "back")
    assert again.get_vocab() == {text: i for i, text in enumerate(read.tokens)}, who
    encoder = TextEncoder(read)
    for text in drawn.texts(texts):
        found = again.encode(text, add_special_tokens=False)
        assert found == encoder.encode(text), (who, text)
        if losses:
            continue
        for framed in (False, True):
            expected = theirs.encode(text, add_special_tokens=framed)
            there = list(engine.tokenize(text.encode(), add_bos=framed, special=True))
            assert there == expected, (who, framed, text)
            assert again.encode(text, add_special_tokens=framed) == expected, (who, framed, text)
    engine.close()


def written(tokenizer: Tokenizer, source: Path, folder: Path) -> Any:
    """transformers on the HF files of a tokenizer, beside the config of the source."""
    folder.mkdir()
    for name, data in write_tokenizer(tokenizer).items():
        (folder / name).write_bytes(data)
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_ids_of_a_random_tokenizer(seed: int, tmp_path: Path) -> None:
    compare(draw(seed), tmp_path)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_a_rule_cuts_text_as_llamacpp_does(rule: Rule, tmp_path: Path) -> None:
    compare(draw(1000, rule), tmp_path, 20)
