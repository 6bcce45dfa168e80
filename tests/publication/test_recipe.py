"""Recipes: what they say, and that every mistake is found at once, with its line."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from zenconvert import plan_release
from zenconvert.cli import cli
from zenconvert.errors import RecipeError, SourceNotFound, UsageError
from zenconvert.model.target import Target
from zenconvert.publication.preparation import prepare
from zenconvert.publication.recipe import SPLIT, THREADS
from zenconvert.publication.recipe_reader import TABLES, VARIANT, read
from zenconvert.publication.toml_lines import Lines

SMALLEST = """\
[source]
path = "builtin:zen-nano"
[output]
folder = "release"
[[variant]]
target = "gguf:q4_k_m"
[[variant]]
target = "gptq:w4g128"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(SMALLEST)
    return path


def mistakes(path: Path, text: str) -> dict[int, str]:
    """Line → what is wrong there."""
    path.write_text(text)
    with pytest.raises(RecipeError) as found:
        prepare(path)
    assert str(path) in str(found.value)
    return dict(found.value.problems)


def test_the_smallest_recipe(recipe: Path) -> None:
    prepared = prepare(recipe)
    made = prepared.recipe
    assert made.source.name == "zen-nano"
    assert made.output.folder == recipe.parent / "release"
    assert (made.output.split, made.threads) == (SPLIT, THREADS)
    first, second = prepared.variants
    assert (first.name, first.shelf, first.out("zen-nano")) == (
        "Q4_K_M", "GGUF", "GGUF/zen-nano-Q4_K_M.gguf"
    )  # fmt: skip
    assert first.options.split_max_size == SPLIT
    assert (second.name, second.shelf, second.out("zen-nano")) == ("GPTQ-w4g128",) * 3
    assert prepared.calibrated == {"Q4_K_M", "GPTQ-w4g128"}
    assert prepared.engines["Q4_K_M"] == ("torch", "llamacpp")
    assert prepared.selection is not None
    assert len(prepared.selection.languages) == 10


def test_all_mistakes_at_once(recipe: Path) -> None:
    found = mistakes(
        recipe,
        """\
[source]
path = "builtin:zen-nano"
license = "mit"
tags = "one"
[output]
folder = "release"
split = "much"
[calibration]
languages = ["en", "xx"]
[verify]
engines = ["torch", "lamacpp"]
languages = ["klingon"]
[gate]
policy = "absent.toml"
[modell]
[[variant]]
target = "gguf:q4_k_m"
[[variant]]
target = "gguf:q9"
[[variant]]
target = "guf:q4_0"
[[variant]]
name = "bad name"
[[variant]]
target = "gguf:q4_k_m"
pure = "yes"
[[variant]]
target = "gguf:q8_0"
solver = "awq"
engines = ["vllm"]
[[variant]]
target = "gptq w4"
[[variant]]
target = "awq:w4g48"
tensor_types = ["(=q8_0"]
""",
    )
    expected = {
        3: "there is no key 'license' in [source]; did you mean 'licence'?",
        4: "'tags' in [source]: expected a list of strings, e.g. [\"en\", \"zh\"], found 'one'",
        7: "'split' in [output]: size 'much' is malformed",
        9: "no bundled text in 'xx'",
        11: "'engines' in [verify]: there is no 'lamacpp'; known are torch, llamacpp",
        12: "no bundled text in 'klingon'",
        14: "absent.toml: cannot be read",
        15: "there is no key 'modell'; known are source, output",
        21: "there is no format 'guf'; did you mean 'gguf'?",
        22: "a variant needs a 'target'",
        23: "'name' in [[variant]]: expected letters, digits",
        25: "the variant of line 16 is called 'Q4_K_M' already",
        26: "'pure' in [[variant]]: expected true or false, found 'yes'",
        27: "Q8_0: awq cannot fill gguf targets; rtn and gptq can",
        30: "Q8_0: none of the engines vllm runs gguf",
        32: "target 'gptq w4' is malformed",
        33: "AWQ-w4g48: ",
        35: "invalid regular expression",
    }
    assert found.keys() == {*expected, 18}
    assert "GGUF has no file type 'q9'" in found[18]
    for line, text in expected.items():
        assert text in found[line], line


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("[source\n", 1, "this is not TOML"),
        ('[source]\npath = "a"\npath = "b"\n', 3, "this is not TOML"),
        ("[source]\n", 1, "there is no [output]"),
        ("a = [\n", 2, "this is not TOML"),
        (SMALLEST.replace("path", "paths"), 1, "[source] needs a 'path'"),
        (SMALLEST.replace("[[variant]]", "[variant]", 1).split("[[")[0], 5, "array of tables"),
        (SMALLEST.replace('"release"', '"."'), 4, "holds other things than a release"),
        (SMALLEST.replace('"gptq', '"awq:w3g128"\n#"'), 7, "AWQ-w3g128: "),
        (SMALLEST + 'name = "gguf"\n', 9, "the folder of all GGUF files"),
        (SMALLEST + 'name = "q4_k_M"\n', 9, "of line 5 is called 'Q4_K_M' already"),
        (SMALLEST + '[verify]\ntext = "absent.txt"\n', 10, "there is no such text file"),
        (SMALLEST + '[verify]\ndevice = "tpu7"\n', 10, "torch cannot use the device 'tpu7'"),
        (SMALLEST + '[gate]\nagainst = "absent.json"\n', 10, "cannot be read"),
        (SMALLEST + "[calibration]\nlanguage_weights = { en = -1 }\n", 10, "from 0 on"),
        (SMALLEST + "[run]\nthreads = 0\n", 10, "a whole number from 1 on"),
        (SMALLEST + "[publish]\nprivate = true\n", 9, "[publish] needs a 'hub'"),
        (SMALLEST + '[publish]\nhub = "me"\nallow = ["pass"]\n', 11, "there is no 'pass'"),
        (SMALLEST + 'solver = "gptq"\ncalibrate = false\n', 7, "needs --stats"),
        (
            SMALLEST.replace("q4_k_m", "iq2_xs") + "[calibration]\nenabled = false\n",
            5,
            "needs importance weights and there are none",
        ),
    ],
)
def test_single_mistakes(recipe: Path, text: str, line: int, reason: str) -> None:
    assert reason in mistakes(recipe, text)[line]


