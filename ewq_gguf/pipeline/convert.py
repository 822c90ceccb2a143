"""The main job: read a model, quantize it as a plan says, write one GGUF file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf

from ewq_gguf._version import __version__
from ewq_gguf.allocation.plan import Plan
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.model import Model
from ewq_gguf.pipeline.quantize import ImportanceWeights, quantize_tensors
from ewq_gguf.pipeline.writer import atomic_file, check_target, header_bytes, padded

Progress = Callable[[int, int], None]

_FILE_TYPES = {
    GGMLType.F32: gguf.LlamaFileType.ALL_F32,
    GGMLType.Q2_K: gguf.LlamaFileType.MOSTLY_Q2_K,
    GGMLType.Q3_K: gguf.LlamaFileType.MOSTLY_Q3_K_M,
    GGMLType.Q4_K: gguf.LlamaFileType.MOSTLY_Q4_K_M,
    GGMLType.Q5_K: gguf.LlamaFileType.MOSTLY_Q5_K_M,
}


@dataclass(frozen=True)
class Conversion:
    """What was written: path, its bytes, the plan, and parameters in the model."""

    path: Path
    nbytes: int
    plan: Plan
    n_parameters: int

    @property
    def bpw(self) -> float:
        """Bits per weight over all tensors, header not counted."""
        return self.plan.bpw


def default_threads() -> int:
    """The cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def file_type(plan: Plan) -> int:
    """`general.file_type`: the number of the type that most weights have (llama.h, enum llama_ftype)."""
    weights: Counter[GGMLType] = Counter()
    for t in plan.tensors:
        if len(t.shape) >= 2 and t.type is not GGMLType.MXFP4:
            weights[t.type] += t.n_elements
    kind = weights.most_common(1)[0][0] if weights else GGMLType.F32
    if kind.is_float and any(t.type is GGMLType.MXFP4 for t in plan.tensors):
        return int(gguf.LlamaFileType.MOSTLY_MXFP4_MOE)
    known = _FILE_TYPES.get(kind)
    if known is None:
        known = getattr(gguf.LlamaFileType, f"MOSTLY_{kind.name}", gguf.LlamaFileType.MOSTLY_F16)
    return int(known)


def file_metadata(model: Model, plan: Plan) -> dict[str, gguf.GGUFValue]:
    """The model's metadata with file type, quantization version and our provenance keys."""
    writer = gguf.GGUFWriter(None, model.arch)
    for key, value in model.metadata.items():
        if key != "general.architecture":
            writer.add_key_value(key, value.value, value.type, value.sub_type)
    writer.add_file_type(file_type(plan))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string("ewq.version", __version__)
    writer.add_string("ewq.method", plan.method)
    writer.add_string("ewq.parameters", json.dumps(plan.parameters, sort_keys=True))
    writer.add_string("ewq.source", plan.fingerprint)
    return dict(writer.kv_data[0])


def file_size(model: Model, plan: Plan) -> int:
    """Exact bytes of the file that `write_model` would write; nothing is read but headers."""
    header = header_bytes(model.arch, file_metadata(model, plan), model.tensors, plan.types())
    return len(header) + sum(padded(t.nbytes) for t in plan.tensors)


def write_model(
    model: Model,
    plan: Plan,
    target: Path,
    *,
    threads: int | None = None,
    imatrix: ImportanceWeights | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Quantize a model as planned and write it; the same bytes for any number of threads.

    Args:
        imatrix: column weights per tensor, float32 (n_matrices, row_length).
        progress: called with (weights done, weights in all).

    Raises:
        CheckpointError: a weight is not finite, or the source changed.
        QuantizationError: no space, no permission, or ggml cannot make a type.
    """
    target = Path(target)
    types = plan.types()
    header = header_bytes(model.arch, file_metadata(model, plan), model.tensors, types)
    size = len(header) + sum(padded(t.nbytes) for t in plan.tensors)
    check_target(target, size)
    done, total = 0, model.n_parameters
    with atomic_file(target) as file:
        file.write(header)
        chunks = quantize_tensors(model.tensors, types, threads=threads or default_threads(), imatrix=imatrix)
        for chunk in chunks:
            file.write(chunk.data.data)
            tensor = model.tensors[chunk.index]
            if chunk.stop == tensor.n_rows:
                nbytes = plan.tensors[chunk.index].nbytes
                file.write(bytes(padded(nbytes) - nbytes))
            done += (chunk.stop - chunk.start) * tensor.row_length
            if progress is not None:
                progress(done, total)
    return Conversion(target, size, plan, total)
