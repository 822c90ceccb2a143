"""What fuzzing has found, made small: each is refused in one sentence now."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from ewq_gguf.calibration.imatrix_file import load_imatrix
from ewq_gguf.checkpoint.gguf_file import read_gguf
from ewq_gguf.errors import CheckpointError, UnsupportedModelError
from tests.fuzz import targets

GEMMA3: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "num_hidden_layers": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"full_attention": "{'a': 1}"}, "gives full_attention = "),
        ({"full_attention": {"a": 1}, "sliding_attention": 10**40}, "gives sliding_attention = "),
        ({"full_attention": [[1]]}, "gives full_attention = "),
    ],
)
def test_rope_parameters_that_are_no_objects(rope: dict[str, Any], said: str, tmp_path: Path) -> None:
    config = json.dumps({**GEMMA3, "rope_parameters": rope}).encode()
    with pytest.raises(UnsupportedModelError, match=said):
        targets._config(config, tmp_path)


def test_an_empty_tensor_with_an_endless_row(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    name = b"token_embd.weight"
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 0)
    tensor = struct.pack("<Q", len(name)) + name + struct.pack("<IQQIQ", 2, 1 << 62, 0, 0, 0)
    path.write_bytes((header + tensor).ljust(128, b"\0"))
    with pytest.raises(CheckpointError, match="with a dimension of 4,611,686,018,427,387,904"):
        read_gguf(path, {0: (1, 4)})


def test_the_name_of_a_cut_entry_does_not_break_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.imatrix"
    path.write_bytes(struct.pack("<ii", 1, 3) + b"a\nb" + struct.pack("<ii", 1, 999))
    with pytest.raises(CheckpointError) as caught:
        load_imatrix(path)
    assert "\n" not in str(caught.value)
    assert "'a\\nb'" in str(caught.value)
