"""What fuzzing found, each as the smallest input that shows it."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from onnx import helper

from tests.fuzz import models, reports
from tests.fuzz.targets_files import statistics_file
from tests.fuzz.targets_texts import RECIPE
from zenconvert import Report, convert, open_checkpoint, plan
from zenconvert.base.source_files import parse_json
from zenconvert.calib.statistics_reader import open_statistics
from zenconvert.errors import (
    CorruptFile,
    InvalidInput,
    RecipeError,
    SourceNotFound,
    UsageError,
    ZenError,
)
from zenconvert.formats.gguf import container
from zenconvert.formats.hf.side_facts import read_card
from zenconvert.publication import recipe_reader
from zenconvert.publication.checksums import read_sums
from zenconvert.publication.gotemplate import render_go
from zenconvert.publication.release_report import read_record
from zenconvert.publication.signing import is_keyless, statement_digests
from zenconvert.texts.sample_sources import load_samples
from zenconvert.verification.policy import Policy
from zenconvert.verification.rendering import report_page

DEEP = "[" * 5000
DIGITS = "9" * 4400

POLICIES = {
    "nesting": f"x = {DEEP}",
    "digits": f"min_tokens = {DIGITS}",
    "digits of base 16": f"min_tokens = 0x{'f' * 6000}",
    "parts of a key": "a." * 20_000 + "a = 1",
    "quoted parts of a key": '"a" . ' * 20_000 + "a = 1",
    "parts of a table": f"[{'a.' * 20_000}a]",
    "one long word": "x" * 400_000,
    "a long text": "#" * 600_000,
    "no count": "min_tokens = inf",
    "no number": "min_tokens = nan",
    "no float": f"[anomaly]\nlowest_ratio = {10**400}",
    "no limit": '[tier.a]\nbits = [1, 16]\noverall = { "kl.mean" = { at_most = nan } }',
}


@pytest.mark.parametrize("fault", POLICIES)
def test_policies(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(POLICIES[fault] + "\n" + reports.POLICY.partition("\n")[2])
    with pytest.raises(UsageError):
        Policy.load(path)


RECIPES = {
    "nesting": f"x = {DEEP}",
    "digits": f"x = {DIGITS}",
    "digits of base 8": f"[run]\nthreads = 0o{'7' * 9000}",
    "parts of a key": "a." * 20_000 + "a = 1",
    "parts of an inline table": f"x = {{ {'a.' * 20_000}a = 1 }}",
    "one long word": "x" * 400_000,
    "many quotes": "'" * 399_999,
    "unknown keys": RECIPE + "".join(f"k{n} = 1\n" for n in range(10_000)),
    "texts of several lines": RECIPE + "".join(f'k{n} = """a"""\n' for n in range(7_000)),
    "a pattern of brackets": RECIPE.replace("ffn_down=", f"{'(' * 3000}="),
    "a pattern of counts": RECIPE.replace("ffn_down=", "a{9999999999}="),
    "a policy of none": RECIPE.replace('policy = "default"', 'policy = "\\u0000"') + "x = 1",
    "languages of none": RECIPE.replace('["en", "zh"]', '["\\u0000"]') + "x = 1",
    "a long name": RECIPE.replace('path = "model"', f'path = "{"m" * 5000}"') + "x = 1",
    "a name of none": RECIPE.replace('path = "model"', 'path = "m\\u0000"') + "x = 1",
}


@pytest.mark.parametrize("fault", RECIPES)
def test_recipes(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPES[fault])
    try:
        _, problems = recipe_reader.read(path)
    except RecipeError:
        return
    assert problems


GO = {
    "a field that a chat has not": "{{ .Role }}",
    "a field that a message has not": "{{ range .Messages }}{{ .System }}{{ end }}",
    "a range over a text": "{{ range .System }}x{{ end }}",
    "nesting": "{{ if .System }}" * 3000 + "x" + "{{ end }}" * 3000,
    "many alternatives": "{{ if .System }}" + "{{ else if .System }}" * 3000 + "{{ end }}",
}


@pytest.mark.parametrize("fault", GO)
def test_go_templates(fault: str) -> None:
    with pytest.raises(CorruptFile, match="Go template"):
        render_go(GO[fault], [{"role": "user", "content": "x"}])


@pytest.mark.parametrize("template", ["{{ range" + " " * 60_000, "{{" * 60_000, "{{- " * 60_000])
def test_actions_without_an_end_take_no_time(template: str) -> None:
    assert render_go(template, [{"role": "user", "content": "x"}]) == template


def test_trimming_of_go_templates() -> None:
    said = [{"role": "system", "content": "s"}]
    assert render_go("a {{- .System -}} b", said) == "asb"
    assert render_go("a {{-\n.System}} b", said) == "as b"
    assert render_go("a {{.System -}}\n b {{ .System }}", said) == "a sb s"


def test_a_long_go_template_takes_no_time() -> None:
    text = render_go("{{ .System }}x" * 50_000, [{"role": "system", "content": "s"}])
    assert text == "sx" * 50_000


OPERATORS = (
    "Add", "Cast", "DequantizeLinear", "Gather", "GatherBlockQuantized", "Gemm", "Identity",
    "MatMul", "MatMulNBits", "Mul", "QMoE", "ReduceSum", "Reshape", "Transpose", "Unsqueeze",
    "SimplifiedLayerNormalization", "GroupQueryAttention", "RotaryEmbedding",
)  # fmt: skip


def graph(tmp_path: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    """A model whose graph was edited."""
    folder = Path(shutil.copytree(models.converted("onnx:int4"), tmp_path / "model"))
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    edit(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


@pytest.mark.parametrize("inputs", [[], [""], ["", "", ""], ["input_ids"]])
@pytest.mark.parametrize("operator", OPERATORS)
def test_nodes_without_inputs(operator: str, inputs: list[str], tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.node.insert(0, helper.make_node(operator, inputs, ["made"], name="odd"))
        model.graph.node.append(helper.make_node("Add", ["made", "made"], ["more"]))

    with suppress(ZenError):  # others than these are faults
        open_checkpoint(graph(tmp_path, edit))


def test_a_value_that_two_nodes_make(tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.node.append(model.graph.node[0])

    with pytest.raises(CorruptFile, match="two nodes make"):
        open_checkpoint(graph(tmp_path, edit))


GENAI: dict[str, Any] = {
    "num_attention_heads": "x", "head_size": [16], "hidden_size": None, "num_hidden_layers": 1.5,
    "num_key_value_heads": {}, "sliding_window": "x",
}  # fmt: skip


@pytest.mark.parametrize("key", GENAI)
def test_ill_typed_genai_config(key: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models.converted("onnx:int4", "qwen2"), tmp_path / "model"))
    (folder / "config.json").unlink()
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"][key] = GENAI[key]
    path.write_text(json.dumps(config))
    if key == "sliding_window":
        assert open_checkpoint(folder).hyperparameters.sliding_window is None
        return
    with pytest.raises(InvalidInput, match=key):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", ["{}", "[]", '{"dsseEnvelope": {"payload": "e30="}}', DEEP, "1"])
def test_signatures(text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.sig"
    path.write_text(text)
    with pytest.raises(CorruptFile):
        statement_digests(path)
    with pytest.raises(CorruptFile):
        is_keyless(path)


LISTS = "[" * 300 + "]" * 300
"""Deeper than any file of a model: whoever goes through them by recursion ends sooner or later."""


@pytest.mark.parametrize(
    "text", [DEEP, DIGITS, '"\\ud800"', '{"a": "x\\uDFFF"}', "\xff", LISTS, f'{{"a": {LISTS}}}']
)
def test_json(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(CorruptFile, match=r"JSON|UTF-8"):
        parse_json(path)
    with pytest.raises(CorruptFile):
        read_record(path)


def test_nested_values_that_nobody_understands(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models.folder(), tmp_path / "model"))
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("{", f'{{"_x": {LISTS},', 1))
    with pytest.raises(CorruptFile, match="nested more than 100 deep"):
        open_checkpoint(folder)
    (tmp_path / "x.jsonl").write_text(f'{{"text": {LISTS}}}')
    with pytest.raises(CorruptFile, match="nested more than 100 deep"):
        load_samples(tmp_path / "x.jsonl")
    shallow = "[" * 100 + "]" * 100
    (tmp_path / "x.json").write_text(shallow)
    assert parse_json(tmp_path / "x.json")


def test_a_pair_of_halves_is_a_character(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('"\\ud83d\\ude00"')
    assert parse_json(path) == "\N{GRINNING FACE}"


def test_sums_of_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "SHA256SUMS"
    with path.open("wb") as file:
        file.truncate(4 << 30)
    with pytest.raises(CorruptFile, match="4294967296 bytes"):
        read_sums(path)


def test_a_tokenizer_that_says_nothing_of_dropout(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models.folder(), tmp_path / "model"))
    definition = models.tokenizer_json()
    assert "dropout" not in definition["model"]
    assert open_checkpoint(folder).tokenizer.tokens == list(models.TOKENS)


def test_a_histogram_of_other_classes(tmp_path: Path) -> None:
    value = json.loads(reports.report_bytes())
    value["kl_histogram"]["counts"].append(1)
    with pytest.raises(CorruptFile, match="kl_histogram"):
        Report.from_dict(value)


def test_a_histogram_of_nothing_is_drawn(tmp_path: Path) -> None:
    value = json.loads(reports.report_bytes())
    for table in (value["kl_histogram"], value["noise_floor"]["kl_histogram"]):
        table["counts"] = [0] * len(table["counts"])
    assert "<svg" in report_page(Report.from_dict(value))


def side(tmp_path: Path, name: str, value: Any) -> Path:
    """The small model with another side file."""
    folder = Path(shutil.copytree(models.folder(), tmp_path / "model"))
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / name).write_text(text)
    return folder


CARRIED: dict[str, Any] = {
    "a type that is none": ["u33", 1], "an array of none": ["arr:u33", [1]],
    "a list for a text": ["str", ["a"]], "a text for a list": ["arr:str", "abc"],
    "a number of texts": ["arr:str", [1]], "a number for a bool": ["bool", 1],
    "a bool for a number": ["u8", True], "beyond the type": ["u8", 256], "below it": ["u32", -1],
    "a real for a whole": ["i32", 1.5], "nothing": ["f32", None], "beyond a float": ["f32", 1e39],
    "arrays of arrays": ["arr:arr:u8", [[1]]], "one that is beyond": ["arr:i8", [1, 128]],
}  # fmt: skip


@pytest.mark.parametrize("fault", CARRIED)
def test_values_that_are_not_of_their_gguf_type(fault: str, tmp_path: Path) -> None:
    folder = side(tmp_path, "zenconvert.json", {"gguf": {"x.y": CARRIED[fault]}})
    with pytest.raises(CorruptFile, match=r"'x\.y' should hold a value of the GGUF type"):
        open_checkpoint(folder)


def test_keys_that_a_model_has_of_itself_are_not_carried(tmp_path: Path) -> None:
    values = {
        "general.alignment": ["u32", 0], "general.architecture": ["str", "other"],
        "llama.block_count": ["u32", 99], "tokenizer.ggml.tokens": ["arr:str", ["x"]],
        "general.name": ["str", "Kept"], "x.y": ["u8", 255],
    }  # fmt: skip
    folder = side(tmp_path, "zenconvert.json", {"gguf": values})
    convert(folder, tmp_path / "out.gguf", "gguf:f16")
    found = container.read(tmp_path / "out.gguf").metadata
    assert found["general.architecture"] == ("str", "llama")
    assert found["llama.block_count"] == ("u32", 1)
    assert len(found["tokenizer.ggml.tokens"][1]) == len(models.TOKENS)
    assert "general.alignment" not in found
    assert (found["general.name"], found["x.y"]) == (("str", "Kept"), ("u8", 255))


def test_no_end_of_text_at_all(tmp_path: Path) -> None:
    folder = side(tmp_path, "generation_config.json", {"eos_token_id": []})
    for target in ("onnx:f32", "gguf:f16", "hf:f16"):
        plan(folder, target)


def test_a_card_of_yaml_that_takes_long(tmp_path: Path) -> None:
    folder = side(tmp_path, "README.md", "---\nx: [" + "a, " * 30_000 + "]\n---\n")
    (warning,) = (w for w in open_checkpoint(folder).warnings if "README" in w)
    assert re.search(r"front matter of 9000\d characters", warning)


@pytest.mark.parametrize(
    "value", ["!!int ''", "!!bool x", "!!timestamp x", "!!float ''", "!!int x"]
)
def test_a_card_of_tags_that_do_not_fit(value: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\nversion: {value}\n---\n")
    facts, (warning,) = read_card(tmp_path)
    assert not facts
    assert "its facts are left out" in warning


@pytest.mark.parametrize("nested", ["- " * 20_000 + "a", "x: " + "[" * 9000, "? " * 9000, "a: *a"])
def test_a_card_of_nested_yaml(nested: str, tmp_path: Path) -> None:
    """libyaml composes by recursion, whose end is the process's."""
    (tmp_path / "README.md").write_text(f"---\n{nested}\n---\n")
    facts, (warning,) = read_card(tmp_path)
    assert not facts
    assert "its facts are left out" in warning


