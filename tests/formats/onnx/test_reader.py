"""Graphs of other exporters, read node by node and compared with what they were made from."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tests.families import FAMILIES
from tests.formats.onnx.test_repacking import assert_same_numbers, in_act_order
from tests.onnx_runs import decoded_logits, onnx_logits, session, tokens, variant, with_tokenizer
from tests.tiny import raw_model
from zenconvert import convert, diff, open_checkpoint
from zenconvert.errors import InvalidInput, UnexpectedTensor, Unsupported
from zenconvert.planning.recoding import logical_rows

Sources = Callable[..., Path]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """(family, config changes) → folder of a random model with a tokenizer."""
    made: dict[str, Path] = {}

    def get(family: str, **changes: Any) -> Path:
        key = f"{family}{sorted(changes.items())}"
        if key not in made:
            folder = tmp_path_factory.mktemp("models") / f"tiny-{family}"
            made[key] = with_tokenizer(folder, family, **changes)
        return made[key]

    return get


def built(folder: Path, out: Path, precision: str, **options: str) -> Path:
    """What onnxruntime-genai's builder makes of a folder."""
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    given = (None, str(folder), str(out), precision, "cpu", str(out.parent / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extra = parse_extra_options(*given, [f"{k}={v}" for k, v in options.items()])
        create_model(*given, **extra)
    return out


def at_full_precision(folder: Path) -> Path:
    """The same graph with float activations in every MatMulNBits."""
    path = folder / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
    path.write_bytes(model.SerializeToString())
    return folder


PLAIN = {"max_position_embeddings": 512, "rope_scaling": None}


@pytest.mark.parametrize(
    ("family", "changes"),
    [("qwen2", {}), ("qwen2", {"tie_word_embeddings": True}), ("llama3", PLAIN), ("qwen3", {})],
)
def test_float_files_of_genai_come_back_bit_for_bit(
    family: str, changes: dict[str, Any], source: Sources, tmp_path: Path
) -> None:
    folder = source(family, **changes)
    out = built(folder, tmp_path / "out", "fp32")
    assert not (out / "config.json").exists()
    found = diff(folder, out)
    assert all(t.equal for t in found.tensors)
    assert not found.config
    assert set(found.tokenizer) <= {"special"}  # which genai decides for itself
    assert not found.only_first
    assert not found.only_second
    config, expected = open_checkpoint(out).config, json.loads((folder / "config.json").read_text())
    for key in ("model_type", "rms_norm_eps", "rope_theta", "vocab_size", "tie_word_embeddings"):
        assert config[key] == expected[key], key


def test_half_precision_files_of_genai_are_read(source: Sources, tmp_path: Path) -> None:
    """Other operators than in float32: rotations of their own, heads repeated."""
    folder = source("qwen2")
    out = built(folder, tmp_path / "out", "fp16")
    ours, theirs = open_checkpoint(folder), open_checkpoint(out)
    assert theirs.config["rope_theta"] == 1000000.0
    for name, tensor in ours.tensors.items():
        first = logical_rows(tensor, 0, tensor.rows).astype(np.float16).astype(np.float32)
        second = logical_rows(theirs.tensors[name], 0, tensor.rows)
        np.testing.assert_array_equal(first, second, err_msg=name)


@pytest.mark.parametrize(
    ("tied", "options", "encoding"),
    [
        (True, {}, "w4g32"),
        (True, {"algo_config": "k_quant", "is_symmetric": "false", "block_size": "64"},
         "w4g64-asym"),
        (False, {"use_qdq": "true"}, "w4g32"),
    ],
)  # fmt: skip
def test_integer_files_of_genai_mean_what_onnxruntime_computes(
    tied: bool, options: dict[str, str], encoding: str, source: Sources, tmp_path: Path
) -> None:
    folder = source("qwen2", tie_word_embeddings=True) if tied else source("qwen2")
    out = at_full_precision(built(folder, tmp_path / "out", "int4", **options))
    tensors = open_checkpoint(out).tensors
    assert str(tensors["layers.1.attn.k.weight"].encoding) == encoding
    found = onnx_logits(session(out / "model.onnx", level=0), tokens())
    expected = decoded_logits(out, tmp_path / "hf", tokens())
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_gptq_files_of_genai_are_gptq_files(source: Sources, tmp_path: Path) -> None:
    """Repacked by genai with ``g_idx``, read by us: the numbers of the GPTQ file."""
    convert(source("qwen2"), tmp_path / "gptq", "gptq:w4g64")
    in_act_order(tmp_path / "gptq")
    options = {"nodes_to_exclude": "/lm_head/MatMul"}
    built(tmp_path / "gptq", tmp_path / "out", "int4", **options)
    ours, theirs = (open_checkpoint(tmp_path / n).tensors for n in ("gptq", "out"))
    assert str(theirs["layers.0.attn.q.weight"].encoding) == "w4g64-asym-actorder"
    assert str(ours["layers.0.attn.q.weight"].encoding) == "w4g64-actorder"
    assert_same_numbers(tmp_path / "gptq", tmp_path / "out")


class Flat(torch.nn.Module):
    """A model whose cache is a list of tensors, as exporters want it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Any, mask: Any, past: list[Any]) -> tuple[Any, ...]:
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        found = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache)
        layers = found.past_key_values.layers
        return (found.logits, *(value for x in layers for value in (x.keys, x.values)))


def exported(folder: Path, out: Path, *, dynamo: bool) -> Path:
    """What torch.onnx makes of a folder: torch.export, or TorchScript as in optimum."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    layers = model.config.num_hidden_layers
    past = [torch.zeros(2, 2, 5, 64) for _ in range(2 * layers)]
    ids, mask = torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64)
    caches = [f"past_key_values.{i}.{part}" for i in range(layers) for part in ("key", "value")]
    given: dict[str, Any] = {"input_names": ["input_ids", "attention_mask", *caches]}
    out.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            free = torch.export.Dim.DYNAMIC
            given["dynamic_shapes"] = (
                {0: free, 1: free},
                {0: free, 1: free},
                [{0: free, 2: free}] * len(past),
            )
        torch.onnx.export(
            Flat(model), (ids, mask, past), str(out / "model.onnx"), dynamo=dynamo,
            opset_version=20, verbose=False, **given,
        )  # fmt: skip
    shutil.copy(folder / "config.json", out)
    return out


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_files_of_torch_come_back_bit_for_bit(family: str, dynamo: bool, tmp_path: Path) -> None:
    config = {**FAMILIES[family].config, "head_dim": 64, "num_hidden_layers": 1}
    folder = raw_model(tmp_path / "source", config, tie_word_embeddings=True)
    out = exported(folder, tmp_path / "out", dynamo=dynamo)
    graph = onnx.load(str(out / "model.onnx"), load_external_data=False).graph
    named = [t.name for t in graph.initializer if t.name.endswith("q_proj.weight")]
    assert not named  # only the nodes tell
    assert_same_numbers(folder, out)


def mobius(folder: Path, out: Path) -> Path:
    """Our float graph under the names that mobius gives to the weights of Mixtral."""
    convert(folder, out, "onnx:f32-standard")
    model = onnx.load(str(out / "model.onnx"), load_external_data=False)
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    new: dict[str, str] = {}
    for number, tensor in enumerate(model.graph.initializer):
        parts = tensor.name.replace("block_sparse_moe", "mlp").split(".")
        new[tensor.name] = ".".join(names.get(p, p) for p in parts)
        tensor.name = new[tensor.name] if parts[0] in {"model", "lm_head"} else f"c{number}"
        new[tensor.name] = tensor.name
    old = dict(zip(new, new.values(), strict=True))
    for number, tensor in enumerate(onnx.load(str(out / "model.onnx"), load_external_data=False)
                                    .graph.initializer):  # fmt: skip
        old[tensor.name] = model.graph.initializer[number].name
    for number, node in enumerate(model.graph.node):
        node.name = f"node_{number}"
        node.input[:] = [old.get(value, value) for value in node.input]
    (out / "model.onnx").write_bytes(model.SerializeToString())
    return out


def test_names_of_mobius_are_known(tmp_path: Path) -> None:
    folder = variant(tmp_path / "source", "mixtral")
    assert_same_numbers(folder, mobius(folder, tmp_path / "out"))


def test_a_graph_is_a_source_by_its_own_name(tmp_path: Path) -> None:
    folder = variant(tmp_path / "source", "qwen2")
    convert(folder, tmp_path / "out", "onnx:int8")
    by_file = open_checkpoint(tmp_path / "out" / "model.onnx")
    assert by_file.tensors == open_checkpoint(tmp_path / "out").tensors
    shutil.copy(tmp_path / "out" / "model.onnx", tmp_path / "out" / "other.onnx")
    assert open_checkpoint(tmp_path / "out").format == "onnx"
    (tmp_path / "out" / "model.onnx").rename(tmp_path / "out" / "first.onnx")
    with pytest.raises(InvalidInput, match=r"several graphs.*first\.onnx, other\.onnx"):
        open_checkpoint(tmp_path / "out")


def test_a_folder_with_safetensors_and_graphs_is_one_of_safetensors(tmp_path: Path) -> None:
    folder = variant(tmp_path / "source", "qwen2")
    convert(folder, tmp_path / "out", "onnx:f16")
    (folder / "onnx").mkdir()
    shutil.copy(tmp_path / "out" / "model.onnx", folder / "onnx")
    assert open_checkpoint(folder).format == "hf"


def edited(tmp_path: Path, edit: Callable[[Any], None], kind: str = "int4") -> Path:
    """A folder of ours whose graph was changed."""
    tmp_path.mkdir(exist_ok=True)
    convert(variant(tmp_path / "source", "qwen2"), tmp_path / "out", f"onnx:{kind}")
    path = tmp_path / "out" / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    edit(model)
    path.write_bytes(model.SerializeToString())
    return tmp_path / "out"


def test_adapters_are_not_dropped(tmp_path: Path) -> None:
    def add_adapter(model: Any) -> None:
        values = np.zeros((256, 16), dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, "lora.A"))
        model.graph.node.append(onnx.helper.make_node("MatMul", ["x", "lora.A"], ["y"]))

    with pytest.raises(UnexpectedTensor, match=r"lora\.A.*adapters"):
        open_checkpoint(edited(tmp_path, add_adapter))


