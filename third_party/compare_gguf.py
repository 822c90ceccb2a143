"""Compare two GGUF files: every metadata key and every tensor's type, shape and bytes.

    python third_party/compare_gguf.py OURS.gguf REFERENCE.gguf

Keys that only name the producer (`ewq.*`) are left out. Exit code 0 when nothing differs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_STRUCTURE = ("GGUF.", "ewq.")


def _metadata(reader: gguf.GGUFReader) -> dict[str, tuple[Any, list[Any]]]:
    found = {}
    for key, field in reader.fields.items():
        if not key.startswith(_STRUCTURE):
            found[key] = (field.contents(), [t.name for t in field.types])
    return found


def differences(ours: Path, reference: Path) -> list[str]:
    """One line for each difference between two GGUF files; empty when they agree."""
    a, b = gguf.GGUFReader(ours), gguf.GGUFReader(reference)
    found = []
    left, right = _metadata(a), _metadata(b)
    for key in sorted(left.keys() | right.keys()):
        if key not in left:
            found.append(f"metadata {key}: missing, reference has {str(right[key])[:120]}")
        elif key not in right:
            found.append(f"metadata {key}: reference has none, ours is {str(left[key])[:120]}")
        elif left[key] != right[key]:
            found.append(f"metadata {key}: {_shorten(left[key], right[key])}")
    ours_t, theirs_t = {t.name: t for t in a.tensors}, {t.name: t for t in b.tensors}
    for name in sorted(ours_t.keys() | theirs_t.keys()):
        if name not in ours_t or name not in theirs_t:
            found.append(f"tensor {name}: only in {'reference' if name not in ours_t else 'ours'}")
            continue
        x, y = ours_t[name], theirs_t[name]
        if x.tensor_type != y.tensor_type or list(x.shape) != list(y.shape):
            found.append(
                f"tensor {name}: {x.tensor_type.name} {list(x.shape)} against {y.tensor_type.name} {list(y.shape)}"
            )
        elif not np.array_equal(x.data.view(np.uint8), y.data.view(np.uint8)):
            unequal = int((x.data.view(np.uint8) != y.data.view(np.uint8)).sum())
            found.append(f"tensor {name}: {unequal} of {x.n_bytes} bytes differ")
    return found


def _shorten(left: tuple[Any, list[Any]], right: tuple[Any, list[Any]]) -> str:
    if left[1] != right[1]:
        return f"type {left[1]} against {right[1]}"
    if isinstance(left[0], list) and isinstance(right[0], list):
        if len(left[0]) != len(right[0]):
            return f"{len(left[0])} entries against {len(right[0])}"
        at = next(i for i, (x, y) in enumerate(zip(left[0], right[0])) if x != y)
        return f"entry {at}: {left[0][at]!r:.80} against {right[0][at]!r:.80}"
    return f"{left[0]!r:.100} against {right[0]!r:.100}"


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    found = differences(Path(sys.argv[1]), Path(sys.argv[2]))
    print("\n".join(found) if found else "equal")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
