"""A GGUF file as a source: what every architecture of llama.cpp has in common, with nothing to know about it.

Metadata and tensor order are carried over; the tensors that llama-quantize leaves alone keep their type.
A model may be split over several files, named as llama.cpp names them (llama_split_path in src/llama.cpp).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from ewq_gguf.allocation.facts import TensorFacts, model_facts, quantizable
from ewq_gguf.checkpoint.gguf_file import GGUFEntry, GGUFFile, GGUFRows, read_gguf
from ewq_gguf.checkpoint.reading import Scratch, SourceFiles
from ewq_gguf.checkpoint.tensor import AnyArray, DType
from ewq_gguf.errors import CheckpointError
from ewq_gguf.ggml import GGMLType, ggml
from ewq_gguf.model import EncodedTensor, Model, ModelTensor
from ewq_gguf.vocab.vocabulary import OWN_KEYS

SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
_SIZES = {int(t): (t.block_size, t.block_bytes) for t in GGMLType}
_PART_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_DTYPES = {
    GGMLType.F32: DType.F32, GGMLType.F16: DType.F16, GGMLType.BF16: DType.BF16, GGMLType.F64: DType.F64,
    GGMLType.I8: DType.I8, GGMLType.I16: DType.I16, GGMLType.I32: DType.I32, GGMLType.I64: DType.I64,
}  # fmt: skip
# Written anew for every file: they describe the file, not the model.
_OF_THE_FILE = frozenset(
    {
        "general.architecture", "general.alignment", "general.file_type", "general.quantization_version",
        SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS,
    }
)  # fmt: skip
_OWN_PREFIX = "ewq."


class GGUFTensor(EncodedTensor):
    """A tensor of a GGUF file: its stored bytes through `encoded_rows`, its values through `rows`.

    `raw_rows` yields the storage type for floats and integers, decoded float32 for quantized types.
    """

    def __init__(self, file: GGUFFile, entry: GGUFEntry, files: SourceFiles) -> None:
        self.encoding = GGMLType(entry.type)
        self.shape = entry.shape
        self.dtype = _DTYPES.get(self.encoding, DType.F32)
        self._bytes = byte_rows(file, entry, files)
        self._plain: GGUFRows | None = None
        if self.encoding in _DTYPES:
            self._plain = GGUFRows(file, entry, files, self.dtype, self.row_length)

    def raw_rows(self, start: int, stop: int) -> AnyArray:
        if self._plain is not None:
            return self._plain.raw_rows(start, stop)
        return ggml().dequantize(self.encoding, self.encoded_rows(start, stop), self.row_length)

    def borrow_rows(self, start: int, stop: int, scratch: Scratch) -> AnyArray:
        if self._plain is not None:
            return self._plain.borrow_rows(start, stop, scratch)
        return self.raw_rows(start, stop)

    def encoded_rows(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        return self._bytes.raw_rows(start, stop)


def open_gguf(path: Path) -> GGUFFile:
    """Read the header of a GGUF file; every offset and size is checked.

    Raises:
        CheckpointError, UnsupportedModelError: see `read_gguf`.
    """
    return read_gguf(Path(path), _SIZES)


def byte_rows(file: GGUFFile, entry: GGUFEntry, files: SourceFiles) -> GGUFRows:
    """A tensor's rows as bytes of its type."""
    kind = GGMLType(entry.type)
    return GGUFRows(file, entry, files, DType.U8, kind.row_bytes(entry.shape[-1] if entry.shape else 1))


def is_gguf(path: Path) -> bool:
    """Whether a path is a file that says it is GGUF, by name or by its first bytes."""
    if not path.is_file():
        return False
    if path.suffix == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def split_name(prefix: str, number: int, count: int) -> str:
    """The name of part `number` (from 0) of a split model."""
    return f"{prefix}-{number + 1:05d}-of-{count:05d}.gguf"


