"""JSON from a checkpoint, read as untrusted input: bounded size and depth, no duplicate keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ewq_gguf.errors import CheckpointError

# tokenizer.json of the largest published vocabularies is about 35 MB.
MAX_JSON_BYTES = 256 << 20


def parse_json(text: str, where: str) -> Any:
    """Parse JSON, refusing duplicate keys and nesting that exhausts the parser.

    Raises:
        CheckpointError: not JSON, a key given twice, or nested too deeply; `where` names the place.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise CheckpointError(f"{where} gives the key {twice[:80]!r} twice; the file is damaged")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except CheckpointError:
        raise
    except RecursionError as error:
        raise CheckpointError(f"{where} is nested too deeply to be genuine") from error
    except ValueError as error:
        raise CheckpointError(f"{where} is not valid JSON ({error}); download it again") from error


def load_json(path: Path) -> Any:
    """Read and parse a JSON file.

    Raises:
        CheckpointError: the file is missing, too large, not UTF-8 or not acceptable JSON.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is {size:,} bytes; no genuine file of this kind is that large")
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text (byte {error.start}); download it again") from error
    return parse_json(text, str(path))


def load_json_object(path: Path) -> dict[str, Any]:
    """Like `load_json`, for a file that must hold an object.

    Raises:
        CheckpointError: as `load_json`, or the top level is something else.
    """
    value = load_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__} where an object was expected")
    return value
