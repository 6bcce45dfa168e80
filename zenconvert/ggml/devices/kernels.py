"""Triton kernels of the searches of ggml's encoders, a sub-block in every lane.

What :mod:`zenconvert.ggml.blocks` does on the host, operation by operation: float32, sums in C's
order, no contraction, strict comparisons, so that the results are the same bit for bit. Launched by
:mod:`.searches`, which says how arrays lie.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _nearest(x):  # type: ignore[no-untyped-def]
    """``nearest_int`` of ggml-quants.c; NaN is what it is on x86-64."""
    bits = (x + 12582912.0).to(tl.int32, bitcast=True) & 0x7FFFFF
    return tl.where(x != x, 0, bits - 0x400000)


@triton.jit
def _within(x, least, most):  # type: ignore[no-untyped-def]
    """``MAX(least, MIN(most, nearest_int(x)))`` as float32."""
    found = _nearest(x).to(tl.float32)
    found = tl.where(found > least, found, least)
    return tl.where(found < most, found, most)


@triton.jit
def _at_most(x, most):  # type: ignore[no-untyped-def]
    found = _nearest(x)
    return tl.where(found < most, found, most)


@triton.jit
def _byte(x):  # type: ignore[no-untyped-def]
    return (x & 0xFF).to(tl.float32)


@triton.jit
def _lane(lanes, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    lane = (tl.program_id(0) * LANES + tl.arange(0, LANES)).to(tl.int64)
    return lane, lane < lanes


@triton.jit
def sum_kernel(values_at, sums_at, lanes, n, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    lane, here = _lane(lanes, LANES)
    at = values_at + lane
    total = tl.zeros([LANES], tl.float32)
    for _ in range(n):
        total += tl.load(at, mask=here, other=0.0)
        at += lanes
    tl.store(sums_at + lane, total, mask=here)


@triton.jit
def root_kernel(values_at, roots_at, lanes, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    lane, here = _lane(lanes, LANES)
    found = tl.sqrt_rn(tl.load(values_at + lane, mask=here, other=0.0))
    tl.store(roots_at + lane, found, mask=here)


@triton.jit
def affine_kernel(  # type: ignore[no-untyped-def]
    x_at, w_at, numerators_at, scales_at, lows_at, codes_at, lanes, most,
    STEPS: tl.constexpr, N: tl.constexpr, ABSOLUTE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """``make_qkx2_quants`` and ``make_qkx3_quants``."""
    lane, here = _lane(lanes, LANES)
    x_at += lane
    w_at += lane
    low = tl.load(x_at, mask=here, other=0.0)
    high = low
    sum_w = tl.load(w_at, mask=here, other=0.0)
    sum_x = sum_w * low
    for i in range(1, N):
        x = tl.load(x_at + i * lanes, mask=here, other=0.0)
        w = tl.load(w_at + i * lanes, mask=here, other=0.0)
        low = tl.where(x < low, x, low)
        high = tl.where(x > high, x, high)
        sum_w = sum_w + w
        sum_x = sum_x + w * x
    low = tl.where(low > 0.0, 0.0, low)
    flat = high == low
    flat_low = low
    inverse = tl.div_rn(tl.zeros_like(low) + most, high - low)
    scale = tl.div_rn(tl.zeros_like(low) + 1.0, inverse)
    best_inverse = inverse
    best_low = low
    least = tl.zeros_like(low)
    for i in range(N):
        x = tl.load(x_at + i * lanes, mask=here, other=0.0)
        w = tl.load(w_at + i * lanes, mask=here, other=0.0)
        gap = scale * _within(inverse * (x - low), 0.0, most) + low - x
        gap = tl.abs(gap) if ABSOLUTE else gap * gap
        least = least + w * gap
    for step in range(STEPS):
        inverse = tl.div_rn(tl.zeros_like(low) + tl.load(numerators_at + step), high - low)
        sum_l = tl.zeros_like(low)
        sum_ll = tl.zeros_like(low)
        sum_xl = tl.zeros_like(low)
        for i in range(N):
            x = tl.load(x_at + i * lanes, mask=here, other=0.0)
            w = tl.load(w_at + i * lanes, mask=here, other=0.0)
            code = _within(inverse * (x - low), 0.0, most)
            weighted = w * code
            sum_l = sum_l + weighted
            sum_ll = sum_ll + weighted * code
            sum_xl = sum_xl + weighted * x
        determinant = sum_w * sum_ll - sum_l * sum_l
        new_scale = tl.div_rn(sum_w * sum_xl - sum_x * sum_l, determinant)
        new_low = tl.div_rn(sum_ll * sum_x - sum_l * sum_xl, determinant)
        above = new_low > 0.0
        new_low = tl.where(above, 0.0, new_low)
        new_scale = tl.where(above, tl.div_rn(sum_xl, sum_ll), new_scale)
        error = tl.zeros_like(low)
        for i in range(N):
            x = tl.load(x_at + i * lanes, mask=here, other=0.0)
            w = tl.load(w_at + i * lanes, mask=here, other=0.0)
            gap = new_scale * _within(inverse * (x - low), 0.0, most) + new_low - x
            gap = tl.abs(gap) if ABSOLUTE else gap * gap
            error = error + w * gap
        better = (determinant > 0.0) & (error < least)
        least = tl.where(better, error, least)
        best_inverse = tl.where(better, inverse, best_inverse)
        best_low = tl.where(better, low, best_low)
        scale = tl.where(better, new_scale, scale)
        low = tl.where(better, new_low, low)
    best_inverse = tl.where(flat, 0.0, best_inverse)
    codes_at += lane
    for i in range(N):
        x = tl.load(x_at + i * lanes, mask=here, other=0.0)
        code = _within(best_inverse * (x - best_low), 0.0, most)
        tl.store(codes_at + i * lanes, code.to(tl.uint8), mask=here)
    tl.store(scales_at + lane, tl.where(flat, 0.0, scale), mask=here)
    tl.store(lows_at + lane, tl.where(flat, flat_low, low), mask=here)


@triton.jit
def _signed_peak(x_at, lanes, here, N: tl.constexpr, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first element of largest magnitude, and its magnitude."""
    peak = tl.zeros([LANES], tl.float32)
    magnitude = tl.zeros([LANES], tl.float32)
    for i in range(N):
        x = tl.load(x_at + i * lanes, mask=here, other=0.0)
        larger = tl.abs(x) > magnitude
        peak = tl.where(larger, x, peak)
        magnitude = tl.where(larger, tl.abs(x), magnitude)
    return peak, magnitude


