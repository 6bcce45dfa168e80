"""compressed-tensors folders of ours: what the library and transformers make of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
from compressed_tensors.utils.match import match_name
from safetensors.torch import load_file

from tests.ct_folders import FLOAT, PACK, Tensors, make_ct, parameters
from tests.families import FAMILIES
from tests.fp8_folders import make_fp8
from tests.onnx_runs import with_tokenizer
from tests.packed_folders import assert_decodes, changed
from tests.tiny import raw_model
from zenconvert import Options, calibrate, convert, plan
from zenconvert.errors import InvalidInput, PlanError, UsageError
from zenconvert.model.encoding import DENSE
from zenconvert.model.scaled import Scaled
from zenconvert.model.target import Solver

DOWN = "model.layers.1.mlp.down_proj"
Floats = Callable[[str], Path]
SAMPLES: dict[str, Any] = {"languages": ["en"], "tokens_per_language": 100, "context": 64}


def settings_of(folder: Path) -> QuantizationConfig:
    """The settings, as the library reads them: it refuses what it does not know in a group."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    return QuantizationConfig.model_validate(config)


def scheme_of(settings: QuantizationConfig, module: str) -> QuantizationScheme | None:
    """What a linear module is quantized with, None where it is ignored."""
    if any(match_name(module, name) for name in settings.ignore or ()):
        return None
    groups = [g for g in settings.config_groups.values() if isinstance(g, QuantizationScheme)]
    found = [g for g in groups if module in g.targets or "Linear" in g.targets]
    assert len(found) == 1, module
    return found[0]


def modules_of(folder: Path) -> dict[str, Tensors]:
    """Module → its arrays, of those that are packed."""
    found: dict[str, Tensors] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        module, _, piece = name.rpartition(".")
        if piece.startswith("weight_"):
            found.setdefault(module, {})[piece] = tensor
    return found


