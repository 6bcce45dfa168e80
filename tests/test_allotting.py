"""Types chosen by what errors cost: sizes, predictions, and files that load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from gguf import quants
from safetensors.numpy import load_file

from tests.differential import runs
from tests.test_solving import SAMPLES, left_in, model
from zenconvert import Options, Report, calibrate, convert, open_checkpoint, plan, verify
from zenconvert.calib.statistics_layout import unpack
from zenconvert.calib.statistics_reader import open_statistics
from zenconvert.cli import cli
from zenconvert.errors import UsageError
from zenconvert.model.allotment import Budget
from zenconvert.planning.recoding import logical_rows
from zenconvert.solve.calibration_texts import Calibrating
from zenconvert.texts.windows import Window
from zenconvert.verification.engines.llamacpp import LlamaCppEngine

MENU = ("q3_k", "iq4_xs", "q4_k", "q6_k")
BITS = Options(size=Budget.parse("4.8bpw"), menu=MENU)
TEXT = runs.ids(40, 3)


@pytest.fixture(scope="module", params=[False, True], ids=["apart", "tied"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, with a head of its own and without; some of its rows are of 32-blocks alone."""
    folder = tmp_path_factory.mktemp("allotting") / "model"
    return model(folder, tie_word_embeddings=request.param, intermediate_size=480)


@pytest.fixture(scope="module")
def statistics(source: Path) -> Path:
    """Its statistics, with a walk back."""
    out = source.parent / "model.stats"
    calibrate(source, out, purposes=["gptq"], fisher=True, **SAMPLES)
    return out


@pytest.fixture(scope="module")
def made(source: Path, statistics: Path) -> Any:
    """A file of 4.8 bits a weight, rounded."""
    out = source.parent / "bits.gguf"
    return convert(source, out, "gguf:auto", statistics=statistics, options=BITS)


@pytest.fixture(scope="module")
def filled(source: Path, statistics: Path) -> Any:
    """The same, filled by a solver."""
    out = source.parent / "filled.gguf"
    return convert(source, out, "gguf:auto", statistics=statistics, options=BITS, solver="gptq")


def read(done: Any) -> Any:
    """The file that was made, as gguf reads it."""
    return gguf.GGUFReader(done.files[0])


def bits(file: Any) -> float:
    """Bits of tensor data for each number, as llama.cpp counts them."""
    data = sum(int(t.n_bytes) for t in file.tensors)
    return 8 * data / sum(int(t.n_elements) for t in file.tensors)


def test_files_have_the_types_and_the_size_that_were_promised(made: Any) -> None:
    file, allotment = read(made), made.plan.allotment
    types = {t.name: t.tensor_type.name.lower() for t in file.tensors}
    chosen = {one.name: one.type for one in allotment.tensors}
    assert {name: types[name] for name in chosen} == chosen
    assert {kind for name, kind in types.items() if name not in chosen} == {"f32"}
    assert len(set(chosen.values())) > 2
    assert all("down" not in name or "_k" not in kind for name, kind in chosen.items())
    assert 4.6 < bits(file) <= 4.8
    assert made.files[0].stat().st_size == made.plan.output_bytes
    assert file.fields["quantize.zenconvert.types"].contents() == "auto"
    told = file.fields["quantize.zenconvert.predicted_kl"].contents()
    assert told == pytest.approx(allotment.predicted, rel=1e-6)
    whys = {step.target: step.why for step in made.plan.steps}
    assert all("chosen by what its errors cost" in whys[name] for name in chosen)
    as_json = made.plan.as_dict()["allotment"]
    assert [(t["name"], t["type"]) for t in as_json["tensors"]] == list(chosen.items())
    sizes = {t.name: int(t.n_bytes) for t in file.tensors}
    assert all(sizes[t["name"]] == t["bytes"] for t in as_json["tensors"])


