"""Folders of compressed-tensors: decoded as the library does, and repacked bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.ct_folders import FLOAT, INT, NAIVE, PACK, Tensors, make_ct
from tests.families import FAMILIES
from tests.packed_folders import assert_decodes
from tests.tiny import raw_model
from zenconvert import convert, inspect, open_checkpoint, plan
from zenconvert.errors import PlanError, ZenError
from zenconvert.planning.recoding import logical_rows

NAME = "model.layers.1.mlp.down_proj"
OURS = "layers.1.ffn.down.weight"
W4: dict[str, Any] = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}

F8: dict[str, Any] = {"num_bits": 8, "type": "float"}


@pytest.mark.parametrize("scale", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (PACK, {**W4, "symmetric": True}),
        (PACK, {**W4, "symmetric": False}),
        (PACK, {**W4, "group_size": 128, "symmetric": True}),
        (PACK, {"num_bits": 4, "type": "int", "strategy": "channel", "symmetric": False}),
        (PACK, {"num_bits": 8, "type": "int", "strategy": "channel"}),
        (PACK, {**W4, "num_bits": 8, "symmetric": False}),
        (INT, {"num_bits": 8, "type": "int", "strategy": "channel"}),
        (INT, {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": False}),
        (INT, {"num_bits": 8, "type": "int", "strategy": "tensor"}),
        (NAIVE, {**W4, "num_bits": 8}),
        (FLOAT, {**F8, "strategy": "channel"}),
        (FLOAT, {**F8, "strategy": "tensor"}),
        (
            FLOAT,
            {**F8, "strategy": "block", "block_structure": [128, 64]},
        ),
        (NAIVE, {**F8, "strategy": "group", "group_size": 64}),
    ],
    ids=str,
)
def test_weights_are_those_of_the_library(
    kind: str, arguments: dict[str, Any], scale: torch.dtype, source: Path, tmp_path: Path
) -> None:
    activations = kind in {INT, FLOAT}
    expected = make_ct(
        source, tmp_path / "ct", kind, scale=scale, activations=activations, **arguments
    )
    assert_decodes(tmp_path / "ct", expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read(family: str, tmp_path: Path) -> None:
    source = raw_model(tmp_path / "source", FAMILIES[family].config)
    assert_decodes(tmp_path / "ct", make_ct(source, tmp_path / "ct", PACK, **W4))


@pytest.mark.parametrize(
    ("symmetric", "targets"),
    [
        (True, ("gptq:w4g32", "awq:w4g32", "onnx:int4", "gguf:q4_0")),
        (False, ("gptq:w4g32-asym", "awq:w4g32")),
    ],
)
def test_grids_are_repacked_bit_for_bit(
    symmetric: bool, targets: tuple[str, ...], source: Path, tmp_path: Path
) -> None:
    expected = make_ct(
        source, tmp_path / "ct", PACK, scale=torch.float16, **W4, symmetric=symmetric
    )
    for number, target in enumerate(targets):
        out = tmp_path / (f"{number}.gguf" if target.startswith("gguf") else str(number))
        steps = convert(tmp_path / "ct", out, target).plan.steps
        step = next(s for s in steps if s.source == NAME)
        assert step.exact, (target, step.why)
        tensor = open_checkpoint(out).tensors[OURS]
        found = torch.from_numpy(np.array(logical_rows(tensor, 0, tensor.rows)))
        assert torch.equal(found.half(), expected[f"{NAME}.weight"]), target
        source_tensor = open_checkpoint(tmp_path / "ct").tensors[OURS]
        assert np.array_equal(found.numpy(), logical_rows(source_tensor, 0, tensor.rows))


def test_columns_in_an_order_of_their_own(source: Path, tmp_path: Path) -> None:
    make_ct(source, tmp_path / "ct", PACK, **W4)
    weights = tmp_path / "ct" / "model.safetensors"
    stored = load_file(weights)
    columns = stored[f"{NAME}.weight_shape"][1]
    index = torch.randperm(int(columns), generator=torch.Generator().manual_seed(0)) // 32
    plain = logical_rows(open_checkpoint(tmp_path / "ct").tensors[OURS], 0, 256)
    codes = plain / stored[f"{NAME}.weight_scale"].repeat_interleave(32, 1).numpy()
    save_file({**stored, f"{NAME}.weight_g_idx": index.int()}, weights)
    tensor = open_checkpoint(tmp_path / "ct").tensors[OURS]
    assert tensor.encoding.grouped is not None
    assert tensor.encoding.grouped.ordered
    expected = np.rint(codes) * stored[f"{NAME}.weight_scale"][:, index].numpy()
    np.testing.assert_array_equal(logical_rows(tensor, 0, 256), expected)
    done = convert(tmp_path / "ct", tmp_path / "gptq", "gptq", allow_requantize=True)
    assert "act-order" not in str([s.why for s in done.plan.steps if s.source == NAME])
    save_file({**stored, f"{NAME}.weight_g_idx": torch.full_like(index, -1).int()}, weights)
    tensor = open_checkpoint(tmp_path / "ct").tensors[OURS]
    np.testing.assert_array_equal(logical_rows(tensor, 0, 256), plain)


def test_8_bit_floats_are_widened_and_not_quantized_again(source: Path, tmp_path: Path) -> None:
    make_ct(source, tmp_path / "ct", FLOAT, num_bits=8, type="float", strategy="channel")
    assert inspect(tmp_path / "ct").encodings["fp8-e4m3-channel"][0] == 14
    plan(tmp_path / "ct", "hf:bf16")
    with pytest.raises(PlanError, match="--allow-requantize"):
        plan(tmp_path / "ct", "gguf:q4_k_m")


def _without(piece: str) -> Callable[[Tensors], None]:
    def change(stored: Tensors) -> None:
        del stored[f"{NAME}.{piece}"]

    return change


def _with(piece: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    def change(stored: Tensors) -> None:
        stored[f"{NAME}.{piece}"] = make(stored[f"{NAME}.{piece}"]).contiguous()

    return change


@pytest.mark.parametrize(
    "damage",
    [
        _without("weight_scale"), _without("weight_shape"), _without("weight_zero_point"),
        _without("weight_packed"), _with("weight_shape", lambda t: t + 1),
        _with("weight_shape", lambda t: t[:1]), _with("weight_scale", lambda t: t[:, :7]),
        _with("weight_scale", lambda t: t[:5]), _with("weight_scale", lambda t: t.int()),
        _with("weight_packed", lambda t: t[:, :-3]), _with("weight_packed", lambda t: t.short()),
        _with("weight_zero_point", lambda t: t[:-1]),
        _with("weight_zero_point", lambda t: t.float()),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(
    damage: Callable[[Tensors], None], source: Path, tmp_path: Path
) -> None:
    make_ct(source, tmp_path / "ct", PACK, **W4, symmetric=False)
    stored = load_file(tmp_path / "ct" / "model.safetensors")
    damage(stored)
    save_file(stored, tmp_path / "ct" / "model.safetensors")
    with pytest.raises(ZenError, match="down_proj"):
        open_checkpoint(tmp_path / "ct")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "nvfp4-pack-quantized"}, "nvfp4-pack-quantized are not read"),
        ({"format": "marlin-24"}, "marlin-24 are not read"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "transforms"),
        ({"config_groups": []}, "config_groups"),
        ({"config_groups": {"group_0": "int4"}}, "config_groups"),
    ],
)
def test_what_is_not_read_is_refused_by_name(
    changes: dict[str, Any], says: str, source: Path, tmp_path: Path
) -> None:
    make_ct(source, tmp_path / "ct", PACK, **W4)
    config = json.loads((tmp_path / "ct" / "config.json").read_text())
    config["quantization_config"] |= changes
    (tmp_path / "ct" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ZenError, match=says):
        open_checkpoint(tmp_path / "ct")
