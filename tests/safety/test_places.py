"""No input is ever an output, whatever it is called, and whatever is forced."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.fuzz import reports
from tests.safety.outputs import Case, everything
from zenconvert import calibrate, convert, plan_release
from zenconvert.base.places import check_files, check_places, check_side_file
from zenconvert.cli import cli
from zenconvert.errors import RecipeError, UsageError

Cases = dict[str, Case]


def linked(path: Path, to: Path) -> Path:
    path.symlink_to(to)
    return path


# each gives an output that meets the source, a folder
FOLDERS: dict[str, Callable[[Path], Path]] = {
    "itself": lambda source: source,
    "by a dot": lambda source: Path(f"{source}/."),
    "by its parent": lambda source: source / ".." / source.name,
    "by a link": lambda source: linked(source.parent / "link", source),
    "by a link of a link": lambda source: linked(
        source.parent / "second", linked(source.parent / "first", source)
    ),
    "by a linked parent": lambda source: (
        linked(source.parent / "place", source.parent) / source.name
    ),
    "its parent": lambda source: source.parent,
    "its file": lambda source: source / "model.safetensors",
    "a new name in it": lambda source: source / "new.gguf",
    "a new folder in it": lambda source: source / "deep" / "new",
    "a new name in a link to it": lambda source: linked(source.parent / "l", source) / "new",
}


@pytest.mark.parametrize("force", [False, True], ids=["", "force"])
@pytest.mark.parametrize("target", ["gguf:f16", "hf:f16", "gptq:w4g64"])
@pytest.mark.parametrize("make", FOLDERS.values(), ids=FOLDERS)
def test_a_conversion_never_replaces_its_source(
    make: Callable[[Path], Path], target: str, force: bool, source: Path, tmp_path: Path
) -> None:
    out = make(source)
    before = everything(tmp_path)
    with pytest.raises(UsageError, match="the source"):
        convert(source, out, target, force=force)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("make", FOLDERS.values(), ids=FOLDERS)
def test_a_calibration_never_replaces_its_source(
    make: Callable[[Path], Path], source: Path, tmp_path: Path
) -> None:
    out = make(source)
    before = everything(tmp_path)
    with pytest.raises(UsageError, match="the source"):
        calibrate(source, out, force=True)
    with pytest.raises(UsageError, match="the source"):
        calibrate(source, tmp_path / "statistics", imatrix=out, force=True)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("make", ["itself", "link", "hard link", "dot"])
def test_a_file_is_never_replaced_by_its_conversion(
    make: str, cases: Cases, tmp_path: Path
) -> None:
    cases["file"].write(tmp_path)
    source, out = tmp_path / "out.gguf", tmp_path / "other.gguf"
    if make == "link":
        out.symlink_to(source)
    elif make == "hard link":
        out.hardlink_to(source)
    else:
        out = source if make == "itself" else Path(f"{tmp_path}/./{source.name}")
    before = everything(tmp_path)
    with pytest.raises(UsageError, match="the source"):
        convert(source, out, "gguf:q8_0", force=True)
    assert everything(tmp_path) == before
    assert not list(tmp_path.glob(".*"))


def test_the_parts_of_a_split_source_are_not_replaced(cases: Cases, tmp_path: Path) -> None:
    """The first part names the source; the others are read as well."""
    cases["parts"].write(tmp_path)
    first, *others = sorted(tmp_path.iterdir())
    before = everything(tmp_path)
    split = ["--split-max-size", "140K"]
    for out, more in ((first, split), (tmp_path / "out.gguf", split), (others[0], [])):
        arguments = ["convert", str(first), str(out), "--to", "gguf:f16", "--force"]
        done = CliRunner().invoke(cli, [*arguments, *more])
        assert isinstance(done.exception, UsageError)
        assert everything(tmp_path) == before


SIDES = {
    "convert": ("--report",),
    "verify": ("--json", "--html", "--summary"),
}


@pytest.mark.parametrize(
    ("command", "option"), [(c, option) for c, options in SIDES.items() for option in options]
)
@pytest.mark.parametrize("target", ["config.json", "model.safetensors", "new.json"])
def test_no_side_file_is_written_over_the_source(
    command: str, option: str, target: str, source: Path, tmp_path: Path
) -> None:
    before = everything(tmp_path)
    rest = [str(tmp_path / "out"), "--to", "hf:f16"] if command == "convert" else [str(source)]
    done = CliRunner().invoke(cli, [command, str(source), *rest, option, str(source / target)])
    assert isinstance(done.exception, UsageError)
    assert option in str(done.exception)
    assert everything(tmp_path) == before


BAD_SIDES: dict[str, Callable[[Path], Path]] = {
    "no folder": lambda place: place / "absent" / "x.json",
    "a folder": lambda place: place,
    "a device": lambda place: Path("/dev/null"),
    "a link to a device": lambda place: linked(place / "null", Path("/dev/null")),
    "a long name": lambda place: place / ("x" * 256),
    "a loop": lambda place: linked(place / "loop", place / "loop"),
}


def fifo(place: Path) -> Path:
    os.mkfifo(place / "fifo")
    return place / "fifo"


@pytest.mark.parametrize("make", [*BAD_SIDES.values(), fifo], ids=[*BAD_SIDES, "a fifo"])
@pytest.mark.parametrize(
    ("command", "option"), [(c, option) for c, options in SIDES.items() for option in options]
)
def test_side_files_are_looked_at_before_the_work(
    command: str, option: str, make: Callable[[Path], Path], tiny: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    side = make(place)
    rest = [str(tmp_path / "out"), "--to", "hf:f16"] if command == "convert" else [str(tiny)]
    done = CliRunner().invoke(cli, [command, str(tiny), *rest, option, str(side)])
    code = getattr(done.exception, "exit_code", None) or getattr(done.exception, "code", None)
    assert code == 2
    told = done.output + str(done.exception)
    assert option in told
    assert side.name in told
    assert not (tmp_path / "out").exists()


Given = Callable[[Path, Cases], tuple[str, Path]]


def _parts(source: Path, cases: Cases) -> tuple[str, Path]:
    """The first part names the model; any other is read as well."""
    cases["parts"].write(source.parent)
    first, second, *_ = sorted(source.parent.glob("*.gguf"))
    return str(first), second


def _graph(name: str) -> Given:
    """A graph by its own name, with what lies beside it."""

    def make(source: Path, cases: Cases) -> tuple[str, Path]:
        convert(source, source.parent / "onnx", "onnx:f32")
        return str(source.parent / "onnx" / "model.onnx"), source.parent / "onnx" / name

    return make


def _hub(where: str) -> Given:
    """The Hub's cache, whose snapshots link to the files themselves."""

    def make(source: Path, cases: Cases) -> tuple[str, Path]:
        repo = source.parent / "models--org--name"
        snapshot, blobs = repo / "snapshots" / ("0" * 40), repo / "blobs"
        snapshot.mkdir(parents=True)
        source.rename(blobs)
        for number, file in enumerate(sorted(blobs.iterdir())):
            blob = file.rename(blobs / f"{number:040d}")
            linked(snapshot / file.name, Path("../../blobs") / blob.name)
        config = snapshot / "config.json"
        places = {"snapshot": config, "blob": config.resolve(), "new": snapshot / "new.json"}
        return "org/name", places[where]

    return make


