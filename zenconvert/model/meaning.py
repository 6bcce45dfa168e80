"""What a config says beside sizes, and what becomes of every fact of it in a target.

A target that carries ``config.json`` along for the runtime that it was written for (HF, GPTQ, AWQ)
keeps keys that nobody here understands. Every other target computes by a description of its own, so
there each key has to be a size, a value that the target's graph computes, or harmless by name; what
is none of these is refused. The torch engine and calibration are given by transformers what it
reads of a config; a key that it reads is in the family's table.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from zenconvert.errors import Unsupported, UsageError, several
from zenconvert.model import sliding
from zenconvert.model.architecture import Architecture
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.config_numbers import at_path
from zenconvert.model.layer_kinds import follows
from zenconvert.model.rotations import ROPE_KEYS, is_flat, rope_parameters, rope_type, rotation

_SHARED: Final = Path(__file__).parent / "config_keys.toml"
_READ: Final[dict[str, frozenset[str]]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "llama3": frozenset(
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    ),
    "yarn": frozenset(
        {
            "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
            "original_max_position_embeddings", "truncate",
        }
    ),
    "proportional": frozenset({"factor", "partial_rotary_factor"}),
    "longrope": frozenset(
        {
            "factor", "attention_factor", "short_factor", "long_factor",
            "original_max_position_embeddings",
        }
    ),
}  # fmt: skip
"""Kind of scaled rotations → the parameters that transformers reads."""
_SPARE: Final = frozenset({"rope_type", "type", "rope_theta", "finetuned", "extrapolation_factor"})
_ANY: Final = frozenset().union(_SPARE, *_READ.values())
_WHOLE: Final = "partial_rotary_factor"


@dataclass(frozen=True, slots=True)
class Fact:
    """What becomes of one fact of the source."""

    name: str
    """Key in the source; dots lead into objects."""
    value: Any
    place: str
    """Where it is in the target; empty where it is nowhere."""
    exact: bool = True
    """The target computes the same with it, or without it."""
    why: str = ""
    refused: bool = False
    """The target would compute something else without any bound."""
    told: bool = False
    """Shown in every plan, though nothing is lost."""

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "name": self.name,
            "value": self.value,
            "place": self.place,
            "exact": self.exact,
            "why": self.why,
        }


@cache
def _shared() -> dict[str, Any]:
    return tomllib.loads(_SHARED.read_text(encoding="utf-8"))


def understood(architecture: Architecture, key: str) -> bool:
    """Whether a key of a family's config is known, whatever its value."""
    shared = _shared()
    return (
        key in _structural(architecture)
        or key in architecture.constants
        or key in architecture.list_rules
        or key in architecture.ignored
        or key in shared["ignored"]
        or key in shared["constants"]
        or key.startswith(tuple(shared["ignored_prefixes"]))
    )


def _structural(architecture: Architecture) -> frozenset[str]:
    """Keys that become sizes, rotations, windows, kinds of layers, biases and tied heads."""
    sizes: set[str] = set(architecture.needs)
    for names in architecture.names.values():
        sizes.update(n.split(".")[0] for n in ([names] if isinstance(names, str) else names))
    windows = sliding.KEYS[architecture.block.windows]
    return frozenset(
        {
            *sizes,
            *ROPE_KEYS,
            *windows,
            *architecture.bias_flags,
            *architecture.layers.values(),
            "tie_word_embeddings",
        }
    )


def carried(checkpoint: Checkpoint, ignored: Sequence[str]) -> list[Fact]:
    """Facts of a target that takes the config along: keys that are not understood stay in it."""
    _check_ignored(checkpoint, ignored)
    facts = [
        Fact(key, value, "config.json", why="not understood, and carried along as it is")
        for key, value in checkpoint.config.items()
        if value is not None
        and not understood(checkpoint.architecture, key)
        and not _is_off(key, value, checkpoint.hyperparameters.layers)
    ]
    return [*facts, *_unexplained(checkpoint, ignored)]


