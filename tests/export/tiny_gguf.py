"""Small GGUF files with a chat template, as a chat program would meet them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.tiny.gguf_values import add_values

TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "a", "b", "c")
CONTROL, NORMAL = 3, 1


def write_gguf(
    path: Path,
    template: str | None = None,
    *,
    tokens: Sequence[str] = TOKENS,
    keys: Mapping[str, Any] | None = None,
    tensor: str = "token_embd.weight",
) -> Path:
    """A file that is a model by its header; `keys` are further metadata."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny Chat")
    writer.add_context_length(2048)
    writer.add_block_count(1)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(tokens))
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([CONTROL if t.startswith("<") else NORMAL for t in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if template is not None:
        writer.add_chat_template(template)
    add_values(writer, keys or {})
    writer.add_tensor(tensor, np.zeros((len(tokens), 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
