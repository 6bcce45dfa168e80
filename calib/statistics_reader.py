"""Statistics files, read lazily: headers now, numbers when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from zenconvert.base.json_text import json_value
from zenconvert.calib.statistics import InputStatistics, RowFisher
from zenconvert.calib.statistics_layout import FORMAT, VERSION, unpack
from zenconvert.errors import CorruptFile, InvalidInput, SourceNotFound, UsageError
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.reference.fingerprint import fingerprint
from zenconvert.reference.reference import ReadRows
from zenconvert.texts.selection import token_weights
from zenconvert.texts.windows import Window

if TYPE_CHECKING:
    import torch


_MOST_HEADER: Final = 32 * 1024 * 1024
"""Bytes: a hundred thousand inputs of modules."""
_MOST_FACTS: Final = 8 * 1024 * 1024
_PLAIN: Final = frozenset({"format", "version"})  # the other metadata are JSON


class Statistics:
    """An open statistics file; made by :func:`open_statistics`."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self._file = path, file
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise CorruptFile(f"{path}: this is no statistics file of zenconvert")
        if metadata.get("version") != VERSION:
            raise CorruptFile(
                f"{path}: statistics of version {metadata.get('version')!r}; this zenconvert reads "
                f"{VERSION!r}: calibrate again"
            )
        if sum(map(len, metadata.values())) > _MOST_FACTS:
            raise CorruptFile(f"{path}: its metadata has more than {_MOST_FACTS} characters")
        try:
            facts = {k: json_value(v) for k, v in metadata.items() if k not in _PLAIN}
            self.languages = tuple(str(code) for code in facts["languages"])
            weights = tuple(float(weight) for weight in facts["language_weights"])
            self.weights = weights
            """Of every language."""
            tokens = np.array([int(part["tokens"]) for part in facts["coverage"]], np.int64)
            self.token_weights = token_weights(weights, tokens)
            """What a token of every language counts, float64[languages]; 1 on average."""
            self.model_digest = str(facts["model"]["digest"])
            self.inputs = {str(k): tuple(map(str, v)) for k, v in facts["inputs"].items()}
        except (
            ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError
        ) as error:  # fmt: skip
            raise CorruptFile(f"{path}: its metadata is damaged: {error!r}") from error
        if not (len(self.languages) == len(tokens) and np.isfinite(self.token_weights).all()):
            raise CorruptFile(f"{path}: its languages, weights and tokens do not fit together")
        self._names = frozenset(file.keys())
        self.facts: Mapping[str, Any] = facts
        """The metadata: model, samples, coverage, settings, versions."""

    @cached_property
    def modules(self) -> Mapping[str, str]:
        """Module → the input that it reads, by neutral names."""
        return {module: name for name, modules in self.inputs.items() for module in modules}

    @property
    def has_moments(self) -> bool:
        """Whether the file holds second moments."""
        return any(name.endswith(".moments") for name in self._names)

    @property
    def has_fisher(self) -> bool:
        """Whether the file holds what a walk back brings."""
        return "fisher.embed" in self._names

    def check_model(self, checkpoint: Checkpoint, read_rows: ReadRows) -> None:
        """Raise InvalidInput unless the statistics are of this model."""
        if fingerprint(checkpoint, read_rows) != self.model_digest:
            raise InvalidInput(
                f"{self.path}: these statistics are of another model than {checkpoint.path}, or of "
                "one with other weights; calibrate this one"
            )

    def of(self, module: str, *, moments: bool = False) -> InputStatistics:
        """Statistics of what a module reads, with its second moments on request.

        Raises UsageError when the file does not cover the module or holds no moments, and
        CorruptFile for numbers that cannot be.
        """
        name = self._input(module)
        tokens, squares, magnitudes = (
            self._read(f"{name}.{part}") for part in ("tokens", "squares", "magnitudes")
        )
        languages = len(self.languages)
        kinds = (tokens.dtype.kind, squares.dtype.kind, magnitudes.dtype.kind)
        if (
            kinds != ("i", "f", "f")
            or tokens.shape != (languages,)
            or squares.shape != magnitudes.shape
            or squares.shape[:1] != (languages,)
            or squares.ndim != 2
        ):
            raise CorruptFile(f"{self.path}: the statistics of {name} have shapes that do not fit")
        for part in (tokens, squares, magnitudes):
            if not np.isfinite(part).all() or (part < 0).any():
                raise CorruptFile(f"{self.path}: {name} has sums that are negative or not finite")
        found = InputStatistics(
            name=name,
            modules=self.inputs[name],
            token_weights=self.token_weights,
            tokens=tokens,
            squares=squares,
            magnitudes=magnitudes,
        )
        if moments:
            found.moments = self._moments(name, found.columns)
        return found

    def importance(self, module: str) -> NDArray[np.float32]:
        """Language-weighted mean of x² of what a module reads, float32[columns]."""
        return self.of(module).importance()

    def fisher(self) -> RowFisher:
        """What errors in rows of the embedding cost, as a head that is tied to it, too.

        Raises UsageError when the file holds no Fisher information, and CorruptFile for numbers
        that cannot be.
        """
        import torch

        if not self.has_fisher:
            raise UsageError(f"{self.path}: holds no Fisher information; calibrate with --fisher")
        tokens, dropped = self._tokens_back(), 0
        names = [name for name in ("fisher.embed", "fisher.head") if name in self._names]
        parts = [self._read(name).astype(np.float64) for name in names]
        if len({part.shape for part in parts}) > 1:
            raise CorruptFile(f"{self.path}: the Fisher information of embedding and head differ")
        packed: NDArray[np.float64] = np.sum(parts, axis=0)
        for name in sorted(name for name in self._names if name.endswith(".dropped")):
            dropped = max(dropped, int(self._read(name).sum()))
        size = int(np.sqrt(2 * np.size(packed)))
        if np.shape(packed) != (size * (size + 1) // 2,) or not np.isfinite(packed).all():
            raise CorruptFile(f"{self.path}: the Fisher information of the embedding is damaged")
        weight = float(token_weights(self.weights, tokens) @ tokens)
        whole, *head = (
            torch.from_numpy(unpack((part / weight).astype(np.float32), size))
            for part in (packed, *parts[1:])
        )
        return RowFisher(whole, int(tokens.sum()), dropped, head[0] if head else None)

    def gradients(self, module: str) -> NDArray[np.float32]:
        """Language-weighted mean of g² at the outputs of a linear module, float32[outputs], over
        all tokens of the walk back. Raises as :meth:`fisher`."""
        if f"{module}.gradients" not in self._names:
            raise UsageError(f"{self.path}: holds no gradients of {module!r}")
        tokens = self._tokens_back()
        weights = token_weights(self.weights, tokens)
        sums = self._read(f"{module}.gradients").astype(np.float64)
        if sums.shape[:1] != tokens.shape or sums.ndim != 2 or not np.isfinite(sums).all():
            raise CorruptFile(f"{self.path}: the gradients of {module} do not fit")
        found: NDArray[np.float32] = (weights @ sums / (weights @ tokens)).astype(np.float32)
        return found

    def row_shares(self) -> NDArray[np.float64]:
        """What share of the squares of all gradients at the embedding each of its rows has, by how
        often its token comes and how large they are there; languages by their weights,
        float64[vocabulary], 1 in all. Raises as :meth:`fisher`."""
        self._tokens_back()
        if "fisher.rows" not in self._names:
            raise CorruptFile(
                f"{self.path}: it does not say what each token costs; calibrate again"
            )
        found = self._read("fisher.rows").astype(np.float64)
        if found.ndim != 1 or not np.isfinite(found).all() or (found < 0).any():
            raise CorruptFile(f"{self.path}: what it says of tokens is damaged")
        shares: NDArray[np.float64] = found / (found.sum() or 1.0)
        return shares

    def _tokens_back(self) -> NDArray[np.int64]:
        """Tokens of every language that walked back."""
        try:
            found = np.array([int(count) for count in self.facts["fisher"]["tokens"]], np.int64)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CorruptFile(f"{self.path}: what it says of --fisher is damaged") from error
        if len(found) != len(self.languages) or not (found > 0).all():
            raise CorruptFile(f"{self.path}: what it says of --fisher is damaged")
        return found

    def routed(self, layer: int) -> NDArray[np.int64] | None:
        """Tokens routed to the experts of a layer, int64[languages, experts]; None without any."""
        name = f"layers.{layer}.moe.routed"
        return self._read(name) if name in self._names else None

    def states(self) -> Iterator[tuple[Window, torch.Tensor]]:
        """Every window with its final hidden states [tokens, hidden], in the dtype of the walk.

        Raises UsageError when the file holds none.
        """
        if "states" not in self._names:
            raise UsageError(f"{self.path}: holds no hidden states; calibrate with --hidden-states")
        with _opening(self.path):
            file: Any = safe_open(str(self.path), framework="pt")
            states = file.get_slice("states")
        ids, begin = self._read("windows.ids"), 0
        lengths, languages = self._read("windows.lengths"), self._read("windows.languages")
        self._check_windows(ids, lengths, languages, tuple(states.get_shape()))
        for number, (length, language) in enumerate(zip(lengths, languages, strict=True)):
            end = begin + int(length)
            window = Window(str(number), self.languages[language], tuple(ids[begin:end].tolist()))
            yield window, states[begin:end]
            begin = end

    def _check_windows(
        self,
        ids: NDArray[Any],
        lengths: NDArray[Any],
        languages: NDArray[Any],
        states: tuple[int, ...],
    ) -> None:
        """Raise CorruptFile for windows that are not cut out of the ids and states."""
        plain = all(part.dtype.kind == "i" and part.ndim == 1 for part in (ids, lengths, languages))
        if not plain or not (
            len(lengths) == len(languages)
            and (lengths >= 0).all()
            and lengths.sum() == len(ids)
            and states[:1] == ids.shape
            and len(states) == 2
            and ((languages >= 0) & (languages < len(self.languages))).all()
        ):
            raise CorruptFile(f"{self.path}: its windows do not fit its ids and hidden states")

    def check_moments(self) -> None:
        """Raise UsageError where no second moments were gathered."""
        if not any(name.endswith(".moments") for name in self._names):
            raise UsageError(
                f"{self.path}: holds no second moments; calibrate with --for gptq or --for awq"
            )

    def _input(self, module: str) -> str:
        if module not in self.modules:
            raise UsageError(f"{self.path}: holds no statistics of {module!r}")
        return self.modules[module]

    def _moments(self, name: str, columns: int) -> torch.Tensor:
        import torch

        if f"{name}.moments" not in self._names:
            self.check_moments()
            raise CorruptFile(f"{self.path}: the moments of {name} are missing")
        packed = self._read(f"{name}.moments")
        if packed.shape != (columns * (columns + 1) // 2,) or packed.dtype != np.float32:
            raise CorruptFile(f"{self.path}: the moments of {name} have a size that does not fit")
        return torch.from_numpy(unpack(packed, columns))

    def _read(self, name: str) -> NDArray[Any]:
        with _opening(self.path):
            values: NDArray[Any] = self._file.get_tensor(name)
        return values


def open_statistics(
    path: str | Path, checkpoint: Checkpoint | None = None, read_rows: ReadRows | None = None
) -> Statistics:
    """Open a statistics file; with a checkpoint, be sure that it is of that model.

    Raises SourceNotFound, CorruptFile, and InvalidInput for statistics of another model.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceNotFound(f"{path}: there is no such statistics file")
    with _opening(path):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > _MOST_HEADER:
            raise CorruptFile(
                f"{path}: it cannot be read as a statistics file: its header claims {size} bytes, "
                f"and those have at most {_MOST_HEADER}"
            )
        found = Statistics(path, safe_open(str(path), framework="numpy"))
    if checkpoint is not None and read_rows is not None:
        found.check_model(checkpoint, read_rows)
    return found


def load_importance(
    path: str | Path, checkpoint: Checkpoint, read_rows: ReadRows
) -> dict[str, NDArray[np.float32]]:
    """Importance weights float32[columns] by neutral tensor name, from a statistics file.

    They cover every linear weight of the model. Raises as :func:`open_statistics`.
    """
    statistics = open_statistics(path, checkpoint, read_rows)
    importance: dict[str, NDArray[np.float32]] = {}
    for modules in statistics.inputs.values():
        values = statistics.importance(modules[0])
        importance |= {f"{module}.weight": values for module in modules}
    for name, values in importance.items():
        if name not in checkpoint.tensors or checkpoint.tensors[name].columns != len(values):
            raise CorruptFile(f"{path}: its statistics of {name} do not fit the model")
    return importance


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    """Foreign errors as our own."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise CorruptFile(f"{path}: it cannot be read as a statistics file: {error}") from error
