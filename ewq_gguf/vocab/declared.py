"""Tokens that the files beside tokenizer.json declare: added tokens by id, and the special tokens by name.

The order of precedence and the way they are added are those of `PreTrainedTokenizerFast` in transformers 4.57.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from ewq_gguf.vocab.files import as_flag, as_id, as_mapping, as_text, damaged, encode, read_object
from ewq_gguf.vocab.tokenizer_class import NAMED_TOKENS, TokenizerClass

NamedTokens = dict[str, "str | AddedToken | list[str | AddedToken]"]


def declared_tokens(
    folder: Path,
    document: Mapping[str, Any],
    file: Path,
    settings: Mapping[str, Any],
    kind: TokenizerClass,
) -> tuple[dict[int, AddedToken], NamedTokens]:
    """Added tokens by id, and the named special tokens, as tokenizer_config.json and its older companions
    say."""
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
            named[key] = by_text.get(text_of(token) or "", token)
    for key in ("additional_special_tokens", "extra_special_tokens"):
        # transformers 5 lists under the second name what older versions listed under the first.
        items = values.get(key)
        if isinstance(items, list):
            tokens = (_named_token(item, settings_file, key) for item in items)
            named[key] = [token for token in tokens if token is not None]
        elif isinstance(items, dict):
            for name, item in items.items():
                token = _named_token(item, settings_file, f"{key}.{name:.40}")
                if token is not None:
                    named.setdefault(f"extra:{name}", token)
    return added, named


def _read_older_files(folder: Path, values: dict[str, Any], added: dict[int, AddedToken]) -> None:
    map_file = folder / "special_tokens_map.json"
    for key, entry in (read_object(map_file) or {}).items():
        if isinstance(entry, dict):
            entry = {**entry, "special": True}
        values[key] = entry
    named = (values.get(key) for key in NAMED_TOKENS)
    named_texts = (value.get("content") if isinstance(value, dict) else value for value in named)
    texts = {text for text in named_texts if isinstance(text, str)}
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


def add_declared(
    backend: Tokenizer, added: Mapping[int, AddedToken], named: NamedTokens, special: tuple[str, ...]
) -> None:
    known: dict[int, AddedToken] = backend.get_added_tokens_decoder()
    identical = {repr(token) for token in known.values()}
    texts = {token.content for token in known.values()}
    wanted: list[str | AddedToken] = [
        token for _, token in sorted(added.items()) if repr(token) not in identical
    ]
    texts.update(text_of(token) or "" for token in wanted)
    pending = {repr(token) for token in wanted}
    seen: set[str] = set()
    for token in _flat(named):
        text = text_of(token) or ""
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


def _flat(named: NamedTokens) -> Iterator[str | AddedToken]:
    for value in named.values():
        if isinstance(value, list):
            yield from value
        else:
            yield value


def unique_texts(named: NamedTokens) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text_of(token) or "" for token in _flat(named)))


def text_of(token: object) -> str | None:
    if isinstance(token, AddedToken):
        return str(token.content)
    return token if isinstance(token, str) else None
