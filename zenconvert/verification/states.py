"""Final hidden states: what a model thinks of a text, one hidden vector a token before the head.

They are far smaller than logits (16 to 32 KiB a token where logits take 300 to 600) and give exact
ones: the head is applied to a block of positions when it is needed. The reference's are cached, so
that the next candidate costs no second reference pass.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from zenconvert import __version__
from zenconvert.calib.reference import Reference, batches
from zenconvert.calib.windows import Window
from zenconvert.checkpoint import Checkpoint
from zenconvert.errors import NotEnoughResources
from zenconvert.recoding import logical_rows
from zenconvert.verification.cache import cache_folder, new_file, touch

if TYPE_CHECKING:
    import torch

Count = Callable[[int, int], None]
"""Called with (done, total)."""

_PACKAGES: Final = ("torch", "transformers")


def final_states(
    checkpoint: Checkpoint,
    windows: Sequence[Window],
    *,
    device: str,
    dtype: str = "float32",
    progress: Count,
) -> list[torch.Tensor]:
    """Hidden states [tokens, hidden] of every window after the last norm, layer by layer.

    Weights and states are in the torch type named ``dtype``; one block is in memory at a time.
    """
    import torch

    kind = getattr(torch, dtype)
    reference = Reference(checkpoint, logical_rows, device=device)
    hidden = [states.to(kind) for states in reference.embed(windows)]
    groups = batches(windows)
    for layer in range(reference.layers):
        block = reference.block(layer)
        _convert(getattr(block, "model", block), kind)
        for batch in groups:
            reference.run(block, hidden, batch)
        progress(layer + 1, reference.layers)
    return hidden


def _convert(model: Any, dtype: torch.dtype) -> None:
    """Put the parameters of a block into another type; rotary frequencies stay float32."""
    import torch

    if dtype == torch.float32:
        return
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        # CPUs have no fast product of float16: sum in float32 and round once, as GPUs do
        if isinstance(module, torch.nn.Linear) and module.weight.device.type == "cpu":
            object.__setattr__(module, "forward", partial(_linear, module.float(), dtype))


def _linear(module: torch.nn.Linear, dtype: torch.dtype, values: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.linear(values.float(), module.weight, module.bias).to(dtype)


def output_head(checkpoint: Checkpoint, *, device: str, dtype: str = "float32") -> torch.Tensor:
    """The output matrix float32[vocab, hidden], its values rounded to the type named ``dtype``."""
    import torch

    head = Reference(checkpoint, logical_rows, device=device).head()
    return head.to(getattr(torch, dtype)).to(device=device, dtype=torch.float32)


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
    if (found := open_states(path, windows)) is not None:
        touch(path)
        progress(1, 1)
        return found
    hidden = final_states(checkpoint, windows, device=device, progress=progress)
    size = sum(states.nbytes for states in hidden)
    with new_file(path, size) as temporary:
        if temporary is not None:
            _write(temporary, hidden)
    if (found := open_states(path, windows)) is not None:
        return found
    keep = tempfile.NamedTemporaryFile(suffix=".npy")  # noqa: SIM115  (closed with the states)
    try:
        _write(Path(keep.name), hidden)
    except OSError as error:
        raise NotEnoughResources(
            f"{keep.name}: the reference's hidden states take {size} bytes: {error.strerror}; set "
            "ZENCONVERT_CACHE or TMPDIR to a disk that has room"
        ) from error
    found = open_states(Path(keep.name), windows, keep)
    assert found is not None
    return found


def _write(path: Path, hidden: Sequence[torch.Tensor]) -> None:
    header = {
        "descr": "<f4",
        "fortran_order": False,
        "shape": (sum(len(states) for states in hidden), hidden[0].shape[1]),
    }
    with path.open("wb") as file:
        npy.write_array_header_2_0(file, header)
        for states in hidden:
            file.write(states.float().numpy().data)
