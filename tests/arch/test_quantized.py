"""Already-quantized weights against whole-array numpy, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ewq_gguf.arch.mxfp4 import Mxfp4
from ewq_gguf.arch.quantized import Packed, Scaled, dequantized
from ewq_gguf.checkpoint.tensor import ArrayTensor, DType, Tensor, to_float32
from ewq_gguf.errors import CheckpointError, UnsupportedModelError
from ewq_gguf.ggml import GGMLType, ggml

RNG = np.random.default_rng(3)


def fp8(*shape: int) -> Tensor:
    return ArrayTensor(RNG.integers(0, 0x7F, shape, dtype=np.uint8), DType.F8_E4M3)


def scale(*shape: int) -> npt.NDArray[np.float32]:
    return RNG.random(shape, dtype=np.float32)


def whole(tensor: Tensor) -> npt.NDArray[np.float32]:
    return tensor.rows(0, tensor.n_rows).reshape(tensor.shape)


def in_pieces(tensor: Tensor) -> npt.NDArray[np.float32]:
    return np.concatenate([tensor.rows(i, i + 1) for i in range(tensor.n_rows)]).reshape(tensor.shape)


def test_blocks_of_scales() -> None:
    codes, scales = fp8(10, 12), scale(3, 3)
    spread = scales.repeat(4, axis=0)[:10].repeat(5, axis=1)[:, :12]
    view = Scaled(codes, ArrayTensor(scales), (4, 5))
    np.testing.assert_array_equal(whole(view), whole(codes) * spread)
    np.testing.assert_array_equal(in_pieces(view), whole(view))


def test_blocks_of_scales_in_a_stack() -> None:
    codes, scales = fp8(3, 5, 6), scale(3, 2, 2)
    spread = scales.repeat(4, axis=1)[:, :5].repeat(3, axis=2)
    view = Scaled(codes, ArrayTensor(scales), (4, 3))
    np.testing.assert_array_equal(whole(view), whole(codes) * spread)
    np.testing.assert_array_equal(in_pieces(view), whole(view))


@pytest.mark.parametrize("shape", [(), (1,), (6,), (6, 1), (1, 1), (6, 4)])
def test_scales_without_blocks(shape: tuple[int, ...]) -> None:
    codes, scales = fp8(6, 4), scale(*shape)
    expected = whole(codes) * (scales.reshape(-1, 1) if scales.ndim == 1 else scales)
    view = Scaled(codes, ArrayTensor(scales), None)
    np.testing.assert_array_equal(whole(view), expected)
    np.testing.assert_array_equal(in_pieces(view), expected)


@pytest.mark.parametrize(("shape", "block"), [((2, 2), (2, 2)), ((3,), None), ((1, 1, 1), None)])
def test_scales_of_another_shape_are_refused(shape: tuple[int, ...], block: tuple[int, int] | None) -> None:
    with pytest.raises(UnsupportedModelError, match="does not fit"):
        Scaled(fp8(6, 4), ArrayTensor(scale(*shape)), block)


@pytest.mark.parametrize("with_zero", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_integers(bits: int, with_zero: bool) -> None:
    rows, columns, group, per_word = 11, 24, 8, 32 // bits
    codes = RNG.integers(0, 1 << bits, (rows, columns))
    shifts = np.arange(per_word) * bits
    words = (codes.reshape(rows, -1, per_word) << shifts).sum(axis=2).astype(np.uint32).view(np.int32)
    scales = scale(rows, columns // group)
    zeros = RNG.integers(0, 1 << bits, (-(-rows // per_word) * per_word, columns // group))
    packed = (zeros.reshape(-1, per_word, columns // group) << shifts[:, None]).sum(axis=1)
    offset = zeros[:rows].repeat(group, axis=1) if with_zero else 1 << (bits - 1)
    zero = ArrayTensor(packed.astype(np.uint32).view(np.int32)) if with_zero else None
    view = Packed(ArrayTensor(words), ArrayTensor(scales), zero, (rows, columns), bits, group)
    expected = (codes - offset).astype(np.float32) * scales.repeat(group, axis=1)
    np.testing.assert_array_equal(whole(view), expected)
    np.testing.assert_array_equal(in_pieces(view), expected)


def test_mxfp4_bytes_mean_to_ggml_what_the_view_says() -> None:
    blocks = RNG.integers(0, 256, (2, 3, 2, 16), dtype=np.uint8)
    scales = RNG.integers(110, 140, (2, 3, 2), dtype=np.uint8)
    view = Mxfp4("experts", ArrayTensor(blocks), ArrayTensor(scales))
    assert view.shape == (2, 3, 64)
    encoded = view.encoded_rows(0, 6)
    assert encoded.shape == (6, GGMLType.MXFP4.row_bytes(64))
    np.testing.assert_array_equal(ggml().dequantize(GGMLType.MXFP4, encoded, 64), whole(view).reshape(6, 64))
    first = int(blocks[0, 0, 0, 0])
    exponent = to_float32(scales[0, 0, :1], DType.F8_E8M0)[0]
    assert whole(view)[0, 0, 0] == [0, 0.5, 1, 1.5, 2, 3, 4, 6][first & 7] * exponent * (-1) ** (
        first >> 3 & 1
    )
    np.testing.assert_array_equal(view.encoded_rows(4, 5), encoded[4:5])


def test_mxfp4_refuses_nan_and_foreign_shapes() -> None:
    blocks = ArrayTensor(np.zeros((1, 2, 1, 16), dtype=np.uint8))
    scales = np.full((1, 2, 1), 127, dtype=np.uint8)
    scales[0, 1, 0] = 255
    with pytest.raises(CheckpointError, match="row 1"):
        Mxfp4("experts", blocks, ArrayTensor(scales)).encoded_rows(0, 2)
    with pytest.raises(UnsupportedModelError, match="do not belong together"):
        Mxfp4("experts", blocks, ArrayTensor(scales[:, :1]))


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "bitnet"},
        {"quant_method": "fp8", "weight_block_size": ["a"]},
        {"quant_method": "compressed-tensors"},
        {
            "quant_method": "compressed-tensors",
            "format": "nvfp4-pack-quantized",
            "config_groups": {"g": {"weights": {}}},
        },
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"g": {"weights": {}}},
        },
    ],
)
def test_what_cannot_be_read_is_refused_with_advice(quantization: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError):
        dequantized({}, {"quantization_config": quantization})


def test_scales_and_unused_companions_disappear() -> None:
    sources = {
        "a.weight": fp8(4, 4),
        "a.weight_scale_inv": ArrayTensor(scale(2, 2)),
        "a.activation_scale": ArrayTensor(scale(1)),
        "norm.weight": ArrayTensor(scale(4)),
    }
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 2]}}
    found = dequantized(sources, config)
    assert set(found) == {"a.weight", "norm.weight"}
    assert isinstance(found["a.weight"], Scaled)
    assert found["norm.weight"] is sources["norm.weight"]
