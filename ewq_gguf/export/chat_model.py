"""What a GGUF file says that a chat program needs: template, special tokens, context, sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ewq_gguf.checkpoint.gguf_file import GGUFFile
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.pipeline.gguf_source import open_parts

# Where the file does not say whether a beginning-of-text token is added, llama.cpp goes by the vocabulary
# (llama_vocab in src/llama-vocab.cpp).
_BOS_MODELS = frozenset({"llama", "bert"})
_BOS_PRE = frozenset(
    {
        "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
        "tekken", "chameleon",
    }
)  # fmt: skip
_CONTROL, _USER_DEFINED = 3, 4
_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repeat_penalty",
    "general.sampling.penalty_last_n": "repeat_last_n",
}


@dataclass(frozen=True)
class ChatModel:
    """Facts of a GGUF file.

    Attributes:
        template: its Jinja chat template, or None.
        tokens: bos_token, eos_token, ... as a template wants them.
        implied_bos: the token that the tokenizer puts in front by itself; "" where it puts none.
        stops: the texts of the tokens that end an answer.
        special: the texts of all control tokens.
        n_ctx: the context it was trained for, or None.
        sampling: Ollama's names of the settings that the model's generation config asks for.
    """

    path: Path
    name: str
    template: str | None
    tokens: Mapping[str, str]
    implied_bos: str
    stops: tuple[str, ...]
    special: frozenset[str]
    n_ctx: int | None
    sampling: Mapping[str, float]


def read_chat_model(path: Path) -> ChatModel:
    """Read the facts out of a GGUF file's header.

    Raises:
        CheckpointError: the file is damaged.
        UnsupportedModelError: a version that is not known, or a model in several files.
    """
    parts = open_parts(Path(path))
    if len(parts) > 1:
        raise UnsupportedModelError(
            f"{path} is one of {len(parts)} files; join them first with `ewq-gguf merge {path} -o ONE.gguf`"
        )
    file = parts[0]
    texts = _texts(file)
    named = {
        name: texts[number]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (number := _token(file, key, texts)) is not None
    }
    ends = [_token(file, key, texts) for key in ("eos", "eot", "eom")]
    kinds = file.value("tokenizer.ggml.token_type")
    special = frozenset(
        text
        for text, kind in zip(texts, kinds if isinstance(kinds, list) else ())
        if kind in (_CONTROL, _USER_DEFINED)
    )
    n_ctx = file.value(f"{file.value('general.architecture')}.context_length")
    template, name = file.value("tokenizer.chat_template"), file.value("general.name")
    return ChatModel(
        Path(path),
        name if isinstance(name, str) and name else Path(path).stem,
        template if isinstance(template, str) and template.strip() else None,
        {f"{key}_token": text for key, text in named.items()},
        named.get("bos", "") if _adds_bos(file) else "",
        tuple(dict.fromkeys(texts[number] for number in ends if number is not None)),
        special,
        n_ctx if isinstance(n_ctx, int) and n_ctx > 0 else None,
        {
            ours: value
            for key, ours in _SAMPLING.items()
            if isinstance(value := file.value(key), (int, float)) and not isinstance(value, bool)
        },
    )


def _texts(file: GGUFFile) -> list[str]:
    found: Any = file.value("tokenizer.ggml.tokens")
    if not isinstance(found, list):
        return []
    return [t if isinstance(t, str) else t.decode("utf-8", "replace") for t in found]


def _token(file: GGUFFile, name: str, texts: list[str]) -> int | None:
    number = file.value(f"tokenizer.ggml.{name}_token_id")
    return number if isinstance(number, int) and 0 <= number < len(texts) else None


def _adds_bos(file: GGUFFile) -> bool:
    told = file.value("tokenizer.ggml.add_bos_token")
    pre = file.value("tokenizer.ggml.pre")
    if pre == "gemma4":
        return True
    if isinstance(told, bool):
        return told
    return file.value("tokenizer.ggml.model") in _BOS_MODELS or pre in _BOS_PRE
