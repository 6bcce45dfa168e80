"""Checkpoint → folder with a graph, its weights, and what the runtimes want beside them.

::

    model.onnx          the graph: protobuf without weights
    model.onnx.data     the weights
    genai_config.json   onnxruntime-genai
    config.json, tokenizer.json, …

or, for transformers.js, ``onnx/model_q4.onnx`` with ``onnx/model_q4.onnx_data`` and the config.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from zenconvert.errors import Unsupported, first_names
from zenconvert.formats.hf.writer import float_name, folder_config, json_bytes, side_files
from zenconvert.formats.onnx import genai_config, rotary
from zenconvert.formats.onnx.codecs import BlockCodec, NBitsCodec
from zenconvert.formats.onnx.write import layouts
from zenconvert.formats.onnx.write.choosing import choose, order_name
from zenconvert.formats.onnx.write.placing import Place, Stack, place
from zenconvert.formats.onnx.write.stacking import stacks_of
from zenconvert.formats.onnx.write.target_type import TYPES, TargetType, parse
from zenconvert.model import meaning
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.layer_heads import layer_heads
from zenconvert.model.layout import Choice, Layout, OutputFile
from zenconvert.model.meaning import Fact
from zenconvert.model.sliding import windows
from zenconvert.model.target import Options, Target

__all__ = ["TYPES", "choose", "facts", "lay_out"]

_HEAD_STEP: Final = 16
_EXPERTS: Final = {"moe.router", "moe.{expert}.gate", "moe.{expert}.up", "moe.{expert}.down"}
_SHARED: Final = {"moe.shared.gate", "moe.shared.up", "moe.shared.down"}
_SINKS: Final = {"attn.sinks"}
_BESIDE: Final = {"ffn_own_norm", "moe.norm", "moe.post_norm", "moe.router_scale", "moe.scales"}
"""Of experts beside a feed-forward network."""
_GATED: Final = {"ffn.gate", "ffn.up", "ffn.down"}
_FEED_FORWARD: Final = (
    _GATED,
    {"ffn.up", "ffn.down"},
    _EXPERTS,
    _EXPERTS | {"moe.choice"},
    _EXPERTS | _SHARED,
    _EXPERTS | _SHARED | {"moe.shared_gate"},
    _EXPERTS | _SHARED | {"moe.choice"},
    _EXPERTS | _GATED | _BESIDE,
)
_EVERY: Final = {
    *("embed", "norm", "head"),
    *("attn.q", "attn.k", "attn.v", "attn.o"),
}
_LATENTS: Final = {"attn.kv_a", "attn.kv_a_norm", "attn.kv_b"}
_SHORT_QUERIES: Final = {"attn.q_a", "attn.q_a_norm", "attn.q_b"}
_HEAD_NORMS: Final = {"attn.q_norm", "attn.k_norm"}
_BEFORE, _AFTER = {"attn_norm", "ffn_norm"}, {"attn_post_norm", "ffn_post_norm"}
_OWN_INPUTS: Final = {
    *("inputs.embed", "inputs.proj", "inputs.norm"),
    *("input.gate", "input.out", "input.norm"),
}
_NORMS: Final = (_BEFORE, _BEFORE | _AFTER, _AFTER)
"""Norms of a layer: before its halves, after them, or both."""


def lay_out(
    checkpoint: Checkpoint, target: Target, choices: list[Choice], options: Options, name: str
) -> Layout:
    """The graph as literal bytes, the weights at their places, and the small files."""
    kind = parse(target.type)
    check_family(checkpoint, sinks=not kind.standard)
    found = layouts.names(options.layout, kind, choices)
    limits = [size for size in (options.split_max_size, found.limit) if size is not None]
    tensors = _by_neutral_name(checkpoint, choices)
    stacks = stacks_of(checkpoint.hyperparameters, kind, tensors)
    stacked = [stack for pair in stacks.values() for stack in pair]
    places, files = place(choices, stacked, found.data, found.folder, min(limits, default=None))
    graph = graph_bytes(checkpoint, kind, choices, stacks, places)
    config = folder_config(checkpoint, float_name(choices))
    if any(c.name == "lm_head.weight" for c in choices):
        config["tie_word_embeddings"] = False
    tables = layouts.tables(found, config, checkpoint, kind, len(files))
    small = [OutputFile.of_bytes(n, json_bytes(table)) for n, table in tables.items()]
    first = OutputFile.of_bytes(found.folder + found.graph, graph)
    beside = [f for f in side_files(checkpoint) if f.name not in tables]
    return Layout((first, *files, *small, *beside), is_folder=True)


def facts(checkpoint: Checkpoint, target: Target, options: Options) -> list[Fact]:
    """Every fact of the config that the graph computes with, or is not written for."""
    found = meaning.described(checkpoint, options.ignored_keys, "the graph")
    scalings = rotary.scalings(checkpoint.architecture)
    found += meaning.rotations(checkpoint, options.ignored_keys, scalings, "the graph")
    found += [] if parse(target.type).standard else _odd_heads(checkpoint)
    model_type = str(checkpoint.config.get("model_type"))
    if (
        options.layout == layouts.TRANSFORMERS_JS
        and model_type not in layouts.TRANSFORMERS_JS_TYPES
    ):
        why = "transformers.js has no such models; other runtimes take the files without --layout"
        found.append(Fact("model_type", model_type, "", exact=False, why=why, refused=True))
    found += _unread(checkpoint)
    if any(fact.refused for fact in found):
        return found  # what is refused need not be chosen
    if options.layout != layouts.TRANSFORMERS_JS:  # which reads generation_config.json
        found += genai_config.facts(checkpoint)
    return found + _rounded_products(checkpoint, target, options)


def _odd_heads(checkpoint: Checkpoint) -> list[Fact]:
    """Sizes of heads, and of their rotated channels, that onnxruntime's attention does not take."""
    hp = checkpoint.hyperparameters
    facts: list[tuple[str, float, int, str]] = [
        ("head_dim", size, size, "others")
        for size in dict.fromkeys(heads.size for heads in layer_heads(hp))
    ]
    if hp.rotary_dim != hp.head_dim:
        share, what = hp.rotary_share, f"of heads of {hp.head_dim} {hp.rotary_dim} rotated channels"
        facts.append(("partial_rotary_factor", share, hp.rotary_dim, what))
    why = "onnxruntime's attention takes multiples of {}, not {}; a -standard target takes any"
    return [
        Fact(name, value, "", exact=False, why=why.format(_HEAD_STEP, what), refused=True)
        for name, value, size, what in facts
        if size % _HEAD_STEP
    ]


