"""``zenconvert calibrate`` end to end: sums as llama.cpp's, files that llama.cpp quantizes with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from gguf import GGUFReader

from tests.oracles.llama_activations import input_sums
from tests.oracles.llama_quantize import load_imatrix, quantize
from tests.test_llamacpp_parity import assert_same_file
from zenconvert import calibrate, convert, open_checkpoint
from zenconvert.calib.statistics_reader import load_importance, open_statistics
from zenconvert.cli import cli
from zenconvert.cli.calibration import calibrate as command
from zenconvert.errors import NotEnoughResources, OutputExists, UsageError, ZenError
from zenconvert.formats.gguf.imatrix import read_importance
from zenconvert.formats.gguf.mixtures import FILE_TYPES
from zenconvert.planning.recoding import logical_rows
from zenconvert.solve.calibration import PURPOSES
from zenconvert.solve.calibration_texts import text_cutter
from zenconvert.texts.samples import load_bundled
from zenconvert.texts.selection import Selection, select

Family = Callable[[str], Path]
Gguf = Callable[[str, str], Path]

LANGUAGES = ["en", "ar", "ja"]
TOKENS = 300


def chosen(source: str | Path) -> Selection:
    """What calibrate reads of the languages of these tests."""
    checkpoint = open_checkpoint(source)
    return select(
        load_bundled("calibration", LANGUAGES),
        text_cutter(checkpoint).cut,
        vocabulary=checkpoint.hyperparameters.vocab,
        tokens_per_language=TOKENS,
    )


@pytest.fixture(scope="module")
def measured(model: Family, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Family or builtin:NAME → folder with its statistics ``x.stats`` and ``imatrix.gguf``."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("measured")
            calibrate(
                family if ":" in family else model(family),
                made[family] / "x.stats",
                languages=LANGUAGES,
                tokens_per_language=TOKENS,
                imatrix=made[family] / "imatrix.gguf",
            )
        return made[family]

    return get


@pytest.mark.parametrize("family", ["builtin:zen-nano", "mixtral"])
def test_sums_are_those_of_llamacpp(
    family: str, model: Family, gguf: Gguf, measured: Family
) -> None:
    source = family if ":" in family else model(family)
    theirs = input_sums(gguf(family, "f32"), [window.ids for window in chosen(source).windows])
    path = measured(family) / "imatrix.gguf"
    tensors = {tensor.name: np.asarray(tensor.data) for tensor in GGUFReader(path).tensors}
    totals = [name for name in tensors if name.endswith(".in_sum2")]
    assert sorted(totals) == sorted(f"{name}.in_sum2" for name in theirs.squares)
    for name, expected in theirs.squares.items():
        counts = theirs.counts[name]
        found = tensors[f"{name}.in_sum2"]
        assert counts.sum() >= len(LANGUAGES) * TOKENS
        np.testing.assert_array_equal(tensors[f"{name}.counts"].ravel(), counts)
        np.testing.assert_allclose(
            found, expected.reshape(found.shape), rtol=1e-3, atol=1e-7 * expected.max()
        )
        parts = [tensors[f"{name}.in_sum2.{language}"] for language in LANGUAGES]
        np.testing.assert_allclose(sum(parts), found, rtol=1e-5)
        seen = sum(tensors[f"{name}.counts.{language}"] for language in LANGUAGES)
        np.testing.assert_array_equal(seen, tensors[f"{name}.counts"])


@pytest.mark.parametrize("file_type", ["q4_k_m", "iq4_xs"])
def test_llamacpp_quantizes_with_it_as_we_do(
    file_type: str, model: Family, gguf: Gguf, measured: Family, tmp_path: Path
) -> None:
    source, matrix = model("mixtral"), measured("mixtral") / "imatrix.gguf"
    convert(source, tmp_path / "ours.gguf", f"gguf:{file_type}", importance=matrix)
    quantize(
        gguf("mixtral", "bf16"),
        tmp_path / "theirs.gguf",
        FILE_TYPES[file_type],
        importance=load_imatrix(matrix),
    )
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    convert(source, tmp_path / "plain.gguf", f"gguf:{file_type}")
    assert (tmp_path / "ours.gguf").read_bytes() != (tmp_path / "plain.gguf").read_bytes()


@pytest.mark.parametrize("name", ["phi", "gemma4_moe"])
def test_rows_of_one_tensor_have_one_entry(name: str, folder: Family, tmp_path: Path) -> None:
    """q, k and v, or gate and up, of every expert where there are some."""
    matrix = tmp_path / "imatrix.gguf"
    calibrate(folder(name), matrix, languages=["en"], tokens_per_language=100, context=50)
    convert(folder(name), tmp_path / "ours.gguf", "gguf:iq4_xs", importance=matrix)
    convert(folder(name), tmp_path / "floats.gguf", "gguf:bf16")
    theirs = tmp_path / "theirs.gguf"
    importance = load_imatrix(matrix)
    quantize(tmp_path / "floats.gguf", theirs, FILE_TYPES["iq4_xs"], importance=importance)
    assert_same_file(tmp_path / "ours.gguf", theirs)


def test_a_statistics_file_weighs_as_its_imatrix(model: Family, measured: Family) -> None:
    checkpoint = open_checkpoint(model("mixtral"))
    ours = load_importance(measured("mixtral") / "x.stats", checkpoint, logical_rows)
    names = checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
    theirs = read_importance(
        measured("mixtral") / "imatrix.gguf", [n for n in names if n.is_weight]
    )
    assert ours.keys() == theirs.keys()
    assert {"head.weight", "layers.1.moe.3.down.weight", "layers.0.attn.k.weight"} <= ours.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)


def test_language_weights_move_the_importance(tmp_path: Path) -> None:
    """A language alone and a language with all the weight give the same."""
    found = {}
    for name, weights in {"ja": {"en": 0, "ja": 3}, "both": {"ja": 2}, "equal": None}.items():
        calibrate(
            "builtin:zen-nano", tmp_path / f"{name}.stats", languages=["en", "ja"],
            tokens_per_language=90, language_weights=weights,
        )  # fmt: skip
        found[name] = open_statistics(tmp_path / f"{name}.stats").of("layers.3.ffn.up")
    means = found["ja"].squares / found["ja"].tokens[:, None]
    np.testing.assert_allclose(found["ja"].importance(), means[1], rtol=1e-6)
    np.testing.assert_allclose(found["equal"].importance(), means.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found["both"].importance(), (means[0] + 2 * means[1]) / 3, rtol=1e-6)
    # every count stays that of real tokens
    assert [item.count for item in found.values()] == [180] * 3


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["calibrate", *map(str, arguments)])


FEW = ("--languages", "en,fr", "--tokens-per-language", 40)


def test_the_command_reports_what_it_has_seen(model: Family, tmp_path: Path) -> None:
    done = run(model("mixtral"), tmp_path / "x.stats", *FEW, "--context", 32)
    assert done.exit_code == 0, done.output
    assert "takes" in done.output
    rows = [line.split() for line in done.output.splitlines()]
    assert ["en", "40", "2", "1"] in [row[:4] for row in rows]
    assert "of 8 experts never reached" in done.output
    done = run(model("mixtral"), tmp_path / "y.stats", *FEW, "--json", "--all-experts")
    facts = json.loads(done.stdout)
    assert facts["files"] == [str(tmp_path / "y.stats")]
    assert [part["language"] for part in facts["languages"]] == ["en", "fr"]
    assert facts["experts"]["experts"] == 8
    counts = open_statistics(tmp_path / "y.stats").of("layers.0.moe.3.down").tokens
    assert counts.tolist() == [40, 40]


def test_out_with_the_suffix_of_gguf_is_an_imatrix(tmp_path: Path) -> None:
    done = run("builtin:zen-nano", tmp_path / "matrix.gguf", *FEW)
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.gguf"]
    assert "blk.6.ffn_down.weight" in load_imatrix(tmp_path / "matrix.gguf")
    refused = run("builtin:zen-nano", tmp_path / "b.gguf", "--imatrix", tmp_path / "c.gguf")
    assert isinstance(refused.exception, UsageError)


def test_moments_that_are_too_large_are_refused_before_any_work(tmp_path: Path) -> None:
    out = tmp_path / "x.stats"
    done = run("builtin:zen-nano", out, *FEW, "--for", "gptq", "--max-disk", "6M")
    assert isinstance(done.exception, NotEnoughResources)
    assert done.exception.exit_code == 5
    assert "second moments" in str(done.exception)
    assert list(tmp_path.iterdir()) == []
    done = run("builtin:zen-nano", out, *FEW, "--for", "gguf", "--max-disk", "6M")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--for", "gguf,onnx"), "no purpose 'onnx'"),
        (("--languages", "en,tlh"), "tlh"),
        (("--language-weights", "en"), "malformed"),
        (("--language-weights", "en=x"), "malformed"),
        (("--language-weights", "eo=2"), "no text in eo"),
        (("--language-weights", "en=-1"), "0 or more"),
        (("--context", "4096"), "context is 2048"),
        (("--device", "gpu9"), "device"),
        (("--samples", "nowhere.txt"), "no such file"),
        (("--max-ram", "1K"), "--max-ram"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: tuple[str, str], message: str, tmp_path: Path
) -> None:
    limits = () if "--languages" in arguments else ("--languages", "en")
    done = run("builtin:zen-nano", tmp_path / "x.stats", *arguments, *limits)
    assert isinstance(done.exception, ZenError), done.output
    assert message in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_outputs_are_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "x.stats"
    out.write_text("mine")
    assert isinstance(run("builtin:zen-nano", out, *FEW).exception, OutputExists)
    assert out.read_text() == "mine"
    assert run("builtin:zen-nano", out, *FEW, "--force").exit_code == 0
    assert isinstance(run("builtin:zen-nano", tmp_path, *FEW).exception, OutputExists)
    nowhere = tmp_path / "no" / "x.stats"
    assert isinstance(run("builtin:zen-nano", nowhere, *FEW).exception, UsageError)
    done = run("builtin:zen-nano", tmp_path / "y.stats", *FEW, "--imatrix", out)
    assert isinstance(done.exception, OutputExists)


def test_the_command_line_names_every_purpose() -> None:
    (purposes,) = (option for option in command.params if option.name == "purposes")
    assert purposes.metavar == ",".join(PURPOSES) == "gguf,gptq,awq"
    assert purposes.default == PURPOSES[0]
