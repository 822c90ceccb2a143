"""The beginning of a file, read as far as somebody looks: headers whose length nobody knows beforehand."""

from __future__ import annotations

from typing import BinaryIO

_STEP = 1 << 20
# Of a vocabulary of half a million tokens with its merges: about 30 MB.
MAX_HEADER_BYTES = 1 << 27
# In all arrays of a header together; each becomes an object in memory.
MAX_ARRAY_ITEMS = 1 << 23


class GrowingPrefix:
    """Bytes of a file from its start on; slices and offsets as in the file.

    Read, not mapped: a file that is cut short meanwhile ends early instead of killing the process.

    Attributes:
        data: what has been read so far; valid up to the last `reach`.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        """`size`: bytes the file has."""
        self.data = bytearray()
        self._file = file
        self._size = size

    def __len__(self) -> int:
        return self._size

    def reach(self, end: int) -> None:
        """Read on until byte `end` is there.

        Raises:
            OSError: the file cannot be read, has become shorter than it was, or has no end of header.
        """
        if end > MAX_HEADER_BYTES:
            raise OSError(f"its header goes on behind byte {MAX_HEADER_BYTES:,}, as no genuine one does")
        while len(self.data) < end:
            piece = self._file.read(max(_STEP, end - len(self.data)))
            if not piece:
                raise OSError(f"it ends at byte {len(self.data):,}, {self._size:,} were there before")
            self.data += piece
