"""The content of a tokenizer.json: checked before the `tokenizers` library sees it, or built from older files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab.files import (
    MAX_TOKEN_BYTES,
    MAX_TOKENS,
    as_id,
    as_mapping,
    as_sequence,
    as_text,
    damaged,
    encode,
    read_object,
)
from ewq_gguf.vocab.merges import MAX_MERGES, read_merges_txt
from ewq_gguf.vocab.tokenizer_class import TokenizerClass


def check_document(document: Mapping[str, Any], file: Path) -> None:
    """Check the ids, texts and sizes of a tokenizer.json before the library sees it; TokenizerError if any
    is bad."""
    model = as_mapping(document.get("model"), file, "model")
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        _check_vocab(vocab, file)
    else:
        _check_scored_vocab(as_sequence(vocab, file, "model.vocab"), file)
    if not vocab:
        raise damaged(file, "model.vocab", "holds no tokens")
    as_text(model.get("type", "BPE"), file, "model.type")
    _check_merges(as_sequence(model.get("merges", []), file, "model.merges"), file)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if document.get(part) is not None:
            as_mapping(document[part], file, part)
    _check_templates(document.get("post_processor"), file)
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


def _check_merges(merges: list[Any], file: Path) -> None:
    if len(merges) > MAX_MERGES:
        raise damaged(file, "model.merges", f"has more than {MAX_MERGES} entries")
    seen: set[tuple[str, str]] = set()
    for index, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if type(parts) is not list or len(parts) != 2 or not all(type(part) is str for part in parts):
            raise damaged(file, f"model.merges[{index}]", "is not a pair of texts")
        left, right = parts
        if not left or not right:
            raise damaged(file, f"model.merges[{index}]", "joins a token with nothing")
        if not (left.isascii() and right.isascii()):
            encode(left + right, file, f"model.merges[{index}]", limit=2 * MAX_TOKEN_BYTES)
        pair = (left, right)
        if pair in seen:
            # The library takes the last of two ranks, llama.cpp the first.
            raise damaged(
                file, f"model.merges[{index}]", f"repeats the merge of {left!r:.60} and {right!r:.60}"
            )
        seen.add(pair)


def _check_templates(node: object, file: Path) -> None:
    """A template that uses a token it does not define makes the library panic."""
    if not isinstance(node, dict):
        return
    inner = node.get("processors")
    for step in inner if isinstance(inner, list) else [node]:
        known = step.get("special_tokens") if isinstance(step, dict) else None
        if not isinstance(known, dict):
            continue
        for part in ("single", "pair"):
            pieces = step.get(part)
            for piece in pieces if isinstance(pieces, list) else []:
                token = piece.get("SpecialToken") if isinstance(piece, dict) else None
                name = token.get("id") if isinstance(token, dict) else None
                if isinstance(name, str) and name not in known:
                    raise damaged(
                        file, f"post_processor.{part}", f"uses {name!r:.60}, which it does not define"
                    )


def _check_scored_vocab(vocab: list[Any], file: Path) -> None:
    for index, pair in enumerate(vocab):
        place = f"model.vocab[{index}]"
        entry = as_sequence(pair, file, place)
        if len(entry) != 2 or not isinstance(entry[1], int | float) or isinstance(entry[1], bool):
            raise damaged(file, place, "must be a token and its score")
        encode(as_text(entry[0], file, place), file, place)
        as_id(index, file, place)


def document_from_vocab(folder: Path, kind: TokenizerClass, settings: Mapping[str, Any]) -> dict[str, Any]:
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
