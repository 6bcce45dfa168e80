"""What a plan tells people though nothing of it is a loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.formats.onnx.test_repacking import in_act_order
from zenconvert import convert, plan
from zenconvert.cli import cli

Model = Callable[[str], Path]
NOTE = "note: desc_act True: AutoGPTQ, GPTQModel and transformers run act-order; vLLM and mlx-lm"


@pytest.mark.parametrize(("target", "is_told"), [("w4g64-actorder", True), ("w4g64", False)])
def test_who_refuses_act_order(target: str, is_told: bool, model: Model) -> None:
    done = CliRunner().invoke(cli, ["plan", str(model("qwen2")), "--to", f"gptq:{target}"])
    assert done.exit_code == 0
    assert (NOTE in done.output) == is_told


def test_an_order_that_the_source_has_is_told_too(model: Model, tmp_path: Path) -> None:
    convert(model("qwen2"), tmp_path / "source", "gptq:w4g64")
    in_act_order(tmp_path / "source")
    planned = plan(tmp_path / "source", "gptq", exact=True)
    assert planned.exact
    assert [f.name for f in planned.facts if f.told] == ["desc_act"]
