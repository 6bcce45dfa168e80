"""The whole model of a config in transformers' own modules, without weights.

Parameters lie on the meta device, where they take no memory; what transformers computes from the
config (rotary frequencies, embedding scales) is real. Every layer stands at its own place, with its
index, its kind of attention and of feed-forward network; :meth:`Skeleton.run` takes the model's own
forward pass, with its masks and rotations, as far as one layer, for which the caller brings a copy
that has weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

from zenconvert.base.machine import memory_errors
from zenconvert.errors import InvalidInput, MissingDependency, Unsupported
from zenconvert.model.architecture import for_model_type
from zenconvert.reference.beside import KeysValues
from zenconvert.reference.input_modules import Inputs, move_buffers, with_rows

Call = Callable[..., Any]

_SOFTCAPS: Final = ("attn_logit_softcapping", "attn_softcap")
"""Config keys of what fused attention kernels leave out without a word."""
_OUTPUTS: Final = ("output_attentions", "output_hidden_states", "output_router_logits")


class _Reached(Exception):
    """The forward pass came where it should, with these states."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states


@dataclass(frozen=True, slots=True)
class _Entry:
    """What goes into the model's own forward pass, and where."""

    number: int
    states: torch.Tensor
    layer: Call | None
    inputs: torch.Tensor | None
    handed: KeysValues


class Skeleton:
    """A model for causal language modelling; nothing in it but buffers takes memory."""

    def __init__(self, config: Mapping[str, Any], *, device: str, where: str) -> None:
        """``config`` in the vocabulary of ``config.json``; ``where`` names the model in errors.

        Raises InvalidInput when transformers refuses the config, MissingDependency when it lacks a
        library, and Unsupported when the model is not a stack of layers.
        """
        self.where = where
        with memory_errors(where):
            try:
                with quiet():
                    self.model = _weightless(_settings(config))
            except ImportError as error:
                raise MissingDependency(
                    f"{where}: transformers cannot run it: {error}; install zenconvert anew, or "
                    "what is named here"
                ) from error
            except Exception as error:  # an odd config makes transformers raise anything
                told = f"{where}: transformers refuses the config: {error!r}"
                raise InvalidInput(told) from error
        prefixes = (self.model.base_model_prefix, "model")
        self.prefix = next((p for p in prefixes if hasattr(self.model, p)), "")
        self.base: Any = getattr(self.model, self.prefix, self.model)
        layers = getattr(self.base, "layers", None)
        if not isinstance(layers, torch.nn.ModuleList):
            raise Unsupported(
                f"{where}: transformers' {type(self.base).__name__} is not a list of layers; such "
                "models cannot be run layer by layer"
            )
        self.layers = layers
        self.inputs = Inputs(self.base, where)
        self._entry: _Entry | None = None
        for number, layer in enumerate(layers):
            layer.forward = self._instead_of(number)
        embedding = self.base.get_input_embeddings()
        for module in self.base.modules():
            if module is not embedding:
                move_buffers(module, device, where)

    @property
    def heads(self) -> int:
        """Attention heads whose scores are held whole; 0 where a fused kernel computes them."""
        config = self.base.config
        return int(config.num_attention_heads) if _is_eager(config) else 0

    def layer(self, number: int) -> torch.nn.Module:
        """A copy of a layer, to be filled with weights."""
        config = self.base.config
        made: torch.nn.Module = deepcopy(self.layers[number], {id(config): config})
        del made.__dict__["forward"]
        return made

    def run(
        self,
        number: int,
        layer: Call,
        states: torch.Tensor,
        inputs: torch.Tensor | None = None,
        handed: KeysValues | None = None,
    ) -> torch.Tensor:
        """``states`` [windows, tokens, hidden] through ``layer``, which stands at ``number``; after
        the last layer through what follows it (the final norm), too.

        ``inputs`` [windows, tokens, width] are the layer's own. ``handed``: keys and values of
        earlier layers; those that this one has for later ones are put there.
        """
        return self._forward(
            _Entry(number, states, layer, inputs, {} if handed is None else handed)
        )

    def enter(self, states: torch.Tensor) -> torch.Tensor:
        """What the first layer is given where the embedding gives ``states``, of the same shape."""
        return self._forward(_Entry(0, states, None, None, {}))

    def _forward(self, entry: _Entry) -> torch.Tensor:
        self._entry = entry
        given = self.inputs.given(entry.states, entry.inputs)
        try:
            output = self.base(
                inputs_embeds=entry.states, use_cache=False, return_dict=True, **given
            )
        except _Reached as reached:
            return reached.states
        finally:
            self._entry = None
        found: torch.Tensor = output[0]
        return found

    def _instead_of(self, number: int) -> Call:
        """What a layer of the skeleton does: nothing, unless its copy is there."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            assert self._entry is not None
            entry = self._entry
            if number != entry.number:
                return entry.states
            given = args[0] if args else kwargs.pop("hidden_states")
            if entry.layer is None:
                raise _Reached(given)
            shared = kwargs.get("shared_kv_states", {})
            shared.update(entry.handed)
            output = entry.layer(entry.states, *args[1:], **kwargs)
            entry.handed.update(shared)
            if number == len(self.layers) - 1:
                return output
            raise _Reached(output[0] if isinstance(output, tuple) else output)

        return forward

    def embedding(self, rows: torch.Tensor) -> torch.nn.Module:
        """The model's embedding with a table of its own, [n, hidden], on the CPU."""
        return with_rows(self.base.get_input_embeddings(), rows, self.where)

    @property
    def head(self) -> str:
        """The attribute of the model that makes logits of states. Raises Unsupported for a model
        that has no such linear module."""
        for name, module in self.model.named_children():
            if name != self.prefix and isinstance(module, torch.nn.Linear):
                return str(name)
        raise Unsupported(f"{self.where}: {type(self.model).__name__} has no linear output head")

    def with_head(self, head: torch.nn.Module, states: Call) -> Any:
        """A shallow copy of the model with another head, whose base gives what ``states`` returns;
        this one stays as it is."""
        model = copy(self.model)
        model._modules = dict(self.model._modules)
        setattr(model, self.prefix, Given(states))
        setattr(model, self.head, head)
        return model


