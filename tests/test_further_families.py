"""What single families have that no other has: which of it is refused, and by which name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.differential import runs
from tests.families import FAMILIES
from tests.onnx_runs import session
from tests.oracles import converter
from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert import convert, open_checkpoint, plan
from zenconvert.errors import PlanError, Unsupported
from zenconvert.model.architecture import for_gguf

Made = Callable[[str], Path]
TEXT = runs.ids(40, 3)
HUNYUAN = {"head_dim": 128, "max_position_embeddings": 32768}
ALPHA = {
    "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0,
    "mscale_all_dim": 1.0, "type": "dynamic",
}  # fmt: skip


def changed(name: str, folder: Path, **changes: Any) -> Path:
    """A model of a family whose config says something else."""
    folder.mkdir(parents=True)
    family = FAMILIES[name]
    vocab = MAKERS[family.tokenizer](folder)
    config = {**family.config, **changes}
    return raw_model(folder, config, vocab_size=vocab, bos_token_id=1, eos_token_id=2)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("dots1", {"num_key_value_heads": 2}, "num_key_value_heads is 2: .*as many as of queries"),
        ("olmoe", {"num_key_value_heads": 2}, "num_key_value_heads is 2: .*as many as of queries"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv is 8.0, and olmoe models are known with none only"),
        ("olmoe", {"norm_topk_prob": True}, "norm_topk_prob is True: .* with False only"),
        ("dots1", {"norm_topk_prob": False}, "norm_topk_prob is False: .* with True only"),
        ("arcee", {"hidden_act": "silu"}, "hidden_act is 'silu': .* with 'relu2' only"),
        ("ernie4_5_moe", {"moe_layer_end_index": 1}, "moe_layer_end_index is 1: "),
        ("ernie4_5_moe", {"moe_layer_interval": 2}, "moe_layer_interval is 2, and "),
        ("glm4_moe_lite", {"mlp_layer_types": ["dense", "dense", "sparse"]}, "mlp_layer_types is"),
        ("glm4_moe_lite", {"first_k_dense_replace": 2}, "first_k_dense_replace is 2, and "),
        ("hunyuan_v1_dense", {"use_qk_norm": False}, "use_qk_norm is False: .* with True only"),
    ],
)
def test_what_nobody_computes_is_refused_by_its_key(
    name: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises((PlanError, Unsupported), match=said):
        plan(changed(name, tmp_path / "tiny", **changes), "gguf:f32")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ernie4_5_moe", {"moe_layer_end_index": 2}),
        ("glm4_moe_lite", {"mlp_layer_types": ["dense", "sparse", "sparse"]}),
        ("olmoe", {"clip_qkv": None}),
    ],
)
def test_the_same_said_otherwise_is_taken(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    found = plan(changed(name, tmp_path / "tiny", **changes), "gguf:f32")
    assert tuple(fact.name for fact in found.lost) == FAMILIES[name].lost


def test_a_stretched_base_is_computed_by_everybody(tmp_path: Path) -> None:
    """Rotations that configs call dynamic, and that depend on no length."""
    source = changed("hunyuan_v1_dense", tmp_path / "tiny", **HUNYUAN, rope_scaling=ALPHA)
    expected = runs.in_transformers(source, TEXT)
    plain = changed("hunyuan_v1_dense", tmp_path / "plain", **HUNYUAN)
    assert np.abs(runs.in_transformers(plain, TEXT) - expected).max() > 0.1 * expected.std()
    assert convert(source, tmp_path / "model.gguf", "gguf:f32").plan.exact
    convert(source, tmp_path / "onnx", "onnx:f32")
    theirs = converter.convert(source, tmp_path / "theirs.gguf", "f32", "hunyuan-dense")
    convert(theirs, tmp_path / "back", "hf:f32")
    for found in (
        runs.in_llamacpp(tmp_path / "model.gguf", TEXT),
        runs.in_llamacpp(theirs, TEXT),
        runs.in_onnxruntime(tmp_path / "onnx", TEXT),
        runs.in_transformers(tmp_path / "back", TEXT),
    ):
        assert np.abs(found - expected).max() < 1e-3 * expected.std()
    theta = 10000.0 * 1000.0 ** (128 / 126)
    for file in (tmp_path / "model.gguf", theirs):
        assert open_checkpoint(file).hyperparameters.rope_theta == pytest.approx(theta, rel=1e-6)


def test_a_file_is_of_the_family_whose_pre_tokenizer_it_names() -> None:
    keys = {"deepseek2.expert_weights_norm"}
    found = {pre: for_gguf("deepseek2", keys, experts=True, pre=pre).id for pre in ("", "glm4")}
    assert found == {"": "deepseek_v3", "glm4": "glm4_moe_lite"}


def test_the_cache_of_expanded_keys_has_one_size_for_keys_and_values(
    folder: Made, tmp_path: Path
) -> None:
    convert(folder("deepseek_v3"), tmp_path / "onnx", "onnx:f32")
    opened = session(tmp_path / "onnx" / "model.onnx")
    sizes = {i.name: i.shape[1::2] for i in opened.get_inputs() if i.name.startswith("past")}
    assert sizes["past_key_values.0.key"] == sizes["past_key_values.0.value"] == [4, 96]


@pytest.mark.parametrize("name", ["deepseek_v3", "hunyuan_v1_dense"])
def test_the_standards_operators_rotate_apart_as_well(
    name: str, folder: Made, tmp_path: Path
) -> None:
    convert(folder(name), tmp_path / "onnx", "onnx:f32-standard")
    expected = runs.in_transformers(folder(name), TEXT)
    gap = np.abs(runs.in_onnxruntime(tmp_path / "onnx", TEXT) - expected).max() / expected.std()
    assert gap < 1e-3, gap
