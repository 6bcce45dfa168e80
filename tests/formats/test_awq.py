"""AWQ folders: the two layouts byte by byte, and what every tool makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.packed_folders import Tensors, assert_same, changed, decoded, grids_of, settings_of
from tests.test_grouped import some_rows
from zenconvert import Options, convert, open_checkpoint, plan
from zenconvert.errors import (
    CorruptFile,
    MissingTensor,
    PlanError,
    Unsupported,
    UsageError,
    ZenError,
)
from zenconvert.formats.awq.codec import AwqCodec, Version, zeros_width
from zenconvert.model.encoding import Grouped
from zenconvert.model.grouped import GroupedRows

MODULE = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def awq(
    floats: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Target type → our folder of the tiny Llama."""
    home, made = tmp_path_factory.mktemp("awq"), dict[str, Path]()

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = home / kind
            convert(floats("llama3"), made[kind], f"awq:{kind}")
        return made[kind]

    return get


# --- the layout -----------------------------------------------------------------------------------


def counting_rows() -> GroupedRows:
    """32 × 64 codes, ``(row + 3 · column) % 16``, in two groups."""
    row, column = np.mgrid[:32, :64]
    scales = np.stack([np.full(32, 0.5), np.arange(32) / 64], axis=1)
    zeros = np.stack([np.arange(32) % 16, np.full(32, 8)], axis=1)
    codes = ((row + 3 * column) % 16).astype(np.uint8)
    return GroupedRows(4, codes, scales.astype(np.float16), zeros.astype(np.uint8), 32)


def word(value: Any) -> int:
    return int(value) & 0xFFFFFFFF


def test_gemm_words_hold_eight_outputs_even_ones_first() -> None:
    arrays = AwqCodec("gemm").pack(counting_rows())
    assert {n: (a.dtype.name, a.shape) for n, a in arrays.items()} == {
        "qweight": ("int32", (64, 4)),
        "qzeros": ("int32", (2, 4)),
        "scales": ("float16", (2, 32)),
    }
    assert word(arrays["qweight"][0, 0]) == 0x75316420  # outputs 0 2 4 6 1 3 5 7, lowest first
    assert word(arrays["qweight"][0, 1]) == 0xFDB9ECA8
    assert word(arrays["qweight"][1, 0]) == 0xA8649753  # input 1: every code 3 more
    assert word(arrays["qzeros"][0, 0]) == 0x75316420
    assert word(arrays["qzeros"][1, 0]) == 0x88888888
    assert arrays["scales"][:, 3].tolist() == [0.5, 3 / 64]


def test_gemv_words_hold_eight_inputs_in_order() -> None:
    rows = counting_rows()
    arrays = AwqCodec("gemv").pack(rows)
    # two groups fill a quarter of the four words that groups of 32 are rounded up to
    assert {n: (a.dtype.name, a.shape) for n, a in arrays.items()} == {
        "qweight": ("int32", (32, 8)),
        "qzeros": ("int32", (32, 4)),
        "scales": ("float16", (32, 32)),
    }
    assert word(arrays["qweight"][0, 0]) == 0x52FC9630  # (3 · input) % 16
    assert word(arrays["qweight"][1, 0]) == 0x630DA741
    assert [word(w) for w in arrays["qzeros"][5]] == [0x00000085, 0, 0, 0]
    assert arrays["scales"][3, :3].tolist() == [0.5, 3 / 64, 0]
    assert not arrays["scales"][:, 2:].any()


@pytest.mark.parametrize(
    ("columns", "group", "width"),
    [(4096, 128, 4), (128, 128, 1), (11008, 128, 11), (4096, 64, 8), (512, 64, 2), (256, 32, 4),
     (4096, 32, 16), (1056, 32, 8)],
)  # fmt: skip
def test_widths_of_gemv_zeros(columns: int, group: int, width: int) -> None:
    """AutoAWQ's ``calculate_zeros_width``."""
    assert zeros_width(columns, group) == width