def test_biases_that_the_family_does_not_have_are_not_dropped(tmp_path: Path) -> None:
    def adding(values: np.ndarray) -> Callable[[Any], None]:
        def add_bias(model: Any) -> None:
            node = next(n for n in model.graph.node if "down_proj" in n.name)
            tensor = onnx.numpy_helper.from_array(values, "extra")
            model.graph.initializer.append(tensor)
            node.input.extend(["", "", "extra"])

        return add_bias

    source = edited(tmp_path / "zeros", adding(np.zeros(256, dtype=np.float32)))
    assert len(open_checkpoint(source).tensors) == 27
    with pytest.raises(UnexpectedTensor, match=r"'extra' is added in .*down_proj, which has no"):
        open_checkpoint(edited(tmp_path / "ones", adding(np.ones(256, dtype=np.float32))))


def test_a_copied_head_is_left_out_and_said_so(tmp_path: Path) -> None:
    folder = edited(tmp_path, lambda model: None, "f32")
    assert "head.weight" in open_checkpoint(folder).tensors
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    checkpoint = open_checkpoint(folder)
    assert "head.weight" not in checkpoint.tensors
    assert "taken for a copy" in checkpoint.warnings[0]


@pytest.mark.parametrize(
    "fused",
    ["MatMulNBitsQkv", "MatMulNBitsMlp", "MatMulBnb4", "MatMulFpQ4", "QMoE", "MatMulInteger"],
)
def test_fused_operators_are_refused_by_name(fused: str, tmp_path: Path) -> None:
    def fuse(model: Any) -> None:
        next(n for n in model.graph.node if n.op_type == "MatMulNBits").op_type = fused

    with pytest.raises(Unsupported, match=fused):
        open_checkpoint(edited(tmp_path, fuse))