def open_parts(path: Path) -> tuple[GGUFFile, ...]:
    """Open a GGUF file, or all parts of a split model when given any one of them; the first part first.

    Raises:
        CheckpointError: a part is missing, damaged, or of another model.
        UnsupportedModelError: see `read_gguf`.
    """
    file = open_gguf(path)
    count = file.value(SPLIT_COUNT)
    if not isinstance(count, int) or count < 2:
        return (file,)
    match = _PART_NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise CheckpointError(
            f"{path} is one of {count} parts, but is not named like {split_name('NAME', 0, count)}; "
            "give the parts the names they were made with"
        )
    paths = [path.with_name(split_name(match[1], i, count)) for i in range(count)]
    # One look at the folder: a claim of 65,535 parts must not cost as many.
    there = {p.name for p in path.parent.iterdir()}
    missing = [p.name for p in paths if p.name not in there or not p.is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of the {count} parts of {path} are missing, first {missing[0]}; download them"
        )
    parts = tuple(open_gguf(p) for p in paths)
    _check_parts(parts)
    return parts


def _check_parts(parts: Sequence[GGUFFile]) -> None:
    total = sum(len(p.entries) for p in parts)
    seen: dict[str, Path] = {}
    for i, part in enumerate(parts):
        told = (part.value(SPLIT_NO), part.value(SPLIT_COUNT), part.value(SPLIT_TENSORS))
        if told != (i, len(parts), total):
            raise CheckpointError(
                f"{part.path} says it is part {told[0]!r:.20} of {told[1]!r:.20} with {told[2]!r:.20} tensors in "
                f"all, not part {i} of {len(parts)} with {total}; download the parts again"
            )
        for entry in part.entries:
            if entry.name in seen:
                raise CheckpointError(
                    f"tensor {entry.name!r} is in both {seen[entry.name].name} and {part.path.name}"
                )
            seen[entry.name] = part.path


def model_from_gguf(path: Path) -> Model:
    """Lay out a GGUF file, or a split model given by one of its parts; no weight is read.

    Raises:
        CheckpointError: damaged or missing files, or metadata without what llama.cpp needs.
        UnsupportedModelError: a version or tensor type that is not known.
    """
    parts = open_parts(path)
    first = parts[0]
    if not any(part.entries for part in parts):
        raise CheckpointError(f"{path} holds no tensors; is it a vocabulary only?")
    try:
        facts = model_facts({key: value.value for key, value in first.metadata.items()})
    except CheckpointError as error:
        raise CheckpointError(f"{first.path}: {error}") from error
    files = SourceFiles()
    tensors = []
    for part in parts:
        for entry in part.entries:
            kind = GGMLType(entry.type)
            fact = TensorFacts(entry.name, entry.shape, kind)
            kept = kind.is_integer or kind is GGMLType.F64 or not quantizable(fact, facts)
            tensors.append(ModelTensor(entry.name, GGUFTensor(part, entry, files), kind if kept else None))
    metadata = {
        key: value
        for key, value in first.metadata.items()
        if key in OWN_KEYS or (key not in _OF_THE_FILE and not key.startswith(_OWN_PREFIX))
    }
    architecture = {"general.architecture": gguf.GGUFValue(facts.arch, gguf.GGUFValueType.STRING)}
    return Model(facts.arch, {**architecture, **metadata}, tuple(tensors), _fingerprint(metadata, tensors))


def _fingerprint(metadata: dict[str, gguf.GGUFValue], tensors: Sequence[ModelTensor]) -> str:
    """A sha256 of metadata and tensor table; the same for a model in one file or in parts."""
    state = hashlib.sha256()
    for key in sorted(metadata):
        value = metadata[key]
        state.update(f"{key} {value.type} {value.sub_type} {value.value!r}\n".encode())
    for t in tensors:
        kind = t.source.encoding if isinstance(t.source, EncodedTensor) else None
        state.update(f"{t.name} {kind!r} {t.shape}\n".encode())
    return state.hexdigest()
