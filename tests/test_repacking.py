"""HF, GGUF, GPTQ and AWQ into one another: what the plan calls exact is exact in the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.packed_folders import Tensors, assert_same, changed, decoded
from tests.tiny import raw_model
from zenconvert import convert, open_checkpoint, plan
from zenconvert.errors import CorruptFile, PlanError
from zenconvert.formats.gguf import container
from zenconvert.ggml import block_grids

Family = Callable[[str], Path]
Source = Callable[[str], Path]
WEIGHTS = "model.safetensors"

SOURCES = {
    "hf": None,  # the model as it was trained
    "q4_0": "gguf:q4_0",
    "q4_1": "gguf:q4_1",
    "q8_0": "gguf:q8_0",
    "q4_k": "gguf:q4_k_s",
    "gptq": "gptq:w4g32",
    "gptq w2": "gptq:w2g64",
    "gptq w8": "gptq:w8g32",
    "gptq g128": "gptq:w4g128",
    "gptq asym": "gptq:w4g32-asym",
    "awq": "awq:w4g32",
    "awq sym": "awq:w4g64-sym",
    "awq gemv": "awq:w4g128-gemv",
}
TARGETS = (
    "hf:f32", "gguf:q4_0", "gguf:q4_1", "gguf:q8_0", "gguf:f32",
    "gptq:w4g32", "gptq:w4g32-asym", "gptq:w8g32", "awq:w4g32", "awq:w4g32-gemv",
)  # fmt: skip

SYMMETRIC_4 = {
    "gguf:q4_0", "gguf:q4_1", "gguf:q8_0", "gptq:w4g32", "gptq:w4g32-asym", "gptq:w8g32",
    "awq:w4g32", "awq:w4g32-gemv",
}  # fmt: skip
EXACT: dict[str, set[str]] = {
    "hf": set(),
    "q4_0": SYMMETRIC_4 - {"gguf:q8_0", "gguf:q4_1"},  # block types are not turned into one another
    "q4_1": {"gguf:q4_1"},
    "q8_0": {"gguf:q8_0", "gptq:w8g32"},
    "q4_k": set(),
    "gptq": SYMMETRIC_4,
    "gptq w2": SYMMETRIC_4,
    "gptq w8": {"gguf:q8_0", "gptq:w8g32"},
    "gptq g128": SYMMETRIC_4,
    "gptq asym": {"gptq:w4g32-asym", "awq:w4g32", "awq:w4g32-gemv"},
    "awq": {"gptq:w4g32-asym", "awq:w4g32", "awq:w4g32-gemv"},
    "awq sym": SYMMETRIC_4,  # zeros are stored, and all of them are the midpoint
    "awq gemv": {"gptq:w4g32-asym", "awq:w4g32", "awq:w4g32-gemv"},
}
"""Source → targets that hold its linear weights bit for bit; decoding to float32 always is."""


@pytest.fixture(scope="module")
def source(model: Family, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Name of :data:`SOURCES` → checkpoint of the tiny Llama."""
    home, made = tmp_path_factory.mktemp("sources"), dict[str, Path]()

    def get(name: str) -> Path:
        target = SOURCES[name]
        if target is None:
            return model("llama3")
        if name not in made:
            end = ".gguf" if target.startswith("gguf") else ""
            made[name] = home / f"{name.replace(' ', '-')}{end}"
            convert(model("llama3"), made[name], target)
        return made[name]

    return get


def linear(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n: v for n, v in values.items() if (".attn." in n or ".ffn." in n)}


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_planned_exact_is_exact_in_the_file(
    name: str, source: Source, tmp_path: Path
) -> None:
    before = linear(decoded(source(name)))
    assert len(before) == 14
    for target in TARGETS:
        out = tmp_path / target.replace(":", "-")
        done = convert(source(name), out, target, allow_requantize=True)
        linears = [
            step.exact
            for step in done.plan.steps
            if len(step.shape) == 2 and ("blk." in step.target or "layers." in step.target)
        ]
        assert len(linears) == 14
        expected = target in EXACT[name] or target.endswith(":f32")
        assert set(linears) == {expected}, target
        after = linear(decoded(out))
        for tensor, values in before.items():
            if expected:
                np.testing.assert_array_equal(after[tensor], values, err_msg=f"{target} {tensor}")
            else:
                error = np.abs(after[tensor] - values).max() / np.abs(values).max()
                assert error < 0.3, (target, tensor)


