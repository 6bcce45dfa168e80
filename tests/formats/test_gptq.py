"""GPTQ folders: the layout byte by byte, and what every tool makes of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.packed_folders import Tensors, assert_same, changed, decoded, grids_of, settings_of
from tests.test_grouped import some_rows
from tests.tiny import raw_model
from zenconvert import Options, convert, open_checkpoint, plan
from zenconvert.encoding import Grouped
from zenconvert.errors import (
    CorruptFile,
    InvalidInput,
    MissingTensor,
    PlanError,
    UnexpectedTensor,
    Unsupported,
    UsageError,
    ZenError,
)
from zenconvert.formats import int_packing
from zenconvert.formats.gptq.codec import GptqCodec, ZeroRule
from zenconvert.grouped import GroupedRows

Folders = Callable[..., Path]
MODULE = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family → folder of a tiny model in float16, without a tokenizer."""
    home, made = tmp_path_factory.mktemp("floats"), dict[str, Path]()

    def get(family: str) -> Path:
        if family not in made:
            made[family] = raw_model(home / family, family, dtype="f16")
        return made[family]

    return get


@pytest.fixture(scope="module")
def gptq(
    floats: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Target type → our folder of the tiny Llama."""
    home, made = tmp_path_factory.mktemp("gptq"), dict[str, Path]()

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = home / kind
            convert(floats("llama3"), made[kind], f"gptq:{kind}")
        return made[kind]

    return get


# --- the layout -----------------------------------------------------------------------------------


def counting_rows() -> GroupedRows:
    """32 × 64 codes of 4 bits, ``(row + column) % 16``, in two groups."""
    row, column = np.mgrid[:32, :64]
    scales = np.stack([np.full(32, 0.5), np.arange(32) / 64], axis=1)
    zeros = np.stack([np.full(32, 8), np.arange(32) % 15 + 1], axis=1)
    codes = ((row + column) % 16).astype(np.uint8)
    return GroupedRows(4, codes, scales.astype(np.float16), zeros.astype(np.uint8), 32)


def test_every_word_stands_where_the_layout_says() -> None:
    arrays = GptqCodec("as_is").pack(counting_rows())
    assert {n: (a.dtype.name, a.shape) for n, a in arrays.items()} == {
        "qweight": ("int32", (8, 32)),
        "qzeros": ("int32", (2, 4)),
        "scales": ("float16", (2, 32)),
        "g_idx": ("int32", (64,)),
    }
    assert int(arrays["qweight"][0, 0]) == 0x76543210  # inputs 0 to 7 of output 0
    assert int(arrays["qweight"][0, 1]) & 0xFFFFFFFF == 0x87654321  # the same of output 1
    assert int(arrays["qweight"][1, 0]) & 0xFFFFFFFF == 0xFEDCBA98  # inputs 8 to 15 of output 0
    assert [int(word) & 0xFFFFFFFF for word in arrays["qzeros"][0]] == [0x88888888] * 4
    assert int(arrays["qzeros"][1, 0]) & 0xFFFFFFFF == 0x87654321  # group 1 of outputs 0 to 7
    assert arrays["scales"][:, 3].tolist() == [0.5, 3 / 64]
    assert arrays["g_idx"].tolist() == [0] * 32 + [1] * 32


def test_version_1_stores_every_zero_less_one() -> None:
    arrays = GptqCodec("plus_one").pack(counting_rows())
    assert [int(word) for word in arrays["qzeros"][0]] == [0x77777777] * 4
    assert int(arrays["qzeros"][1, 0]) == 0x76543210


def test_version_1_never_holds_a_zero_of_0() -> None:
    rows = counting_rows()
    assert rows.zeros is not None
    rows.zeros[5, 1] = 0
    with pytest.raises(InvalidInput, match="zero of 0"):
        GptqCodec("plus_one").pack(rows)
    reason = GptqCodec("plus_one").refuses(Grouped(4, 32, symmetric=False), (32, 64))
    assert reason is not None
    assert "version 2" in reason


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # GPTQModel subtracts from the whole word, so that zeros of 0 borrow, and adds it back
        ("plus_one_by_word", [0, 5, 7, 3, 0, 0, 9, 15]),
        ("plus_one", [0, 4, 7, 3, 0, 15, 8, 15]),
    ],
)
def test_zeros_are_read_as_the_tool_reads_them_that_wrote_them(
    rule: ZeroRule, expected: list[int]
) -> None:
    true = np.tile(np.array([0, 5, 7, 3, 0, 0, 9, 15], dtype=np.uint8), 4)[:, None]
    words = int_packing.pack(true, 4).view(np.uint32) - np.uint32(0x11111111)
    scales: NDArray[Any] = np.ones((1, 32), np.float16)
    arrays = {"qzeros": words.view(np.int32).T, "scales": scales}
    _, zeros = GptqCodec(rule).unpack_groups(arrays, Grouped(4, None, symmetric=False), 64)
    assert zeros[:8, 0].tolist() == expected


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    group=st.sampled_from([None, 32, 64]),
    ordered=st.booleans(),
    index=st.booleans(),
    planar=st.booleans(),
    rule=st.sampled_from(["as_is", "plus_one"]),
    seed=st.integers(0, 50),
)
def test_packing_loses_nothing(
    bits: int, group: int | None, ordered: bool, index: bool, planar: bool, rule: ZeroRule,
    seed: int,
) -> None:  # fmt: skip
    rows = some_rows(bits, group, rows=64, ordered=ordered and index, seed=seed)
    assert rows.zeros is not None
    if rule == "plus_one":
        rows = replace(rows, zeros=np.maximum(rows.zeros, 1))
    codec = GptqCodec(rule, index, planar)
    arrays = codec.pack(rows)
    for piece in codec.pieces(rows.encoding, rows.codes.shape):
        array = arrays[piece.name]
        assert (array.shape, array.nbytes) == (piece.shape, piece.nbytes)
    found = codec.unpack(arrays, rows.encoding)
    np.testing.assert_array_equal(found.codes, rows.codes)
    np.testing.assert_array_equal(found.scales, rows.scales)
    np.testing.assert_array_equal(found.dequantize(), rows.dequantize())
    # half of the rows make half of every array
    half = codec.pack(rows.take(slice(32, 64)))
    for piece in codec.pieces(rows.encoding, rows.codes.shape):
        if piece.axis == 1:
            begin, end = piece.span(32, 64)
            np.testing.assert_array_equal(half[piece.name], arrays[piece.name][:, begin:end])


def test_an_index_that_points_nowhere_is_invalid() -> None:
    arrays = GptqCodec("as_is").pack(counting_rows())
    for wrong in (2, -1):
        arrays["g_idx"][7] = wrong
        with pytest.raises(InvalidInput, match="g_idx names groups"):
            GptqCodec("as_is").unpack(arrays, Grouped(4, 32, symmetric=False))


# --- what we write --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "version", "own"),
    [
        ("w4g128", "gptq", (4, 128, True)),
        ("w3g32", "gptq", (3, 32, True)),
        ("w8g-1", "gptq", (8, -1, True)),
        ("w2g64-asym", "gptq_v2", (2, 64, False)),
        ("w4g128-v2", "gptq_v2", (4, 128, True)),
    ],
)
def test_the_settings_say_what_was_written(
    kind: str, version: str, own: tuple[Any, ...], gptq: Callable[[str], Path]
) -> None:
    settings = settings_of(gptq(kind))
    assert (settings["bits"], settings["group_size"], settings["sym"]) == own
    assert settings["checkpoint_format"] == version
    assert "dynamic" not in settings
    assert "modules_in_block_to_quantize" not in settings
    assert (gptq(kind) / "quantize_config.json").is_file()
    assert open_checkpoint(gptq(kind)).warnings == ()


def test_the_number_of_threads_does_not_change_the_bytes(
    floats: Callable[[str], Path], gptq: Callable[[str], Path], tmp_path: Path
) -> None:
    for threads in (1, 3):
        convert(floats("llama3"), tmp_path / f"{threads}", "gptq:w3g32", threads=threads)
        for file in (gptq("w3g32")).iterdir():
            assert (tmp_path / f"{threads}" / file.name).read_bytes() == file.read_bytes()


def test_routers_stay_floats_and_every_consumer_is_told(
    floats: Callable[[str], Path], tmp_path: Path
) -> None:
    convert(floats("mixtral"), tmp_path / "m", "gptq:w4g128")
    settings = settings_of(tmp_path / "m")
    assert set(settings["dynamic"]) == {
        rf"-:^model\.layers\.{i}\.block_sparse_moe\.gate$" for i in (0, 1)
    }
    (names,) = settings["modules_in_block_to_quantize"]
    assert set(names) == {
        *(f"self_attn.{n}_proj" for n in ("q", "k", "v", "o")),
        *(f"block_sparse_moe.experts.{e}.w{n}" for e in range(4) for n in (1, 2, 3)),
    }


def test_a_module_of_its_own_is_named(floats: Callable[[str], Path], tmp_path: Path) -> None:
    options = Options(
        tensor_types=((r"layers\.1.*down", "w8g32"), (r"layers\.0.*up", "f16")), output_type="w8g64"
    )
    convert(floats("llama3"), tmp_path / "m", "gptq:w4g128", options=options)
    settings = settings_of(tmp_path / "m")
    assert settings["dynamic"] == {
        r"+:^lm_head$": {"bits": 8, "group_size": 64, "sym": True, "desc_act": False},
        r"-:^model\.layers\.0\.mlp\.up_proj$": {},
        r"+:^model\.layers\.1\.mlp\.down_proj$": {
            "bits": 8, "group_size": 32, "sym": True, "desc_act": False,
        },
    }  # fmt: skip
    assert settings["lm_head"] is True
    (names,) = settings["modules_in_block_to_quantize"]
    assert "model.layers.1.mlp.up_proj" in names  # the short name would name both
    assert "mlp.down_proj" in names
    assert grids_of(tmp_path / "m") == {"w4g128", "w8g32", "w8g64"}
    convert(tmp_path / "m", tmp_path / "again", "gptq", exact=True)
    assert_same(tmp_path / "again", tmp_path / "m")


@pytest.mark.parametrize(
    ("target", "options", "error"),
    [
        ("gptq:w5g128", Options(), UsageError),
        ("gptq:w4g128-marlin", Options(), UsageError),
        ("gptq:w4g48", Options(), PlanError),
        ("gptq:w4g128", Options(pure=True), UsageError),
        ("gptq:w4g128", Options(embedding_type="w4g128"), UsageError),
        ("gptq:w4g128", Options(tensor_types=(("proj", "f16"),)), UsageError),
    ],
)
def test_what_cannot_be_written_is_refused(
    target: str, options: Options, error: type[ZenError], floats: Callable[[str], Path]
) -> None:
    with pytest.raises(error):
        plan(floats("llama3"), target, options=options)


# --- what others write ----------------------------------------------------------------------------


def relabelled(version: str) -> Callable[[dict[str, Any]], None]:
    return lambda settings: settings.update(checkpoint_format=version)


@pytest.mark.parametrize(
    ("kind", "label"), [("w4g128", "gptq_v2"), ("w4g128-v2", "gptq"), ("w3g32-v2", "gptq")]
)
def test_zeros_under_a_wrong_label_are_found(
    kind: str, label: str, gptq: Callable[[str], Path], tmp_path: Path
) -> None:
    wrong = changed(gptq(kind), tmp_path / "wrong", settings=relabelled(label))
    (warning,) = open_checkpoint(wrong).warnings
    assert "read so" in warning
    assert_same(wrong, gptq(kind))
    convert(wrong, tmp_path / "right", "gptq", exact=True)
    assert_same(tmp_path / "right", gptq(kind))


def test_symmetric_in_name_only(gptq: Callable[[str], Path], tmp_path: Path) -> None:
    """Zeros are kept, and no symmetric grid takes them."""
    wrong = changed(gptq("w4g32-asym"), tmp_path / "wrong", settings=lambda s: s.update(sym=True))
    (warning,) = open_checkpoint(wrong).warnings
    assert "zeros differ" in warning
    assert_same(wrong, gptq("w4g32-asym"))
    with pytest.raises(PlanError, match="zero points"):
        plan(wrong, "gptq:w4g32", exact=True)


def test_a_single_module_that_lies_stops_the_conversion(
    gptq: Callable[[str], Path], tmp_path: Path
) -> None:
    """Only some modules are looked at when a folder is opened; its data is checked when read."""

    def one_zero(tensors: Tensors) -> None:
        tensors["model.layers.0.mlp.gate_proj.qzeros"][0, 0] ^= 5

    wrong = changed(gptq("w4g128"), tmp_path / "wrong", tensors=one_zero)
    assert open_checkpoint(wrong).warnings == ()
    with pytest.raises(InvalidInput, match="zeros are not all 8"):
        convert(wrong, tmp_path / "out", "gptq")
    name = "layers.0.ffn.gate.weight"
    assert (decoded(wrong)[name] != decoded(gptq("w4g128"))[name]).any()


def without_index(tensors: Tensors) -> Tensors:
    return {n: a for n, a in tensors.items() if not n.endswith(".g_idx")}


def test_a_missing_index_is_the_plain_one(gptq: Callable[[str], Path], tmp_path: Path) -> None:
    folder = changed(gptq("w4g128"), tmp_path / "m", tensors=without_index)
    assert_same(folder, gptq("w4g128"))
    convert(folder, tmp_path / "again", "gptq", exact=True)
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (gptq("w4g128") / name).read_bytes()


def shuffled(tensors: Tensors) -> None:
    random = np.random.default_rng(0)
    for name in [n for n in tensors if n.endswith(".g_idx")]:
        tensors[name] = random.permutation(tensors[name])


def test_act_order_is_kept_or_refused(gptq: Callable[[str], Path], tmp_path: Path) -> None:
    folder = changed(
        gptq("w4g32"), tmp_path / "m", tensors=shuffled, settings=lambda s: s.update(desc_act=True)
    )
    assert grids_of(folder) == {"w4g32-actorder"}
    convert(folder, tmp_path / "again", "gptq", exact=True)
    assert settings_of(tmp_path / "again")["desc_act"] is True
    assert_same(tmp_path / "again", folder)
    name = "layers.0.ffn.gate.weight"
    assert (decoded(folder)[name] != decoded(gptq("w4g32"))[name]).any()
    for target in ("awq:w4g32", "gguf:q4_0", "gptq:w4g32"):
        with pytest.raises(PlanError, match="act-order"):
            plan(folder, target, exact=True)


def test_an_order_that_the_settings_deny_is_not_dropped(
    gptq: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = changed(gptq("w4g32-asym"), tmp_path / "m", tensors=shuffled)
    assert grids_of(folder) == {"w4g32-asym"}
    with pytest.raises(InvalidInput, match="order of their own"):
        convert(folder, tmp_path / "out", "awq:w4g32")


def mirrored(tensors: Tensors) -> None:
    """The same weights but for code 0: scales of the other sign and codes mirrored at 8."""
    for name in [n for n in tensors if n.endswith(".qweight")]:
        codes = int_packing.unpack(tensors[name], 4, len(tensors[name]) * 8)
        tensors[name] = int_packing.pack(np.minimum(16 - codes.astype(int), 15).astype("u1"), 4)
        scales = name.replace("qweight", "scales")
        tensors[scales] = -tensors[scales]


def test_negative_scales_of_auto_round_are_kept(
    gptq: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = changed(gptq("w4g32"), tmp_path / "m", tensors=mirrored)
    first, second = decoded(gptq("w4g32")), decoded(folder)
    for name in first:
        assert (first[name] == second[name]).mean() > 0.9
    for target in ("gptq", "awq:w4g32", "hf:f32"):
        out = tmp_path / target.replace(":", "-")
        convert(folder, out, target, exact=True)
        assert_same(out, folder)


@pytest.mark.parametrize(
    ("kind", "packing"),
    [
        ("w4g32", "auto_round:auto_gptq"),
        ("w4g32", "auto_round:gptq"),
        ("w4g32-v2", "auto_round:gptqmodel"),
        ("w3g32-asym", "auto_round"),
    ],
)
def test_auto_rounds_own_folders_are_read(
    kind: str, packing: str, gptq: Callable[[str], Path], tmp_path: Path
) -> None:
    ours = settings_of(gptq(kind))
    own = {
        "quant_method": "auto-round",
        "packing_format": packing,
        "autoround_version": "0.16.1",
        **{key: ours[key] for key in ("bits", "group_size", "sym")},
        "data_type": "int",
        "block_name_to_quantize": "model.layers",
        "extra_config": {"lm_head": {"bits": 16, "data_type": "float"}},
    }
    folder = changed(gptq(kind), tmp_path / "m", tensors=without_index, settings=lambda _: own)
    assert open_checkpoint(folder).format == "gptq"
    assert open_checkpoint(folder).warnings == ()
    assert_same(folder, gptq(kind))


def test_planar_codes_are_read(gptq: Callable[[str], Path], tmp_path: Path) -> None:
    """GPTQModel's layout: other bits in words of the same shapes."""

    def planar(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.endswith((".qweight", ".qzeros"))]:
            array = tensors[name] if name.endswith(".qweight") else tensors[name].T
            codes = int_packing.unpack(array, 3, len(array) * 32 // 3)
            packed = int_packing.pack_planar(codes, 3)
            tensors[name] = packed if name.endswith(".qweight") else packed.T

    folder = changed(
        gptq("w3g32-v2"), tmp_path / "m", tensors=planar, settings=relabelled("gptq_p")
    )
    assert_same(folder, gptq("w3g32-v2"))
    convert(folder, tmp_path / "again", "gptq:w3g32-v2", exact=True)
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (gptq("w3g32-v2") / name).read_bytes()


def test_weights_are_found_under_the_names_of_autogptq(
    gptq: Callable[[str], Path], tmp_path: Path
) -> None:
    name = "gptq_model-4bit-128g.safetensors"
    assert_same(changed(gptq("w4g128"), tmp_path / "a", weights=name), gptq("w4g128"))
    folder = changed(
        gptq("w4g128"),
        tmp_path / "b",
        weights="Tiny-GPTQ.safetensors",
        settings=lambda s: s.update(model_file_base_name="Tiny-GPTQ"),
    )
    assert_same(folder, gptq("w4g128"))
    outside = changed(
        gptq("w4g128"),
        tmp_path / "c",
        weights="elsewhere.safetensors",
        settings=lambda s: s.update(model_file_base_name="../b/Tiny-GPTQ"),
    )
    with pytest.raises(InvalidInput, match=re.escape(name)):
        open_checkpoint(outside)


def test_settings_may_stand_beside_the_config(gptq: Callable[[str], Path], tmp_path: Path) -> None:
    folder = changed(gptq("w4g128"), tmp_path / "m")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"quantization_config"', '"unused"'))
    assert open_checkpoint(folder).format == "gptq"
    assert_same(folder, gptq("w4g128"))


def test_biases_of_zeros_that_autogptq_adds_are_left(
    gptq: Callable[[str], Path], tmp_path: Path
) -> None:
    def add(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.endswith(".scales")]:
            tensors[name.replace("scales", "bias")] = np.zeros(
                tensors[name].shape[1], dtype=np.float16
            )

    folder = changed(gptq("w4g128"), tmp_path / "m", tensors=add)
    (warning,) = open_checkpoint(folder).warnings
    assert "14 biases of zeros" in warning
    assert_same(folder, gptq("w4g128"))


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (lambda t: t.pop(f"{MODULE}.scales"), MissingTensor, "scales is missing"),
        (lambda t: t.pop(f"{MODULE}.qzeros"), MissingTensor, "qzeros is missing"),
        (lambda t: t.update({f"{MODULE}.scales": t[f"{MODULE}.scales"][:3]}), Unsupported, "equal"),
        (
            lambda t: t.update({f"{MODULE}.scales": t[f"{MODULE}.scales"][:, :64]}),
            CorruptFile,
            "call for f16",
        ),
        (
            lambda t: t.update({f"{MODULE}.scales": t[f"{MODULE}.scales"].astype(np.int32)}),
            CorruptFile,
            "scales are i32",
        ),
        (
            lambda t: t.update({f"{MODULE}.qweight": t[f"{MODULE}.qweight"][:63]}),
            CorruptFile,
            "do not fit",
        ),
        (
            lambda t: t.update({f"{MODULE}.qzeros": t[f"{MODULE}.qzeros"][:, :-1]}),
            CorruptFile,
            "qzeros is i32",
        ),
        (
            lambda t: t.update({f"{MODULE}.g_idx": t[f"{MODULE}.g_idx"][:-1]}),
            CorruptFile,
            "g_idx is i32",
        ),
        (
            lambda t: t.update({f"{MODULE}.qweight": t[f"{MODULE}.qweight"].astype(np.int16)}),
            CorruptFile,
            "qweight is i16",
        ),
        (
            lambda t: t.update({"model.layers.9.mlp.up_proj.qweight": t[f"{MODULE}.qweight"]}),
            CorruptFile,
            "no module",
        ),
        (lambda t: t.update({"stray.scales": t[f"{MODULE}.scales"]}), UnexpectedTensor, "stray"),
        (
            lambda t: t.pop(f"{MODULE}.qweight"),
            UnexpectedTensor,
            "no tensor named",
        ),
    ],
)
def test_broken_folders_are_told_apart(
    change: Callable[[Tensors], Any],
    error: type[ZenError],
    reason: str,
    gptq: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    def in_place(tensors: Tensors) -> None:
        change(tensors)

    folder = changed(gptq("w4g128"), tmp_path / "m", tensors=in_place)
    with pytest.raises(error, match=reason):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        ({"checkpoint_format": "marlin"}, Unsupported, "'marlin' is not read"),
        ({"checkpoint_format": ["gptq"]}, Unsupported, "is not read"),
        ({"pack_dtype": "int64"}, Unsupported, "int64"),
        ({"sym": "yes"}, CorruptFile, "sym should be true or false"),
        ({"desc_act": 1}, CorruptFile, "desc_act should be true or false"),
        ({"dynamic": ["lm_head"]}, CorruptFile, "dynamic should map"),
        ({"dynamic": {"lm_head": 8}}, CorruptFile, "dynamic should map"),
    ],
)
def test_settings_that_make_no_sense_are_told_apart(
    settings: dict[str, Any],
    error: type[ZenError],
    reason: str,
    gptq: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = changed(gptq("w4g128"), tmp_path / "m", settings=lambda s: {**s, **settings})
    with pytest.raises(error, match=reason):
        open_checkpoint(folder)


def test_settings_without_a_quantized_weight_are_invalid(
    floats: Callable[[str], Path], gptq: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = changed(gptq("w4g128"), tmp_path / "m")
    (folder / "model.safetensors").write_bytes(
        (floats("llama3") / "model.safetensors").read_bytes()
    )
    with pytest.raises(InvalidInput, match="no weight is quantized"):
        open_checkpoint(folder)
