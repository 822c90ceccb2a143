"""JSON from a checkpoint, read as untrusted input: bounded size and depth, no duplicate keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ewq_gguf.checkpoint.regular import regular_stat
from ewq_gguf.errors import CheckpointError

# The index of a model with 90,000 tensors is about 9 MB, a plan for it about 15 MB.
MAX_JSON_BYTES = 64 << 20
# Each item of a document becomes an object of some 60 bytes; a header of 90,000 tensors has half a million.
MAX_ITEMS = 1 << 22
MAX_DEPTH = 64


def parse_json(text: str, where: str) -> Any:
    """Parse JSON, refusing duplicate keys, nesting that exhausts the parser, and items without end.

    Raises:
        CheckpointError: not JSON, a key given twice, nested too deeply, or too many items; `where` names the place.
    """
    items = text.count(",")
    if items > MAX_ITEMS:
        raise CheckpointError(
            f"{where} lists some {items:,} items (limit {MAX_ITEMS:,}) and cannot be genuine"
        )

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
        size = regular_stat(path).st_size
        if size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is {size:,} bytes; no genuine file of this kind is that large")
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text (byte {error.start}); download it again") from error
    value = parse_json(text, str(path))
    if _is_deeper(value, MAX_DEPTH):
        raise CheckpointError(f"{path} is nested too deeply to be genuine")
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether containers are nested more than `depth` deep: what was parsed may still be too deep to be written."""
    level = [value]
    for _ in range(depth):
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
    return bool(level)


def load_json_object(path: Path) -> dict[str, Any]:
    """Like `load_json`, for a file that must hold an object.

    Raises:
        CheckpointError: as `load_json`, or the top level is something else.
    """
    value = load_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__} where an object was expected")
    return value
