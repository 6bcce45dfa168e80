"""AWQ folder → checkpoint: GEMM and GEMV files of AutoAWQ, GPTQModel, auto-round and our own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from zenconvert.errors import CorruptFile, InvalidInput, Unsupported
from zenconvert.formats import packed_folder, quantization
from zenconvert.formats.awq.activation import without_ones
from zenconvert.formats.awq.codec import BITS, PER_WORD, AwqCodec, Version
from zenconvert.formats.hf.reader import Folder, name_tensors, open_folder, without_spare_biases
from zenconvert.model.architecture import TensorName
from zenconvert.model.checkpoint import Checkpoint, Tensor
from zenconvert.model.encoding import Dense, Grouped

_KERNELS: Final = frozenset(
    {"exllama", "exllama_v1", "exllama_v2", "exllamav2", "gemm_triton", "ipex", "torch_awq"}
)
"""Names of kernels where a layout should stand: they read GEMM."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Open an AWQ folder: headers only.

    Raises the errors of the HF reader, Unsupported for layouts that cannot be read.
    """
    said_by = quantization.of_folder(path)
    settings = said_by.table if said_by is not None else {}
    named = _version(path, settings)
    folder = without_ones(without_spare_biases(open_folder(path)))
    modules = packed_folder.modules(folder)
    if not modules:
        raise InvalidInput(f"{path}: the config speaks of AWQ and no weight is quantized")
    given = settings.get("group_size", settings.get("q_group_size"))
    group = 128 if given is None else given
    if not isinstance(group, int) or isinstance(group, bool) or group == 0 or group < -1:
        raise CorruptFile(f"{path}: group_size should be a number of columns, found {group!r}")
    version = _stored_version(folder, modules) or named
    tensors = {m: _tensor(folder, m, name, version, group) for m, name in modules.items()}
    found = name_tensors(folder, packed_folder.by_entry(folder, tensors))
    warnings = _other_labels(path, (named, version), given, tensors)
    return folder.checkpoint("awq", found, warnings)


def _stored_version(folder: Folder, modules: Mapping[str, TensorName]) -> Version | None:
    """The layout that the shapes of the codes have; None where they fit both or none."""
    fits = {"gemm": True, "gemv": True}
    for module, name in modules.items():
        shape, (rows, columns) = packed_folder.entry_of(folder, module, "qweight").shape, name.shape
        fits["gemm"] &= shape == (columns, rows // PER_WORD)
        fits["gemv"] &= shape == (rows, columns // PER_WORD)
        if not any(fits.values()) and shape == (columns // PER_WORD, rows):
            raise InvalidInput(
                f"{folder.path}: {module}.qweight lies as GPTQ has it: quant_method should be gptq"
            )
    if fits["gemm"] == fits["gemv"]:
        return None
    return "gemm" if fits["gemm"] else "gemv"


def _other_labels(
    path: Path, versions: tuple[Version, Version], group: object, tensors: Mapping[str, Tensor]
) -> list[str]:
    """What the config says of the layout, and the data does not."""
    named, version = versions
    found = [] if named == version else [f"labelled {named}, and the data is {version}: read so"]
    actual = {}
    for module, tensor in tensors.items():
        grid, width = tensor.encoding.grouped, tensor.shape[1]
        actual[module] = (grid.group if grid is not None else None) or width
    if isinstance(group, int) and group > 0:
        others = [m for m, has in actual.items() if has != min(group, tensors[m].shape[1])]
        if others:
            shown = ", ".join(map(str, sorted({actual[module] for module in others})[:4]))
            found.append(
                f"labelled group_size {group}, and the data has {shown}"
                f"{packed_folder.among(others, tensors)}: read so"
            )
    return [f"{path}: {text}" for text in found]


def _version(path: Path, settings: dict[str, Any]) -> Version:
    bits = settings.get("bits", settings.get("w_bit", BITS))
    if bits != BITS:
        raise Unsupported(f"{path}: AWQ of {bits} bits is not read; only {BITS}")
    version = str(settings.get("version") or settings.get("format") or "gemm").lower()
    if version == "gemm" or version in _KERNELS:
        return "gemm"
    if version == "gemv":
        return "gemv"
    raise Unsupported(
        f"{path}: the AWQ layout {version!r} is repacked for one kernel and not read; known are "
        "gemm and gemv"
    )


def _tensor(folder: Folder, module: str, name: TensorName, version: Version, group: int) -> Tensor:
    scales = packed_folder.scales_of(folder, module)
    columns = name.shape[1]
    groups = {packed_folder.entry_of(folder, module, "qzeros").shape[:1], scales.shape[:1]}
    if version == "gemm" and len(groups) == 1 and (count := next(iter(groups))[0]):
        group = -(-columns // count)  # shapes cannot lie
    if columns % (columns if group == -1 else group):
        raise CorruptFile(
            f"{scales.path}: {module} has {columns} inputs, no multiple of the group of {group}"
        )
    grouped = None if group in {-1, columns} else group
    # zeros are always stored, symmetric or not
    encoding = Grouped(BITS, grouped, symmetric=False, scale=Dense(scales.dtype))
    return packed_folder.packed_tensor(folder, module, name, encoding, AwqCodec(version))
