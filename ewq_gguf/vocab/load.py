"""Which loader a Hugging Face folder needs, as `LlamaModel.set_vocab` in llama.cpp's conversion/llama.py
chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ewq_gguf.vocab.bpe import load_bpe
from ewq_gguf.vocab.files import as_flag, read_object
from ewq_gguf.vocab.llama_hf import is_llama_hf, load_llama_hf
from ewq_gguf.vocab.special import read_special_tokens
from ewq_gguf.vocab.spm import has_sentencepiece, load_sentencepiece
from ewq_gguf.vocab.tekken import is_tekken, load_tekken
from ewq_gguf.vocab.vocabulary import Vocabulary

_CODELLAMA_SIZE = 32016
_CODELLAMA_FILL = {"prefix": 32007, "suffix": 32008, "middle": 32009, "eot": 32010}
_GRANITE_SIZE = 49152


def load_vocabulary(folder: Path, config: Mapping[str, Any], *, pre: str | None = None) -> Vocabulary:
    """The vocabulary of a Llama-like model: Mistral's tekken.json alone, else SentencePiece, else
    byte-fallback BPE, else byte-level BPE.

    `config` is the content of config.json; `pre` names the pre-tokenizer of byte-level BPE instead of
    detecting it. The metadata is the converter's, which `vocab.faithful` corrects.

    Raises TokenizerError when no tokenizer files are there or one is damaged.
    """
    if is_tekken(folder):
        return load_tekken(folder, config, pre=pre)
    if has_sentencepiece(folder):
        vocabulary = load_sentencepiece(folder, config)
    elif not is_llama_hf(folder):
        vocabulary = load_bpe(folder, config, pre=pre)
    else:
        vocabulary = load_llama_hf(folder, config)
    settings_file = folder / "tokenizer_config.json"
    settings = read_object(settings_file) or {}
    if settings.get("add_prefix_space") is not None:
        flag = as_flag(settings["add_prefix_space"], settings_file, "add_prefix_space")
        vocabulary = replace(vocabulary, add_space_prefix=flag)
    size = config.get("vocab_size", 32000)
    if size == _CODELLAMA_SIZE:
        vocabulary = _with_fill_in_the_middle(vocabulary, folder, config)
    if size == _GRANITE_SIZE:
        vocabulary = replace(vocabulary, add_special={**vocabulary.add_special, "bos": False})
    return vocabulary


def _with_fill_in_the_middle(vocabulary: Vocabulary, folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    special = read_special_tokens(folder, config, types=tuple(_CODELLAMA_FILL))
    return replace(
        vocabulary,
        special_ids={**vocabulary.special_ids, **{**_CODELLAMA_FILL, **special.ids}},
        add_special={**vocabulary.add_special, **special.add},
    )
