"""What each type does to each tensor's weights: squared errors, plain and weighted by the importance matrix.

The types are ggml's own quantizers, called as for the final file, so nothing is modelled. Of a large tensor
evenly spread rows are enough: the same rows serve every type, so that ratios between types keep their digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ewq_gguf.allocation.facts import fallback_type, quantizable, requires_imatrix
from ewq_gguf.allocation.plan import facts_of
from ewq_gguf.calibration.imatrix import ImportanceMatrix
from ewq_gguf.calibration.journal import Journal
from ewq_gguf.calibration.probe import LADDER
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml import GGMLType, ggml
from ewq_gguf.model import Model, ModelTensor

F32Array = npt.NDArray[np.float32]

_Q = GGMLType
# Types that every current client of llama.cpp reads, and those that are worth it with an importance matrix.
PLAIN_POOL = (_Q.Q2_K, _Q.Q3_K, _Q.Q4_K, _Q.Q5_K, _Q.Q6_K, _Q.Q8_0)
FULL_POOL = (
    _Q.IQ2_XXS, _Q.IQ2_XS, _Q.IQ2_S, _Q.Q2_K, _Q.IQ3_XXS, _Q.IQ3_S, _Q.Q3_K, _Q.IQ4_XS, _Q.Q4_K, _Q.Q5_K,
    _Q.Q6_K, _Q.Q8_0,
)  # fmt: skip
# Weights of a tensor that are looked at; ratios between types are good to a fraction of a percent then.
SAMPLE = 1 << 22
_PIECE = 1 << 16


@dataclass(frozen=True)
class Distortion:
    """Squared error of one tensor in one type, over the whole tensor.

    Attributes:
        plain: sum of (w - q)^2.
        weighted: sum of E[x_j^2] (w_ij - q_ij)^2; equal to `plain` without an importance matrix.
    """

    plain: float
    weighted: float


@dataclass(frozen=True)
class TensorDistortion:
    """All types' errors for one tensor.

    Attributes:
        energy: sum of w^2, the scale of `plain`.
        has_weights: whether `weighted` is what it says.
        types: in the order of the pool.
    """

    name: str
    energy: float
    has_weights: bool
    types: Mapping[GGMLType, Distortion]


def options_for(tensor: ModelTensor, pool: Sequence[GGMLType], has_weights: bool) -> tuple[GGMLType, ...]:
    """Types of the pool that a tensor can take; types that its rows do not fit give way to their stand-ins.

    Raises:
        PlanError: none is left.
    """
    found: list[GGMLType] = []
    for kind in pool:
        fitting = fallback_type(kind, tensor.row_length)
        if fitting is None or fitting in found:
            continue
        if requires_imatrix(tensor.name, fitting) and not has_weights:
            continue
        found.append(fitting)
    if not found:
        names = ", ".join(kind.name for kind in pool)
        raise PlanError(
            f"{tensor.name} (rows of {tensor.row_length}) can take none of the types {names}; "
            f"add a type such as Q8_0, or give an importance matrix"
        )
    return tuple(found)


def types_to_measure(pool: Sequence[GGMLType]) -> tuple[GGMLType, ...]:
    """The pool and the types that probes disturb with, without repetition."""
    return tuple(dict.fromkeys([*pool, *LADDER]))


def choosable(model: Model) -> list[ModelTensor]:
    """The tensors whose type is a choice: matrices that llama-quantize would quantize."""
    facts, tensors = facts_of(model)
    return [t for t in model.tensors if t.fixed is None and quantizable(tensors[t.name], facts)]


def measure_distortions(
    model: Model,
    pool: Sequence[GGMLType],
    *,
    imatrix: ImportanceMatrix | None = None,
    journal: Journal | None = None,
    n_threads: int = 1,
    sample: int = SAMPLE,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, TensorDistortion]:
    """Errors of every choosable tensor in every type of the pool that it can take.

    Args:
        imatrix: importance weights, for quantizing and for weighing errors.
        journal: keeps results; must belong to this model, importance matrix and sample.
        sample: weights per tensor that are looked at, at least.
        progress: called with (types done, types in all), a type counted once per tensor.

    Raises:
        PlanError: a tensor can take no type of the pool.
        CheckpointError: the source or the importance matrix does not fit.
        QuantizationError: ggml refuses.
    """
    journal = journal if journal is not None else Journal(None, "distortion", {})
    ggml()
    jobs: list[tuple[ModelTensor, GGMLType, F32Array | None]] = []
    for tensor in choosable(model):
        weights = _weights(tensor, imatrix)
        jobs += [(tensor, kind, weights) for kind in options_for(tensor, pool, weights is not None)]

    def work(job: tuple[ModelTensor, GGMLType, F32Array | None]) -> Mapping[str, float]:
        tensor, kind, weights = job
        return journal.get(_key(tensor, kind)) or _distortion(tensor, kind, weights, sample)

    results: dict[str, TensorDistortion] = {}
    with ThreadPoolExecutor(max(1, n_threads)) as threads:
        for done, (job, found) in enumerate(zip(jobs, threads.map(work, jobs)), start=1):
            tensor, kind, weights = job
            if _key(tensor, kind) not in journal:
                journal.add(_key(tensor, kind), found)
            before = results.get(tensor.name)
            types = dict(before.types) if before else {}
            types[kind] = Distortion(found["plain"], found["weighted"])
            results[tensor.name] = TensorDistortion(tensor.name, found["energy"], weights is not None, types)
            if progress is not None:
                progress(done, len(jobs))
    return results


def _key(tensor: ModelTensor, kind: GGMLType) -> str:
    return f"{tensor.name}|{kind.name}"


def _weights(tensor: ModelTensor, imatrix: ImportanceMatrix | None) -> F32Array | None:
    if imatrix is None or tensor.name not in imatrix:
        return None
    return imatrix.weights(tensor.name, tensor.row_length)


def _distortion(
    tensor: ModelTensor, kind: GGMLType, weights: F32Array | None, sample: int
) -> dict[str, float]:
    energy = plain = weighted = 0.0
    seen = 0
    per_matrix = tensor.shape[-2] if len(tensor.shape) >= 2 else 1
    for start, stop in sampled_rows(tensor, sample):
        rows = tensor.source.rows(start, stop)
        column = None if weights is None else weights[start // per_matrix if len(weights) > 1 else 0]
        decoded = ggml().dequantize(kind, ggml().quantize(kind, rows, column), tensor.row_length)
        squares = np.square(np.subtract(rows, decoded, dtype=np.float64)).sum(axis=0)
        energy += float(np.square(rows, dtype=np.float64).sum())
        plain += float(squares.sum())
        weighted += float(squares.sum() if column is None else squares @ column.astype(np.float64))
        seen += (stop - start) * tensor.row_length
    scale = tensor.n_elements / max(1, seen)
    return {"energy": energy * scale, "plain": plain * scale, "weighted": weighted * scale}


def sampled_rows(tensor: ModelTensor, sample: int) -> Iterator[tuple[int, int]]:
    """Row ranges, evenly spread over a tensor and its matrices, that hold about `sample` weights or all."""
    per_matrix = tensor.shape[-2] if len(tensor.shape) >= 2 else 1
    height = max(1, _PIECE // max(1, tensor.row_length))
    pieces = [
        (start, min(start + height, first + per_matrix))
        for first in range(0, tensor.n_rows, max(1, per_matrix))
        for start in range(first, first + per_matrix, height)
    ]
    wanted = math.ceil(len(pieces) * min(1.0, sample / max(1, tensor.n_elements)))
    for i in range(wanted):
        yield pieces[(2 * i + 1) * len(pieces) // (2 * wanted)]
