"""Block decoders give the float32 values of llama.cpp's own libggml, bit for bit."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.formats.gguf.block_samples import weights
from tests.oracles import libggml
from zenconvert.ggml import blocks
from zenconvert.ggml.types import BY_NAME, GgmlType

# Where the float16 scales stand whose exponent random bytes must not set to that of NaN and inf.
SCALES_AT = {
    **dict.fromkeys(("q4_0", "q5_0", "q8_0", "q1_0", "q2_0", "iq4_nl", "iq4_xs"), (0,)),
    **dict.fromkeys(("iq1_s", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "f16"), (0,)),
    **dict.fromkeys(("q4_1", "q5_1", "q4_k", "q5_k"), (0, 2)),
    "q2_k": (80, 82),
    "q3_k": (108,),
    "q6_k": (208,),
    "tq1_0": (52,),
    "tq2_0": (64,),
    "iq1_m": (54,),
    "bf16": (0,),
    "mxfp4": (),
    "nvfp4": (),
}
INTEGERS = {"i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64}
ROWS = 5


def random_blocks(
    ggml_type: GgmlType, columns: int, scales_at: tuple[int, ...]
) -> NDArray[np.uint8]:
    rng = np.random.default_rng(3)
    shape = (ROWS, columns // ggml_type.block_size, ggml_type.type_size)
    encoded = rng.integers(0, 256, shape, dtype=np.uint8)
    for at in scales_at:
        encoded[:, :, at + 1] &= 0xBF
    return encoded.reshape(ROWS, -1)


def assert_same_bits(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("type_name", SCALES_AT)
def test_random_bytes_decode_as_in_libggml(type_name: str) -> None:
    columns = 25 * 256
    encoded = random_blocks(BY_NAME[type_name], columns, SCALES_AT[type_name])
    assert_same_bits(
        blocks.decode(type_name, encoded, columns), libggml.dequantize(type_name, encoded, columns)
    )


@pytest.mark.parametrize("sample", ["gaussian", "sparse", "tiny", "large"])
@pytest.mark.parametrize("type_name", [t for t in SCALES_AT if not t.startswith(("iq1", "iq2_x"))])
def test_encoded_weights_decode_as_in_libggml(type_name: str, sample: str) -> None:
    encoded = libggml.quantize(type_name, weights(sample, 3, 512))
    assert_same_bits(
        blocks.decode(type_name, encoded, 512), libggml.dequantize(type_name, encoded, 512)
    )


def test_every_type_is_decoded() -> None:
    tested = {*SCALES_AT, *INTEGERS, "f32", "f64", "q8_k", "q8_1"}
    assert {name for name in BY_NAME if blocks.can_decode(name)} == tested == set(BY_NAME)


def test_q8_1_decodes_as_q8_0_without_the_sum() -> None:
    """libggml has no to_float for Q8_1, which holds activations; its codes are those of Q8_0."""
    plain = libggml.quantize("q8_0", weights("gaussian", 3, 512)).reshape(-1, 34)
    with_sum = np.concatenate(
        [plain[:, :2], np.full((len(plain), 2), 7, np.uint8), plain[:, 2:]], 1
    )
    assert_same_bits(
        blocks.decode("q8_1", with_sum.reshape(3, -1), 512),
        libggml.dequantize("q8_0", plain.reshape(3, -1), 512),
    )


def test_q8_k_decodes_as_in_libggml() -> None:
    encoded = random_blocks(BY_NAME["q8_k"], 512, (2,))
    expected = np.empty((ROWS, 512), dtype=np.float32)
    libggml.library().dequantize_row_q8_K(
        encoded.ctypes.data_as(ctypes.c_void_p),
        expected.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(expected.size),
    )
    assert_same_bits(blocks.decode("q8_k", encoded, 512), expected)


@pytest.mark.parametrize("type_name", INTEGERS)
def test_integers(type_name: str) -> None:
    encoded = random_blocks(BY_NAME[type_name], 64, ())
    expected = encoded.view(INTEGERS[type_name]).astype(np.float32)
    assert_same_bits(blocks.decode(type_name, encoded, 64), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats(dtype: type[np.floating]) -> None:
    numbers = np.array([[0.1, -0.0, 1e-45, 3e38, np.inf, -1.5]], dtype=dtype)
    encoded = numbers.view(np.uint8)
    name = f"f{8 * numbers.itemsize}"
    assert_same_bits(blocks.decode(name, encoded, 6), numbers.astype(np.float32))


def test_float64_beyond_float32_is_infinite() -> None:
    encoded = np.array([[1e300, -1e300]]).view(np.uint8)
    assert blocks.decode("f64", encoded, 2).tolist() == [[np.inf, -np.inf]]
