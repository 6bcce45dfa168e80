"""Sizes of a config by the names that a family's table gives, and the kinds of its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from zenconvert.errors import InvalidInput
from zenconvert.model.config_numbers import at_path, count, real
from zenconvert.model.rotations import FULL

Names = Mapping[str, str | Sequence[str]]
"""Size → the key that a config has it under, or several of which the first that is there counts;
dots lead into objects."""
MOST_LISTED: Final = 1 << 16
"""Layers that are told apart one by one, before anybody has counted tensors."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a config by the names that a family's table gives."""

    given: Mapping[str, Any]
    """What the config itself says."""
    config: Mapping[str, Any]
    """With defaults."""
    names: Names
    where: str

    def found(self, size: str) -> tuple[str, Any]:
        """The key that a size is under, and its value or None."""
        names = self.names.get(size, size)
        keys = (names,) if isinstance(names, str) else tuple(names)
        for config in (self.given, self.config):
            for key in keys:
                if (value := at_path(config, key)) is not None:
                    return key, value
        return keys[0], None

    def real(self, size: str, *, zero: bool = False) -> float | None:
        """A positive number; None where the config or the family has none, or where it has a
        ``zero`` that says so. Raises InvalidInput."""
        if size not in self.names:
            return None
        key, value = self.found(size)
        if value is None or (zero and value == 0):
            return None
        return real(key, value, self.where)

    def count(
        self, size: str, *, zero: bool = False, optional: bool = False, silent: bool = False
    ) -> int:
        """A whole number. Raises InvalidInput.

        0 where the size is ``optional`` and the family has none, or where a config may be
        ``silent`` on it and is.
        """
        if optional and size not in self.names:
            return 0
        key, value = self.found(size)
        if silent and value is None:
            return 0
        if zero and value is None and key in self.config:
            return 0
        return count({key: value}, key, self.where, zero=zero)

    def counts(self, size: str) -> tuple[int, ...]:
        """A list of whole numbers; none where the config or the family has none. Raises
        InvalidInput."""
        key, value = self.found(size) if size in self.names else (size, None)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
            told = f"{self.where}: {key} should be a list of whole numbers, found {value!r:.60}"
            raise InvalidInput(told)
        return tuple(value)

    def full_kv_heads(self, *, keyed: bool) -> int:
        """Key-value heads of layers that see everything, 0 where a config has none of their own:
        transformers reads the plain key of it only where their values are keys."""
        names = self.names.get("full_kv_heads", ())
        listed = (names,) if isinstance(names, str) else tuple(names)
        inside = tuple(n for n in listed if keyed or "." in n)
        if not inside:
            return 0
        own = replace(self, names={**self.names, "full_kv_heads": inside})
        return own.count("full_kv_heads", silent=True)

    def flag(self, size: str) -> int:
        """1 for something that a config says there is, 0 for any other."""
        return int(self.found(size)[1] is True) if size in self.names else 0

    def period(self) -> int:
        """Layers of which the last sees everything, a number or L for every other and then G; 0
        where the config has none. Raises InvalidInput."""
        value = self.found("window_period")[1]
        if isinstance(value, str) and value == "L" * (len(value) - 1) + "G":
            return len(value)
        return self.count("window_period", optional=True, silent=True, zero=True)


def dense_layers(
    config: Mapping[str, Any], keys: Mapping[str, str], sizes: Sizes, where: str
) -> tuple[int, ...]:
    """Layers that a list names, and all but every so many-th one; all without experts."""
    if not {"dense", "first"} & keys.keys():
        return ()
    layers = sizes.count("layers")
    if layers > MOST_LISTED:
        raise InvalidInput(f"{where}: {layers} layers; at most {MOST_LISTED} can be told apart")
    if "first" in keys:
        return tuple(range(min(layers, sizes.count("leading_dense", zero=True))))
    if not sizes.count("experts", zero=True):
        return tuple(range(layers))
    listed, step = config.get(keys["dense"]) or [], keys["sparse_step"]
    if not isinstance(listed, list) or not all(type(n) is int for n in listed):
        raise InvalidInput(f"{where}: {keys['dense']} should be a list of layers, found {listed!r}")
    period, named = count(config, step, where), set(listed)
    return tuple(i for i in range(layers) if i in named or (i + 1) % period)


def sharing_layers(
    config: Mapping[str, Any], keys: Mapping[str, str], sizes: Sizes, where: str
) -> int:
    """Last layers that read keys and values of earlier ones; there has to be one of each kind."""
    count = sizes.count("sharing", zero=True, optional=True)
    if not count:
        return 0
    types = config[keys["types"]]
    first = len(types) - count
    if first < 1 or not set(types[first:]) <= set(types[:first]):
        raise InvalidInput(
            f"{where}: {sizes.found('sharing')[0]} {count} of {len(types)} layers leaves none "
            f"whose keys and values {sorted(set(types[max(first, 0) :]))} could read"
        )
    return count


def full_layers(
    config: Mapping[str, Any], keys: Mapping[str, str], sizes: Sizes, where: str
) -> tuple[int, ...]:
    """Layers that see everything, where tables tell them from those with a window.

    What a config has of single layers has to be of these, and of all of them.
    """
    if "types" not in keys:
        return ()
    types, layers = config.get(keys["types"]), sizes.count("layers")
    if not isinstance(types, list) or len(types) != layers:
        raise InvalidInput(
            f"{where}: {keys['types']} should name the kinds of {layers} layers, found "
            f"{types!r:.100}"
        )
    found = tuple(i for i, kind in enumerate(types) if kind == FULL)
    if (own := config.get(keys["own"])) is not None:
        start = f"{keys['own']}.*."
        names = (n for of in sizes.names.values() for n in ([of] if isinstance(of, str) else of))
        known = {n.removeprefix(start) for n in names if n.startswith(start)}
        rows = list(own.values()) if isinstance(own, Mapping) else [None]
        alike = all(isinstance(r, Mapping) and set(r) <= known and r == rows[0] for r in rows)
        if not alike or {str(layer) for layer in own} != {str(layer) for layer in found}:
            raise InvalidInput(
                f"{where}: {keys['own']} should say one thing of {sorted(known)} in every layer "
                f"that sees everything and in no other, found {own!r:.200}"
            )
    return found
