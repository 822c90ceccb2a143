"""The main job: read a model, quantize it as a plan says, write GGUF files."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from ewq_gguf._version import __version__
from ewq_gguf.allocation.plan import Plan, PlannedTensor
from ewq_gguf.allocation.presets import PRESETS
from ewq_gguf.errors import QuantizationError
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.ggml.variant import library_variant
from ewq_gguf.model import Model
from ewq_gguf.pipeline.header import HeaderTensor, header_bytes, padded
from ewq_gguf.pipeline.importance import Importance, column_weights, stored_as
from ewq_gguf.pipeline.memory import DEFAULT_MEMORY, budget, peak_rss
from ewq_gguf.pipeline.output import open_output
from ewq_gguf.pipeline.quantize import quantize_tensors
from ewq_gguf.pipeline.split import Split, split_metadata, split_paths, split_tensors
from ewq_gguf.pipeline.target import OutputFile, Slot, check_target

Progress = Callable[[int, int], None]
PLAN_KEY, CHECKSUM_PREFIX = "ewq.plan", "ewq.sha256."
_V = gguf.GGUFValueType

_FILE_TYPES = {
    GGMLType.F32: gguf.LlamaFileType.ALL_F32,
    GGMLType.Q2_K: gguf.LlamaFileType.MOSTLY_Q2_K,
    GGMLType.Q3_K: gguf.LlamaFileType.MOSTLY_Q3_K_M,
    GGMLType.Q4_K: gguf.LlamaFileType.MOSTLY_Q4_K_M,
    GGMLType.Q5_K: gguf.LlamaFileType.MOSTLY_Q5_K_M,
}


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        path: the file, or the first of several.
        paths: all files.
        nbytes: of all files.
        plan: the types they hold.
        n_parameters: of the model.
        resumed: tensors that an earlier run had finished.
        peak_rss: the most bytes this process has had in memory so far, if the system tells.
    """

    path: Path
    paths: tuple[Path, ...]
    nbytes: int
    plan: Plan
    n_parameters: int
    resumed: int = 0
    peak_rss: int | None = None

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
    """`general.file_type` (llama.h, enum llama_ftype): the preset's number, or that of the commonest type."""
    preset = PRESETS.get(str(plan.parameters.get("preset")))
    if plan.method == "preset" and preset is not None:
        return preset.llama_ftype
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


def file_metadata(
    model: Model, plan: Plan, importance: Importance | None = None, checksums: Mapping[str, str] | None = None
) -> dict[str, gguf.GGUFValue]:
    """The model's metadata with file type, quantization version and our provenance keys.

    Args:
        checksums: sha256 of each tensor's bytes, to be stored as well.
    """
    keys = {"general.architecture": gguf.GGUFValue(model.arch, _V.STRING), **model.metadata}
    keys["general.file_type"] = gguf.GGUFValue(file_type(plan), _V.UINT32)
    keys["general.quantization_version"] = gguf.GGUFValue(gguf.GGML_QUANT_VERSION, _V.UINT32)
    if importance is not None:
        keys |= importance.metadata()
    ours = {
        "ewq.version": __version__,
        "ewq.method": plan.method,
        "ewq.parameters": json.dumps(plan.parameters, sort_keys=True),
        "ewq.source": plan.fingerprint,
        "ewq.library": library_variant(),
        PLAN_KEY: stored_plan(plan),
        **{CHECKSUM_PREFIX + name: value for name, value in (checksums or {}).items()},
    }
    return keys | {key: gguf.GGUFValue(text, _V.STRING) for key, text in ours.items()}


def stored_plan(plan: Plan) -> str:
    """The plan as one line of JSON for the file's metadata: method, and name -> type."""
    content = {"method": plan.method, "tensors": {t.name: t.type.name for t in plan.tensors}}
    return json.dumps(content, separators=(",", ":"))


def output_files(
    model: Model,
    plan: Plan,
    target: Path,
    *,
    split: Split | None = None,
    importance: Importance | None = None,
    checksums: Mapping[str, str] | None = None,
) -> list[OutputFile]:
    """Names, headers and contents of the files a run writes: one, or several when `split` asks for them."""
    metadata = file_metadata(model, plan, importance, checksums)
    ranges = split_tensors([t.nbytes for t in plan.tensors], split)
    files = []
    for number, (path, (first, stop)) in enumerate(zip(split_paths(target, len(ranges), split), ranges)):
        # As llama-gguf-split has it: the model's metadata stand in the first file alone.
        keys = dict(metadata) if number == 0 else {}
        if split is not None:
            keys |= split_metadata(number, len(ranges), len(plan.tensors))
        files.append(OutputFile(path, header_bytes(keys, _table(plan.tensors[first:stop])), first, stop))
    return files


