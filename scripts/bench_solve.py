"""``scripts/bench solve``: one decoder block of Qwen1.5-110B's shapes, from activations to codes.

Statistics and GPTQ of the seven linears (hidden 8192, ffn 49152, 64 heads of which 8 hold keys and
values) over synthetic activations with outlier channels, made in chunks on the device and not
timed. With ``--type q4_k`` and other ggml types it is their blocks that are solved.
``--divide`` makes every shape smaller. Needs torch, with Triton on CUDA and Numba on the
CPU; run as ``python3 -m scripts.bench_solve`` where there is nothing else.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import torch

from zenconvert.calib.moments import Moments
from zenconvert.calib.solvers.curvature import Curvature
from zenconvert.calib.solvers.gptq import curvature_of, quantize_rows
from zenconvert.calib.solvers.grid import fused_kernels, search
from zenconvert.calib.solvers.levels import Levels
from zenconvert.calib.solvers.nested import nested_curvature, nested_gptq
from zenconvert.calib.solvers.solution import GptqSettings
from zenconvert.calib.solvers.sweep import sweep
from zenconvert.model.target import Scheme

HIDDEN, FFN, KEYS, LAYERS = 8192, 49152, 1024, 80
CHUNK = 16384
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Input:
    """One input of the block and the linears that take it: name → rows."""

    name: str
    width: int
    linears: dict[str, int]


@dataclass
class Clock:
    """Seconds and peak memory of timed work on one device."""

    device: torch.device
    total: float = 0.0
    peaks: list[float] = field(default_factory=list)

    def time(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> tuple[T, float]:
        """The result of a call and how many seconds it took."""
        self._wait()
        begin = time.perf_counter()
        result = work(*given, **named)
        self._wait()
        seconds = time.perf_counter() - begin
        self.total += seconds
        return result, seconds

    def peak(self) -> float:
        """GiB in use at most since the last call, as torch counts them; 0 on the CPU."""
        if self.device.type != "cuda":
            return 0.0
        self.peaks.append(torch.cuda.max_memory_allocated() / 2**30)
        torch.cuda.reset_peak_memory_stats()
        return self.peaks[-1]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def block_inputs(divide: int) -> list[Input]:
    """The four distinct inputs of a block."""
    hidden, ffn, keys = HIDDEN // divide, FFN // divide, KEYS // divide
    return [
        Input("attention", hidden, {"q": hidden, "k": keys, "v": keys}),
        Input("output", hidden, {"o": hidden}),
        Input("mlp", hidden, {"gate": ffn, "up": ffn}),
        Input("down", ffn, {"down": hidden}),
    ]


def activations(width: int, tokens: int, device: torch.device) -> Iterator[torch.Tensor]:
    """bfloat16[chunk, width] each: correlated, with channels of very unlike sizes."""
    random = torch.Generator(device).manual_seed(width)
    rank = max(8, width // 16)
    mixing = torch.randn(rank, width, generator=random, device=device) / rank**0.5
    size = torch.randn(width, generator=random, device=device).mul_(0.7).exp_()
    outliers = torch.randint(0, width, (max(2, width // 1000),), generator=random, device=device)
    size[outliers] *= 40
    mixing, size = (mixing * size).bfloat16(), size.bfloat16()
    for begin in range(0, tokens, CHUNK):
        count = min(CHUNK, tokens - begin)
        hidden = torch.randn(count, rank, generator=random, device=device).bfloat16()
        noise = torch.randn(count, width, generator=random, device=device, dtype=torch.bfloat16)
        yield torch.addcmul(hidden @ mixing, noise, size, value=0.5)


def weights(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """float32[rows, columns], numbers of bfloat16 with a few large ones."""
    random = torch.Generator(device).manual_seed(rows + columns)
    values = torch.randn(rows, columns, generator=random, device=device).mul_(0.02)
    large = torch.rand(rows, columns, generator=random, device=device) < 1e-4
    return torch.where(large, values * 8, values).bfloat16().float()


def statistics(source: Input, tokens: int, clock: Clock) -> tuple[torch.Tensor, float]:
    """Second moments of one input and the seconds they took."""
    sums, seconds = Moments(source.width, clock.device), 0.0
    for chunk in activations(source.width, tokens, clock.device):
        seconds += clock.time(sums.add, chunk, 1.0)[1]
    moments, finishing = clock.time(sums.finish)
    return moments, seconds + finishing


def solve(source: Input, tokens: int, scheme: Scheme, settings: GptqSettings, clock: Clock) -> None:
    """Statistics and GPTQ of every linear of one input; prints a line each."""
    moments, seconds = statistics(source, tokens, clock)
    line(f"{source.name}: X Xᵀ", f"{source.width}²", seconds, clock.peak())
    finite = bool(moments.diagonal().isfinite().all())
    curvature, seconds = clock.time(curvature_of, moments, tokens, scheme, settings)
    if not isinstance(curvature, Curvature):
        raise SystemExit(f"{source.name}: {curvature}")
    del moments
    facts = f"damping {curvature.damping:.3g}, rank {curvature.rank}, finite {finite}"
    line(f"{source.name}: factor", f"{source.width}²", seconds, clock.peak(), facts)
    for name, rows in source.linears.items():
        weight = weights(rows, source.width, clock.device)
        (rounded, report), seconds = clock.time(quantize_rows, weight, scheme, curvature, settings)
        codes, copying = clock.time(rounded.codes.cpu)
        finite = bool(rounded.scales.isfinite().all()) and int(codes.max()) < scheme.levels
        facts = (
            f"error {report.error:.5f}, rtn {report.rtn_error:.5f}, "
            f"ratio {report.error / report.rtn_error:.3f}, finite {finite}, copy {copying:.2f} s"
        )
        line(name, f"{rows}x{source.width}", seconds + copying, clock.peak(), facts)
        for note in report.notes:
            print(f"    {note}", flush=True)


def fill(source: Input, tokens: int, name: str, settings: GptqSettings, clock: Clock) -> None:
    """Statistics and ggml blocks of every linear of one input; prints a line each."""
    from zenconvert.ggml.encoding import encoding_named  # imports more than torch

    moments, seconds = statistics(source, tokens, clock)
    line(f"{source.name}: X Xᵀ", f"{source.width}²", seconds, clock.peak())
    importance = (moments.diagonal() / tokens).cpu().numpy()
    curvature, seconds = clock.time(nested_curvature, moments, tokens, settings)
    del moments
    line(f"{source.name}: factor", f"{source.width}²", seconds, clock.peak(), curvature.why)
    encoding = encoding_named(name)
    for linear, rows in source.linears.items():
        weight = weights(rows, source.width, clock.device)
        _, rounding = clock.time(encoding.encode, weight[:256].cpu().numpy(), importance)
        clock.total -= rounding
        solved, seconds = clock.time(
            nested_gptq, weight, encoding, curvature, importance, settings=settings
        )
        report = solved.report
        facts = (
            f"error {report.error:.5f}, rtn {report.rtn_error:.5f}, "
            f"ratio {report.error / report.rtn_error:.3f}, "
            f"256 rows rounded on one core in {rounding:.2f} s"
        )
        line(linear, f"{rows}x{source.width}", seconds, clock.peak(), facts)


def line(what: str, shape: str, seconds: float, peak: float, facts: str = "") -> None:
    """Print one row of the table."""
    print(f"{what:20}{shape:>14}{seconds:9.2f} s{peak:8.1f} GiB  {facts}", flush=True)


def compare_kernels(device: torch.device) -> None:
    """Print how far the fused kernels are from plain torch on the CPU."""
    random = torch.Generator().manual_seed(0)
    target = torch.randn(1024, 128, generator=random)
    importance = torch.rand(128, generator=random)
    back = torch.randn(128, 128, generator=random).mul_(0.05).triu(1)
    for symmetric in (True, False):
        levels = Levels(15, symmetric)
        scale, zero = search(target, importance, levels)
        found = search(target.to(device), importance.to(device), levels)
        same = ((found[0].cpu() == scale) & (found[1].cpu() == zero)).float().mean()
        parts = (target, target, back, scale[:, None], zero[:, None])
        a, b, c, d, e = (part.to(device) for part in parts)
        here, there = sweep(*parts, 15), sweep(a, b, c, d, e, 15)
        equal = ((here - there.cpu()).abs() < 1e-6).float().mean()
        print(
            f"kernels against torch: {same:.2%} of grids, {equal:.2%} of values equal", flush=True
        )


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=torch.device(usual))
    parser.add_argument("--divide", type=int, help="make every shape smaller (CPU: 16)")
    parser.add_argument("--tokens", type=int, default=262_144, help="divided as well")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--type", help="a ggml type, q4_k")
    parser.add_argument("--passes", type=int, default=GptqSettings().passes)
    given = parser.parse_args()
    divide = given.divide or (1 if given.device.type == "cuda" else 16)
    scheme, settings = Scheme(given.bits, given.group), GptqSettings(passes=given.passes)
    tokens = given.tokens // divide

    def work(source: Input, tokens: int, clock: Clock) -> None:
        if given.type is None:
            solve(source, tokens, scheme, settings, clock)
        else:
            fill(source, tokens, given.type, settings, clock)

    if given.device.type == "cuda":
        print(torch.cuda.get_device_name(), "fused kernels:", fused_kernels() is not None)
        compare_kernels(given.device)
        # libraries load and kernels compile before the clock starts
        warm = Clock(given.device)
        for source in block_inputs(16):
            work(source, 2048, warm)
        print("warm", flush=True)
    clock = Clock(given.device)
    clock.peak()
    print(f"torch {torch.__version__}, {tokens} tokens, {given.type or scheme}, shapes / {divide}")
    for source in block_inputs(divide):
        work(source, tokens, clock)
    peak = max(clock.peaks, default=0.0)
    line(
        "one block", "", clock.total, peak, f"{LAYERS} layers: {clock.total * LAYERS / 60:.1f} min"
    )


if __name__ == "__main__":
    main()