@given(
    version=st.sampled_from(["gemm", "gemv"]),
    group=st.sampled_from([None, 128, 64, 32]),
    rows=st.sampled_from([8, 40, 64]),
    seed=st.integers(0, 50),
)
def test_packing_loses_nothing(version: Version, group: int | None, rows: int, seed: int) -> None:
    values = some_rows(4, group, rows=rows, columns=256, seed=seed)
    codec = AwqCodec(version)
    arrays = codec.pack(values)
    for piece in codec.pieces(values.encoding, values.codes.shape):
        assert (arrays[piece.name].shape, arrays[piece.name].nbytes) == (piece.shape, piece.nbytes)
    found = codec.unpack(arrays, values.encoding)
    np.testing.assert_array_equal(found.codes, values.codes)
    np.testing.assert_array_equal(found.dequantize(), values.dequantize())


def test_zeros_at_the_midpoint_are_stored() -> None:
    rows = replace(some_rows(rows=8, zeros=False))
    arrays = AwqCodec("gemm").pack(rows)
    assert {word(w) for w in arrays["qzeros"].flat} == {0x88888888}
    found = AwqCodec("gemm").unpack(arrays, Grouped(4, 32, symmetric=False))
    assert found.zeros is None


# --- what we write --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "group", "version"),
    [
        ("w4g128", 128, "gemm"),
        ("w4g64", 64, "gemm"),
        ("w4g-1", -1, "gemm"),
        ("w4g32-gemv", 32, "gemv"),
    ],
)
def test_the_settings_say_what_was_written(
    kind: str, group: int, version: str, awq: Callable[[str], Path]
) -> None:
    assert settings_of(awq(kind)) == {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group,
        "zero_point": True,
        "version": version,
        "modules_to_not_convert": None,
    }
    assert open_checkpoint(awq(kind)).warnings == ()


def test_the_number_of_threads_does_not_change_the_bytes(
    floats: Callable[[str], Path], awq: Callable[[str], Path], tmp_path: Path
) -> None:
    for kind in ("w4g64", "w4g32-gemv"):
        for threads in (1, 3):
            out = tmp_path / f"{kind}-{threads}"
            convert(floats("llama3"), out, f"awq:{kind}", threads=threads)
            for file in awq(kind).iterdir():
                assert (out / file.name).read_bytes() == file.read_bytes()


def test_modules_that_stay_floats_are_named_as_autoawq_looks_for_them(
    floats: Callable[[str], Path], tmp_path: Path
) -> None:
    """It compares names within a block; only where that will not do they are whole."""
    convert(floats("mixtral"), tmp_path / "m", "awq:w4g128")
    assert settings_of(tmp_path / "m")["modules_to_not_convert"] == ["block_sparse_moe.gate"]
    options = Options(tensor_types=((r"v_proj", "f16"), (r"layers\.1.*down", "bf16")))
    convert(floats("llama3"), tmp_path / "l", "awq:w4g128", options=options)
    assert settings_of(tmp_path / "l")["modules_to_not_convert"] == [
        "self_attn.v_proj",
        "model.layers.1.mlp.down_proj",
    ]


@pytest.mark.parametrize(
    ("target", "options", "error"),
    [
        ("awq:w3g128", Options(), UsageError),
        ("awq:w4g128-actorder", Options(), UsageError),
        ("awq:w4g128-v2", Options(), UsageError),
        ("awq:w4g48", Options(), PlanError),
        ("awq:w4g16-gemv", Options(), PlanError),
        ("awq:w4g128", Options(output_type="w4g128"), UsageError),
        ("awq:w4g128", Options(embedding_type="w4g128"), UsageError),
        ("awq:w4g128", Options(tensor_types=(("up_proj", "w4g64"),)), UsageError),
        ("awq:w4g128", Options(tensor_types=(("proj", "f16"),)), UsageError),
    ],
)
def test_what_cannot_be_written_is_refused(
    target: str, options: Options, error: type[ZenError], floats: Callable[[str], Path]
) -> None:
    with pytest.raises(error):
        plan(floats("llama3"), target, options=options)


