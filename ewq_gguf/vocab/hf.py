"""A tokenizer.json (or vocab.json with merges.txt) as transformers' AutoTokenizer presents it, without transformers.

llama.cpp's converter asks AutoTokenizer for the vocabulary, the added tokens and a round trip through encode and
decode. AutoTokenizer (transformers 4.57, the version llama.cpp pins) adds to tokenizer.json: the tokens of
tokenizer_config.json's added_tokens_decoder and of its named special tokens, defaults of the tokenizer's class, and for
some classes a template that puts BOS and EOS around a text. Those rules are followed here on a `tokenizers.Tokenizer`.
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
from ewq_gguf.vocab.files import (
    MAX_TOKEN_BYTES,
    MAX_TOKENS,
    as_flag,
    as_id,
    as_mapping,
    as_sequence,
    as_text,
    damaged,
    encode,
    read_object,
)
from ewq_gguf.vocab.merges import MAX_MERGES, read_merges_txt
from ewq_gguf.vocab.tokenizer_class import NAMED_TOKENS, TokenizerClass, tokenizer_class

# In the order in which transformers applies them.
_CLEAN_UP = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't")) + tuple(
    (f" '{suffix}", f"'{suffix}") for suffix in ("m", "s", "ve", "re")
)


@dataclass(frozen=True)
class HfTokenizer:
    """An opened tokenizer.

    `document` is the content of tokenizer.json (or the equivalent built from vocab.json and merges.txt), `file` the
    path for messages, `settings` the content of tokenizer_config.json, `special` the special tokens' texts.
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

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`; with BOS, EOS and the like as the tokenizer's class and files say."""
        with _library_errors(self.file):
            if not add_special_tokens or not self.kind.wraps:
                return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)
            ids = list(self.backend.encode(text, add_special_tokens=False).ids)
        add_bos, add_eos = self.kind.wrapping(self.settings)
        before = [self.vocab[self.bos]] if add_bos and self.bos in self.vocab else []
        after = [self.vocab[self.eos]] if add_eos and self.eos in self.vocab else []
        return before + ids + after

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, special tokens included."""
        with _library_errors(self.file):
            text = str(self.backend.decode(ids, skip_special_tokens=False))
        if self.settings.get("clean_up_tokenization_spaces") is True:
            for spaced, plain in _CLEAN_UP:
                text = text.replace(spaced, plain)
        return text


def open_tokenizer(folder: Path, config: Mapping[str, Any]) -> HfTokenizer:
    """Open the tokenizer in `folder` from tokenizer.json, else from vocab.json with merges.txt.

    Raises TokenizerError when there is neither, or when a file is damaged or of a kind `tokenizers` cannot read.
    """
    settings_file = folder / "tokenizer_config.json"
    settings = read_object(settings_file) or {}
    kind = tokenizer_class(settings, config)
    file = folder / "tokenizer.json"
    document = read_object(file)
    if document is None:
        file = folder / "vocab.json"
        document = _document_from_vocab(folder, kind, settings)
    check_document(document, file)
    added, named = _declared_tokens(folder, document, file, settings, kind)
    backend = build_backend(document, file)
    special = _unique_texts(named)
    _add_declared(backend, added, named, special)
    _match_prefix_space(backend, settings, kind)
    return HfTokenizer(
        file=file,
        document=document,
        settings=settings,
        backend=backend,
        special=special,
        bos=_text_of(named.get("bos_token")),
        eos=_text_of(named.get("eos_token")),
        kind=kind,
    )


def build_backend(document: Mapping[str, Any], file: Path) -> Tokenizer:
    """A `tokenizers.Tokenizer` of a checked tokenizer.json, without its truncation, padding and dropout."""
    # Padding to a fixed length is a request for memory; truncation and dropout would change what is encoded.
    model = {**document["model"], "dropout": None} if "dropout" in document["model"] else document["model"]
    content = {**document, "model": model, "truncation": None, "padding": None}
    with _library_errors(file):
        return Tokenizer.from_str(json.dumps(content))


def check_document(document: Mapping[str, Any], file: Path) -> None:
    """Check the ids, texts and sizes of a tokenizer.json before the library sees it; TokenizerError if any is bad."""
    model = as_mapping(document.get("model"), file, "model")
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        _check_vocab(vocab, file)
    else:
        _check_scored_vocab(as_sequence(vocab, file, "model.vocab"), file)
    if len(as_sequence(model.get("merges", []), file, "model.merges")) > MAX_MERGES:
        raise damaged(file, "model.merges", f"has more than {MAX_MERGES} entries")
    added: dict[int, str] = {}
    for index, entry in enumerate(as_sequence(document.get("added_tokens") or [], file, "added_tokens")):
        place = f"added_tokens[{index}]"
        item = as_mapping(entry, file, place)
        text = as_text(item.get("content"), file, f"{place}.content")
        encode(text, file, f"{place}.content")
        token_id = as_id(item.get("id"), file, f"{place}.id")
        if added.setdefault(token_id, text) != text:
            raise damaged(file, f"{place}.id", f"is {token_id}, which {added[token_id]!r:.60} has too")


def _check_vocab(vocab: Mapping[str, object], file: Path) -> None:
    seen: dict[int, str] = {}
    for token, value in vocab.items():
        # The common case first: a vocabulary has hundreds of thousands of entries.
        if type(value) is not int or not 0 <= value < MAX_TOKENS or len(token) > MAX_TOKEN_BYTES // 4:
            as_id(value, file, f"model.vocab[{token!r:.60}]")
            encode(token, file, f"model.vocab[{token!r:.60}]")
        elif seen.setdefault(value, token) is not token:
            raise damaged(file, f"model.vocab[{token!r:.60}]", f"has id {value}, as {seen[value]!r:.60} has")
    for token in vocab:
        if not token.isascii():
            encode(token, file, f"model.vocab[{token!r:.60}]")


def _check_scored_vocab(vocab: list[Any], file: Path) -> None:
    for index, pair in enumerate(vocab):
        place = f"model.vocab[{index}]"
        entry = as_sequence(pair, file, place)
        if len(entry) != 2 or not isinstance(entry[1], int | float) or isinstance(entry[1], bool):
            raise damaged(file, place, "must be a token and its score")
        encode(as_text(entry[0], file, place), file, place)
        as_id(index, file, place)


def _document_from_vocab(folder: Path, kind: TokenizerClass, settings: Mapping[str, Any]) -> dict[str, Any]:
    vocab = read_object(folder / "vocab.json")
    merges = read_merges_txt(folder)
    if vocab is None or merges is None:
        raise TokenizerError(
            f"{folder}: holds no tokenizer.model, no tokenizer.json and no vocab.json with merges.txt; "
            "copy the model's tokenizer files into the folder"
        )
    prefix = settings.get("add_prefix_space") is True
    byte_level = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": True}
    pre: dict[str, Any] = byte_level
    if kind.split_regex is not None:
        split = {
            "type": "Split",
            "pattern": {"Regex": kind.split_regex},
            "behavior": "Isolated",
            "invert": False,
        }
        pre = {"type": "Sequence", "pretokenizers": [split, {**byte_level, "use_regex": False}]}
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "NFC"} if kind.split_regex is not None else None,
        "pre_tokenizer": pre,
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": {**byte_level},
        "model": {
            "type": "BPE",
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": vocab,
            "merges": [merge.split(" ") for merge in merges],
        },
    }


NamedTokens = dict[str, "str | AddedToken | list[str | AddedToken]"]


def _declared_tokens(
    folder: Path,
    document: Mapping[str, Any],
    file: Path,
    settings: Mapping[str, Any],
    kind: TokenizerClass,
) -> tuple[dict[int, AddedToken], NamedTokens]:
    """Added tokens by id, and the named special tokens, as tokenizer_config.json and its older companions say."""
    settings_file = folder / "tokenizer_config.json"
    values: dict[str, Any] = {**kind.defaults, **settings}
    added: dict[int, AddedToken] = {}
    declared = settings.get("added_tokens_decoder")
    if declared is not None:
        for key, entry in as_mapping(declared, settings_file, "added_tokens_decoder").items():
            place = f"added_tokens_decoder[{key!r:.24}]"
            if not (key.isascii() and key.isdigit() and len(key) < 10):
                raise damaged(settings_file, place, "is not a token id")
            token_id = as_id(int(key), settings_file, place)
            added[token_id] = _added_token(entry, settings_file, place)
    else:
        _read_older_files(folder, values, added)
        if file.name == "tokenizer.json":
            for index, entry in enumerate(document.get("added_tokens") or []):
                added[entry["id"]] = _added_token(entry, file, f"added_tokens[{index}]")
    by_text = {token.content: token for token in added.values()}
    named: NamedTokens = {}
    for key in NAMED_TOKENS:
        token = _named_token(values.get(key), settings_file, key)
        if token is not None:
            named[key] = by_text.get(_text_of(token) or "", token)
    extra = values.get("additional_special_tokens")
    if isinstance(extra, list):
        named["additional_special_tokens"] = [
            token
            for item in extra
            if (token := _named_token(item, settings_file, "additional_special_tokens")) is not None
        ]
    more = values.get("extra_special_tokens")
    if isinstance(more, dict):
        for key, item in more.items():
            token = _named_token(item, settings_file, f"extra_special_tokens.{key:.40}")
            if token is not None:
                named.setdefault(f"extra:{key}", token)
    return added, named


def _read_older_files(folder: Path, values: dict[str, Any], added: dict[int, AddedToken]) -> None:
    map_file = folder / "special_tokens_map.json"
    for key, entry in (read_object(map_file) or {}).items():
        if isinstance(entry, dict):
            entry = {**entry, "special": True}
        values[key] = entry
    texts = {_text_of(_named_token(values.get(key), map_file, key)) for key in NAMED_TOKENS}
    file = folder / "added_tokens.json"
    for text, value in (read_object(file) or {}).items():
        place = f"the id of {text!r:.60}"
        token_id = as_id(value, file, place)
        encode(text, file, place)
        special = text in texts
        token = AddedToken(text, lstrip=False, rstrip=False, normalized=not special, special=special)
        if added.setdefault(token_id, token).content != text:
            raise damaged(file, place, f"is {token_id}, which {added[token_id].content!r:.60} has too")


def _added_token(entry: object, file: Path, place: str) -> AddedToken:
    item = as_mapping(entry, file, place)
    text = as_text(item.get("content"), file, f"{place}.content")
    encode(text, file, f"{place}.content")
    flags = {
        name: as_flag(item[name], file, f"{place}.{name}")
        for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
        if item.get(name) is not None
    }
    return AddedToken(text, **flags)


def _named_token(value: object, file: Path, place: str) -> str | AddedToken | None:
    if isinstance(value, dict):
        return _added_token(value, file, place)
    if isinstance(value, str) and value:
        encode(value, file, place)
        return value
    return None


def _add_declared(
    backend: Tokenizer, added: Mapping[int, AddedToken], named: NamedTokens, special: tuple[str, ...]
) -> None:
    known: dict[int, AddedToken] = backend.get_added_tokens_decoder()
    identical = {repr(token) for token in known.values()}
    texts = {token.content for token in known.values()}
    wanted: list[str | AddedToken] = [
        token for _, token in sorted(added.items()) if repr(token) not in identical
    ]
    texts.update(_text_of(token) or "" for token in wanted)
    pending = {repr(token) for token in wanted}
    seen: set[str] = set()
    for token in _flat(named):
        text = _text_of(token) or ""
        if text in seen:
            continue
        seen.add(text)
        # A plain text stands for the token it names; an object may also change that token's flags.
        if text not in texts if isinstance(token, str) else repr(token) not in pending:
            wanted.append(token)
    complete = [
        AddedToken(token, special=token in special)
        if isinstance(token, str)
        else AddedToken(
            token.content,
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized,
            special=token.special or token.content in special,
        )
        for token in wanted
    ]
    if complete:
        backend.add_tokens(complete)


def _match_prefix_space(backend: Tokenizer, settings: Mapping[str, Any], kind: TokenizerClass) -> None:
    pre = backend.pre_tokenizer
    wanted = settings.get("add_prefix_space", kind.add_prefix_space)
    if isinstance(wanted, bool) and pre is not None and getattr(pre, "add_prefix_space", wanted) != wanted:
        pre.add_prefix_space = wanted


def _flat(named: NamedTokens) -> Iterator[str | AddedToken]:
    for value in named.values():
        if isinstance(value, list):
            yield from value
        else:
            yield value


def _unique_texts(named: NamedTokens) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_text_of(token) or "" for token in _flat(named)))


def _text_of(token: object) -> str | None:
    if isinstance(token, AddedToken):
        return str(token.content)
    return token if isinstance(token, str) else None


@contextmanager
def _library_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic in the library's Rust code is no Exception
        text = " ".join(str(error).split())
        raise TokenizerError(
            f"{file}: the tokenizers library cannot read it ({text:.200s}); "
            "the file is damaged or newer than the library (pip install -U tokenizers)"
        ) from error
