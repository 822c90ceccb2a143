"""MLX: mx.load of a GGUF file; what it can keep quantized it hands out as codes, scales and biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from answer import request, serve

wish = request()

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402


def read(item: dict[str, Any]) -> dict[str, Any]:
    arrays = mx.load(item["file"])
    found = {}
    for name, array in arrays.items():
        if name.endswith((".scales", ".biases")):
            continue
        stem = name.removesuffix(".weight")
        if f"{stem}.scales" in arrays:
            scales, biases = arrays[f"{stem}.scales"], arrays[f"{stem}.biases"]
            bits = array.shape[-1] // scales.shape[-1]
            array = mx.dequantize(array, scales, biases, group_size=32, bits=bits)
        found[name] = np.array(array.astype(mx.float32))
    path = Path(item["scratch"]) / f"{item['label']}.npz"
    np.savez(path, **found)
    return {"values": str(path)}


serve(wish, read)
