"""Tiny checkpoints of the families before and beside Llama, in the configs of their time and of transformers 5.

Some configs stop the pinned converter, or the transformers it reads them with. Such a case says how the same model must
be spelled for it (`reference`, `without`), and why; what we write more than it does stands in `more`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests import tiny_classic_shapes as shapes
from tests.tiny.case import Case, bare, config_of, modern
from tests.tiny.shapes import llama

Config = dict[str, Any]


@dataclass(frozen=True)
class ClassicCase(Case):
    """A case that may be spelled in another way for the reference.

    Attributes:
        reference: config entries that differ in the reference's copy; `...` leaves one out. None: it cannot convert
            the model at all.
        without: endings of tensor names that the reference's copy lacks.
        more: metadata keys that only our file has.
        exact: tensors that we keep in F32 and the reference does not.
        loads: whether llama.cpp takes the reference's file.
        why: what the differences come from.
    """

    reference: Mapping[str, Any] | None = field(default_factory=dict)
    without: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()
    loads: bool = True
    why: str = ""


def reference_copy(case: ClassicCase) -> ClassicCase:
    """The same model, spelled for the reference converter."""
    config = {**case.config, **(case.reference or {})}
    config = {key: value for key, value in config.items() if value is not ...}
    tensors = {n: s for n, s in case.shapes(case.config).items() if not n.endswith(case.without or ("\0",))}
    return replace(case, config=config, shapes=lambda _: tensors)


def _legacy(architecture: str, model_type: str, **values: Any) -> Config:
    """A config of a family that does not use the common key names."""
    return {"architectures": [architecture], "model_type": model_type, "vocab_size": 320, **values}


_NO_FILE_TYPE = "the reference writes no general.file_type for this family; we always do"

_GPT2 = _legacy(
    "GPT2LMHeadModel", "gpt2", n_embd=64, n_head=4, n_layer=2, n_positions=64, layer_norm_epsilon=1e-5
)
GPT2 = ClassicCase(
    "gpt2", {**_GPT2, "n_ctx": 64}, lambda c: shapes.gpt2(c, prefix=""), dtype="F32", types=("f32", "f16")
)
GPT2_MASKS = replace(
    GPT2,
    name="gpt2-masks",
    shapes=lambda c: shapes.gpt2(c, prefix="", masks=True),
    without=(".attn.bias", ".attn.masked_bias"),
    why="the reference stops at the causal masks that the published GPT-2 files hold",
)
GPT2_V5 = replace(
    GPT2,
    name="gpt2-v5",
    config={**_GPT2, "dtype": "float32", "tie_word_embeddings": True},
    shapes=shapes.gpt2,
    reference={"n_ctx": 64},
    why="the reference wants n_ctx, which newer configs do not have",
)
STARCODER = ClassicCase(
    "starcoder",
    {**_GPT2, "architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode", "multi_query": True},
    shapes.starcoder,
)
_NEOX = config_of("GPTNeoXForCausalLM", "gpt_neox", layer_norm_eps=1e-5, rms_norm_eps=..., rope_theta=...)
GPTNEOX = ClassicCase(
    "gptneox",
    {**_NEOX, "rotary_pct": 0.25, "rotary_emb_base": 10000, "use_parallel_residual": True},
    lambda c: shapes.gptneox(c, buffers=True),
    dtype="F16",
    types=("f16",),
    reference={"model_type": "gpt_neox_as_written"},
    more=("general.file_type",),
    why="transformers 5 takes rotary_pct away before the reference reads it; " + _NO_FILE_TYPE,
)
GPTNEOX_SERIAL = replace(
    GPTNEOX,
    name="gptneox-serial",
    config={**GPTNEOX.config, "use_parallel_residual": False, "rotary_pct": 0.5},
)
GPTNEOX_V5 = replace(
    GPTNEOX,
    name="gptneox-v5",
    dtype="BF16",
    types=("bf16",),
    config={
        **_NEOX,
        "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 10000, "rope_type": "default"},
    },
    shapes=shapes.gptneox,
    reference={"model_type": "gpt_neox_as_written", "rotary_pct": 0.5, "rope_parameters": ...},
)
_FALCON = _legacy(
    "FalconForCausalLM",
    "falcon",
    hidden_size=64,
    num_attention_heads=4,
    num_hidden_layers=2,
    layer_norm_epsilon=1e-5,
    alibi=False,
    bias=False,
    multi_query=True,
    parallel_attn=True,
    new_decoder_architecture=False,
)
FALCON = ClassicCase(
    "falcon-7b",
    _FALCON,
    lambda c: shapes.falcon(c, groups=1),
    reference={"num_kv_heads": 1},
    why="the reference sees as many key-value heads as query heads, although multi_query means one",
)
FALCON_NEW = ClassicCase(
    "falcon-40b",
    {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    lambda c: shapes.falcon(c, groups=2, two_norms=True),
    types=("bf16", "q8_0"),
)
FALCON_V5 = ClassicCase(
    "falcon-11b-v5",
    {
        **FALCON_NEW.config,
        "num_ln_in_parallel_attn": 1,
        "ffn_hidden_size": 256,
        "rope_parameters": {"rope_theta": 500042.0, "rope_type": "default"},
    },
    lambda c: shapes.falcon(c, groups=2),
)
_RENAMED = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer", "num_kv_heads": "n_head_kv"}
REFINED_WEB = replace(
    FALCON_NEW,
    name="refinedweb-40b",
    config={
        **{_RENAMED.get(key, key): value for key, value in FALCON_NEW.config.items()},
        "architectures": ["RWForCausalLM"],
        "model_type": "RefinedWeb",
    },
)
_BLOOM = _legacy("BloomForCausalLM", "bloom", n_layer=2, layer_norm_epsilon=1e-5)
BLOOM = ClassicCase(
    "bloom",
    {**_BLOOM, "n_embed": 64, "num_attention_heads": 4, "seq_length": 512, "offset_alibi": 100},
    shapes.bloom,
    dtype="F16",
    types=("f16",),
)
BLOOM_V5 = ClassicCase(
    "bloom-v5", {**_BLOOM, "hidden_size": 64, "n_head": 4}, lambda c: shapes.bloom(c, prefix="transformer.")
)
MPT = ClassicCase(
    "mpt",
    _legacy(
        "MPTForCausalLM",
        "mpt",
        d_model=64,
        n_heads=4,
        n_layers=2,
        max_seq_len=512,
        attn_config={"alibi": True, "alibi_bias_max": 8, "clip_qkv": None, "attn_impl": "torch"},
    ),
    shapes.mpt,
    more=("general.file_type",),
    why=_NO_FILE_TYPE,
)
MPT_CLIP = replace(
    MPT,
    name="mpt-clip",
    config={**MPT.config, "attn_config": {"alibi": True, "alibi_bias_max": 16, "clip_qkv": 6.0}},
)
PHI2 = ClassicCase(
    "phi2",
    config_of(
        "PhiForCausalLM",
        "phi",
        layer_norm_eps=1e-5,
        partial_rotary_factor=0.5,
        num_key_value_heads=4,
        intermediate_size=256,
    ),
    shapes.phi2,
    dtype="F16",
    types=("f16",),
)
STARCODER2 = ClassicCase(
    "starcoder2",
    config_of(
        "Starcoder2ForCausalLM", "starcoder2", norm_epsilon=1e-5, sliding_window=4096, rope_theta=999999.44
    ),
    shapes.starcoder2,
)
STABLELM = ClassicCase(
    "stablelm-3b",
    config_of("StableLmForCausalLM", "stablelm", layer_norm_eps=1e-5, partial_rotary_factor=0.25),
    shapes.stablelm,
)
STABLELM2 = replace(
    STABLELM,
    name="stablelm2-1.6b",
    config={**STABLELM.config, "use_qkv_bias": True},
    shapes=lambda c: shapes.stablelm(c, bias="qkv"),
)
STABLELM2_12B = replace(
    STABLELM,
    name="stablelm2-12b",
    config={**STABLELM.config, "qk_layernorm": True, "use_parallel_residual": True},
    shapes=lambda c: shapes.stablelm(c, parallel=True, head_norms=True),
    reference=None,
    why="the reference collects the heads' norms and then writes none of them",
)
STABLELM_EPOCH = replace(
    STABLELM,
    name="stablelm-epoch",
    config=config_of(
        "StableLMEpochForCausalLM", "stablelm_epoch", norm_eps=1e-5, rope_pct=0.25, rms_norm_eps=...
    ),
)
OLMO = ClassicCase(
    "olmo", config_of("OlmoForCausalLM", "olmo", clip_qkv=None, rms_norm_eps=...), shapes.olmo, dtype="F32"
)
OLMO_CLIP = replace(OLMO, name="olmo-clip", config={**OLMO.config, "clip_qkv": 8.0}, dtype="BF16")
OLMO2 = ClassicCase("olmo2", config_of("Olmo2ForCausalLM", "olmo2", rope_theta=500000), shapes.olmo2)
_YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "attention_factor": 1.2079,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
OLMO3 = ClassicCase(
    "olmo3",
    config_of(
        "Olmo3ForCausalLM",
        "olmo3",
        rope_theta=500000,
        rope_scaling=_YARN,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    ),
    shapes.olmo2,
)
OLMO3_V5 = replace(
    OLMO3,
    name="olmo3-v5",
    config={
        **{key: value for key, value in OLMO3.config.items() if not key.startswith("rope_")},
        "rope_parameters": {
            "full_attention": {"rope_theta": 500000.0, **_YARN},
            "sliding_attention": {"rope_theta": 500000.0, "rope_type": "default"},
        },
    },
)
OLMOE = ClassicCase(
    "olmoe",
    config_of("OlmoeForCausalLM", "olmoe", num_experts=4, num_experts_per_tok=2, num_key_value_heads=4),
    shapes.olmoe,
    types=("bf16", "q8_0"),
)
_SCALES = {
    "attention_multiplier": 0.0625,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
GRANITE = ClassicCase(
    "granite",
    config_of("GraniteForCausalLM", "granite", rope_theta=1e7, tie_word_embeddings=True, **_SCALES),
    llama,
)
GRANITE_HEADS = replace(GRANITE, name="granite-head-dim", config={**GRANITE.config, "head_dim": 16})
GRANITE_MOE = ClassicCase(
    "granitemoe",
    config_of("GraniteMoeForCausalLM", "granitemoe", num_local_experts=4, num_experts_per_tok=2, **_SCALES),
    shapes.granite_moe,
    types=("bf16", "q8_0"),
)
GRANITE_SHARED = replace(
    GRANITE_MOE,
    name="granitemoeshared",
    config={
        **GRANITE_MOE.config,
        "architectures": ["GraniteMoeSharedForCausalLM"],
        "model_type": "granitemoeshared",
        "shared_intermediate_size": 64,
    },
)
_COHERE = {"layer_norm_eps": 1e-5, "rms_norm_eps": ..., "tie_word_embeddings": True}
COMMAND_R = ClassicCase(
    "command-r",
    config_of(
        "CohereForCausalLM",
        "cohere",
        logit_scale=0.0625,
        model_max_length=131072,
        rope_theta=8000000.0,
        **_COHERE,
    ),
    shapes.cohere,
    dtype="F16",
    types=("f16",),
)
COMMAND_R_PLUS = replace(
    COMMAND_R,
    name="command-r-plus",
    # llama.cpp expects the heads' norms from 64 layers on.
    config={**COMMAND_R.config, "use_qk_norm": True, "num_hidden_layers": 64, "intermediate_size": 32},
)
COHERE2 = ClassicCase(
    "cohere2",
    config_of(
        "Cohere2ForCausalLM",
        "cohere2",
        logit_scale=0.25,
        sliding_window=16,
        sliding_window_pattern=4,
        rotary_pct=1.0,
        **_COHERE,
    ),
    shapes.cohere,
)
COHERE2_V5 = replace(
    modern(COHERE2),
    config={
        k: v for k, v in modern(COHERE2).config.items() if k not in ("rotary_pct", "sliding_window_pattern")
    },
    reference={"rotary_pct": 1.0},
    why="the reference wants rotary_pct, which newer configs do not have",
)
NEMOTRON = ClassicCase(
    "nemotron",
    config_of(
        "NemotronForCausalLM",
        "nemotron",
        norm_eps=1e-5,
        partial_rotary_factor=0.5,
        head_dim=16,
        rms_norm_eps=...,
    ),
    shapes.nemotron,
    "spm",
    types=("bf16", "f16"),
)
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 16.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 64,
}
_NO_RMS = "the reference writes no epsilon for the RMS norms, and its file does not load"
EXAONE = ClassicCase(
    "exaone3",
    config_of(
        "ExaoneForCausalLM",
        "exaone",
        num_layers=2,
        num_hidden_layers=...,
        rms_norm_eps=...,
        layer_norm_epsilon=1e-5,
        activation_function="silu",
        rope_scaling=_LLAMA3,
    ),
    shapes.exaone,
    reference={"rope_scaling": ..., "text_config": {"rope_scaling": _LLAMA3}},
    more=("exaone.attention.layer_norm_rms_epsilon",),
    loads=False,
    why="transformers 5 stops at llama3 scaling in a config of unknown type; " + _NO_RMS,
)
EXAONE_PLAIN = replace(
    EXAONE, name="exaone3-plain", config={**EXAONE.config, "rope_scaling": None}, reference={}, why=_NO_RMS
)
EXAONE4 = ClassicCase(
    "exaone4-32b",
    config_of(
        "Exaone4ForCausalLM",
        "exaone4",
        num_hidden_layers=4,
        head_dim=16,
        rope_theta=1000000.0,
        rope_scaling=_LLAMA3,
        sliding_window=16,
        sliding_window_pattern="LLLG",
        layer_types=[*["sliding_attention"] * 3, "full_attention"],
    ),
    shapes.exaone4,
)
EXAONE4_SMALL = replace(
    EXAONE4,
    name="exaone4-1.2b",
    config={**EXAONE4.config, "sliding_window": None, "layer_types": ["full_attention"] * 4},
)
EXAONE4_PATTERN = replace(
    bare(EXAONE4, "layer_types"),
    name="exaone4-pattern",
    reference={"layer_types": EXAONE4.config["layer_types"]},
    why="transformers 5 takes the pattern for a number when there is no list",
)
INTERNLM2 = ClassicCase(
    "internlm2",
    config_of(
        "InternLM2ForCausalLM", "internlm2", vocab_size=289, bias=False, bos_token_id=1, eos_token_id=2
    ),
    shapes.internlm2,
    "spm",
)
_MAMBA = _legacy(
    "MambaForCausalLM",
    "mamba",
    hidden_size=64,
    intermediate_size=128,
    state_size=8,
    conv_kernel=4,
    time_step_rank=4,
    num_hidden_layers=2,
    layer_norm_epsilon=1e-5,
)
MAMBA = ClassicCase("mamba", {**_MAMBA, "vocab_size": 317}, shapes.mamba, dtype="F32", types=("f32", "f16"))
MAMBA_SSM = ClassicCase(
    "mamba-state-spaces",
    {
        "architectures": ["MambaLMHeadModel"],
        "d_model": 64,
        "n_layer": 2,
        "vocab_size": 317,
        "pad_vocab_size_multiple": 8,
        "ssm_cfg": {},
    },
    lambda c: shapes.mamba(c, embedding="embedding", output=True),
    dtype="F16",
)
FALCON_MAMBA = ClassicCase(
    "falcon-mamba",
    {**_MAMBA, "architectures": ["FalconMambaForCausalLM"], "model_type": "falcon_mamba"},
    lambda c: shapes.mamba(c, output=True),
)
MAMBA2 = ClassicCase(
    "mamba2",
    _legacy(
        "Mamba2ForCausalLM",
        "mamba2",
        hidden_size=64,
        state_size=16,
        conv_kernel=4,
        head_dim=16,
        num_heads=8,
        n_groups=2,
        expand=2,
        num_hidden_layers=2,
        layer_norm_epsilon=1e-5,
    ),
    shapes.mamba2,
)
CODESTRAL = replace(MAMBA2, name="mamba2-codestral", shapes=lambda c: shapes.mamba2(c, prefix="model."))

_USUAL = (
    "max_position_embeddings",
    "rms_norm_eps",
    "layer_norm_eps",
    "norm_epsilon",
    "norm_eps",
    "rope_theta",
)
CLASSIC_CASES: tuple[ClassicCase, ...] = (
    GPT2,
    GPT2_MASKS,
    GPT2_V5,
    STARCODER,
    GPTNEOX,
    GPTNEOX_SERIAL,
    GPTNEOX_V5,
    FALCON,
    FALCON_NEW,
    FALCON_V5,
    REFINED_WEB,
    BLOOM,
    BLOOM_V5,
    MPT,
    MPT_CLIP,
    PHI2,
    modern(PHI2),
    bare(PHI2, *_USUAL, "partial_rotary_factor"),
    STARCODER2,
    modern(STARCODER2),
    bare(STARCODER2, *_USUAL),
    STABLELM,
    modern(STABLELM),
    STABLELM2,
    STABLELM2_12B,
    STABLELM_EPOCH,
    OLMO,
    modern(OLMO),
    OLMO_CLIP,
    OLMO2,
    modern(OLMO2),
    bare(OLMO2, *_USUAL),
    OLMO3,
    OLMO3_V5,
    bare(OLMO3, "layer_types", "rope_scaling", "rope_theta"),
    OLMOE,
    modern(OLMOE),
    GRANITE,
    modern(GRANITE),
    bare(GRANITE, *_USUAL, *_SCALES),
    GRANITE_HEADS,
    GRANITE_MOE,
    modern(GRANITE_MOE),
    GRANITE_SHARED,
    COMMAND_R,
    modern(COMMAND_R),
    COMMAND_R_PLUS,
    COHERE2,
    COHERE2_V5,
    NEMOTRON,
    modern(NEMOTRON),
    bare(NEMOTRON, *_USUAL, "partial_rotary_factor", "head_dim"),
    EXAONE,
    EXAONE_PLAIN,
    EXAONE4,
    modern(EXAONE4),
    EXAONE4_SMALL,
    EXAONE4_PATTERN,
    INTERNLM2,
    MAMBA,
    MAMBA_SSM,
    FALCON_MAMBA,
    MAMBA2,
    CODESTRAL,
)
