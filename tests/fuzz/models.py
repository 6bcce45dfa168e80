"""Tiny well-formed inputs of every kind, from which mutations start."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from tests.fuzz.gguf_shape import F16, F32, Gguf, Key, with_tensors
from tests.tiny import raw_model
from zenconvert import convert
from zenconvert.formats.hf.sentencepiece_model import Piece, write
from zenconvert.model import pretokenizer

Files = dict[str, bytes]
"""Path below the folder → content."""

TOKENS: Final = (
    "<unk>", "<s>", "</s>", "a", "b", "c", "ab", "Ġ", "Ġa", "abc", "<|x|>", "<0x00>", "▁", "▁a",
    "bc", "1", "2", "é", "日", "0", "x", "y", "z", ".",
)  # fmt: skip
MERGES: Final = ("a b", "Ġ a", "ab c", "b c")
SIZES: Final[dict[str, Any]] = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "vocab_size": len(TOKENS),
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TEMPLATE: Final = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CARD: Final = (
    "---\nlicense: apache-2.0\nlanguage:\n- en\n- zh\ntags: [a, 'b']\nbase_model: org/Model-7B\n"
    "datasets:\n- name: x\n  url: https://example.org\nmodel_name: Tiny\nversion: 1.0\n"
    "date: 2024-01-31\nother: n\n---\n# Tiny\n"
)


_roots: list[TemporaryDirectory[str]] = []


def _root() -> Path:
    """A folder that goes when the process ends."""
    if not _roots:
        _roots.append(TemporaryDirectory(prefix="fuzz-models-"))
    return Path(_roots[0].name)


def tokenizer_json(*, byte_fallback: bool = False) -> dict[str, Any]:
    """A tokenizer definition with something in every part."""
    special = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    rule = pretokenizer.by_name("qwen2")
    assert rule is not None
    split: dict[str, Any] = {"type": "Split", "pattern": {"Regex": rule.steps[0]}}
    split |= {"behavior": "Isolated", "invert": False}
    byte_level: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False}
    byte_level |= {"use_regex": False, "trim_offsets": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": TOKENS[i], "special": i < 3, "lstrip": False, "rstrip": False,
             "single_word": False, "normalized": False} for i in (0, 1, 2, 10)
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
        "pre_tokenizer": None if byte_fallback
        else {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {"type": "Sequence", "processors": [byte_level, {
            "type": "TemplateProcessing",
            "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [special, {"Sequence": {"id": "A", "type_id": 0}}, special,
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        }]},
        "decoder": byte_level,
        "model": {
            "type": "BPE", "unk_token": "<unk>", "byte_fallback": byte_fallback,
            "ignore_merges": False, "vocab": {t: i for i, t in enumerate(TOKENS)},
            "merges": [m.split(" ") for m in MERGES],
        },
    }  # fmt: skip


def tokenizer_config() -> dict[str, Any]:
    """Settings with something in every part."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True,
        "add_eos_token": False, "add_prefix_space": False, "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False}, "unk_token": "<unk>", "pad_token": None,
        "added_tokens_decoder": {
            "1": {"content": "<s>", "special": True}, "10": {"content": "<|x|>", "special": False},
        },
        "chat_template": [{"name": "default", "template": TEMPLATE}, {"name": "t", "template": "x"},
        ],
        "model_max_length": 64,
    }  # fmt: skip


def sentencepiece() -> bytes:
    """A tokenizer.model."""
    kinds = {0: 2, 1: 3, 2: 3, 11: 6}
    pieces = [Piece(t, -float(i), kinds.get(i, 1)) for i, t in enumerate(TOKENS)]
    return write(pieces, {"unk": 0, "bos": 1, "eos": 2}, add_dummy_prefix=True)


def folder(family: str = "llama3") -> Path:
    """An HF folder with every side file, kept as long as the process runs."""
    return _folder(family)


@cache
def _folder(family: str) -> Path:
    path = _root() / family
    changes: dict[str, Any] = {"num_local_experts": 2} if family == "mixtral" else {}
    raw_model(path, family, dtype="f16", **SIZES, **changes)
    sides: dict[str, Any] = {
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": tokenizer_config(),
        "special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}},
        "generation_config.json": {
            "bos_token_id": 1, "eos_token_id": [2, 1], "temperature": 0.7, "top_k": 20,
            "top_p": 0.8, "repetition_penalty": 1.05, "do_sample": True,
        },
        "zenconvert.json": {
            "gguf": {
                "general.name": ["str", "x"], "general.tags": ["arr:str", ["a", "b"]],
                "x.count": ["u32", 7], "x.ratio": ["f32", 0.5], "x.list": ["arr:i32", [1, 2]],
                "x.flag": ["bool", True],
            }
        },
    }  # fmt: skip
    for name, value in sides.items():
        (path / name).write_text(json.dumps(value), encoding="utf-8")
    (path / "README.md").write_text(CARD, encoding="utf-8")
    return path