def _table(tensors: Sequence[PlannedTensor]) -> list[HeaderTensor]:
    return [HeaderTensor(t.name, t.shape, t.type, t.nbytes) for t in tensors]


def file_size(
    model: Model,
    plan: Plan,
    *,
    split: Split | None = None,
    importance: Importance | None = None,
    checksums: bool = False,
) -> int:
    """Exact bytes that `write_model` would write; nothing is read but headers."""
    sums = _placeholders(plan) if checksums else None
    target = Path("model.gguf")
    files = output_files(model, plan, target, split=split, importance=importance, checksums=sums)
    return sum(len(f.header) for f in files) + sum(padded(t.nbytes) for t in plan.tensors)


def _placeholders(plan: Plan) -> dict[str, str]:
    """Checksums that are not known yet, of the right length."""
    return {t.name: "0" * 64 for t in plan.tensors}


def check_requantizing(model: Model, plan: Plan | None = None) -> None:
    """Refuse to quantize what is quantized already, as llama-quantize does unless told otherwise.

    Without a plan, a quantized tensor is refused that any method of ours would change.

    Raises:
        QuantizationError: a tensor of a quantized type would change it.
    """
    types = {} if plan is None else plan.types()
    for t in model.tensors:
        kind = stored_as(t)
        if kind is None or not kind.is_quantized:
            continue
        if (t.fixed is None) if plan is None else (types[t.name] is not kind):
            raise QuantizationError(
                f"{t.name} is already quantized as {kind.name}, and quantizing it again would lose twice: "
                "start from the F16, BF16 or F32 file, or allow it with --allow-requantize"
            )


def write_model(
    model: Model,
    plan: Plan,
    target: Path,
    *,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    importance: Importance | None = None,
    split: Split | None = None,
    checksums: bool = False,
    resume: bool = False,
    source_state: str = "",
    still: Callable[[], None] | None = None,
    progress: Progress | None = None,
    verifying: Progress | None = None,
) -> Conversion:
    """Quantize a model as planned and write it; the same bytes for any number of threads and any memory.

    Args:
        memory: bytes the process may take, about; chunk size and jobs in flight follow from it.
        importance: column weights for the quantizers.
        split: several files instead of one.
        checksums: store the sha256 of every tensor's bytes in the metadata.
        resume: go on with what an interrupted run of the same kind left.
        source_state: changes when the source's files do (see `pipeline.source.source_state`).
        still: called when all is written, before the file gets its name; raises where the source is not what it was.
        progress: called with (weights done, weights in all).
        verifying: called with (tensors read again, tensors in all) when resuming.

    Raises:
        CheckpointError: a weight is not finite, or the source changed.
        QuantizationError: no space, no permission, a type that cannot be made, or nothing that can be resumed.
    """
    target = Path(target)
    check_target(target)
    limits = budget(memory, threads or default_threads())
    weights = column_weights(model, plan, importance)

    def files(sums: Mapping[str, str] | None) -> list[OutputFile]:
        return output_files(model, plan, target, split=split, importance=importance, checksums=sums)

    planned = files(_placeholders(plan) if checksums else None)
    done, total = 0, model.n_parameters
    with open_output(
        target,
        planned,
        [Slot(t.name, t.nbytes) for t in plan.tensors],
        _facts(plan, importance, planned, source_state),
        resume=resume,
        checksums=(lambda sums: files(sums)[0].header) if checksums else None,
        progress=verifying,
    ) as output:
        done = sum(t.n_elements for t in model.tensors[: output.finished])
        chunks = quantize_tensors(
            model.tensors,
            plan.types(),
            threads=limits.threads,
            imatrix=weights,
            chunk_weights=limits.chunk_weights,
            in_flight=limits.in_flight,
            skip=output.finished,
        )
        for chunk in chunks:
            output.write(chunk.index, chunk.data)
            done += (chunk.stop - chunk.start) * model.tensors[chunk.index].row_length
            if progress is not None:
                progress(done, total)
        if still is not None:
            still()
    paths = tuple(f.path for f in planned)
    return Conversion(paths[0], paths, output.nbytes, plan, total, output.finished, peak_rss())


def _facts(
    plan: Plan, importance: Importance | None, files: Sequence[OutputFile], source_state: str
) -> dict[str, str]:
    """What makes two runs the same, by the name under which a difference is reported."""
    headers = hashlib.sha256()
    for file in files:
        headers.update(file.path.name.encode() + b"\0" + file.header)
    facts: dict[str, Any] = {
        "version of ewq-gguf": __version__,
        "source": f"{plan.fingerprint} {source_state}",
        "build of the native library": library_variant(),
        "importance matrix": "" if importance is None else importance.sha256,
        "plan": hashlib.sha256(stored_plan(plan).encode()).hexdigest(),
        "set of options": headers.hexdigest(),
    }
    return facts
