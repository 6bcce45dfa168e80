"""Tables of families: what is right about each, and one clear error for what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.families import FAMILIES
from tests.tiny import CONFIGS
from zenconvert.errors import InvalidInput, Unsupported
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
    assert {m.name: m.gguf_rows_moved for m in llama.modules} == {
        m.name: m.gguf_rows_moved for m in mistral.modules
    }


OTHERS: dict[str, dict[str, Any]] = {
    "windows to both sides": {"use_bidirectional_attention": "all"},
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_model_with_other_modules_is_refused_by_its_key(case: str) -> None:
    given = {**FAMILIES["gemma4"].config, **OTHERS[case]}
    config = {k: v for k, v in given.items() if v is not None}
    key = next(iter(OTHERS[case]))
    with pytest.raises(Unsupported, match=f"{key} is .* are known with"):
        arch.for_model_type("gemma4_text").sizes(config, where="test")


@pytest.mark.parametrize("key", ["use_parallel_residual", "qk_layernorm"])
def test_halves_that_read_the_same_and_norms_of_every_head_are_refused(key: str) -> None:
    config = {**FAMILIES["stablelm"].config, key: True}
    with pytest.raises(Unsupported, match=f"{key} is True, and stablelm models are known with"):
        arch.for_model_type("stablelm").sizes(config, where="test")


def test_layers_that_see_everything_have_heads_of_their_own_in_both_spellings() -> None:
    config = FAMILIES["gemma4"].config
    architecture = arch.for_model_type("gemma4_text")
    expected = architecture.sizes(config, where="test")
    assert (expected.full_layers, expected.full_kv_heads) == ((2, 5), 2)
    names = {n.hf: n.shape for n in architecture.tensor_names(expected)}
    assert names["model.layers.1.self_attn.q_proj.weight"] == (256, 256)
    assert names["model.layers.2.self_attn.q_proj.weight"] == (512, 256)
    assert names["model.layers.2.layer_scalar"] == (1,)
    assert "model.layers.2.self_attn.v_proj.weight" not in names
    own = {"head_dim": 32, "num_key_value_heads": 2}
    stated = ("global_head_dim", "num_global_key_value_heads")
    rest = {k: v for k, v in config.items() if k not in stated}
    other = {**rest, "per_layer_config": {"2": own, "5": dict(own)}}
    assert architecture.sizes(other, where="test") == expected
    for wrong in ({"2": own}, {"1": own, "2": own, "5": own}, {"2": own, "5": {**own, "x": 1}}):
        with pytest.raises(InvalidInput, match="per_layer_config should say one thing"):
            architecture.sizes({**rest, "per_layer_config": wrong}, where="test")
    with pytest.raises(InvalidInput, match="layer_types should name the kinds of 6 layers"):
        architecture.sizes({**config, "layer_types": None}, where="test")


def test_layers_that_read_keys_of_others_have_none_and_a_wider_network() -> None:
    config = FAMILIES["gemma4_e2b"].config
    architecture = arch.for_model_type("gemma4_text")
    sizes = architecture.sizes(config, where="test")
    names = {n.hf: n for n in architecture.tensor_names(sizes)}
    assert names["model.layers.2.self_attn.v_proj.weight"].shape == (128, 256)
    assert names["model.layers.2.mlp.up_proj.weight"].shape == (512, 256)
    assert names["model.layers.3.mlp.up_proj.weight"].shape == (1024, 256)
    assert names["model.embed_tokens_per_layer.weight"].shape == (512, 6 * 128)
    for part in ("k_proj", "v_proj", "k_norm"):
        own, spare = (names[f"model.layers.{n}.self_attn.{part}.weight"] for n in (2, 3))
        assert (own.required, own.unread) == (True, False)
        assert (spare.required, spare.unread) == (False, True)
    with pytest.raises(
        InvalidInput, match=r"num_kv_shared_layers 4 of 6 layers leaves none .*full"
    ):
        architecture.sizes({**config, "num_kv_shared_layers": 4}, where="test")
    ignored = {**config, "num_global_key_value_heads": 2}  # values are no keys
    assert architecture.sizes(ignored, where="test") == sizes


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
