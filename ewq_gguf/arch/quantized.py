"""Checkpoints that are quantized already: FP8, INT8 and packed integers with scales, seen as float rows.

Formulas: conversion/base.py (dequant_model) of llama.cpp; the products are formed in float32 as there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ewq_gguf.checkpoint.tensor import AnyArray, DType, F32Array, Tensor
from ewq_gguf.errors import UnsupportedModelError

_UNUSED = (".activation_scale", "_activation_scale", ".qscale_act", ".input_scale", ".k_scale", ".v_scale")
_PLAIN_FORMATS = ("float-quantized", "int-quantized", "naive-quantized")


class Scaled(Tensor):
    """Codes times scales, float32; the scales belong to single rows, to blocks, or to the whole tensor."""

    def __init__(self, source: Tensor, scale: Tensor, block: Sequence[int] | None = None) -> None:
        """`block`: entries per scale along the last dimensions; without it `scale` is broadcast from the left.

        Raises:
            UnsupportedModelError: the shapes do not belong together.
        """
        self.shape = source.shape
        self.dtype = DType.F32
        self._source = source
        self._scale = scale
        self._scale_shape = (*scale.shape, *(1,) * (len(source.shape) - len(scale.shape)))
        self._steps = _steps(source.shape, self._scale_shape, tuple(block or ()))

    def raw_rows(self, start: int, stop: int) -> AnyArray:
        codes = self._source.rows(start, stop)
        *outer, inner = self._steps
        index: npt.NDArray[np.intp] = np.zeros(stop - start, dtype=np.intp)
        if outer:
            where = np.unravel_index(np.arange(start, stop), self.shape[:-1])
            places = [axis // step for axis, step in zip(where, outer)]
            index = np.ravel_multi_index(places, self._scale_shape[:-1])
        scales = self._scales(index)
        if scales.shape[1] * inner == self.row_length:
            return (codes.reshape(*scales.shape, inner) * scales[..., None]).reshape(codes.shape)
        return codes * np.repeat(scales, inner, axis=1)[:, : self.row_length]

    def _scales(self, index: npt.NDArray[np.intp]) -> F32Array:
        """Rows of the scale tensor seen as (outer entries, entries along a row), float32."""
        length = self._scale_shape[-1]
        if len(index) == 0:
            return np.ones((0, length), dtype=np.float32)
        lower, upper = int(index.min()), int(index.max()) + 1
        # A scale of fewer dimensions than the weight has rows of another length than we index by.
        own = self._scale.row_length
        first, last = lower * length // own, -(-upper * length // own)
        flat = self._scale.rows(first, last).reshape(-1)[lower * length - first * own :]
        return flat[: (upper - lower) * length].reshape(-1, length)[index - lower]


def _steps(shape: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, ...]) -> tuple[int, ...]:
    """Entries of the weight per entry of the scale, for each dimension."""
    problem = UnsupportedModelError(
        f"a scale of shape {list(scale)} does not fit a weight of shape {list(shape)}"
        + (f" in blocks of {list(block)}" if block else "")
    )
    if len(scale) != len(shape) or len(block) > len(shape) or any(b <= 0 for b in block):
        raise problem
    padded = (*(0,) * (len(shape) - len(block)), *block)
    steps = []
    for n, m, b in zip(shape, scale, padded):
        if b:
            if m * b < n:
                raise problem
            steps.append(b)
        elif m in (n, 1):
            steps.append(1 if m == n else max(n, 1))
        else:
            raise problem
    return tuple(steps)


class Packed(Tensor):
    """Unsigned integers packed into 32-bit words along each row, less an offset, times a scale per group."""

    def __init__(
        self, words: Tensor, scale: Tensor, zero: Tensor | None, shape: tuple[int, int], bits: int, group: int
    ) -> None:
        """`zero`: offsets packed alike along the first dimension, or None for the middle of the range.

        Raises:
            UnsupportedModelError: the shapes do not belong together.
        """
        per_word = 32 // bits
        groups = -(-shape[1] // group)
        if words.shape != (shape[0], -(-shape[1] // per_word)) or scale.shape != (shape[0], groups):
            raise UnsupportedModelError(
                f"packed weights {list(words.shape)} and scales {list(scale.shape)} do not make {list(shape)} "
                f"of {bits} bits in groups of {group}"
            )
        self.shape = shape
        self.dtype = DType.F32
        self._words, self._scale, self._zero = words, scale, zero
        self._bits, self._group = bits, group

    def raw_rows(self, start: int, stop: int) -> AnyArray:
        codes = self._unpack(self._words.raw_rows(start, stop))[:, : self.shape[1]]
        scales = np.repeat(self._scale.rows(start, stop), self._group, axis=1)[:, : self.shape[1]]
        return ((codes - self._offsets(start, stop)).astype(np.float32) * scales).astype(
            np.float32, copy=False
        )

    def _unpack(self, words: AnyArray) -> npt.NDArray[np.int32]:
        shifts = np.arange(32 // self._bits, dtype=np.int32) * self._bits
        mask = np.int32((1 << self._bits) - 1)
        codes = (words.astype(np.int32)[..., None] >> shifts) & mask
        return codes.reshape(len(words), -1)

    def _offsets(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        if self._zero is None:
            return np.full((1, 1), 1 << (self._bits - 1), dtype=np.int32)
        per_word = 32 // self._bits
        first = start // per_word
        words = self._zero.raw_rows(first, -(-stop // per_word))
        shifts = (np.arange(per_word, dtype=np.int32) * self._bits)[None, :, None]
        codes = (words.astype(np.int32)[:, None, :] >> shifts) & np.int32((1 << self._bits) - 1)
        rows = codes.reshape(-1, words.shape[1])[start - first * per_word : stop - first * per_word]
        return np.repeat(rows, self._group, axis=1)[:, : self.shape[1]]


def dequantized(sources: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The sources with every quantized weight seen as floats and its scales gone.

    Args:
        config: config.json; its `quantization_config` says how the weights are stored.

    Raises:
        UnsupportedModelError: a way of quantizing that is not read.
    """
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return dict(sources)
    method = quantization.get("quant_method")
    if method == "mxfp4" or method is None:
        return dict(sources)
    if method == "fp8":
        return _with_scales(sources, ("_scale_inv",), _block(quantization.get("weight_block_size")))
    if method == "modelopt" and quantization.get("quant_algo") == "FP8":
        return _with_scales(sources, ("_scale",), None)
    if method == "compressed-tensors":
        return _compressed_tensors(sources, quantization)
    algorithm = quantization.get("quant_algo")
    raise UnsupportedModelError(
        f"config.json says the weights are quantized with {method!r:.60}"
        + (f" ({algorithm!s:.40})" if algorithm else "")
        + ", which cannot be read; download the original 16-bit checkpoint instead"
    )


