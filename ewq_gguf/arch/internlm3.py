"""InternLM3: Llama's layout with InternLM's tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ewq_gguf.arch.llama import Llama
from ewq_gguf.vocab import Vocabulary, load_sentencepiece
from ewq_gguf.vocab.files import as_flag, as_mapping, read_object

_CHAT_END = "<|im_end|>"


def load_internlm3(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """tokenizer.model; a chat model's end of turn takes the place of the end of text (conversion/internlm.py).

    Raises:
        TokenizerError: the files are missing or damaged.
    """
    vocabulary = load_sentencepiece(folder, config)
    file = folder / "tokenizer_config.json"
    settings = read_object(file) or {}
    if "add_prefix_space" in settings:
        flag = as_flag(settings["add_prefix_space"], file, "add_prefix_space")
        vocabulary = replace(vocabulary, add_space_prefix=flag)
    added = as_mapping(settings.get("added_tokens_decoder") or {}, file, "added_tokens_decoder")
    for key, entry in added.items():
        fields = as_mapping(entry, file, f"added_tokens_decoder[{key!r:.24}]")
        ends = fields.get("special") and fields.get("content") == _CHAT_END
        if ends and "eos" in vocabulary.special_ids and int(key) < len(vocabulary):
            vocabulary = replace(vocabulary, special_ids={**vocabulary.special_ids, "eos": int(key)})
    return vocabulary


class InternLM3(Llama):
    """InternLM3ForCausalLM (conversion/internlm.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("InternLM3ForCausalLM",)
    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": None}
    fills_head_dim: ClassVar[bool] = False
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_internlm3)

    def rename(self, name: str) -> str | None:
        return None if name.startswith(("mlp", "vision_model")) else super().rename(name)
