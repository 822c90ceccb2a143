"""libgguf: an independent implementation of the formats: its validator first, then its dequantizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from answer import request, serve

wish = request()

import libgguf  # noqa: E402
import numpy as np  # noqa: E402
from libgguf.inspect import inspect_gguf, validate_gguf  # noqa: E402


def read(item: dict[str, Any]) -> dict[str, Any]:
    verdict = validate_gguf(item["file"])
    if not verdict.ok:
        raise ValueError(f"gguf-validate: {verdict.errors[0].message}")
    header = inspect_gguf(item["file"], max_array_values=0)
    whole = np.memmap(item["file"], dtype=np.uint8, mode="r")
    found = {}
    for tensor in header.tensors:
        bytes_ = np.array(whole[tensor.data_offset : tensor.data_offset + (tensor.nbytes or 0)])
        found[tensor.name] = decoded(bytes_, tensor)
    path = Path(item["scratch"]) / f"{item['label']}.npz"
    np.savez(path, **found)
    return {"values": str(path)}


def decoded(data: np.ndarray, tensor: Any) -> np.ndarray:
    """Values of a tensor; floats, which it has no code for, are what they are."""
    if tensor.qtype in ("F32", "F16"):
        return data.view("<f4" if tensor.qtype == "F32" else "<f2")
    if tensor.qtype == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    rows = data.reshape(int(np.prod(tensor.shape[1:], dtype=np.int64)), -1)
    return libgguf.dequantize_rows(rows, tensor.qtype_value, tensor.shape[0])


serve(wish, read)
