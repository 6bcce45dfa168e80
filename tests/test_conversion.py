"""What convert promises beside equal bytes: refusals, determinism, overrides, real memory use."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert import Options, convert, open_checkpoint, plan
from zenconvert.errors import InvalidInput, PlanError, UsageError
from zenconvert.formats.gguf import container

Gguf = Callable[[str, str], Path]


def qwen2(folder: Path, **changes: object) -> Path:
    """A tiny Qwen2 model in float32 with the bundled tokenizer."""
    folder.mkdir()
    vocab = MAKERS["qwen2"](folder)
    return raw_model(folder, "qwen2", dtype="f32", vocab_size=vocab, **changes)  # type: ignore[arg-type]


def change_weight(folder: Path, name: str, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].flat[-1] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("target", ["gguf:f16", "hf:f16"])
def test_a_weight_beyond_float16_is_an_error_and_nothing_is_left(
    target: str, tmp_path: Path
) -> None:
    source = qwen2(tmp_path / "m")
    change_weight(source, NAME, 1e5)
    with pytest.raises(InvalidInput, match=rf"{NAME}.*100000.*f16"):
        convert(source, tmp_path / "out", target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    convert(source, tmp_path / "out.gguf", "gguf:bf16")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_quantized(value: float, tmp_path: Path) -> None:
    source = qwen2(tmp_path / "m")
    change_weight(source, NAME, value)
    with pytest.raises(InvalidInput, match=NAME):
        convert(source, tmp_path / "out.gguf", "gguf:q4_k_m")
    assert not (tmp_path / "out.gguf").exists()
    convert(source, tmp_path / "out.gguf", "gguf:f32")  # a copy keeps what was there


def test_the_number_of_threads_does_not_change_the_bytes(gguf: Gguf, tmp_path: Path) -> None:
    expected = gguf("builtin:zen-nano", "q4_k_m").read_bytes()
    for threads in (1, 3, 8):
        convert("builtin:zen-nano", tmp_path / f"{threads}", "gguf:q4_k_m", threads=threads)
        assert (tmp_path / f"{threads}").read_bytes() == expected


def test_overrides_choose_single_types(tmp_path: Path) -> None:
    options = Options(
        tensor_types=((r"blk\.0\..*down", "q8_0"), ("down", "q6_k"), ("attn_q", "f16")),
        output_type="q8_0",
        embedding_type="q3_k",
    )
    convert("builtin:zen-nano", tmp_path / "a.gguf", "gguf:q4_k_s", options=options)
    types = {
        t.name: t.type.name if t.type is not None else ""
        for t in container.read(tmp_path / "a.gguf").tensors.values()
    }
    assert types["blk.0.ffn_down.weight"] == "q8_0"
    assert types["blk.1.ffn_down.weight"] == "q6_k"
    assert types["blk.2.attn_q.weight"] == "f16"
    assert types["blk.2.attn_k.weight"] == "q4_k"
    assert (types["output.weight"], types["token_embd.weight"]) == ("q8_0", "q3_k")
    assert types["blk.2.attn_norm.weight"] == "f32"


def test_overrides_hold_for_hf_too(tmp_path: Path) -> None:
    options = Options(tensor_types=(("mlp", "f32"),), output_type="f16")
    convert("builtin:zen-nano", tmp_path / "hf", "hf:bf16", options=options)
    tensors = open_checkpoint(tmp_path / "hf").tensors
    assert str(tensors["layers.0.ffn.up.weight"].encoding) == "f32"
    assert str(tensors["head.weight"].encoding) == "f16"
    assert str(tensors["layers.0.attn.q.weight"].encoding) == "bf16"


@pytest.mark.parametrize(
    "options",
    [
        Options(tensor_types=(("down", "q9_k"),)),
        Options(output_type="nonsense"),
        Options(embedding_type="iq2_xxs"),
    ],
)
def test_types_that_cannot_be_written_are_refused(options: Options) -> None:
    with pytest.raises((UsageError, PlanError)):
        plan("builtin:zen-nano", "gguf:q4_k_m", options=options)


@pytest.mark.parametrize("target", ["gguf:q4_k_m", "hf:bf16", "gptq", "awq", "onnx:int4"])
@pytest.mark.parametrize("pattern", ["ffn_donw|mlp.donw", r"blk\.99\.|layers\.99\."])
def test_patterns_that_pick_no_tensor_are_told(target: str, pattern: str) -> None:
    kind = {"gguf:q4_k_m": "q8_0", "hf:bf16": "f32", "onnx:int4": "int8"}.get(target, "f16")
    options = Options(tensor_types=(("down", kind), (pattern, kind)))
    with pytest.raises(UsageError, match="no tensor of the output has a name") as caught:
        plan("builtin:zen-nano", target, options=options)
    assert f"--tensor-type {pattern}={kind}" in str(caught.value)
    known = "blk." if target.startswith("gguf") else "model.layers."
    assert known in str(caught.value)


def test_a_pattern_behind_a_wider_one_is_none_of_those() -> None:
    options = Options(tensor_types=(("ffn", "q8_0"), ("ffn_down", "q6_k")))
    assert plan("builtin:zen-nano", "gguf:q4_k_m", options=options).steps
    norms = Options(tensor_types=(("_norm", "q8_0"),))
    with pytest.raises(UsageError, match="it matches vectors alone"):
        plan("builtin:zen-nano", "gguf:q4_k_m", options=norms)


def test_gguf_options_are_refused_for_hf() -> None:
    with pytest.raises(UsageError, match="--pure"):
        plan("builtin:zen-nano", "hf:bf16", options=Options(pure=True))


def test_exact_names_every_lossy_step(gguf: Gguf) -> None:
    with pytest.raises(PlanError) as caught:
        plan("builtin:zen-nano", "gguf:q8_0", exact=True)
    (problem,) = caught.value.problems
    assert problem.startswith("51 tensors, the first are ")  # every matrix and none of the others
    assert plan("builtin:zen-nano", "gguf:f32", exact=True).exact
    assert plan(gguf("builtin:zen-nano", "q8_0"), "hf:f32", exact=True).exact


def test_requantizing_has_to_be_allowed(gguf: Gguf, tmp_path: Path) -> None:
    source = gguf("builtin:zen-nano", "q8_0")
    with pytest.raises(PlanError, match="--allow-requantize"):
        convert(source, tmp_path / "a.gguf", "gguf:q4_0")
    convert(source, tmp_path / "a.gguf", "gguf:q4_0", allow_requantize=True)
    assert convert(source, tmp_path / "b.gguf", "gguf:q8_0").plan.exact  # a copy of every tensor
    assert (tmp_path / "b.gguf").read_bytes() == source.read_bytes()


def test_plans_are_honest_about_sizes(tmp_path: Path) -> None:
    for number, target in enumerate(("gguf:q4_k_m", "gguf:f16", "hf:f32")):
        planned = plan("builtin:zen-nano", target, out="x")
        out = tmp_path / str(number) / "x"
        out.parent.mkdir()
        done = convert("builtin:zen-nano", out, target)
        files = [out] if out.is_file() else list(out.iterdir())
        assert sum(f.stat().st_size for f in files) == planned.output_bytes
        assert done.plan.as_dict() == planned.as_dict()


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """A conversion of 330 MB needs far less, and less than the plan says."""
    source = qwen2(
        tmp_path / "m", hidden_size=1024, intermediate_size=4096, num_hidden_layers=4,
        num_attention_heads=16,
    )  # fmt: skip
    out = tmp_path / "out.gguf"
    code = (
        "import sys, zenconvert\n"
        "zenconvert.convert(sys.argv[1], sys.argv[2], 'gguf:q4_k_m', threads=2)\n"
        "print(next(r for r in open('/proc/self/status') if r.startswith('VmHWM')).split()[1])"
    )
    command = [sys.executable, "-c", code, str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = int(done.stdout) * 1024
    size = sum(f.stat().st_size for f in source.iterdir())
    assert size > 250_000_000
    assert peak < size
    assert peak < plan(source, "gguf:q4_k_m", threads=2).peak_ram_bytes


def test_importing_the_package_loads_no_framework() -> None:
    code = "import sys, zenconvert.cli; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "zenconvert.cli" in found.stdout.split()
    assert not {"torch", "transformers"} & set(found.stdout.split())
