"""FP8 folders (``quant_method: fp8``): DeepSeek, Qwen, GLM, MiniMax and Mistral as they release it.

::

    X.weight             f8_e4m3 [N, K]
    X.weight_scale_inv   f32, bf16 or e8m0; multiplies, whatever its name says:
                         [⌈N/n⌉, ⌈K/k⌉] with weight_block_size [n, k] of the config,
                         one number, or one for each row
    X.weight_scale       the same under another name
    X.input_scale, X.activation_scale   of activations: not of the weights

Experts may stand in one array a layer (:mod:`zenconvert.formats.quantized.stacks`).

Source: transformers' finegrained_fp8 and vLLM's fp8. The block is the config's, and not what the
shapes divide to: the last one may be short (576 rows are 4.5 blocks of 128).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from zenconvert.errors import CorruptFile, InvalidInput, MissingTensor, several
from zenconvert.formats.hf.further import tensors_of
from zenconvert.formats.hf.reader import Folder
from zenconvert.formats.hf.tensor_names import foreign
from zenconvert.formats.packed_folder import of_pieces, weights
from zenconvert.formats.quantized.packed import Packed
from zenconvert.formats.quantized.stacks import of_stacks
from zenconvert.formats.safetensors_container import Entry
from zenconvert.model.architecture import TensorName
from zenconvert.model.checkpoint import StoredPieces, StoredTensor, Tensor
from zenconvert.model.encoding import Dense
from zenconvert.model.scaled import CODES, FLOATS, SCALE_DTYPES, SCALES, Scaled, ScaledCodec

_WEIGHT: Final = ".weight"
_SCALES: Final = ("weight_scale_inv", "weight_scale")
_OF_STACKS: Final = "activation_scale"
ACTIVATIONS: Final = ("input_scale", _OF_STACKS, "input_scale_inv")

Tile = tuple[int | None, int | None]


def read(folder: Folder, settings: Mapping[str, Any]) -> Packed:
    """The tensors with a scale per tile. Raises MissingTensor, CorruptFile or InvalidInput."""
    size = settings.get("weight_block_size")
    tiles = [] if size is None else [block(folder, size, "weight_block_size")]
    packed = read_scaled(folder, tiles, *ACTIVATIONS)
    packed.refuse_extra(folder, _SCALES)
    packed.predicting = _predicting(folder.predicting_entries, tiles)
    if not packed.by_entry and not packed.stacks:
        raise InvalidInput(f"{folder.path}: the config speaks of FP8 and no weight is quantized")
    return packed


def _predicting(entries: Mapping[str, Entry], tiles: Sequence[Tile]) -> dict[str, Tensor]:
    """Tensors of layers that predict further tokens; none where one is stored otherwise."""
    found, plain = dict[str, Tensor](), dict[str, Entry]()
    for name, entry in entries.items():
        module, _, last = name.rpartition(".")
        if last in (*_SCALES, *ACTIVATIONS):
            continue
        if entry.dtype not in FLOATS:
            plain[name] = entry
            continue
        scales = next((e for s in _SCALES if (e := entries.get(f"{module}.{s}"))), None)
        if scales is None or scales.dtype not in SCALE_DTYPES or len(entry.shape) != 2:
            return {}
        tile = _tile(entry.shape, scales, tiles)
        encoding = Scaled(Dense(entry.dtype), Dense(scales.dtype), tile)
        places = {
            part: StoredTensor(of.path, of.offset, of.name)
            for part, of in ((CODES, entry), (SCALES, scales))
        }
        pieces = StoredPieces(module, ScaledCodec(scales.shape), encoding, places)
        found[name] = Tensor(name, entry.shape, encoding, pieces)
    others = tensors_of(plain)
    return {**found, **others} if len(others) == len(plain) else {}


def read_scaled(folder: Folder, tiles: Sequence[Tile], *left: str) -> Packed:
    """All 8-bit floats of a folder with their scales.

    ``tiles`` are those that its config names; without any, the shape of the scales tells. ``left``
    are the last parts of names that are of activations.
    """
    known = weights(folder)
    packed, entries = Packed(), folder.entries
    packed.stacks = of_stacks(folder, partial(_tensor, tiles=tiles))
    packed.left = {name for name in entries if name.rpartition(".")[2] in left}
    packed.left |= {f"{name}_{_OF_STACKS}" for name in packed.stacks} & entries.keys()
    if packed.left:
        packed.warnings.append(
            several(len(packed.left), "scale of activations is", "scales of activations are")
            + " left out, which the weights do not have"
        )
    for name, entry in entries.items():
        if entry.dtype not in FLOATS or not name.endswith(_WEIGHT):
            continue
        if name not in known:
            layers = folder.hyperparameters.layers
            raise foreign(str(folder.path), folder.architecture.id, layers, [name])
        module = name.removesuffix(_WEIGHT)
        found = [s for s in _SCALES if f"{module}.{s}" in entries]
        if len(found) != 1:
            which = "both of them are" if found else "neither is"
            raise MissingTensor(
                f"{entry.path}: {name} is {entry.dtype} and needs one of "
                f"{' and '.join(f'{module}.{s}' for s in _SCALES)}; {which} there"
            )
        suffix = found[0]
        arrays = entry, entries[f"{module}.{suffix}"]
        tensor = _tensor(module, known[name], *arrays, tiles)
        packed.by_entry |= {name: tensor, f"{module}.{suffix}": tensor}
    return packed


def _tensor(
    module: str, name: TensorName, codes: Entry, scales: Entry, tiles: Sequence[Tile]
) -> Tensor:
    if scales.dtype not in SCALE_DTYPES:
        raise CorruptFile(f"{scales.path}: {scales.name}: scales are {scales.dtype}, and no floats")
    if len(name.shape) != 2:
        raise CorruptFile(f"{codes.path}: {codes.name} is {codes.dtype}, and no matrix")
    tile = _tile(name.shape, scales, tiles)
    encoding = Scaled(Dense(codes.dtype), Dense(scales.dtype), tile)
    arrays = {CODES: codes, SCALES: scales}
    return of_pieces(module, name, encoding, ScaledCodec(scales.shape), arrays.__getitem__)


def _tile(shape: tuple[int, ...], scales: Entry, tiles: Sequence[Tile]) -> Tile:
    """What shares a scale. Raises CorruptFile where the number of scales fits nothing."""
    rows, columns = shape
    for tile in tiles:
        if scales.shape == _tiles(shape, tile):
            return tile
    if scales.shape in {(), (1,)} or (not tiles and scales.shape == (1, 1)):
        return None, None
    if not tiles and scales.shape in {(rows,), (rows, 1)}:
        return 1, None
    wanted = [f"blocks of {t[0]} × {t[1]} call for {list(_tiles(shape, t))}" for t in tiles]
    expected = " or ".join(wanted) or f"expected one, or one a row: [{rows}, 1]"
    raise CorruptFile(
        f"{scales.path}: {scales.name} has shape {list(scales.shape)} for a weight "
        f"[{rows}, {columns}]; {expected}"
    )


def _tiles(shape: tuple[int, ...], block: Tile) -> tuple[int, ...]:
    pairs = zip(shape, block, strict=True)
    return tuple(1 if part is None else -(-size // part) for size, part in pairs)


def block(folder: Folder, size: object, key: str) -> Tile:
    """The block that the config names. Raises CorruptFile."""
    if isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size):
        return size[0], size[1]
    raise CorruptFile(
        f"{folder.path / 'config.json'}: {key} should be two sizes, found {size!r:.60}"
    )
