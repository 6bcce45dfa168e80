"""Random tokenizers, as folders of files, and random texts for them: what a seed says."""

from __future__ import annotations

import io
import json
import random
import unicodedata
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import sentencepiece
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from tests.tokenizers_for_tests import evaluation_texts, texts, write_json
from zenconvert.model.pretokenizer import DIGITS, GPT2, Rule, rules

_NAMES: Final = (
    "<|im_start|>",
    "<|im_end|>",
    "<tool>",
    "[INST]",
    "<mask>",
    "▁▁",
    "é<x>",
    "</s>",
    "ab",
)
_ODD: Final = (
    " ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", " \n ", "1", "12", "123", "12345678", "٣٤", "Ⅷ²",
    "'s", "'LL", "don't", "ÇA", "éÉ", "camelCase", "HTTPServer", "ñandú", "🚀", "😶‍🌫️", "—", "…",
    "。",
    "，", "!!", "/path/to", "a_b", "$x=1", "<", "|>", "▁", "ḍ̇", "กำ", "नमस्ते", "한국어", "漢字",
    "\u00a0",
    "\u3000", "\u200b", "\ufeff", "ß", "ǅ", "İ", "\x00", "\x7f",
)  # fmt: skip


@cache
def byte_level() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges that reach over words, so that every cut of a text is seen."""
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\s\S]{1,12}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1800,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=12,
        show_progress=False,
    )
    learnt = [*texts(), *(odd + other for odd in _ODD for other in _ODD), *("".join(_ODD),) * 20]
    tokenizer.train_from_iterator(learnt, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(m) for m in model["merges"]]


@cache
def pieces(**changed: Any) -> bytes:
    """A SentencePiece model, by default of BPE with byte fallback that changes no text."""
    out = io.BytesIO()
    options: dict[str, Any] = {
        "model_type": "bpe", "vocab_size": 1600, "byte_fallback": True,
        "character_coverage": 0.98, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True,
        "minloglevel": 2, "hard_vocab_limit": False,
    }  # fmt: skip
    lines = iter(line for text in texts() for line in text.splitlines())
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=out, **(options | changed)
    )
    return out.getvalue()


@dataclass
class Draw:
    """One tokenizer and what is known of it."""

    seed: int
    kind: str
    size: int
    files: dict[str, Any] = field(default_factory=dict)
    specials: list[str] = field(default_factory=list)
    exact: bool | None = True
    """Whether llama.cpp can have it as it is; None where only a comparison tells."""
    refused: bool = False
    """Whether GGUF cannot hold it at all."""
    nfc: bool = False

    def write(self, folder: Path) -> Path:
        """The folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            if isinstance(content, bytes):
                (folder / name).write_bytes(content)
            else:
                write_json(folder / name, content)
        write_json(folder / "config.json", {"model_type": "llama", "vocab_size": self.size})
        return folder

    def texts(self, count: int) -> list[str]:
        """Random texts, special tokens among them."""
        chance = random.Random(self.seed * 7919 + 1)
        found = []
        for _ in range(count):
            text = "".join(self._part(chance) for _ in range(chance.randint(1, 12)))
            found.append(unicodedata.normalize("NFC", text) if self.nfc else text)
        return [*found, self.specials[0] if self.specials else "", " " + found[0].strip()]

    def _part(self, chance: random.Random) -> str:
        pick = chance.random()
        if pick < 0.25 and self.specials:
            return chance.choice(self.specials)
        if pick < 0.5:
            return chance.choice(_ODD)
        if pick < 0.55:
            return chr(chance.choice([chance.randint(32, 0x2FFF), chance.randint(0xA000, 0xD7FF)]))
        language = chance.choice(list(evaluation_texts().values()))
        text = chance.choice(language)
        at = chance.randrange(len(text))
        return text[at : at + chance.randint(1, 40)]


def draw(seed: int, rule: Rule | None = None) -> Draw:
    """The tokenizer of a seed; byte-level BPE with ``rule`` where one is named."""
    chance = random.Random(seed)
    if rule is not None or chance.random() < 0.55:
        found = byte_level_draw(seed, chance, rule or chance.choice(rules()))
    elif chance.random() < 0.8:
        found = pieces_draw(seed, chance)
    else:
        found = unigram_draw(seed)
    if rule is None:
        surround(found, chance)
    return found


