"""Small tokenizers of every kind that real models have, trained on the bundled texts."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from zenconvert.model.pretokenizer import by_name
from zenconvert.models import builtin_path
from zenconvert.texts.samples import load_bundled

LLAMA3_EXPRESSION = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LETTERS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
O200K_EXPRESSION = "|".join(
    [
        *(letters + r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?" for letters in _LETTERS),
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ]
)
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def texts() -> list[str]:
    """What the tokenizers learn from."""
    return [sample.content for sample in load_bundled("calibration")]


def evaluation_texts() -> dict[str, list[str]]:
    """Language → texts to encode, with white space, digits and signs that divide tokenizers."""
    found: dict[str, list[str]] = {}
    for sample in load_bundled("evaluation"):
        found.setdefault(sample.language, []).append(sample.content)
    found["hard cases"] = [
        "  two  spaces   and\ttabs\t\tand\n\n\nlines \r\n at the end  ",
        "1 12 123 1234 12345 3.14159 ١٢٣ 一二三",
        "I'm you've WE'LL it's ÇA d'Été",
        "🚀 (normal) 😶‍🌫️ ✅ 🦙🦙 \u00a0\u3000 ﬁ",
        "def f(x):\n    return x ** 2  # ok?\n",
        "x",
        " ",
        "\n",
    ]
    return found


def write_json(path: Path, value: dict[str, Any]) -> None:
    """As transformers does."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2), encoding="utf-8")


def qwen2(folder: Path) -> int:
    """The bundled model's tokenizer; returns the vocabulary size, padded."""
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(builtin_path("zen-nano") / name, folder / name)
    return 8192 + 64


def llama3(folder: Path, vocab: int = 1200) -> int:
    """Byte-level BPE as Llama 3 has it, with BOS added by the post-processor."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    tokenizer = _byte_level(special, vocab)
    begin = special[0]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{begin} $A",
                pair=f"{begin} $A {begin}:1 $B:1",
                special_tokens=[(begin, tokenizer.token_to_id(begin) or 0)],
            ),
        ]
    )
    return _saved(folder, tokenizer, special, bos_token=begin, eos_token=special[2])


def glm4(folder: Path, vocab: int = 1200) -> int:
    """Byte-level BPE that cuts text as Llama 3 does, as GLM 4 has it: nothing is added, and the end
    of a text alone is named."""
    special = ["<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|observation|>"]
    tokenizer = _byte_level(special, vocab)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return _saved(folder, tokenizer, special, eos_token=special[0])


def deepseek_v3(folder: Path, vocab: int = 1200) -> int:
    """Byte-level BPE as DeepSeek-V3 has it: three expressions in turn, and BOS before a text."""
    return _deepseek(folder, vocab, "deepseek-v3")


def deepseek_llm(folder: Path, vocab: int = 1200) -> int:
    """The same with the expressions of DeepSeek-V2, for every digit of its own."""
    return _deepseek(folder, vocab, "deepseek-llm")


def _deepseek(folder: Path, vocab: int, pre: str) -> int:
    rule = by_name(pre)
    assert rule is not None
    special = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
    tokenizer = _byte_level(special, vocab, *rule.steps)
    begin = special[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin) or 0)]
    )
    roles = {"bos_token": begin, "eos_token": special[1], "pad_token": special[2]}
    return _saved(folder, tokenizer, special, **roles)


def o200k(folder: Path, vocab: int = 1200) -> int:
    """Byte-level BPE as gpt-oss has it: o200k with the tokens of its channels, and a template of
    its own file."""
    special = ["<|startoftext|>", "<|return|>", "<|endoftext|>", "<|end|>", "<|call|>", "<|start|>"]
    tokenizer = _byte_level(special, vocab, O200K_EXPRESSION)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    roles = {"bos_token": special[0], "eos_token": special[1], "pad_token": special[2]}
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    )
    return _saved(folder, tokenizer, special, **roles)


def _byte_level(special: list[str], vocab: int, *expressions: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=not expressions))
    steps = expressions or (LLAMA3_EXPRESSION,)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(step), "isolated") for step in steps),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_special_tokens(special)
    return tokenizer


def _saved(folder: Path, tokenizer: Tokenizer, special: list[str], **roles: str) -> int:
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {text: tokenizer.token_to_id(text) for text in special}
    write_json(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {
                str(i): {"content": text, "special": True, "normalized": False}
                for text, i in ids.items()
            },
            **roles,
            "clean_up_tokenization_spaces": True,
            "tokenizer_class": "PreTrainedTokenizerFast",
            **({} if (folder / "chat_template.jinja").exists() else {"chat_template": TEMPLATE}),
        },
    )
    return int(tokenizer.get_vocab_size())


def sentencepiece_bpe(folder: Path, vocab: int = 1500) -> int:
    """SentencePiece with byte fallback as Llama 2 and Mixtral have it."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts() for line in text.splitlines()),
        model_writer=out,
        model_type="bpe",
        vocab_size=vocab,
        byte_fallback=True,
        character_coverage=0.98,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(out.getvalue())
    special = ("<unk>", "<s>", "</s>")
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": {
                str(i): {"content": text, "special": True, "normalized": False}
                for i, text in enumerate(special)
            },
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": None,
            "legacy": True,
            "tokenizer_class": "LlamaTokenizer",
            "chat_template": TEMPLATE,
        },
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    return int(processor.vocab_size())


def gemma(folder: Path, vocab: int = 1500) -> int:
    """SentencePiece with byte fallback as Gemma has it: no space before a text, ids of its own."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts() for line in text.splitlines()),
        model_writer=out,
        model_type="bpe",
        vocab_size=vocab,
        byte_fallback=True,
        character_coverage=0.98,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        user_defined_symbols=["<mask>", "<start_of_turn>", "<end_of_turn>", "\n\n"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(out.getvalue())
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": {
                **{
                    str(i): {"content": text, "special": True, "normalized": False}
                    for i, text in enumerate(special)
                },
                "7": {"content": "\n\n", "special": False, "normalized": False},
            },
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "tokenizer_class": "GemmaTokenizer",
            "chat_template": TEMPLATE,
        },
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    return int(processor.vocab_size())


def gemma4(folder: Path, vocab: int = 1500) -> int:
    """Pieces of SentencePiece with byte fallback in a tokenizer.json alone, as Gemma 4 has it."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]{1,12}|\n+"), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        limit_alphabet=600,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    made = json.loads(tokenizer.to_str())
    made["added_tokens"] = made["added_tokens"][: len(special)]
    split = {"pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    made["pre_tokenizer"] = {"type": "Split", **split}
    tokenizer = Tokenizer.from_str(json.dumps(made))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    begin = special[2]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, 2)]
    )
    roles = {"pad_token": "<pad>", "unk_token": "<unk>"}
    return _saved(folder, tokenizer, special, bos_token=begin, eos_token=special[1], **roles)


MAKERS = {
    "deepseek_llm": deepseek_llm,
    "deepseek_v3": deepseek_v3,
    "gemma": gemma,
    "gemma4": gemma4,
    "glm4": glm4,
    "qwen2": qwen2,
    "llama3": llama3,
    "mistral": sentencepiece_bpe,
    "mixtral": sentencepiece_bpe,
    "o200k": o200k,
}
