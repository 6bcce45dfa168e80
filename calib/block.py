"""One decoder block in transformers' own modelling code, filled with the weights it is given.

A one-layer model is built on the meta device, where it takes no memory, and its parameters are then
replaced by the tensors given, so that any architecture and version of transformers works.
Mixture-of-experts blocks are brought into one form first (:mod:`zenconvert.calib.experts`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from math import prod
from typing import Any, Final

import torch

from zenconvert.architecture import TensorName
from zenconvert.calib.experts import Expert, find_moe, unify_experts
from zenconvert.calib.inputs import module_of
from zenconvert.errors import InvalidInput

_TINY_VOCABULARY: Final = 8  # of the one-layer model, whose embedding is never used
_RENAMED: Final = ("block_sparse_moe", "mlp")  # in checkpoints, and in transformers 5


class Block:
    """A decoder block: hidden states in, hidden states out (after the last block, normed).

    ``modules`` maps neutral module names to torch modules. While :meth:`forward` runs,
    :meth:`rows` turns what a module sees into one row per token.
    """

    def __init__(self, model: Any, modules: Mapping[str, torch.nn.Module]) -> None:
        self.model, self.modules = model, modules
        self.experts: tuple[Expert, ...] = ()
        self._real: torch.Tensor | None = None
        self._shape = (0, 0)
        if (moe := find_moe(model)) is not None:
            self.experts = tuple(moe.experts)
            moe.register_forward_pre_hook(self._leave_out_padding)
            moe.register_forward_hook(self._put_padding_back)

    def forward(self, states: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Windows of these lengths, one after the other: [tokens, hidden] → [tokens, hidden].

        Padding stands right, where causality keeps it from being seen.
        """
        with torch.inference_mode():
            windows = list(torch.split(states, list(lengths)))
            padded = torch.nn.utils.rnn.pad_sequence(windows, batch_first=True)
            self._shape = (len(lengths), max(lengths))
            self._real = None
            if min(lengths) < max(lengths):
                self._real = _real_rows(lengths).to(states.device)
            output = self.model(inputs_embeds=padded, use_cache=False, return_dict=True)
            return self.rows(output[0])  # some versions return a tuple when the config says so

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """Activations [..., columns] as [tokens, columns], without padding."""
        flat = values.reshape(-1, values.shape[-1])
        if self._real is None or len(flat) != prod(self._shape):
            return flat  # nothing was padded, or the padding is out already
        return flat[self._real]

    def _leave_out_padding(self, module: torch.nn.Module, args: tuple[Any, ...]) -> Any:
        """No expert should see padding: it would count as a routed token."""
        return (self.rows(args[0])[None], *args[1:])

    def _put_padding_back(self, module: torch.nn.Module, args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output  # transformers 4 adds logits
        if self._real is not None:
            flat = states.new_zeros(prod(self._shape), states.shape[-1])
            flat[self._real] = states.reshape(-1, states.shape[-1])
            states = flat
        states = states.reshape(*self._shape, -1)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    def weight(self, tensor: str) -> torch.Tensor:
        """A parameter by its neutral tensor name, as the block holds it."""
        module, _, kind = tensor.rpartition(".")
        value: torch.Tensor = getattr(self.modules[module], kind)
        return value.detach()

    def set_weight(self, tensor: str, value: torch.Tensor) -> None:
        """Replace a parameter; the new one is brought to the dtype and device of the old one."""
        module, _, kind = tensor.rpartition(".")
        value = value.to(self.weight(tensor))
        setattr(self.modules[module], kind, torch.nn.Parameter(value, requires_grad=False))


def _real_rows(lengths: Sequence[int]) -> torch.Tensor:
    """Where the tokens of windows stand when all are padded to the longest, int64[tokens]."""
    inside = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return inside.reshape(-1).nonzero().squeeze(1)


def build_block(
    config: Mapping[str, Any],
    layer: int,
    names: Sequence[TensorName],
    weights: Mapping[str, torch.Tensor],
    *,
    where: str,
) -> Block:
    """Block ``layer`` of a model, made of ``weights`` (neutral tensor name → tensor).

    ``names`` are the tensors that the block may have, the final norm among them for the last block
    only. Raises InvalidInput when transformers refuses the config, misses a tensor that the config
    announces, or has no place for one that is given.
    """
    try:
        with _quiet():
            model = _skeleton(_one_layer(config, layer))
    except Exception as error:  # an odd config makes transformers raise anything
        raise InvalidInput(f"{where}: transformers refuses the config: {error!r}") from error
    unify_experts(model, where)
    given = {module_of(name): tensor.device for name, tensor in weights.items()}
    if "norm" not in given:
        model.norm = torch.nn.Identity()
    _rebuild_buffers(model, next(iter(given.values())))
    modules = {
        module_of(name.name): module for name in names if (module := _find(model, name)) is not None
    }
    _fill(model, modules, [n for n in names if n.name in weights], weights, where)
    return Block(model.eval(), modules)


def _one_layer(config: Mapping[str, Any], layer: int) -> Any:
    """The config of a model of this layer alone."""
    import transformers

    fields = {k: v for k, v in config.items() if k != "model_type" and not k.startswith("_")}
    fields = deepcopy(fields)  # transformers writes into what it is given
    fields |= {
        "vocab_size": _TINY_VOCABULARY,
        "num_hidden_layers": 1,
        "tie_word_embeddings": False,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if types := fields.get("layer_types"):
        fields["layer_types"] = [types[layer]]
    elif fields.get("use_sliding_window"):
        # Qwen2 slides its window in layers from max_window_layers on
        fields["use_sliding_window"] = layer >= fields.get("max_window_layers", 0)
        fields["max_window_layers"] = 0
    settings = transformers.AutoConfig.for_model(config["model_type"], **fields)
    settings._attn_implementation = "sdpa"
    return settings


def _skeleton(config: Any) -> Any:
    """The model of a config, without its head and on the meta device."""
    import transformers

    # the class itself: the Auto class wants a path, to look for remote code there
    model_class = transformers.MODEL_MAPPING[type(config)]
    with torch.device("meta"):
        model = model_class(config)
    model.embed_tokens = torch.nn.Identity()
    return model


def _rebuild_buffers(model: Any, device: torch.device) -> None:
    """Make anew what is computed from the config and never stored: rotary frequencies."""
    for path, module in list(model.named_modules()):
        if any(True for _ in module.buffers(recurse=False)):
            parent, _, child = path.rpartition(".")
            fresh = type(module)(config=model.config).to(device)
            setattr(model.get_submodule(parent), child, fresh)


def _find(model: Any, name: TensorName) -> torch.nn.Module | None:
    """The module that a tensor belongs to; None where the model has none."""
    moe = find_moe(model)
    if moe is not None and name.expert is not None:
        expert: torch.nn.Module = moe.experts[name.expert]
        return expert.get_submodule(module_of(name.name).rpartition(".")[2])
    path = name.module.hf.format(layer=0).removeprefix("model.")
    known = dict(model.named_modules())
    return known.get(path) or known.get(path.replace(*_RENAMED))


def _fill(
    model: Any,
    modules: Mapping[str, torch.nn.Module],
    names: Sequence[TensorName],
    weights: Mapping[str, torch.Tensor],
    where: str,
) -> None:
    """Put every tensor into its place and be sure that nothing is left over on either side."""
    unexpected = []
    for name in names:
        owner = modules.get(module_of(name.name))
        kind = name.name.rpartition(".")[2]
        if owner is None or getattr(owner, kind, None) is None:
            unexpected.append(name.hf)
        else:
            parameter = torch.nn.Parameter(weights[name.name], requires_grad=False)
            setattr(owner, kind, parameter)
    missing = [path for path, value in model.named_parameters() if value.is_meta]
    for problem, found in (("missing keys", missing), ("unexpected keys", unexpected)):
        if found:
            raise InvalidInput(f"{where}: {problem} for the config: {sorted(found)}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers, whose messages would speak of the one-layer model."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
