"""Tokenizer files as people have them, each odd in one way: folders by name."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any, Final

from tests.tokenizer_draws import Draw, byte_level_draw, pieces, pieces_draw, token
from zenconvert.model.pretokenizer import by_name

Definition = dict[str, Any]


def byte_level(rule: str = "llama-bpe") -> Draw:
    """Byte-level BPE with ``<unk> <s> </s>`` first."""
    found = by_name(rule)
    assert found is not None
    return byte_level_draw(7, random.Random(7), found, plain=True)


def sentencepiece() -> Draw:
    """SentencePiece BPE with a space before the text."""
    return pieces_draw(5, random.Random(5), plain=True)


def changed(drawn: Draw, change: Callable[[Definition], None], **settings: Any) -> Draw:
    """The same with another tokenizer.json and tokenizer_config.json."""
    drawn.files = copy.deepcopy(drawn.files)
    change(drawn.files["tokenizer.json"])
    drawn.files["tokenizer_config.json"] |= settings
    return drawn


def put(*path: str | int, value: Any) -> Callable[[Definition], None]:
    def change(definition: Definition) -> None:
        part: Any = definition
        for step in path[:-1]:
            part = part[step]
        part[path[-1]] = value

    return change


def added(*rows: dict[str, Any]) -> Callable[[Definition], None]:
    return lambda definition: definition["added_tokens"].extend(rows)


def nothing(definition: Definition) -> None:
    """tokenizer.json as it is."""
    del definition


def old_merges(definition: Definition) -> None:
    definition["model"]["merges"] = [" ".join(m) for m in definition["model"]["merges"]]


def reversed_vocabulary(definition: Definition) -> None:
    vocab = definition["model"]["vocab"]
    definition["model"]["vocab"] = dict(reversed(list(vocab.items())))


def without_type(definition: Definition) -> None:
    del definition["model"]["type"]


def without_added_in_vocabulary(definition: Definition) -> None:
    vocab = definition["model"]["vocab"]
    for row in definition["added_tokens"]:
        if row["id"] > 2:
            vocab.pop(row["content"], None)


def metaspace(**options: Any) -> Callable[[Definition], None]:
    def change(definition: Definition) -> None:
        definition["normalizer"] = None
        definition["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", **options}

    return change


def fewer_bytes(definition: Definition) -> None:
    del definition["model"]["vocab"]["<0x41>"]


def word_pieces(definition: Definition) -> None:
    letters = [prefix + chr(n) for prefix in ("", "##") for n in range(97, 123)]
    vocab = ["<unk>", "<s>", "</s>", *letters, "word", "going"]
    definition |= {
        "model": {
            "type": "WordPiece", "vocab": {text: n for n, text in enumerate(vocab)},
            "unk_token": "<unk>", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    }  # fmt: skip


def special_tokens_map() -> Draw:
    drawn = changed(byte_level(), nothing, pad_token="<|e|>")
    drawn.files["special_tokens_map.json"] = {"pad_token": "<|nowhere|>"}
    return drawn


def lone(settings: dict[str, Any] | None = None, **options: Any) -> Draw:
    """A tokenizer.model and nothing else."""
    files: dict[str, Any] = {"tokenizer.model": pieces(**options)}
    if settings is not None:
        files["tokenizer_config.json"] = settings
    return Draw(0, "lone", 1700, files, ["<s>", "</s>", "<tool>", "<ctl>"])


A, B = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
EMPTY = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
ODDITIES: Final[dict[str, Callable[[], Draw]]] = {
    "merges as texts": lambda: changed(byte_level(), old_merges),
    "a vocabulary in another order": lambda: changed(byte_level(), reversed_vocabulary),
    "a model without its type": lambda: changed(byte_level(), without_type),
    "added tokens beside the vocabulary": lambda: changed(
        byte_level(), without_added_in_vocabulary
    ),
    "lstrip": lambda: changed(byte_level(), added(token(1950, "<l>", lstrip=True))),
    "rstrip of SentencePiece": lambda: changed(
        sentencepiece(), added(token(1950, "<r>", rstrip=True))
    ),
    "single word": lambda: changed(byte_level(), added(token(1950, "word", single_word=True))),
    "a special token that is a word": lambda: changed(byte_level(), added(token(1950, "the"))),
    "a special token with a space": lambda: changed(byte_level(), added(token(1950, "< x >"))),
    "a special token of spaces": lambda: changed(byte_level(), added(token(1950, "   "))),
    "special tokens within each other": lambda: changed(
        byte_level(), added(token(1950, "<<a>>"), token(1951, "<a>"), token(1952, "a>>b"))
    ),
    "a special token that begins as another": lambda: changed(
        byte_level(), added(token(1950, "<x"), token(1951, "<x>"))
    ),
    "a special token of a line end": lambda: changed(byte_level(), added(token(1950, "\n"))),
    "a special token of a byte": lambda: changed(byte_level(), added(token(1950, "Ġ"))),
    "user defined within words": lambda: changed(
        byte_level(), added(token(1950, "ing", special=False))
    ),
    "user defined with a space first": lambda: changed(
        sentencepiece(), added(token(1950, " xy", special=False))
    ),
    "user defined of ▁": lambda: changed(sentencepiece(), added(token(1950, "▁▁x", special=False))),
    "user defined of ▁ alone": lambda: changed(
        sentencepiece(), added(token(1950, "▁▁▁", special=False))
    ),
    "normalized and user defined": lambda: changed(
        sentencepiece(), added(token(1950, "q r", special=False, normalized=True))
    ),
    "an added token in capitals of another": lambda: changed(
        byte_level(), added(token(1950, "<S>"), token(1951, "<s >"))
    ),
    "fim": lambda: changed(byte_level(), added(token(1950, "<|fim_prefix|>", special=False))),
    "a plain token that ends a turn": lambda: changed(
        byte_level(), put("model", "vocab", "<|im_end|>", value=1950)
    ),
    "a plain fim token": lambda: changed(
        byte_level(), put("model", "vocab", "<|fim_middle|>", value=1950)
    ),
    "a prefix space of ByteLevel": lambda: changed(
        byte_level("gpt-2"),
        put("pre_tokenizer", "pretokenizers", -1, "add_prefix_space", value=True),
    ),
    "a prefix space said in the config": lambda: changed(
        byte_level(), nothing, add_prefix_space=True
    ),
    "an added token that is a word": lambda: changed(byte_level(), added(token(1950, "Ġxq"))),
    "added words with holes before": lambda: changed(
        byte_level(), added(token(1950, "Ġxq"), token(1957, "Ġzz"))
    ),
    "ignore_merges the other way": lambda: changed(
        byte_level(), put("model", "ignore_merges", value=False)
    ),
    "an unknown token of byte-level BPE": lambda: changed(
        byte_level(), put("model", "unk_token", value="<unk>")
    ),
    "dropout": lambda: changed(byte_level(), put("model", "dropout", value=0.0)),
    "truncation": lambda: changed(
        byte_level(),
        put("truncation", value={"direction": "Right", "max_length": 4,
            "strategy": "LongestFirst", "stride": 0}),
    ),
    "padding": lambda: changed(
        byte_level(),
        put("padding", value={"strategy": {"Fixed": 64}, "direction": "Right",
            "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}),
    ),
    "Strip": lambda: changed(
        byte_level(),
        put("normalizer", value={"type": "Strip", "strip_left": True, "strip_right": False}),
    ),
    "NFC in a sequence": lambda: changed(
        byte_level(),
        put("normalizer", value={"type": "Sequence", "normalizers": [{"type": "NFC"}]}),
    ),
    "an empty sequence": lambda: changed(
        byte_level(), put("normalizer", value={"type": "Sequence", "normalizers": []})
    ),
    "a sequence in a sequence": lambda: changed(
        byte_level(),
        lambda d: d.update(
            pre_tokenizer={"type": "Sequence", "pretokenizers": [d["pre_tokenizer"]]}
        ),
    ),
    "a Gemma's split": lambda: changed(
        sentencepiece(),
        lambda d: d.update(
            normalizer=d["normalizer"]["normalizers"][-1],
            pre_tokenizer={**EMPTY, "invert": False},
        ),
    ),
    "Metaspace always": lambda: changed(
        sentencepiece(), metaspace(prepend_scheme="always", split=False)
    ),
    "Metaspace that splits": lambda: changed(
        sentencepiece(), metaspace(prepend_scheme="never", split=True)
    ),
    "Metaspace of old": lambda: changed(sentencepiece(), metaspace(add_prefix_space=True)),
    "NFKC of SentencePiece": lambda: changed(
        sentencepiece(), lambda d: d["normalizer"]["normalizers"].insert(0, {"type": "NFKC"})
    ),
    "one byte is missing": lambda: changed(sentencepiece(), fewer_bytes),
    "no byte fallback": lambda: changed(
        sentencepiece(), put("model", "byte_fallback", value=False)
    ),
    "unknown tokens one by one": lambda: changed(
        sentencepiece(), put("model", "fuse_unk", value=False)
    ),
    "no unknown token": lambda: changed(sentencepiece(), put("model", "unk_token", value=None)),
    "weaker merges first": lambda: changed(
        sentencepiece(), lambda d: d["model"]["merges"].reverse()
    ),
    "a merge less": lambda: changed(sentencepiece(), lambda d: d["model"]["merges"].pop(7)),
    "two special tokens around a text": lambda: changed(
        byte_level(),
        put("post_processor", value={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": t, "type_id": 0}} for t in ("<s>", "<unk>")]
            + [A],
            "pair": [A, B],
            "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]}
                               for i, t in enumerate(("<unk>", "<s>"))},
        }),
        bos_token="<s>",
    ),
    "a text twice": lambda: changed(
        byte_level(),
        put("post_processor", value={
            "type": "TemplateProcessing",
            "single": [A, A],
            "pair": [A, B],
            "special_tokens": {},
        }),
    ),
    "bos named with flags": lambda: changed(
        byte_level(), nothing,
        bos_token={"__type": "AddedToken", "content": "<s>", "lstrip": True, "rstrip": False,
                   "normalized": False, "single_word": False},
    ),
    "a special token that only the config names": lambda: changed(
        byte_level(), nothing, pad_token="<|nowhere|>", extra_special_tokens=["<|e|>"]
    ),
    "a special token of the model": lambda: changed(
        byte_level(), nothing, model_specific_special_tokens={"image_token": "<|e|>"}
    ),
    "further tokens under two names": lambda: changed(
        byte_level(), nothing, extra_special_tokens=["<|q|>"], additional_special_tokens=["<|e|>"]
    ),
    "another special token in the map": special_tokens_map,
    "WordPiece": lambda: changed(byte_level(), word_pieces),
    "other flags in the config": lambda: changed(
        byte_level(), nothing,
        added_tokens_decoder={"1": {"content": "<s>", "lstrip": False, "rstrip": True,
                                    "normalized": False, "single_word": False, "special": True}},
    ),
    "lone": lone,
    "lone without a prefix": lambda: lone({}, add_dummy_prefix=False),
    "lone that removes spaces": lambda: lone({}, remove_extra_whitespaces=True),
    "lone with NFKC": lambda: lone({}, normalization_rule_name="nmt_nfkc"),
    "lone with user defined and control pieces": lambda: lone(
        {}, user_defined_symbols="<tool>,xyz", control_symbols="<ctl>"
    ),
    "lone with pieces of spaces": lambda: lone({}, user_defined_symbols="▁▁,▁▁▁▁"),
    "lone with pieces of spaces and no prefix": lambda: lone(
        {}, user_defined_symbols="▁▁,▁▁▁▁", add_dummy_prefix=False
    ),
    "lone without byte fallback": lambda: lone({}, byte_fallback=False),
    "lone unigram": lambda: lone({}, model_type="unigram"),
    "lone of words": lambda: lone({}, model_type="char"),
    "lone with the space behind": lambda: lone({}, treat_whitespace_as_suffix=True),
    "lone with other special pieces": lambda: lone(
        {}, unk_id=5, bos_id=3, eos_id=4, pad_id=0, unk_piece="<UNK>", bos_piece="[BOS]"
    ),
}  # fmt: skip
