"""The onnxruntime engine: logits with a cache, errors told apart, wrong kernels refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.families import FAMILIES
from tests.fuzz.models import tokenizer_json
from tests.onnx_runs import SPECIAL, tokens, transformers_logits, variant, with_tokenizer
from tests.tiny import raw_model
from zenconvert import convert, open_checkpoint
from zenconvert.errors import InvalidInput, Unsupported, UsageError
from zenconvert.texts.windows import Window
from zenconvert.verification.engines import onnxruntime_probe
from zenconvert.verification.engines.onnxruntime_engine import CHUNK, OnnxruntimeEngine
from zenconvert.verification.engines.onnxruntime_errors import errors_apart
from zenconvert.verification.engines.onnxruntime_experts import ExpertLayer
from zenconvert.verification.engines.onnxruntime_probe import Kind


def windows(*lengths: int) -> list[Window]:
    ids = tokens(1, max(lengths))[0]
    return [Window(str(i), "und", tuple(ids[:n].tolist())) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("kind", ["f32", "f32-standard"])
def test_logits_are_those_of_transformers_in_any_order(kind: str, tmp_path: Path) -> None:
    """Longer than a chunk and than the sliding window, and asked for in pieces."""
    source = variant(tmp_path / "source", "mistral")
    convert(source, tmp_path / "out", f"onnx:{kind}")
    length = CHUNK + 40
    spans = windows(length, 7)
    engine = OnnxruntimeEngine(open_checkpoint(tmp_path / "out"), spans, threads=1)
    expected = transformers_logits(source, np.array([spans[0].ids]))[0]
    for begin, end in ((0, 50), (50, length), (CHUNK - 3, CHUNK + 3), (2, 3)):
        found = engine.logits(0, begin, end)
        np.testing.assert_allclose(found.numpy(), expected[begin:end], atol=5e-5, rtol=0)
    short = engine.logits(1, 0, 7).numpy()
    np.testing.assert_allclose(short, expected[:7], atol=5e-5, rtol=0)
    engine.close()


def test_caches_of_layers_of_several_kinds_are_begun(tmp_path: Path) -> None:
    source, spans = variant(tmp_path / "source", "gemma 4 e2b"), windows(40)
    convert(source, tmp_path / "out", "onnx:f32")
    engine = OnnxruntimeEngine(open_checkpoint(tmp_path / "out"), spans, threads=1)
    expected = transformers_logits(source, np.array([spans[0].ids]))[0]
    np.testing.assert_allclose(engine.logits(0, 0, 40).numpy(), expected, atol=5e-5, rtol=0)


def test_long_texts_are_rotated_alike_from_their_beginning(tmp_path: Path) -> None:
    """Past the original context, where a chunk by itself would be rotated as a short text."""
    source = raw_model(tmp_path / "source", FAMILIES["phi_longrope"].config, **SPECIAL)
    spans = windows(300, 257, 256)
    convert(source, tmp_path / "out", "onnx:f32")
    engine = OnnxruntimeEngine(open_checkpoint(tmp_path / "out"), spans, threads=1)
    for number, span in enumerate(spans):
        expected = transformers_logits(source, np.array([span.ids]))[0]
        found = engine.logits(number, 0, len(span.ids)).numpy()
        np.testing.assert_allclose(found, expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", ["qwen2", "llama 3", "mixtral"])
def test_errors_are_told_apart(name: str, tmp_path: Path) -> None:
    source = variant(tmp_path / "source", name)
    ids = tokens(1, 40)[0].tolist()
    reference = open_checkpoint(source)
    convert(source, tmp_path / "f32", "onnx:f32")
    exact = errors_apart(reference, open_checkpoint(tmp_path / "f32"), ids, threads=1)
    assert exact.weights is not None
    assert exact.weights.largest == 0
    assert exact.graph.largest < 5e-5
    assert exact.kernels.largest == 0
    convert(source, tmp_path / "int4", "onnx:int4")
    found = errors_apart(reference, open_checkpoint(tmp_path / "int4"), ids, threads=1)
    assert found.weights is not None
    assert found.weights.kl > 1e-3
    assert found.graph.largest < 5e-5
    assert found.kernels.largest > 1e-3
    assert found.kernels.kl < found.weights.kl


def test_details_say_which_part_is_which(tmp_path: Path) -> None:
    convert("builtin:zen-nano", tmp_path / "out", "onnx:int4")
    engine = OnnxruntimeEngine(open_checkpoint(tmp_path / "out"), windows(30), threads=2)
    details = engine.details()
    assert details["version"].startswith("onnxruntime ")
    assert "level 0" in details["graph_error"]
    assert "shipped" in details["kernel_error"]


def test_text_goes_in_and_tokens_come_out(tmp_path: Path) -> None:
    source = with_tokenizer(tmp_path / "source", "llama3")
    convert(source, tmp_path / "out", "onnx:f32")
    checkpoint = open_checkpoint(tmp_path / "out")
    engine = OnnxruntimeEngine(checkpoint, windows(12), threads=1)
    from zenconvert.formats.hf.tokenizer import TextEncoder

    ids = engine.encode("Xin chào, мир")
    assert ids == TextEncoder(checkpoint.tokenizer).encode("Xin chào, мир")
    before = engine.logits(0, 0, 12).numpy()
    found = engine.generate(ids, 3)
    logits = transformers_logits(source, np.array([ids + found]))[0]
    assert found == logits[len(ids) - 1 : -1].argmax(-1).tolist()
    np.testing.assert_array_equal(engine.logits(0, 0, 12).numpy(), before)


def test_other_formats_and_bare_folders_are_refused(tmp_path: Path) -> None:
    source = variant(tmp_path / "source", "qwen2")
    with pytest.raises(UsageError, match="runs ONNX files"):
        OnnxruntimeEngine(open_checkpoint(source), windows(4), threads=1)
    convert(source, tmp_path / "out", "onnx:f32")
    engine = OnnxruntimeEngine(open_checkpoint(tmp_path / "out"), windows(4), threads=1)
    with pytest.raises(InvalidInput, match=r"no tokenizer\.json"):
        engine.encode("text")


def test_a_file_that_does_not_load_is_our_error(tmp_path: Path) -> None:
    convert(variant(tmp_path / "source", "qwen2"), tmp_path / "out", "onnx:f32")
    checkpoint = open_checkpoint(tmp_path / "out")
    model = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False)
    model.graph.node[-1].op_type = "Nonsense"
    (tmp_path / "out" / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidInput, match="onnxruntime cannot load it"):
        OnnxruntimeEngine(checkpoint, windows(4), threads=1)


def test_what_we_write_is_computed_rightly(tmp_path: Path) -> None:
    source = variant(tmp_path / "source", "qwen2")
    for kind in ("int4", "int4-asym-g64", "int8", "int2", "int4-standard", "int2-asym-standard"):
        convert(source, tmp_path / kind, f"onnx:{kind}")
        assert onnxruntime_probe.probe(tmp_path / kind / "model.onnx") == []


PLAIN = Kind("MatMulNBits", 4, 32, zeros=True, index=False, level=0, remainder=0)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("block", [16, 32, 128, 512])
def test_experts_of_four_bits_are_computed_as_they_are_defined(block: int, zeros: bool) -> None:
    """The ground on which graphs have QMoE: exact at level 0, and so good at level 4."""
    layer = ExpertLayer.made_up(4, block, zeros=zeros)
    expected = layer.defined()
    size = np.linalg.norm(expected)
    assert np.linalg.norm(layer.computed(0) - expected) < 2e-6 * size
    assert np.linalg.norm(layer.computed(4) - expected) < 3e-2 * size


def test_the_probe_looks_at_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = variant(tmp_path / "source", "mixtral")
    for kind in ("int4", "int4-asym-g64-f16"):
        convert(source, tmp_path / kind, f"onnx:{kind}")
        assert onnxruntime_probe.probe(tmp_path / kind / "model.onnx") == []
    right = ExpertLayer.defined
    monkeypatch.setattr(ExpertLayer, "defined", lambda layer: right(layer) * np.float32(1.25))
    (found,) = onnxruntime_probe.probe(tmp_path / "int4" / "model.onnx")
    assert found == "QMoE of 4 bits in blocks of 32: off by 20 %"


def test_wrong_kernels_are_found_and_their_numbers_refused(tmp_path: Path) -> None:
    """onnxruntime's CPU kernels ignore zero points beside g_idx."""
    source = variant(tmp_path / "source", "qwen2")
    convert(source, tmp_path / "out", "onnx:int4-asym")
    model = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False)
    node = next(n for n in model.graph.node if n.op_type == "MatMulNBits")
    index = np.repeat(np.arange(8, dtype=np.int32), 32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(index, "g_idx"))
    node.input.append("g_idx")
    (tmp_path / "out" / "model.onnx").write_bytes(model.SerializeToString())
    checkpoint = open_checkpoint(tmp_path / "out")
    with pytest.raises(Unsupported, match=r"computes it wrongly: .*with zero points with g_idx"):
        OnnxruntimeEngine(checkpoint, windows(4), threads=1)


