"""A small file system of its own, for tests of full and read-only disks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(disk: Path, options: str) -> Iterator[Path]:
    """Mount a tmpfs with these options on a new folder; the test is skipped where that is not allowed."""
    disk.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True, check=False
        )
    except OSError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("needs the right to mount")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)