def test_predictions_are_the_formula(source: Path, statistics: Path, made: Any) -> None:
    """What gguf decodes, by the sums of the file of statistics."""
    numbers, known = load_file(statistics), open_statistics(statistics)
    sources, tokens = open_checkpoint(source).tensors, np.array(known.facts["fisher"]["tokens"])
    weights = tokens.sum() / (len(tokens) * tokens)  # languages weigh the same
    told = {one.name: one.nats for one in made.plan.allotment.tensors}
    of_gguf = {
        "blk.0.attn_output.weight": "layers.0.attn.o",
        "blk.1.ffn_down.weight": "layers.1.ffn.down",
        "output.weight": "head",
        "token_embd.weight": "embed",
    }
    for stored in (t for t in read(made).tensors if t.name in of_gguf):
        module = of_gguf[stored.name]
        tensor = sources[f"{module}.weight"]
        weight = logical_rows(tensor, 0, tensor.rows).astype(np.float64)
        errors = weight - quants.dequantize(stored.data, stored.tensor_type)

        def lost(moments: Any, errors: Any = errors) -> Any:
            return np.einsum("ri,ij,rj->r", errors, moments, errors)

        if module == "embed":
            shares = numbers["fisher.rows"] / numbers["fisher.rows"].sum()
            whole = unpack(numbers["fisher.embed"], 256).astype(np.float64) / tokens.sum()
            expected = 0.5 * shares @ lost(whole)
            if "fisher.head" in numbers:
                squares = weights @ numbers["head.gradients"].astype(np.float64)
                whole = unpack(numbers["fisher.head"], 256).astype(np.float64) / tokens.sum()
                expected += 0.5 * squares / squares.sum() @ lost(whole)
        else:
            inputs = known.of(module, moments=True)
            assert inputs.moments is not None
            moments = inputs.moments.double().numpy() / (inputs.token_weights @ inputs.tokens)
            squares = weights @ numbers[f"{module}.gradients"].astype(np.float64) / tokens.sum()
            expected = 0.5 * squares @ lost(moments)
        assert told[stored.name] == pytest.approx(float(expected), rel=2e-3), stored.name


def test_reports_have_the_prediction_beside_the_measurement(source: Path, made: Any) -> None:
    report = verify(source, made.files[0], languages=["en"], context=64)
    value = json.loads(json.dumps(report.as_dict()))
    predicted, measured = (
        value["facts"]["candidate"]["predicted_kl"], value["overall"]["kl"]["mean"]
    )  # fmt: skip
    assert predicted == pytest.approx(made.plan.allotment.predicted, rel=1e-6)
    assert "predicted_kl" not in value["facts"]["reference"]
    assert 0.2 < measured / predicted < 5
    assert Report.from_dict(value).candidate_facts.predicted_kl == predicted


def test_a_size_in_bytes_is_hit(source: Path, statistics: Path, made: Any) -> None:
    wanted = made.plan.output_bytes - 9_000
    options = Options(size=Budget(nbytes=wanted), menu=MENU)
    found = plan(source, "gguf:auto", statistics=statistics, options=options)
    steps = [one.nbytes for one in found.allotment.tensors] if found.allotment else []
    assert wanted - max(steps) // 8 < found.output_bytes <= wanted
    assert found.allotment is not None
    assert found.allotment.predicted > made.plan.allotment.predicted


def test_llamacpp_computes_what_solvers_filled(source: Path, filled: Any, made: Any) -> None:
    """The embedding, too, which is filled by its gradients."""
    out, allotment = filled.files[0], filled.plan.allotment
    file = read(filled)
    types = {t.name: t.tensor_type.name.lower() for t in file.tensors}
    assert all(types[one.name] == one.type for one in allotment.tensors)
    assert allotment.predicted < made.plan.allotment.predicted
    assert file.fields["quantize.zenconvert.solver"].contents() == "gptq+fisher"
    assert filled.modules["embed.weight"].method == "fisher"
    assert 4.6 < bits(file) <= 4.8
    convert(out, source.parent / "decoded", "hf:f32", force=True)
    expected = runs.in_transformers(source.parent / "decoded", TEXT)
    engine = LlamaCppEngine(open_checkpoint(out), [Window("a", "und", tuple(TEXT))], threads=1)
    found = engine.logits(0, 0, len(TEXT)).numpy()
    engine.close()
    apart = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert apart < 0.03  # activations are rounded to 8 bits there


