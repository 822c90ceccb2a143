"""Files that are files: a pipe without a writer would be waited for, a device read without end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def regular_stat(path: Path) -> os.stat_result:
    """The status of a regular file, symbolic links followed; ask before opening.

    Raises:
        OSError: there is none, or it is a folder, a pipe, a device or a socket.
    """
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file", str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    return found
