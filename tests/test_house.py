"""The rules of the house: import directions, public names, start-up cost, help texts."""

from __future__ import annotations

import ast
import graphlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import zenconvert
from zenconvert import errors
from zenconvert.cli import cli

ROOT = Path(__file__).parent.parent
ROOMS = {"zenconvert": ROOT / "zenconvert", "formats": ROOT / "formats", "calib": ROOT / "calib"}

# A room, or a module that stands alone, may import from its own floor and from those below.
LEVELS = (
    {"version"},
    {"errors"},
    {"base"},
    {"model"},
    {"ggml"},
    {"formats", "texts"},
    {"reference"},
    {"calib"},
    {"models"},
    {"opening"},
    {"planning"},
    {"write"},
    {"solve"},
    {"conversion", "inspection"},
    {"batch", "difference"},
    {"verification"},
    {"publication"},
    {"cli"},
    {"__main__"},
)
MEASURING = {"texts", "reference", "calib"}  # which know no format, and no format knows them
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}


def modules() -> list[tuple[str, Path]]:
    """(dotted name below zenconvert, file) of every module."""
    found = []
    for room, folder in ROOMS.items():
        for path in sorted(folder.rglob("*.py")):
            if room == "zenconvert" and path.relative_to(folder).parts[0] in {"formats", "calib"}:
                continue  # links
            parts = list(path.relative_to(folder).with_suffix("").parts)
            dotted = ([] if room == "zenconvert" else [room]) + parts
            found.append((".".join(p for p in dotted if p != "__init__"), path))
    return found


def imports(path: Path) -> list[str]:
    """Dotted names below zenconvert that a file imports, at once, later or for types alone."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module == "zenconvert":
                names += [alias.name for alias in node.names]
            elif node.module.startswith("zenconvert."):
                base = node.module.removeprefix("zenconvert.")
                names += [f"{base}.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Import):
            names += [
                alias.name.removeprefix("zenconvert.")
                for alias in node.names
                if alias.name.startswith("zenconvert.")
            ]
    return names


@pytest.mark.parametrize(("name", "path"), [pytest.param(*m, id=m[0] or "api") for m in modules()])
def test_imports_point_one_way(name: str, path: Path) -> None:
    room = name.split(".")[0]
    if not room:
        return  # the API itself loads lazily
    for imported in imports(path):
        other = imported.split(".")[0]
        assert LEVEL[other] <= LEVEL[room], f"{name} imports {imported}"
        assert room != "formats" or other not in MEASURING, f"{name} imports {imported}"
        assert room not in MEASURING or other != "formats", f"{name} imports {imported}"


def test_no_modules_import_each_other() -> None:
    paths = dict(modules())
    sorter = graphlib.TopologicalSorter[str]()
    for name, path in paths.items():
        if name:  # the API itself loads lazily
            found = {i if i in paths else i.rpartition(".")[0] for i in imports(path)}
            sorter.add(name, *(found & paths.keys()))
    sorter.prepare()  # raises CycleError, with the cycle


def test_every_exported_name_exists() -> None:
    assert sorted(zenconvert.__all__) == zenconvert.__all__
    rooms = {name.split(".")[0] for name, _ in modules()}
    for name in zenconvert.__all__:
        assert getattr(zenconvert, name) is not None
        assert name == "errors" or name not in rooms, (
            "an import of the room would hide the function"
        )
    with pytest.raises(AttributeError):
        _ = zenconvert.nonsense


def test_the_error_tree_is_documented() -> None:
    tree = errors.__doc__ or ""
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, errors.ZenError):
            line = re.search(rf"\b{name}\b(.*)", tree)
            assert line is not None, name
            code = re.search(r"\s(\d)\s", line[1])
            if code is not None:
                assert int(code[1]) == value.exit_code, name


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['zenconvert', '--help']\n"
        "from zenconvert.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'numba', 'numpy', 'onnx', 'yaml', 'huggingface_hub'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "heavy: []" in done.stdout


def test_every_command_and_option_has_help() -> None:
    for name, command in cli.commands.items():
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.name}"


def test_the_changelog_has_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {zenconvert.__version__}" in changelog
    assert f'version = "{zenconvert.__version__}"' in (ROOT / "pyproject.toml").read_text()
