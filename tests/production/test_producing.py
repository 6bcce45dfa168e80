"""One pass gives every variant the bytes that it would have alone; failures stay apart."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.production.conftest import Production
from tests.production.killed import NAMES
from tests.production.variants import (
    GGUF,
    SAMPLES,
    TARGETS,
    calibrating,
    digests,
    variants,
)
from zenconvert import calibrate, convert, open_checkpoint
from zenconvert.batch.production import Variant, gather, plan_variants, produce
from zenconvert.conversion import Conversion
from zenconvert.errors import InvalidInput, OutputExists, PlanError, UsageError, ZenError
from zenconvert.ggml import blocks
from zenconvert.model.target import Target
from zenconvert.planning.plan import Plan
from zenconvert.planning.reading import read_rows
from zenconvert.write import one_pass as streaming
from zenconvert.write.output import Output

FLOATS = ("gguf:f16", "hf:f16", "gguf:bf16", "gguf:q8_0", "onnx:f32")


@pytest.fixture(scope="module")
def statistics(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A statistics file with second moments."""
    out = tmp_path_factory.mktemp("statistics") / "x.stats"
    calibrate(source, out, purposes=["gptq"], **SAMPLES)
    return out


@pytest.mark.parametrize("name", TARGETS)
def test_bytes_are_those_of_a_conversion_alone(
    name: str, production: Production, statistics: Path, tmp_path: Path
) -> None:
    (variant,) = variants(tmp_path, name)
    given = {} if name == "f16" else {"statistics": statistics}
    alone = convert(production.source, variant.out, variant.target, **given)  # type: ignore[arg-type]
    made = production.made[name]
    assert digests(variant.out) == digests(production.out / variant.out.name)
    assert alone.plan.as_dict() == made.plan.as_dict()
    assert alone.modules == made.modules
    assert made.files == (production.out / variant.out.name,)


def test_bytes_of_the_bundled_model_are_too(tmp_path: Path) -> None:
    few = calibrating(languages=["ja"], tokens_per_language=64)
    together, apart = tmp_path / "together", tmp_path / "apart"
    together.mkdir()
    apart.mkdir()
    wanted = variants(together, "q4", "gptq", "f16")
    gathered = gather("builtin:zen-nano", wanted, few, tmp_path / "state")
    produce("builtin:zen-nano", wanted, gathered)
    for variant in wanted:
        given = {} if variant.name == "f16" else {"calibrating": few}
        convert("builtin:zen-nano", apart / variant.out.name, variant.target, **given)  # type: ignore[arg-type]
    assert digests(together) == digests(apart)


