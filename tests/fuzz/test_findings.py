"""What fuzzing has found, made small: each is refused in one sentence now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ewq_gguf.errors import UnsupportedModelError
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
