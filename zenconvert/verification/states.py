"""Final hidden states: what a model thinks of a text, one hidden vector a token before the head.

They are far smaller than logits (16 to 32 KiB a token where logits take 300 to 600) and give exact
ones: the head is applied to a block of positions when it is needed. The reference's are cached, so
that the next candidate costs no second reference pass.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from zenconvert.base.progress import Count
from zenconvert.base.scratch import new_temporary_folder, temporary_file
from zenconvert.errors import NotEnoughResources
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.planning.recoding import logical_rows
from zenconvert.reference.batches import Batch, most_tokens
from zenconvert.reference.reference import Reference
from zenconvert.texts.windows import Window
from zenconvert.verification.cache import cache_folder, new_file, taking_turns, touch
from zenconvert.version import __version__

if TYPE_CHECKING:
    import torch

    from zenconvert.reference.block import Block
    from zenconvert.reference.head import Head
    from zenconvert.reference.hidden import Place
    from zenconvert.reference.passage import Passage


_PACKAGES: Final = ("torch", "transformers")


class FinalStates:
    """Hidden states of every window after the last norm, where the walk left them."""

    def __init__(self, passage: Passage, keep: Any) -> None:
        """``keep`` lives as long as this: a folder that may hold the states."""
        self._states, self._keep = passage.states, keep
        self._places: dict[int, tuple[Batch, int]] = {}
        for batch in passage.batches:
            begins = accumulate(batch.lengths, initial=0)
            for window, begin in zip(batch.windows, begins, strict=False):
                self._places[window] = (batch, begin)

    def rows(self, window: int, begin: int, end: int) -> torch.Tensor:
        """States [end - begin, hidden] of positions of one window, on the device."""
        batch, first = self._places[window]
        return self._states.slice(batch.begin + first + begin, batch.begin + first + end)


def final_states(
    checkpoint: Checkpoint,
    windows: Sequence[Window],
    *,
    device: str,
    dtype: str = "float32",
    progress: Count,
) -> FinalStates:
    """Hidden states of every window after the last norm, by a walk over the layers.

    Weights and states are in the torch type named ``dtype``; one block is in memory at a time, and
    states go to the disk where they do not fit. Raises as the walk of a calibration does.
    """
    import torch

    from zenconvert.reference.passage import Passage

    kind = getattr(torch, dtype)
    reference = Reference(checkpoint, logical_rows, device=device)
    keep = new_temporary_folder()
    languages = list(dict.fromkeys(window.language for window in windows))
    place = _place(reference, windows, kind.itemsize)
    with Passage(
        reference, windows, languages, kind, place=place, folder=Path(keep.name)
    ) as passage:
        passage.embed()
        for layer in range(reference.layers):
            block = passage.block(layer)
            _widen(block, kind)
            passage.forward(block)
            del block  # before the next one comes
            progress(layer + 1, reference.layers)
    return FinalStates(passage, keep)


def _place(reference: Reference, windows: Sequence[Window], item: int) -> Place:
    from zenconvert.reference import memory

    need = memory.needs(
        reference.checkpoint.hyperparameters.hidden,
        [(reference.by_layer[layer], ()) for layer in range(reference.layers)],
        windows,
        batch_tokens=most_tokens(reference.device),
        item=item,
        moments=False,
        heads=reference.skeleton.heads,
        beside=reference.beside,
    )
    return memory.place(need, device=reference.device, max_vram=None, max_ram=None).hidden


def _widen(block: Block, dtype: torch.dtype) -> None:
    """CPUs have no fast product of narrow types: sum in float32 and round once, as GPUs do."""
    import torch

    if dtype == torch.float32:
        return
    for module in block.layer.modules():
        if isinstance(module, torch.nn.Linear) and module.weight.device.type == "cpu":
            object.__setattr__(module, "forward", partial(_linear, module.float(), dtype))


def _linear(module: torch.nn.Linear, dtype: torch.dtype, values: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.linear(values.float(), module.weight, module.bias).to(dtype)


def output_head(checkpoint: Checkpoint, *, device: str, dtype: str = "float32") -> Head:
    """The model's output head, its values rounded to the type named ``dtype``."""
    import torch

    reference = Reference(checkpoint, logical_rows, device=device)
    return reference.head(getattr(torch, dtype))


