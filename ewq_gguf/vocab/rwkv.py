"""RWKV's World vocabulary: one token per line, as `id literal length`.

The metadata is that of `_set_vocab_rwkv_world` in llama.cpp's conversion/base.py, with a chat template of our own
where the folder has none.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab.files import MAX_TOKENS, damaged, read_text, vocabulary_size
from ewq_gguf.vocab.special import read_special_tokens
from ewq_gguf.vocab.vocabulary import TokenType, Vocabulary

RWKV_FILE = "rwkv_vocab_v20230424.txt"
_SIZE = 65536
_LONGEST_LINE = 2048
# An empty line ends a turn.
_TURN = 261
_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- 'User: ' -}}"
    "{%- elif message['role'] == 'system' -%}{{- 'System: ' -}}"
    "{%- else -%}{{- 'Assistant: ' -}}{%- endif -%}"
    "{{- message['content'] | trim -}}{{- '\\n\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
)


def load_rwkv(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of `folder`, padded to config.json's vocab_size.

    Raises TokenizerError when the file is missing, damaged or does not fit config.json.
    """
    file = folder / RWKV_FILE
    text = read_text(file)
    if text is None:
        raise TokenizerError(f"{file}: there is no such file; this model's tokenizer needs it")
    tokens = [b"<s>"]
    for number, line in enumerate(text.rstrip("\n").split("\n"), 1):
        tokens.append(repr(_token(line, file, number))[2:-1].encode())
        if len(tokens) > MAX_TOKENS:
            raise damaged(file, f"line {number}", f"goes beyond {MAX_TOKENS} tokens")
    size = vocabulary_size(config) or _SIZE
    if not _TURN < len(tokens) <= size:
        raise TokenizerError(
            f"{file}: makes {len(tokens)} tokens, but config.json says vocab_size {size}; "
            "the tokenizer belongs to another model, or config.json must be corrected"
        )
    n = len(tokens)
    vocabulary = Vocabulary(
        model="rwkv",
        pre=None,
        tokens=tokens + [b"[PAD%d]" % i for i in range(n, size)],
        types=[
            int(TokenType.CONTROL),
            *[int(TokenType.NORMAL)] * (n - 1),
            *[int(TokenType.UNUSED)] * (size - n),
        ],
    ).with_special(read_special_tokens(folder, config))
    return replace(
        vocabulary,
        special_ids={**vocabulary.special_ids, "eot": _TURN, "bos": 0, "eos": 0},
        chat_template=vocabulary.chat_template or _TEMPLATE,
    )


def _token(line: str, file: Path, number: int) -> bytes:
    """The bytes of a line such as `258 '\\n\\n' 2` or `4 b'\\xff' 1`."""
    place = f"line {number}"
    parts = line.split(" ")
    literal = " ".join(parts[1:-1])
    if len(parts) < 3 or len(line) > _LONGEST_LINE or not literal.startswith(("'", '"', "b'", 'b"')):
        raise damaged(file, place, "is not a number, a token in quotes, and its length")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            value = ast.literal_eval(literal)
        token = value.encode() if isinstance(value, str) else value
    except (SyntaxError, ValueError, MemoryError, RecursionError, Warning) as error:
        raise damaged(file, place, "has a token that cannot be read") from error
    if not isinstance(token, bytes) or not token or parts[-1] != str(len(token)):
        raise damaged(file, place, "has a token of another length than it says")
    return token