def _block(value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    if isinstance(value, Sequence) and all(isinstance(n, int) and 0 < n < 2**31 for n in value):
        return tuple(value)
    raise UnsupportedModelError(
        f"config.json gives quantization blocks {value!r:.60}; expected whole numbers"
    )


def _with_scales(
    sources: Mapping[str, Tensor], suffixes: Iterable[str], block: tuple[int, ...] | None
) -> dict[str, Tensor]:
    """Weights that have a companion named with one of the suffixes, multiplied by it."""
    found = {name: tensor for name, tensor in sources.items() if not name.endswith(_UNUSED)}
    for suffix in suffixes:
        for name in [n for n in found if n.endswith(suffix)]:
            scale = found.pop(name)
            weight = name.removesuffix(suffix)
            if weight in found:
                found[weight] = Scaled(found[weight], scale, block)
    return found


def _compressed_tensors(sources: Mapping[str, Tensor], quantization: Mapping[str, Any]) -> dict[str, Tensor]:
    kind = quantization.get("format")
    groups = quantization.get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, Mapping) and len(groups) == 1 else None
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        raise UnsupportedModelError(
            "config.json describes compressed-tensors weights of several kinds or none, which cannot be read; "
            "download the original 16-bit checkpoint instead"
        )
    if kind in _PLAIN_FORMATS:
        return _with_scales(sources, ("_scale",), _block(weights.get("block_structure")))
    bits, size = weights.get("num_bits"), weights.get("group_size")
    integers = weights.get("type", "int") == "int" and weights.get("strategy") == "group"
    if kind == "pack-quantized" and integers and bits in (2, 4, 8) and isinstance(size, int) and size > 0:
        return _unpacked(sources, bits, size)
    raise UnsupportedModelError(
        f"config.json says the weights are stored as compressed-tensors {kind!r:.60} with "
        f"{bits!r:.10} bits, which cannot be read; download the original 16-bit checkpoint instead"
    )


def _unpacked(sources: Mapping[str, Tensor], bits: int, group: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    packed = [name.removesuffix("_packed") for name in sources if name.endswith(".weight_packed")]
    used = {base + part for base in packed for part in ("_packed", "_scale", "_shape", "_zero_point")}
    for name, tensor in sources.items():
        base = name.removesuffix("_packed")
        if name not in used:
            found[name] = tensor
        elif name.endswith(".weight_packed"):
            scale, shape = sources.get(f"{base}_scale"), sources.get(f"{base}_shape")
            if scale is None or shape is None or shape.n_elements != 2:
                raise UnsupportedModelError(
                    f"{name} has no scale or shape beside it; download the checkpoint again"
                )
            rows, columns = (int(n) for n in shape.raw_rows(0, 1).reshape(-1))
            found[base] = Packed(
                tensor, scale, sources.get(f"{base}_zero_point"), (rows, columns), bits, group
            )
    return found
