"""Which family serves which `architectures` name; a family's module is imported when it is needed."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import TEXT_SECTIONS
from ewq_gguf.errors import UnsupportedModelError

# Architecture name in config.json -> (module under ewq_gguf.arch, class).
_FAMILIES: dict[str, tuple[str, str]] = {
    "AfmoeForCausalLM": ("afmoe", "Afmoe"),
    "ApertusForCausalLM": ("apertus", "Apertus"),
    "ArceeForCausalLM": ("apertus", "Arcee"),
    "BaichuanForCausalLM": ("orion", "Baichuan"),
    "BaiChuanForCausalLM": ("orion", "Baichuan"),
    "BailingMoeForCausalLM": ("bailing", "BailingMoe"),
    "BailingMoeV2ForCausalLM": ("bailing", "BailingMoe2"),
    "BambaForCausalLM": ("granite_hybrid", "GraniteHybrid"),
    "BertForMaskedLM": ("bert", "Bert"),
    "BertModel": ("bert", "Bert"),
    "BloomForCausalLM": ("bloom", "Bloom"),
    "BloomModel": ("bloom", "Bloom"),
    "ChatGLMForConditionalGeneration": ("chatglm", "ChatGLM"),
    "ChatGLMModel": ("chatglm", "ChatGLM"),
    "Cohere2ForCausalLM": ("cohere", "Cohere2"),
    "CohereForCausalLM": ("cohere", "CommandR"),
    "DbrxForCausalLM": ("dbrx", "Dbrx"),
    "DeciLMForCausalLM": ("deci", "Deci"),
    "DeepseekV2ForCausalLM": ("deepseek2", "Deepseek2"),
    "DeepseekV3ForCausalLM": ("deepseek2", "Deepseek3"),
    "Dots1ForCausalLM": ("bailing", "Dots1"),
    "Ernie4_5_ForCausalLM": ("ernie", "Ernie45"),
    "Ernie4_5_MoeForCausalLM": ("ernie", "Ernie45Moe"),
    "Ernie4_5ForCausalLM": ("ernie", "Ernie45"),
    "Exaone4ForCausalLM": ("exaone", "Exaone4"),
    "ExaoneForCausalLM": ("exaone", "Exaone"),
    "ExaoneMoeForCausalLM": ("exaone", "ExaoneMoe"),
    "ExaoneMoEForCausalLM": ("exaone", "ExaoneMoe"),
    "FalconForCausalLM": ("falcon", "Falcon"),
    "FalconH1ForCausalLM": ("falcon_h1", "FalconH1"),
    "FalconMambaForCausalLM": ("mamba", "Mamba"),
    "Gemma2ForCausalLM": ("gemma", "Gemma2"),
    "Gemma3ForCausalLM": ("gemma", "Gemma3"),
    "Gemma3ForConditionalGeneration": ("gemma", "Gemma3"),
    "Gemma3nForCausalLM": ("gemma3n", "Gemma3n"),
    "Gemma3nForConditionalGeneration": ("gemma3n", "Gemma3n"),
    "Gemma3TextModel": ("gemma", "EmbeddingGemma"),
    "Gemma4ForCausalLM": ("gemma4", "Gemma4"),
    "Gemma4ForConditionalGeneration": ("gemma4", "Gemma4"),
    "GemmaForCausalLM": ("gemma", "Gemma"),
    "Glm4ForCausalLM": ("glm4", "Glm4"),
    "Glm4MoeForCausalLM": ("glm4", "Glm4Moe"),
    "Glm4MoeLiteForCausalLM": ("deepseek2", "Glm4MoeLite"),
    "Glm4vMoeForConditionalGeneration": ("glm4", "Glm4vMoe"),
    "GlmForCausalLM": ("chatglm", "ChatGLM"),
    "GlmMoeDsaForCausalLM": ("glm_dsa", "GlmMoeDsa"),
    "GPT2LMHeadModel": ("gpt2", "GPT2"),
    "GPTBigCodeForCausalLM": ("gpt2", "StarCoder"),
    "GPTNeoXForCausalLM": ("gptneox", "GPTNeoX"),
    "GptOssForCausalLM": ("gpt_oss", "GptOss"),
    "GraniteForCausalLM": ("granite", "Granite"),
    "GraniteMoeForCausalLM": ("granite", "GraniteMoe"),
    "GraniteMoeHybridForCausalLM": ("granite_hybrid", "GraniteHybrid"),
    "GraniteMoeSharedForCausalLM": ("granite", "GraniteMoe"),
    "Grok1ForCausalLM": ("grok", "Grok"),
    "GrokForCausalLM": ("grok", "Grok"),
    "HunYuanDenseV1ForCausalLM": ("hunyuan", "HunyuanDense"),
    "HunYuanMoEV1ForCausalLM": ("hunyuan", "HunyuanMoe"),
    "InternLM2ForCausalLM": ("internlm2", "InternLM2"),
    "InternLM3ForCausalLM": ("internlm3", "InternLM3"),
    "Jais2ForCausalLM": ("jais", "Jais2"),
    "JambaForCausalLM": ("jamba", "Jamba"),
    "Lfm2ForCausalLM": ("lfm2", "Lfm2"),
    "LFM2ForCausalLM": ("lfm2", "Lfm2"),
    "Lfm2MoeForCausalLM": ("lfm2", "Lfm2Moe"),
    "Llama4ForCausalLM": ("llama4", "Llama4"),
    "Llama4ForConditionalGeneration": ("llama4", "Llama4"),
    "KimiK2ForCausalLM": ("deepseek2", "Deepseek3"),
    "KimiLinearForCausalLM": ("kimi_linear", "KimiLinear"),
    "LLaMAForCausalLM": ("llama", "Llama"),
    "LlamaForCausalLM": ("llama", "Llama"),
    "LlavaForConditionalGeneration": ("llama", "Llama"),
    "LlavaStableLMEpochForCausalLM": ("stablelm", "StableLM"),
    "Mamba2ForCausalLM": ("mamba", "Mamba2"),
    "MambaForCausalLM": ("mamba", "Mamba"),
    "MambaLMHeadModel": ("mamba", "Mamba"),
    "MiMoV2FlashForCausalLM": ("mimo", "MiMo2"),
    "MiMoV2ForCausalLM": ("mimo", "MiMo2"),
    "MiniCPM3ForCausalLM": ("minicpm", "MiniCPM3"),
    "MiniCPMForCausalLM": ("minicpm", "MiniCPM"),
    "MiniMaxM2ForCausalLM": ("minimax", "MiniMaxM2"),
    "Ministral3ForCausalLM": ("mistral3", "Mistral3"),
    "Mistral3ForConditionalGeneration": ("mistral3", "Mistral3"),
    "MistralForCausalLM": ("llama", "Mistral"),
    "MixtralForCausalLM": ("llama", "Mixtral"),
    "MPTForCausalLM": ("mpt", "MPT"),
    "NemotronForCausalLM": ("nemotron", "Nemotron"),
    "NemotronHForCausalLM": ("nemotron_h", "NemotronH"),
    "NomicBertModel": ("bert", "NomicBert"),
    "Olmo2ForCausalLM": ("olmo", "Olmo2"),
    "Olmo3ForCausalLM": ("olmo", "Olmo2"),
    "OlmoeForCausalLM": ("olmo", "OlmoE"),
    "OlmoForCausalLM": ("olmo", "Olmo"),
    "OLMoForCausalLM": ("olmo", "Olmo"),
    "OpenELMForCausalLM": ("openelm", "OpenElm"),
    "OrionForCausalLM": ("orion", "Orion"),
    "Phi3ForCausalLM": ("phi3", "Phi3"),
    "Phi4ForCausalLMV": ("phi3", "Phi3"),
    "PhiForCausalLM": ("phi2", "Phi2"),
    "PhiMoEForCausalLM": ("phi3", "PhiMoe"),
    "Plamo3ForCausalLM": ("plamo", "Plamo3"),
    "PLaMo3ForCausalLM": ("plamo", "Plamo3"),
    "Qwen2_5_VLForConditionalGeneration": ("qwen_vl", "Qwen2VL"),
    "Qwen2ForCausalLM": ("qwen", "Qwen2"),
    "Qwen2Model": ("qwen", "Qwen2Bare"),
    "Qwen2MoeForCausalLM": ("qwen", "Qwen2Moe"),
    "Qwen2VLForConditionalGeneration": ("qwen_vl", "Qwen2VL"),
    "Qwen3_5ForCausalLM": ("qwen_next", "Qwen35"),
    "Qwen3_5ForConditionalGeneration": ("qwen_next", "Qwen35"),
    "Qwen3_5MoeForCausalLM": ("qwen_next", "Qwen35Moe"),
    "Qwen3_5MoeForConditionalGeneration": ("qwen_next", "Qwen35Moe"),
    "Qwen3ForCausalLM": ("qwen", "Qwen3"),
    "Qwen3MoeForCausalLM": ("qwen", "Qwen3Moe"),
    "Qwen3NextForCausalLM": ("qwen_next", "Qwen3Next"),
    "Qwen3VLForConditionalGeneration": ("qwen_vl", "Qwen3VL"),
    "Qwen3VLMoeForConditionalGeneration": ("qwen_vl", "Qwen3VLMoe"),
    "QWenLMHeadModel": ("qwen", "Qwen"),
    "RWForCausalLM": ("falcon", "Falcon"),
    "Rwkv7ForCausalLM": ("rwkv", "Rwkv7"),
    "RWKV7ForCausalLM": ("rwkv", "Rwkv7"),
    "SeedOssForCausalLM": ("seed_oss", "SeedOss"),
    "SmallThinkerForCausalLM": ("smallthinker", "SmallThinker"),
    "SmolLM3ForCausalLM": ("llama", "SmolLM3"),
    "StableLMEpochForCausalLM": ("stablelm", "StableLM"),
    "StableLmForCausalLM": ("stablelm", "StableLM"),
    "Starcoder2ForCausalLM": ("starcoder2", "StarCoder2"),
    "Step3p5ForCausalLM": ("step35", "Step35"),
    "VLlama3ForCausalLM": ("llama", "VLlama3"),
    "VoxtralForConditionalGeneration": ("llama", "Llama"),
    "XLMRobertaModel": ("bert", "XlmRoberta"),
    "XverseForCausalLM": ("orion", "Xverse"),
}


def supported_architectures() -> dict[str, str]:
    """Architecture name -> the module that holds its family, sorted by name."""
    return {name: module for name, (module, _) in sorted(_FAMILIES.items(), key=lambda item: item[0].lower())}


def architecture_name(config: Mapping[str, Any]) -> str:
    """The architecture that config.json names first, for the text model where that has a supported name of its own.

    Source: `get_model_architecture` in llama.cpp's conversion/base.py.

    Raises:
        UnsupportedModelError: it names none.
    """
    found = _first_architecture(config)
    for key in TEXT_SECTIONS:
        nested = _first_architecture(config.get(key))
        if nested is not None and (found is None or nested in _FAMILIES):
            return nested
    if found is not None:
        return found
    raise UnsupportedModelError(
        "config.json names no architecture (`architectures` is missing); is it a language model's checkpoint?"
    )


def _first_architecture(part: object) -> str | None:
    names = part.get("architectures") if isinstance(part, Mapping) else None
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def family_for(config: Mapping[str, Any]) -> type[Family]:
    """The family class for a parsed config.json.

    Raises:
        UnsupportedModelError: the architecture is not supported; the message names the nearest ones.
    """
    name = architecture_name(config)
    if name not in _FAMILIES:
        near = difflib.get_close_matches(name[:80], _FAMILIES, n=3)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise UnsupportedModelError(
            f"config.json names the architecture {name[:80]!r}, which is not supported{hint}; `ewq-gguf models` lists all, "
            "and any GGUF that llama.cpp's own converter makes can be given instead"
        )
    module, cls = _FAMILIES[name]
    family: type[Family] = getattr(importlib.import_module(f"ewq_gguf.arch.{module}"), cls)
    return family
