"""Rotary embedding parameters in both config generations, and the frequency factors of Llama 3.1.

`rope_theta` and `rope_scaling` (checkpoints up to 2025) and the newer `rope_parameters` end up in one
dictionary, as in conversion/base.py (TextModel.__init__ and set_gguf_parameters).
"""

from __future__ import annotations

import math
from typing import Any

import gguf
import numpy as np

from ewq_gguf.arch.config import Config, finite
from ewq_gguf.checkpoint.tensor import F32Array
from ewq_gguf.errors import UnsupportedModelError

_THETA = ("global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta", "rotary_emb_base")
_LOCAL_THETA = (
    "local_rope_theta",
    "rope_local_theta",
    "rope_theta_local",
    "swa_rope_theta",
    "rope_local_base_freq",
)
# A factor is worked out for every pair of elements; the widest published heads have 576.
_WIDEST_HEAD = 1 << 16
# Without a value of its own, the reference library takes the model's full context as the original one.
_SCALED = ("llama3", "yarn", "longrope")


def rope_parameters(config: Config) -> dict[str, Any]:
    """The rope parameters with every older spelling mirrored into them."""
    found = config.section("rope_parameters", "rope_scaling")
    if "full_attention" in found or "sliding_attention" in found:
        return found
    older = {
        "rope_theta": config.number(*_THETA),
        "rope_type": found.get("type"),
        "partial_rotary_factor": config.number("partial_rotary_factor", "rope_pct", "rope_percent"),
        "original_max_position_embeddings": config.integer("original_max_position_embeddings"),
    }
    local = config.number(*_LOCAL_THETA)
    if local is not None:
        found["sliding_attention"] = {"rope_theta": local}
    for key, value in older.items():
        if value is not None and key not in found:
            found[key] = value
    if found.get("rope_type") in _SCALED and "original_max_position_embeddings" not in found:
        found["original_max_position_embeddings"] = config.integer("max_position_embeddings")
    return found


def full_attention(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters of full attention layers, where a config keeps them apart from sliding ones."""
    nested = parameters.get("full_attention", parameters)
    return dict(nested) if isinstance(nested, dict) else {}


def add_rope(writer: gguf.GGUFWriter, parameters: dict[str, Any]) -> None:
    """Write scaling type, factor, base frequency and their companions."""
    full = full_attention(parameters)
    kind, factor = full.get("rope_type"), full.get("factor")
    if kind is not None and not isinstance(kind, str):
        raise UnsupportedModelError(f"config.json gives rope_type = {kind!r:.60}; expected a name")
    if kind == "linear" and factor is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(finite(factor, "rope factor"))
    elif kind == "yarn" and factor is not None:
        _add_yarn(writer, full, finite(factor, "rope factor"))
    elif kind in ("su", "longrope"):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    sections = parameters.get("mrope_section")
    if sections is not None:
        if not isinstance(sections, list) or not all(isinstance(n, int) for n in sections):
            raise UnsupportedModelError(
                f"config.json gives mrope_section = {sections!r:.60}; expected numbers"
            )
        writer.add_rope_dimension_sections([*sections, 0, 0, 0, 0][:4])
    if (theta := full.get("rope_theta")) is not None:
        writer.add_rope_freq_base(finite(theta, "rope_theta"))
    sliding = parameters.get("sliding_attention")
    if isinstance(sliding, dict) and (theta := sliding.get("rope_theta")) is not None:
        writer.add_rope_freq_base_swa(finite(theta, "rope_theta of sliding attention"))


def _add_yarn(writer: gguf.GGUFWriter, full: dict[str, Any], factor: float) -> None:
    original = full.get("original_max_position_embeddings")
    if original is None:
        raise UnsupportedModelError("config.json asks for yarn without original_max_position_embeddings")
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(factor)
    writer.add_rope_scaling_orig_ctx_len(int(finite(original, "original_max_position_embeddings")))
    attention = full.get("attention_factor", full.get("attn_factor"))
    for value, add in (
        (full.get("extrapolation_factor"), writer.add_rope_scaling_yarn_ext_factor),
        (attention, writer.add_rope_scaling_yarn_attn_factor),
        (full.get("beta_fast"), writer.add_rope_scaling_yarn_beta_fast),
        (full.get("beta_slow"), writer.add_rope_scaling_yarn_beta_slow),
    ):
        if value is not None:
            add(finite(value, "a yarn parameter"))


def llama3_factors(parameters: dict[str, Any], head_dim: int) -> F32Array | None:
    """Frequency factors of Llama 3.1's scaling, float32 (head_dim / 2,), or None when it is not in use.

    Long wavelengths are stretched by `factor`, short ones kept, the rest blended; single precision where
    conversion/llama.py (generate_extra_tensors) works in single precision, so that the bits agree.
    """
    full = full_attention(parameters)
    if str(full.get("rope_type", "")).lower() != "llama3":
        return None
    base = finite(full.get("rope_theta", 10000.0), "rope_theta")
    factor = finite(full.get("factor", 8.0), "rope factor")
    low = finite(full.get("low_freq_factor", 1.0), "low_freq_factor")
    high = finite(full.get("high_freq_factor", 4.0), "high_freq_factor")
    original = finite(full.get("original_max_position_embeddings", 8192), "original_max_position_embeddings")
    if head_dim > _WIDEST_HEAD:
        raise UnsupportedModelError(
            f"config.json gives head_dim = {head_dim:,} or what makes it; no attention head is wider than {_WIDEST_HEAD:,}"
        )
    if not (base > 0 and factor > 0 and low > 0 and high > 0):
        raise UnsupportedModelError("config.json gives llama3 rope factors that are not positive")
    single = np.float32
    exponents = np.arange(0, head_dim, 2, dtype=single) / single(head_dim)
    # The power is rounded once, from double precision: the reference's own last bit depends on the CPU.
    frequencies = single(1.0) / np.power(float(base), exponents.astype(np.float64)).astype(single)
    factors = []
    for frequency in frequencies:
        wavelength = (single(1.0) / frequency) * single(2 * math.pi)
        if wavelength < original / high:
            factors.append(single(1.0))
        elif wavelength > original / low or high == low:
            factors.append(single(factor))
        else:
            smooth = ((single(1.0) / wavelength) * single(original) - single(low)) / single(high - low)
            factors.append(single(1.0) / ((single(1.0) - smooth) / single(factor) + smooth))
    return np.array(factors, dtype=np.float32)