def logits(folder: Path) -> torch.Tensor:
    """Of transformers in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        found: torch.Tensor = model(torch.arange(3, 40)[None]).logits
    return found


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama3", "w4a16-g32"), ("llama3", "w4a16-g32-asym"), ("llama3", "w8a16-g32-asym"),
        ("llama3", "w8a16-g-1"), ("phi", "w4a16-g32-asym"), ("mixtral", "w4a16-g-1-asym"),
        ("deepseek_v3", "w4a16-g32-asym"),
    ],
)  # fmt: skip
def test_the_library_decodes_and_packs_the_same(family: str, kind: str, tmp_path: Path) -> None:
    source = raw_model(tmp_path / "source", FAMILIES[family].config)
    convert(source, tmp_path / "ct", f"ct:{kind}")
    settings, modules = settings_of(tmp_path / "ct"), modules_of(tmp_path / "ct")
    compressor = BaseCompressor.get_value_from_registry(PACK)
    expected = load_file(tmp_path / "ct" / "model.safetensors")
    expected = {name: t for name, t in expected.items() if ".weight_" not in name}
    for module, stored in modules.items():
        scheme = scheme_of(settings, module)
        assert scheme is not None
        wide = {**stored, "weight_scale": stored["weight_scale"].float()}
        decoded = compressor.decompress(wide, scheme)
        expected[f"{module}.weight"] = decoded["weight"]
        again = compressor.compress(decoded, scheme)
        for piece in ("weight_packed", "weight_zero_point", "weight_shape"):
            if piece in stored:
                assert again[piece].dtype == stored[piece].dtype
                assert torch.equal(again[piece], stored[piece]), (module, piece)
    assert modules
    assert_decodes(tmp_path / "ct", expected)


@pytest.mark.parametrize(
    ("kind", "preset"),
    [("w4a16-g128", "W4A16"), ("w4a16", "W4A16"), ("w8a16", "W8A16"), ("w4a16-asym", "W4A16_ASYM")],
)
def test_settings_are_those_of_the_presets(
    kind: str, preset: str, floats: Floats, tmp_path: Path
) -> None:
    convert(floats("llama3"), tmp_path / "ct", f"ct:{kind}")
    settings = settings_of(tmp_path / "ct")
    (group,) = settings.config_groups.values()
    assert isinstance(group, QuantizationScheme)
    expected = preset_name_to_scheme(preset, ["Linear"])
    assert group.model_dump(exclude={"format"}) == expected.model_dump(exclude={"format"})
    assert (settings.quantization_status, settings.format) == ("compressed", PACK)
    assert settings.ignore == ["lm_head"]


@pytest.mark.parametrize("family", ["llama3", "qwen3", "gemma2"])
def test_transformers_has_the_same_logits(family: str, tmp_path: Path) -> None:
    source = raw_model(tmp_path / "source", FAMILIES[family].config, dtype="f16")
    convert(source, tmp_path / "ct", "ct:w4a16-g32")
    convert(tmp_path / "ct", tmp_path / "hf", "hf:f32", exact=True)
    torch.testing.assert_close(logits(tmp_path / "ct"), logits(tmp_path / "hf"), rtol=0, atol=1e-5)


def test_several_grids_and_modules_in_floats(floats: Floats, tmp_path: Path) -> None:
    types = (("layers.0.*down_proj", "w8a16-g-1"), ("layers.1.*o_proj", "f16"))
    options = Options(tensor_types=types)
    convert(floats("llama3"), tmp_path / "ct", "ct:w4a16-g32", options=options)
    settings = settings_of(tmp_path / "ct")
    assert set(settings.ignore or ()) == {"lm_head", "model.layers.1.self_attn.o_proj"}
    wide = scheme_of(settings, "model.layers.0.mlp.down_proj")
    narrow = scheme_of(settings, "model.layers.1.mlp.down_proj")
    assert wide is not None
    assert narrow is not None
    assert wide.weights is not None
    assert narrow.weights is not None
    assert (wide.weights.num_bits, narrow.weights.num_bits) == (8, 4)
    convert(tmp_path / "ct", tmp_path / "hf", "hf:f32", exact=True)
    torch.testing.assert_close(logits(tmp_path / "ct"), logits(tmp_path / "hf"), rtol=0, atol=1e-5)
    steps = convert(tmp_path / "ct", tmp_path / "again", "ct", exact=True).plan.steps
    assert sum(str(step.to) == "w8g-1" for step in steps) == 1
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "ct" / file).read_bytes()


def test_routers_and_gates_are_ignored(tmp_path: Path) -> None:
    source = raw_model(tmp_path / "source", FAMILIES["qwen2_moe"].config)
    convert(source, tmp_path / "ct", "ct:w4a16-g32")
    ignored = settings_of(tmp_path / "ct").ignore or []
    packed = modules_of(tmp_path / "ct")
    stored = load_file(tmp_path / "ct" / "model.safetensors")
    matrices = {n.removesuffix(".weight") for n, t in stored.items()
                if n.endswith(".weight") and t.dim() == 2}  # fmt: skip
    assert set(ignored) == (matrices - {"model.embed_tokens"}) | {"lm_head"}
    assert not set(ignored) & packed.keys()
    assert "model.layers.1.mlp.gate" in ignored
    assert "model.layers.1.mlp.shared_expert_gate" in ignored


@pytest.mark.parametrize("scale", [torch.bfloat16, torch.float32], ids=str)
def test_scales_of_the_source_stay(scale: torch.dtype, source: Path, tmp_path: Path) -> None:
    make_ct(
        source, tmp_path / "theirs", PACK, scale=scale, num_bits=4, type="int",
        strategy="group", group_size=32, symmetric=False,
    )  # fmt: skip
    convert(tmp_path / "theirs", tmp_path / "ours", "ct", exact=True)
    theirs, ours = modules_of(tmp_path / "theirs"), modules_of(tmp_path / "ours")
    assert theirs.keys() == ours.keys()
    for module, arrays in theirs.items():
        assert arrays.keys() == ours[module].keys()
        for piece, array in arrays.items():
            assert array.dtype == ours[module][piece].dtype
            assert torch.equal(array, ours[module][piece]), (module, piece)


@pytest.mark.parametrize("kind", ["w4g32", "w4g32-asym", "w8g-1"])
def test_gptq_there_and_back_is_the_same_bytes(
    kind: str, gptq: Callable[[str], Path], tmp_path: Path
) -> None:
    convert(gptq(kind), tmp_path / "ct", "ct", exact=True)
    convert(tmp_path / "ct", tmp_path / "gptq", "gptq", exact=True)
    before, after = (p / "model.safetensors" for p in (gptq(kind), tmp_path / "gptq"))
    assert before.read_bytes() == after.read_bytes()


def test_solvers_fill_it(tmp_path: Path) -> None:
    source, statistics = with_tokenizer(tmp_path / "model", "llama3"), tmp_path / "model.stats"
    calibrate(source, statistics, purposes=["gptq", "awq"], **SAMPLES)
    solvers: tuple[Solver, ...] = ("gptq", "awq")
    for solver in solvers:
        out = tmp_path / solver
        done = convert(source, out, "ct:w4a16-g32-asym", statistics=statistics, solver=solver)
        packed = [s.why for s in done.plan.steps if s.to.is_quantized]
        assert packed
        assert all(why.startswith(solver) for why in packed), packed


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("w4a16-g32-actorder", "weight_g_idx"), ("w3a16-g32", "4 and 8 bits"),
        ("w4a16-g0", "have columns"), ("w4g32", "wBITSa16"), ("w4a8-g32", "wBITSa16"),
    ],
)  # fmt: skip
def test_types_that_are_none_are_refused(kind: str, says: str, floats: Floats) -> None:
    with pytest.raises(UsageError, match=says):
        plan(floats("llama3"), f"ct:{kind}")


def test_act_order_is_refused_by_name(gptq: Callable[[str], Path], tmp_path: Path) -> None:
    def turned(arrays: dict[str, Any]) -> None:
        arrays[f"{DOWN}.g_idx"] = arrays[f"{DOWN}.g_idx"][::-1].copy()

    folder = changed(
        gptq("w4g32"), tmp_path / "ordered", tensors=turned,
        settings=lambda own: own | {"desc_act": True},
    )  # fmt: skip
    with pytest.raises(PlanError, match=r"down_proj[^\n]*weight_g_idx"):
        plan(folder, "ct")


@pytest.mark.parametrize(
    ("family", "kind", "preset"),
    [
        ("llama3", "fp8", "FP8_DYNAMIC"), ("phi", "fp8", "FP8_DYNAMIC"),
        ("deepseek_v3", "fp8", "FP8_DYNAMIC"), ("llama3", "fp8-block", "FP8_BLOCK"),
    ],
)  # fmt: skip
def test_8_bit_floats_are_those_of_the_library(
    family: str, kind: str, preset: str, tmp_path: Path
) -> None:
    config = FAMILIES[family].config | ({"intermediate_size": 320} if "block" in kind else {})
    if "block" in kind:  # whose last block has 64 rows
        config["hidden_size"] = 256
    source = raw_model(tmp_path / "source", config)
    options = Options(tensor_types=(("down_proj", "bf16"),)) if "block" in kind else Options()
    planned = convert(source, tmp_path / "ct", f"ct:{kind}", options=options).plan
    files = [path for path in (tmp_path / "ct").iterdir() if path.is_file()]
    assert planned.output_bytes == sum(path.stat().st_size for path in files)
    settings, modules = settings_of(tmp_path / "ct"), modules_of(tmp_path / "ct")
    (group,) = settings.config_groups.values()
    assert isinstance(group, QuantizationScheme)
    expected = preset_name_to_scheme(preset, ["Linear"])
    assert group.model_dump(exclude={"format"}) == expected.model_dump(exclude={"format"})
    assert (settings.format, group.format) == (FLOAT, FLOAT)
    compressor = BaseCompressor.get_value_from_registry(FLOAT)
    stored = load_file(tmp_path / "ct" / "model.safetensors")
    floats = load_file(source / "model.safetensors")
    assert group.weights is not None
    for module in modules:
        codes, scales = stored[f"{module}.weight"], stored.pop(f"{module}.weight_scale")
        weight = floats[f"{module}.weight"].float()
        wanted = parameters(weight, group.weights)[0].to(torch.bfloat16)
        assert torch.equal(scales, wanted), module
        given = {"weight": weight, "weight_scale": wanted.float()}
        made = compressor.compress(given, group)
        assert torch.equal(codes.view(torch.uint8), made["weight"].view(torch.uint8)), module
        stored[f"{module}.weight"] = compressor.decompress(made, group)["weight"]
    assert modules
    assert_decodes(tmp_path / "ct", stored)


def test_blocks_of_releases_stay_in_their_bytes(source: Path, tmp_path: Path) -> None:
    make_fp8(source, tmp_path / "fp8")
    convert(tmp_path / "fp8", tmp_path / "ct", "ct", exact=True)
    theirs, ours = (load_file(tmp_path / n / "model.safetensors") for n in ("fp8", "ct"))
    assert {name.removesuffix("_inv") for name in theirs} == ours.keys()
    for name, array in theirs.items():
        found = ours[name.removesuffix("_inv")]
        assert array.dtype == found.dtype
        assert torch.equal(array.view(torch.uint8), found.view(torch.uint8)), name
    with pytest.raises(UsageError, match="128 × 128"):
        plan(raw_model(tmp_path / "odd", hidden_size=192), "ct:fp8-block")


@pytest.mark.parametrize("kind", ["fp8", "fp8-block"])
def test_transformers_decodes_8_bit_floats_to_the_same(
    kind: str, floats: Floats, tmp_path: Path
) -> None:
    convert(floats("llama3"), tmp_path / "ct", f"ct:{kind}")
    convert(tmp_path / "ct", tmp_path / "hf", "hf:f32", exact=True)
    ct, hf = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)
        for name in ("ct", "hf")
    )
    with torch.inference_mode():
        ct(torch.tensor([[0]]))  # which decodes
    weights = ct.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in hf.state_dict().items())


def test_8_bit_floats_stay_in_their_bytes(source: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"num_bits": 8, "type": "float", "strategy": "channel"}
    make_ct(source, tmp_path / "theirs", FLOAT, activations=True, **arguments)
    convert(tmp_path / "theirs", tmp_path / "ours", "ct", exact=True)
    theirs, ours = (load_file(tmp_path / n / "model.safetensors") for n in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    for name, array in theirs.items():
        assert array.dtype == ours[name].dtype
        assert torch.equal(array.view(torch.uint8), ours[name].view(torch.uint8)), name
    with pytest.raises(UsageError, match="bf16, f16, f32"):
        plan(source, "ct:fp8", options=Options(tensor_types=(("down_proj", "w8a16"),)))


def test_odd_rows_of_8_bit_floats() -> None:
    encoding = Scaled(DENSE["f8_e4m3"], DENSE["bf16"], (1, None))
    values = np.array([[0, 0], [1e-30, 3], [-500, 447], [1e-39, 0]], np.float32)
    rows = encoding.encode(values, None)
    assert np.isfinite(rows.dequantize()).all()
    assert rows.scales[0, 0] == rows.scales[3, 0] == 1
    np.testing.assert_allclose(rows.dequantize()[1:3], values[1:3], atol=20)
    with pytest.raises(InvalidInput, match="not finite"):
        encoding.encode(np.array([[1, np.nan]], np.float32), None)
