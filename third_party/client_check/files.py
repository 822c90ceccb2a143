"""The files that are handed to the programs: the reference model, once per type, made by ewq-gguf itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from client_check.checkpoint import byte_level_checkpoint
from ewq_gguf.allocation.distortion import FULL_POOL
from ewq_gguf.allocation.targets import Target
from ewq_gguf.api import convert
from ewq_gguf.calibration.imatrix import collect_imatrix
from ewq_gguf.calibration.imatrix_file import save_imatrix
from ewq_gguf.decision import Decision
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.pipeline.gguf_source import open_gguf
from ewq_gguf.pipeline.optimize import Study

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "benchmarks" / "reference-10m"
TEXT = ROOT / "benchmarks" / "data" / "calibration.txt"
MIXED = "mixed"
COMPATIBLE = "mixed, --compat"
SENTENCEPIECE = "Q8_0, SentencePiece"
TYPES: tuple[str, ...] = (
    *(kind.name for kind in GGMLType if kind.is_quantized or kind.name in ("F32", "F16", "BF16")),
)


LABELS = (*TYPES, MIXED, COMPATIBLE, SENTENCEPIECE)


@dataclass(frozen=True)
class SampleFile:
    """A file of the reference model.

    Attributes:
        label: the type of its matrices, "mixed", or the one that keeps the model's own tokenizer.
        types: all tensor types in it.
    """

    label: str
    path: Path
    types: tuple[str, ...]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def sample_files(folder: Path, labels: tuple[str, ...] = LABELS) -> list[SampleFile]:
    """Make the files that are not there; quantized ones with an importance matrix.

    `mixed` is a rate-distortion plan over every type worth having, so that one file holds many; the one after it
    keeps to the types that OpenVINO, which reads the fewest, was seen to read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = byte_level_checkpoint(MODEL, folder / "checkpoint")
    matrix, baseline = folder / "imatrix.gguf", folder / "BF16.gguf"
    if not baseline.is_file():
        convert(model, baseline, Decision(type="BF16"), threads=1)
    if not matrix.is_file():
        save_imatrix(collect_imatrix(baseline, TEXT, chunks=8, output=True, n_threads=1), matrix)
    made = []
    for label in labels:
        path = folder / f"{label.replace(', ', '-').replace('--', '-')}.gguf"
        if not path.is_file():
            if label == SENTENCEPIECE:
                convert(MODEL, path, Decision(type="Q8_0"), threads=1)
            else:
                convert(model, path, _decision(label, matrix), threads=1)
        made.append(SampleFile(label, path, _types(path)))
    return made


def _decision(label: str, matrix: Path) -> Decision:
    study = Study(pool=(*FULL_POOL, GGMLType.Q5_0, GGMLType.IQ4_NL), text=TEXT)
    rd = Decision(method="rd", study=study, imatrix=matrix)
    if label == MIXED:
        return replace(rd, target=Target(bpw=4.5))
    if label == COMPATIBLE:
        return replace(rd, target=Target(bpw=5.5), compat=("openvino-genai",))
    return Decision(type=label, pure=True, imatrix=None if GGMLType[label].is_float else matrix)


def _types(path: Path) -> tuple[str, ...]:
    return tuple(kind.name for kind in sorted({GGMLType(entry.type) for entry in open_gguf(path).entries}))
