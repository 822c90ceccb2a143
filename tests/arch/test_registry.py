"""Every supported name leads to a class that serves it; every other name to a helpful refusal."""

from __future__ import annotations

from typing import Any

import gguf
import pytest

from ewq_gguf.arch import family_for, supported_architectures
from ewq_gguf.errors import UnsupportedModelError


@pytest.mark.parametrize("name", supported_architectures())
def test_each_name_is_served_by_a_family_that_lists_it(name: str) -> None:
    family = family_for({"architectures": [name]})
    assert name in family.architectures
    assert family.arch in gguf.MODEL_ARCH_NAMES.values()


def test_an_unknown_name_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(UnsupportedModelError, match="Qwen3ForCausalLM"):
        family_for({"architectures": ["Qwen9ForCausalLM"]})


@pytest.mark.parametrize(
    "config", [{}, {"architectures": []}, {"architectures": "Llama"}, {"architectures": [3]}]
)
def test_a_config_without_an_architecture_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="names no architecture"):
        family_for(config)


def test_the_text_part_of_a_multimodal_config_may_name_it() -> None:
    assert family_for({"text_config": {"architectures": ["LlamaForCausalLM"]}}).arch == "llama"


def test_the_text_parts_own_name_comes_first_where_it_is_supported() -> None:
    outer = {"architectures": ["Idefics3ForConditionalGeneration"]}
    assert family_for({**outer, "text_config": {"architectures": ["LlamaForCausalLM"]}}).arch == "llama"
    assert family_for({**outer, "llm_config": {"architectures": ["Qwen3ForCausalLM"]}}).arch == "qwen3"
    with pytest.raises(UnsupportedModelError, match="Idefics3ForConditionalGeneration"):
        family_for({**outer, "text_config": {"architectures": ["SomethingElse"]}})
