"""GPTQ folders of other tools, and broken ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.packed_folders import Tensors, assert_same, changed, decoded, grids_of, settings_of
from zenconvert import convert, open_checkpoint, plan
from zenconvert.errors import (
    CorruptFile,
    InputWarning,
    InvalidInput,
    MissingTensor,
    PlanError,
    UnexpectedTensor,
    Unsupported,
    ZenError,
)
from zenconvert.formats import int_packing

Folders = Callable[..., Path]
MODULE = "model.layers.0.mlp.down_proj"


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


@pytest.mark.parametrize("stored", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("label", ["gptq", "gptq_v2"])
def test_zeros_of_their_own_under_a_wrong_label_are_found(
    stored: str, label: str, gptq: Callable[[str], Path], tmp_path: Path
) -> None:
    def by_version(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.endswith(".qzeros") and stored == "gptq"]:
            zeros = int_packing.unpack(tensors[name].T, 4, tensors[name].shape[1] * 8)
            tensors[name] = int_packing.pack((zeros - 1) & np.uint8(15), 4).T

    made = gptq("w4g32-asym")
    folder = changed(made, tmp_path / "m", tensors=by_version, settings=relabelled(label))
    found = open_checkpoint(folder).warnings
    assert len(found) == (stored != label)
    assert ("a step off on average" in "".join(found)) == (stored != label)
    assert_same(folder, made)


def test_symmetric_in_name_only(gptq: Callable[[str], Path], tmp_path: Path) -> None:
    """Zeros are kept, and no symmetric grid takes them."""
    wrong = changed(gptq("w4g32-asym"), tmp_path / "wrong", settings=lambda s: s.update(sym=True))
    (warning,) = open_checkpoint(wrong).warnings
    assert "zeros differ" in warning
    assert_same(wrong, gptq("w4g32-asym"))
    with pytest.raises(PlanError, match="zero points"):
        plan(wrong, "gptq:w4g32", exact=True)


def test_one_zero_of_a_later_group_is_told(gptq: Callable[[str], Path], tmp_path: Path) -> None:
    """Runtimes whose symmetric kernels ignore zeros compute something else than those that do not:
    the plan tells it, and goes by the data, as transformers and AutoGPTQ's own kernels do."""
    module = "model.layers.0.mlp.gate_proj"

    def one_zero(tensors: Tensors) -> None:
        tensors[f"{module}.qzeros"][1, 0] ^= 5

    wrong = changed(gptq("w4g128"), tmp_path / "wrong", tensors=one_zero)
    (warning,) = open_checkpoint(wrong).warnings
    assert "labelled symmetric, and zeros differ in 1 of 14 modules" in warning
    stored = load_file(wrong / "model.safetensors")
    shifts = np.arange(0, 32, 4)
    scales = stored[f"{module}.scales"].astype(np.float32)
    rows = scales.shape[1]
    codes = (stored[f"{module}.qweight"][:, None] >> shifts[:, None] & 15).reshape(-1, rows)
    zeros = (stored[f"{module}.qzeros"][:, :, None] >> shifts & 15).reshape(-1, rows) + 1
    expected = (codes.reshape(len(zeros), -1, rows) - zeros[:, None]) * scales[:, None]
    found = decoded(wrong)["layers.0.ffn.gate.weight"]
    np.testing.assert_array_equal(found, expected.reshape(-1, rows).T)
    with pytest.raises(PlanError):
        plan(wrong, "gptq:w4g128", exact=True)


def lying(piece: str, change: Callable[[Any], Any]) -> Callable[[Tensors], None]:
    """One piece of one module is another."""

    def change_one(tensors: Tensors) -> None:
        tensors[f"{MODULE}.{piece}"] = change(tensors[f"{MODULE}.{piece}"])

    return change_one


def of_eight_bits(tensors: Tensors) -> None:
    """The same weights of one module in codes of 8 bits."""
    for piece, at in (("qweight", 0), ("qzeros", 1)):
        array = tensors[f"{MODULE}.{piece}"]
        codes = int_packing.unpack(array if at == 0 else array.T, 4, array.shape[at] * 8)
        packed = int_packing.pack(codes + np.uint8(120), 8)
        tensors[f"{MODULE}.{piece}"] = packed if at == 0 else packed.T


def of_smaller_groups(tensors: Tensors) -> None:
    """The same weights of one module in groups half as large."""
    for piece in ("qzeros", "scales"):
        tensors[f"{MODULE}.{piece}"] = tensors[f"{MODULE}.{piece}"].repeat(2, axis=0)
    columns = np.arange(len(tensors[f"{MODULE}.g_idx"]), dtype=np.int32)
    tensors[f"{MODULE}.g_idx"] = columns // 16


