"""diffusers decodes the blocks of our GGUF files, by functions of its own, to what we decode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.oracles.tool import Tool
from zenconvert import convert
from zenconvert.formats.gguf import container

pytestmark = pytest.mark.oracles

TYPES = (
    "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k",
    "iq4_nl", "iq4_xs",
)  # fmt: skip


@pytest.mark.parametrize(
    ("source", "file_type"),
    [*(("llama3", t) for t in TYPES), ("mixtral", "iq4_xs"), ("builtin:zen-nano", "iq4_xs")],
)
def test_it_decodes_our_blocks_as_we_do(
    source: str,
    file_type: str,
    gguf: Callable[[str, str], Path],
    diffusers: Tool,
    tmp_path: Path,
) -> None:
    """Theirs is an f32 file of ours, whose tensors are plain numbers under the same names."""
    diffusers("weights", file=gguf(source, file_type), out=tmp_path / "theirs.npz")
    theirs = np.load(tmp_path / "theirs.npz")
    convert(gguf(source, file_type), tmp_path / "decoded.gguf", "gguf:f32")
    decoded = container.read(tmp_path / "decoded.gguf")
    data = decoded.path.read_bytes()
    assert set(theirs.files) == set(decoded.tensors)
    for name, tensor in decoded.tensors.items():
        values = np.frombuffer(data, "<f4", tensor.nbytes // 4, tensor.offset)
        found = theirs[name].ravel()
        # they multiply scales in float16 here and there
        np.testing.assert_allclose(found, values, rtol=1e-6, atol=1e-7, err_msg=name)
