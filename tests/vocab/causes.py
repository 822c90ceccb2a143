"""Why llama.cpp gives other ids for a text than the tokenizer: each cause is proven by undoing it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers

from ewq_gguf.vocab import Vocabulary
from ewq_gguf.vocab.pretokenizer import rule_of

Encode = Callable[[str], list[int]]

# Texts that llama.cpp takes for control tokens whatever their type says, or for the unknown token, where they are tokens
# (src/llama-vocab.cpp, the searches for special tokens by text).
_ENDS = (
    "</s>",
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "<EOT>",
    "<eos>",
    "<PAD>",
    "[PAD]",
    "<unk>",
)


_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


class Causes:
    """Explains differences between a tokenizer.json and llama.cpp running the metadata made of it."""

    def __init__(self, document: dict[str, Any], vocabulary: Vocabulary, llama_cpp: Encode) -> None:
        self._llama_cpp = llama_cpp
        self._original = Tokenizer.from_str(json.dumps(document))
        changed = copy.deepcopy(document)
        for entry in changed["added_tokens"]:
            entry.update(_PLAIN)
        self._literal = Tokenizer.from_str(json.dumps(changed))
        self._whole = Tokenizer.from_str(
            json.dumps({**document, "model": {**document["model"], "ignore_merges": True}})
        )
        named = copy.deepcopy(document)
        known = {entry["content"] for entry in named["added_tokens"]}
        vocab = named["model"]["vocab"]
        named["added_tokens"] += [
            {"id": vocab[text], "content": text, "special": True, **_PLAIN}
            for text in _ENDS
            if text in vocab and text not in known
        ]
        self._ends = Tokenizer.from_str(json.dumps(named))
        rule = rule_of(vocabulary.pre) if vocabulary.model == "gpt2" else None
        self._split = None
        if rule is not None:
            self._split = Tokenizer.from_str(json.dumps({**document, "normalizer": None}))
            self._split.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in rule.runs),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )

    def original(self, text: str) -> list[int]:
        return _ids(self._original, text)

    def of(self, text: str) -> str:
        """ "" when the ids are equal; "unknown" when no cause is proven."""
        wanted, given = self.original(text), self._llama_cpp(text)
        if wanted == given:
            return ""
        normalizer = self._original.normalizer
        if normalizer is not None:
            normal = normalizer.normalize_str(text)
            if normal != text and self._llama_cpp(normal) == wanted:
                return "normalizer"
        bare = text.replace("\0", "")
        if bare != text and self._llama_cpp(bare) == self.original(bare):
            return "null characters"
        if given == _ids(self._whole, text):
            return "whole words"
        if given == _ids(self._ends, text):
            return "end tokens by their text"
        if given == _ids(self._literal, text):
            return "flags of added tokens"
        if self._split is not None and given == _ids(self._split, text):
            return "splitting" if normalizer is None else "splitting, normalizer"
        return "unknown"


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def token_texts(tokens: list[AddedToken | str], limit: int = 12) -> list[str]:
    """Texts that hold added tokens literally, in the middle of words, doubled and between spaces."""
    names = [token if isinstance(token, str) else token.content for token in tokens]
    chosen = names[: limit // 2] + names[-limit // 2 :] if len(names) > limit else names
    varied = []
    for name in chosen:
        varied += [f"a{name}b", f"one {name} two", f"{name}{name}\n{name}"]
    return list(dict.fromkeys(varied))