def test_a_quantized_head_is_decoded(floats: Callable[[str], Path], tmp_path: Path) -> None:
    """No consumer of AWQ folders looks for one."""
    convert(
        floats("llama3"), tmp_path / "gptq", "gptq:w4g128", options=Options(output_type="w4g128")
    )
    with pytest.raises(PlanError, match=r"lm_head.*decoded and rounded"):
        plan(tmp_path / "gptq", "awq", exact=True)
    convert(tmp_path / "gptq", tmp_path / "awq", "awq")
    assert str(open_checkpoint(tmp_path / "awq").tensors["head.weight"].encoding) == "f16"


# --- what others write ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"},
        {"quant_method": "awq", "bits": 4, "group_size": 64},
        {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "bits": 4,
         "group_size": 64, "sym": False},
        {"quant_method": "awq", "method": "awq", "bits": 4, "group_size": 64, "format": "gemm",
         "checkpoint_format": "gemm", "version": "gemm", "desc_act": False, "pack_dtype": "int32"},
    ],
)  # fmt: skip
def test_settings_of_every_tool_are_understood(
    settings: dict[str, Any], awq: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = changed(awq("w4g64"), tmp_path / "m", settings=lambda _: settings)
    assert open_checkpoint(folder).format == "awq"
    assert_same(folder, awq("w4g64"))


def test_settings_may_stand_beside_the_config(awq: Callable[[str], Path], tmp_path: Path) -> None:
    folder = changed(awq("w4g64"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    own = {"w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"}
    (folder / "quant_config.json").write_text(json.dumps(own))
    assert_same(folder, awq("w4g64"))


def test_bfloat16_scales_are_kept_where_float16_has_them(
    awq: Callable[[str], Path], tmp_path: Path
) -> None:
    """GPTQModel writes such files on a CPU."""

    def rounded(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.endswith(".scales")]:
            tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)

    folder = changed(awq("w4g64"), tmp_path / "m", tensors=rounded)
    assert grids_of(folder) == {"w4g64-asym"}
    convert(folder, tmp_path / "f16", "awq:w4g64", exact=True)
    assert_same(folder, tmp_path / "f16")

    def tiny(tensors: Tensors) -> None:
        rounded(tensors)
        tensors[f"{MODULE}.scales"] *= ml_dtypes.bfloat16(1e-20)

    with pytest.raises(PlanError, match="scales are bf16"):
        plan(changed(awq("w4g64"), tmp_path / "n", tensors=tiny), "awq:w4g64", exact=True)


def test_negative_scales_are_kept(awq: Callable[[str], Path], tmp_path: Path) -> None:
    def negated(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.endswith(".scales")]:
            tensors[name] = -tensors[name]

    folder = changed(awq("w4g64"), tmp_path / "m", tensors=negated)
    before, after = decoded(awq("w4g64")), decoded(folder)
    for name, values in before.items():
        if "attn." in name or "ffn." in name:
            np.testing.assert_array_equal(values, -after[name])
    convert(folder, tmp_path / "gptq", "gptq", exact=True)
    assert_same(folder, tmp_path / "gptq")


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (lambda t: t.pop(f"{MODULE}.scales"), MissingTensor, "scales is missing"),
        (lambda t: t.pop(f"{MODULE}.qzeros"), MissingTensor, "qzeros is missing"),
        (
            lambda t: t.update({f"{MODULE}.scales": t[f"{MODULE}.scales"][:1]}),
            CorruptFile,
            "scales is f16",
        ),
        (
            lambda t: t.update({f"{MODULE}.qweight": t[f"{MODULE}.qweight"].T}),
            CorruptFile,
            "qweight is i32",
        ),
        (
            lambda t: t.update({f"{MODULE}.scales": t[f"{MODULE}.scales"].astype(np.int32)}),
            CorruptFile,
            "scales are i32",
        ),
    ],
)
def test_broken_folders_are_told_apart(
    change: Callable[[Tensors], Any],
    error: type[ZenError],
    reason: str,
    awq: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    def in_place(tensors: Tensors) -> None:
        change(tensors)

    folder = changed(awq("w4g64"), tmp_path / "m", tensors=in_place)
    with pytest.raises(error, match=reason):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        ({"version": "gemv_fast"}, Unsupported, "gemv_fast"),
        ({"version": "marlin"}, Unsupported, "marlin"),
        ({"bits": 3}, Unsupported, "3 bits"),
        ({"group_size": 0}, CorruptFile, "group_size should be"),
        ({"group_size": "many"}, CorruptFile, "group_size should be"),
        ({"quant_method": "gptq"}, Unsupported, "quant_method should be awq"),
    ],
)
def test_settings_that_make_no_sense_are_told_apart(
    settings: dict[str, Any],
    error: type[ZenError],
    reason: str,
    awq: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = changed(awq("w4g64"), tmp_path / "m", settings=lambda s: {**s, **settings})
    with pytest.raises(error, match=reason):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"group_size": 128}, "labelled group_size 128, and the data has 64"),
        ({"group_size": 48}, "labelled group_size 48, and the data has 64"),
        ({"group_size": -1}, ""),
        ({"group_size": None}, ""),
        ({"version": "gemv"}, "labelled gemv, and the data is gemm"),
        ({"quant_method": "AWQ"}, ""),
        ({"bits": "4", "group_size": "64"}, ""),
    ],
)
def test_labels_yield_to_shapes(
    settings: dict[str, Any], told: str, awq: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = changed(awq("w4g64"), tmp_path / "m", settings=lambda own: {**own, **settings})
    assert_same(folder, awq("w4g64"))
    found = open_checkpoint(folder).warnings
    assert len(found) == bool(told)
    assert told in "".join(found)


def test_a_single_module_of_other_groups_is_named(
    awq: Callable[[str], Path], tmp_path: Path
) -> None:
    module = "model.layers.0.mlp.down_proj"

    def smaller(tensors: Tensors) -> None:
        for piece in ("qzeros", "scales"):
            tensors[f"{module}.{piece}"] = tensors[f"{module}.{piece}"].repeat(2, axis=0)

    folder = changed(awq("w4g64"), tmp_path / "m", tensors=smaller)
    (warning,) = open_checkpoint(folder).warnings
    assert f"labelled group_size 64, and the data has 32 in 1 of 14 modules ({module})" in warning
    assert_same(folder, awq("w4g64"))


@pytest.mark.parametrize("word", ["exllama", "ipex", "GEMM", None])
def test_words_for_kernels_are_the_gemm_layout(
    word: str | None, awq: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = changed(awq("w4g32"), tmp_path / "m", settings=lambda own: {**own, "version": word})
    assert_same(folder, awq("w4g32"))


def test_scales_of_an_activation_are_ones_and_nothing_else_is_read(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Consumers divide by them; see the oracles for what these compute."""
    done = convert(folder("starcoder2"), tmp_path / "awq", "awq:w4g32")
    assert not done.plan.lost
    names = {f"model.layers.{layer}.mlp.act.scales" for layer in range(2)}
    assert names <= {step.target for step in done.plan.steps}
    assert "act.scales" not in "".join(open_checkpoint(tmp_path / "awq").tensors)
    assert plan(tmp_path / "awq", "awq", exact=True).exact

    def doubled(tensors: Tensors) -> Tensors:
        return {n: v * 2 if n in names else v for n, v in tensors.items()}

    with pytest.raises(Unsupported, match=r"mlp\.act\.scales holds 512 numbers"):
        open_checkpoint(changed(tmp_path / "awq", tmp_path / "other", tensors=doubled))
