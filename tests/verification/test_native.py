"""Native engines in processes of their own: what they show, and how they fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.verification.conftest import SOURCE, Gguf, Verified
from zenconvert import Report, convert, gate, open_checkpoint, verify
from zenconvert.errors import (
    ConversionFailed,
    EngineFailed,
    InvalidInput,
    MissingDependency,
    NotEnoughResources,
    UsageError,
    ZenError,
)
from zenconvert.models import builtin_path
from zenconvert.texts.samples import LANGUAGES
from zenconvert.texts.windows import Window
from zenconvert.verification import engines, native, probing
from zenconvert.verification.engine_check import Text, prove_generation, prove_tokens, texts_of
from zenconvert.verification.engines import ENGINES, refusal
from zenconvert.verification.engines.llamacpp import LlamaCppEngine
from zenconvert.verification.engines.transformers_engine import TransformersEngine
from zenconvert.verification.engines.vllm_engine import VllmEngine
from zenconvert.verification.probing import Probe
from zenconvert.verification.rendering import report_page
from zenconvert.verification.report import SCHEMA

FOLDER = builtin_path("zen-nano")


@pytest.fixture(scope="session")
def everything(gguf: Gguf, short: Path) -> Report:
    """The bundled model itself in every engine that is here."""
    return verify(SOURCE, FOLDER, engine="all", text=short, threads=1)


def test_llamacpp_shows_its_tokens_and_repeats_itself(verified: Verified) -> None:
    proof = verified("q4_k_m", "llamacpp").runs[0].proof
    assert proof.languages == LANGUAGES
    assert proof.texts == 10 * len(LANGUAGES)
    assert proof.mismatches == ()
    assert proof.problems == ()
    assert [g.language for g in proof.generations] == list(LANGUAGES)
    assert all(g.deterministic and g.text for g in proof.generations)
    assert len({g.text for g in proof.generations}) > 8


def test_all_engines_run_what_they_can_and_say_what_they_cannot(everything: Report) -> None:
    assert [run.engine for run in everything.runs] == ["torch", "transformers"]
    assert list(everything.absent) == ["vllm"]
    assert "install vllm" in everything.absent["vllm"]
    ours, theirs = everything.runs
    assert everything.engine == "torch"
    assert ours.overall.kl_mean == 0
    assert ours.proof.generations == ()
    assert 0 < theirs.overall.kl_mean < 0.01
    assert theirs.details["compute_dtype"] == "bfloat16"
    assert theirs.proof.problems == ()
    assert len(theirs.proof.generations) == len(LANGUAGES)


def test_transformers_gives_its_own_logits_and_words() -> None:
    ids = tuple(np.random.default_rng(0).integers(0, 8000, 40).tolist())
    engine = TransformersEngine(
        open_checkpoint(FOLDER), [Window("a", "und", ids), Window("b", "und", ids[:9])], threads=1
    )
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].float()
    for window, begin, end in ((0, 5, 20), (1, 0, 9), (0, 20, 40)):
        found = engine.logits(window, begin, end)
        np.testing.assert_allclose(found, expected[begin:end], atol=0.4)
    words = list(ids)
    with torch.inference_mode():
        for _ in range(4):
            words.append(int(model(torch.tensor([words])).logits[0, -1].argmax()))
    assert engine.generate(ids, 4) == words[-4:]
    engine.close()


def test_llamacpp_generates_what_its_logits_say(gguf: Gguf) -> None:
    checkpoint = open_checkpoint(gguf(SOURCE, "f32"))
    ids = tuple(np.random.default_rng(1).integers(0, 8000, 30).tolist())
    engine = LlamaCppEngine(checkpoint, [Window("a", "und", ids)], threads=1, room=40)
    found = engine.generate(ids, 3)
    assert engine.generate(ids, 3) == found
    longer = LlamaCppEngine(checkpoint, [Window("a", "und", (*ids, *found))], threads=1)
    following = longer.logits(0, len(ids) - 1, len(ids) + 2).argmax(1).tolist()
    assert found == following
    engine.close()
    longer.close()


def test_llamacpp_holds_one_batch_of_logits(gguf: Gguf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zenconvert.verification.engines.llamacpp._BATCH", 16)
    checkpoint = open_checkpoint(gguf(SOURCE, "f32"))
    ids = tuple(np.random.default_rng(2).integers(0, 8000, 75).tolist())
    windows = [Window("a", "und", ids)]
    small = LlamaCppEngine(checkpoint, windows, threads=1)
    parts = []
    for begin in range(0, 75, 25):
        parts.append(small.logits(0, begin, begin + 25))
        assert len(small.held) <= 16
    monkeypatch.undo()
    whole = LlamaCppEngine(checkpoint, windows, threads=1).logits(0, 0, 75)
    np.testing.assert_allclose(torch.cat(parts), whole, atol=1e-4)
    np.testing.assert_allclose(small.logits(0, 3, 20), whole[3:20], atol=1e-4)


def test_another_cut_of_the_text_is_told(gguf: Gguf, short: Path, tmp_path: Path) -> None:
    """The same vocabulary, but llama.cpp is told to cut words as for GPT-2."""
    data = gguf(SOURCE, "q8_0").read_bytes()
    key = b"tokenizer.ggml.pre"
    at = data.index(key) + len(key) + 4 + 8
    assert data[at : at + 5] == b"qwen2"
    other = tmp_path / "other.gguf"
    other.write_bytes(data[:at] + b"gpt-2" + data[at + 5 :])
    report = verify(SOURCE, other, engine="llamacpp", text=short, threads=1)
    proof = report.runs[0].proof
    assert proof.mismatches
    first = proof.mismatches[0]
    assert first.expected != first.found
    assert first.expected[0] != first.found[0]
    assert "its tokenizer cuts" in proof.problems[0]
    reasons = gate(report).reasons
    assert any(r.startswith("FAIL: llamacpp, overall: its tokenizer cuts") for r in reasons)


def test_generation_that_changes_is_told() -> None:
    class Moody:
        calls = 0

        def generate(self, ids: Any, count: int) -> list[int]:
            self.calls += 1
            return [self.calls % 2] * count

        def encode(self, text: str) -> list[int]:
            return [1]

    texts = [Text("s", "en", "a", (1, 0)), Text("t", "de", "b", (1,))]
    found = replace(
        prove_tokens(Moody(), texts),
        generations=prove_generation(Moody(), texts, [0], [b"x", b"y"], 512),
    )
    assert [g.prompt for g in found.generations] == ["xyx", "xy"]
    assert found.problems == (
        "its tokenizer cuts 1 of 2 texts differently (en)",
        "generation is not deterministic (en, de)",
    )
    assert found.mismatches[0].at == 1


@pytest.mark.parametrize("context", [1, 2, 3, 20, 32, 33, 34, 4096])
def test_what_is_read_and_generated_fits_into_the_context(context: int) -> None:
    asked: list[tuple[int, int]] = []

    class Counting:
        def generate(self, ids: Any, count: int) -> list[int]:
            asked.append((len(ids), count))
            return [0] * count

    texts = [Text("s", "en", "a", tuple(range(1, 100)))]
    found = prove_generation(Counting(), texts, [0], [b"x"] * 100, context)
    assert len(found) == (context > 2)
    assert all(read + count == min(context, 33) and count > 0 for read, count in asked)


def test_a_model_of_a_short_context(tmp_path: Path, short: Path) -> None:
    """llama.cpp warns of more tokens than it was trained on, others refuse them or compute what
    nobody trained; transformers says what follows."""
    folder, file = tmp_path / "short", tmp_path / "short.gguf"
    shutil.copytree(FOLDER, folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 20
    (folder / "config.json").write_text(json.dumps(config))
    convert(folder, file, "gguf:f32")
    report = verify(folder, file, engine=["torch", "llamacpp"], text=short, threads=1)
    assert report.failed == {}
    assert report.context == 20
    ours, theirs = report.runs
    assert ours.overall.tokens == theirs.overall.tokens
    assert theirs.overall.kl_mean < 1e-6
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for language in ("en", "zh"):
        [found] = [g for g in theirs.proof.generations if g.language == language]
        text = next(t for t in texts_of(open_checkpoint(FOLDER)) if t.language == language)
        with torch.inference_mode():
            ids = model.generate(
                torch.tensor([text.ids[:10]]),
                max_new_tokens=10,
                do_sample=False,
                repetition_penalty=1.0,
                pad_token_id=0,
            )
        assert (found.prompt, found.text) == (
            tokenizer.decode(ids[0][:10]),
            tokenizer.decode(ids[0][10:]),
        )


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("import os; os.abort()", InvalidInput, "died of SIGABRT"),
        ("import os; os.kill(os.getpid(), 9)", NotEnoughResources, "killed"),
        ("import os; os.kill(os.getpid(), 4)", EngineFailed, "SIGILL.*GGML_NATIVE=OFF"),
        ("import time; time.sleep(10000)", EngineFailed, "hangs: it has done nothing"),
        ("raise RuntimeError('odd')", ConversionFailed, "odd"),
    ],
)
def test_a_runtime_that_dies_takes_only_itself_down(
    script: str,
    error: type[ZenError],
    message: str,
    gguf: Gguf,
    short: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "dying.py").write_text(script)
    monkeypatch.setattr(native, "_MODULE", "dying")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("ZENCONVERT_PATIENCE", "5")
    file = gguf(SOURCE, "q8_0")
    with pytest.raises(error, match=message) as caught:
        verify(SOURCE, file, engine="llamacpp", text=short, threads=1)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("script", "error", "outcome", "reason"),
    [
        ("import os; os.kill(os.getpid(), 4)", "EngineFailed", "INCONCLUSIVE", "GGML_NATIVE=OFF"),
        ("import os; os.kill(os.getpid(), 9)", "NotEnoughResources", "INCONCLUSIVE", "memory"),
        ("import time; time.sleep(10000)", "EngineFailed", "INCONCLUSIVE", "hangs"),
        ("raise ImportError('libgone')", "ConversionFailed", "INCONCLUSIVE", "libgone"),
        ("import os; os.abort()", "InvalidInput", "FAIL", "died of SIGABRT"),
    ],
)
def test_a_dead_engine_costs_its_own_row(
    script: str, error: str, outcome: str, reason: str,
    gguf: Gguf, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "dying.py").write_text(script)
    monkeypatch.setattr(native, "_MODULE", "dying")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("ZENCONVERT_PATIENCE", "5")
    # the engine itself is well: it is the file that it dies on
    monkeypatch.setattr(probing, "probe", lambda engine: Probe(engine, True, True, "1.0"))
    report = verify(SOURCE, gguf(SOURCE, "q8_0"), engine="all", text=short, threads=1)
    assert [run.engine for run in report.runs] == ["torch"]
    assert report.failed["llamacpp"].error == error
    assert reason in report.failed["llamacpp"].reason
    whole = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(whole)
    assert Report.from_dict(whole).failed == report.failed
    verdict = gate(report)
    [check] = [check for check in verdict.checks if check.engine == "llamacpp"]
    assert check.outcome == outcome
    assert reason in check.reason
    assert "llamacpp" in report_page(report, verdict)


def test_an_engine_that_dies_on_everything_is_to_blame_itself(
    gguf: Gguf, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dying.py").write_text("import os; os.abort()")
    monkeypatch.setattr(native, "_MODULE", "dying")
    monkeypatch.setattr(probing, "_MODULE", "dying")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    report = verify(SOURCE, gguf(SOURCE, "q8_0"), engine=["torch", "llamacpp"], text=short)
    failure = report.failed["llamacpp"]
    assert failure.error == "EngineFailed"
    assert "dies on the bundled model as well" in failure.reason
    assert "pip install" in failure.reason
    assert any(r.startswith("INCONCLUSIVE: llamacpp") for r in gate(report).reasons)


def test_a_missing_engine_among_several_costs_its_own_row(
    gguf: Gguf, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    report = verify(SOURCE, gguf(SOURCE, "q8_0"), engine=["torch", "llamacpp"], text=short)
    assert [run.engine for run in report.runs] == ["torch"]
    assert report.failed["llamacpp"].error == "MissingDependency"
    assert "zenconvert[llamacpp]" in report.failed["llamacpp"].reason


def test_an_interrupted_run_leaves_no_child(
    gguf: Gguf, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "pid"
    (tmp_path / "waiting.py").write_text(
        "import os, sys, time\n"
        f"open({str(mark)!r}, 'w').write(str(os.getpid()))\n"
        "os.write(int(sys.argv[2]), b'1 2\\n')\ntime.sleep(600)\n"
    )
    monkeypatch.setattr(native, "_MODULE", "waiting")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "llamacpp":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(SOURCE, gguf(SOURCE, "q8_0"), engine="llamacpp", text=short, progress=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), signal.SIGTERM)


def test_what_is_missing_is_said_before_anything_runs(
    gguf: Gguf, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads(*args: Any, **named: Any) -> None:
        pytest.fail("something ran")

    monkeypatch.setattr("zenconvert.verification.measurement.reference_states", loads)
    with pytest.raises(UsageError, match=r"runs AWQ, CT, GPTQ, HF folders; .* is gguf"):
        verify(SOURCE, gguf(SOURCE, "q8_0"), engine="vllm", text=short)
    with pytest.raises(UsageError, match="runs GGUF files"):
        verify(SOURCE, SOURCE, engine="llamacpp", text=short)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(MissingDependency, match=r"zenconvert\[llamacpp\]"):
        verify(SOURCE, gguf(SOURCE, "q8_0"), engine="llamacpp", text=short)


def test_packages_and_gpus_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: set[str] = {"transformers"}
    monkeypatch.setattr(engines, "_installed", installed.__contains__)
    monkeypatch.setattr(engines, "_has_gpu", lambda: False)
    hf = open_checkpoint(SOURCE)
    gptq, awq = (replace(hf, format=name) for name in ("gptq", "awq"))
    assert refusal("transformers", hf) is None
    for checkpoint, name in ((gptq, "gptqmodel or auto_gptq"), (awq, "gptqmodel or awq")):
        found = refusal("transformers", checkpoint)
        assert isinstance(found, MissingDependency)
        assert name in str(found)
    missing = refusal("vllm", gptq)
    assert isinstance(missing, MissingDependency)
    assert "install vllm" in str(missing)
    installed |= {"vllm", "gptqmodel"}
    assert refusal("transformers", gptq) is None
    no_gpu = refusal("vllm", gptq)
    assert isinstance(no_gpu, UsageError)
    assert "needs a GPU" in str(no_gpu)
    monkeypatch.setattr(engines, "_has_gpu", lambda: True)
    assert refusal("vllm", gptq) is None


def test_every_engine_loads_by_name() -> None:
    classes = {name: engine.load() for name, engine in ENGINES.items()}
    assert classes["llamacpp"] is LlamaCppEngine
    assert classes["transformers"] is TransformersEngine
    assert classes["vllm"] is VllmEngine


class FakeVllm:
    """What of vLLM the engine calls: a model behind ``apply_model`` and ``generate``."""

    __version__ = "0"
    SamplingParams = dict

    class LLM:
        def __init__(self, model: str, **options: Any) -> None:
            assert options["trust_remote_code"] is False
            self.longest = options["max_model_len"]
            context = json.loads((Path(model) / "config.json").read_text())
            if self.longest > context["max_position_embeddings"]:
                raise ValueError("User-specified max_model_len is greater than the derived one")
            self.network = _Network(AutoModelForCausalLM.from_pretrained(model))

        def apply_model(self, function: Callable[[Any], Any]) -> list[Any]:
            return [None, function(self.network)]  # only one worker has the logits

        def generate(self, prompts: Any, sampling: Any, use_tqdm: bool) -> list[Any]:
            ids = list(prompts[0]["prompt_token_ids"])
            assert len(ids) + sampling["max_tokens"] <= self.longest, "longer than max_model_len"
            for _ in range(sampling["max_tokens"]):
                states = self.network(torch.tensor([ids]))
                ids.append(int(self.network.compute_logits(states[-1:]).argmax()))
            new = ids[len(prompts[0]["prompt_token_ids"]) :]
            return [type("O", (), {"outputs": [type("C", (), {"token_ids": new})]})]


class _Network(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.inner.model(ids).last_hidden_state[0]
        return states

    def compute_logits(self, states: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.inner.lm_head(states)
        return values


def test_vllm_gives_the_logits_of_the_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in; the engine itself was also run on vLLM 0.32 built for CPUs."""
    monkeypatch.setitem(sys.modules, "vllm", FakeVllm)
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_ALLOW_INSECURE_SERIALIZATION"):
        monkeypatch.setenv(name, "")
    ids = tuple(np.random.default_rng(3).integers(0, 8000, 20).tolist())
    windows = [Window("a", "und", ids), Window("b", "und", ids[4:])]
    engine = VllmEngine(open_checkpoint(FOLDER), windows, threads=1, device="cpu", room=23)
    other = TransformersEngine(open_checkpoint(FOLDER), windows, threads=1)
    for window, begin, end in ((0, 2, 10), (0, 10, 20), (1, 0, 16), (0, 0, 5)):
        expected = other.logits(window, begin, end)
        np.testing.assert_allclose(engine.logits(window, begin, end), expected, atol=0.4)
    assert engine.generate(ids, 3) == other.generate(ids, 3)
    assert len(json.dumps(engine.generate(ids, 1))) > 2


def test_vllm_windows_that_fill_the_context(
    monkeypatch: pytest.MonkeyPatch, model: Callable[[str], Path]
) -> None:
    """vLLM refuses prompts that leave no room for a token, and more room than the model has."""
    monkeypatch.setitem(sys.modules, "vllm", FakeVllm)
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_ALLOW_INSECURE_SERIALIZATION"):
        monkeypatch.setenv(name, "")
    checkpoint = open_checkpoint(model("qwen2"))
    context = checkpoint.hyperparameters.context
    ids = tuple(np.random.default_rng(3).integers(0, 500, context).tolist())
    engine = VllmEngine(checkpoint, [Window("a", "und", ids)], threads=1, device="cpu")
    other = TransformersEngine(checkpoint, [Window("a", "und", ids)], threads=1)
    last = context - 1
    expected = other.logits(0, last - 4, last)
    np.testing.assert_allclose(engine.logits(0, last - 4, last), expected, atol=0.4)
    alone = VllmEngine(checkpoint, [], threads=1, device="cpu", room=40)
    assert len(alone.generate(ids[:30], 10)) == 10
