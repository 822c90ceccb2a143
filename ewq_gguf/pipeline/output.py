"""Files on their way to disk: written as `NAME.part`, journaled, and renamed only when whole.

What happens to an unfinished file:
- the weights turn out to be bad, or a type cannot be made: it is removed, going on would fail again;
- the disk is full, the run is interrupted or killed: it stays with its journal as soon as one tensor is
  whole, and `resume` goes on behind the last tensor whose bytes, read again, have the checksum noted for it.
A new run without `resume` removes what an earlier one left.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from ewq_gguf.errors import EwqError, QuantizationError
from ewq_gguf.pipeline.header import padded
from ewq_gguf.pipeline.journal import Journal, Past, Record
from ewq_gguf.pipeline.quantize import ByteArray
from ewq_gguf.pipeline.target import (
    Checksum,
    Crc32,
    OutputFile,
    Sha256,
    Slot,
    check_space,
    check_target,
    part_path,
)

_PIECE = 8 << 20
Progress = Callable[[int, int], None]
# Makes the first file's header anew once the checksums of all tensors are known; the length must not change.
FinalHeader = Callable[[Mapping[str, str]], bytes]


class Output:
    """The files of one run, open for writing in order. Made by `open_output`.

    Attributes:
        finished: tensors at the beginning that are already there.
    """

    def __init__(
        self,
        target: Path,
        files: Sequence[OutputFile],
        slots: Sequence[Slot],
        facts: Mapping[str, str],
        *,
        resume: bool = False,
        checksums: FinalHeader | None = None,
        progress: Progress | None = None,
    ) -> None:
        check_target(target)
        self._target, self._files, self._slots = target, files, slots
        self._final_header = checksums
        self._handle: IO[bytes] | None = None
        self._at = -1  # index of the file that is open
        self._journal = Journal(target)
        try:
            records: list[Record] = []
            if resume:
                self._check_facts(self._journal.past, facts)
                records = self._verified(self._journal.past, progress)
            self._trim(self._journal.past, len(records))
            there = sum(padded(s.nbytes) for s in slots[: len(records)])
            check_space(target.parent, self.nbytes - there)
            self._records = records
            self.finished = len(records)
            self._journal.begin(facts, tuple(f.part.name for f in files), tuple(records))
        except BaseException as error:
            # A wish that does not fit is no reason to throw away what another run left.
            self._journal.close(keep=resume and bool(self._journal.past.records))
            if isinstance(error, OSError):
                raise QuantizationError(f"cannot write {target}: {error.strerror or error}") from error
            raise
        self._next, self._sum, self._written = self.finished, self._new_sum(), 0

    @property
    def nbytes(self) -> int:
        """Bytes of all files when they are whole."""
        return sum(len(f.header) for f in self._files) + sum(padded(s.nbytes) for s in self._slots)

    def _new_sum(self) -> Checksum:
        return Crc32() if self._final_header is None else Sha256()

    def _check_facts(self, past: Past, facts: Mapping[str, str]) -> None:
        if not past.facts:
            return
        for name in dict.fromkeys((*facts, *past.facts)):
            if past.facts.get(name) != facts.get(name):
                raise QuantizationError(
                    f"{part_path(self._target)} was begun with another {name}; "
                    "run again without --resume to start over"
                )

    def _verified(self, past: Past, progress: Progress | None) -> list[Record]:
        """The tensors that are whole, from the first on; every byte of them is read."""
        found: list[Record] = []
        for file in self._files:
            renamed = past.complete and not file.part.exists()
            with contextlib.suppress(OSError), (file.path if renamed else file.part).open("rb") as handle:
                if handle.read(len(file.header)) in self._headers(file, past):
                    for index in range(file.first, min(file.stop, len(past.records))):
                        if not self._same(handle, index, past.records[index]):
                            break
                        found.append(past.records[index])
                        if progress is not None:
                            progress(index + 1, len(self._slots))
            if len(found) < file.stop:
                # Nothing is appended to a file that already has its name.
                return found[: file.first] if renamed else found
        return found

    def _headers(self, file: OutputFile, past: Past) -> tuple[bytes, ...]:
        if self._final_header is None or file is not self._files[0] or len(past.records) < len(self._slots):
            return (file.header,)
        # It may have ended before or after the checksums were put in.
        return file.header, self._final_header(_plain(past.records))

    def _same(self, handle: IO[bytes], index: int, record: Record) -> bool:
        slot, state = self._slots[index], self._new_sum()
        left = slot.nbytes
        while left:
            data = handle.read(min(left, _PIECE))
            if not data:
                return False
            state.update(data)
            left -= len(data)
        padding = padded(slot.nbytes) - slot.nbytes
        return len(handle.read(padding)) == padding and record == Record(slot.name, state.text())

    def _trim(self, past: Past, finished: int) -> None:
        """Remove what an earlier run left behind the last finished tensor."""
        ours = {f.part.name: f for f in self._files}
        for name in past.files:
            if name not in ours:
                self._target.with_name(name).unlink(missing_ok=True)
        for file in self._files:
            if past.complete and not file.part.exists() and finished >= file.stop:
                continue
            if finished <= file.first:
                file.part.unlink(missing_ok=True)
                continue
            whole = self._slots[file.first : min(finished, file.stop)]
            with file.part.open("r+b") as handle:
                handle.truncate(len(file.header) + sum(padded(s.nbytes) for s in whole))

    def write(self, index: int, data: ByteArray) -> None:
        """The next bytes of tensor `index`; tensors come in order, each whole before the next."""
        self._advance(index)
        handle = self._open(index)
        handle.write(data.data)
        self._sum.update(data.data)
        self._written += data.nbytes

    def _advance(self, index: int) -> None:
        """Close the tensors before `index`."""
        while self._next < index:
            slot = self._slots[self._next]
            if self._written != slot.nbytes:
                raise QuantizationError(
                    f"{slot.name} came out with {self._written} bytes, not {slot.nbytes}; this is a bug, please report it"
                )
            handle = self._open(self._next)
            handle.write(bytes(padded(slot.nbytes) - slot.nbytes))
            handle.flush()
            record = Record(slot.name, self._sum.text())
            self._journal.add(record)
            self._records.append(record)
            self._next, self._sum, self._written = self._next + 1, self._new_sum(), 0

    def _open(self, index: int) -> IO[bytes]:
        """The file that holds tensor `index`; the ones before it are finished."""
        while self._handle is None or index >= self._files[self._at].stop:
            self._close_file()
            self._at += 1
            file = self._files[self._at]
            if file.stop <= self.finished:
                continue
            if file.part.exists():
                self._handle = file.part.open("ab")
            else:
                self._handle = file.part.open("wb")
                self._handle.write(file.header)
        return self._handle

    def _close_file(self) -> None:
        if self._handle is not None:
            self._handle.flush()
            os.fsync(self._handle.fileno())
            self._handle.close()
            self._handle = None

    def finish(self) -> None:
        """All data is there: give the files their names."""
        self._advance(len(self._slots))
        self._close_file()
        if self._final_header is not None:
            self._seal(self._final_header(_plain(self._records)))
        self._journal.complete()
        for file in self._files:
            # A run that was killed between two renamings has done some of them.
            if file.part.exists():
                file.part.replace(file.path)
        self._journal.close(keep=False)

    def _seal(self, header: bytes) -> None:
        file = self._files[0]
        if len(header) != len(file.header):
            raise QuantizationError(
                f"the header of {file.path} changed its length; this is a bug, please report it"
            )
        if file.part.exists():
            with file.part.open("r+b") as handle:
                handle.write(header)
                handle.flush()
                os.fsync(handle.fileno())

    def abandon(self, *, keep: bool) -> int:
        """Stop; what is there is kept if asked for and worth it. Returns the number of tensors kept."""
        with contextlib.suppress(OSError):
            if self._handle is not None:
                self._handle.close()
        kept = len(self._records) if keep else 0
        if not kept:
            for file in self._files:
                with contextlib.suppress(OSError):
                    file.part.unlink(missing_ok=True)
        self._journal.close(keep=kept > 0)
        return kept


def _plain(records: Sequence[Record]) -> dict[str, str]:
    return {r.tensor: r.checksum.partition(":")[2] for r in records}


@contextlib.contextmanager
def open_output(
    target: Path,
    files: Sequence[OutputFile],
    slots: Sequence[Slot],
    facts: Mapping[str, str],
    *,
    resume: bool = False,
    keep: bool = True,
    checksums: FinalHeader | None = None,
    progress: Progress | None = None,
) -> Iterator[Output]:
    """Files that stand under their names only when the block ended well.

    Args:
        target: the name the user gave; the journal stands beside it.
        facts: what the run makes, by name; `resume` goes on only with equal ones.
        resume: go on with what an earlier run left, after reading it again.
        keep: an interrupted run leaves what can be gone on with.
        checksums: store sha256 sums in the header with the help of this function.
        progress: called with (tensors verified, tensors in all) while resuming.

    Raises:
        QuantizationError: the file system refuses, another run writes here, or there is something to resume
            that was begun with another source, plan, ...
    """
    output = Output(target, files, slots, facts, resume=resume, checksums=checksums, progress=progress)
    try:
        yield output
        output.finish()
    except EwqError:
        output.abandon(keep=False)
        raise
    except OSError as error:
        kept = output.abandon(keep=keep)
        after = (
            f"{kept} of {len(slots)} tensors are kept in {part_path(files[0].path).name}: run again with --resume "
            "when that is mended, or delete it"
            if kept
            else "nothing was left behind"
        )
        raise QuantizationError(f"cannot write {target}: {error.strerror or error}; {after}") from error
    except BaseException:
        output.abandon(keep=keep)
        raise
