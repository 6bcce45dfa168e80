"""Conversions that solve with statistics: the same from a file and from a walk, killed or not."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert import Options, calibrate, convert, open_checkpoint, plan
from zenconvert.cli import cli
from zenconvert.errors import ConversionFailed, OutputExists, UsageError
from zenconvert.model.encoding import Dense, Grouped
from zenconvert.model.target import Solver
from zenconvert.planning.recoding import logical_rows
from zenconvert.solve.calibration_texts import Calibrating

SAMPLES: dict[str, Any] = {
    "languages": ["en", "ar"], "tokens_per_language": 400, "context": 64,
}  # fmt: skip
TARGETS = ("gptq:w4g32", "awq:w4g32")
KILLED = """
import json, os, signal, sys
import torch
from zenconvert import convert
import transformers.models.llama.modeling_llama
from zenconvert.solve.store import SolvedStore
from zenconvert.solve.calibration_texts import Calibrating
put, layers = SolvedStore.put, []
def dying(self, layer, solution):
    put(self, layer, solution)
    os.kill(os.getpid(), signal.SIGKILL)
SolvedStore.put = dying
torch.set_num_threads(1)
samples = {"languages": ["en", "ar"], "tokens_per_language": 400, "context": 64}
for out, target, times in json.loads(sys.argv[2]):
    for _ in range(times):
        child = os.fork()
        if child == 0:
            convert(sys.argv[1], out, target, calibrating=Calibrating(**samples))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert not os.path.exists(out)
"""


def model(folder: Path, family: str = "llama3", **changes: Any) -> Path:
    """A tiny model with a tokenizer."""
    folder.mkdir()
    vocab = MAKERS[family](folder)
    return raw_model(folder, family, vocab_size=vocab, **changes)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama."""
    return model(tmp_path_factory.mktemp("solving") / "model")


@pytest.fixture(scope="module")
def statistics(source: Path) -> Path:
    """Its statistics."""
    out = source.parent / "model.stats"
    calibrate(source, out, purposes=["gptq"], **SAMPLES)
    return out


@pytest.fixture(scope="module")
def killed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Target → an output that was to be, of runs that died after a layer; each in a process of its
    own, all of them copies of one that has loaded torch."""
    places = {}
    for target in (*TARGETS, "gptq:w3g64"):
        places[target] = tmp_path_factory.mktemp("killed") / "out"
    runs = [(str(out), target, 1 + (target in TARGETS)) for target, out in places.items()]
    command = [sys.executable, "-c", KILLED, str(source), json.dumps(runs)]
    subprocess.run(command, check=True)
    return places


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of a forward pass depend on how many threads share it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(path: Path) -> str:
    """The digest of a folder's weights."""
    return hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()


def left_in(folder: Path) -> set[str]:
    """What stands in a folder, hidden files too."""
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("target", TARGETS)
def test_a_walk_gives_what_a_file_of_statistics_gives(
    target: str, source: Path, statistics: Path, tmp_path: Path
) -> None:
    convert(source, tmp_path / "file", target, statistics=statistics)
    done = convert(source, tmp_path / "walk", target, calibrating=Calibrating(**SAMPLES))
    assert weights(tmp_path / "file") == weights(tmp_path / "walk")
    assert left_in(tmp_path) == {"file", "walk"}
    assert len(done.modules) == 14
    assert all(report.error <= report.rtn_error for report in done.modules.values())
    lossy = [step for step in done.plan.steps if not step.exact]
    assert {step.action for step in lossy} == {"quantize"}
    assert all("weighted relative error" in s.why for s in lossy if s.target in _linear(source))


def _linear(source: Path) -> set[str]:
    checkpoint = open_checkpoint(source)
    names = checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
    return {n.hf for n in names if n.module.role == "linear"}


@pytest.mark.parametrize("target", TARGETS)
def test_a_killed_run_goes_on(
    target: str, source: Path, statistics: Path, killed: dict[str, Path], tmp_path: Path
) -> None:
    convert(source, tmp_path / "whole", target, statistics=statistics)
    out = killed[target]
    assert left_in(out.parent) == {".out.solving"}
    convert(source, out, target, calibrating=Calibrating(**SAMPLES))
    assert weights(out) == weights(tmp_path / "whole")
    assert left_in(out.parent) == {"out"}