def described(checkpoint: Checkpoint, ignored: Sequence[str], target: str) -> list[Fact]:
    """Facts of a target that computes by its own description, but for rotations and windows.

    ``ignored`` are unknown keys that were said to be harmless. Raises UsageError for those that
    are not there or that are understood.
    """
    _check_ignored(checkpoint, ignored)
    facts = [
        _judged(checkpoint, key, value, ignored, target)
        for key, value in checkpoint.config.items()
        if value is not None and key not in _structural(checkpoint.architecture)
    ]
    facts += _silent(checkpoint, target)
    flags = [
        Fact(flag, checkpoint.config[flag], "the tensors that are there")
        for flag in sorted(checkpoint.architecture.bias_flags)
        if checkpoint.config.get(flag) is not None
    ]
    return [*facts, *flags, *_unexplained(checkpoint, ignored)]


def _judged(
    checkpoint: Checkpoint, key: str, value: Any, ignored: Sequence[str], target: str
) -> Fact:
    architecture, shared = checkpoint.architecture, _shared()
    constants = {**shared["constants"], **architecture.constants}
    if key in constants:
        if value in constants[key]:
            return Fact(key, value, f"what {target} computes")
        allowed = " or ".join(map(repr, constants[key])) or "nothing"
        why = f"{target} computes {architecture.id} models with {allowed} only"
        return Fact(key, value, "", exact=False, why=why, refused=True)
    if key in architecture.list_rules:
        rule = architecture.list_rules[key]
        if follows(value, rule, checkpoint.hyperparameters.layers):
            return Fact(key, value, f"what {target} computes")
        why = f"{target} computes {architecture.id} models with {dict(rule)} only"
        return Fact(key, value, "", exact=False, why=why, refused=True)
    if understood(architecture, key) or _is_off(key, value, checkpoint.hyperparameters.layers):
        return Fact(key, value, "", why="changes nothing that is computed")
    return _unknown(checkpoint, key, value, ignored)


def _is_off(key: str, value: Any, layers: int) -> bool:
    """Whether a key says that a feature of other families is not there."""
    shared = _shared()
    if (one := shared["neutral_lists"].get(key)) is not None:
        return follows(value, {"all": one}, layers)
    return not isinstance(value, str) and value in shared["neutral"].get(key, ())


def _silent(checkpoint: Checkpoint, target: str) -> list[Fact]:
    """Values that hold where the config is silent, and that the target does not compute."""
    architecture, config = checkpoint.architecture, checkpoint.config
    found = [
        _judged(checkpoint, key, architecture.defaults[key], (), target)
        for key in architecture.constants
        if config.get(key) is None and key in architecture.defaults
    ]
    return [fact for fact in found if fact.refused]


def _unknown(checkpoint: Checkpoint, key: str, value: Any, ignored: Sequence[str]) -> Fact:
    if key in ignored:
        return Fact(key, value, "", why="ignored, as --ignore-key asks")
    why = (
        f"it is not known what this means for {checkpoint.architecture.id} models; if it changes "
        f"nothing that is computed, say so with --ignore-key {key}"
    )
    return Fact(key, value, "", exact=False, why=why, refused=True)


def _unexplained(checkpoint: Checkpoint, ignored: Sequence[str]) -> list[Fact]:
    return [_unknown(checkpoint, k, v, ignored) for k, v in checkpoint.unexplained.items()]


def check_explained(checkpoint: Checkpoint, ignored: Sequence[str]) -> None:
    """Raise Unsupported where transformers would compute otherwise than the files say.

    It goes by the config, and some facts of files have no place in one.
    """
    odd = {k: v for k, v in checkpoint.unexplained.items() if k not in ignored}
    if odd:
        found = ", ".join(f"{key} is {value!r:.60}" for key, value in list(odd.items())[:3])
        asked = " ".join(f"--ignore-key {key}" for key in odd)
        raise Unsupported(
            f"{checkpoint.path}: {found}: no config can say this, so transformers would compute "
            f"something else; if it changes nothing that is computed, say so with {asked}"
        )


