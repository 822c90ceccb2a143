"""What the class of a tokenizer implies beside its files: default special tokens and the BOS/EOS around a
text.

The values are those of the fast tokenizer classes of transformers 4.57, the version that llama.cpp's
converter pins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class TokenizerClass:
    """A tokenizer class: `defaults` for special tokens that tokenizer_config.json leaves out;
    `add_bos`/`add_eos` are not None for a class that puts them around a text whatever tokenizer.json's
    post-processor says; `split_regex` splits text when there is only vocab.json and merges.txt."""

    defaults: Mapping[str, str] = field(default_factory=dict)
    add_bos: bool | None = None
    add_eos: bool | None = None
    add_prefix_space: bool | None = False
    split_regex: str | None = None

    @property
    def wraps(self) -> bool:
        """Whether BOS and EOS follow from add_bos_token and add_eos_token alone."""
        return self.add_bos is not None

    def wrapping(self, settings: Mapping[str, Any]) -> tuple[bool, bool]:
        """(BOS at the start, EOS at the end) for the content of a tokenizer_config.json."""
        add_bos = settings.get("add_bos_token", self.add_bos)
        add_eos = settings.get("add_eos_token", self.add_eos)
        return add_bos is True, add_eos is True


def _tokens(**names: str) -> dict[str, str]:
    return {f"{kind}_token": text for kind, text in names.items()}


_END = "<|endoftext|>"
_GPT2 = TokenizerClass(_tokens(unk=_END, bos=_END, eos=_END))
_PLAIN = TokenizerClass()
_CLASSES: dict[str, TokenizerClass] = {
    "GPT2Tokenizer": _GPT2,
    "CodeGenTokenizer": _GPT2,
    "GPTNeoXTokenizer": TokenizerClass(_tokens(unk=_END, bos=_END, eos=_END), add_bos=False, add_eos=False),
    "Qwen2Tokenizer": TokenizerClass(_tokens(unk=_END, eos=_END, pad=_END), split_regex=_QWEN2_REGEX),
    "LlamaTokenizer": TokenizerClass(
        _tokens(unk="<unk>", bos="<s>", eos="</s>"), add_bos=True, add_eos=False, add_prefix_space=None
    ),
    "CodeLlamaTokenizer": TokenizerClass(
        _tokens(unk="<unk>", bos="<s>", eos="</s>"), add_bos=True, add_eos=False, add_prefix_space=None
    ),
    "GemmaTokenizer": TokenizerClass(
        _tokens(unk="<unk>", bos="<bos>", eos="<eos>", pad="<pad>"), add_bos=True, add_eos=False
    ),
    "BloomTokenizer": TokenizerClass(_tokens(unk="<unk>", bos="<s>", eos="</s>", pad="<pad>")),
    "CohereTokenizer": TokenizerClass(
        _tokens(unk="<UNK>", bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>"), add_bos=True, add_eos=False
    ),
    "BertTokenizer": TokenizerClass(
        _tokens(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")
    ),
    "RobertaTokenizer": TokenizerClass(
        _tokens(bos="<s>", eos="</s>", unk="<unk>", sep="</s>", pad="<pad>", cls="<s>", mask="<mask>")
    ),
    "XLMRobertaTokenizer": TokenizerClass(
        _tokens(bos="<s>", eos="</s>", unk="<unk>", sep="</s>", pad="<pad>", cls="<s>", mask="<mask>")
    ),
    "T5Tokenizer": TokenizerClass(_tokens(eos="</s>", unk="<unk>", pad="<pad>")),
}
_BY_MODEL_TYPE: dict[str, str] = {
    name: kind
    for kind, names in {
        "GPT2Tokenizer": "dbrx exaone4 flex_olmo gpt2 gpt_bigcode gpt_neo gptj minimax olmo3 opt starcoder2",
        "GPTNeoXTokenizer": "falcon_mamba gpt_neox mamba mamba2 mpt olmo olmo2 olmoe rwkv stablelm",
        "Qwen2Tokenizer": "internvl qwen2 qwen2_5_omni qwen2_5_vl qwen2_audio qwen2_moe qwen2_vl qwen3 qwen3_moe "
        "qwen3_next qwen3_omni_moe qwen3_vl qwen3_vl_moe",
        "LlamaTokenizer": "arcee chameleon deepseek_v2 deepseek_v3 ernie4_5 ernie4_5_moe idefics3 jamba llama "
        "llama4 llama4_text llava mllama paligemma persimmon phi3 phimoe zamba zamba2",
        "CodeLlamaTokenizer": "code_llama",
        "GemmaTokenizer": "gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma",
        "BloomTokenizer": "bloom",
        "CohereTokenizer": "cohere cohere2",
        "CodeGenTokenizer": "codegen phi",
    }.items()
    for name in names.split()
}


def tokenizer_class(settings: Mapping[str, Any], config: Mapping[str, Any]) -> TokenizerClass:
    """The class that tokenizer_config.json names, else the one config.json names or its model_type
    implies."""
    for name in (settings.get("tokenizer_class"), config.get("tokenizer_class")):
        if isinstance(name, str):
            return _CLASSES.get(name.removesuffix("Fast"), _PLAIN)
    model_type = config.get("model_type")
    return _CLASSES.get(_BY_MODEL_TYPE.get(model_type, "") if isinstance(model_type, str) else "", _PLAIN)
