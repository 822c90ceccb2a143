"""What every Python worker shares: read the request, go through its files, print an answer for each.

A worker takes files one after another, so that a program is loaded once; each answer stands on a line of its
own, `RESULT {...}`, before the next file is touched, so a crash costs one file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def request() -> dict[str, Any]:
    """The request whose path is the only argument."""
    # The folder of the workers holds files named like the packages they import.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent]
    wanted: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    return wanted


def serve(wish: dict[str, Any], read: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Call `read` with each file's part of the request; what it raises is the answer for that file."""
    for item in wish["files"]:
        try:
            fields = read({**wish, **item})
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            # A native library's message ends with what went wrong, a Python one says it at once.
            told = lines[-1] if type(error) is RuntimeError and lines else lines[0] if lines else ""
            fields = {"error": f"{type(error).__name__}: {told}"[:240]}
        print("\nRESULT " + json.dumps({"label": item["label"], **fields}), flush=True)
