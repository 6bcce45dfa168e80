"""Targets: folders as transformers, AutoGPTQ and AutoAWQ write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.fuzz import models
from tests.fuzz.choices import Choices
from tests.fuzz.hostile import damaged, json_bytes, mutated, text_bytes
from tests.fuzz.models import Files
from tests.fuzz.target import Target
from zenconvert import open_checkpoint
from zenconvert.formats import safetensors_container
from zenconvert.formats.gguf.tokenizer import tokenizer_metadata
from zenconvert.formats.hf import sentencepiece_model
from zenconvert.formats.hf.tokenizer import read_tokenizer
from zenconvert.formats.hf.tokenizer_json import write_tokenizer
from zenconvert.inspection import describe
from zenconvert.model.architecture import for_model_type
from zenconvert.model.target import Options
from zenconvert.model.target import Target as Aim
from zenconvert.planning.plan import make_plan

WEIGHTS: Final = "model.safetensors"
INDEX: Final = f"{WEIGHTS}.index.json"
_ROPE: Final = (
    "rope_scaling", "rope_parameters", "rope_type", "type", "factor", "low_freq_factor",
    "high_freq_factor", "original_max_position_embeddings", "attention_factor", "beta_fast",
    "beta_slow", "mscale", "mscale_all_dim", "long_factor", "short_factor", "rope_theta",
)  # fmt: skip
CONFIG_WORDS: Final = (
    *_ROPE, "num_local_experts", "num_experts_per_tok", "sliding_window", "use_sliding_window",
    "layer_types", "head_dim", "hidden_act", "attention_bias", "mlp_bias", "tie_word_embeddings",
    "torch_dtype", "dtype", "quantization_config", "auto_map", "_name_or_path", "model_type",
    "text_config", "vision_config", "llama", "qwen2", "mistral", "mixtral", "qwen3", "gemma2",
)  # fmt: skip
_AIMS: Final = tuple(map(Aim.parse, ("gguf:f16", "hf:f32", "onnx:int4")))


def planned(path: Path) -> None:
    """Open, describe, and plan what looks at most of the facts."""
    checkpoint = open_checkpoint(path)
    describe(checkpoint).as_dict()
    for target in _AIMS:
        attempt(partial(make_plan, checkpoint, target, Options(), name="model", threads=1))


def attempt(step: Callable[[], object]) -> None:
    """A refusal of one target is no reason to leave out the next."""
    from zenconvert.errors import ZenError

    try:
        step()
    except ZenError as error:
        str(error).encode("utf-8", "backslashreplace")


def json_files(*names: str, words: Sequence[str] = ()) -> Callable[[Choices, Files], Files]:
    """Change one of some JSON files."""

    def mutate(choices: Choices, base: Files) -> Files:
        name = choices.pick(names)
        tree = mutated(models.table(base, name), choices, words)
        return {**{n: base[n] for n in names}, name: json_bytes(tree, choices)}

    return mutate


_HEADER_WORDS: Final = ("dtype", "shape", "F16", "U8", "I32")


def _header(choices: Choices, base: Files, name: str = WEIGHTS) -> bytes:
    """A safetensors file with a changed header."""
    data = base[name]
    size = int.from_bytes(data[:8], "little")
    tree = mutated(models.parsed(data[8 : 8 + size]), choices, _HEADER_WORDS)
    header = json_bytes(tree, choices)
    length = len(header) if not choices.chance(16) else choices.below(1 << 20)
    whole = length.to_bytes(8, "little") + header + data[8 + size :]
    return damaged(whole, choices) if choices.chance(16) else whole


def _safetensors(choices: Choices, base: Files) -> Files:
    return {WEIGHTS: _header(choices, base)}


def _small_safetensors() -> Files:
    from zenconvert.model.encoding import Dense

    tensors = [
        ("a.weight", Dense("f32"), (2, 3)),
        ("b", Dense("bf16"), (4,)),
        ("c", Dense("i8"), ()),
    ]
    header, _ = safetensors_container.pack_header(tensors, {"format": "pt"})
    return {WEIGHTS: header + bytes(24 + 8 + 1)}


def _sharded() -> Files:
    files = models.files_of(models.folder())
    names = list(json.loads(files[WEIGHTS][8:].split(b"}}")[0] + b"}}"))
    shard = "model-00001-of-00001.safetensors"
    weights = {name: shard for name in names if name != "__metadata__"}
    kept = {n: d for n, d in files.items() if n == "config.json"}
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": weights}).encode()
    return {**kept, shard: files[WEIGHTS], INDEX: index}


def _hf() -> Files:
    return models.files_of(models.folder())


def _without_card(path: Path) -> Files:
    """YAML takes longer than all other files."""
    return {n: d for n, d in models.files_of(path).items() if n != "README.md"}


def _bare() -> Files:
    return _without_card(models.folder())


def _experts() -> Files:
    return _without_card(models.folder("mixtral"))


def _tokenizer_files() -> Files:
    files = models.files_of(models.folder())
    kept = {n: d for n, d in files.items() if n not in {WEIGHTS, "README.md"}}
    added = {"<new>": 20, "<|x|>": 10}
    return {**kept, "added_tokens.json": json.dumps(added).encode()}


def _fallback_files() -> Files:
    definition = json.dumps(models.tokenizer_json(byte_fallback=True)).encode()
    return {**_tokenizer_files(), "tokenizer.json": definition}


def _vocab_files() -> Files:
    kept = {n: d for n, d in _tokenizer_files().items() if n != "tokenizer.json"}
    vocab = json.dumps({t: i for i, t in enumerate(models.TOKENS)}).encode()
    settings = json.dumps({**models.tokenizer_config(), "tokenizer_class": "Qwen2Tokenizer"})
    merges = ("#version: 0.2\n" + "\n".join(models.MERGES)).encode()
    made = {"vocab.json": vocab, "merges.txt": merges, "tokenizer_config.json": settings.encode()}
    return {**kept, **made}


def _sentencepiece_files() -> Files:
    kept = {n: d for n, d in _tokenizer_files().items() if n != "tokenizer.json"}
    return {**kept, "tokenizer.model": models.sentencepiece()}


_TOKENIZER: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "config.json",
)  # fmt: skip
_TOKENIZER_WORDS: Final = (
    "BPE", "Unigram", "WordPiece", "WordLevel", "Replace", "Prepend", "Metaspace", "Split", "T5",
    "Strip", "Fuse", "ByteFallback", "String", "Regex", "prepend_scheme", "never", "replacement",
    "add_prefix_space", "chat_template", "special_tokens", "SpecialToken", "Sequence", "processors",
    "normalizers", "pretokenizers", "decoders", "content", "special", "vocab", "merges",
    "added_tokens_decoder", "add_bos_token", "sep_token", "cls_token", "A", "B", "Digits",
)  # fmt: skip


def _read_tokenizer(path: Path) -> None:
    tokenizer = read_tokenizer(path, vocab_size=len(models.TOKENS))
    attempt(lambda: write_tokenizer(tokenizer))
    attempt(lambda: tokenizer_metadata(tokenizer, for_model_type("llama").in_gguf))


def _sentencepiece(choices: Choices, base: Files) -> Files:
    from tests.fuzz import protobuf

    return {"tokenizer.model": protobuf.mutated(base["tokenizer.model"], choices)}


def _read_pieces(path: Path) -> None:
    sentencepiece_model.read(path / "tokenizer.model")
    _read_tokenizer(path)


def _vocab(choices: Choices, base: Files) -> Files:
    merges = base["merges.txt"]
    if choices.chance(3):
        merges = text_bytes(merges.decode(), choices, models.TOKENS)
    return {
        **json_files("vocab.json", "tokenizer_config.json")(choices, base),
        "merges.txt": merges,
    }


def card(choices: Choices, base: Files) -> Files:
    words = (
        "license",
        "base_model",
        "datasets",
        "language",
        "*n",
        "&n",
        "!!python/object",
        "!!int",
    )
    return {"README.md": text_bytes(models.CARD, choices, words)}


def _packed(target: str) -> Callable[[], Files]:
    return lambda: _without_card(models.converted(target))


def packed_mutation(*words: str) -> Callable[[Choices, Files], Files]:
    def mutate(choices: Choices, base: Files) -> Files:
        if choices.below(2):
            return {WEIGHTS: _header(choices, base), "config.json": base["config.json"]}
        changed: Any = models.table(base, "config.json")
        settings = changed["quantization_config"]
        changed = {**changed, "quantization_config": mutated(settings, choices, words)}
        return {"config.json": json_bytes(changed, choices), WEIGHTS: base[WEIGHTS]}

    return mutate


PACKED_WORDS: Final = (
    "gptq", "gptq_v2", "gptq_p", "awq", "auto-round", "auto_round:auto_gptq", "gemm", "gemv",
    "checkpoint_format", "packing_format", "desc_act", "sym", "bits", "group_size", "version",
    "dynamic", "extra_config", "model_file_base_name", "pack_dtype", "meta", "w_bit",
)  # fmt: skip


_CT_WORDS: Final = (
    "compressed-tensors", "pack-quantized", "int-quantized", "float-quantized", "naive-quantized",
    "config_groups", "weights", "strategy", "block", "block_structure", "group_size", "symmetric",
    "ignore", "format", "sparsity_config", "transform_config", "actorder", "kv_cache_scheme",
)  # fmt: skip


TARGETS: Final = (
    Target(
        "safetensors", _small_safetensors, _safetensors,
        lambda path: safetensors_container.read(path / WEIGHTS), cheap=True,
    ),
    Target("headers", _bare, _safetensors, lambda path: describe(open_checkpoint(path)).as_dict()),
    Target("index", _sharded, json_files(INDEX, words=(WEIGHTS, "../x")), open_checkpoint),
    Target("config", _bare, json_files("config.json", words=CONFIG_WORDS), planned),
    Target("experts", _experts, json_files("config.json", words=CONFIG_WORDS), planned),
    Target("generation", _bare, json_files("generation_config.json", "zenconvert.json"), planned),
    Target(
        "tokenizer", _tokenizer_files, json_files(*_TOKENIZER, words=_TOKENIZER_WORDS),
        _read_tokenizer, cheap=True,
    ),
    Target(
        "tokenizer-fallback", _fallback_files, json_files(*_TOKENIZER, words=_TOKENIZER_WORDS),
        _read_tokenizer, cheap=True,
    ),
    Target("tokenizer-vocab", _vocab_files, _vocab, _read_tokenizer, cheap=True),
    Target("sentencepiece", _sentencepiece_files, _sentencepiece, _read_pieces, cheap=True),
    Target("card", _hf, card, planned),
    Target("gptq", _packed("gptq:w4g32"), packed_mutation(*PACKED_WORDS), planned),
    Target("awq", _packed("awq:w4g32"), packed_mutation(*PACKED_WORDS), planned),
    Target("ct", _packed("ct:w4a16-g32-asym"), packed_mutation(*_CT_WORDS), planned),
)  # fmt: skip
