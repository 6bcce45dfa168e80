"""The hidden states of all windows between two blocks: on the device, in memory, or on disk."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch

from zenconvert.base.atomic import system_errors
from zenconvert.errors import CorruptFile, NotEnoughResources
from zenconvert.reference.batches import Batch

Place = Literal["device", "host", "disk"]

_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CHUNK: Final = 1 << 26  # bytes written at a time


class HiddenStates:
    """Rows [tokens, hidden] of every batch, one batch after the other."""

    def __init__(
        self,
        tokens: int,
        hidden: int,
        dtype: torch.dtype,
        *,
        device: str,
        place: Place,
        folder: Path,
        beside: int = 0,
        name: str = "hidden",
    ) -> None:
        """``folder`` takes the file of states that are kept on disk; every row has so many columns
        ``beside``."""
        self.device, self.path, self.hidden = device, folder / f"{name}.work", hidden
        shape = (tokens, hidden + beside)
        if place == "disk":
            size = tokens * (hidden + beside)
            _reserve(self.path, size * dtype.itemsize)
            flat = torch.from_file(str(self.path), shared=True, size=size, dtype=dtype)
            self.states = flat.reshape(shape)
        elif place == "device":
            self.states = torch.empty(shape, dtype=dtype, device=device)
        else:
            pinned = torch.device(device).type == "cuda"
            self.states = torch.empty(shape, dtype=dtype, pin_memory=pinned)

    def read(self, batch: Batch) -> torch.Tensor:
        """The rows of a batch, on the device."""
        rows = self.states[batch.begin : batch.begin + batch.tokens, : self.hidden]
        return rows.to(self.device, non_blocking=True)

    def read_beside(self, batch: Batch) -> torch.Tensor:
        """What stands beside the rows of a batch, on the device."""
        rows = self.states[batch.begin : batch.begin + batch.tokens, self.hidden :]
        return rows.to(self.device, non_blocking=True)

    def slice(self, begin: int, end: int) -> torch.Tensor:
        """Rows ``[begin, end)`` of all, on the device."""
        return self.states[begin:end, : self.hidden].to(self.device)

    def write(self, batch: Batch, rows: torch.Tensor) -> None:
        """Replace the rows of a batch."""
        self.states[batch.begin : batch.begin + batch.tokens, : self.hidden].copy_(rows)

    def write_beside(self, batch: Batch, rows: torch.Tensor) -> None:
        """Replace what stands beside the rows of a batch."""
        self.states[batch.begin : batch.begin + batch.tokens, self.hidden :].copy_(rows)

    def put(self, places: torch.Tensor, rows: torch.Tensor) -> None:
        """Replace single rows."""
        self.states[places.to(self.states.device), : self.hidden] = rows.to(self.states)

    def save(self, path: Path) -> None:
        """Write all rows to a file and to the disk."""
        with path.open("wb") as file:
            for part in self._parts():
                file.write(part.cpu().view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())

    def load(self, path: Path) -> None:
        """Read back what :meth:`save` wrote. Raises CorruptFile when its size is another."""
        if path.stat().st_size != self.states.numel() * self.states.element_size():
            raise CorruptFile(f"{path}: it holds the states of another run; remove it")
        with path.open("rb") as file:
            for part in self._parts():
                data = np.fromfile(file, dtype=np.uint8, count=part.numel() * part.element_size())
                part.copy_(torch.from_numpy(data).view(part.dtype).reshape(part.shape))

    def _parts(self) -> tuple[torch.Tensor, ...]:
        row_bytes = self.states.shape[1] * self.states.element_size()
        return torch.split(self.states, max(1, _CHUNK // row_bytes))

    def close(self) -> None:
        """Free the rows, and remove their file; where that fails it is left."""
        self.states = torch.empty(0, 0)
        with suppress(OSError):
            self.path.unlink()


def _reserve(path: Path, size: int) -> None:
    """Make a file of that size; a full disk is found now, not when a page is written.

    Raises as ``system_errors``.
    """
    with system_errors(path):
        try:
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            with suppress(OSError):
                path.unlink()
            if error.errno in _FULL:
                raise NotEnoughResources(
                    f"{path}: no room for hidden states of {size} bytes: {error.strerror}"
                ) from error
            raise
