"""QMoE nodes → the matrices of their experts.

:mod:`zenconvert.formats.onnx.write.stacking` says how they lie. Only gated experts in that layout
can be taken apart: rows of gate and up in turn, ``silu`` between them, routing by the softmax of
the chosen logits or of all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import inf
from typing import TYPE_CHECKING, Any, Final

from zenconvert.errors import CorruptFile, InvalidInput, Unsupported
from zenconvert.formats.onnx.codecs import BITS, CODES, SCALES, SMALLEST_BLOCK, ZEROS, NBitsCodec
from zenconvert.formats.onnx.read.container import Initializer
from zenconvert.formats.onnx.read.graph_view import GraphView, attributes, inputs, scopes
from zenconvert.formats.onnx.read.matrices import Matrix, arrays_of, check_sizes
from zenconvert.model.encoding import Dense, Grouped
from zenconvert.model.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    import onnx

OPERATOR: Final = "QMoE"
_MOST: Final = 4096
"""Experts of a layer."""
_LAYER: Final = re.compile(r"(?:^|[./])layers[./](\d+)[./]")
_PRODUCTS: Final = {"fc1": (2, 3, 4, 11), "fc2": (5, 6, 7, 12)}
"""Inputs that are codes, scales, bias and zero points."""
_INPUTS: Final = 15
_WEIGHTS: Final = 14
"""Input that experts are weighed by, in the place of the softmax over those that were chosen."""
_NORMALISED: Final = "normalize_routing_weights"
_OTHERS: Final = (8, 9, 10, 13)
# attribute → what it has to be, what it is where it is left out
_WANTED: Final[dict[str, tuple[Any, Any]]] = {
    "weights_prepacked": (0, -1),
    "swiglu_fusion": (1, 0),
    "activation_type": ("swiglu", "relu"),
    "activation_alpha": (1.0, 1.0),
    "activation_beta": (0.0, 0.0),
    "swiglu_limit": (inf, inf),
    "use_sparse_mixer": (0, 0),
    "quant_type": ("int", "int"),
}


def experts(view: GraphView, node: onnx.NodeProto) -> Iterator[tuple[str, Matrix]]:
    """Every matrix of a node's experts under the name of its module.

    Raises Unsupported for what cannot be taken apart, and CorruptFile.
    """
    where, given = f"{view.file.path}: node {node.name!r} ({OPERATOR})", attributes(node)
    _refuse_others(node, given, where)
    if "block_size" not in given:
        raise Unsupported(f"{where}: it has one scale for every row; only blocks are read")
    first, second = (_arrays(view, node, product, where) for product in _PRODUCTS)
    prefix = _prefix(node, (first[CODES], second[CODES]), where)
    count, rows, _ = first[CODES].shape
    hidden, ffn = second[CODES].shape[1], rows // 2
    if second[CODES].shape[0] != count or rows % 2 or not 0 < count <= _MOST:
        raise CorruptFile(
            f"{where}: {list(first[CODES].shape)} and {list(second[CODES].shape)} are no experts"
        )
    up = _matrix(first, (ffn, hidden), given, "fc1", where)
    down = _matrix(second, (hidden, ffn), given, "fc2", where)
    check_sizes(up, where, 2 * count)
    check_sizes(down, where, count)
    for expert in range(count):
        for beside, part in enumerate(("gate_proj", "up_proj")):
            line = expert * rows + beside
            yield f"{prefix}.{expert}.{part}", _at(up, line, step=2)
        yield f"{prefix}.{expert}.down_proj", _at(down, expert * hidden, step=1)


def biases(view: GraphView, node: onnx.NodeProto) -> Iterator[Initializer]:
    """What a node adds to its products."""
    given = inputs(node, _INPUTS)
    for _, _, place, _ in _PRODUCTS.values():
        if given[place]:
            where = f"{view.file.path}: node {node.name!r} ({OPERATOR})"
            yield arrays_of(view, where, {"bias": given[place]})["bias"]


def check_routing(view: GraphView, hp: Hyperparameters, *, over_all: bool) -> None:
    """Raise InvalidInput where nodes have other numbers of experts than the config, or weigh them
    otherwise; ``over_all``: by the softmax over all of them, and not over those that were chosen.
    """
    for node in view.nodes:
        if node.op_type != OPERATOR:
            continue
        codes = view.file.initializers[node.input[2]]
        found = codes.shape[0], attributes(node).get("k", 1)
        if found != (hp.experts, hp.experts_used):
            raise InvalidInput(
                f"{view.file.path}: node {node.name!r} uses {found[1]} of {found[0]} experts; the "
                f"config calls for {hp.experts_used} of {hp.experts}"
            )
        if _weighs_over_all(view, node) != over_all:
            over = ("those that were chosen", "all experts")
            raise InvalidInput(
                f"{view.file.path}: node {node.name!r} weighs experts by the softmax over "
                f"{over[not over_all]}; models of this kind by that over {over[over_all]}"
            )


def _weighs_over_all(view: GraphView, node: onnx.NodeProto) -> bool:
    """Whether a node is given the softmax of all logits. Raises Unsupported for other weights."""
    given, where = inputs(node, _INPUTS), f"{view.file.path}: node {node.name!r} ({OPERATOR})"
    weights, normalised = given[_WEIGHTS], attributes(node).get(_NORMALISED, 0)
    if normalised != int(not weights):
        which = "with" if weights else "without"
        raise Unsupported(
            f"{where}: {_NORMALISED} is {normalised} {which} router weights; only "
            f"{int(not weights)} can be taken apart again"
        )
    made = view.producer(weights, "Softmax") if weights else None
    if weights and (
        made is None or made.input[0] != given[1] or attributes(made).get("axis", -1) not in (-1, 1)
    ):
        raise Unsupported(
            f"{where}: it weighs experts by {weights!r}; only the softmax of the router's logits "
            "is read"
        )
    return bool(weights)


def _refuse_others(node: onnx.NodeProto, given: Mapping[str, Any], where: str) -> None:
    for name, (wanted, default) in _WANTED.items():
        if (found := given.get(name, default)) != wanted:
            raise Unsupported(f"{where}: {name} is {found}; only {wanted} can be taken apart again")
    used = inputs(node, max(_INPUTS, len(node.input)))
    if any(used[place] for place in _OTHERS) or any(used[_INPUTS:]):
        raise Unsupported(f"{where}: a third product and activation scales are not read")


def _arrays(
    view: GraphView, node: onnx.NodeProto, product: str, where: str
) -> dict[str, Initializer]:
    given = inputs(node, _INPUTS)
    codes, scales, _, zeros = (given[place] for place in _PRODUCTS[product])
    arrays = arrays_of(view, where, {CODES: codes, SCALES: scales, ZEROS: zeros})
    if CODES not in arrays or SCALES not in arrays or len(arrays[CODES].shape) != 3:
        raise CorruptFile(f"{where}: {product} has no codes [experts, rows, bytes] with scales")
    for piece in {CODES, ZEROS} & arrays.keys():
        if arrays[piece].dtype != "u8":
            raise CorruptFile(
                f"{where}: {product} has {piece} of type {arrays[piece].dtype}; they should be u8"
            )
    return arrays


def _matrix(
    arrays: Mapping[str, Initializer],
    shape: tuple[int, int],
    given: Mapping[str, Any],
    product: str,
    where: str,
) -> Matrix:
    """The first matrix of a product; the others have its shape and grid."""
    bits = given.get(f"{product}_expert_weight_bits", given.get("expert_weight_bits", 4))
    block, columns = given["block_size"], shape[1]
    odd = block < SMALLEST_BLOCK or block & (block - 1)
    if bits not in BITS or min(shape) < 1 or odd or columns % block:
        raise CorruptFile(
            f"{where}: {product} has {bits} bits in blocks of {block}, for rows of {columns}"
        )
    group = None if block == columns else block
    grid = Grouped(bits, group, ZEROS not in arrays, Dense(arrays[SCALES].dtype))
    return Matrix(shape, arrays, grid, NBitsCodec(columns))


def _at(matrix: Matrix, first: int, *, step: int) -> Matrix:
    return Matrix(
        matrix.shape, matrix.arrays, matrix.encoding, matrix.codec, first=first, step=step
    )


def _prefix(node: onnx.NodeProto, arrays: tuple[Initializer, ...], where: str) -> str:
    """``layers.N.mlp.experts``, by the first name that tells the layer."""
    for text in (*(array.name for array in arrays), node.name, *scopes(node)):
        if (match := _LAYER.search(text)) is not None:
            return f"model.layers.{match[1]}.mlp.experts"
    raise Unsupported(f"{where}: no name tells which layer its experts belong to")
