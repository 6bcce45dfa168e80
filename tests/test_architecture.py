"""Tables of families: what is right about each, and one clear error for what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tiny import CONFIGS
from zenconvert.errors import InvalidInput
from zenconvert.model import architecture as arch
from zenconvert.model.architecture_table import read_table
from zenconvert.model.operations import NAMES

TABLES = Path(arch.__file__).parent.parent / "architectures"


@pytest.mark.parametrize("family", CONFIGS)
def test_names_are_one_to_one_in_every_vocabulary(family: str) -> None:
    config = CONFIGS[family]
    architecture = arch.for_model_type(config["model_type"])
    names = list(architecture.tensor_names(architecture.sizes(config, where="test")))
    assert len({n.name for n in names}) == len({n.hf for n in names}) == len(names)
    stacked = {n.gguf for n in names if n.expert is not None}
    single = [n.gguf for n in names if n.expert is None]
    assert len(set(single)) == len(single)
    assert not stacked & set(single)


def test_a_type_of_a_family_says_what_differs() -> None:
    llama, mistral = arch.for_model_type("llama"), arch.for_model_type("mistral")
    assert llama.id == mistral.id == "llama"
    assert (llama.block.windows, mistral.block.windows) == ("none", "every_layer")
    assert llama.bias_flags == {"attention_bias", "mlp_bias"}
    assert not mistral.bias_flags
    assert {m.name: m.gguf_operation for m in llama.modules} == {
        m.name: m.gguf_operation for m in mistral.modules
    }


WRONG = {
    "an unknown key": ('class = "Ll', 'clas = "Ll', "unknown keys ['clas']"),
    "no class": ('class = "LlamaForCausalLM"', "", "class is missing"),
    "no TOML": ("[sizes]", "[sizes", "cannot be read"),
    "an unknown size": ('ffn = "inter', 'fnf = "inter', "[sizes] fnf"),
    "a size that is no word": ('ffn = "intermediate_size"', "ffn = 3", "[sizes] ffn"),
    "an unknown size of a shape": (
        'shape = ["q_width", "hidden"]', 'shape = ["q_widht", "hidden"]',
        "module layers.{layer}.attn.q: the size 'q_widht'",
    ),
    "a role": ('role = "head"', 'role = "heat"', "module head: the role 'heat'"),
    "a hole": ("input_layernorm", "{lyer}", "module layers.{layer}.attn_norm: hf"),
    "a row operation": ("rope_pairs =", "rope_pears =", "[gguf_operations]: 'rope_pears'"),
    "a module with an operation": ('pairs = ["layers.{layer}.attn.q"', 'pairs = ["layer.q"',
                                   "[gguf_operations] rope_pairs: 'layer.q'"),
    "a bias without default": ("mlp_bias = false", "", "[biases] mlp_bias"),
    "a window": ('windows = "none"', 'windows = "nun"', "[block] windows"),
    "a value": ("pretraining_tp = [0, 1]", "pretraining_tp = 1", "[config] pretraining_tp"),
    "a balance": ('into = ["layers.{layer}.attn.o"]', 'into = ["layers.{layer}.o"]',
                  "balance of layers.{layer}.attn.v"),
    "a key of a balance": ('smooth = "layers.{layer}.ffn.up"', 'smoth = "layers.{layer}.ffn.up"',
                           "balance of None: unknown keys ['smoth']"),
    "channels of other heads": ('heads = "kv_to_q"', "", "balance of layers.{layer}.attn.v: kv_w"),
    "a type": ("[of.mistral]", "[of.mystral]", "[of.mystral]"),
    "a row twice": ('name = "head"', 'name = "norm"', "module norm: stands there twice"),
    "no role": ('role = "head"', "", "module head: role is missing"),
    "a key of GGUF": ('"u32 vocab"', '"u64 vocab"', "[gguf_keys] vocab_size: 'u64 vocab'"),
    "a size in GGUF": ('"u32 ffn"', '"u32 fnf"', "[gguf_keys] feed_forward_length: 'u32 fnf'"),
    "no file type": ('file_type = "file_type"', "", "[gguf_keys]: no row holds the file_type"),
    "an implied size": ('kv_heads = "heads"', 'kv_heads = "heds"', "[gguf_implied] kv_heads"),
    "a fact of llama.cpp": ('head = "any"', 'head = "some"', "[gguf_graph] head: 'some'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_table_is_one_error_that_names_file_and_row(case: str, tmp_path: Path) -> None:
    before, after, message = WRONG[case]
    text = (TABLES / "llama.toml").read_text()
    assert before in text
    path = tmp_path / "llama.toml"
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(InvalidInput) as caught:
        read_table(path, NAMES)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


ALSO_WRONG = {
    "a parent": ('like = "llama"', 'like = "lama"', "like: 'lama' is no other table"),
    "a module left out": ("layers.{layer}.ffn.gate", "layers.{layer}.gate", "without: 'layers"),
    "a place": ('after = "layers.{layer}.ffn_norm"', 'after = "ffn_norm"',
                "module layers.{layer}.moe.router: after = 'ffn_norm'"),
    "a part of a stack": ("hf_stack_part = [0, 2]", "hf_stack_part = 0", "hf_stack_part 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", ALSO_WRONG)
def test_a_wrong_difference_is_one_error_too(case: str, tmp_path: Path) -> None:
    before, after, message = ALSO_WRONG[case]
    shutil.copy(TABLES / "llama.toml", tmp_path)
    text = (TABLES / "mixtral.toml").read_text()
    assert before in text
    path = tmp_path / "mixtral.toml"
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(InvalidInput) as caught:
        read_table(path, NAMES)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
