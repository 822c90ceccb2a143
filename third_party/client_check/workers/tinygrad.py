"""tinygrad: its own GGUF reader, dequantizer and Llama, on the CPU."""

from __future__ import annotations

import itertools
import os
from typing import Any

from answer import request, serve

os.environ.setdefault("DEV", "CPU")
os.environ.setdefault("CC", os.environ.get("CLIENT_CLANG", "clang"))
os.environ.setdefault("HALF", "0")
wish = request()

from pathlib import Path  # noqa: E402

from tinygrad.llm.cli import SimpleTokenizer  # noqa: E402
from tinygrad.llm.model import Transformer  # noqa: E402


def read(item: dict[str, Any]) -> dict[str, Any]:
    model, metadata = Transformer.from_gguf(Path(item["file"]), 256, realize=True)
    # It refuses pre-tokenizers that it does not know by name; the prompts are split alike by this one.
    tokenizer = SimpleTokenizer.from_gguf_kv({**metadata, "tokenizer.ggml.pre": "llama-bpe"})
    prompt = tokenizer.encode(item["prompt"])
    made = list(itertools.islice(model.generate(prompt), item["tokens"]))
    return {"text": tokenizer.decode(made)}


serve(wish, read)