def test_a_source_that_cannot_be_used_keeps_its_error(recipe: Path) -> None:
    recipe.write_text(SMALLEST.replace("builtin:zen-nano", "./absent"))
    with pytest.raises(SourceNotFound, match="no such file or folder") as caught:
        prepare(recipe)
    assert caught.value.__notes__ == [f"{recipe}:2: 'path' in [source] names it"]
    both = mistakes(recipe, recipe.read_text().replace("folder", "folders"))
    assert sorted(both) == [2, 3, 4]  # the output's mistake hides no other


def test_a_source_is_looked_for_beside_the_recipe(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere" / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = mistakes(recipe, SMALLEST.replace("builtin:zen-nano", "org/model"))
    assert found == {2: "there is no org/model beside the recipe; one lies where you stand, which "
                        "is not what a recipe means"}  # fmt: skip


@pytest.mark.parametrize("solver", ["", 'solver = "rtn"'])
def test_a_walk_back_that_nothing_makes_use_of(recipe: Path, solver: str) -> None:
    text = SMALLEST.replace("[output]", "[calibration]\nfisher = true\n[output]")
    text = text.replace('q4_k_m"', f'q4_k_m"\n{solver}')
    found = mistakes(recipe, text)
    assert list(found) == [4]
    assert "'fisher' has no use here" in found[4]
    recipe.write_text(text.replace(solver or 'q4_k_m"', (solver and 'solver = "gptq"') or
                                   'q4_k_m"\nsolver = "gptq"'))  # fmt: skip
    assert prepare(recipe).recipe.calibration.calibrating.fisher


def test_everything_is_read(recipe: Path) -> None:
    (recipe.parent / "text").mkdir()
    recipe.write_text("""\
[source]
path = "org/model"
revision = "abc"
name = "Model"
base_model = "org/base"
licence = "mit"
languages = ["en"]
tags = ["a", "b"]
[output]
folder = "../out"
split = "4G"
[calibration]
samples = "text"
languages = ["en"]
tokens_per_language = 100
context = 64
seed = 3
dtype = "f32"
all_experts = true
fisher = true
max_vram = "20G"
max_ram = 1000
[calibration.language_weights]
en = 2
[verify]
engines = ["torch"]
text = "text/a.jsonl"
languages = ["en"]
[gate]
policy = "policy.toml"
against = "old/report.json"
[run]
threads = 8
device = "cuda"
[publish]
hub = "me"
private = true
allow = ["PASS", "UNMEASURED"]
[[variant]]
target = "GGUF:Q4_K_M"
name = "Q4_K_L"
engines = ["llamacpp"]
tensor_types = ["ffn_down=Q6_K"]
output_type = "Q8_0"
embedding_type = "q8_0"
pure = true
exact = true
allow_requantize = true
largest_error = 0.5
calibrate = false
""")
    made, problems = read(recipe)
    assert problems == []
    assert (made.source.location, made.source.name) == ("org/model@abc", "Model")
    calibrating = made.calibration.calibrating
    assert calibrating.samples == str(recipe.parent / "text")
    assert (calibrating.max_vram, calibrating.language_weights) == (20_000_000_000, {"en": 2.0})
    assert made.calibration.device == made.verification.device == "cuda"
    assert made.verification.text == recipe.parent / "text/a.jsonl"
    assert made.gate.policy == str(recipe.parent / "policy.toml")
    assert made.gate.against == recipe.parent / "old/report.json"
    assert made.publishing is not None
    assert made.publishing.allow == ("PASS", "UNMEASURED")
    (variant,) = made.variants
    assert variant.target == Target("gguf", "q4_k_m")
    assert variant.options.tensor_types == (("ffn_down", "q6_k"),)
    assert (variant.options.output_type, variant.options.split_max_size) == ("q8_0", 4_000_000_000)
    assert variant.out("Model") == "GGUF/Model-Q4_K_L.gguf"


def test_only_some_variants(recipe: Path) -> None:
    assert [v.name for v in prepare(recipe, ["q4_k_m"]).variants] == ["Q4_K_M"]
    with pytest.raises(UsageError, match="no variant 'q5_k_m'; it has Q4_K_M, GPTQ-w4g128"):
        prepare(recipe, ["q5_k_m"])


def test_large_files_are_split_as_people_expect(recipe: Path) -> None:
    recipe.write_text(SMALLEST.replace('"release"', '"release"\nsplit = "3M"'))
    first = plan_release(recipe).variants[0]
    assert [file.path for file in first.files] == [
        f"GGUF/zen-nano-Q4_K_M-{n:05}-of-00003.gguf" for n in (1, 2, 3)
    ]


def test_the_command_takes_a_recipe_or_a_command(recipe: Path) -> None:
    for arguments in (["release", str(recipe)], ["release", "run", str(recipe)]):
        done = CliRunner().invoke(cli, [*arguments, "--dry-run", "--json"])
        assert done.exit_code == 0, done.output
        value = json.loads(done.stdout)
        assert [v["name"] for v in value["variants"]] == ["Q4_K_M", "GPTQ-w4g128"]
        assert value["peak"]["disk"] > 18_000_000
    assert not (recipe.parent / "release").exists()
    shown = CliRunner().invoke(cli, ["release", "--dry-run", str(recipe)]).stdout
    assert "GGUF/zen-nano-Q4_K_M.gguf" in shown
    assert "Q4_K_M (gguf:q4_k_m): 7 tensors bf16 → q6_k (quantize); 44 tensors" in shown


def test_the_skypilot_task_is_whole(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "task.yaml"
    arguments = ["--nodes", "4", "--volume", "shared", "--accelerators", "H100:1"]
    done = CliRunner().invoke(cli, ["release", "skypilot", str(recipe), str(out), *arguments])
    assert done.exit_code == 0, done.output
    task = yaml.safe_load(out.read_text())
    assert task["num_nodes"] == 4
    assert task["volumes"] == {"/release": "shared"}
    assert task["resources"]["accelerators"] == "H100:1"
    assert task["resources"]["memory"].endswith("+")
    assert "cd /release && zenconvert release recipe.toml --executor ray" in task["run"]
    assert task["run"].index("start_cluster") < task["run"].index("zenconvert release")


NAMES = st.sampled_from(["a", "b-1", '"c.d"', "'e f'"])
VALUES = st.sampled_from(
    [
        "1",
        '"x # ["',
        "'''\n[t]\nk = 1\n'''",
        '"""\\"""\n a = 2\n"""',
        "[\n 1, # ]\n 2]",
        "{ a = 1 }",
    ]
)
TEXTS = st.lists(
    st.tuples(st.booleans(), NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), max_size=4
)


@given(TEXTS)
def test_lines_of_keys(tables: list[tuple[bool, str, dict[str, str]]]) -> None:
    """Every key of any text is where it was written."""
    text, places, seen = "", dict[tuple[Any, ...], int](), dict[str, int]()
    for is_array, raw, keys in tables:
        prefix = "x" if is_array else f"y{len(places)}"
        header = f"{prefix}.{raw}"
        line = text.count("\n") + 1
        if is_array:
            seen[raw] = seen.get(raw, -1) + 1
            place: tuple[Any, ...] = ("x", raw.strip("\"'"), seen[raw])
            text += f"[[{header}]] # [[no]]\n"
        else:
            place = (prefix, raw.strip("\"'"))
            text += f"  [{header}]\n"
        places[place] = line
        for key, value in keys.items():
            places[(*place, key.strip("\"'"))] = text.count("\n") + 1
            text += f" {key} = {value}\n"
    tomllib.loads(text)
    lines = Lines(text)
    assert {place: lines.of(place) for place in places} == places
    assert lines.of(("nowhere",)) == 1


def test_the_documentation_has_every_key_and_the_smallest_recipe() -> None:
    text = (Path(__file__).parent.parent.parent / "docs/release.md").read_text()
    assert SMALLEST in text
    keys = {key for table in (*TABLES.values(), VARIANT) for key in table}
    assert {key for key in keys if f"`{key}`" not in text} == set()
