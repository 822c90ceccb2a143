"""A GGUF file that holds a vocabulary and no model to speak of, and llama.cpp's tokenizer on it."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ewq_gguf.vocab import Vocabulary


def write_vocab_only(path: Path, vocabulary: Vocabulary) -> None:
    """Write the least that llama.cpp reads a vocabulary from: the tokenizer's keys and a model of one block."""
    writer = _writer(path, vocabulary)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


_WIDTH = 32


def write_with_zeros(path: Path, vocabulary: Vocabulary) -> None:
    """Write a model that runs, of one block with every weight 0."""
    writer = _writer(path, vocabulary)
    shapes = {"token_embd": (len(vocabulary), _WIDTH), "output_norm": (_WIDTH,)}
    shapes |= {f"blk.0.{name}": (_WIDTH, _WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    shapes |= {f"blk.0.ffn_{name}": (_WIDTH, _WIDTH) for name in ("gate", "up", "down")}
    shapes |= {f"blk.0.{name}_norm": (_WIDTH,) for name in ("attn", "ffn")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float16 if len(shape) > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _writer(path: Path, vocabulary: Vocabulary) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_WIDTH)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary))
    vocabulary.add_to(writer)
    return writer


_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


def metadata_bytes(path: Path) -> dict[str, bytes]:
    """Every metadata key of a GGUF file with its type and value as they stand in the file.

    gguf's own reader makes an array per string, which takes minutes for large vocabularies.
    """
    data = path.read_bytes()
    count = struct.unpack_from("<Q", data, 16)[0]
    offset = 24

    def number(form: str) -> int:
        nonlocal offset
        (value,) = struct.unpack_from(form, data, offset)
        offset += struct.calcsize(form)
        return int(value)

    def skip(kind: int) -> None:
        nonlocal offset
        if kind == _STRING:
            length = number("<Q")
            offset += length
        elif kind == _ARRAY:
            inner, length = number("<I"), number("<Q")
            if inner in _SIZES:
                offset += length * _SIZES[inner]
            else:
                for _ in range(length):
                    skip(inner)
        else:
            offset += _SIZES[kind]

    found = {}
    for _ in range(count):
        length = number("<Q")
        key = data[offset : offset + length].decode()
        offset += length
        start = offset
        skip(number("<I"))
        found[key] = data[start:offset]
    return found


class LlamaTokenizer:
    """llama.cpp's tokenizer of a vocabulary-only GGUF file."""

    def __init__(self, library: Any, vocab: Any) -> None:
        self._library = library
        self._vocab = vocab

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids of `text`; with `parse_special`, special tokens written out in it count as such."""
        data = text.encode("utf-8")
        room = len(data) + 16
        buffer = (ctypes.c_int32 * room)()
        count = self._library.llama_tokenize(
            self._vocab, data, len(data), buffer, room, add_special, parse_special
        )
        assert count >= 0, f"llama_tokenize wants room for {-count} tokens"
        return list(buffer[:count])


_NO_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
"""llama_cpp's own log callback stumbles over tokens that are no UTF-8."""


@contextmanager
def open_vocab(path: Path) -> Iterator[LlamaTokenizer]:
    """Load only the vocabulary of the GGUF file at `path` into llama.cpp."""
    import llama_cpp

    llama_cpp.llama_log_set(_NO_LOG, None)
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, f"llama.cpp does not load {path}"
    try:
        yield LlamaTokenizer(llama_cpp, llama_cpp.llama_model_get_vocab(model))
    finally:
        llama_cpp.llama_model_free(model)