class Given(torch.nn.Module):
    """Stands for a base model whose final states are known."""

    def __init__(self, states: Call) -> None:
        super().__init__()
        self.states = states

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import MoeModelOutputWithPast

        class Output(MoeModelOutputWithPast):  # type: ignore[misc]
            """Has nothing of what some models hand on beside states."""

            def __getattr__(self, name: str) -> None:
                if name.startswith("__"):
                    raise AttributeError(name)

        return Output(last_hidden_state=self.states())


def _settings(config: Mapping[str, Any]) -> Any:
    """The config as transformers understands it, of the text model alone."""
    import transformers

    left_out = {"model_type", "auto_map", "quantization_config"}
    fields = {k: v for k, v in config.items() if k not in left_out and not k.startswith("_")}
    # copied: transformers writes into what it is given
    whole = transformers.AutoConfig.for_model(_type(config), **deepcopy(fields))
    settings = whole.get_text_config(decoder=True)
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(settings, key, None)  # ids that generation alone needs may be out of range
    for key in _OUTPUTS:
        if getattr(settings, key, False):
            setattr(settings, key, False)
    settings.tie_word_embeddings = False  # the head is given apart
    return settings


def _type(config: Mapping[str, Any]) -> str:
    """The model type, or that of the family that transformers knows it by."""
    import transformers

    found: str = config["model_type"]
    known = found in transformers.CONFIG_MAPPING
    return found if known else for_model_type(found).model_types[0]


def _weightless(settings: Any) -> Any:
    """The model of a config."""
    import transformers

    # the class itself: the Auto class wants a path, to look for remote code there
    model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)]
    fused = getattr(model_class, "_supports_sdpa", False)
    capped = any(getattr(settings, key, None) is not None for key in _SOFTCAPS)
    settings._attn_implementation = "sdpa" if fused and not capped else "eager"
    with _ParametersOnMeta(), _no_initialisation():
        model = model_class(settings)
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            empty = torch.empty_like(value, device="meta")
            setattr(module, name, torch.nn.Parameter(empty, requires_grad=False))
    return model.eval()


def _is_eager(settings: Any) -> bool:
    return bool(settings._attn_implementation == "eager")


def _no_initialisation() -> AbstractContextManager[None]:
    """Random numbers for meta tensors take most of the time."""
    from transformers import modeling_utils

    try:
        from transformers.initialization import no_init_weights
    except ImportError:
        no_init_weights = modeling_utils.no_init_weights
    switch: AbstractContextManager[None] = no_init_weights()
    return switch


class _ParametersOnMeta(TorchFunctionMode):
    """Puts what is made to be overwritten on the meta device.

    Modules make large parameters by ``empty``, or by ``zeros`` and ``ones`` of several dimensions,
    and compute buffers from numbers.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is None and (
            func is torch.empty or (func in (torch.zeros, torch.ones) and _dimensions(args) > 1)
        ):
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _dimensions(args: tuple[Any, ...]) -> int:
    """Of a factory's arguments: ``zeros(2, 3)`` or ``zeros((2, 3))``."""
    first = args[0] if args else ()
    return len(first) if isinstance(first, tuple | list) else len(args)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers, whose messages would speak of a model without weights."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
