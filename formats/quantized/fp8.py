"""FP8 folders (``quant_method: fp8``): DeepSeek, Qwen, GLM, MiniMax and Mistral as they release it.

::

    X.weight             f8_e4m3 [N, K]
    X.weight_scale_inv   f32, bf16 or e8m0; multiplies, whatever its name says:
                         [⌈N/n⌉, ⌈K/k⌉] with weight_block_size [n, k] of the config,
                         one number, or one for each row
    X.weight_scale       the same under another name
    X.input_scale, X.activation_scale   of activations: not of the weights

Source: transformers' finegrained_fp8 and vLLM's fp8. The block is the config's, and not what the
shapes divide to: the last one may be short (576 rows are 4.5 blocks of 128).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from zenconvert.errors import CorruptFile, InvalidInput, MissingTensor
from zenconvert.formats.hf.reader import Folder
from zenconvert.formats.hf.tensor_names import foreign
from zenconvert.formats.packed_folder import packed_tensor
from zenconvert.formats.quantized.packed import Packed
from zenconvert.formats.safetensors_container import Entry
from zenconvert.model.architecture import TensorName
from zenconvert.model.checkpoint import Tensor
from zenconvert.model.encoding import Dense
from zenconvert.model.scaled import CODES, FLOATS, SCALE_DTYPES, SCALES, Scaled, ScaledCodec

_WEIGHT: Final = ".weight"
_SCALES: Final = ("weight_scale_inv", "weight_scale")
_ACTIVATIONS: Final = (".input_scale", ".activation_scale", ".input_scale_inv")

Tile = tuple[int | None, int | None]


def read(folder: Folder, settings: Mapping[str, Any]) -> Packed:
    """The tensors with a scale per tile. Raises MissingTensor, CorruptFile or InvalidInput."""
    return read_scaled(folder, _block(folder, settings.get("weight_block_size")))


def read_scaled(folder: Folder, block: Tile | None) -> Packed:
    """All 8-bit floats of a folder with their scales; ``block`` is the tile that its config names.

    Without one, the shape of the scales tells.
    """
    known = {t.hf: t for t in folder.architecture.tensor_names(folder.hyperparameters)}
    packed, entries = Packed(), folder.entries
    packed.left = {name for name in entries if name.endswith(_ACTIVATIONS)}
    if packed.left:
        packed.warnings.append(
            f"{len(packed.left)} scales of activations are left out: they are not of the weights"
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
        tensor = _tensor(folder, module, known[name], found[0], block)
        packed.by_entry |= {name: tensor, f"{module}.{found[0]}": tensor}
    _refuse_extra(folder, packed)
    if not packed.by_entry:
        raise InvalidInput(f"{folder.path}: the config speaks of FP8 and no weight is quantized")
    return packed


def _tensor(
    folder: Folder, module: str, name: TensorName, suffix: str, block: Tile | None
) -> Tensor:
    codes, scales = folder.entries[f"{module}{_WEIGHT}"], folder.entries[f"{module}.{suffix}"]
    if scales.dtype not in SCALE_DTYPES:
        raise CorruptFile(f"{scales.path}: {scales.name}: scales are {scales.dtype}, and no floats")
    if len(name.shape) != 2:
        raise CorruptFile(f"{codes.path}: {codes.name} is {codes.dtype}, and no matrix")
    tile = _tile(name.shape, scales, block)
    encoding = Scaled(Dense(codes.dtype), Dense(scales.dtype), tile)
    files = {CODES: "weight", SCALES: suffix}
    return packed_tensor(folder, module, name, encoding, ScaledCodec(scales.shape), files)


def _tile(shape: tuple[int, ...], scales: Entry, block: Tile | None) -> Tile:
    """What shares a scale. Raises CorruptFile where the number of scales fits nothing."""
    rows, columns = shape
    if block is not None and scales.shape == _tiles(shape, block):
        return block
    if block is None or scales.shape in {(), (1,)}:
        if scales.shape in {(), (1,), (1, 1)}:
            return None, None
        if scales.shape in {(rows,), (rows, 1)}:
            return 1, None
    expected = (
        f"blocks of {block[0] or 'all'} × {block[1] or 'all'} call for {list(_tiles(shape, block))}"
        if block is not None
        else f"expected one, or one a row: [{rows}, 1]"
    )
    raise CorruptFile(
        f"{scales.path}: {scales.name} has shape {list(scales.shape)} for a weight "
        f"[{rows}, {columns}]; {expected}"
    )


def _tiles(shape: tuple[int, ...], block: Tile) -> tuple[int, ...]:
    pairs = zip(shape, block, strict=True)
    return tuple(1 if part is None else -(-size // part) for size, part in pairs)


def _block(folder: Folder, block: object) -> Tile | None:
    if block is None:
        return None
    whole = isinstance(block, list) and len(block) == 2
    if not whole or not all(type(n) is int and n > 0 for n in block):  # type: ignore[attr-defined]
        raise CorruptFile(
            f"{folder.path / 'config.json'}: weight_block_size should be two sizes, found {block!r}"
        )
    return block[0], block[1]  # type: ignore[index]


def _refuse_extra(folder: Folder, packed: Packed) -> None:
    """Raise CorruptFile for scales of weights that have none."""
    for name, entry in folder.entries.items():
        module, _, last = name.rpartition(".")
        if last in _SCALES and name not in packed.by_entry:
            weight = folder.entries.get(f"{module}{_WEIGHT}")
            what = f"{module}{_WEIGHT} is {weight.dtype}" if weight else "its weight is missing"
            raise CorruptFile(f"{entry.path}: {name} is there, and {what}")