def converted(target: str, family: str = "llama3") -> Path:
    """The same model in another format, kept as long as the process runs."""
    return _converted(target, family)


@cache
def _converted(target: str, family: str) -> Path:
    out = _root() / f"{family}-{target.replace(':', '-')}"
    convert(folder(family), out, target)
    return out


def files_of(path: Path) -> Files:
    """The contents of a folder."""
    found = (f for f in sorted(path.rglob("*")) if f.is_file())
    return {f.relative_to(path).as_posix(): f.read_bytes() for f in found}


def table(files: Files, name: str) -> Any:
    """A JSON file of some; not to be changed."""
    return parsed(files[name])


@cache
def parsed(data: bytes) -> Any:
    """The value of a JSON text that many inputs begin with; not to be changed."""
    return json.loads(data)


def gguf(experts: int = 0) -> Gguf:
    """A llama model as llama.cpp's converter lays it out."""
    return _gguf(experts)


@cache
def _gguf(experts: int) -> Gguf:
    prefix, size, kv, vocab = "llama.", 32, 16, len(TOKENS)
    keys = [
        Key("general.architecture", "str", "llama"), Key("general.name", "str", "Tiny"),
        Key("general.tags", "arr:str", ["a", "b"]), Key("general.file_type", "u32", 1),
        Key(prefix + "block_count", "u32", 1), Key(prefix + "context_length", "u32", 64),
        Key(prefix + "embedding_length", "u32", size),
        Key(prefix + "feed_forward_length", "u32", size),
        Key(prefix + "attention.head_count", "u32", 2),
        Key(prefix + "attention.head_count_kv", "u32", 1),
        Key(prefix + "attention.layer_norm_rms_epsilon", "f32", 1e-5),
        Key(prefix + "rope.freq_base", "f32", 10000.0),
        Key(prefix + "rope.scaling.type", "str", "yarn"),
        Key(prefix + "rope.scaling.factor", "f32", 4.0),
        Key(prefix + "rope.scaling.original_context_length", "u32", 16),
        Key("tokenizer.ggml.model", "str", "gpt2"), Key("tokenizer.ggml.pre", "str", "llama-bpe"),
        Key("tokenizer.ggml.tokens", "arr:str", list(TOKENS)),
        Key("tokenizer.ggml.token_type", "arr:i32", [2, 3, 3, *[1] * (vocab - 3)]),
        Key("tokenizer.ggml.scores", "arr:f32", [-float(i) for i in range(vocab)]),
        Key("tokenizer.ggml.merges", "arr:str", list(MERGES)),
        Key("tokenizer.ggml.bos_token_id", "u32", 1), Key("tokenizer.ggml.eos_token_id", "u32", 2),
        Key("tokenizer.ggml.add_bos_token", "bool", True),
        Key("tokenizer.chat_template", "str", TEMPLATE),
    ]  # fmt: skip
    stack: tuple[int, ...] = ()
    middle = ""
    tensors: list[tuple[str, tuple[int, ...], int]] = [("token_embd.weight", (size, vocab), F16)]
    if experts:
        keys += [
            Key(prefix + "expert_count", "u32", experts),
            Key(prefix + "expert_used_count", "u32", 1),
        ]
        stack, middle = (experts,), "_exps"
        tensors.append(("blk.0.ffn_gate_inp.weight", (size, experts), F32))
    for name, rows in (("q", size), ("k", kv), ("v", kv), ("output", size)):
        tensors.append((f"blk.0.attn_{name}.weight", (size, rows), F16))
    tensors += [(f"blk.0.{name}_norm.weight", (size,), F32) for name in ("attn", "ffn")]
    tensors += [
        (f"blk.0.ffn_{name}{middle}.weight", (size, size, *stack), F16)
        for name in ("gate", "up", "down")
    ]
    tensors += [("output_norm.weight", (size,), F32), ("output.weight", (size, vocab), F16)]
    return with_tensors(keys, tensors)
