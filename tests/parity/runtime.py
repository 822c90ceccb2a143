"""Run a tiny GGUF file in llama.cpp."""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt

_LOG: list[bytes] = []


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _log(level: int, text: bytes, user: object) -> None:
    _LOG.append(text)


def logits(path: Path, n_tokens: int = 32) -> npt.NDArray[np.float32]:
    """Logits after each of the tokens 10, 11, ...: float32 (n_tokens, vocabulary).

    Raises:
        AssertionError: llama.cpp does not take the file; the message is its log's end.
    """
    _LOG.clear()
    llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))
    try:
        model = llama_cpp.Llama(str(path), n_ctx=64, n_batch=64, n_threads=1, logits_all=True, verbose=False)
    except ValueError as error:
        raise AssertionError(b"".join(_LOG[-6:]).decode(errors="replace")) from error
    try:
        model.eval(list(range(10, 10 + n_tokens)))
        return np.array(model.scores[:n_tokens])
    finally:
        model.close()


def embeddings(path: Path) -> npt.NDArray[np.float32]:
    """The vectors of two texts: float32 (2, width).

    Raises:
        AssertionError: llama.cpp does not take the file; the message is its log's end.
    """
    _LOG.clear()
    llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))
    try:
        model = llama_cpp.Llama(str(path), n_ctx=64, n_batch=64, n_threads=1, embedding=True, verbose=False)
    except ValueError as error:
        raise AssertionError(b"".join(_LOG[-6:]).decode(errors="replace")) from error
    try:
        return np.array(
            [model.embed(text) for text in ("the tin and the reed", "he sat on an oar")], np.float32
        )
    finally:
        model.close()
