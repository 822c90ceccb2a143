"""Reading a tokenizer's files without trusting them: every size, type and id is checked before it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ewq_gguf.errors import TokenizerError

MAX_TOKENS = 1 << 21
"""Most entries a vocabulary may claim; the largest published ones stay below a quarter of that."""

MAX_FILE_BYTES = 1 << 26
"""Largest tokenizer file that is read into memory; the largest published ones have half of that."""

MAX_ITEMS = 1 << 22
"""Most items of a JSON file, each of which becomes an object in memory; published files stay below a third of
that."""

MAX_TOKEN_BYTES = 1 << 16
"""Longest text of a single token, in UTF-8 bytes."""

MAX_ID = (1 << 32) - 1


def damaged(file: Path | str, place: str, problem: str) -> TokenizerError:
    """The error for a file whose content cannot be right: which file, where in it, and what is wrong."""
    where = f"{file}: {place}" if place else f"{file}"
    return TokenizerError(f"{where} {problem}; the tokenizer file is damaged, download it again")


def read_bytes(path: Path, limit: int = MAX_FILE_BYTES) -> bytes | None:
    """The content of `path`, or None when there is no such file.

    Raises TokenizerError when it cannot be read or has more than `limit` bytes.
    """
    try:
        if not path.is_file():
            return None
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read ({error.strerror}); check the file") from error
    if len(data) > limit:
        raise TokenizerError(f"{path}: has more than {limit} bytes, too many for a tokenizer file")
    return data


def read_text(path: Path, limit: int = MAX_FILE_BYTES) -> str | None:
    """The UTF-8 text in `path` with newlines as `\\n`, or None when there is no such file."""
    data = read_bytes(path, limit)
    if data is None:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, f"byte {error.start}", "is not valid UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`, or None when there is no such file.

    Raises TokenizerError when it is not UTF-8, not JSON, nested too deeply, or not an object.
    """
    data = read_bytes(path)
    if data is None:
        return None
    try:
        items = data.count(b",")
        if items > MAX_ITEMS:
            raise damaged(path, "", f"lists some {items} items, more than {MAX_ITEMS}")
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise damaged(path, f"byte {error.start}", "is not valid UTF-8") from error
    except json.JSONDecodeError as error:
        raise damaged(
            path, f"line {error.lineno} column {error.colno}", f"is not JSON ({error.msg})"
        ) from error
    except (RecursionError, ValueError) as error:
        raise damaged(path, "", f"is not JSON this program can read ({error})") from error
    return as_mapping(value, path, "the top level")


def as_mapping(value: object, file: Path, place: str) -> dict[str, Any]:
    """`value` when it is a JSON object; TokenizerError otherwise."""
    if not isinstance(value, dict):
        raise damaged(file, place, f"must be an object, not {_kind(value)}")
    return value


def as_sequence(value: object, file: Path, place: str) -> list[Any]:
    """`value` when it is a JSON array; TokenizerError otherwise."""
    if not isinstance(value, list):
        raise damaged(file, place, f"must be an array, not {_kind(value)}")
    return value


def as_text(value: object, file: Path, place: str) -> str:
    """`value` when it is a string that UTF-8 can hold; TokenizerError otherwise."""
    if not isinstance(value, str):
        raise damaged(file, place, f"must be a string, not {_kind(value)}")
    encode(value, file, place, limit=MAX_FILE_BYTES)
    return value


def as_flag(value: object, file: Path, place: str) -> bool:
    """`value` when it is true or false; TokenizerError otherwise."""
    if not isinstance(value, bool):
        raise damaged(file, place, f"must be true or false, not {_kind(value)}")
    return value


def as_id(value: object, file: Path, place: str, limit: int = MAX_TOKENS) -> int:
    """`value` when it is a token id in [0, limit); TokenizerError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise damaged(file, place, f"must be a token id, not {_kind(value)}")
    if not 0 <= value < limit:
        shown = str(value) if abs(value) < 10**20 else "a number of more than 20 digits"
        raise damaged(file, place, f"is {shown}, not a token id from 0 to {limit - 1}")
    return value


def encode(text: str, file: Path, place: str, limit: int = MAX_TOKEN_BYTES) -> bytes:
    """`text` as UTF-8; TokenizerError for lone surrogates and for more than `limit` bytes."""
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise damaged(file, place, "holds half of a surrogate pair") from error
    if len(data) > limit:
        raise damaged(file, place, f"is {len(data)} bytes long, more than the {limit} a token may have")
    return data


def vocabulary_size(config: Mapping[str, Any], keys: Sequence[str] = ("vocab_size",)) -> int | None:
    """The first of `keys` present in config.json, checked; None when it is absent, null or 0.

    Raises TokenizerError when it is not an integer or claims more than MAX_TOKENS entries.
    """
    for key in keys:
        if key in config:
            value = config[key]
            if value is None:
                return None
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_TOKENS:
                shown = repr(value) if isinstance(value, int | float | bool) else _kind(value)
                raise TokenizerError(
                    f"config.json: {key} is {shown:.40s}, not a vocabulary size from 1 to {MAX_TOKENS}; "
                    "correct config.json"
                )
            return value or None
    return None


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "an object")
