"""The files of a split model joined into one, byte for byte; see `split` for the other way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ewq_gguf.checkpoint.reading import SourceFiles
from ewq_gguf.errors import CheckpointError, QuantizationError
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.pipeline.gguf_source import SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, open_parts
from ewq_gguf.pipeline.header import HeaderTensor, header_bytes
from ewq_gguf.pipeline.output import open_output
from ewq_gguf.pipeline.target import OutputFile, Slot, check_target

Progress = Callable[[int, int], None]
_PIECE = 8 << 20


def merge(part: Path, output: Path, *, progress: Progress | None = None) -> int:
    """Write one GGUF file from all parts of a split model; metadata as in the first, without the split's own.

    Args:
        part: any part.
        progress: called with (bytes done, bytes in all).

    Returns:
        The bytes written.

    Raises:
        CheckpointError: not a split model, or a part is missing or damaged.
        QuantizationError: the output cannot be written.
    """
    parts = open_parts(Path(part))
    if len(parts) < 2:
        raise CheckpointError(f"{part} is not part of a split model; there is nothing to merge")
    output = Path(output)
    if output.exists() and any(output.samefile(p.path) for p in parts):
        raise QuantizationError(f"{output} is one of the parts; choose another name with -o")
    check_target(output)
    entries = [(p, e) for p in parts for e in p.entries]
    metadata = {
        key: value
        for key, value in parts[0].metadata.items()
        if key not in (SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS, "general.alignment")
    }
    table = [HeaderTensor(e.name, e.shape, GGMLType(e.type), e.end - e.begin) for _, e in entries]
    header = header_bytes(metadata, table)
    total, done = sum(t.nbytes for t in table), 0
    files = SourceFiles()
    with open_output(
        output,
        [OutputFile(output, header, 0, len(table))],
        [Slot(t.name, t.nbytes) for t in table],
        {},
        keep=False,
    ) as out:
        for index, (file, entry) in enumerate(entries):
            for begin in range(entry.begin, entry.end, _PIECE):
                end = min(begin + _PIECE, entry.end)
                out.write(index, files.read(file.path, begin, end, file.size, file.mtime_ns))
                done += end - begin
                if progress is not None:
                    progress(done, total)
    return out.nbytes
