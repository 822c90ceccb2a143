"""Which family serves which `architectures` name; a family's module is imported when it is needed."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from ewq_gguf.arch.base import Family
from ewq_gguf.errors import UnsupportedModelError

# Architecture name in config.json -> (module under ewq_gguf.arch, class).
_FAMILIES: dict[str, tuple[str, str]] = {
    "BloomForCausalLM": ("bloom", "Bloom"),
    "BloomModel": ("bloom", "Bloom"),
    "Cohere2ForCausalLM": ("cohere", "Cohere2"),
    "CohereForCausalLM": ("cohere", "CommandR"),
    "DeepseekV2ForCausalLM": ("deepseek2", "Deepseek2"),
    "DeepseekV3ForCausalLM": ("deepseek2", "Deepseek3"),
    "Exaone4ForCausalLM": ("exaone", "Exaone4"),
    "ExaoneForCausalLM": ("exaone", "Exaone"),
    "FalconForCausalLM": ("falcon", "Falcon"),
    "FalconMambaForCausalLM": ("mamba", "Mamba"),
    "Gemma2ForCausalLM": ("gemma", "Gemma2"),
    "Gemma3ForCausalLM": ("gemma", "Gemma3"),
    "Gemma3ForConditionalGeneration": ("gemma", "Gemma3"),
    "GemmaForCausalLM": ("gemma", "Gemma"),
    "Glm4ForCausalLM": ("glm4", "Glm4"),
    "Glm4MoeForCausalLM": ("glm4", "Glm4Moe"),
    "GPT2LMHeadModel": ("gpt2", "GPT2"),
    "GPTBigCodeForCausalLM": ("gpt2", "StarCoder"),
    "GPTNeoXForCausalLM": ("gptneox", "GPTNeoX"),
    "GptOssForCausalLM": ("gpt_oss", "GptOss"),
    "GraniteForCausalLM": ("granite", "Granite"),
    "GraniteMoeForCausalLM": ("granite", "GraniteMoe"),
    "GraniteMoeSharedForCausalLM": ("granite", "GraniteMoe"),
    "InternLM2ForCausalLM": ("internlm2", "InternLM2"),
    "Llama4ForCausalLM": ("llama4", "Llama4"),
    "Llama4ForConditionalGeneration": ("llama4", "Llama4"),
    "LLaMAForCausalLM": ("llama", "Llama"),
    "LlamaForCausalLM": ("llama", "Llama"),
    "LlavaStableLMEpochForCausalLM": ("stablelm", "StableLM"),
    "Mamba2ForCausalLM": ("mamba", "Mamba2"),
    "MambaForCausalLM": ("mamba", "Mamba"),
    "MambaLMHeadModel": ("mamba", "Mamba"),
    "MistralForCausalLM": ("llama", "Mistral"),
    "MixtralForCausalLM": ("llama", "Mixtral"),
    "MPTForCausalLM": ("mpt", "MPT"),
    "NemotronForCausalLM": ("nemotron", "Nemotron"),
    "Olmo2ForCausalLM": ("olmo", "Olmo2"),
    "Olmo3ForCausalLM": ("olmo", "Olmo2"),
    "OlmoeForCausalLM": ("olmo", "OlmoE"),
    "OlmoForCausalLM": ("olmo", "Olmo"),
    "OLMoForCausalLM": ("olmo", "Olmo"),
    "Phi3ForCausalLM": ("phi3", "Phi3"),
    "Phi4ForCausalLMV": ("phi3", "Phi3"),
    "PhiForCausalLM": ("phi2", "Phi2"),
    "PhiMoEForCausalLM": ("phi3", "PhiMoe"),
    "Qwen2ForCausalLM": ("qwen", "Qwen2"),
    "Qwen2MoeForCausalLM": ("qwen", "Qwen2Moe"),
    "Qwen3ForCausalLM": ("qwen", "Qwen3"),
    "Qwen3MoeForCausalLM": ("qwen", "Qwen3Moe"),
    "RWForCausalLM": ("falcon", "Falcon"),
    "SmolLM3ForCausalLM": ("llama", "SmolLM3"),
    "StableLMEpochForCausalLM": ("stablelm", "StableLM"),
    "StableLmForCausalLM": ("stablelm", "StableLM"),
    "Starcoder2ForCausalLM": ("starcoder2", "StarCoder2"),
}


def supported_architectures() -> dict[str, str]:
    """Architecture name -> the module that holds its family, sorted by name."""
    return {name: module for name, (module, _) in sorted(_FAMILIES.items(), key=lambda item: item[0].lower())}


def architecture_name(config: Mapping[str, Any]) -> str:
    """The architecture that config.json names first.

    Raises:
        UnsupportedModelError: it names none.
    """
    for part in (config, config.get("text_config")):
        names = part.get("architectures") if isinstance(part, Mapping) else None
        if isinstance(names, list) and names and isinstance(names[0], str):
            return names[0]
    raise UnsupportedModelError(
        "config.json names no architecture (`architectures` is missing); is it a language model's checkpoint?"
    )


def family_for(config: Mapping[str, Any]) -> type[Family]:
    """The family class for a parsed config.json.

    Raises:
        UnsupportedModelError: the architecture is not supported; the message names the nearest ones.
    """
    name = architecture_name(config)
    if name not in _FAMILIES:
        near = difflib.get_close_matches(name, _FAMILIES, n=3)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise UnsupportedModelError(
            f"architecture {name[:80]!r} is not supported{hint}; `ewq-gguf models` lists all, "
            "and any GGUF that llama.cpp's own converter makes can be given instead"
        )
    module, cls = _FAMILIES[name]
    family: type[Family] = getattr(importlib.import_module(f"ewq_gguf.arch.{module}"), cls)
    return family
