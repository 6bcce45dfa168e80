"""``scripts/bench ggml``: our block encoders beside libggml, on one core.

Both encode the same rows of 4096 float32, in turn, and the best time of each counts. The ratio is
libggml's time over ours; the bytes are compared. With ``--device cuda`` it is the encoders of a GPU
beside our own on one core, and the rate of a plain copy on the device.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from zenconvert.ggml import blocks, devices
from zenconvert.ggml.types import BY_NAME

COLUMNS = 4096
TYPES = tuple(name for name in BY_NAME if blocks.can_encode(name) and name != "f32")


@dataclass(frozen=True)
class Race:
    """One type on one input."""

    ours: float
    """Million weights per second, as the next one."""
    libggml: float
    same_bytes: bool


def gaussian(rows: int) -> NDArray[np.float32]:
    """Weights f32[rows, 4096]."""
    values = np.random.default_rng(0).standard_normal((rows, COLUMNS), dtype=np.float32)
    return values * np.float32(0.02)


def bf16_valued(rows: int) -> NDArray[np.float32]:
    """The same weights cut to bfloat16, as most checkpoints hold them."""
    return (gaussian(rows).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


VALUES: dict[str, Callable[[int], NDArray[np.float32]]] = {
    "gaussian": gaussian,
    "bf16": bf16_valued,
}


def race(
    type_name: str,
    weights: NDArray[np.float32],
    importance: NDArray[np.float32] | None,
    repeats: int,
) -> Race:
    """Both encoders ``repeats`` times in turn."""
    from tests.oracles import libggml

    best = [float("inf"), float("inf")]
    for _ in range(repeats):
        encoded: list[NDArray[np.uint8]] = []
        for i, encode in enumerate((blocks.encode, libggml.quantize)):
            begin = time.perf_counter()
            encoded.append(encode(type_name, weights, importance))
            best[i] = min(best[i], time.perf_counter() - begin)
    ours, theirs = (weights.size / seconds / 1e6 for seconds in best)
    return Race(ours, theirs, np.array_equal(encoded[0], encoded[1]))


def _variants(name: str) -> list[bool]:
    """Whether a type is encoded without and with importance."""
    without = [] if blocks.requires_importance(name) else [False]
    return [*without, True] if blocks.uses_importance(name) else without


def on_device(names: Sequence[str], device: str, repeats: int) -> None:
    """Print the rates of a device's encoders, and whether some rows get the host's bytes."""
    import torch

    def seconds(work: Callable[[], object]) -> float:
        best = float("inf")
        for _ in range(repeats + 1):  # the first compiles
            torch.cuda.synchronize()
            begin = time.perf_counter()
            work()
            torch.cuda.synchronize()
            best = min(best, time.perf_counter() - begin)
        return best

    weights = torch.from_numpy(gaussian(1 << 15)).to(device)
    importance = np.random.default_rng(1).random(COLUMNS, dtype=np.float32)
    there, some = torch.from_numpy(importance).to(device), weights[:256]
    copying = weights.nbytes / seconds(weights.clone) / 1e9
    print(f"{torch.cuda.get_device_name(device)}: {len(weights)} x {COLUMNS} weights, best of")
    print(f"{repeats}; a copy takes {copying:.0f} GB/s")
    print(f"{'type':8}{'importance':12}{'Gelem/s':>9}  same bytes as on the host")
    for name in names:
        for weighted in _variants(name) if devices.can_encode(name) else []:
            rate = seconds(partial(devices.encode, name, weights, there if weighted else None))
            found = devices.encode(name, some, there if weighted else None).cpu().numpy()
            host = blocks.encode(name, some.cpu().numpy(), importance if weighted else None)
            same = "yes" if np.array_equal(found, host) else "no"
            print(
                f"{name:8}{'yes' if weighted else 'no':12}"
                f"{weights.numel() / rate / 1e9:9.2f}  {same}",
                flush=True,
            )


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES, metavar="TYPE")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--values", choices=VALUES, default="gaussian")
    parser.add_argument("--device", help="cuda: the encoders of a GPU")
    given = parser.parse_args()
    if given.device:
        on_device(given.types, given.device, given.repeats)
        return
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    weights = VALUES[given.values](given.rows)
    importance = np.random.default_rng(1).random(COLUMNS, dtype=np.float32)
    blocks.warm_up(given.types)
    print(f"{given.rows} x {COLUMNS} {given.values} weights, one core, best of {given.repeats}")
    print(f"{'type':8}{'importance':12}{'Melem/s':>9}{'libggml':>9}{'ratio':>7}  same bytes")
    for name in given.types:
        for weighted in _variants(name):
            result = race(name, weights, importance if weighted else None, given.repeats)
            print(
                f"{name:8}{'yes' if weighted else 'no':12}"
                f"{result.ours:9.1f}{result.libggml:9.1f}{result.ours / result.libggml:7.2f}"
                f"  {'yes' if result.same_bytes else 'no'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