@pytest.mark.parametrize("name", SOURCES)
def test_exact_refuses_what_is_not(name: str, source: Source) -> None:
    for target in ("gguf:q4_0", "gptq:w4g32", "awq:w4g32"):
        reasons = []
        try:
            plan(source(name), target, exact=True)
        except PlanError as error:
            # heads and embeddings are rounded in any case
            reasons = [p for p in error.problems if "_proj" in p or "ffn_" in p or "attn_" in p]
        assert (not reasons) == (target in EXACT[name]), target


def test_a_second_loss_has_to_be_allowed(source: Source, tmp_path: Path) -> None:
    for name, target, reason in (
        ("q4_k", "gptq:w4g32", "it is no grid"),
        ("gptq asym", "gguf:q4_0", "zero points of its own"),
        ("gptq w8", "awq:w4g32", "codes have 8 bits"),
        ("gptq", "gptq:w4g128", "scales hold for 32 columns"),
    ):
        with pytest.raises(PlanError, match=f"{reason}.*--allow-requantize"):
            convert(source(name), tmp_path / "out", target)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("gptq", ["awq:w4g32", "gptq:w4g32"]),
        ("gptq g128", ["awq:w4g128", "gptq:w4g128"]),
        ("gptq g128", ["gptq:w4g128-v2", "gptq:w4g128"]),
        ("gptq asym", ["awq:w4g32", "gptq:w4g32-asym"]),
        ("awq", ["gptq:w4g32-asym", "awq:w4g32"]),
        ("awq", ["awq:w4g32-gemv", "awq:w4g32"]),
        ("awq gemv", ["gptq:w4g128-asym", "awq:w4g128-gemv"]),
    ],
)
def test_there_and_back_gives_identical_tensors(
    name: str, way: list[str], source: Source, tmp_path: Path
) -> None:
    at = source(name)
    for number, target in enumerate(way):
        convert(at, tmp_path / f"{number}", target, exact=True)
        at = tmp_path / f"{number}"
    assert (at / WEIGHTS).read_bytes() == (source(name) / WEIGHTS).read_bytes()
    for file in ("config.json", "quantize_config.json"):
        if (source(name) / file).exists():
            assert (at / file).read_bytes() == (source(name) / file).read_bytes()


def test_blocks_there_and_back_are_the_same_bytes(source: Source, tmp_path: Path) -> None:
    """GGUF → GPTQ → AWQ → GGUF; what is no linear weight is decoded on the way."""
    convert(source("q4_0"), tmp_path / "gptq", "gptq:w4g32")
    convert(tmp_path / "gptq", tmp_path / "awq", "awq:w4g32")
    convert(tmp_path / "awq", tmp_path / "back.gguf", "gguf:q4_0")
    first, second = (container.read(p) for p in (source("q4_0"), tmp_path / "back.gguf"))
    bytes_of = [f.path.read_bytes() for f in (first, second)]
    compared = 0
    for name, tensor in first.tensors.items():
        if "blk" in name and len(tensor.shape) == 2:
            other = second.tensors[name]
            assert tensor.type is not None
            assert tensor.type.name == "q4_0"
            assert (
                bytes_of[0][tensor.offset : tensor.offset + tensor.nbytes]
                == bytes_of[1][other.offset : other.offset + other.nbytes]
            ), name
            compared += 1
    assert compared == 14


def test_a_group_of_128_becomes_four_blocks(source: Source, tmp_path: Path) -> None:
    convert(source("gptq g128"), tmp_path / "q4_0.gguf", "gguf:q4_0")
    found = container.read(tmp_path / "q4_0.gguf")
    tensor = found.tensors["blk.0.ffn_up.weight"]  # rows of it stay in order
    data = found.path.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]
    rows, columns = tensor.shape
    blocks = np.frombuffer(data, dtype=np.uint8).reshape(rows, -1)
    values = block_grids.to_grouped("q4_0", blocks, columns)
    stored = load_file(source("gptq g128") / WEIGHTS)
    scales = stored["model.layers.0.mlp.up_proj.scales"]
    np.testing.assert_array_equal(values.scales, np.repeat(scales.T, 4, axis=1))
    words = stored["model.layers.0.mlp.up_proj.qweight"].view(np.uint32)
    codes = (words[:, None, :] >> (4 * np.arange(8, dtype=np.uint32))[None, :, None]) & 15
    np.testing.assert_array_equal(values.codes, codes.reshape(columns, rows).T)


