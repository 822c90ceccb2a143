"""A tokenizer.json (or vocab.json with merges.txt) as transformers' AutoTokenizer presents it, without
transformers.

llama.cpp's converter asks AutoTokenizer for the vocabulary, the added tokens and a round trip through encode
and decode. AutoTokenizer (transformers 4.57, the version llama.cpp pins) adds to tokenizer.json: the tokens
of tokenizer_config.json's added_tokens_decoder and of its named special tokens, defaults of the tokenizer's
class, and for some classes a template that puts BOS and EOS around a text. Those rules are followed here on
a `tokenizers.Tokenizer`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab.declared import add_declared, declared_tokens, text_of, unique_texts
from ewq_gguf.vocab.document import check_document, document_from_vocab
from ewq_gguf.vocab.files import read_object
from ewq_gguf.vocab.quiet import native_stderr_off
from ewq_gguf.vocab.tokenizer_class import TokenizerClass, tokenizer_class

# In the order in which transformers applies them.
_CLEAN_UP = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't")),
    *((f" '{suffix}", f"'{suffix}") for suffix in ("m", "s", "ve", "re")),
)


@dataclass(frozen=True)
class HfTokenizer:
    """An opened tokenizer.

    `document` is the content of tokenizer.json (or the equivalent built from vocab.json and merges.txt),
    `file` the path for messages, `settings` the content of tokenizer_config.json, `special` the special
    tokens' texts.
    """

    file: Path
    document: dict[str, Any]
    settings: dict[str, Any]
    backend: Tokenizer
    special: tuple[str, ...]
    bos: str | None
    eos: str | None
    kind: TokenizerClass
    notes: list[str] = field(default_factory=list)

    @cached_property
    def vocab(self) -> dict[str, int]:
        """Every token and its id, added tokens included."""
        vocab: dict[str, int] = self.backend.get_vocab(with_added_tokens=True)
        return vocab

    @cached_property
    def added(self) -> dict[int, AddedToken]:
        """Added tokens by id."""
        added: dict[int, AddedToken] = self.backend.get_added_tokens_decoder()
        return added

    @cached_property
    def base_size(self) -> int:
        """Number of tokens of the model proper, without the added ones."""
        return int(self.backend.get_vocab_size(with_added_tokens=False))

    @property
    def takes_words_whole(self) -> bool:
        """Whether a word that is a token is not built from its merges (`ignore_merges`)."""
        return self.document["model"].get("ignore_merges") is True

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`; with BOS, EOS and the like as the tokenizer's class and files say."""
        with library_errors(self.file):
            if not add_special_tokens or not self.kind.wraps:
                return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)
            ids = list(self.backend.encode(text, add_special_tokens=False).ids)
        add_bos, add_eos = self.kind.wrapping(self.settings)
        before = [self.vocab[self.bos]] if add_bos and self.bos in self.vocab else []
        after = [self.vocab[self.eos]] if add_eos and self.eos in self.vocab else []
        return before + ids + after

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, special tokens included."""
        with library_errors(self.file):
            text = str(self.backend.decode(ids, skip_special_tokens=False))
        if self.settings.get("clean_up_tokenization_spaces") is True:
            for spaced, plain in _CLEAN_UP:
                text = text.replace(spaced, plain)
        return text


def open_tokenizer(folder: Path, config: Mapping[str, Any]) -> HfTokenizer:
    """Open the tokenizer in `folder` from tokenizer.json, else from vocab.json with merges.txt.

    Raises TokenizerError when there is neither, or when a file is damaged or of a kind `tokenizers` cannot
    read.
    """
    settings_file = folder / "tokenizer_config.json"
    settings = read_object(settings_file) or {}
    kind = tokenizer_class(settings, config)
    file = folder / "tokenizer.json"
    document = read_object(file)
    if document is None:
        file = folder / "vocab.json"
        document = document_from_vocab(folder, kind, settings)
    check_document(document, file)
    added, named = declared_tokens(folder, document, file, settings, kind)
    backend = build_backend(document, file)
    special = unique_texts(named)
    with library_errors(file):
        add_declared(backend, added, named, special)
        _match_prefix_space(backend, settings, kind)
    return HfTokenizer(
        file=file,
        document=document,
        settings=settings,
        backend=backend,
        special=special,
        bos=text_of(named.get("bos_token")),
        eos=text_of(named.get("eos_token")),
        kind=kind,
    )


def build_backend(document: Mapping[str, Any], file: Path) -> Tokenizer:
    """A `tokenizers.Tokenizer` of a checked tokenizer.json, without its truncation, padding and dropout."""
    # Padding to a fixed length is a request for memory; truncation and dropout would change what is encoded.
    model = {**document["model"], "dropout": None} if "dropout" in document["model"] else document["model"]
    content = {**document, "model": model, "truncation": None, "padding": None}
    with library_errors(file):
        return Tokenizer.from_str(json.dumps(content))


def _match_prefix_space(backend: Tokenizer, settings: Mapping[str, Any], kind: TokenizerClass) -> None:
    pre = backend.pre_tokenizer
    wanted = settings.get("add_prefix_space", kind.add_prefix_space)
    if isinstance(wanted, bool) and pre is not None and getattr(pre, "add_prefix_space", wanted) != wanted:
        pre.add_prefix_space = wanted


@contextmanager
def library_errors(file: Path) -> Iterator[None]:
    """Turn whatever the `tokenizers` library raises on `file` into a TokenizerError."""
    try:
        with native_stderr_off():
            yield
    except (TokenizerError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic in the library's Rust code is no Exception
        text = " ".join(str(error).split())
        raise TokenizerError(
            f"{file}: the tokenizers library cannot read it ({text:.200s}); "
            "the file is damaged or newer than the library (pip install -U tokenizers)"
        ) from error
