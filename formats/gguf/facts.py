"""What becomes of a config's facts in a GGUF file: what llama.cpp reads, and what it does instead.

A file that was GGUF before keeps its metadata whole, so nothing becomes of anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from zenconvert.errors import Unsupported, ZenError, several
from zenconvert.formats.gguf import generation, rope
from zenconvert.formats.gguf.general import name_of
from zenconvert.formats.gguf.stripping import differences, stripping
from zenconvert.formats.gguf.tokenizer import template_names, tokenizer_metadata
from zenconvert.model import meaning
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.meaning import Fact
from zenconvert.model.sliding import windows
from zenconvert.model.target import Options, Target
from zenconvert.model.tokenizer import Tokenizer

_RUNTIME: Final = "llama.cpp"
_COMPUTED: Final = (
    "score_width", "score_softcap", "logit_softcap", "sliding_theta", "score_growth",
    "score_scale", "embedding_factor", "residual_factor", "logit_factor", "logit_divisor",
)  # fmt: skip
"""Sizes that change what is computed, and that only some architectures have keys for."""
_EVERY_LAYER: Final[tuple[object, ...]] = (None, [], 1)
"""Values of the keys about dense layers that make none."""


def facts(checkpoint: Checkpoint, target: Target, options: Options) -> list[Fact]:
    """Every fact of the config and of the generation config, and where the file has it."""
    del target  # all types say the same
    if checkpoint.format == "gguf":
        return []
    return [
        *meaning.described(checkpoint, options.ignored_keys, _RUNTIME),
        *_rotations(checkpoint, options),
        *_windows(checkpoint),
        *_implied(checkpoint),
        *_heads(checkpoint),
        *_dense_layers(checkpoint),
        *_layer_inputs(checkpoint),
        *_sections(checkpoint),
        *_latents(checkpoint),
        *_groups(checkpoint),
        *_sharing(checkpoint),
        *_biases(checkpoint),
        *_tokenizer(checkpoint, options),
    ]


def _tokenizer(checkpoint: Checkpoint, options: Options) -> Iterator[Fact]:
    """What a tokenizer.json does and llama.cpp does not, and what is said of drawing tokens."""
    try:
        tokenizer = checkpoint.tokenizer
        family, pre = checkpoint.architecture.in_gguf, options.pre_tokenizer
        keys = tokenizer_metadata(tokenizer, family, pre_tokenizer=pre)
    except ZenError:
        return  # it stops the layout, which says so
    yield from generation.facts(checkpoint, keys)
    by_scores = () if family.model else tokenizer.score_losses
    lines = _lines(tokenizer) if family.model else ()
    named = keys.get("tokenizer.ggml.pre", ("str", ""))[1]
    stripped = stripping(name_of(checkpoint), str(named), tokenizer.tokens, tokenizer.types)
    yield from _called(checkpoint, stripped.missing)
    for text in (*tokenizer.losses, *differences(tokenizer, stripped), *by_scores, *lines):
        yield Fact("tokenizer.json", text, "", exact=False, why=f"so {_RUNTIME} has it")
    for name, other in template_names(tokenizer).items():
        if name != other:
            why = "keys of GGUF have letters, digits and underscores"
            yield Fact(f"chat template {name}", name, other, exact=False, why=why)
    for text in tokenizer.ignored:
        yield Fact("tokenizer.json", text, "")


def _called(checkpoint: Checkpoint, missing: Sequence[str]) -> Iterator[Fact]:
    """The name of a model that llama.cpp takes for another, and then loads no file."""
    if missing:
        why = (
            f"llama.cpp takes a model of that name for Phi-3 and loads no file without the tokens "
            f"{', '.join(missing)}; give another name in the front matter of README.md (name: …)"
        )
        yield Fact("general.name", name_of(checkpoint), "", exact=False, why=why, refused=True)


def _lines(tokenizer: Tokenizer) -> Iterator[str]:
    """Of tokenizers that merge by rank, llama.cpp parts lines from their ends first."""
    mixed = (text for text in tokenizer.tokens if "\n" in text and text.strip("\n"))
    if (text := next(mixed, None)) is not None:
        yield f"{text!r:.40} is never made, as lines are parted from their ends"


def _rotations(checkpoint: Checkpoint, options: Options) -> Iterator[Fact]:
    architecture, hp = checkpoint.architecture, checkpoint.hyperparameters
    kinds = ("default", *sorted(architecture.in_gguf.scalings))
    found = list(meaning.rotations(checkpoint, options.ignored_keys, kinds, _RUNTIME))
    yield from found
    if any(fact.refused for fact in found):
        return
    for name, value, why in rope.lossy_scaling(hp, architecture.in_gguf):
        yield Fact(f"rope_scaling.{name}", value, "", exact=False, why=why)
    if hp.rope_scaling is not None:
        keys = rope.scaling_keys(hp, architecture.in_gguf)
        place = ", ".join((*keys, *rope.long_factors(hp))) or rope.FREQS
        if hp.rope_scaling["rope_type"] != "dynamic":
            yield Fact("rope_scaling", dict(hp.rope_scaling), place)


def _windows(checkpoint: Checkpoint) -> Iterator[Fact]:
    """llama.cpp's graphs of many architectures see every token."""
    hp = checkpoint.hyperparameters
    try:
        sizes = windows(checkpoint.architecture, checkpoint.config, hp)
    except Unsupported as error:
        types = checkpoint.config.get("layer_types")
        yield Fact("layer_types", types, "", exact=False, why=str(error), refused=True)
        return
    seen = [size for size in sizes if size is not None]
    family = checkpoint.architecture.in_gguf
    with_windows = family.windows_layers in (0, hp.layers)
    if with_windows == (not seen) and family.windows_layers:
        yield _other_windows(checkpoint, bool(seen))
        return
    if not seen:
        if family.always_windows:
            yield _no_windows(checkpoint)
        return
    shortest = min(seen)
    if family.window_period:
        yield Fact("sliding_window", shortest, "attention.sliding_window")
        return
    if shortest >= hp.context:
        why = f"no text of {hp.context} tokens is longer than the window"
        yield Fact("sliding_window", shortest, "", why=why)
        return
    why = (
        f"llama.cpp has no sliding window for {checkpoint.architecture.gguf} models: the same up "
        f"to {shortest} tokens; beyond, {len(seen)} of {hp.layers} layers see tokens that they "
        "should not"
    )
    yield Fact("sliding_window", shortest, "", exact=False, why=why)


