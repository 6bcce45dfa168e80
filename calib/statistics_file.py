"""Statistics files: written layer by layer, resumable, and read lazily.

A run works in the folder ``.NAME.partial`` beside the file: the file itself at its full size, one
mark for every layer that is in it, with the digest of what it wrote, and hidden states to go on
from. The final name appears when
everything is there. A run that was killed goes on when it is started again with the same model,
samples and settings, and gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zenconvert.base.atomic import hidden_name, sync_folder, system_errors, write_whole
from zenconvert.base.notes import read_word
from zenconvert.base.scratch import DONE, remove_scratch
from zenconvert.base.stamps import check_unchanged
from zenconvert.calib.back_plan import BackPlan
from zenconvert.calib.feeding import feed
from zenconvert.calib.statistics_layout import (
    FORMAT,
    VERSION,
    Entry,
    StatisticsLayout,
    input_entries,
    lay_out,
    packed_row,
    routed_entry,
    state_entries,
)
from zenconvert.calib.workspace import SAVE_SECONDS, Workspace, open_workspace
from zenconvert.errors import NotEnoughResources
from zenconvert.model.encoding import DENSE_DTYPES
from zenconvert.reference.fingerprint import fingerprint
from zenconvert.reference.inputs import Input, head_input, layer_inputs
from zenconvert.reference.reference import Reference
from zenconvert.texts.selection import Selection

if TYPE_CHECKING:
    import torch

    from zenconvert.calib.gradients import Gradients
    from zenconvert.calib.layer import LayerStatistics
    from zenconvert.calib.walk import LayerProgress, WalkSettings

_CHUNK: Final = 1 << 22
_ROWS: Final = 256  # rows of moments packed at a time
_DATA: Final = "data"


class StatisticsRun:
    """Everything about a statistics file that is to be written: known before it is."""

    def __init__(
        self,
        reference: Reference,
        selection: Selection,
        settings: WalkSettings,
        *,
        final_states: bool = False,
        fisher_tokens: int | None = None,
        inputs: bool = True,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """``fisher_tokens``: walk back over at most so many of each language. ``inputs``: hold what
        modules read; a walk back alone leaves it out. ``facts`` go into the metadata under
        ``samples``, beside the digest of the tokens."""
        self.reference, self.selection, self.settings = reference, selection, settings
        self.final_states, self.has_inputs = final_states, inputs
        self.back: BackPlan | None = None
        if fisher_tokens is not None:
            self.back = BackPlan.of(reference, selection, settings, fisher_tokens)
        self.metadata = self._metadata(facts or {})
        self.layout = lay_out(list(self._entries()), self.metadata)

    @property
    def disk_bytes(self) -> int:
        """What the run takes on the disk at most: the file, and hidden states in three copies."""
        hidden = self.reference.checkpoint.hyperparameters.hidden
        item = DENSE_DTYPES[self.settings.compute].itemsize
        states = 3 * item * hidden * int(self.selection.tokens.sum())
        back = self.back.disk_bytes if self.back is not None else 0
        return self.layout.size + states + back

    def check_disk(self, out: Path, max_disk: int | None) -> None:
        """Raise NotEnoughResources when the run would take more than ``max_disk`` or is free."""
        what = f"{out}: {self.layout.size} bytes, and {self.disk_bytes} while they are computed,"
        if max_disk is not None and self.disk_bytes > max_disk:
            raise NotEnoughResources(
                f"{what} are more than the {max_disk} of --max-disk; second moments, which gptq "
                "and awq ask for, take most of them"
            )
        begun = workspace_of(out) / _DATA
        free = shutil.disk_usage(out.parent).free
        if self.disk_bytes - (begun.stat().st_size if begun.is_file() else 0) > free:
            raise NotEnoughResources(f"{what} are more than the {free} that are free")

    def inputs(self, layer: int) -> tuple[Input, ...]:
        """The distinct inputs of a layer."""
        return layer_inputs(
            self.reference.checkpoint.architecture,
            self.reference.by_layer[layer],
            all_experts=self.settings.all_experts,
        )

    def all_inputs(self) -> Iterator[Input]:
        """The distinct inputs of the model that the file holds."""
        if not self.has_inputs:
            return
        for layer in range(self.reference.layers):
            yield from self.inputs(layer)
        if "head.weight" in self.reference.checkpoint.tensors:
            yield head_input(self.reference.checkpoint.hyperparameters)

    def _entries(self) -> Iterator[Entry]:
        languages, hp = len(self.selection.languages), self.reference.checkpoint.hyperparameters
        for item in self.all_inputs():
            yield from input_entries(item, languages, moments=self.settings.moments)
        for layer, names in self.reference.by_layer.items():
            if self.has_inputs and (experts := len({n.expert for n in names} - {None})):
                yield routed_entry(layer, languages, experts)
        if self.back is not None:
            yield from self.back.entries()
        if self.final_states:
            tokens, windows = int(self.selection.tokens.sum()), len(self.selection.windows)
            yield from state_entries(tokens, windows, hp.hidden, self.settings.compute)

    def _metadata(self, facts: Mapping[str, Any]) -> dict[str, str]:
        import torch
        import transformers

        from zenconvert.version import __version__

        checkpoint, selection, settings = self.reference.checkpoint, self.selection, self.settings
        values: dict[str, Any] = {
            "model": {
                "digest": fingerprint(checkpoint, self.reference.read_rows),
                "architecture": checkpoint.architecture.id,
            },
            "samples": {"digest": selection.digest, **facts},
            "languages": selection.languages,
            "language_weights": selection.weights,
            "coverage": [part.as_dict() for part in selection.coverage],
            "inputs": {item.name: item.modules for item in self.all_inputs()},
            "settings": {
                "device": settings.kind,
                "dtype": settings.compute,
                "moments": settings.moments,
                "all_experts": settings.all_experts,
                "final_states": self.final_states,
            },
            "versions": {
                "zenconvert": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }
        if self.back is not None:
            values["fisher"] = self.back.facts
        texts = {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
        return {"format": FORMAT, "version": VERSION, **texts}

    def run(
        self,
        out: Path,
        *,
        progress: Callable[[LayerProgress], None] | None = None,
        save_seconds: float = SAVE_SECONDS,
    ) -> None:
        """Compute what is not there yet, and give the file its name.

        Raises NotEnoughResources, UsageError when another run is writing the same file, and the
        errors of :func:`zenconvert.calib.walk.walk`. Whatever ends it, layers that are done stay
        done.
        """
        with self.writing(out, save_seconds=save_seconds) as (writer, workspace):
            if self.has_inputs:
                feed(
                    [writer],
                    self.reference,
                    self.selection,
                    self.settings,
                    workspace=workspace,
                    progress=progress,
                )
            self.walk_back(writer, workspace, progress)

    def walk_back(
        self,
        writer: _Writer,
        workspace: Workspace,
        progress: Callable[[LayerProgress], None] | None = None,
    ) -> None:
        """Walk back, where that was asked for. Raises as :meth:`run`."""
        if self.back is not None:
            from zenconvert.calib.backward import walk_back

            walk_back(self.back, workspace=workspace, taker=writer, progress=progress)

    @contextmanager
    def writing(
        self, out: Path, *, save_seconds: float = SAVE_SECONDS
    ) -> Iterator[tuple[_Writer, Workspace]]:
        """Who takes the parts of a walk, and where a killed one goes on.

        The file gets its name when the block ends without an error. Raises as :meth:`run`, but what
        a walk raises.
        """
        folder = workspace_of(out)
        states = self.selection if self.final_states else None
        with open_workspace(folder, self.metadata, save_seconds=save_seconds) as workspace:
            with _Writer(workspace, self.layout, states) as writer:
                yield writer, workspace
            check_unchanged(self.reference.checkpoint.stamps)
            _publish(folder, out)

    def is_written(self, out: Path) -> bool:
        """Whether ``out`` is the file that this run would write."""
        if not out.is_file() or out.stat().st_size != self.layout.size:
            return False
        with out.open("rb") as file:
            return file.read(len(self.layout.header)) == self.layout.header


class _Writer:
    """The data file in a workspace, and the marks of the layers that are in it."""

    def __init__(
        self, workspace: Workspace, layout: StatisticsLayout, states: Selection | None
    ) -> None:
        """``states`` are the windows whose final hidden states are kept, if any are."""
        self.workspace, self.layout, self.states = workspace, layout, states
        self.path = workspace.folder / _DATA
        self.descriptor = -1
        self.found: dict[int | str | None, bool] = {}
        """What is known of the layers, and of the steps of a walk back, in the file."""
        self.extents: list[tuple[int, int]] = []
        """What was written of the layer at hand."""

    def __enter__(self) -> _Writer:
        with system_errors(self.path):
            fresh = not self.path.is_file() or self.path.stat().st_size != self.layout.size
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            self.descriptor = os.open(self.path, flags, 0o644)
            if fresh:
                self._begin()
            self._write_at(0, self.layout.header)
        return self

    def _begin(self) -> None:
        """Take the room for the whole file: a full disk is found before any work is done."""
        try:
            for left in self.workspace.folder.iterdir():
                if left.suffix in {DONE, ".bin"}:
                    left.unlink()
            os.posix_fallocate(self.descriptor, 0, self.layout.size)
        except OSError:
            os.close(self.descriptor)
            self.path.unlink(missing_ok=True)
            raise

    def __exit__(self, *reason: object) -> None:
        os.close(self.descriptor)

    def has(self, layer: int | str | None) -> bool:
        """Whether a layer (None: the head, which comes last), or a step of a walk back, is in the
        file, as it was written."""
        if layer not in self.found:
            mark = read_word(self._mark(layer))
            try:
                extents = [(int(offset), int(size)) for offset, size in mark["extents"]]
                inside = all(o >= 0 and n >= 0 and o + n <= self.layout.size for o, n in extents)
                self.found[layer] = inside and mark["sha256"] == self._digest(extents)
            except (OSError, ValueError, TypeError, KeyError, OverflowError):
                self.found[layer] = False
        return self.found[layer]

    def take(self, part: LayerStatistics) -> None:
        """Write what a part of a layer brings; when it is the last, bring the layer to the disk."""
        self._write_part(part)
        if part.layer is None and self.states is not None:
            self._write_states(part, self.states)
        if part.last:
            self._commit(part.layer)

    def put(self, part: Gradients) -> None:
        """Write what a step of a walk back brings, and bring it to the disk."""
        for module, sums in part.squares.items():
            self._write(f"{module}.gradients", sums.astype("<f4"))
        if part.moments is not None:
            self._write_moments(f"fisher.{part.step}", part.moments)
        if part.rows is not None:
            self._write("fisher.rows", part.rows.astype("<f4"))
        self._write(f"{part.step}.dropped", part.dropped.astype("<i8"))
        self._commit(part.step)

    def _commit(self, layer: int | str | None) -> None:
        with system_errors(self.path):
            os.fsync(self.descriptor)
            extents, self.extents = sorted(self.extents), []
            word = {"extents": extents, "sha256": self._digest(extents)}
        write_whole(self._mark(layer), json.dumps(word))
        self.found[layer] = True

    def _digest(self, extents: Sequence[Sequence[int]]) -> str:
        """SHA-256 of ``(offset, size)`` pieces of the file. Raises OSError."""
        found = hashlib.sha256()
        for offset, size in extents:
            for at in range(offset, offset + size, _CHUNK):
                found.update(os.pread(self.descriptor, min(_CHUNK, offset + size - at), at))
        return found.hexdigest()

    def _write_part(self, part: LayerStatistics) -> None:
        for name, item in part.inputs.items():
            self._write(f"{name}.tokens", item.tokens.astype("<i8"))
            self._write(f"{name}.squares", item.squares.astype("<f4"))
            self._write(f"{name}.magnitudes", item.magnitudes.astype("<f4"))
            if f"{name}.moments" in self.layout.offsets:  # a walk may gather them for others
                assert item.moments is not None
                self._write_moments(f"{name}.moments", item.moments)
        if part.routed is not None:
            self._write(f"layers.{part.layer}.moe.routed", part.routed.astype("<i8"))

    def _write_moments(self, name: str, moments: torch.Tensor) -> None:
        for begin in range(0, len(moments), _ROWS):
            rows = moments[begin : begin + _ROWS].cpu().numpy()
            packed = [row[begin + number :] for number, row in enumerate(rows)]
            self._write(name, np.concatenate(packed), offset=4 * packed_row(begin, len(moments)))

    def _write_states(self, part: LayerStatistics, selection: Selection) -> None:
        import torch

        windows = selection.windows
        lengths = np.array([len(window.ids) for window in windows], dtype="<i4")
        begins = np.cumsum(lengths, dtype=np.int64) - lengths
        numbers = {language: n for n, language in enumerate(selection.languages)}
        ids = np.concatenate([np.array(window.ids, dtype="<i4") for window in windows])
        self._write("windows.ids", ids)
        self._write("windows.lengths", lengths)
        languages = [numbers[window.language] for window in windows]
        self._write("windows.languages", np.array(languages, dtype="<i4"))
        for window, rows in part.states():
            data = rows.contiguous().view(torch.uint8).numpy()
            self._write("states", data, offset=int(begins[window]) * data.shape[1])

    def _write(self, name: str, values: np.ndarray[Any, Any], *, offset: int = 0) -> None:
        """Write numbers of a tensor, from a byte of it on."""
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        place = self.layout.offsets[name] + offset
        with system_errors(self.path):
            self._write_at(place, data)
        self.extents.append((place, len(data)))

    def _write_at(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self.descriptor, view, offset)
            view, offset = view[written:], offset + written

    def _mark(self, layer: int | str | None) -> Path:
        if isinstance(layer, str):
            return self.workspace.folder / f"gradients-{layer}{DONE}"
        name = "head" if layer is None else f"layer-{layer:05d}"
        return self.workspace.folder / f"{name}{DONE}"


def workspace_of(out: Path) -> Path:
    """Where a run works before the file has its name."""
    return out.with_name(hidden_name(out.name, "partial"))


def _publish(folder: Path, out: Path) -> None:
    """Give the finished file its name and remove the workspace."""
    with system_errors(out):
        (folder / _DATA).replace(out)
        sync_folder(out.parent)
        remove_scratch(folder)