def test_prepacked_weights_are_refused(tmp_path: Path) -> None:
    def prepack(model: Any) -> None:
        node = next(n for n in model.graph.node if n.op_type == "MatMulNBits")
        node.attribute.append(onnx.helper.make_attribute("weight_prepacked", 1))

    with pytest.raises(Unsupported, match="prepacked"):
        open_checkpoint(edited(tmp_path, prepack))


def test_a_window_and_its_layers_are_read_off_the_graph(tmp_path: Path, source: Sources) -> None:
    changes = {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}
    convert(source("qwen2", **changes), tmp_path / "out", "onnx:f16")
    (tmp_path / "out" / "config.json").unlink()
    config = open_checkpoint(tmp_path / "out").config
    assert config["sliding_window"] == 32
    assert config["layer_types"] == ["full_attention", "sliding_attention"]
    assert config["rope_theta"] == 1000000.0


def test_what_the_files_do_not_say_is_asked_for(tmp_path: Path, source: Sources) -> None:
    convert(source("llama3"), tmp_path / "llama3", "onnx:f16")  # scaled: no plain rotation
    convert(source("mixtral"), tmp_path / "mixtral", "onnx:f16")
    convert(source("qwen2"), tmp_path / "standard", "onnx:f16-standard")
    convert(source("qwen2"), tmp_path / "bare", "onnx:f16")
    for name, reason in (
        ("llama3", "scaled in a way of their own"),
        ("mixtral", "type 'decoder' alone"),
        ("standard", "does not show how it rotates"),
        ("bare", "neither config.json nor genai_config.json"),
    ):
        (tmp_path / name / "config.json").unlink()
        if name == "bare":
            (tmp_path / name / "genai_config.json").unlink()
        with pytest.raises((InvalidInput, Unsupported), match=f"{reason}.*beside it"):
            open_checkpoint(tmp_path / name)
