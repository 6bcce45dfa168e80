"""Encoders on devices give the bytes of the host: in Triton's interpreter, and on a GPU if any."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.formats.gguf.interpreted_encoders import EVERY, INTERPRETED
from zenconvert.errors import InvalidInput
from zenconvert.ggml import blocks, devices
from zenconvert.ggml.encoding import encoding_named

CHECKS = Path(__file__).with_name("interpreted_encoders.py")


def run(count: int, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS)]
    env = os.environ | environment
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} passed" in done.stdout


def test_interpreted_kernels() -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")
    run(len(INTERPRETED), TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_compiled_kernels() -> None:
    run(len(EVERY))


def test_rows_that_no_block_holds_are_refused_as_on_the_host() -> None:
    rows = torch.zeros(2, 256)
    rows[1, 7] = torch.inf
    with pytest.raises(InvalidInput, match=r"weight \[1, 7\] is inf"):
        devices.encode("q4_k", rows)
    with pytest.raises(InvalidInput, match="48 columns are not a multiple of q8_0's 32"):
        devices.encode("q8_0", torch.zeros(2, 48))
    large = torch.full((1, 32), 1e9)
    with pytest.raises(InvalidInput, match="overflow the float16 scales"):
        devices.encode("q4_0", large)
    with pytest.raises(InvalidInput, match="finite and not negative"):
        devices.encode("q4_0", torch.ones(1, 32), torch.full((32,), -1.0))


def test_what_is_encoded_where() -> None:
    for name in blocks._ENCODERS:
        encoding = encoding_named(name)
        assert not encoding.encodes_on("cpu")
        assert encoding.encodes_on("cuda") is devices.can_encode(name)