def test_the_source_is_read_once(
    production: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many want a row."""
    rows = Counter[tuple[str, int]]()

    def counted(tensor: Any, begin: int, end: int) -> Any:
        rows.update((tensor.name, row) for row in range(begin, end))
        return read_rows(tensor, begin, end)

    monkeypatch.setattr("zenconvert.planning.reading.read_rows", counted)
    wanted = variants(tmp_path, *GGUF, "gguf:q6_k", "gguf:f16", "hf:bf16", "onnx:f16")
    produce(production.source, wanted, production.gathered)
    tensors = open_checkpoint(production.source).tensors.values()
    assert rows == Counter({(t.name, row): 1 for t in tensors for row in range(t.rows)})


def test_a_tensor_is_encoded_once_as_one_type(
    production: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, encode = Counter[tuple[str, str, bool]](), blocks.encode

    def counted(name: str, weights: np.ndarray[Any, Any], importance: Any = None) -> Any:
        if weights.any():  # zeros only warm the kernels up
            digest = hashlib.sha256(np.ascontiguousarray(weights).data).hexdigest()
            found[name, digest, importance is None] += 1
        return encode(name, weights, importance)

    monkeypatch.setattr(blocks, "encode", counted)
    types = ("gguf:q4_k_m", "gguf:q4_k_s", "gguf:q5_k_m", "gguf:q5_k_s", "gguf:q6_k", "gguf:iq4_xs")
    made = produce(production.source, variants(tmp_path, *types), production.gathered)
    assert set(found.values()) == {1}
    plans = [one.plan for one in made.values() if isinstance(one, Conversion)]
    quantized = [s for plan in plans for s in plan.steps if s.action == "quantize"]
    assert len(quantized) > 1.5 * len(found)


def change_weight(folder: Path, value: float) -> str:
    """Spoil one weight; its name."""
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    tensors[name].flat[-1] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return name


@pytest.fixture
def spoilt(source: Path, tmp_path: Path) -> Path:
    """A model that float16 cannot hold."""
    folder = tmp_path / "spoilt"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    change_weight(folder, 1e5)
    return folder


def test_numbers_that_some_cannot_hold_fail_those_only(spoilt: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    made = produce(spoilt, variants(out, *FLOATS), None)
    failed = {name for name, one in made.items() if isinstance(one, ZenError)}
    assert failed == {"gguf-f16", "hf-f16"}
    for name in failed:
        with pytest.raises(InvalidInput, match=r"down_proj.*100000.*f16"):
            raise made[name]  # type: ignore[misc]
    assert {path.name for path in out.iterdir()} == {"gguf-bf16.gguf", "gguf-q8_0.gguf", "onnx-f32"}
    convert(spoilt, tmp_path / "alone.gguf", "gguf:q8_0")
    assert (tmp_path / "alone.gguf").read_bytes() == (out / "gguf-q8_0.gguf").read_bytes()


def test_weights_that_are_no_numbers_are_our_error(spoilt: Path, tmp_path: Path) -> None:
    change_weight(spoilt, float("nan"))
    made = produce(spoilt, variants(tmp_path, "gptq", "gguf:q4_0", "gguf:f32"), None)
    assert [type(one) for one in made.values()] == [InvalidInput, InvalidInput, Conversion]
    assert {path.name for path in tmp_path.iterdir()} == {"spoilt", "gguf-f32.gguf"}


def test_an_output_that_is_there_fails_alone(production: Production, tmp_path: Path) -> None:
    (tmp_path / "gguf-f16.gguf").write_text("mine")
    wanted = variants(tmp_path, "gguf:f16", "gguf:bf16")
    made = produce(production.source, wanted, None)
    assert isinstance(made["gguf-f16"], OutputExists)
    assert isinstance(made["gguf-bf16"], Conversion)
    assert (tmp_path / "gguf-f16.gguf").read_text() == "mine"
    made = produce(production.source, wanted, None, force=True)
    assert all(isinstance(one, Conversion) for one in made.values())


def test_an_error_that_is_not_ours_gives_nothing_its_name(
    production: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(streaming, "recode", failing)
    with pytest.raises(ZeroDivisionError):
        produce(production.source, variants(tmp_path, "gguf:f16", "hf:f16"), None)
    assert not list(tmp_path.iterdir())


def test_planning_stops_at_no_refusal(source: Path, tmp_path: Path) -> None:
    wanted = [*variants(tmp_path), *variants(tmp_path, "gguf:nonsense", "onnx:f16")]
    wanted.append(Variant("solved", tmp_path / "x", Target.parse("gguf:q4_0"), solver="awq"))
    plans = plan_variants(source, wanted, calibrated=True)
    assert list(plans) == [variant.name for variant in wanted]
    refused = {name for name, one in plans.items() if not isinstance(one, Plan)}
    assert refused == {"gguf-nonsense", "solved"}
    bare = plan_variants(source, variants(tmp_path), calibrated=False)
    assert {name for name, one in bare.items() if not isinstance(one, Plan)} == {"iq3"}
    with pytest.raises(PlanError, match="importance"):
        raise bare["iq3"]  # type: ignore[misc]


def test_plans_are_what_is_made(production: Production) -> None:
    plans = plan_variants(production.source, variants(production.out), calibrated=True)
    for name in (*GGUF, "f16"):
        assert plans[name].as_dict() == production.made[name].plan.as_dict()  # type: ignore[union-attr]
    for name in ("gptq", "awq"):
        assert plans[name].output_bytes == production.made[name].plan.output_bytes  # type: ignore[union-attr]


def test_results_travel_between_processes(production: Production, tmp_path: Path) -> None:
    refused = plan_variants(production.source, variants(tmp_path, "iq3"), calibrated=False)["iq3"]
    copies = pickle.loads(pickle.dumps((production.gathered, production.made, refused)))
    assert copies[0] == production.gathered
    assert copies[1]["awq"].plan.as_dict() == production.made["awq"].plan.as_dict()
    assert copies[2].problems == refused.problems  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("names", "outs", "message"),
    [
        (("a", "a"), ("x", "y"), "called a"),
        (("a", "b"), ("x", "x"), "written to"),
        (("a/b", "c"), ("x", "y"), "no name"),
    ],
)
def test_names_and_outputs_are_distinct(
    names: tuple[str, str], outs: tuple[str, str], message: str, tmp_path: Path
) -> None:
    wanted = [
        Variant(name, tmp_path / out, Target("gguf", "f16"))
        for name, out in zip(names, outs, strict=True)
    ]
    with pytest.raises(UsageError, match=message):
        produce("builtin:zen-nano", wanted, None)


def test_what_was_not_gathered_for_cannot_be_produced(
    production: Production, tmp_path: Path
) -> None:
    (other,) = variants(tmp_path, "gptq:w8g128")
    made = produce(production.source, [other], production.gathered)
    assert isinstance(made["gptq-w8g128"], UsageError)


# Runs that were stopped


def interrupt(stage: str, done: int, total: int) -> None:
    """In the middle of the work."""
    if done > total // 2:
        raise KeyboardInterrupt


def test_an_interrupted_pass_is_gone_on_with(
    production: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, read = variants(tmp_path, *GGUF, "f16"), set[str]()

    def seen(tensor: Any, begin: int, end: int) -> Any:
        read.add(tensor.name)
        return read_rows(tensor, begin, end)

    monkeypatch.setattr("zenconvert.planning.reading.read_rows", seen)
    monkeypatch.setattr(streaming, "REMEMBER_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        produce(production.source, wanted, production.gathered, stage=interrupt, threads=1)
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    before, tensors = set(read), set(open_checkpoint(production.source).tensors)
    read.clear()
    produce(production.source, wanted, production.gathered, threads=1)
    assert len(read & before) <= 3  # those that were on their way
    assert read | before == tensors
    assert {path.name for path in tmp_path.iterdir()} == {v.out.name for v in wanted}
    for variant in wanted:
        assert digests(variant.out) == digests(production.out / variant.out.name)


def test_what_was_begun_for_other_bytes_is_not_gone_on_with(
    production: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same names and sizes, and weights of other importance."""
    monkeypatch.setattr(streaming, "REMEMBER_SECONDS", 0)
    wanted = variants(tmp_path, "q4")
    with pytest.raises(KeyboardInterrupt):
        produce(production.source, wanted, None, stage=interrupt, threads=1)
    assert list(tmp_path.iterdir())
    produce(production.source, wanted, production.gathered)
    assert digests(wanted[0].out) == digests(production.out / "q4.gguf")


def test_finished_variants_stand(
    production: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that stops between two names; the next one takes what has its name for finished."""
    wanted, state = variants(tmp_path, "q4", "gguf:f16", "f16"), tmp_path / "state"
    publish = Output.publish

    def stopping(output: Output, *, force: bool) -> None:
        if output.out.name == "f16":
            raise KeyboardInterrupt
        publish(output, force=force)

    with monkeypatch.context() as patch:
        patch.setattr(Output, "publish", stopping)
        with pytest.raises(KeyboardInterrupt):
            produce(production.source, wanted, production.gathered, folder=state)
    assert {p.name for p in tmp_path.iterdir()} == {"q4.gguf", "gguf-f16.gguf", "state"}
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.gguf")}
    for _ in range(2):
        made = produce(production.source, wanted, production.gathered, folder=state)
        assert all(isinstance(one, Conversion) for one in made.values())
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.gguf")}
    os.utime(tmp_path / "q4.gguf")
    made = produce(production.source, wanted, production.gathered, folder=state)
    assert isinstance(made["q4"], OutputExists)  # somebody else's, for all that is known
    made = produce(production.source, wanted, None, folder=state)
    assert isinstance(made["q4"], OutputExists)


def test_killed_at_random_moments(production: Production, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.production.killed", str(production.source)]
    done = subprocess.run(
        [*command, str(tmp_path), "1"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    gathering, producing = map(int, done.stdout.split())
    assert gathering >= 2
    assert producing >= 2
    for name in (*NAMES, "imatrix"):
        (path,) = (p for p in tmp_path.iterdir() if p.stem == name)
        whole = production.state if name == "imatrix" else production.out
        assert digests(path) == digests(whole / path.name), name
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
