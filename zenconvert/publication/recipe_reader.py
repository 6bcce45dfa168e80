"""Reads a recipe and gathers every mistake in it, each with its line."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from zenconvert.base.machine import AUTO, auto_device
from zenconvert.base.source_files import hub_id, parse_toml, read_bytes
from zenconvert.calib.methods import METHODS
from zenconvert.errors import InvalidInput, RecipeError, UsageError
from zenconvert.formats.registry import FORMATS
from zenconvert.model.target import Options, Target
from zenconvert.publication import recipe_values as v
from zenconvert.publication.recipe import (
    Calibration,
    Gate,
    Output,
    Publishing,
    Recipe,
    Source,
    VariantRecipe,
    Verification,
    default_name,
)
from zenconvert.publication.toml_lines import Lines, Place
from zenconvert.solve.calibration_texts import Calibrating
from zenconvert.verification.engines import engine_names
from zenconvert.verification.gate import Outcome

_OUTCOMES: Final = (*(outcome.value for outcome in Outcome), "UNMEASURED")

TABLES: Final[Mapping[str, Mapping[str, v.Check]]] = {
    "source": {
        "path": v.text,
        "revision": v.text,
        "base_model": v.text,
        "licence": v.text,
        "languages": v.texts,
        "tags": v.texts,
        "name": v.name,
        "pre_tokenizer": v.text,
    },
    "output": {"folder": v.text, "split": v.size},
    "calibration": {
        "enabled": v.flag,
        "samples": v.text,
        "languages": v.texts,
        "language_weights": v.weights,
        "tokens_per_language": v.count(2),
        "context": v.count(4),
        "seed": v.count(0),
        "device": v.text,
        "dtype": v.one_of("f32", "bf16", "f16"),
        "all_experts": v.flag,
        "fisher": v.flag,
        "max_vram": v.size,
        "max_ram": v.size,
    },
    "verify": {
        "engines": v.some_of(*engine_names()),
        "context": v.count(4),
        "text": v.text,
        "languages": v.texts,
        "device": v.text,
    },
    "gate": {"policy": v.text, "against": v.text},
    "run": {"threads": v.count(1), "device": v.text},
    "publish": {"hub": v.name, "private": v.flag, "allow": v.some_of(*_OUTCOMES)},
}
_MOST_UNKNOWN: Final = 50
"""Mistakes after which no more unknown keys are looked for."""
_LONG: Final = 80
_FOLDER: Final = "release"
"""Stands for a folder that a recipe does not name rightly, while it is looked at."""
_REQUIRED: Final = {"source": ("path",), "output": ("folder",), "publish": ("hub",)}
VARIANT: Final[Mapping[str, v.Check]] = {
    "target": v.target,
    "name": v.name,
    "engines": v.some_of(*engine_names()),
    "solver": v.one_of(*METHODS),
    "tensor_types": v.tensor_types,
    "output_type": v.lower,
    "embedding_type": v.lower,
    "pre_tokenizer": v.text,
    "ignored_keys": v.texts,
    "text_only": v.flag,
    "mtp": v.one_of("keep", "drop"),
    "layout": v.lower,
    "pure": v.flag,
    "exact": v.flag,
    "allow_requantize": v.flag,
    "calibrate": v.flag,
    "largest_error": v.number,
}
_CALIBRATING: Final = (
    "samples", "languages", "language_weights", "tokens_per_language", "context", "seed", "dtype",
    "all_experts", "fisher", "max_vram", "max_ram",
)  # fmt: skip
_OPTIONS: Final = (
    "tensor_types", "output_type", "embedding_type", "pre_tokenizer", "layout", "pure",
    "ignored_keys", "text_only", "mtp",
)  # fmt: skip


def read(path: str | Path) -> tuple[Recipe, list[tuple[Place, str]]]:
    """A recipe, and what is wrong with it; what has a mistake is left out.

    Raises UsageError when the file cannot be read, RecipeError when it is no TOML or names no
    source: nothing else can be looked at then.
    """
    path = Path(path)
    try:
        data = read_bytes(path)
    except InvalidInput as error:
        raise UsageError(f"the recipe cannot be read: {error}") from error
    return parse(path, data)


def parse(path: Path, data: bytes) -> tuple[Recipe, list[tuple[Place, str]]]:
    """The same for a file that was read already; ``path`` is where it lies."""
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
        table = parse_toml(text)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RecipeError(str(path), [(line, "this is not UTF-8")]) from error
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        line = int(found[1]) if found else data.count(b"\n") + 1
        raise RecipeError(str(path), [(line, f"this is not TOML: {error}")]) from error
    except ValueError as error:  # endless keys, digits or brackets
        raise RecipeError(str(path), [(1, f"this is not TOML: {error}")]) from error
    return _Reader(path, data, Lines(text)).recipe(table)


class _Reader:
    """Reads tables; ``problems`` grows meanwhile."""

    def __init__(self, path: Path, data: bytes, lines: Lines) -> None:
        self.path, self.data, self.lines = path, data, lines
        self.folder = path.resolve().parent
        self.problems: list[tuple[Place, str]] = []

    def recipe(self, table: dict[str, Any]) -> tuple[Recipe, list[tuple[Place, str]]]:
        """Everything. Raises RecipeError when there is no source: nothing can be looked at then."""
        self._unknown((), table, [*TABLES, "variant"])
        given = {name: self._table(name, table.get(name, {})) for name in TABLES}
        for name in ("source", "output", "variant"):
            if name not in table:
                self._say((), f"there is no {'[[variant]]' if name == 'variant' else f'[{name}]'}")
        publishing = Publishing(**given["publish"]) if "hub" in given["publish"] else None
        device = given["run"].get("device", AUTO)
        verification = self._verification(_with_device(device, given["verify"]))
        places: dict[str, Place] = {}
        variants = self._variants(table.get("variant", []), verification.engines, given, places)
        if "path" not in given["source"]:
            lines = [(self.lines.of(place), text) for place, text in self.problems]
            raise RecipeError(str(self.path), lines)
        named = given["output"].get("folder", _FOLDER)  # a mistake there hides no other
        folder = Path(os.path.normpath(self.folder / named))
        output = {**given["output"], "folder": folder}
        source = self._source(given["source"])
        recipe = Recipe(
            path=self.path.resolve(),
            data=self.data,
            source=source,
            output=Output(**output),
            variants=tuple(_cut_as(source.pre_tokenizer, variant) for variant in variants),
            calibration=self._calibration(_with_device(device, given["calibration"])),
            verification=verification,
            gate=self._gate(given["gate"]),
            publishing=publishing,
            places=places,
            lines=self.lines,
            **{key: value for key, value in given["run"].items() if key == "threads"},
        )
        return recipe, self.problems

    def _say(self, place: Place, text: str) -> None:
        self.problems.append((place, text))

    def _unknown(self, place: Place, table: Mapping[str, Any], known: list[str]) -> None:
        room = max(0, _MOST_UNKNOWN - len(self.problems))
        for key in [key for key in table if key not in known][:room]:
            near = difflib.get_close_matches(key[:_LONG], known, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            where = f" in {_shown(place)}" if place else ""
            self._say((*place, key), f"there is no key {key[:_LONG]!r}{where}; {hint}")

    def _table(self, name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._say((name,), f"expected a table, [{name}], found {value!r:.60}")
            return {}
        found = self._values((name,), value, TABLES[name])
        missing = [key for key in _REQUIRED.get(name, ()) if value and key not in value]
        for key in missing:
            self._say((name,), f"[{name}] needs a {key!r}")
        return found

    def _values(
        self, place: Place, table: Mapping[str, Any], checks: Mapping[str, v.Check]
    ) -> dict[str, Any]:
        """The values of a table that are right."""
        self._unknown(place, table, list(checks))
        found = {}
        for key, check in checks.items():
            if key in table:
                value, problem = v.checked(check, table[key])
                if problem:
                    self._say((*place, key), f"{key!r} in {_shown(place)}: {problem}")
                else:
                    found[key] = value
        return found

    def _source(self, given: dict[str, Any]) -> Source:
        path, revision = given["path"], given.get("revision")
        location = path
        if not path.startswith("builtin:"):
            here = self.folder / path
            local = _is_there(here) or path.startswith((".", "/"))
            location = str(here) if local else f"{path}@{revision}" if revision else path
            if not local and _is_there(Path(path)):
                text = f"there is no {path} beside the recipe; one lies where you stand, which is"
                self._say(("source", "path"), f"{text} not what a recipe means")
            if local and revision:
                self._say(("source", "revision"), "a revision is for models on the Hub")
        name = given.pop("name", None) or _short_name(hub_id(Path(location)) or path)
        return Source(location=location, name=name, **given)

    def _calibration(self, given: dict[str, Any]) -> Calibration:
        values = {key: given[key] for key in _CALIBRATING if key in given}
        samples = values.get("samples")
        if samples is not None and not samples.startswith("hub:"):
            values["samples"] = str(self.folder / samples)
        return Calibration(given.get("enabled", True), Calibrating(**values), given["device"])

    def _verification(self, given: dict[str, Any]) -> Verification:
        if "text" in given:
            given["text"] = self.folder / given["text"]
        return Verification(**given)

    def _gate(self, given: dict[str, Any]) -> Gate:
        policy, against = given.get("policy", "default"), given.get("against")
        return Gate(self._policy(policy) or "default", self.folder / against if against else None)

    def _policy(self, given: str | None) -> str | None:
        return given if given in {None, "default"} else str(self.folder / str(given))

    def _variants(
        self,
        value: Any,
        engines: tuple[str, ...],
        given: Mapping[str, Mapping[str, Any]],
        places: dict[str, Place],
    ) -> tuple[VariantRecipe, ...]:
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            self._say(("variant",), "variants are an array of tables, [[variant]]")
            return ()
        found: dict[str, VariantRecipe] = {}
        lowered: dict[str, str] = {}
        for number, table in enumerate(value):
            place: Place = ("variant", number)
            values = self._values(place, table, VARIANT)
            if "target" not in table:
                self._say(place, "a variant needs a 'target', e.g. \"gguf:q4_k_m\"")
            variant = self._variant(place, values, engines, given["output"].get("split"))
            if variant is None:
                continue
            taken = lowered.setdefault(variant.name.lower(), variant.name)
            if taken in places:
                first = self.lines.of(places[taken])
                self._say(
                    (*place, "name") if "name" in table else (*place, "target"),
                    f"the variant of line {first} is called {taken!r} already; give this one a "
                    "'name' of its own",
                )
                continue
            places[variant.name], found[variant.name] = place, variant
        return tuple(found.values())

    def _variant(
        self,
        place: Place,
        given: dict[str, Any],
        engines: tuple[str, ...],
        split: int | None,
    ) -> VariantRecipe | None:
        """None where its target is unusable."""
        target: Target | None = given.pop("target", None)
        if target is None:
            return None
        if target.format not in FORMATS:
            near = difflib.get_close_matches(target.format, FORMATS, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(FORMATS)}"
            self._say((*place, "target"), f"there is no format {target.format!r}; {hint}")
            return None
        name = given.pop("name", None) or default_name(target, FORMATS[target.format].types[0])
        form, shelves = FORMATS[target.format], [f.label for f in FORMATS.values() if f.is_file]
        if not form.is_file and name.upper() in shelves:
            self._say((*place, "name"), f"{name!r} is the folder of all {name.upper()} files")
            return None
        options: dict[str, Any] = {key: given.pop(key) for key in _OPTIONS if key in given}
        if form.is_file:
            options["split_max_size"] = split or Output.__dataclass_fields__["split"].default
        return VariantRecipe(
            name, target, given.pop("engines", engines), Options(**options), **given
        )


def _cut_as(pre: str | None, variant: VariantRecipe) -> VariantRecipe:
    """A variant with the source's pre-tokenizer where its files name one and it has none itself."""
    options = variant.options
    if not FORMATS[variant.target.format].names_pretokenizer or options.pre_tokenizer is not None:
        return variant
    return replace(variant, options=replace(options, pre_tokenizer=pre))


def _with_device(device: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """A table with the device that it means, its own or the run's."""
    wanted = table.get("device", device)
    return {**table, "device": auto_device() if wanted == AUTO else wanted}


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have
        return False


def _shown(place: Place) -> str:
    return f"[[{place[0]}]]" if len(place) > 1 else f"[{place[0]}]"


def _short_name(path: str) -> str:
    """What people call the model at a path, a Hub id or ``builtin:NAME``."""
    last = path.removeprefix("builtin:").rstrip("/").rpartition("/")[2].partition("@")[0]
    return re.sub(r"[^A-Za-z0-9._\-]+", "-", last.removesuffix(".gguf")).strip("-.") or "model"
