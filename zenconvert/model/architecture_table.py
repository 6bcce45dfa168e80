"""The tables in ``zenconvert/architectures/``: read, put together and checked, row by row.

A table may be ``like`` another one and say only what differs: its keys replace that one's, the keys
of a section replace that section's keys, a module of the same name replaces that module and any
other stands ``after`` the module that it names; ``without`` lists modules that are left out, and
balance rows, once there are any, replace all. ``[of.TYPE]`` says in the same way what differs for
one model type of the family.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NoReturn

from zenconvert.errors import InvalidInput
from zenconvert.model.block_features import RULES
from zenconvert.model.gguf_rules import GRAPH, TOKENIZER
from zenconvert.model.layer_kinds import LAYERS, LIST_RULES
from zenconvert.model.operations import NAMES, ROWS
from zenconvert.model.size_names import COMPUTED_SIZES, SIZES

ROLES: Final = ("embed", "linear", "norm", "router", "head", "kept")
IGNORED: Final = "ignored"
ALWAYS: Final = "always"
"""Key of ``[biases]`` for modules that have one whatever the config says."""
_NONE: Final = "none"

_SECTIONS: Final = (
    "sizes", "layers", "defaults", "config", "block", "biases", "gguf_operations", "gguf_keys",
    "gguf_implied", "gguf_graph", "gguf_tokenizer", "gguf_config", "needs",
)  # fmt: skip
_KEYS: Final = (
    "like", "model_types", "within", "class", "gguf", "experts", "further", "without", "of",
    "module", "balance", "wrapper", *_SECTIONS,
)  # fmt: skip
_REQUIRED: Final = ("model_types", "class", "gguf", "module", "balance", *_SECTIONS)
_MODULE_KEYS: Final = (
    "name", "hf", "gguf", "role", "shape", "hf_also", "hf_stack", "hf_stack_part", "hf_rows",
    "gguf_rows", "after", "layers", "full_shape", "sharing_shape", "unshared",
    "only_with", "hf_bare", "gguf_bare", "hf_stacked", "hf_turned", "gguf_values", "heads",
    "gguf_tiled", "gguf_flat", "gguf_order",
)  # fmt: skip
_FLAGS: Final = ("hf_bare", "gguf_bare", "hf_stacked", "hf_turned", "unshared", "gguf_tiled")
_OTHER_NAMES: Final = ("hf_also", "hf_stack", "hf_rows", "gguf_rows", "gguf_values")
_WRAPPER: Final = ("model_type", "config", "text_type", "beside", "prefixes")
_VARIANT_KEYS: Final = ("class", "gguf_without", *_SECTIONS)
_OWN: Final = ("of", "without", "wrapper", "within")
"""Keys that are not taken over from the table that another is like."""
ROTATIONS: Final = "rotations"
"""What the row of all keys about scaled rotations holds."""
PATTERN: Final = "pattern"
"""What the row at the place of the list of layers that slide holds."""
RECURRENT: Final = "recurrent"
"""What that of layers with linear attention holds."""
_CONSTANT: Final = r"u32 \d+|bool (true|false)"
"""A row that is the same in all files."""
BY_LAYER: Final = "by_layer"
"""Before one of these in ``[gguf_keys]``: a number for every layer where some have others."""
BY_LAYERS: Final = ("kv_heads", "ffn")
FILE_TYPE: Final = "file_type"
"""What the row at the place of the file type holds."""
PLACES: Final = (ROTATIONS, FILE_TYPE, PATTERN, RECURRENT)
SECTIONS: Final = "sections"
"""Before numbers in ``[gguf_keys]``: pairs of channels that rotate by dimensions of positions."""
ALL: Final = "*"
"""With ``none`` in ``[gguf_keys]``: what the table that this is like has there is left out."""
OTHER: Final = " other"
"""After a size in ``[gguf_keys]``: only written where it is other than what is implied."""
UNREAD: Final = " unread"
"""After a size in ``[gguf_keys]``: written as the converter does, and llama.cpp computes with what
is implied."""
ZERO: Final = " or 0"
"""After a size in ``[gguf_keys]``: 0 is written where the model has none."""
_GGUF_TYPES: Final = ("u32", "f32")
TEXT: Final = "text"
"""Before a word in ``[gguf_keys]`` that all files have there."""
_BALANCE: Final = {"heads": "kv_to_q", "through": "1+w"}
"""What else a balance row may say, and how."""
BLOCK_KEYS: Final = frozenset(RULES)
"""What ``[block]`` may say of a family."""
_HOLES: Final = ("{layer}", "{expert}", "{head}")


@dataclass(frozen=True)
class Table:
    """One family, whole."""

    path: Path
    values: Mapping[str, Any]

    def variant(self, model_type: str) -> Mapping[str, Any]:
        """What holds for one model type."""
        return _laid_over(self.values, self.values.get("of", {}).get(model_type, {}))


def read_table(path: Path, operations: Collection[str]) -> Table:
    """Read and check a table.

    ``operations`` are the names of those that there are. Raises InvalidInput that names the file
    and the row.
    """
    values = _read(path, ())
    check = _Check(path)
    check.keys("the table", values, _KEYS, _REQUIRED)
    types = check.strings("model_types", [*values["model_types"], *values.get("within", ())])
    for model_type in values.get("of", {}):
        if model_type not in types:
            check.fail(f"[of.{model_type}]", f"model_types are {types}")
        check.keys(f"[of.{model_type}]", values["of"][model_type], _VARIANT_KEYS)
    table = Table(path, values)
    for model_type in types:
        check.whole(table.variant(model_type), operations)
    return table


def _read(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    try:
        values = _parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path}: the table cannot be read: {error}") from error
    check = _Check(path)
    check.keys("the table", values, _KEYS)
    for section in (*_SECTIONS, "of"):
        if not isinstance(values.get(section, {}), dict):
            check.fail(f"[{section}]", "should be a section")
    for row in ("module", "balance", "wrapper"):
        rows = values.get(row, [])
        if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
            check.fail(f"[[{row}]]", "should be rows")
    if (like := values.get("like")) is None:
        return values
    parent = path.with_name(f"{like}.toml")
    if parent in (path, *children) or not parent.is_file():
        check.fail("like", f"{like!r} is no other table of {path.parent}")
    return _like(check, _read(parent, (path, *children)), values)


@lru_cache(maxsize=32)
def _parsed(text: str) -> dict[str, Any]:
    """A table's values, which nobody changes: many tables are like one."""
    return tomllib.loads(text)


