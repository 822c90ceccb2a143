"""The child of the crash probe: runs a model for a few tokens and says that it survived.

python -m ewq_gguf.evaluation.crash_child MODEL.gguf 0|1
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np

from ewq_gguf.evaluation.engine import Engine

_PROMPT = 64


def run(model: Path, use_extra_bufts: bool) -> None:
    """A prompt (matrix times matrix) and three single tokens (matrix times vector), on two threads."""
    with Engine(
        model, n_ctx=256, n_batch=256, n_threads=2, use_extra_bufts=use_extra_bufts, probe=False
    ) as engine:
        at = 0
        for count in (_PROMPT, 1, 1, 1):
            tokens = np.arange(3, 3 + count, dtype=np.int32) % engine.n_vocab
            positions = np.arange(at, at + count, dtype=np.int32)
            wanted = np.zeros(count, dtype=np.bool_)
            wanted[-1] = True
            engine.decode(tokens, positions, np.zeros(count, dtype=np.int32), wanted)
            at += count


def main() -> None:
    # A crash is the point of this program; its memory need not be kept.
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    run(Path(sys.argv[1]), sys.argv[2] == "1")
    print("survived")


if __name__ == "__main__":
    main()