def _check_ignored(checkpoint: Checkpoint, ignored: Sequence[str]) -> None:
    for key in ignored:
        if key in checkpoint.unexplained or key.startswith(("rope_scaling.", "rope_parameters.")):
            continue
        if key not in checkpoint.config:
            raise UsageError(f"--ignore-key {key}: {checkpoint.path} has no such key")
        if understood(checkpoint.architecture, key):
            raise UsageError(f"--ignore-key {key}: it is known what this means")


def towers(checkpoint: Checkpoint, *, text_only: bool) -> list[Fact]:
    """What stands beside the language model: left out where that is asked for, else refused."""
    if text_only and not checkpoint.beside:
        raise UsageError(f"--text-only: {checkpoint.path} holds a language model and nothing else")
    why = (
        "left out, as --text-only asks"
        if text_only
        else "only the language model can be converted; --text-only asks for that"
    )
    return [
        Fact(
            name.partition(" ")[0], name, "", exact=False, why=why, refused=not text_only, told=True
        )
        for name in checkpoint.beside
    ]


def further(checkpoint: Checkpoint, *, keeps: bool) -> list[Fact]:
    """Layers that predict further tokens, which stay as they are or are left out; ``keeps``: the
    target has a place for them."""
    if not checkpoint.further:
        return []
    architecture, count = checkpoint.architecture, checkpoint.further
    key = architecture.key("further_layers")
    if "further_layers" not in architecture.names:  # configs do not say it
        key = architecture.further[0].rstrip(".")
    layers = checkpoint.hyperparameters.further_layers or count
    if keeps and checkpoint.predicting:
        kept = several(count, "tensor", "tensors")
        why = f"{kept} of layers that predict further tokens (MTP) stay in floats"
        return [Fact(key, layers, next(iter(checkpoint.predicting)), why=why)]
    why = (
        several(count, "tensor is", "tensors are")
        + " left out, of layers that predict further tokens (MTP)"
    )
    return [Fact(key, layers, "", exact=False, why=why, told=True)]


def rotations(
    checkpoint: Checkpoint, ignored: Sequence[str], kinds: Sequence[str], target: str
) -> Iterator[Fact]:
    """Facts of the rotary embedding that no target but the config itself can hold.

    ``kinds`` are the scalings that the target has.
    """
    config = checkpoint.config
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    parameters = rope_parameters(config, by_kind=checkpoint.architecture.has_rotations_by_kind)
    yield from _of_layer_kinds(checkpoint, target)
    yield from _of_no_kind(checkpoint)
    yield from _of_one_base(checkpoint, target)
    plain = checkpoint.hyperparameters.rope_scaling is None  # or of a stretched base
    kind = "default" if plain else rope_type(parameters)
    if kind not in kinds:
        why = f"{target} has no such scaling for {checkpoint.architecture.id} models; it has "
        why += ", ".join(kinds)
        yield Fact(f"{key}.rope_type", kind, "", exact=False, why=why, refused=True)
        return
    own = _of_rotations(checkpoint.architecture)
    for name, value in parameters.items():
        if value is not None and name not in _ANY | own and name != _WHOLE:
            yield _unknown(checkpoint, f"{key}.{name}", value, ignored)
    yield from _contradictions(checkpoint.architecture, config, parameters, kind)
    if "rotary_share" in checkpoint.architecture.names:
        return
    for name, value in ((_WHOLE, config.get(_WHOLE)), (f"{key}.{_WHOLE}", parameters.get(_WHOLE))):
        if value is not None and value != 1 and _WHOLE not in _READ[kind]:
            why = f"{target} rotates heads of {checkpoint.architecture.id} models whole"
            yield Fact(name, value, "", exact=False, why=why, refused=True)


def _of_rotations(architecture: Architecture) -> frozenset[str]:
    """What the family's table says of keys inside of ``rope_parameters``."""
    rows = [[n] if isinstance(n, str) else n for n in architecture.names.values()]
    keys = [*(key for row in rows for key in row), *architecture.ignored]
    start = "rope_parameters."
    return frozenset(k.removeprefix(start) for k in keys if k.startswith(start))