def test_statistics_of_the_same_run(source: Path, made: Any, filled: Any, tmp_path: Path) -> None:
    walk = Calibrating(**SAMPLES)
    convert(source, tmp_path / "walk.gguf", "gguf:auto", calibrating=walk, options=BITS)
    assert (tmp_path / "walk.gguf").read_bytes() == made.files[0].read_bytes()
    convert(
        source, tmp_path / "filled.gguf", "gguf:auto", calibrating=walk, options=BITS, solver="gptq"
    )
    assert (tmp_path / "filled.gguf").read_bytes() == filled.files[0].read_bytes()
    assert left_in(tmp_path) == {"walk.gguf", "filled.gguf"}


def test_what_cannot_be(source: Path, statistics: Path, tmp_path: Path) -> None:
    def refused(match: str, **given: Any) -> None:
        arguments = {"statistics": statistics, "options": BITS, **given}
        with pytest.raises(UsageError, match=match):
            convert(source, tmp_path / "out.gguf", arguments.pop("to", "gguf:auto"), **arguments)

    def sized(text: str, *menu: str, **more: Any) -> Options:
        return Options(size=Budget.parse(text), menu=menu or MENU, **more)

    refused("give --calibrate", statistics=None)
    refused("needs a size", options=Options())
    refused(r"too little; .* the smallest is 3\.\d+bpw", options=sized("2bpw"))
    refused(r"the largest that gains anything is \d+ bytes", options=sized("1G"))
    refused("no --pure", options=sized("4bpw", pure=True))
    refused("no file type 'q9'", options=sized("4bpw", "q9"))
    refused("--size goes with", to="gguf:q4_k_m")
    refused("--types goes with", to="gguf:q4_k_m", options=Options(menu=MENU))
    refused("no such target", to="gptq:auto")
    refused("--sequential", statistics=None, calibrating=Calibrating(**SAMPLES, sequential=True))
    plain = tmp_path / "plain.stats"
    calibrate(source, plain, purposes=["gptq"], **SAMPLES)
    refused("--fisher", statistics=plain)
    assert left_in(tmp_path) == {"plain.stats"}


@pytest.mark.parametrize("text", ["", "bpw", "0bpw", "-1G", "4.8", "1e3G", "21T"])
def test_sizes_are_understood_or_refused(text: str) -> None:
    if text == "4.8":
        assert Budget.parse(text).nbytes == 4
    else:
        with pytest.raises(UsageError, match="malformed"):
            Budget.parse(text)


def test_the_command_line_says_it(source: Path, statistics: Path, made: Any) -> None:
    words = ["plan", str(source), "--to", "gguf:auto", "--size", "4.8bpw", "--types"]
    words += [",".join(MENU), "--stats", str(statistics)]
    found = json.loads(CliRunner().invoke(cli, [*words, "--json"]).stdout)
    assert found["allotment"] == made.plan.as_dict()["allotment"]
    shown = CliRunner().invoke(cli, [*words, "--explain"]).stdout
    assert "chosen by what its errors cost" in shown
    assert "predicted divergence" in shown


def test_chosen_types_diverge_less_than_a_mixture(tmp_path: Path) -> None:
    """Of a model that was trained, on texts that chose nothing."""
    given: dict[str, Any] = {"languages": ["en", "zh"], "context": 128}
    calibrate(
        "builtin:zen-nano", tmp_path / "nano.stats", purposes=["gptq"], fisher=True,
        tokens_per_language=1024, **given,
    )  # fmt: skip
    known: dict[str, Any] = {"statistics": tmp_path / "nano.stats"}
    mixed, chosen = tmp_path / "mixed.gguf", tmp_path / "chosen.gguf"
    convert("builtin:zen-nano", mixed, "gguf:q4_k_m", **known)  # as llama.cpp does
    options = Options(
        size=Budget(nbytes=mixed.stat().st_size), menu=("q3_k", "iq4_xs", "q5_k", "q6_k")
    )
    convert("builtin:zen-nano", chosen, "gguf:auto", options=options, **known)
    assert chosen.stat().st_size <= mixed.stat().st_size
    theirs, ours = (verify("builtin:zen-nano", path, **given) for path in (mixed, chosen))
    assert ours.overall.kl_mean < 0.7 * theirs.overall.kl_mean
    worst = [one.languages[one.worst_language].kl_mean for one in (ours, theirs)]
    assert worst[0] < 0.7 * worst[1]
