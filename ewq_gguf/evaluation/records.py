"""Rows of equal size in a file, read when asked for.

Read by position, not mapped: a baseline that another program cuts short while a measurement runs is an error
with a name, not the end of the process (see `checkpoint.reading`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ewq_gguf.checkpoint.reading import SourceFiles
from ewq_gguf.errors import CheckpointError, EvaluationError


class Records:
    """`n_rows` items of `dtype` from byte `start` of a file on."""

    def __init__(self, path: Path, dtype: np.dtype[Any], start: int, n_rows: int) -> None:
        self._path, self._dtype, self._start, self._n_rows = path, dtype, start, n_rows
        status = path.stat()
        self._state = (status.st_size, status.st_mtime_ns)
        self._files = SourceFiles()

    def read(self, first: int, stop: int) -> npt.NDArray[Any]:
        """Items first..stop, as far as there are any: an array of `dtype`, or of its base and shape.

        Raises:
            EvaluationError: the file has changed or cannot be read.
        """
        stop = max(first, min(stop, self._n_rows))
        size = self._dtype.itemsize
        begin, end = self._start + first * size, self._start + stop * size
        try:
            data = self._files.read(self._path, begin, end, *self._state)
        except CheckpointError as error:
            raise EvaluationError(str(error)) from None
        return np.frombuffer(data, dtype=self._dtype)