@triton.jit
def _level(x, levels_at, first, middles_at, EVEN: tl.constexpr, LEVELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The level next to x: of whole numbers from ``first`` on, or of a table, halfway the upper."""
    if EVEN:
        return _within(x, first, first + (LEVELS - 1.0))
    level = tl.zeros_like(x) + tl.load(levels_at + LEVELS - 1)
    for k in tl.static_range(LEVELS - 1):
        place = LEVELS - 2 - k
        level = tl.where(x < tl.load(middles_at + place), tl.load(levels_at + place), level)
    return level


@triton.jit
def scale_kernel(  # type: ignore[no-untyped-def]
    x_at, w_at, numerators_at, levels_at, middles_at, scales_at, codes_at, lanes, first,
    STEPS: tl.constexpr, EVEN: tl.constexpr, LEVELS: tl.constexpr, N: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """``make_qx_quants``, and the search of ``quantize_row_iq4_nl_impl``; the first numerator is
    the start, whatever it gives."""
    lane, here = _lane(lanes, LANES)
    x_at += lane
    w_at += lane
    peak, magnitude = _signed_peak(x_at, lanes, here, N, LANES)
    scale = tl.zeros_like(peak)
    best = tl.zeros_like(peak)
    inverse = tl.zeros_like(peak)
    for step in range(STEPS):
        tried = tl.div_rn(tl.zeros_like(peak) + tl.load(numerators_at + step), peak)
        if not EVEN:  # C divides twice for the first
            start = tl.div_rn(-peak, tl.zeros_like(peak) + tl.load(levels_at))
            tried = tl.where(step == 0, tl.div_rn(tl.zeros_like(peak) + 1.0, start), tried)
        sum_xl = tl.zeros_like(peak)
        sum_ll = tl.zeros_like(peak)
        for i in range(N):
            x = tl.load(x_at + i * lanes, mask=here, other=0.0)
            w = tl.load(w_at + i * lanes, mask=here, other=0.0)
            level = _level(tried * x, levels_at, first, middles_at, EVEN, LEVELS)
            sum_xl = sum_xl + (w * x * level if EVEN else w * level * x)
            sum_ll = sum_ll + w * level * level
        first_fit = sum_ll != 0.0 if EVEN else sum_ll > 0.0
        better = (sum_ll > 0.0) & (sum_xl * sum_xl > best * sum_ll)
        better = tl.where(step == 0, first_fit, better)
        fitted = tl.div_rn(sum_xl, sum_ll)
        scale = tl.where(better, fitted, scale)
        best = tl.where(better, fitted * sum_xl, best)
        inverse = tl.where(better | (step == 0), tried, inverse)
    zero = magnitude < 1e-15
    if EVEN:
        codes_at += lane
        for i in range(N):
            x = tl.load(x_at + i * lanes, mask=here, other=0.0)
            code = _level(inverse * x, levels_at, first, middles_at, EVEN, LEVELS) - first
            tl.store(codes_at + i * lanes, tl.where(zero, 0.0, code).to(tl.uint8), mask=here)
    tl.store(scales_at + lane, tl.where(zero, 0.0, scale), mask=here)


@triton.jit
def descent_kernel(  # type: ignore[no-untyped-def]
    x_at, w_at, scales_at, codes_at, lanes, half,
    N: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """``make_q3_quants``."""
    lane, here = _lane(lanes, LANES)
    x_at += lane
    w_at += lane
    least, most = -half, half - 1.0
    peak, magnitude = _signed_peak(x_at, lanes, here, N, LANES)
    inverse = tl.div_rn(tl.zeros_like(peak) + least, peak)
    across = tl.arange(0, N)[None, :]
    codes = tl.zeros([LANES, N], tl.float32)
    sum_xl = tl.zeros_like(peak)
    sum_ll = tl.zeros_like(peak)
    for i in range(N):
        x = tl.load(x_at + i * lanes, mask=here, other=0.0)
        w = tl.load(w_at + i * lanes, mask=here, other=0.0)
        code = _within(inverse * x, least, most)
        codes = tl.where(across == i, code[:, None], codes)
        sum_xl = sum_xl + w * x * code
        sum_ll = sum_ll + w * code * code
    for round in range(5 * N):
        i = round % N
        x = tl.load(x_at + i * lanes, mask=here, other=0.0)
        w = tl.load(w_at + i * lanes, mask=here, other=0.0)
        old = tl.sum(tl.where(across == i, codes, 0.0), axis=1)
        rest_xl = sum_xl - w * x * old
        rest_ll = sum_ll - w * old * old
        new = _within(tl.div_rn(x * rest_ll, rest_xl), least, most)
        new_xl = rest_xl + w * x * new
        new_ll = rest_ll + w * new * new
        better = (rest_xl > 0.0) & (new != old) & (new_ll > 0.0)
        better = better & (new_xl * new_xl * sum_ll > sum_xl * sum_xl * new_ll)
        codes = tl.where(better[:, None] & (across == i), new[:, None], codes)
        sum_xl = tl.where(better, new_xl, sum_xl)
        sum_ll = tl.where(better, new_ll, sum_ll)
    zero = magnitude < 1e-15
    scale = tl.where(sum_ll > 0.0, tl.div_rn(sum_xl, sum_ll), 0.0)
    tl.store(scales_at + lane, tl.where(zero, 0.0, scale), mask=here)
    codes = tl.where(zero[:, None], 0.0, codes + half)
    at = codes_at + lane[:, None] + across * lanes
    tl.store(at, codes.to(tl.uint8), mask=here[:, None] & (across < N))


@triton.jit
def positive_kernel(  # type: ignore[no-untyped-def]
    x_at, w_at, numerators_at, scales_at, codes_at, lanes, most,
    STEPS: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """``make_qp_quants``; codes are kept modulo 256."""
    lane, here = _lane(lanes, LANES)
    x_at += lane
    w_at += lane
    peak = tl.zeros([LANES], tl.float32)
    for i in range(N):
        x = tl.load(x_at + i * lanes, mask=here, other=0.0)
        peak = tl.where(peak > x, peak, x)
    inverse = tl.div_rn(tl.zeros_like(peak) + tl.load(numerators_at), peak)
    least = tl.zeros_like(peak)
    for step in range(STEPS):
        tried = tl.div_rn(tl.zeros_like(peak) + tl.load(numerators_at + step), peak)
        scale = tl.div_rn(tl.zeros_like(peak) + 1.0, tried)
        error = tl.zeros_like(peak)
        for i in range(N):
            x = tl.load(x_at + i * lanes, mask=here, other=0.0)
            w = tl.load(w_at + i * lanes, mask=here, other=0.0)
            code = tl.where(step == 0, _byte(_nearest(tried * x)), 0.0)
            code = tl.where(step == 0, code, _at_most(tried * x, most).to(tl.float32))
            gap = x - scale * code
            error = error + w * gap * gap
        better = (error < least) | (step == 0)
        least = tl.where(better, error, least)
        inverse = tl.where(better, tried, inverse)
    across = tl.arange(0, N)[None, :]
    codes = tl.zeros([LANES, N], tl.float32)
    sum_xl = tl.zeros_like(peak)
    sum_ll = tl.zeros_like(peak)
    for i in range(N):
        x = tl.load(x_at + i * lanes, mask=here, other=0.0)
        w = tl.load(w_at + i * lanes, mask=here, other=0.0)
        rounded = _at_most(inverse * x, most)
        codes = tl.where(across == i, _byte(rounded)[:, None], codes)
        code = rounded.to(tl.float32)
        sum_xl = sum_xl + w * x * code
        sum_ll = sum_ll + w * code * code
    for round in range(5 * N):
        i = round % N
        x = tl.load(x_at + i * lanes, mask=here, other=0.0)
        w = tl.load(w_at + i * lanes, mask=here, other=0.0)
        old = tl.sum(tl.where(across == i, codes, 0.0), axis=1)
        rest_xl = sum_xl - w * x * old
        rest_ll = sum_ll - w * old * old
        rounded = _at_most(tl.div_rn(x * rest_ll, rest_xl), most)
        new = rounded.to(tl.float32)
        new_xl = rest_xl + w * x * new
        new_ll = rest_ll + w * new * new
        better = (rest_xl > 0.0) & (rest_ll > 0.0) & (new != old)
        better = better & (new_xl * new_xl * sum_ll > sum_xl * sum_xl * new_ll)
        codes = tl.where(better[:, None] & (across == i), _byte(rounded)[:, None], codes)
        sum_xl = tl.where(better, new_xl, sum_xl)
        sum_ll = tl.where(better, new_ll, sum_ll)
    zero = peak < 1e-15
    scale = tl.where(sum_ll > 0.0, tl.div_rn(sum_xl, sum_ll), 0.0)
    tl.store(scales_at + lane, tl.where(zero, 0.0, scale), mask=here)
    at = codes_at + lane[:, None] + across * lanes
    codes = tl.where(zero[:, None], 0.0, codes)
    tl.store(at, codes.to(tl.int32), mask=here[:, None] & (across < N))