def test_mixtures_of_experts_are_repacked_too(model: Family, tmp_path: Path) -> None:
    """Experts stand in one stack in GGUF and by themselves elsewhere."""
    convert(model("mixtral"), tmp_path / "gptq", "gptq:w4g32")
    convert(tmp_path / "gptq", tmp_path / "m.gguf", "gguf:q4_0")
    convert(tmp_path / "m.gguf", tmp_path / "awq", "awq:w4g32")
    convert(tmp_path / "awq", tmp_path / "again", "gptq:w4g32")
    before, after = decoded(tmp_path / "gptq"), decoded(tmp_path / "again")
    experts = [n for n in before if ".moe." in n and "router" not in n]
    assert len(experts) == 2 * 4 * 3
    for name in experts:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def test_names_for_gptqmodel_and_back(model: Family, tmp_path: Path) -> None:
    """GPTQModel calls the modules of a Mixtral what transformers 5 calls them in memory."""
    convert(model("mixtral"), tmp_path / "ours", "gptq:w4g128")
    convert(tmp_path / "ours", tmp_path / "theirs", "gptq:w4g128-gptqmodel", exact=True)
    names = set(load_file_names(tmp_path / "theirs"))
    assert "model.layers.0.mlp.experts.3.down_proj.qweight" in names
    assert "model.layers.1.mlp.gate.weight" in names
    assert not [n for n in names if "block_sparse_moe" in n]
    assert_same(tmp_path / "ours", tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "back", "gptq:w4g128", exact=True)
    assert (tmp_path / "back" / WEIGHTS).read_bytes() == (tmp_path / "ours" / WEIGHTS).read_bytes()


def test_a_module_under_both_names_is_refused(tmp_path: Path) -> None:
    def doubled(tensors: Tensors) -> None:
        for piece in ("qweight", "qzeros", "scales", "g_idx"):
            values = tensors[f"model.layers.0.block_sparse_moe.experts.0.w1.{piece}"]
            tensors[f"model.layers.0.mlp.experts.0.gate_proj.{piece}"] = values

    folder = raw_model(tmp_path / "floats", "mixtral", dtype="f16")
    convert(folder, tmp_path / "ours", "gptq:w4g128")
    both = changed(tmp_path / "ours", tmp_path / "both", tensors=doubled)
    with pytest.raises(CorruptFile, match="under two names"):
        open_checkpoint(both)


def load_file_names(folder: Path) -> list[str]:
    from zenconvert.formats import safetensors_container

    return list(safetensors_container.read(folder / WEIGHTS).tensors)


def test_the_decoded_model_has_the_logits_of_the_packed_one(source: Source, tmp_path: Path) -> None:
    """The reference graph runs packed folders, whatever their config says of quantization."""
    from tests.oracles import ours

    for name in ("gptq asym", "awq gemv"):
        convert(source(name), tmp_path / name, "hf:f32", exact=True)
        assert open_checkpoint(source(name)).config.get("quantization_config") is None
        np.testing.assert_array_equal(ours.logits(source(name)), ours.logits(tmp_path / name))


@pytest.mark.parametrize("target", ["gptq:w4g32", "awq:w4g32"])
def test_biases_that_the_config_does_not_announce_are_left_out(target: str, tmp_path: Path) -> None:
    """transformers makes no module with a bias there, so nothing adds it."""
    source = raw_model(tmp_path / "source", "llama3")
    convert(source, tmp_path / "packed", target)

    def add(tensors: Tensors) -> None:
        for module in ("o_proj", "q_proj"):
            tensors[f"model.layers.0.self_attn.{module}.bias"] = np.full(256, 3, np.float16)

    odd = changed(tmp_path / "packed", tmp_path / "odd", tensors=add)
    with pytest.warns(UserWarning, match="2 biases are left out"):
        found = open_checkpoint(odd)
    assert found.tensors.keys() == open_checkpoint(source).tensors.keys()
    settings = AutoConfig.from_pretrained(source)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    assert not any(name.endswith("proj.bias") for name, _ in model.named_parameters())
