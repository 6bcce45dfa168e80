"""One walk over the layers of the reference model serves every target of a run.

The contract, for whoever solves for weights or writes statistics::

    for part in walk(reference, selection, WalkSettings(device="cuda", moments=True)):
        for variant in variants:                 # forward and statistics are done: solve, write
            for module in part.modules:
                solve(part.weight(f"{module}.weight"), part.of(module), variant)
                                                 # the next step of the loop frees this layer

* Parts come in the order of the layers; last comes the output head (``layer`` None), without
  inputs where the head is tied to the embedding. A layer comes as one part, or as several with
  disjoint inputs when their second moments do not fit into memory together; ``last`` marks its
  last part.
* A part is valid until the next one is asked for. Then its moments, weights and hooks go.
* With ``sequential="layers"`` the consumer may :meth:`~LayerStatistics.replace` weights of the
  layer by their quantized values; the layer's outputs are computed anew with them, so that later
  layers see what they will see in the quantized model. With ``"stages"`` this holds inside a layer
  too: q, k and v come as a part of their own, then o, then gate and up, then down, each computed
  with the replaced weights of the parts before. One walk serves one variant then.
* With a workspace, hidden states are saved from time to time (a minute, by default). A later walk
  with the same workspace begins at the layer that was saved, which may lie before the last layer
  that the consumer finished: what it wrote, it gets again, and the same. Where it does not want
  that, ``skip`` names layers that are only computed; not for sequential walks, whose later layers
  need the replaced weights.
* Statistics, and so everything made from them, do not depend on where hidden states are kept, on
  the number of parts, on the workspace, or on ``skip``.

The weights of the next layer are read while one computes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from zenconvert.base.machine import take_device
from zenconvert.base.scratch import temporary_folder
from zenconvert.calib.collector import Collector, Sums, check_finite
from zenconvert.calib.layer import DTYPES, LayerStatistics
from zenconvert.calib.statistics import InputStatistics
from zenconvert.calib.workspace import Workspace
from zenconvert.errors import UsageError
from zenconvert.reference import memory
from zenconvert.reference.batches import Batch, most_tokens
from zenconvert.reference.block import Block
from zenconvert.reference.inputs import Input, head_input, layer_inputs
from zenconvert.reference.passage import Passage
from zenconvert.reference.reference import Reference
from zenconvert.texts.selection import Selection

Sequential = Literal["off", "layers", "stages"]


@dataclass(frozen=True, slots=True)
class WalkSettings:
    """How a walk computes."""

    device: str = "cpu"
    dtype: str | None = None
    """``f32``, ``bf16`` or ``f16``; by default ``bf16`` on CUDA and ``f32`` elsewhere."""
    moments: bool = False
    """Gather second moments of what linear modules read."""
    all_experts: bool = False
    """Take statistics of every expert over all tokens, routed to it or not."""
    sequential: Sequential = "off"
    max_vram: int | None = None
    """Bytes of the device that the walk may use; most of what is free by default."""
    max_ram: int | None = None
    """The same of the main memory."""

    @property
    def compute(self) -> str:
        """The dtype that is computed in."""
        return self.dtype or ("bf16" if self.kind == "cuda" else "f32")

    @property
    def kind(self) -> str:
        """The kind of device."""
        return torch.device(self.device).type


@dataclass(frozen=True, slots=True)
class LayerProgress:
    """How far a walk is."""

    layer: int
    """The layer that is being computed."""
    layers: int
    done: float
    """Share of the work, 0 to 1."""
    seconds_left: float | None
    """Estimated from the time taken so far; None at the beginning."""
    stage: str = "calibrating"
    """What is done to the layer: ``gradients`` on a walk back."""


def walk(
    reference: Reference,
    selection: Selection,
    settings: WalkSettings,
    *,
    workspace: Workspace | None = None,
    skip: Collection[int] = (),
    progress: Callable[[LayerProgress], None] | None = None,
) -> Generator[LayerStatistics, None, None]:
    """Walk over the layers of a model; the contract stands at the top of this module.

    Raises InvalidInput when transformers cannot run the model or activations are not finite,
    Unsupported for experts that transformers holds in an unknown way, UsageError for a device or
    dtype that makes no sense and NotEnoughResources when one block does not fit.
    """
    take_device(settings.device)
    if settings.compute not in DTYPES:
        raise UsageError(f"there is no dtype {settings.dtype!r}; choose from {', '.join(DTYPES)}")
    if skip and settings.sequential != "off":
        raise UsageError("a sequential walk cannot skip layers")
    with ExitStack() as stack:
        folder = workspace.folder if workspace is not None else None
        if folder is None:
            folder = stack.enter_context(temporary_folder())
        run = _Walk(reference, selection, settings, progress)
        stack.enter_context(run.passage(folder))
        stack.callback(run.windows.close)
        yield from run.layers(workspace, skip)
        yield from run.head()


class _Walk:
    """The state of a walk."""

    def __init__(
        self,
        reference: Reference,
        selection: Selection,
        settings: WalkSettings,
        progress: Callable[[LayerProgress], None] | None,
    ) -> None:
        self.reference, self.selection, self.settings = reference, selection, settings
        self.progress = progress
        self.token_weights = selection.token_weights
        layers = [(reference.by_layer[n], self.inputs(n)) for n in range(reference.layers)]
        need = memory.needs(
            reference.checkpoint.hyperparameters.hidden,
            layers,
            selection.windows,
            batch_tokens=most_tokens(settings.device),
            item=DTYPES[settings.compute].itemsize,
            moments=settings.moments,
            heads=reference.skeleton.heads,
            beside=reference.beside,
        )
        self.placement = memory.place(
            need, device=settings.device, max_vram=settings.max_vram, max_ram=settings.max_ram
        )

    def passage(self, folder: Path) -> Passage:
        """The windows before the first layer; ``folder`` takes states that are kept on disk."""
        self.windows = Passage(
            self.reference,
            self.selection.windows,
            self.selection.languages,
            DTYPES[self.settings.compute],
            place=self.placement.hidden,
            folder=folder,
        )
        return self.windows

    def inputs(self, layer: int) -> tuple[Input, ...]:
        """The distinct inputs of a layer."""
        return layer_inputs(
            self.reference.checkpoint.architecture,
            self.reference.by_layer[layer],
            all_experts=self.settings.all_experts,
        )

    def layers(
        self, workspace: Workspace | None, skip: Collection[int]
    ) -> Iterator[LayerStatistics]:
        """Every part of every layer that is not skipped."""
        layers = range(workspace.first_layer if workspace else 0, self.reference.layers)
        self.clock = _Clock(layers, self.progress)
        if not layers.start or self.windows.inputs.rows is not None:
            self.windows.embed()
        if workspace is not None and layers.start:
            workspace.load_states(self.windows.states)
        for layer in layers:
            block = self.windows.block(layer)
            if layer in skip:
                self.clock.begin(layer, len(self.windows.batches))
                self.forward(block)
            else:
                yield from self.parts(layer, block)
            del block  # before the next one comes
            if workspace is not None:
                workspace.save_states(self.windows.states, layer + 1)

    def parts(self, layer: int, block: Block) -> Iterator[LayerStatistics]:
        """Forward passes over a layer, each followed by the statistics that it gathered."""
        sequential = self.settings.sequential
        inputs = self.inputs(layer)
        groups = self.placement.rounds(inputs, by_stage=sequential == "stages")
        replaced: dict[str, torch.Tensor] | None = None if sequential == "off" else {}
        self.clock.begin(layer, len(self.windows.batches) * (len(groups) + (sequential != "off")))
        for number, group in enumerate(groups):
            last = number == len(groups) - 1
            stop = None if last else _first_after(inputs, group[-1].stage)
            sums = [self.sums(item) for item in group]
            with self.collector(block, sums, stop) as collector:
                self.forward(block, collector, keep=last and sequential == "off")
            part = LayerStatistics(
                layer,
                self.finished(sums, f"layer {layer}"),
                self.reference,
                block=block,
                last=last,
                routed=collector.routed if last and block.experts else None,
                replaced=replaced,
            )
            yield part
            part.release()
            del part, sums, collector  # the next moments need their room
        if sequential != "off":
            self.forward(block)

    def sums(self, item: Input) -> Sums:
        """Empty sums for an input."""
        return Sums(
            item,
            len(self.selection.languages),
            moments=self.settings.moments,
            device=self.settings.device,
        )

    def collector(self, block: Block, sums: Sequence[Sums], stop: Input | None) -> Collector:
        """Hooks on a block."""
        router = next((m for m in block.modules if m.endswith(".router")), None)
        return Collector(
            block,
            sums,
            self.token_weights,
            router=router if self.settings.all_experts else None,
            stop=stop,
        )

    def forward(
        self, block: Block, collector: Collector | None = None, *, keep: bool = True
    ) -> None:
        """Put all windows through a block; ``keep`` its outputs in place of the inputs."""

        def begin(batch: Batch) -> None:
            if collector is not None:
                collector.language = batch.language

        self.windows.forward(block, keep=keep, before=begin, after=self.clock.step)

    def finished(self, sums: Sequence[Sums], where: str) -> list[InputStatistics]:
        """Statistics of finite activations."""
        found = [one.finish(self.token_weights) for one in sums]
        where = f"{self.reference.checkpoint.path}: {where}"
        for item in found:
            check_finite(item, self.selection.languages, where)
        return found

    def head(self) -> Iterator[LayerStatistics]:
        """The input of the output head."""
        checkpoint = self.reference.checkpoint
        sums = []
        if "head.weight" in checkpoint.tensors:
            sums = [self.sums(head_input(checkpoint.hyperparameters))]
        for batch in self.windows.batches:
            for one in sums:
                weight = float(self.token_weights[batch.language])
                one.add(self.windows.states.read(batch), batch.language, weight)
        part = LayerStatistics(
            None,
            self.finished(sums, "the output head"),
            self.reference,
            states=self.windows.by_window(),
        )
        yield part
        part.release()


def _first_after(inputs: Sequence[Input], stage: int) -> Input | None:
    """An input that is read by one module only after everything up to a stage has been seen."""
    later = next((item for item in inputs if item.stage > stage), None)
    return later if later is not None and later.expert is None else None


class _Clock:
    """Counts batches and estimates the time that is left."""

    def __init__(self, layers: range, progress: Callable[[LayerProgress], None] | None) -> None:
        self.layers, self.progress = layers, progress
        self.started = time.monotonic()
        self.layer, self.steps, self.step_count = layers.start, 0, 1

    def begin(self, layer: int, steps: int) -> None:
        """A layer that takes a number of batches begins."""
        self.layer, self.steps, self.step_count = layer, 0, steps
        self.report()

    def step(self) -> None:
        """A batch is done."""
        self.steps += 1
        self.report()

    def report(self) -> None:
        """Tell how far the walk is."""
        if self.progress is None:
            return
        done = (self.layer - self.layers.start + self.steps / self.step_count) / len(self.layers)
        taken = time.monotonic() - self.started
        left = taken * (1 - done) / done if done else None
        self.progress(LayerProgress(self.layer, self.layers.stop, done, left))