def test_a_card_is_read_as_yaml_of_python_reads_it(tmp_path: Path) -> None:
    lines = [
        "license: [mit, 'apache-2.0']", "version: 1.10", "model_version: '1.10'", "name: true",
        "author: 1_000", "date: 2024-01-31", "when: 2001-12-14t21:59:43.10-05:00", "x: 0o17",
        "y: 017", "z: .inf", "tags:\n- a\n-  b # c\n- é 日本", "description: >-\n  two\n  lines",
        "other: |\n  as\n   it is", 'url: "a\\tb\\u00e9"', "n: ~", "q: 12:30:45",
        "'k': {a: 1, b: [2]}",
    ]  # fmt: skip
    text = "\n".join(lines)
    (tmp_path / "README.md").write_text(f"---\n{text}\n---\n", encoding="utf-8")
    facts, _ = read_card(tmp_path)
    expected = yaml.load(text, Loader=yaml.SafeLoader)
    assert len(facts) > 12
    assert facts == {key: expected[key] for key in facts}


STATISTICS: dict[str, tuple[str, str, Any]] = {
    "a language that is not there": ("windows.languages", "data", [7, 0]),
    "a negative language": ("windows.languages", "data", [-1, 0]),
    "a window longer than its ids": ("windows.lengths", "data", [2, 9]),
    "a negative length": ("windows.lengths", "data", [4, -1]),
    "one number for rows": ("layers.0.attn.q.tokens", "dtype", "F64"),
    "sums of whole numbers": ("layers.0.attn.q.squares", "dtype", "I32"),
    "rows in another order": ("layers.0.attn.q.squares", "shape", [4, 2]),
    "sums in one row": ("layers.0.attn.q.magnitudes", "shape", [8]),
    "moments that are no floats": ("layers.0.attn.q.moments", "dtype", "I32"),
}


