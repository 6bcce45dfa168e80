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
def pieces() -> bytes:
    """A SentencePiece BPE model with byte fallback."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts() for line in text.splitlines()),
        model_writer=out, model_type="bpe", vocab_size=1600, byte_fallback=True,
        character_coverage=0.98, normalization_rule_name="identity", minloglevel=2,
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, hard_vocab_limit=False,
    )  # fmt: skip
    return out.getvalue()


@dataclass
class Draw:
    """One tokenizer and what is known of it."""

    seed: int
    kind: str
    size: int
    files: dict[str, Any] = field(default_factory=dict)
    specials: list[str] = field(default_factory=list)
    exact: bool = True
    """Whether llama.cpp can have it as it is."""
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
    if rule is not None or chance.random() < 0.6:
        return _byte_level(seed, chance, rule or chance.choice(rules()))
    return _sentencepiece(seed, chance)


def _added(
    chance: random.Random, used: dict[str, int], free: int, gap: bool
) -> list[dict[str, Any]]:
    """Added tokens from the id ``free`` on, in the vocabulary too where there are gaps."""
    rows, number = [], free
    for text in chance.sample(_NAMES, chance.randint(1, 5)):
        if text in used:
            continue
        number += chance.randint(0, 3) if gap else 0
        special = chance.random() < 0.6
        rows.append(
            {
                "id": number, "content": text, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": special,
            }
        )  # fmt: skip
        number += 1
    return rows


def _byte_level(seed: int, chance: random.Random, rule: Rule) -> Draw:
    base, merges = byte_level()
    shift = chance.choice([0, 0, 3, 7])  # room for special tokens before everything else
    vocab = {text: number + shift for text, number in base.items()}
    first = [
        {
            "id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True,
        }
        for i, text in enumerate(["<|unk|>", "<|bos|>", "<|eos|>"][:shift])
    ]  # fmt: skip
    last = _added(chance, vocab, max(vocab.values()) + 1, gap=chance.random() < 0.5)
    rows = [*first, *last]
    vocab |= {row["content"]: row["id"] for row in rows}
    flagged = chance.random() < 0.15
    if flagged:
        rows[-1][chance.choice(["lstrip", "rstrip", "single_word"])] = True
    nfc = "NFC" in rule.normalizers and chance.random() < 0.5
    bare = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    parts: list[dict[str, Any]] = []
    for step in rule.steps:
        if step == DIGITS:
            parts.append({"type": "Digits", "individual_digits": True})
        elif step != GPT2:
            split = {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated"}
            parts.append({**split, "invert": False})
    parts.append({**bare, "use_regex": rule.steps[-1] == GPT2})
    definition = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": rows,
        "normalizer": {"type": "NFC"} if nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
        "post_processor": None, "decoder": bare,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": rule.ignore_merges, "vocab": vocab,
            "merges": [list(merge) for merge in merges],
        },
    }  # fmt: skip
    size = max(vocab.values()) + 1 + chance.choice([0, 0, 5, 40])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if shift:
        settings |= {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    return Draw(
        seed, f"bpe {rule.name}", size,
        {"tokenizer.json": definition, "tokenizer_config.json": settings},
        [row["content"] for row in rows], not flagged and not rule.losses, nfc,
    )  # fmt: skip


def _sentencepiece(seed: int, chance: random.Random) -> Draw:
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
    rows = [
        {
            "id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True,
        }
        for i, text in enumerate(("<unk>", "<s>", "</s>"))
    ]  # fmt: skip
    gap = chance.random() < 0.5
    more = [row for row in _added(chance, vocab, size, gap=gap) if row["content"] != "▁▁"]
    vocab |= {row["content"]: row["id"] for row in more} if gap else {}
    prefix = chance.choice(["prepend", "none", "never", "always", "first"])
    space: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = [{"type": "Prepend", "prepend": "▁"}] if prefix == "prepend" else []
    meta = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": prefix, "split": False}
    normal = prefix in {"prepend", "none"}
    definition = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [*rows, *more],
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, space]} if normal else None,
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
    return Draw(
        seed, f"spm {prefix}", total, files,
        [row["content"] for row in [*rows, *more]], prefix not in {"always", "first"},
    )  # fmt: skip