def _unread(checkpoint: Checkpoint) -> Iterator[Fact]:
    """Keys and values of layers that read those of others."""
    names = checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
    if unread := [n.hf for n in names if n.unread and n.name in checkpoint.tensors]:
        why = f"no layer reads {first_names(unread)}, which are left out"
        key = checkpoint.architecture.key("sharing")
        yield Fact(key, checkpoint.hyperparameters.sharing, "the graph", why=why, told=True)


def _rounded_products(checkpoint: Checkpoint, target: Target, options: Options) -> list[Fact]:
    """What the accuracy level does to activations, where any weight is multiplied in integers."""
    kind = parse(target.type)
    if (to := kind.rounds_to) is None:
        return []
    choices = choose(checkpoint, target, options, importance=True)
    if not any(
        isinstance(c.codec, BlockCodec)
        or (isinstance(c.codec, NBitsCodec) and not c.codec.explicit)
        for c in choices
    ):
        return []
    longer = "many times" if kind.standard else "several times"
    why = (
        f"onnxruntime rounds activations to {to} before products; -acc0 keeps them, "
        f"and takes {longer} as long for every token"
    )
    return [Fact("accuracy_level", kind.level, "the graph", exact=False, why=why)]


def check_family(checkpoint: Checkpoint, *, sinks: bool) -> None:
    """Raise Unsupported for a model that the graph builder does not know; ``sinks``: the operator
    of attention takes them, as that of the standard does not."""
    architecture = checkpoint.architecture
    there = architecture.modules_of(checkpoint.hyperparameters)
    in_all = [m for m in there if m.layers != "dense"]
    modules = {m.name.removeprefix("layers.{layer}.") for m in in_all}
    if any(m.layers == "linear" for m in there):
        raise Unsupported(
            f"{architecture.id} models cannot be written as ONNX graphs yet: there is none of "
            "linear attention by the gated delta rule; convert to gguf or hf instead"
        )
    told = [m for m in architecture.modules if m.only_with and m.name.endswith(".q_norm")]
    normed = architecture.block.head_norms != "none" and (not told or told[0] in there)
    common = _EVERY | (_HEAD_NORMS if normed else set())
    if checkpoint.hyperparameters.kv_rank:
        common = common - {"attn.k", "attn.v"} | _LATENTS
    if checkpoint.hyperparameters.q_rank:
        common = common - {"attn.q"} | _SHORT_QUERIES
    if not sinks and modules >= _SINKS:
        raise Unsupported(
            f"{architecture.id} models have sinks beside the scores of attention, which the "
            "standard's operator does not take; choose a type without -standard"
        )
    for whole in (_OWN_INPUTS, {"factor"}, _SINKS):
        common |= whole if whole <= modules else set()
    placings = [{"attn_norm"}] if architecture.block.parallel else _NORMS
    known = [common | parts | norms for parts in _FEED_FORWARD for norms in placings]
    if modules in known:
        return
    nearest = min(known, key=lambda parts: len(parts ^ modules))
    odd = [f"no {name} in its layers" for name in sorted(modules - nearest)]
    odd += [f"none without {name}" for name in sorted(nearest - modules)]
    raise Unsupported(
        f"{architecture.id} models cannot be written as ONNX graphs yet: the graph has "
        f"{' and '.join(odd[:3])}; convert to gguf or hf instead"
    )