def token(number: int, text: str, *, special: bool = True, **flags: bool) -> dict[str, Any]:
    """An added token as tokenizer.json has it."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": text, **plain, "special": special, **flags}


def surround(drawn: Draw, chance: random.Random) -> None:
    """A post-processor, and flags that agree with it or not."""
    ids = {row["content"]: row["id"] for row in drawn.files["tokenizer.json"]["added_tokens"]}
    named = [text for text in ("<s>", "</s>") if text in ids]
    if len(named) < 2:
        return
    first, last = chance.choice([(0, 0), (1, 0), (1, 1), (0, 1)])
    shown = {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in named}
    begin = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * first
    end = [{"SpecialToken": {"id": "</s>", "type_id": 0}}] * last
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    template = {
        "type": "TemplateProcessing", "single": [*begin, a, *end],
        "pair": [*begin, a, *end, *begin, b, *end], "special_tokens": shown,
    }  # fmt: skip
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    roberta = {
        "type": "RobertaProcessing", "cls": ["<s>", ids["<s>"]], "sep": ["</s>", ids["</s>"]],
        "trim_offsets": True, "add_prefix_space": False,
    }  # fmt: skip
    bert = {"type": "BertProcessing", "cls": roberta["cls"], "sep": roberta["sep"]}
    choices = (
        None, level, template, template, roberta, bert,
        {"type": "Sequence", "processors": [level, template]},
    )  # fmt: skip
    drawn.files["tokenizer.json"]["post_processor"] = chance.choice(choices)
    settings = drawn.files["tokenizer_config.json"]
    if chance.random() < 0.8:
        settings |= {"bos_token": "<s>", "eos_token": "</s>"}
    else:
        settings.pop("bos_token", None)
    for flag in ("add_bos_token", "add_eos_token"):
        if chance.random() < 0.3:
            settings[flag] = chance.random() < 0.5


def _added(
    chance: random.Random, used: dict[str, int], free: int, gap: bool
) -> list[dict[str, Any]]:
    """Added tokens from the id ``free`` on, in the vocabulary too where there are gaps."""
    rows, number = [], free
    for text in chance.sample(_NAMES, chance.randint(1, 5)):
        if text in used:
            continue
        number += chance.randint(0, 3) if gap else 0
        rows.append(token(number, text, special=chance.random() < 0.6))
        number += 1
    return rows


def _flag(rows: list[dict[str, Any]], chance: random.Random) -> bool:
    """Sometimes set a flag that llama.cpp does not have; whether it was done."""
    if chance.random() >= 0.15 or not rows:
        return False
    rows[-1][chance.choice(["lstrip", "rstrip", "single_word"])] = True
    return True


def byte_level_draw(seed: int, chance: random.Random, rule: Rule, *, plain: bool = False) -> Draw:
    """Byte-level BPE; ``plain``: one that llama.cpp can have, special tokens first."""
    base, merges = byte_level()
    all_first = ("<unk>", "<s>", "</s>", "<|4|>", "<|5|>")
    first = all_first[: 3 if plain else chance.choice([0, 3, 3, 5])]
    cut = 0 if plain else chance.choice([0, 0, 700])  # or in the middle of the others
    vocab = {t: n if n < cut else n + len(first) for t, n in base.items()}
    rows = [token(cut + i, text) for i, text in enumerate(first)]
    vocab |= {row["content"]: row["id"] for row in rows}
    rows += _added(chance, vocab, max(vocab.values()) + 1, gap=chance.random() < 0.5)
    vocab |= {row["content"]: row["id"] for row in rows}
    nfc = "NFC" in rule.normalizers and chance.random() < 0.5
    normalizer: Any = {"type": "NFC"} if nfc else None
    flagged = space = refused = False
    if rows and not plain:
        flagged, space = _flag(rows, chance), chance.random() < 0.1
        rows[-1]["normalized"] = not nfc and chance.random() < 0.3
        refused = space
        if not nfc and chance.random() < 0.1:
            normalizer, refused = chance.choice(_NORMALIZERS), True
    definition = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": rows,
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _cuts(rule, space=space)},
        "post_processor": None, "decoder": _BYTES,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": rule.ignore_merges, "vocab": vocab,
            "merges": [list(merge) for merge in merges],
        },
    }  # fmt: skip
    size = max(vocab.values()) + 1 + chance.choice([0, 0, 5, 40])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if "<s>" in first:
        settings |= {"bos_token": "<s>", "eos_token": "</s>"}
    files = {"tokenizer.json": definition, "tokenizer_config.json": settings}
    return Draw(
        seed, f"bpe {rule.name}", size, files, [row["content"] for row in rows],
        not flagged and not rule.losses, refused, "NFC" in rule.normalizers,
    )  # fmt: skip


_BYTES: Final = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
_NORMALIZERS: Final = (
    {"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Prepend", "prepend": "x"},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "b"},
    {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFKC"}]},
)  # fmt: skip


def _cuts(rule: Rule, *, space: bool) -> list[dict[str, Any]]:
    """The pre-tokenizers of a rule; ``space``: one is put before the text."""
    parts: list[dict[str, Any]] = []
    for step in rule.steps:
        if step == DIGITS:
            parts.append({"type": "Digits", "individual_digits": True})
        elif step != GPT2:
            split = {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated"}
            parts.append({**split, "invert": False})
    last = {"use_regex": rule.steps[-1] == GPT2, "add_prefix_space": space}
    return [*parts, {**_BYTES, **last}]


def pieces_draw(seed: int, chance: random.Random, *, plain: bool = False) -> Draw:
    """SentencePiece BPE as a tokenizer.json; ``plain``: one that llama.cpp can have."""
    processor: Any = sentencepiece.SentencePieceProcessor(model_proto=pieces())
    size = processor.vocab_size()
    vocab = {processor.id_to_piece(i): i for i in range(size)}
    scores = [processor.get_score(i) for i in range(size)]
    ranked = sorted(
        (-scores[i], i, text[:cut], text[cut:])
        for text, i in vocab.items()
        if not (processor.is_control(i) or processor.is_byte(i) or processor.is_unknown(i))
        for cut in range(1, len(text))
        if text[:cut] in vocab and text[cut:] in vocab
    )
    rows = [token(i, text) for i, text in enumerate(("<unk>", "<s>", "</s>"))]
    gap = chance.random() < 0.5
    more = [row for row in _added(chance, vocab, size, gap=gap) if row["content"] != "▁▁"]
    vocab |= {row["content"]: row["id"] for row in more} if gap else {}
    flagged = not plain and _flag(more, chance)
    prefix = "prepend" if plain else chance.choice(["prepend", "none", "never", "always", "first"])
    space: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = [{"type": "Prepend", "prepend": "▁"}] if prefix == "prepend" else []
    meta = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": prefix, "split": False}
    normal = prefix in {"prepend", "none"}
    normalizers = [*prepend, space] if normal else []
    exact = prefix not in {"always", "first"} and not flagged
    if not plain and chance.random() < 0.15:
        normalizers, exact = [chance.choice(_NORMALIZERS), *normalizers], False
    if not plain and more and chance.random() < 0.15:
        more[-1]["normalized"] = True
        exact = exact and not any(n["type"] != "NFC" for n in normalizers)
    whole = {"type": "Sequence", "normalizers": normalizers}
    definition = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [*rows, *more],
        "normalizer": whole if normalizers else None,
        "pre_tokenizer": None if normal else meta, "post_processor": None, "decoder": None,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>",
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
            "byte_fallback": True, "ignore_merges": False, "vocab": vocab,
            "merges": [[left, right] for _, _, left, right in ranked],
        },
    }  # fmt: skip
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    files: dict[str, Any] = {"tokenizer.json": definition, "tokenizer_config.json": settings}
    if chance.random() < 0.5:
        files["tokenizer.model"] = pieces()
    total = max([size, *(row["id"] + 1 for row in more)]) + chance.choice([0, 5])
    specials = [row["content"] for row in [*rows, *more]]
    return Draw(seed, f"spm {prefix}", total, files, specials, exact)


def unigram_draw(seed: int) -> Draw:
    """A Unigram model, which no GGUF of these families holds."""
    processor: Any = sentencepiece.SentencePieceProcessor(model_proto=pieces(model_type="unigram"))
    size = processor.vocab_size()
    vocab = [[processor.id_to_piece(i), processor.get_score(i)] for i in range(size)]
    rows = [token(i, text) for i, text in enumerate(("<unk>", "<s>", "</s>"))]
    definition = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": rows,
        "normalizer": None, "pre_tokenizer": {"type": "Metaspace", "replacement": "▁",
        "prepend_scheme": "always", "split": True}, "post_processor": None, "decoder": None,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": True},
    }  # fmt: skip
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    files = {"tokenizer.json": definition, "tokenizer_config.json": settings}
    specials = [row["content"] for row in rows]
    return Draw(seed, "unigram", size, files, specials, refused=True)
