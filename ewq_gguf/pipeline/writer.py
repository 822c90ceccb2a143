"""GGUF files: header by the gguf package, tensor data streamed behind it, and a name only when whole.

Data goes to `NAME.part` beside the target, is flushed to disk, and takes the final name in one rename.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import gguf
import numpy as np

from ewq_gguf.errors import QuantizationError
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.model import ModelTensor

ALIGNMENT = int(gguf.GGUF_DEFAULT_ALIGNMENT)


def padded(nbytes: int) -> int:
    """`nbytes` rounded up to the alignment of tensor data."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def header_bytes(
    arch: str,
    metadata: Mapping[str, gguf.GGUFValue],
    tensors: tuple[ModelTensor, ...],
    types: Mapping[str, GGMLType],
) -> bytes:
    """Everything before the tensor data: magic, metadata, tensor table, padding up to the alignment."""
    with tempfile.TemporaryDirectory(prefix="ewq-gguf-") as folder:
        path = Path(folder) / "header"
        writer = gguf.GGUFWriter(path, arch)
        for key, value in metadata.items():
            if key != "general.architecture":
                writer.add_key_value(key, value.value, value.type, value.sub_type)
        for t in tensors:
            kind = types[t.name]
            # The declared numpy dtype is not looked at when a raw type is given.
            writer.add_tensor_info(t.name, t.shape, np.dtype(np.float32), t.bytes_as(kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        data = path.read_bytes()
    return data + bytes(padded(len(data)) - len(data))


def part_path(target: Path) -> Path:
    """Where the unfinished file stands."""
    return target.with_name(target.name + ".part")


def check_target(target: Path, nbytes: int) -> None:
    """Refuse a target that cannot be written, before any work.

    Raises:
        QuantizationError: no such folder, the target is a folder, or the disk lacks space.
    """
    folder = target.parent
    if target.is_dir():
        raise QuantizationError(f"{target} is a folder; name a file, for example {target / 'model.gguf'}")
    if not folder.is_dir():
        raise QuantizationError(f"the folder {folder} does not exist; create it first")
    if not os.access(folder, os.W_OK):
        raise QuantizationError(f"cannot write into {folder}; choose another place with -o")
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise QuantizationError(
            f"{folder} has {free:,} bytes free and the file needs {nbytes:,}; free some space or choose a smaller size"
        )


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[IO[bytes]]:
    """A binary file that stands under `target` only when the block ended well; otherwise nothing is left.

    Raises:
        QuantizationError: the file system refuses; the message names the file and the reason.
    """
    part = part_path(target)
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise QuantizationError(
            f"cannot write {target}: {error.strerror or error}; nothing was left behind"
        ) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