READ: dict[str, Given] = {
    "a part of a split file": _parts,
    "the data of a graph": _graph("model.onnx.data"),
    "the config beside a graph": _graph("config.json"),
    "a file in the Hub's cache": _hub("snapshot"),
    "what a link in the Hub's cache leads to": _hub("blob"),
    "a new file in the Hub's cache": _hub("new"),
}


@pytest.mark.parametrize("make", READ.values(), ids=READ)
def test_no_side_file_is_written_over_anything_that_is_read(
    make: Given, source: Path, cases: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model is more than its name says."""
    text = str(tmp_path / "text.jsonl")
    Path(text).write_text('{"language": "en", "text": "The cat sat on the mat."}')
    model, place = make(source, cases)
    snapshot = next(tmp_path.glob("models--org--name/snapshots/*"), source)
    monkeypatch.setattr("zenconvert.opening.sources._download", lambda *_: snapshot)
    before = everything(tmp_path)
    for command in (
        ["convert", model, str(tmp_path / "out"), "--to", "hf:f16", "--report", str(place)],
        ["verify", model, "builtin:zen-nano", "--text", text, "--json", str(place)],
        ["verify", "builtin:zen-nano", model, "--text", text, "--summary", str(place)],
    ):
        done = CliRunner().invoke(cli, command)
        assert isinstance(done.exception, UsageError), done.output
        assert str(place) in str(done.exception)
        assert everything(tmp_path) == before


@pytest.mark.parametrize("command", ["gate", "compare"])
def test_what_a_report_is_about_is_not_written_over(
    command: str, source: Path, tmp_path: Path
) -> None:
    report, policy = tmp_path / "report.json", tmp_path / "policy.toml"
    value = reports.report(source).as_dict()
    value["candidate"]["path"] = value["reference"]["path"] = str(source)
    report.write_text(json.dumps(value))
    policy.write_text("")
    option = "--policy" if command == "gate" else "--gate"
    before = everything(tmp_path)
    for place, more in ((source / "config.json", []), (policy, [option, str(policy)])):
        done = CliRunner().invoke(cli, [command, str(report), "--html", str(place), *more])
        assert isinstance(done.exception, UsageError), done.output
        assert "--html" in str(done.exception)
        assert everything(tmp_path) == before


SMALL = """
[source]
path = "model"
[output]
folder = "release"
[calibration]
samples = "samples"
[verify]
text = "text.jsonl"
[gate]
policy = "policy.toml"
[[variant]]
target = "gguf:f16"
"""


@pytest.mark.parametrize(
    "name", ["recipe.toml", "model/config.json", "text.jsonl", "policy.toml", "samples/a.txt",
             "release/SHA256SUMS", "release/GGUF/notes.md"],
)  # fmt: skip
def test_nothing_of_a_release_is_written_over(name: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "release" / "GGUF").mkdir(parents=True)
    for file in ("text.jsonl", "policy.toml", "samples/a.txt", "release/SHA256SUMS"):
        (tmp_path / file).write_text("mine")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(SMALL)
    before, place = everything(tmp_path), str(tmp_path / name)
    for command in (
        ["run", str(recipe), "--summary", place],
        ["skypilot", str(recipe), place, "--volume", "models"],
    ):
        done = CliRunner().invoke(cli, ["release", *command])
        assert isinstance(done.exception, UsageError), done.output
        assert everything(tmp_path) == before
    assert source.is_dir()


def test_a_release_is_not_among_its_samples(source: Path, tmp_path: Path) -> None:
    """The next run would read its cards."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(SMALL.replace('"samples"', '"."').replace("[gate]", "#"))
    with pytest.raises(RecipeError, match=r"lies in 'samples' in \[calibration\]"):
        plan_release(recipe)
    assert source.is_dir()


def test_a_release_folder_does_not_meet_its_source(source: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    for folder in ("model", "model/release", ".", "link"):
        if folder == "link":
            (tmp_path / folder).symlink_to(source)
        recipe.write_text(
            f'[source]\npath = "model"\n[output]\nfolder = "{folder}"\n'
            '[[variant]]\ntarget = "gguf:f16"\nengines = []\n'
        )
        before = everything(tmp_path)
        with pytest.raises(RecipeError, match="the source"):
            plan_release(recipe)
        assert everything(tmp_path) == before


def test_what_is_compared(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    check_places({"in": one}, {"OUT": two, "--json": tmp_path / "three"})
    check_places({"in": "org/name", "absent": None}, {"OUT": one})
    with pytest.raises(UsageError, match="OUT is --json"):
        check_places({}, {"OUT": two, "--json": tmp_path / "x" / ".." / "two"})
    with pytest.raises(UsageError, match="OUT is --json"):
        check_places({}, {"OUT": two, "--json": tmp_path / "TWO"})  # one file on some disks
    with pytest.raises(UsageError, match="OUT holds --json"):
        check_places({}, {"OUT": two, "--json": two / "report.json"})
    shutil.copy(one, two)
    check_files("OUT", two, [two], [one])
    two.unlink()
    two.hardlink_to(one)
    with pytest.raises(UsageError, match="a file of the source"):
        check_files("OUT", two, [two], [one])


def test_a_side_file_may_be_new_old_or_a_link(tmp_path: Path) -> None:
    check_side_file("--json", tmp_path / "new")
    (tmp_path / "old").write_bytes(b"1")
    check_side_file("--json", tmp_path / "old")
    check_side_file("--json", linked(tmp_path / "link", tmp_path / "old"))
    check_side_file("--json", linked(tmp_path / "dangling", tmp_path / "there"))
    check_side_file("--json", None)