@dataclass(frozen=True, slots=True)
class States:
    """Final hidden states of all windows in a file, float32[tokens, hidden], mapped."""

    path: Path
    values: NDArray[np.float32]
    offsets: tuple[int, ...]
    """First row of every window, and the end."""
    keep: Any = None
    """A temporary file that lives as long as this."""

    def rows(self, window: int, begin: int, end: int) -> torch.Tensor:
        """States float32[end - begin, hidden] of positions of one window, on the CPU."""
        import torch

        first = self.offsets[window]
        return torch.from_numpy(self.values[first + begin : first + end].copy())


def open_states(path: Path, windows: Sequence[Window], keep: Any = None) -> States | None:
    """The states of a file, None where it is absent or does not hold these windows."""
    offsets = _offsets(windows)
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if values.dtype != np.float32 or values.ndim != 2 or len(values) != offsets[-1]:
        return None
    return States(path, values, offsets, keep)


def _offsets(windows: Sequence[Window]) -> tuple[int, ...]:
    return tuple(accumulate((len(w.ids) for w in windows), initial=0))


def states_key(checkpoint: Checkpoint, sha256: str, windows: Sequence[Window], device: str) -> str:
    """What states depend on: weights, config, token ids, the code and the kind of device."""
    import torch

    facts = {
        "weights": sha256,
        "config": dict(checkpoint.config),
        "ids": ids_digest(windows),
        "versions": [__version__, *(version(name) for name in _PACKAGES)],
        "device": torch.device(device).type,
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def ids_digest(windows: Sequence[Window]) -> str:
    """SHA-256 of the token ids, window by window."""
    sha = hashlib.sha256()
    for window in windows:
        sha.update(np.array([len(window.ids), *window.ids], dtype="<i8").tobytes())
    return sha.hexdigest()


def reference_states(
    checkpoint: Checkpoint, windows: Sequence[Window], key: str, *, device: str, progress: Count
) -> States:
    """The reference's states from the cache, or computed and put there.

    Without room in the cache they go to a temporary file. Raises NotEnoughResources when that has
    no room either.
    """
    path = cache_folder() / "states" / f"{key}-float32.npy"
    with taking_turns(path):
        return _cached_states(path, checkpoint, windows, device=device, progress=progress)


def _cached_states(
    path: Path, checkpoint: Checkpoint, windows: Sequence[Window], *, device: str, progress: Count
) -> States:
    if (found := open_states(path, windows)) is not None:
        touch(path)
        progress(1, 1)
        return found
    states = final_states(checkpoint, windows, device=device, progress=progress)
    shape = (_offsets(windows)[-1], checkpoint.hyperparameters.hidden)
    size = 4 * shape[0] * shape[1]

    def write(to: Path) -> None:
        parts = (states.rows(n, 0, len(window.ids)) for n, window in enumerate(windows))
        _write(to, shape, parts)

    with new_file(path, size) as temporary:
        if temporary is not None:
            write(temporary)
    if (found := open_states(path, windows)) is not None:
        return found
    keep = temporary_file(".npy")  # closed with the states
    try:
        write(Path(keep.name))
    except OSError as error:
        raise NotEnoughResources(
            f"{keep.name}: the reference's hidden states take {size} bytes: {error.strerror}; set "
            "ZENCONVERT_CACHE or TMPDIR to a disk that has room"
        ) from error
    found = open_states(Path(keep.name), windows, keep)
    assert found is not None
    return found


def _write(path: Path, shape: tuple[int, int], parts: Iterable[torch.Tensor]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        npy.write_array_header_2_0(file, header)
        for states in parts:
            file.write(states.float().cpu().contiguous().numpy().data)