def test_the_probe_knows_right_from_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert onnxruntime_probe.check(PLAIN) is None
    assert onnxruntime_probe.check(replace(PLAIN, level=4)) is None
    right, index = onnxruntime_probe.made_up(PLAIN)
    wrong = replace(right, scales=right.scales * np.float32(1.2))
    run = onnxruntime_probe.run
    monkeypatch.setattr(
        onnxruntime_probe, "run", lambda kind, rows, order, x: run(kind, wrong, index, x)
    )
    assert onnxruntime_probe.check(PLAIN) == "off by 20 %"


def test_the_tokenizer_beside_a_graph_is_loaded_where_panics_are_heard(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = open_checkpoint(variant(tmp_path / "source", "mistral"))
    path = tmp_path / "tokenizer.json"
    engine = object.__new__(OnnxruntimeEngine)
    engine.checkpoint = replace(source, side_files={"tokenizer.json": path})
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps({**tokenizer_json(), "truncation": cut}))
    assert len(engine.encode("a b c a b c")) > 4
    del engine.tokenizer
    broken = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    path.write_text(json.dumps({**tokenizer_json(), "normalizer": broken}))
    with pytest.raises(InvalidInput, match="the tokenizers library refuses it"):
        engine.encode("a")
    assert "panicked" not in capfd.readouterr().err