def _activation(checkpoint: Checkpoint) -> str:
    """The function in the feed-forward network; of values that mean one function, the first."""
    architecture = checkpoint.architecture
    given = checkpoint.config.get(architecture.block.activation_key)
    return str(given or architecture.constants[architecture.block.activation_key][0])


def graph_bytes(
    checkpoint: Checkpoint,
    kind: TargetType,
    choices: list[Choice],
    stacks: Mapping[str, tuple[Stack, Stack]],
    places: Mapping[str, Place],
) -> bytes:
    """The protobuf of the graph; the same bytes for the same plan."""
    from zenconvert.formats.onnx.write.graph.decoder import Facts
    from zenconvert.formats.onnx.write.graph.model import build_model, serialized

    hp, architecture = checkpoint.hyperparameters, checkpoint.architecture
    seen = windows(architecture, checkpoint.config, hp)
    facts = Facts(
        hp=hp,
        windows=seen,
        rotating=rotary.rotated(architecture, seen),
        heads=layer_heads(hp),
        norms_heads_whole=architecture.block.head_norms == "whole",
        norms_values=architecture.block.norms_values,
        norms_turned=architecture.block.head_norms == "turned",
        latent_eps=architecture.block.latent_eps,
        score_scale=_score_scale(checkpoint),
        rotary_pairs=architecture.block.rotary_pairs,
        activation=_activation(checkpoint),
        clamped=architecture.block.clamped,
        layer_norms=architecture.block.layer_norms,
        parallel=architecture.block.parallel,
        routes_over_all=architecture.block.routes_over_all,
        routes_by_sigmoid=architecture.block.routes_by_sigmoid,
        scales_embedding=architecture.block.scales_embedding,
        floats=str(kind.floats),
    )
    tensors = _by_neutral_name(checkpoint, choices)
    orders: dict[tuple[int, ...], str] = {}
    for choice in choices:
        if choice.columns is not None:
            orders.setdefault(choice.columns, order_name(choice))
    model = build_model(facts, kind, tensors, stacks, places, orders)
    model.metadata_props.update(_metadata(checkpoint, choices))
    return serialized(model)


def _score_scale(checkpoint: Checkpoint) -> float:
    """What scores are multiplied by, as a float32."""
    hp, scales = checkpoint.hyperparameters, checkpoint.architecture.block.scales_scores
    usual = hp.usual_score_scale * rotary.score_factor(hp) if scales else 1.0
    return float(np.float32(hp.score_scale or usual))


def _by_neutral_name(checkpoint: Checkpoint, choices: list[Choice]) -> dict[str, Choice]:
    names = checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
    neutral = {n.hf: n.name for n in names}
    return {neutral[c.name]: c for c in choices if c.derived is None}


def _metadata(checkpoint: Checkpoint, choices: list[Choice]) -> dict[str, str]:
    """What the model is and what became of every tensor."""
    steps: dict[str, Any] = {
        c.name: [
            {"from": str(p.source_encoding), "to": str(c.encoding), "exact": v.exact, "why": v.why}
            for p, v in zip(c.parts, c.told, strict=True)
        ]
        for c in choices
        if c.derived is None
    }
    return {
        "zenconvert.model.architecture": checkpoint.architecture.id,
        "zenconvert.steps": json.dumps(steps, ensure_ascii=False, separators=(",", ":")),
    }
