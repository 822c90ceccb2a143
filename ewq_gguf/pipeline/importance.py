"""From an importance matrix to column weights per tensor, with llama-quantize's rules about what may lack.

Source: llama.cpp src/llama-quant.cpp (llama_model_quantize_impl) and tools/quantize/quantize.cpp (metadata).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np
import numpy.typing as npt

from ewq_gguf.allocation.facts import EMBEDDING_NAMES, requires_imatrix
from ewq_gguf.allocation.plan import Plan
from ewq_gguf.errors import CheckpointError, QuantizationError
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.model import EncodedTensor, Model, ModelTensor
from ewq_gguf.pipeline.quantize import ImportanceWeights

if TYPE_CHECKING:
    from ewq_gguf.calibration.imatrix import ImportanceMatrix

_log = logging.getLogger(__name__)
# llama-quantize keeps texts in metadata overrides of 128 bytes, the terminator included.
_MAX_TEXT = 127


@dataclass(frozen=True)
class Importance:
    """An importance matrix and the file it came from.

    Attributes:
        path: as the user gave it; recorded in the output.
        sha256: of the file.
    """

    matrix: ImportanceMatrix
    path: Path
    sha256: str

    def metadata(self) -> dict[str, gguf.GGUFValue]:
        """The keys under which llama-quantize records an importance matrix, and the sum of the file."""
        kind = gguf.GGUFValueType
        keys = {"quantize.imatrix.file": gguf.GGUFValue(_cut(str(self.path)), kind.STRING)}
        if self.matrix.datasets:
            keys["quantize.imatrix.dataset"] = gguf.GGUFValue(_cut(self.matrix.datasets[0]), kind.STRING)
        keys["quantize.imatrix.entries_count"] = gguf.GGUFValue(len(self.matrix.entries), kind.UINT32)
        if self.matrix.chunk_count > 0:
            keys["quantize.imatrix.chunks_count"] = gguf.GGUFValue(self.matrix.chunk_count, kind.UINT32)
        keys["ewq.imatrix.sha256"] = gguf.GGUFValue(self.sha256, kind.STRING)
        return keys


def _cut(text: str) -> str:
    # A path may hold bytes that are no text.
    return text.encode("utf-8", "replace")[:_MAX_TEXT].decode("utf-8", "ignore")


def load_importance(path: Path) -> Importance:
    """Read an importance matrix, GGUF or legacy.

    Raises:
        CheckpointError: the file is missing, damaged, or holds values that cannot be weights.
    """
    from ewq_gguf.calibration.imatrix_file import load_imatrix

    matrix = load_imatrix(path)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    return Importance(matrix, path, digest)


class _Columns(Mapping[str, npt.NDArray[np.float32]]):
    """Column weights made when a tensor's turn comes: those of all experts of a large model fill gigabytes."""

    def __init__(self, matrix: ImportanceMatrix, row_lengths: Mapping[str, int]) -> None:
        self._matrix, self._row_lengths = matrix, row_lengths

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        return self._matrix.weights(name, self._row_lengths[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._row_lengths)

    def __len__(self) -> int:
        return len(self._row_lengths)


def column_weights(model: Model, plan: Plan, importance: Importance | None) -> ImportanceWeights | None:
    """What the quantizers get for each tensor; refused before work begins where a type needs what is missing.

    A tensor without an entry is quantized without weights, unless its type needs them. An entry of another
    length is an error, except for the embedding's, which is left out as llama-quantize does.

    Raises:
        QuantizationError: a type needs an importance matrix and there is no entry, or an entry was made from
            another model.
    """
    matrix = None if importance is None else importance.matrix
    found: dict[str, int] = {}
    lacking: list[str] = []
    types = plan.types()
    for tensor in model.tensors:
        kind = types[tensor.name]
        if not kind.is_quantized or stored_as(tensor) is kind:
            continue
        if matrix is not None and tensor.name in matrix and _fits(tensor, matrix, importance):
            found[tensor.name] = tensor.row_length
        elif requires_imatrix(tensor.name, kind) or _unloved_q2(tensor.name, kind, plan):
            raise QuantizationError(_needed(tensor.name, kind, importance))
        elif matrix is not None:
            lacking.append(tensor.name)
    if matrix is None:
        return None
    if lacking:
        _log.warning(
            "%s has no entry for %d tensors, such as %s; they are quantized without", importance and importance.path,
            len(lacking), lacking[0],
        )  # fmt: skip
    return _Columns(matrix, found)


def stored_as(tensor: ModelTensor) -> GGMLType | None:
    """The ggml type in which the source already holds the tensor, if it does."""
    return tensor.source.encoding if isinstance(tensor.source, EncodedTensor) else None


def _unloved_q2(name: str, kind: GGMLType, plan: Plan) -> bool:
    """llama-quantize refuses Q2_K without a matrix in the preset Q2_K_S alone."""
    excused = name == "output.weight" or name in EMBEDDING_NAMES
    return kind is GGMLType.Q2_K and plan.parameters.get("preset") == "Q2_K_S" and not excused


def _fits(tensor: ModelTensor, matrix: ImportanceMatrix, importance: Importance | None) -> bool:
    matrices = tensor.shape[-3] if len(tensor.shape) > 2 else 1
    have, want = matrix.entries[tensor.name].in_sum2.size, matrices * tensor.row_length
    if have == want:
        return True
    if tensor.name in EMBEDDING_NAMES:
        _log.warning("the importance matrix's entry for %s does not fit and is not used", tensor.name)
        return False
    raise QuantizationError(
        f"{importance and importance.path} has {have:,} values for {tensor.name}, which needs {want:,}: "
        "it was made from another model; collect one from this model"
    )


def _needed(name: str, kind: GGMLType, importance: Importance | None) -> str:
    if importance is None:
        return f"{name} as {kind.name} needs an importance matrix; give one with --imatrix"
    return (
        f"{name} as {kind.name} needs an importance matrix, and {importance.path} has no entry for it; "
        "collect it again with --output, or pin the tensor to another type"
    )
