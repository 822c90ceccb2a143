"""Mixture-of-experts tensors: one file entry per expert becomes one stacked tensor per projection."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ewq_gguf.arch.views import stack, take
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError

_EXPERT = re.compile(r"^(?P<prefix>.*\bexperts)\.(?P<index>\d{1,6})\.(?P<projection>\w+)\.weight$")


def merge_experts(sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace `...experts.N.PROJECTION.weight` by `...experts.PROJECTION.weight` of shape (experts, rows, columns).

    Raises:
        UnsupportedModelError: an expert of a layer is missing, or its shape is another than its siblings'.
    """
    merged: dict[str, Tensor] = {}
    groups: dict[str, dict[int, Tensor]] = {}
    for name, tensor in sources.items():
        match = _EXPERT.match(name)
        if match is None:
            merged[name] = tensor
            continue
        group = f"{match['prefix']}.{match['projection']}.weight"
        groups.setdefault(group, {})[int(match["index"])] = tensor
        merged.setdefault(group, tensor)
    for group, experts in groups.items():
        missing = next((i for i in range(len(experts)) if i not in experts), None)
        if missing is not None:
            raise UnsupportedModelError(
                f"{group} is incomplete: expert {missing} is missing; download the checkpoint again"
            )
        if len({expert.shape for expert in experts.values()}) > 1:
            raise UnsupportedModelError(f"the experts of {group} differ in shape; they cannot be stacked")
        merged[group] = stack([experts[i] for i in range(len(experts))])
    return merged


def split_gate_up(name: str, tensor: Tensor, *, interleaved: bool = False) -> Iterable[tuple[str, Tensor]]:
    """Gate and up projections out of a fused `...gate_up_proj`, whose rows hold all of gate, then all of up.

    Args:
        tensor: shape (..., 2 * intermediate, hidden), or (..., 2 * intermediate) for a bias kept as 1-d rows.
        interleaved: gate and up alternate row by row instead.

    Raises:
        UnsupportedModelError: an odd number of rows.
    """
    rows = tensor.shape[-2]
    if rows % 2:
        raise UnsupportedModelError(f"{name} has {rows} rows, which cannot be halved into gate and up")
    gate, up = (
        (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(rows // 2), slice(rows // 2, None))
    )
    return [
        (name.replace("gate_up_proj", "gate_proj"), take(tensor, gate)),
        (name.replace("gate_up_proj", "up_proj"), take(tensor, up)),
    ]