def _like(check: _Check, parent: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A table over the one that it is like."""
    inherited = {k: v for k, v in parent.items() if k not in _OWN}
    values = _laid_over(inherited, {k: v for k, v in own.items() if k != "module"})
    modules = list(inherited.get("module", ()))
    names = [str(row.get("name")) for row in modules]
    for name in own.get("without", ()):
        if name not in names:
            check.fail("without", f"{name!r} is no module of {own['like']}.toml")
    modules = [row for row in modules if row.get("name") not in own.get("without", ())]
    for row in own.get("module", ()):
        names = [str(m.get("name")) for m in modules]
        name, after = str(row.get("name")), row.get("after")
        if after is None and name in names:
            modules[names.index(name)] = row
        elif after in names:
            modules.insert(names.index(after) + 1, row)
        else:
            check.fail(f"module {name}", f"after = {after!r} names no module that stands before")
    return {**values, "module": modules}


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``above`` in place of those of ``below``; in sections, one by one."""
    values = {**below, **above}
    for section in _SECTIONS:
        if section in below or section in above:
            start = {} if ALL in above.get(section, {}) else below.get(section, {})
            merged = {**start, **above.get(section, {})}
            values[section] = {k: v for k, v in merged.items() if v != _NONE or section == "block"}
    return values


class _Check:
    """Says what is wrong with a table, and where."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, where: str, text: str) -> NoReturn:
        """Raises InvalidInput."""
        raise InvalidInput(f"{self.path}: {where}: {text}")

    def keys(
        self, where: str, row: Any, known: Sequence[str], required: Sequence[str] = ()
    ) -> None:
        """Unknown keys are refused, and missing ones."""
        if not isinstance(row, dict):
            self.fail(where, f"should have keys, found {row!r:.60}")
        if unknown := sorted(set(row) - set(known)):
            self.fail(where, f"unknown keys {unknown}; known are {sorted(known)}")
        if missing := [key for key in required if key not in row]:
            self.fail(where, f"{missing[0]} is missing")

    def strings(self, where: str, value: Any) -> list[str]:
        """A list of words."""
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            self.fail(where, f"should be a list of words, found {value!r:.60}")
        return list(value)

    def whole(self, values: Mapping[str, Any], operations: Collection[str]) -> None:
        """Everything that one model type's rows say."""
        for key in ("class", "gguf", *(k for k in ("gguf_without",) if k in values)):
            if not isinstance(values[key], str) or not values[key]:
                self.fail(key, f"should be a word, found {values[key]!r:.60}")
        if values.get("experts", False) not in (True, False, "optional"):
            self.fail("experts", "should be true, false or optional")
        self.strings("further", values.get("further", []))
        self._sizes(values)
        if values["layers"]:
            keys = next((keys for keys in LAYERS if keys[0] in values["layers"]), ("dense",))
            self.keys("[layers]", values["layers"], keys, keys)
            self.strings("[layers]", list(values["layers"].values()))
        self._gguf(values)
        names = self._modules(values)
        self._lists("[biases]", values["biases"], names)
        for of in (ROWS.keys(), NAMES - ROWS.keys()):
            own = {k: v for k, v in values["gguf_operations"].items() if k in of}
            self._lists("[gguf_operations]", own, names)
        self._rows(values)
        if unknown := set(values["gguf_operations"]) - set(operations):
            self.fail(
                "[gguf_operations]", f"{sorted(unknown)[0]!r} is none of {sorted(operations)}"
            )
        self._config(values)
        for row in values.get("wrapper", ()):
            self._wrapper(row)
        biases = values["gguf_graph"]["no_biases"]
        self._lists("[gguf_graph]", {"no_biases": biases}, names)
        self._balances(values["balance"], {m["name"]: m["shape"] for m in values["module"]})

    def _sizes(self, values: Mapping[str, Any]) -> None:
        for size, found in values["sizes"].items():
            where = f"[sizes] {size}"
            if size not in SIZES:
                self.fail(where, f"there is no such size; known are {sorted(SIZES)}")
            self.strings(where, found if isinstance(found, list) else [found])

    def _facts(
        self, section: str, values: Mapping[str, Any], known: Mapping[str, Callable[[Any], bool]]
    ) -> None:
        """A section with exactly these keys."""
        found = values[section]
        self.keys(f"[{section}]", found, tuple(known), tuple(known))
        for key, is_right in known.items():
            if not is_right(found[key]):
                self.fail(f"[{section}] {key}", f"{found[key]!r:.60} is not understood")

    def _gguf(self, values: Mapping[str, Any]) -> None:
        self._facts("gguf_graph", values, GRAPH)
        self._facts("gguf_tokenizer", values, TOKENIZER)
        known = {*SIZES, *COMPUTED_SIZES}
        for key, row in values["gguf_keys"].items():
            if row in PLACES or str(row).startswith((f"{TEXT} ", f"{SECTIONS} ")):
                continue
            if str(row).removeprefix(f"{BY_LAYER} ") in BY_LAYERS or re.fullmatch(
                _CONSTANT, str(row)
            ):
                continue
            kind, _, size = row.partition(" ") if isinstance(row, str) else ("", "", "")
            plain = size.removesuffix(OTHER).removesuffix(UNREAD).removesuffix(ZERO)
            if kind not in _GGUF_TYPES or plain not in known:
                told = f"{row!r:.60} should be a type of {_GGUF_TYPES} and one of {sorted(known)}"
                self.fail(f"[gguf_keys] {key}", told)
        if FILE_TYPE not in values["gguf_keys"].values():
            self.fail("[gguf_keys]", f"no row holds the {FILE_TYPE}")
        for size, value in values["gguf_implied"].items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if size not in known or not (number or value in known):
                self.fail(f"[gguf_implied] {size}", f"{value!r:.60} should be a size or a number")

    def _modules(self, values: Mapping[str, Any]) -> set[str]:
        known = {*values["sizes"], *COMPUTED_SIZES}
        names: set[str] = set()
        for row in values["module"]:
            where = f"module {row.get('name')}"
            self.keys(where, row, _MODULE_KEYS, ("name", "hf", "gguf", "role", "shape"))
            for key in ("name", "hf", "gguf", *_OTHER_NAMES):
                text = row.get(key, "")
                if not isinstance(text, str) or "{" in _without_holes(text):
                    self.fail(where, f"{key} {text!r:.60} should be a name with {_HOLES} in it")
            if row["role"] not in ROLES:
                self.fail(where, f"the role {row['role']!r} is none of {list(ROLES)}")
            self._shapes(where, row, known)
            part = row.get("hf_stack_part", [0, 1])
            if type(row.get("gguf_order", 0)) is not int:
                self.fail(where, f"gguf_order {row['gguf_order']!r:.60} should be a number")
            if not isinstance(part, list) or [type(n) for n in part] != [int, int]:
                self.fail(where, f"hf_stack_part {part!r:.60} should be [part, parts]")
            self._kinds(where, row, values["layers"])
            if row["name"] in names:
                self.fail(where, "stands there twice")
            names.add(row["name"])
        return names

    def _shapes(self, where: str, row: Mapping[str, Any], known: Collection[str]) -> None:
        """Sizes that there are, and flags."""
        for flag in (*_FLAGS, "gguf_flat"):
            if row.get(flag, False) not in (True, False):
                self.fail(where, f"{flag} should be true or false")
        shapes = [k for k in ("shape", "full_shape", "sharing_shape") if k in row]
        listed = [s for k in shapes for s in self.strings(f"{where}: {k}", row[k])]
        for size in (*listed, *(row[key] for key in ("only_with", "heads") if key in row)):
            if size not in known:
                self.fail(where, f"the size {size!r} is none of {sorted(known)}")

    def _kinds(self, where: str, row: Mapping[str, Any], layers: Mapping[str, Any]) -> None:
        """Kinds of layers that ``[layers]`` tells apart."""
        told = next((k for keys, k in LAYERS.items() if keys[0] in layers), ())
        if "layers" in row and row["layers"] not in told:
            self.fail(where, f"layers should be one of {told}, which [layers] tells apart")
        for key in {"full_shape", "sharing_shape", "unshared"} & set(row):
            if "full" not in told:
                self.fail(where, f"{key}: [layers] does not say which see everything")

    def _rows(self, values: Mapping[str, Any]) -> None:
        """Modules that are rows of one tensor: what holds for one of them holds for all."""
        flags = {name: flag for flag, names in values["biases"].items() for name in names}
        changes: dict[str, list[str]] = {}
        for operation, names in values["gguf_operations"].items():
            for name in names:
                changes.setdefault(name, []).append(operation)
        for key in ("hf_rows", "gguf_rows", "gguf"):
            parts: dict[str, list[Mapping[str, Any]]] = {}
            for row in values["module"]:
                parts.setdefault(row.get(key, ""), []).append(row)
            for stored, rows in parts.items():
                names = [row["name"] for row in rows]
                alike = [[row["shape"][1:], row["role"], flags.get(row["name"])] for row in rows]
                if key == "gguf":
                    alike = [[*a, changes.get(n)] for a, n in zip(alike, names, strict=True)]
                if stored and any(one != alike[0] for one in alike):
                    told = f"{names} are rows of {stored}, and differ in columns, role or bias"
                    self.fail(f"module {names[0]}", f"{key}: {told}")

    def _lists(self, where: str, section: Mapping[str, Any], names: Collection[str]) -> None:
        seen: set[str] = set()
        for key, modules in section.items():
            for name in self.strings(f"{where} {key}", modules):
                if name not in names or name in seen:
                    self.fail(f"{where} {key}", f"{name!r} is no module, or is named twice")
                seen.add(name)

    def _wrapper(self, row: Mapping[str, Any]) -> None:
        where = f"wrapper {row.get('model_type')}"
        self.keys(where, row, _WRAPPER, _WRAPPER)
        self.strings(where, [row[key] for key in _WRAPPER[:3]])
        self.strings(f"{where}: beside", row["beside"])
        if not isinstance(row["prefixes"], dict):
            self.fail(f"{where}: prefixes", "should map beginnings of names to others")
        self.strings(f"{where}: prefixes", [*row["prefixes"], *row["prefixes"].values()])

    def _config(self, values: Mapping[str, Any]) -> None:
        for key, meaning in values["config"].items():
            rule = isinstance(meaning, dict) and len(meaning) == 1 and set(meaning) <= LIST_RULES
            if meaning != IGNORED and not rule and (not isinstance(meaning, list) or not meaning):
                told = f"should be {IGNORED!r}, a list of values, or one of {sorted(LIST_RULES)}"
                self.fail(f"[config] {key}", told)
        self._facts("block", values, RULES)
        for key, allowed in values["needs"].items():
            if not isinstance(allowed, list):
                self.fail(f"[needs] {key}", "should be a list of values")
        for flag, modules in values["biases"].items():
            if flag != ALWAYS and modules and not isinstance(values["defaults"].get(flag), bool):
                self.fail(f"[biases] {flag}", "there is no true or false of it in [defaults]")

    def _balances(
        self, rows: Sequence[Mapping[str, Any]], shapes: Mapping[str, Sequence[str]]
    ) -> None:
        """``shapes`` of all modules."""
        for row in rows:
            where = f"balance of {row.get('smooth')}"
            self.keys(where, row, ("smooth", "into", *_BALANCE), ("into",))
            into = self.strings(f"{where}: into", row["into"])
            named = [*into, row["smooth"]] if "smooth" in row else into
            if missing := sorted(set(named) - set(shapes)):
                self.fail(where, f"there are no modules {missing}")
            for key, value in _BALANCE.items():
                if row.get(key, value) != value or (key in row and "smooth" not in row):
                    self.fail(where, f"{key} should be {value!r}, and beside a smooth")
            if "smooth" in row:
                channels = shapes[row["smooth"]][0]
                if "heads" not in row and {shapes[name][-1] for name in into} != {channels}:
                    self.fail(where, f"{channels} channels go out, and its readers take others in")


def _without_holes(template: str) -> str:
    for hole in _HOLES:
        template = template.replace(hole, "")
    return template