@pytest.mark.parametrize("count", ["1e300", "99999999999999999999", "null", "true", "-1"])
def test_counts_of_statistics(count: str, tmp_path: Path) -> None:
    data = statistics_file()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"]["coverage"] = f'[{{"tokens": 5}}, {{"tokens": {count}}}]'
    text = json.dumps(header).encode()
    path = tmp_path / "x.stats"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with suppress(InvalidInput):
        open_statistics(path)


def test_names_of_statistics_that_are_no_text(tmp_path: Path) -> None:
    data = statistics_file()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"]["inputs"] = r'{"\ud800": ["layers.0.attn.q"]}'
    text = json.dumps(header).encode()
    path = tmp_path / "x.stats"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with pytest.raises(CorruptFile, match="metadata is damaged"):
        open_statistics(path)


@pytest.mark.parametrize("fault", STATISTICS)
def test_statistics(fault: str, tmp_path: Path) -> None:
    name, what, value = STATISTICS[fault]
    data = bytearray(statistics_file())
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if what == "data":
        begin = 8 + size + header[name]["data_offsets"][0]
        data[begin : begin + 8] = struct.pack("<2i", *value)
    else:
        header[name][what] = value
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = tmp_path / "x.stats"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    found = open_statistics(path)

    def use() -> None:
        found.of("layers.0.attn.q", moments=True)
        list(found.states())

    with pytest.raises(CorruptFile):
        use()


