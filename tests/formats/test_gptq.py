"""GPTQ folders: the layout byte by byte, and what every tool makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.packed_folders import assert_same, grids_of, settings_of
from tests.test_grouped import some_rows
from zenconvert import Options, convert, open_checkpoint, plan
from zenconvert.errors import (
    InvalidInput,
    PlanError,
    UsageError,
    ZenError,
)
from zenconvert.formats import int_packing
from zenconvert.formats.gptq.codec import GptqCodec, ZeroRule
from zenconvert.model.encoding import Grouped
from zenconvert.model.grouped import GroupedRows

Folders = Callable[..., Path]
MODULE = "model.layers.0.mlp.down_proj"


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