def _no_windows(checkpoint: Checkpoint) -> Fact:
    """llama.cpp does not load such a model, or takes a window of its own."""
    why = f"llama.cpp has layers with a window in all {checkpoint.architecture.gguf} models"
    types = checkpoint.config.get("layer_types")
    return Fact("layer_types", types, "", exact=False, why=why, refused=True)


def _other_windows(checkpoint: Checkpoint, slides: bool) -> Fact:
    """llama.cpp tells by the number of layers alone whether such a model has windows."""
    architecture, layers = checkpoint.architecture, checkpoint.hyperparameters.layers
    does = "no layers with windows" if slides else "layers with windows"
    models = f"{architecture.gguf} models of {several(layers, 'layer', 'layers')}"
    why = f"llama.cpp's {models} have {does}"
    found = checkpoint.config.get("sliding_window")
    return Fact("sliding_window", found, "", exact=False, why=why, refused=True)


def _implied(checkpoint: Checkpoint) -> Iterator[Fact]:
    """Numbers without a key, or that no key can take away: they have to be llama.cpp's own."""
    architecture, hp = checkpoint.architecture, checkpoint.hyperparameters
    family = architecture.in_gguf
    rows = {key.size: key.name for key in family.keys if not key.unread}
    zeros = {key.size for key in family.keys if key.or_zero}
    for size in _COMPUTED:
        value, implied = hp.number(size), family.implied_number(size, hp)
        name = architecture.key(size)
        if size in rows and (value is not None or size in zeros):
            yield Fact(name, value, f"{architecture.gguf}.{rows[size]}")
        elif value != implied:
            why = f"llama.cpp computes {architecture.gguf} models with {implied or 'none'}"
            yield Fact(name, value, "", exact=False, why=why, refused=True)


def _heads(checkpoint: Checkpoint) -> Iterator[Fact]:
    architecture, hp = checkpoint.architecture, checkpoint.hyperparameters
    tied = "head.weight" not in checkpoint.tensors
    if architecture.in_gguf.head == "own" and tied:
        why = f"llama.cpp's {architecture.gguf} models have a head of their own"
        yield Fact("tie_word_embeddings", True, "", exact=False, why=why, refused=True)
    if architecture.in_gguf.head == "tied" and not tied:
        why = f"llama.cpp's {architecture.gguf} graph has no head but the embedding"
        yield Fact("tie_word_embeddings", False, "", exact=False, why=why, refused=True)
    if hp.linear_layers and hp.linear_key_dim != hp.linear_value_dim:
        why = f"llama.cpp has heads of values as large as those of keys, {hp.linear_key_dim}"
        key = architecture.key("linear_value_dim")
        yield Fact(key, hp.linear_value_dim, "", exact=False, why=why, refused=True)
    if not architecture.in_gguf.any_heads and hp.head_dim * hp.heads != hp.hidden:
        why = f"llama.cpp has heads of hidden / heads only in {architecture.gguf} models"
        yield Fact("head_dim", hp.head_dim, "", exact=False, why=why, refused=True)
    if not architecture.in_gguf.any_kv_heads and hp.kv_heads != hp.heads:
        why = f"llama.cpp's {architecture.gguf} models have as many as of queries, {hp.heads}"
        key = architecture.key("kv_heads")
        yield Fact(key, hp.kv_heads, "", exact=False, why=why, refused=True)