def test_what_was_solved_for_another_target_is_not_used(
    source: Path, statistics: Path, killed: dict[str, Path], tmp_path: Path
) -> None:
    out = killed["gptq:w3g64"]
    convert(source, out, "gptq:w4g32", statistics=statistics)
    convert(source, tmp_path / "fresh", "gptq:w4g32", statistics=statistics)
    assert weights(out) == weights(tmp_path / "fresh")


def test_solving_beats_rounding_on_the_outputs(
    source: Path, statistics: Path, tmp_path: Path
) -> None:
    done = convert(source, tmp_path / "out", "gptq:w3g64", statistics=statistics)
    ours = sum(report.error for report in done.modules.values())
    nearest = sum(report.rtn_error for report in done.modules.values())
    assert ours < 0.7 * nearest


def test_a_module_that_cannot_be_quantized_stays_in_floats(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    _spoil(folder, "model.layers.1.self_attn.o_proj.weight")
    done = convert(folder, tmp_path / "out", "gptq:w4g32", calibrating=Calibrating(**SAMPLES))
    kept = done.modules["layers.1.attn.o.weight"]
    assert kept.method == "keep"
    assert kept.notes
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    rules = config["quantization_config"]["dynamic"]
    assert list(rules) == [r"-:^model\.layers\.1\.self_attn\.o_proj$"]
    tensors = open_checkpoint(tmp_path / "out").tensors
    assert isinstance(tensors["layers.1.attn.o.weight"].encoding, Dense)
    assert isinstance(tensors["layers.0.attn.o.weight"].encoding, Grouped)
    with pytest.raises(ConversionFailed, match=r"layers\.1\.attn\.o"):
        convert(
            folder,
            tmp_path / "strict",
            "gptq:w4g32",
            calibrating=Calibrating(**SAMPLES),
            largest_error=0.5,
        )


def _spoil(folder: Path, name: str) -> None:
    """Give one weight a value that no float16 scale can reach."""
    tensor = next(t for t in open_checkpoint(folder).tensors.values() if t.stored.name == name)
    values = logical_rows(tensor, 0, tensor.rows).copy()
    values[0, 0] = 1e6
    assert isinstance(tensor.encoding, Dense)
    path, offset = tensor.stored.path, getattr(tensor.stored, "offset")  # noqa: B009
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(values.astype(tensor.encoding.numpy).tobytes())


def test_sequential_solving_sees_the_quantized_layers(source: Path, tmp_path: Path) -> None:
    plain, sequential = tmp_path / "plain", tmp_path / "sequential"
    convert(source, plain, "gptq:w3g64", calibrating=Calibrating(**SAMPLES))
    convert(source, sequential, "gptq:w3g64", calibrating=Calibrating(**SAMPLES, sequential=True))
    one, other = (open_checkpoint(path).tensors for path in (plain, sequential))
    first, second = "layers.0.attn.q.weight", "layers.1.attn.q.weight"
    assert np.array_equal(_values(one[first]), _values(other[first]))
    assert not np.array_equal(_values(one[second]), _values(other[second]))


def _values(tensor: Any) -> Any:
    return logical_rows(tensor, 0, tensor.rows)


@pytest.mark.parametrize("target", ["onnx:int4-g32", "gptq:w4g32"])
def test_awq_gives_every_module_its_own_grid(
    target: str, source: Path, statistics: Path, tmp_path: Path
) -> None:
    """Modules of 8 bits among those of 4, the first module of a layer or another."""
    wide = "int8-g32" if target.startswith("onnx") else "w8g32"
    for number, pattern in enumerate(("q_proj", "down_proj")):
        out = tmp_path / f"out{number}"
        options = Options(tensor_types=((f"{pattern}.weight", wide),))
        done = convert(source, out, target, options=options, statistics=statistics, solver="awq")
        assert done.modules
        checkpoint = open_checkpoint(out)
        for name, tensor in checkpoint.tensors.items():
            if isinstance(tensor.encoding, Grouped) and name.startswith("layers."):
                rows = logical_rows(tensor, 0, 32)
                distinct = max(len(np.unique(row[:32])) for row in rows)
                is_wide = pattern.removesuffix("_proj") in name
                assert tensor.encoding.bits == (8 if is_wide else 4), name
                assert distinct > 16 if is_wide else distinct <= 16, name


def test_gguf_takes_statistics_as_importance(
    source: Path, statistics: Path, tmp_path: Path
) -> None:
    imatrix = tmp_path / "imatrix.gguf"
    calibrate(source, imatrix, **SAMPLES)
    convert(source, tmp_path / "stats.gguf", "gguf:q4_k_m", statistics=statistics)
    convert(source, tmp_path / "imatrix-q4.gguf", "gguf:q4_k_m", importance=imatrix)
    convert(source, tmp_path / "walk.gguf", "gguf:q4_k_m", calibrating=Calibrating(**SAMPLES))
    files = [(tmp_path / n).read_bytes() for n in ("stats.gguf", "imatrix-q4.gguf", "walk.gguf")]
    assert files[0] == files[2]
    assert len(files[0]) == len(files[1])
    assert left_in(tmp_path) == {"imatrix.gguf", "stats.gguf", "imatrix-q4.gguf", "walk.gguf"}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two sources": ({"importance": "x", "statistics": "y"}, "exclude each other"),
    "solver without statistics": ({"solver": "gptq"}, "needs --stats or --calibrate"),
    "unknown solver": ({"solver": "magic"}, "no solver"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused(case: str, source: Path, tmp_path: Path) -> None:
    given, message = REFUSED[case]
    with pytest.raises(UsageError, match=message):
        convert(source, tmp_path / "out", "gptq:w4g32", **given)
    assert left_in(tmp_path) == set()


@pytest.mark.parametrize(("target", "solver"), [("gguf:q4_k_m", "awq"), ("hf:bf16", "gptq")])
def test_a_solver_that_cannot_fill_a_format_is_refused(
    target: str, solver: Solver, source: Path, statistics: Path
) -> None:
    with pytest.raises(UsageError, match=f"{solver} cannot fill .* targets; rtn.* can"):
        plan(source, target, statistics=statistics, solver=solver)


def test_an_output_that_is_taken_is_refused_before_any_work(
    source: Path, statistics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr("zenconvert.solve.solving.SolveJob.layer_solver", _never)
    with pytest.raises(OutputExists):
        convert(source, tmp_path / "out", "gptq:w4g32", statistics=statistics)


def _never(*_: object) -> Callable[[], None]:
    raise AssertionError("work was begun")


def test_the_command_line_reports_modules(source: Path, tmp_path: Path) -> None:
    arguments = ["convert", str(source), str(tmp_path / "out"), "--to", "gptq:w4g32"]
    sampling = ["--calibrate", "--languages", "en", "--tokens-per-language", "300"]
    report = tmp_path / "report.json"
    done = CliRunner().invoke(cli, [*arguments, *sampling, "--report", str(report)])
    assert done.exit_code == 0, done.output
    table = json.loads(report.read_text())
    assert len(table) == 14
    assert {"method", "error", "rtn_error", "damping", "rank", "f16_headroom", "notes"} <= set(
        table["layers.0.attn.q.weight"]
    )
    wrong = CliRunner().invoke(cli, [*arguments, "--force", "--languages", "en"])
    assert isinstance(wrong.exception, UsageError)


def test_files_do_not_depend_on_threads(source: Path, statistics: Path, tmp_path: Path) -> None:
    script = (
        "import sys, torch; torch.set_num_threads(2);"
        "from zenconvert import convert;"
        "convert(sys.argv[1], sys.argv[2], 'gptq:w4g32', statistics=sys.argv[3])"
    )
    arguments = [str(source), str(tmp_path / "2"), str(statistics)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, env=environment)
    convert(source, tmp_path / "1", "gptq:w4g32", statistics=statistics)  # one_thread
    assert weights(tmp_path / "1") == weights(tmp_path / "2")
