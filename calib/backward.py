"""A walk back over the layers: gradients of the model's own log-likelihood, one layer at a time.

First the windows go forward and their states at every border between layers go to the disk. Then,
from the head down, every layer is computed once more from the states at its border, with the
gradient at its output given, and hands the gradient at its input on. One layer is on the device;
what is kept of a border is removed once the layer behind it is done. A killed run goes on with the
layer that it was in, and gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from zenconvert.base.atomic import system_errors
from zenconvert.base.machine import take_device
from zenconvert.base.scratch import forget, is_kept
from zenconvert.calib.back_plan import EMBEDDING, HEAD, SEED, BackPlan, step_of
from zenconvert.calib.gradients import Gradients, Squares, Taker, Watch, drawn, sampled
from zenconvert.calib.layer import DTYPES
from zenconvert.calib.moments import Moments
from zenconvert.calib.walk import LayerProgress
from zenconvert.calib.workspace import Workspace
from zenconvert.reference.batches import Batch, most_tokens
from zenconvert.reference.head import Head
from zenconvert.reference.hidden import HiddenStates
from zenconvert.reference.passage import Passage

_SHARE: Final = 4
"""A batch has so many times fewer tokens than forward: what gradients need is held meanwhile."""
_HEAD_NUMBERS: Final = 1 << 24
"""Logits at a time."""


def walk_back(
    plan: BackPlan,
    *,
    workspace: Workspace,
    taker: Taker,
    progress: Callable[[LayerProgress], None] | None = None,
) -> None:
    """Bring the gradients of the head, of every layer and of the embedding to ``taker``.

    Raises as :func:`zenconvert.calib.walk.walk`.
    """
    reference = plan.reference
    take_device(plan.settings.device)
    if all(map(taker.has, plan.steps)):
        return
    run = _WalkBack(plan, workspace, taker)
    with run.windows, closing(run.windows), closing(run.gradients):
        for layer in reversed(range(run.begin())):
            if progress is not None:
                done = (reference.layers - 1 - layer) / reference.layers
                progress(LayerProgress(layer, reference.layers, done, None, "gradients"))
            run.layer(layer)
        run.embedding()


class _WalkBack:
    """The state of a walk back.

    Borders are numbered by how far they are: 0 is what the embedding gives, 1 what goes into the
    first layer, and one more than the layers the final states. ``gradients`` are those at the input
    of the layer that was done last.
    """

    def __init__(self, plan: BackPlan, workspace: Workspace, taker: Taker) -> None:
        self.plan, self.workspace, self.taker = plan, workspace, taker
        self.reference, self.device = plan.reference, plan.settings.device
        self.languages = len(plan.selection.languages)
        self.weights, self.dtype = plan.selection.token_weights, DTYPES[plan.dtype]
        self.windows = Passage(
            plan.reference,
            plan.selection.windows,
            plan.selection.languages,
            self.dtype,
            place="host",
            folder=workspace.folder,
            most=most_tokens(self.device) // _SHARE,
        )
        self.hidden = plan.reference.checkpoint.hyperparameters.hidden
        self.gradients = HiddenStates(
            int(plan.selection.tokens.sum()), self.hidden, torch.float32, device=self.device,
            place="host", folder=workspace.folder, name="gradients",
        )  # fmt: skip

    def begin(self) -> int:
        """Bring the gradients to the input of a layer, whose number is returned."""
        layers = self.reference.layers
        done = [n for n in range(layers + 1) if is_kept(self._gradient(n))]
        if done:
            steps = [step_of(n) for n in range(done[0], layers)]
            if all(map(self.taker.has, (HEAD, *steps))):
                self.gradients.load(self._gradient(done[0]))
                return done[0]
        with system_errors(self.workspace.folder):
            for number in done:
                forget(self._gradient(number))
        self.forward()
        self.head()
        return layers

    def forward(self) -> None:
        """Put all windows through the model, and keep the states at its borders."""
        last = self.reference.layers + 1
        begin = next((n for n in range(last + 1) if not is_kept(self._border(n))), last + 1) - 1
        if begin < 0:
            self.windows.look_up()
            self._save(self.windows.states, self._border(0))
            begin = 0
        else:
            self.windows.states.load(self._border(begin))
        for number in range(begin, last):
            if number:
                self.windows.forward(self.windows.block(number - 1))
            else:
                self.windows.enter()
            self._save(self.windows.states, self._border(number + 1))

    def head(self) -> None:
        """The gradients at the final states."""
        self.windows.states.load(self._border(self.reference.layers + 1))
        head, squares = self.reference.head(self.dtype), Squares(self.languages)
        moments = Moments(self.hidden, self.device) if self.plan.tied else None
        step = max(1, _HEAD_NUMBERS // head.linear.weight.shape[0])
        for batch in self.windows.batches:
            states = self.windows.states.read(batch).float()
            draws = torch.from_numpy(drawn(SEED, batch.windows, batch.lengths)).to(states.device)
            found = torch.empty_like(states)
            for begin in range(0, len(states), step):
                rows = states[begin : begin + step]
                back, at_logits = _through(head, rows, draws[begin : begin + step])
                found[begin : begin + step] = squares.finite(back, batch.language)
                at_logits = squares.finite(at_logits, batch.language, HEAD)
                squares.add(HEAD, at_logits, batch.language)
                if moments is not None:
                    sizes = at_logits.square().sum(1).sqrt()
                    moments.add(rows * sizes[:, None], float(self.weights[batch.language]))
            self.gradients.write(batch, found)
        self._put(HEAD, squares, moments)
        self._step_down(self.reference.layers)

    def layer(self, number: int) -> None:
        """A layer once more, and back through it."""
        self.windows.states.load(self._border(number + 1))
        block, squares = self.windows.block(number, -1), Squares(self.languages)
        with Watch(block, self.plan.outputs(step_of(number)), squares) as watch:
            for batch in self.windows.batches:
                watch.language = batch.language
                given = self.windows.states.read(batch).detach().requires_grad_()
                output = block.traced(given, batch.lengths)
                back = self._back(output, given, batch)
                self.gradients.write(batch, squares.finite(back, batch.language))
        self._put(step_of(number), squares)
        self._step_down(number)

    def embedding(self) -> None:
        """The gradients at the rows of the embedding."""
        self.windows.states.load(self._border(0))
        embedding = self.reference.skeleton.embedding(torch.ones(1, self.hidden))
        scale = embedding(torch.zeros(1, dtype=torch.long)).to(self.device)
        squares, moments = Squares(self.languages), Moments(self.hidden, self.device)
        sizes = np.zeros(self.plan.vocabulary)
        for batch in self.windows.batches:
            given = self.windows.states.read(batch).detach().requires_grad_()
            entered = self.windows.entered(given, batch)
            back = self._back(entered, given, batch)
            rows = squares.finite(back.float() * scale, batch.language)
            if weight := float(self.weights[batch.language]):
                moments.add(rows, weight)
                ids = [i for n in batch.windows for i in self.plan.selection.windows[n].ids]
                np.add.at(sizes, ids, weight * rows.square().sum(1).double().cpu().numpy())
        self._put(EMBEDDING, squares, moments, sizes)

    def _put(
        self,
        step: str,
        squares: Squares,
        moments: Moments | None = None,
        rows: NDArray[np.float64] | None = None,
    ) -> None:
        """Hand a step to the taker."""
        sums = squares.finish(self.plan.outputs(step))
        whole = moments.finish() if moments is not None else None
        self.taker.put(Gradients(step, sums, squares.dropped, whole, rows))

    def _back(self, output: torch.Tensor, given: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The gradient at ``given`` of a batch."""
        above = self.gradients.read(batch).to(output.dtype)
        (found,) = torch.autograd.grad(output, given, above)
        return found

    def _step_down(self, layer: int) -> None:
        """Keep the gradients at the input of a layer, and forget what is behind it."""
        self._save(self.gradients, self._gradient(layer))
        with system_errors(self.workspace.folder):
            forget(self._gradient(layer + 1))
            forget(self._border(layer + 1))

    def _save(self, states: HiddenStates, path: Path) -> None:
        with self.workspace.new_file(path.name) as new:
            states.save(new)

    def _border(self, number: int) -> Path:
        return self.workspace.folder / f"border-{number:05d}.bin"

    def _gradient(self, layer: int) -> Path:
        return self.workspace.folder / f"gradient-{layer:05d}.bin"


def _through(
    head: Head, states: torch.Tensor, draws: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of −log p of sampled labels at states [n, hidden] and at what the head's linear
    module puts out, [n, vocabulary]."""
    given, outputs = states.detach().requires_grad_(), []
    handle = head.linear.register_forward_hook(lambda m, a, output: outputs.append(output))
    try:
        logits = head.traced(given)
    finally:
        handle.remove()
    with torch.enable_grad():
        loss = torch.nn.functional.cross_entropy(logits, sampled(logits, draws), reduction="sum")
    at_states, at_outputs = torch.autograd.grad(loss, [given, outputs[0]])
    return at_states, at_outputs[0]