@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps"])
def test_numbers_that_a_gguf_type_cannot_hold(key: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models.folder("mixtral"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: 1e300}))
    with pytest.raises(ZenError, match="1e"):
        plan(folder, "gguf:f16")


def test_dots_in_texts_and_tables_are_no_parts_of_a_key(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    dots = ".".join("a" * 99)
    path.write_text(f'name = "{dots}"  # {dots}\n' + reports.POLICY.partition("\n")[2])
    assert Policy.load(path).name == dots


ROTATIONS = {
    "a base of one": {"type": "yarn", "factor": 2.0, "rope_theta": 1.0},
    "turns of nothing": {"type": "yarn", "factor": 2.0, "beta_fast": 1.7e308},
    "a factor of nothing": {"type": "linear", "factor": 5e-324},
    "an amplitude without end": {"type": "yarn", "factor": 2.0, "attention_factor": 1e300},
}


@pytest.mark.parametrize("fault", ROTATIONS)
def test_rotations_that_are_no_numbers(fault: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models.folder(), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    theta = ROTATIONS[fault].get("rope_theta", 1e4)
    config |= {"rope_theta": theta, "rope_scaling": ROTATIONS[fault]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match="rope_theta"):
        plan(folder, "onnx:f32")


def test_a_location_longer_than_names_can_be(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models.converted("onnx:f32"), tmp_path / "model"))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "x" * 5000
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(SourceNotFound):
        open_checkpoint(folder)
