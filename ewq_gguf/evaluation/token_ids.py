"""Text to token ids and back, with the vocabulary of a model that llama.cpp has loaded."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.gguf_check import GgufSummary
from ewq_gguf.evaluation.tokenizing import tell_split
from ewq_gguf.vocab.hf import library_errors
from ewq_gguf.vocab.own_bpe import OwnBPE

I32Array = npt.NDArray[np.int32]

_VOCAB_TYPE_BPE = 2


class LlamaVocabulary:
    """llama.cpp's tokenizer, and what the file says that it does not do as the model's own.

    Args:
        llama: the library.
        handle: the vocabulary of a loaded model, valid as long as that is.
        path, summary: of the file.

    Attributes:
        n_tokens: size of the vocabulary.
        bos: id of the token before every text, or None where the model wants none.
    """

    def __init__(self, llama: Any, handle: Any, path: Path, summary: GgufSummary) -> None:
        self._llama = llama
        self._handle = handle
        self._path = path
        self.n_tokens = int(llama.llama_vocab_n_tokens(handle))
        wants_bos = bool(llama.llama_vocab_get_add_bos(handle))
        bos = int(llama.llama_vocab_bos(handle))
        self.bos = bos if wants_bos and bos >= 0 else None
        # Elsewhere llama.cpp does it by itself, or pieces cannot be told apart from a text's beginning.
        bpe = int(llama.llama_vocab_type(handle)) == _VOCAB_TYPE_BPE
        self._tokenizing = summary.tokenizing if bpe else None
        self._null_token = None if bpe else summary.null_token
        self._null_byte = -1
        if self._null_token is not None:
            self._null_byte = int(self._native(b"\0", False, False)[-1])

    def ids(self, text: bytes, *, add_special: bool, parse_special: bool) -> I32Array:
        """Token ids as llama-perplexity makes them: BOS where the model says so, special tokens as asked.

        Other than llama-perplexity, a text is normalized first and split as the tokenizer does it where the file
        says so (`Tokenizing`); a text that is no UTF-8 is not.

        Raises:
            EvaluationError: llama.cpp cannot tokenize the text.
            TokenizerError: the file's tokens and merges make no tokenizer.
        """
        cut = self._tokenizing.cut(text, parse_special=parse_special) if self._tokenizing else None
        bpe = self._tokenizing.bpe if self._tokenizing else None
        if cut is None or not (cut.changed or parse_special or bpe):
            return self._native(text, add_special, parse_special)
        around = self._native(b"", add_special, False)
        first = int(add_special and self.bos is not None)
        inside = [self._of_part(part, bpe) for part in cut.parts]
        return np.concatenate([around[:first], *inside, around[first:]])

    def _of_part(self, part: str | int, bpe: OwnBPE | None) -> I32Array:
        """Of an added token or a piece of text."""
        if isinstance(part, int):
            return np.array([part], dtype=np.int32)
        theirs = self._native(part.encode(), False, False)
        if bpe is None:
            return theirs
        with library_errors(self._path):
            ours = np.array(bpe.ids(part), dtype=np.int32)
        if not np.array_equal(ours, theirs):
            tell_split()
        return ours

    def _native(self, data: bytes, add_special: bool, parse_special: bool) -> I32Array:
        capacity = len(data) + 8
        for _ in range(2):
            out = np.empty(capacity, dtype=np.int32)
            pointer = out.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            n = int(
                self._llama.llama_tokenize(
                    self._handle, data, len(data), pointer, capacity, add_special, parse_special
                )
            )
            if n >= 0:
                return self._with_nulls(out[:n].copy(), data)
            capacity = -n
        raise EvaluationError(f"{self._path} cannot tokenize a text of {len(data):,} bytes")

    def _with_nulls(self, ids: I32Array, data: bytes) -> I32Array:
        """With the vocabulary's own token for null characters, where llama.cpp knows only the byte's."""
        if self._null_token is not None and b"\0" in data:
            ids[ids == self._null_byte] = self._null_token
        return ids

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; control tokens are empty."""
        buffer = ctypes.create_string_buffer(256)
        n = int(self._llama.llama_token_to_piece(self._handle, token, buffer, len(buffer), 0, False))
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = int(self._llama.llama_token_to_piece(self._handle, token, buffer, len(buffer), 0, False))
        return buffer.raw[: max(0, n)]

    def ends_generation(self, token: int) -> bool:
        """Whether the token ends a text (EOS, end of turn)."""
        return bool(self._llama.llama_vocab_is_eog(self._handle, token))