@pytest.mark.parametrize(
    ("change", "told", "same"),
    [
        (of_eight_bits, "labelled bits 4, and the data has 8", True),
        (of_smaller_groups, "labelled group_size 32, and the data has 16", True),
        (
            lying("qzeros", lambda zeros: zeros ^ 0x11111111),
            "labelled symmetric, and zeros differ",
            False,
        ),
        (lying("g_idx", lambda index: index[::-1].copy()), "g_idx of 1 of 14 modules", False),
    ],
)
def test_a_single_module_that_lies_is_named(
    change: Callable[[Tensors], None],
    told: str,
    same: bool,
    gptq: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = changed(gptq("w4g32"), tmp_path / "m", tensors=change)
    (warning,) = open_checkpoint(folder).warnings
    assert told in warning
    assert f"1 of 14 modules ({MODULE})" in warning or f"(act-order) ({MODULE})" in warning
    ours, theirs = decoded(folder), decoded(gptq("w4g32"))
    assert {n for n in ours if (ours[n] != theirs[n]).any()} == (
        set() if same else {"layers.0.ffn.down.weight"}
    )


def test_a_single_module_in_plain_order_is_named(
    gptq: Callable[[str], Path], tmp_path: Path
) -> None:
    def but_one(tensors: Tensors) -> None:
        plain = tensors[f"{MODULE}.g_idx"]
        shuffled(tensors)
        tensors[f"{MODULE}.g_idx"] = plain

    def labelled(settings: dict[str, Any]) -> None:
        settings.update(desc_act=True)

    folder = changed(gptq("w4g32"), tmp_path / "m", tensors=but_one, settings=labelled)
    (warning,) = open_checkpoint(folder).warnings
    assert f"plain order in 1 of 14 modules ({MODULE})" in warning


def test_an_index_of_uneven_groups_is_named_and_one_that_points_nowhere_refused(
    gptq: Callable[[str], Path], tmp_path: Path
) -> None:
    def uneven(index: Any) -> Any:
        return np.where(index == 1, 0, index).astype(np.int32)

    def act_order(settings: dict[str, Any]) -> None:
        settings.update(desc_act=True, dynamic={"+:.*down.*": {"desc_act": False}})

    folder = changed(
        gptq("w4g32"), tmp_path / "m", tensors=lying("g_idx", uneven), settings=act_order
    )
    (warning,) = open_checkpoint(folder).warnings
    assert "other numbers of columns in 1 of 14 modules" in warning
    for number, wrong in enumerate((-1, 1000)):
        beyond = lying("g_idx", partial(np.full_like, fill_value=wrong))
        folder = changed(gptq("w4g32"), tmp_path / str(number), tensors=beyond)
        with pytest.raises(InvalidInput, match=rf"{MODULE}.g_idx names groups from"):
            open_checkpoint(folder)


@pytest.mark.parametrize("key", ["dynamic", "extra_config"])
def test_what_modules_may_have_of_their_own_is_no_lie(
    key: str, gptq: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = changed(
        gptq("w4g32"), tmp_path / "m", tensors=of_eight_bits,
        settings=lambda own: {**own, key: {MODULE: {"bits": 8}}},
    )  # fmt: skip
    assert open_checkpoint(folder).warnings == ()


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


@pytest.mark.parametrize("label", [False, None])
def test_an_order_that_the_settings_deny_is_the_data_s(
    label: bool | None, gptq: Callable[[str], Path], tmp_path: Path
) -> None:
    def labelled(value: bool | None) -> Path:
        return changed(
            gptq("w4g32-asym"), tmp_path / str(value), tensors=shuffled,
            settings=lambda own: {**own, "desc_act": value},
        )  # fmt: skip

    right, wrong = labelled(True), labelled(label)
    assert not open_checkpoint(right).warnings
    with pytest.warns(InputWarning, match=r"desc_act is .*14 of 14 modules"):
        assert grids_of(wrong) == grids_of(right)
    for target in ("hf:f32", "gptq"):
        convert(right, tmp_path / f"{target}-right", target)
        convert(wrong, tmp_path / f"{target}-wrong", target)
        assert_same(tmp_path / f"{target}-right", tmp_path / f"{target}-wrong")
    for folder in (right, wrong):
        with pytest.raises(PlanError, match="second time"):
            plan(folder, "awq:w4g32")


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
            UnexpectedTensor,
            "no tensor named",
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
        ({"quant_method": "awq"}, InvalidInput, "quant_method should be gptq"),
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


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "GPTQ"},
        {"checkpoint_format": "GPTQ"},
        {"pack_dtype": "torch.int32"},
        {"dynamic": {"-:.*nothing.*": False}},
    ],
)
def test_other_spellings_are_understood(
    settings: dict[str, Any], gptq: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = changed(gptq("w4g128"), tmp_path / "m", settings=lambda s: {**s, **settings})
    assert open_checkpoint(folder).warnings == ()
    assert_same(folder, gptq("w4g128"))


def test_settings_without_a_quantized_weight_are_invalid(
    floats: Callable[[str], Path], gptq: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = changed(gptq("w4g128"), tmp_path / "m")
    (folder / "model.safetensors").write_bytes(
        (floats("llama3") / "model.safetensors").read_bytes()
    )
    with pytest.raises(InvalidInput, match="no weight is quantized"):
        open_checkpoint(folder)