def _of_layer_kinds(checkpoint: Checkpoint, target: str) -> Iterator[Fact]:
    """Rotations that kinds of layers have for themselves: plain ones, of layers that slide."""
    parted = checkpoint.architecture.has_rotations_by_kind
    for key in ("rope_scaling", "rope_parameters"):
        found = checkpoint.config.get(key)
        kinds = found.items() if isinstance(found, Mapping) else ()
        for kind, own in [item for item in kinds if isinstance(item[1], Mapping)]:
            plain = rope_type(own) == "default" and set(own) <= {"rope_type", "type", "rope_theta"}
            if not parted or kind not in (sliding.FULL, sliding.SLIDES):
                why = f"{target} has no rotations of {checkpoint.architecture.id} models for them"
            elif kind == sliding.SLIDES and not plain:
                why = f"{target} has plain rotations for layers that slide"
            else:
                continue
            yield Fact(f"{key}.{kind}", dict(own), "", exact=False, why=why, refused=True)


def _of_no_kind(checkpoint: Checkpoint) -> Iterator[Fact]:
    """Rotations that are of no kind of layers, where transformers takes those of kinds alone."""
    config, hp, architecture = (
        checkpoint.config,
        checkpoint.hyperparameters,
        checkpoint.architecture,
    )
    if not architecture.has_rotations_by_kind or not is_flat(config):
        return
    told = rotation({"rope_theta": hp.rope_theta, **config, "rope_scaling": None}, "")
    if told != (hp.rope_theta, hp.rope_scaling):
        why = (
            f"transformers takes those of {sliding.FULL} and {sliding.SLIDES} inside of it, and "
            f"computes {architecture.id} models with rope_theta {hp.rope_theta:g} here; put them "
            "there, or leave them out"
        )
        yield Fact("rope_parameters", config["rope_parameters"], "", False, why, refused=True)


def _of_one_base(checkpoint: Checkpoint, target: str) -> Iterator[Fact]:
    """A base at the top of a config that versions of transformers take for other layers.

    Up to 4 it is every layer's; 5 takes its default for layers that slide, in families whose
    configs have no older key for these.
    """
    architecture, config, hp = (
        checkpoint.architecture,
        checkpoint.config,
        checkpoint.hyperparameters,
    )
    names, usual = architecture.names.get("sliding_theta"), architecture.defaults.get("rope_theta")
    if not names or isinstance(names, str) or "rope_theta" not in names:
        return
    said = [at_path(config, name) for name in names if name != "rope_theta"]
    theta, windows = config.get("rope_theta"), sliding.windows(architecture, config, hp)
    if theta in (None, usual) or any(v is not None for v in said) or not any(windows):
        return
    why = (
        f"{target} takes it for layers that slide, too, as transformers 4 does; transformers 5 "
        f"takes {usual:g} for them: say which in rope_parameters.{sliding.SLIDES}.rope_theta"
    )
    yield Fact("rope_theta", theta, "", exact=False, why=why)


def _contradictions(
    architecture: Architecture, config: Mapping[str, Any], parameters: Mapping[str, Any], kind: str
) -> Iterator[Fact]:
    """Two places of a config that say different things of one number."""
    only = {"rope_parameters": config.get("rope_parameters")}
    other = rope_parameters(only, by_kind=architecture.has_rotations_by_kind)
    if config.get("rope_scaling") and other:
        here = {k: v for k, v in parameters.items() if k in _READ[kind] and v is not None}
        there = {k: v for k, v in other.items() if k in _READ[kind] and v is not None}
        if rope_type(other) != kind or here != there:
            why = f"rope_scaling says {dict(parameters)}, and which holds depends on who reads it"
            yield Fact("rope_parameters", other, "", exact=False, why=why, refused=True)
    for name in ("original_max_position_embeddings", _WHOLE):
        outer, inner = config.get(name), parameters.get(name)
        if outer is None or inner is None or outer == inner or name not in (*_READ[kind], _WHOLE):
            continue
        why = f"the scaling says {inner!r}, and which holds depends on who reads it"
        yield Fact(name, outer, "", exact=False, why=why, refused=True)
