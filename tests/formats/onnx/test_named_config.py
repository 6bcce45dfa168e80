"""Graphs of other exporters whose files do not say what the model is, with a config that does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.formats.onnx.test_reader import built, exported
from tests.formats.onnx.test_repacking import assert_same_numbers
from tests.onnx_runs import with_tokenizer
from tests.tiny import CONFIGS, raw_model
from zenconvert import convert, diff, inspect, open_checkpoint, plan
from zenconvert.cli import cli
from zenconvert.errors import CorruptFile, InvalidInput, SourceNotFound, Unsupported, UsageError
from zenconvert.solve.calibration_texts import Calibrating
from zenconvert.verification.report import Report


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rotations no file of onnxruntime-genai tells."""
    scaling = {**CONFIGS["llama3"]["rope_scaling"], "original_max_position_embeddings": 64}
    folder = tmp_path_factory.mktemp("source") / "model"
    return with_tokenizer(folder, "llama3", max_position_embeddings=512, rope_scaling=scaling)


@pytest.fixture(scope="module")
def graph(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What onnxruntime-genai's builder makes of it: no config.json."""
    return built(source, tmp_path_factory.mktemp("graph") / "out", "fp32")


def run(*words: str | Path) -> str:
    done = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_file_of_genai_is_opened_with_the_config(
    source: Path, graph: Path, tmp_path: Path
) -> None:
    config = source / "config.json"
    with pytest.raises(Unsupported, match=r"scaled in a way of their own; .*--config"):
        open_checkpoint(graph)
    checkpoint = open_checkpoint(graph, config)
    assert checkpoint.named_config == config
    assert checkpoint.config["rope_scaling"]["rope_type"] == "llama3"
    assert inspect(graph, config).hyperparameters == inspect(source).hyperparameters
    assert plan(graph, "hf:bf16", config=config).steps
    convert(graph, tmp_path / "hf", "hf:f32", config=str(config))
    assert_same_numbers(source, tmp_path / "hf")
    found = diff(source, graph, config=config)
    assert all(t.equal for t in found.tensors)
    assert not found.config


def test_a_file_of_torch_is_opened_with_the_config(tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "source", "qwen2", tie_word_embeddings=True, num_hidden_layers=1)
    out = exported(folder, tmp_path / "out", dynamo=True)
    (out / "config.json").unlink()
    with pytest.raises(InvalidInput, match=r"neither config\.json nor .*--config"):
        open_checkpoint(out)
    convert(out, tmp_path / "hf", "hf:f32", config=folder / "config.json")
    assert_same_numbers(folder, tmp_path / "hf")
    one_more = {**CONFIGS["qwen2"], "tie_word_embeddings": True, "num_hidden_layers": 2}
    (tmp_path / "other.json").write_text(json.dumps(one_more))
    with pytest.raises(InvalidInput, match=r"model\.layers\.1"):
        open_checkpoint(out, tmp_path / "other.json")


def test_the_commands_take_the_config(source: Path, graph: Path, tmp_path: Path) -> None:
    """The engine runs in a process of its own, and the gate opens the candidate again."""
    config, report = source / "config.json", tmp_path / "report.json"
    assert "llama" in run("inspect", graph, "--config", config)
    assert "every step is exact" in run("plan", graph, "--to", "hf:f32", "--config", config)
    run("convert", graph, tmp_path / "hf", "--to", "hf:f32", "--config", config)
    assert_same_numbers(source, tmp_path / "hf")
    (tmp_path / "text.txt").write_text("One text, not long. Noch ein Satz.", encoding="utf-8")
    run(
        "verify", source, graph, "--config", config, "--engine", "onnxruntime",
        "--text", tmp_path / "text.txt", "--json", report,
    )  # fmt: skip
    measured = Report.from_json(report)
    assert [r.engine for r in measured.runs] == ["onnxruntime"]
    assert measured.overall.kl_mean < 1e-6
    policy = tmp_path / "policy.toml"
    policy.write_text(
        '[tier.all]\nbits = [1, 32]\n[tier.all.overall]\n"kl.mean" = { at_most = 1 }\n'
    )
    done = CliRunner().invoke(cli, ["gate", str(report), "--policy", str(policy)])
    assert isinstance(done.exception, Unsupported)
    done = CliRunner().invoke(
        cli, ["gate", str(report), "--policy", str(policy), "--config", str(config)]
    )
    assert "scaled in a way" not in done.output + str(done.exception)
    assert "by policy" in done.output


def test_statistics_are_gathered_with_the_config(source: Path, graph: Path, tmp_path: Path) -> None:
    learnt = Calibrating(languages=["en"], tokens_per_language=200, context=64)
    config = source / "config.json"
    for name, given, named in (("own", source, None), ("named", graph, config)):
        out = tmp_path / f"{name}.gguf"
        convert(given, out, "gguf:q4_k_s", calibrating=learnt, config=named)
    assert_same_numbers(tmp_path / "own.gguf", tmp_path / "named.gguf")


def test_formats_with_their_own_config_refuse_another(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "model.gguf", "gguf:f16")
    convert(source, tmp_path / "gptq", "gptq")
    for path in (source, tmp_path / "model.gguf", tmp_path / "gptq"):
        with pytest.raises(UsageError, match="have their own config; leave out --config"):
            open_checkpoint(path, source / "config.json")


def test_a_config_that_is_none_is_refused(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="cannot be read"):
        open_checkpoint(graph, tmp_path / "absent.json")
    (tmp_path / "text.json").write_text("text")
    with pytest.raises(CorruptFile, match="no valid JSON"):
        open_checkpoint(graph, tmp_path / "text.json")
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"empty\.json: model_type"):
        open_checkpoint(graph, tmp_path / "empty.json")
