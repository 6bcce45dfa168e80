"""Every format into every other: what docs/support.md says, asserted on written files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.exactness import (
    AGAIN,
    EXACT,
    GRIDS,
    ONLY_READ,
    QUANTIZED,
    REFUSED,
    ROUNDED,
    SOURCES,
    TARGETS,
    kind,
)
from tests.ct_folders import INT, make_ct
from tests.fp8_folders import make_fp8
from tests.onnx_runs import with_tokenizer
from zenconvert import Options, convert, open_checkpoint
from zenconvert.errors import PlanError
from zenconvert.planning.recoding import logical_rows

Source = Callable[[str, str], Path]
MAKERS: dict[str, Callable[[Path, Path], object]] = {
    "FP8": make_fp8,
    "compressed-tensors, bytes": partial(
        make_ct, format_name=INT, scale=torch.float16, num_bits=8, type="int", strategy="channel",
    ),
}  # fmt: skip
"""What other tools write, by torch or their own library."""
ONE_EACH = ("HF", "GGUF Q4_0", "GPTQ", "AWQ", "compressed-tensors", "ONNX")
"""One grid of every format."""
CASES = [("llama3", source, target) for source in SOURCES for target in TARGETS]
CASES += [
    (f, source, target) for f in ("qwen2", "mixtral") for source in ONE_EACH for target in ONE_EACH
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """(family, grid) → a file on that grid."""
    home, made = tmp_path_factory.mktemp("matrix"), dict[tuple[str, str], Path]()

    def get(family: str, grid: str) -> Path:
        if (family, "HF") not in made:
            made[family, "HF"] = with_tokenizer(home / family, family)
        if (family, grid) not in made:
            out = home / f"{family}-{len(made)}"
            out = out.with_suffix(".gguf") if grid.startswith("GGUF") else out
            if grid in ONLY_READ:
                MAKERS[grid](made[family, "HF"], out)
            else:
                write(made[family, "HF"], out, GRIDS[grid][0])
            made[family, grid] = out
        return made[family, grid]

    return get


def write(source: Path, out: Path, target: str, **given: bool) -> dict[str, bool]:
    """Convert; neutral names of linear weights → whether the plan calls them exact."""
    options = Options(pure=target.startswith("gguf"))
    done = convert(source, out, target, options=options, **given)  # type: ignore[arg-type]
    exact = {s.target: s.exact for s in done.plan.steps}
    return {
        part.name: exact[choice.name]
        for choice in done.plan.choices
        for part in choice.parts
        if ".attn." in part.name or ".ffn." in part.name or ".moe." in part.name
        if "router" not in part.name and part.name.endswith(".weight")
    }


def linear(path: Path, names: set[str]) -> dict[str, np.ndarray]:
    """Decoded weights."""
    tensors = open_checkpoint(path).tensors
    return {name: logical_rows(tensors[name], 0, tensors[name].rows) for name in names}


@pytest.mark.parametrize(("family", "grid", "target"), CASES)
def test_what_the_table_says_is_so_in_the_file(
    family: str, grid: str, target: str, source: Source, tmp_path: Path
) -> None:
    before, out = source(family, grid), tmp_path / "out"
    expected = kind(grid, target)
    if expected in {AGAIN, REFUSED}:
        reason = "quantizes a second time" if expected == AGAIN else "cannot be stored"
        with pytest.raises(PlanError, match=reason):
            write(before, out, TARGETS[target])
        return
    planned = write(before, out, TARGETS[target])
    assert planned
    assert set(planned.values()) == {expected == EXACT}
    ours, theirs = (linear(path, set(planned)) for path in (before, out))
    for name, values in ours.items():
        same = np.array_equal(values, theirs[name])
        if expected == ROUNDED:  # at most: it may happen to be exact
            np.testing.assert_allclose(theirs[name], values, atol=1e-3 * np.abs(values).max())
            continue
        assert same == (expected == EXACT), name
        if expected == QUANTIZED:
            error = np.linalg.norm(theirs[name] - values) / np.linalg.norm(values)
            assert error < (0.2 if "Q8_0" not in target else 0.01), name


def test_every_pair_of_formats_is_in_the_table() -> None:
    formats = {GRIDS[name][0].partition(":")[0] for name in GRIDS}
    assert formats == {TARGETS[name].partition(":")[0] for name in TARGETS}
    assert formats == {"hf", "gguf", "gptq", "awq", "ct", "onnx"}
    exact = [(s, t) for s in ONE_EACH for t in ONE_EACH if kind(s, t) == EXACT]
    assert len(exact) >= 19
