"""Made-up weights, the same on every machine, and a writer of safetensors files."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
_NUMPY = {
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "U8": "u1",
    "F8_E4M3": "u1",
    "I8": "i1",
    "I32": "<i4",
    "I64": "<i8",
}


@dataclass(frozen=True)
class Stored:
    """An array as a safetensors file holds it; BF16 and FP8 as their codes."""

    dtype: str
    data: Array


def noise(key: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Numbers in [-1, 1) that depend on `key` and shape alone (splitmix64)."""
    n = int(np.prod(shape))
    with np.errstate(over="ignore"):
        z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(zlib.crc32(key.encode()) * 0x100000001)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return ((z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)).reshape(shape)


def weights(key: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Values that keep activations of order one: norms about one, matrices scaled by their width.

    Decay rates start as the models do, from the logarithms of 1, 2, ..., whose exponentials are exact everywhere.
    """
    if key.endswith("A_log"):
        return np.broadcast_to(np.log(np.arange(1, shape[-1] + 1, dtype=np.float32)), shape)
    values = noise(key, shape)
    if len(shape) <= 1:
        return np.float32(1) + np.float32(0.1) * values if "norm" in key else np.float32(0.1) * values
    return values * np.float32((3.0 / shape[-1]) ** 0.5)


def store(values: npt.NDArray[np.float32], dtype: str) -> Stored:
    """Float values in one of the float storage types; BF16 by cutting off the low half."""
    if dtype == "BF16":
        codes = (np.ascontiguousarray(values, dtype="<f4").view("<u4") >> 16).astype("<u2")
        return Stored(dtype, codes.reshape(values.shape))
    return Stored(dtype, values.astype(_NUMPY[dtype]))


def codes(key: str, shape: tuple[int, ...], dtype: str) -> Stored:
    """Arbitrary codes of an integer or FP8 type; no FP8 NaN."""
    levels = ((noise(key, shape).astype(np.float64) + 1) / 2 * 256).astype(np.uint8)
    if dtype == "F8_E4M3":
        levels[(levels & 0x7F) == 0x7F] = 0
        return Stored(dtype, levels)
    if dtype == "I32":
        parts = [codes(f"{key}{i}", shape, "U8").data.astype(np.uint32) << (8 * i) for i in range(4)]
        return Stored(dtype, np.bitwise_or.reduce(parts).astype("<u4").view("<i4"))
    return Stored(dtype, levels.view(_NUMPY[dtype]))


def write_safetensors(path: Path, tensors: Mapping[str, Stored]) -> None:
    """Write a file with the tensors in the given order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, tensor in tensors.items():
        end = begin + tensor.data.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.data.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor.data).tobytes())
