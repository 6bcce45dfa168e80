"""GPTQModel (and transformers 5 through it) and zenconvert read each other's files alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.families import SHALLOW
from tests.oracles import ours
from tests.oracles.conftest import Family, Written, folder_of
from tests.oracles.tool import Tool
from zenconvert import Options, convert, open_checkpoint, plan

pytestmark = pytest.mark.oracles

WRITTEN = [
    ("builtin:zen-nano", "gptq:w4g128"),
    ("builtin:zen-nano", "awq:w4g128"),
    ("llama3", "gptq:w2g64"),
    ("llama3", "gptq:w3g128-asym"),
    ("llama3", "gptq:w4g32-asym"),
    ("llama3", "gptq:w4g128-v2"),
    ("llama3", "gptq:w8g-1"),
    ("llama3", "awq:w4g64"),
    ("mixtral", "gptq:w4g128-gptqmodel"),
    ("mixtral", "gptq:w4g32-asym-gptqmodel"),
    ("mixtral", "awq:w4g128-gptqmodel"),
]
APART = (
    "mixtral", "phi", "phi_longrope", "glm4", "gemma4_moe",
    "granitemoe", "granitemoeshared", "glm4_moe", "glm4_moe_lite", "ernie4_5_moe", "gpt_oss",
    "minimax_m2",
)  # fmt: skip
"""Its modules have other names in memory than in files (experts, joined rows), or it has none, or
does not compute with them what transformers does (docs/consumers.md)."""
CALLED = [
    *((n, "gptq", "gptqmodel") for n in SHALLOW if n not in APART),
    *((n, "awq", "gptqmodel") for n in ("qwen3", "qwen2_moe", "gemma2", "cohere", "starcoder2")),
    *((name, "gptq", "transformers") for name in ("qwen3", "phi", "gemma2", "glm4")),
    *((name, "awq", "transformers") for name in ("qwen3", "phi", "starcoder2")),
]


def assert_same_weights(folder: Path, tool: Tool, out: Path) -> None:
    """Every quantized module of a folder has the same weights for the tool and for us."""
    tool("weights", folder=folder, out=out)
    theirs = np.load(out)
    found = {ours.runtime_name(name): values for name, values in ours.weights(folder).items()}
    assert set(found) == set(theirs.files)
    for module, values in found.items():
        ours.assert_close(values, theirs[module], 2e-4)


@pytest.mark.parametrize(("source", "target"), WRITTEN)
def test_it_decodes_our_files_as_we_do(
    source: str, target: str, written: Written, gptqmodel: Tool, tmp_path: Path
) -> None:
    assert_same_weights(written(source, target), gptqmodel, tmp_path / "theirs.npz")


@pytest.mark.parametrize(
    ("source", "target", "loader"),
    [
        ("llama3", "gptq:w4g128", "transformers"),
        ("mixtral", "gptq:w4g128-gptqmodel", "gptqmodel"),
        ("mixtral", "awq:w4g128-gptqmodel", "gptqmodel"),
    ],
)
def test_it_runs_our_files(
    source: str, target: str, loader: str, written: Written, gptqmodel: Tool, tmp_path: Path
) -> None:
    """Its int4 kernels for the CPU compute in bfloat16, which may route a token elsewhere.

    Modules that it takes for something else are filled with noise, and most logits are wrong.
    """
    folder = written(source, target)
    out = tmp_path / "theirs.npy"
    gptqmodel("logits", folder=folder, ids=ours.IDS, out=out, loader=loader)
    found, theirs = ours.logits(folder), np.load(out)
    assert np.abs(found - theirs).mean() < 0.01 * np.abs(theirs).max()


def test_noise_for_experts_is_refused(written: Written, tmp_path: Path) -> None:
    """transformers 5 stacks experts, finds none of them quantized, and only warns.

    In a process of its own: once GPTQModel has loaded a Mixtral, transformers does not stack them.
    """
    fresh = Tool("gptqmodel", tmp_path / "log.txt")
    for target in ("gptq:w4g128-gptqmodel", "gptq:w4g128"):
        said = fresh("refusal", folder=written("mixtral", target))
        assert said.startswith("InvalidInput")
        assert "with noise" in said
    fresh.close()


def test_a_quantized_head_of_ours_is_read_with_its_own_settings(
    model: Family, gptqmodel: Tool, tmp_path: Path
) -> None:
    options = Options(output_type="w8g32")
    convert(folder_of("llama3", model), tmp_path / "head", "gptq:w4g128", options=options)
    assert "lm_head" in ours.weights(tmp_path / "head")
    assert_same_weights(tmp_path / "head", gptqmodel, tmp_path / "theirs.npz")


FOREIGN: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "v1": ("llama3", {"bits": 4, "group_size": 128}, {"w4g128"}),
    "v1 asym": ("llama3", {"bits": 4, "group_size": 32, "sym": False}, {"w4g32-asym"}),
    "v1 asym w2": ("llama3", {"bits": 2, "group_size": 32, "sym": False}, {"w2g32-asym"}),
    "v2 asym": (
        "llama3",
        {"bits": 3, "group_size": 32, "sym": False, "format": "gptq_v2"},
        {"w3g32-asym"},
    ),
    "act-order": (
        "llama3",
        {"bits": 4, "group_size": 32, "desc_act": True, "act_group_aware": False},
        {"w4g32-actorder"},
    ),
    "planar w3": ("llama3", {"bits": 3, "group_size": 32, "format": "gptq_p"}, {"w3g32"}),
    "planar w7": ("llama3", {"bits": 7, "group_size": 64, "sym": False}, {"w7g64-asym"}),
    "head": ("llama3", {"bits": 4, "group_size": 128, "lm_head": True}, {"w4g128", "w8g32"}),
    "awq": (
        "llama3",
        {"bits": 4, "group_size": 64, "method": "awq", "format": "gemm", "sym": False},
        {"w4g64-asym"},
    ),
    "mixtral": ("mixtral", {"bits": 4, "group_size": 128}, {"w4g128"}),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_we_read_its_files_as_it_does(
    name: str, model: Family, gptqmodel: Tool, tmp_path: Path
) -> None:
    family, settings, grids = FOREIGN[name]
    folder = tmp_path / "theirs"
    gptqmodel("write", source=model(family), out=folder, settings=settings)
    found = {str(t.encoding) for t in open_checkpoint(folder).tensors.values()}
    assert found - {"bf16", "f16", "f32"} == grids
    assert_same_weights(folder, gptqmodel, tmp_path / "theirs.npz")
    if not name.startswith("planar w7"):  # 7 bits have no place in the other layouts
        assert plan(folder, "awq" if name == "awq" else "gptq", exact=True).exact


@pytest.mark.parametrize(("name", "method", "loader"), CALLED)
def test_every_family_is_called_as_it_expects(
    name: str, method: str, loader: str, packed: Written, gptqmodel: Tool, tmp_path: Path
) -> None:
    """Codes where we write codes, the model's own modules for routers and norms, and the logits of
    what we decode."""
    folder, out = packed(name, f"{method}:w4g32"), tmp_path / "theirs.npy"
    found = gptqmodel("in_floats", folder=folder, ids=ours.IDS, out=out, loader=loader)
    assert set(found) == ours.modules(folder)
    ours.assert_close(ours.logits(folder), np.load(out), 1e-4)