def _dense_layers(checkpoint: Checkpoint) -> Iterator[Fact]:
    """llama.cpp's graphs of mixtures have a router and experts in every layer."""
    architecture, config = checkpoint.architecture, checkpoint.config
    if "dense" not in architecture.layers:
        return
    dense, keys = checkpoint.hyperparameters.dense_layers, architecture.layers.values()
    if not dense:
        place = f"llama.cpp's {architecture.gguf} graph, which has experts in every layer"
        yield from (Fact(k, config[k], place) for k in keys if config.get(k) is not None)
        return
    key = next((k for k in keys if config.get(k) not in _EVERY_LAYER), architecture.key("experts"))
    why = (
        f"llama.cpp's {architecture.gguf} graph has experts in every layer, and "
        f"{several(len(dense), 'layer has', 'layers have')} none here, the first is {dense[0]}"
    )
    yield Fact(key, config.get(key), "", exact=False, why=why, refused=True)


def _layer_inputs(checkpoint: Checkpoint) -> Iterator[Fact]:
    """llama.cpp looks every token up in both embeddings."""
    architecture, hp = checkpoint.architecture, checkpoint.hyperparameters
    if hp.input_width and hp.input_vocab != hp.vocab:
        why = f"llama.cpp wants as many as the vocabulary has, and that is {hp.vocab}"
        key = architecture.key("input_vocab")
        yield Fact(key, hp.input_vocab, "", exact=False, why=why, refused=True)


def _sections(checkpoint: Checkpoint) -> Iterator[Fact]:
    """Of a token of a text llama.cpp leaves one dimension of positions at 0, and turns by it what
    no other section covers; sections are in turn, channel by channel."""
    architecture, hp = checkpoint.architecture, checkpoint.hyperparameters
    sections = hp.rotary_sections
    if not sections:
        return
    pairs, key = hp.rotary_dim // 2, architecture.key("rotary_sections")
    covered = len(sections) == 3 and all(i // 3 < sections[i % 3] for i in range(pairs))
    if covered:
        yield Fact(key, list(sections), f"{architecture.gguf}.rope.dimension_sections")
        return
    why = f"llama.cpp does not rotate all of {pairs} pairs of channels by them"
    yield Fact(key, list(sections), "", exact=False, why=why, refused=True)


def _latents(checkpoint: Checkpoint) -> Iterator[Fact]:
    """What llama.cpp takes of models whose keys and values are made of shorter rows."""
    architecture, hp = checkpoint.architecture, checkpoint.hyperparameters
    family, eps = architecture.in_gguf, architecture.block.latent_eps
    if not hp.kv_rank:
        return
    if eps != hp.rms_eps:
        why = f"llama.cpp takes it for norms of what keys are made of, too, which have {eps:g}"
        yield Fact(architecture.key("rms_eps"), hp.rms_eps, "", exact=False, why=why)
    if (hp.layers in family.whole_queries_layers) == bool(hp.q_rank):
        models = f"{architecture.gguf} models of {several(hp.layers, 'layer', 'layers')}"
        made = "short rows" if not hp.q_rank else "the states themselves"
        why = f"llama.cpp's {models} make queries of {made}"
        key = architecture.key("q_rank")
        yield Fact(key, hp.q_rank or None, "", exact=False, why=why, refused=True)


def _groups(checkpoint: Checkpoint) -> Iterator[Fact]:
    """Groups of experts, as llama.cpp looks at them."""
    architecture, hp = checkpoint.architecture, checkpoint.hyperparameters
    if hp.groups < 2:
        return
    each, rest = divmod(hp.experts, hp.groups)
    few = hp.experts_used > each * hp.groups_used
    if rest or each < 2 or hp.groups_used >= hp.groups or few:
        why = (
            "llama.cpp wants two or more experts in every group, some groups to be left out, and "
            "in the others as many as a token asks"
        )
        key = architecture.key("groups")
        yield Fact(key, hp.groups, "", exact=False, why=why, refused=True)
    else:
        place = f"{architecture.gguf}.expert_group_count"
        yield Fact(architecture.key("groups"), hp.groups, place)


def _sharing(checkpoint: Checkpoint) -> Iterator[Fact]:
    """Layers that read keys and values of others: llama.cpp takes those of the last but one layer
    with its own where they slide, else the last one's."""
    hp = checkpoint.hyperparameters
    if not hp.sharing:
        return
    slides = [w is not None for w in windows(checkpoint.architecture, checkpoint.config, hp)]
    own = slides[: hp.layers - hp.sharing]
    for kind in set(slides[len(own) :]):
        if [i for i, k in enumerate(own) if k == kind][-1:] != [len(own) - 1 - kind]:
            why = "llama.cpp shares keys and values of two layers, the first sliding"
            key = checkpoint.architecture.key("sharing")
            yield Fact(key, hp.sharing, "", exact=False, why=why, refused=True)
            return


def _biases(checkpoint: Checkpoint) -> Iterator[Fact]:
    architecture = checkpoint.architecture
    family = architecture.in_gguf
    for module in [m for m in architecture.modules if m.bias_flag is not None]:
        there = f"{module.name.replace('{layer}', '0')}.bias" in checkpoint.tensors
        if there == (module.name in family.no_biases) and (there or family.needs_biases):
            has = "no" if there else "a"
            why = f"llama.cpp's {architecture.gguf} graph has {has} bias of {module.gguf}"
            yield Fact(str(module.bias_flag), there, "", exact=False, why=why, refused=True)
            return
