"""Headers of models for the presets' rules: real families, odd ones, and ones that no model has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ewq_gguf.allocation.presets import TensorFacts
from ewq_gguf.ggml.types import GGMLType
from tests.tiny.gguf_values import add_values

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Model:
    """A model's header: GGUF metadata and the shapes (numpy order) of its tensors, vectors in F32."""

    metadata: dict[str, Any]
    shapes: Shapes
    types: dict[str, GGMLType] = field(default_factory=dict)

    @property
    def tensors(self) -> list[TensorFacts]:
        return [TensorFacts(name, shape, self.type_of(name)) for name, shape in self.shapes.items()]

    def type_of(self, name: str) -> GGMLType:
        return self.types.get(name, GGMLType.F32 if len(self.shapes[name]) < 2 else GGMLType.F16)

    def write(self, path: Path, *, data: bool = False) -> Path:
        """Write a GGUF file; without `data` its tensors are a hole in the file."""
        writer = gguf.GGUFWriter(path, self.metadata["general.architecture"])
        # The writer has written the architecture already.
        add_values(writer, {k: v for k, v in self.metadata.items() if k != "general.architecture"})
        rng = np.random.default_rng(len(self.shapes))
        for name, shape in self.shapes.items():
            # The writer reverses shapes; ggml must see ne[0] first.
            dtype = np.dtype(np.float32 if self.type_of(name) == GGMLType.F32 else np.float16)
            if data:
                writer.add_tensor(name, rng.standard_normal(shape).astype(dtype))
            else:
                kind = gguf.GGMLQuantizationType(self.type_of(name))
                size = int(np.prod(shape)) * dtype.itemsize
                writer.add_tensor_info(name, shape, dtype, size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        if data:
            writer.write_tensors_to_file()
            writer.close()
        else:
            writer.write_ti_data_to_file()
            writer.close()
            with path.open("r+b") as file:
                total = sum(-(-int(np.prod(shape)) * 4 // 32) * 32 for shape in self.shapes.values())
                file.truncate(path.stat().st_size + total + 4096)
        return path


def metadata(arch: str, layers: int, heads: int = 8, kv_heads: int = 8, **more: Any) -> dict[str, Any]:
    """Keys that llama.cpp's loader asks for, whatever the family; `more` adds keys of the family's own."""
    values = {
        "context_length": 64,
        "embedding_length": 256,
        "block_count": layers,
        "feed_forward_length": 512,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    keys = {name.replace("__", "."): value for name, value in more.items()}
    return {"general.architecture": arch, **{f"{arch}.{key}": v for key, v in {**values, **keys}.items()}}


def blocks(layers: int, per_block: Mapping[str, tuple[int, ...]]) -> Shapes:
    return {f"blk.{i}.{name}.weight": shape for i in range(layers) for name, shape in per_block.items()}


def attention(n: int, kv: int = 4) -> Shapes:
    return {
        "attn_norm": (n,),
        "attn_q": (4, n),
        "attn_k": (kv, n),
        "attn_v": (kv, n),
        "attn_output": (4, n),
        "ffn_norm": (n,),
    }


def dense(n: int = 256, ff: int = 512) -> Shapes:
    return attention(n) | {"ffn_gate": (4, n), "ffn_up": (4, n), "ffn_down": (4, ff)}


def slim(layers: int) -> Shapes:
    """Blocks of a deep model, with the tensors that its depth or size class matters for."""
    return blocks(layers, {"attn_k": (4, 256), "attn_v": (4, 256), "ffn_down": (4, 512)})


def experts(count: int, n: int = 256, ff: int = 512) -> Shapes:
    return attention(n) | {
        "ffn_gate_inp": (count, n),
        "ffn_gate_exps": (count, 4, n),
        "ffn_up_exps": (count, 4, n),
        "ffn_down_exps": (count, 4, ff),
    }


def ends(n: int = 256, *, output: bool = True) -> Shapes:
    shapes: Shapes = {"token_embd.weight": (8, n), "output_norm.weight": (n,)}
    return shapes | ({"output.weight": (8, n)} if output else {})


def llama(layers: int, block: Shapes, top: Shapes, **more: Any) -> Model:
    return Model(metadata("llama", layers, **more), top | blocks(layers, block))


MIXTRAL = {"expert_count": 8, "expert_used_count": 2}
DEEPSEEK = {
    "expert_count": 16,
    "expert_used_count": 4,
    "expert_shared_count": 1,
    "expert_feed_forward_length": 512,
    "attention.q_lora_rank": 256,
    "attention.kv_lora_rank": 256,
    "leading_dense_block_count": 1,
    "nextn_predict_layers": 1,
}
MLA: Shapes = {
    "attn_norm": (256,),
    "attn_q_a": (8, 256),
    "attn_q_a_norm": (256,),
    "attn_q_b": (8, 256),
    "attn_kv_a_mqa": (8, 256),
    "attn_kv_b": (8, 256),
    "attn_k_b": (4, 8, 128),
    "attn_v_b": (4, 8, 256),
    "attn_output": (8, 256),
}
MLA_EXPERTS = MLA | {
    "ffn_gate_inp": (16, 256),
    "ffn_gate_exps": (16, 4, 256),
    "ffn_up_exps": (16, 4, 256),
    "ffn_down_exps": (16, 4, 256),
    "ffn_gate_shexp": (4, 256),
    "ffn_up_shexp": (4, 256),
    "ffn_down_shexp": (4, 256),
}
NEXTN: Shapes = {"nextn.eh_proj": (4, 512), "nextn.embed_tokens": (8, 256), "nextn.enorm": (256,)}
GLM5 = DEEPSEEK | {
    "attention.key_length_mla": 16,
    "attention.value_length_mla": 16,
    "ssm.conv_kernel": 4,
    "kda.head_dim": 16,
    "attention.indexer.head_count": 4,
    "attention.indexer.key_length": 16,
    "attention.indexer.top_k": 16,
    "attention.indexer.kpool": 4,
    "hyper_connection.count": 4,
    "hyper_connection.sinkhorn_iterations": 2,
    "hyper_connection.epsilon": 1e-5,
}
GLM5_BLOCK = MLA_EXPERTS | {
    "indexer.proj": (4, 256),
    "indexer.attn_k": (4, 256),
    "indexer.attn_q_b": (4, 256),
    "ssm_beta": (4, 256),
    "ssm_f_a": (4, 256),
    "ssm_conv1d_q": (4, 256),
    "hc_attn_fn": (4, 256),
}
BAILING3 = DEEPSEEK | {
    "attention.key_length_mla": 16,
    "attention.value_length_mla": 16,
    "ssm.conv_kernel": 4,
    "kda.head_dim": 16,
    "kda.safe_gate": True,
    "kda.gate_lower_bound": -5.0,
    "expert_gating_func": 2,
    "nextn_predict_layers": 0,
}
MAMBA = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 512,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 16,
    "attention.head_count": 0,
    "attention.head_count_kv": 0,
}
MAMBA_BLOCK: Shapes = {
    "attn_norm": (256,),
    "ssm_in": (8, 256),
    "ssm_conv1d": (8, 4),
    "ssm_x": (8, 512),
    "ssm_dt": (8, 16),
    "ssm_a": (8, 16),
    "ssm_out": (8, 512),
}
SWITCH = {
    "logit_scale": 1.0,
    "adapters.count": 1,
    "adapters.lora_rank": 4,
    "adapters.token_ids_activate": [1],
    "adapters.token_ids_substitute": [2],
}

ODD_NAMES = (
    *(
        "altup_proj",
        "laurel_r",
        "per_layer_model_proj",
        "ssm_conv1d",
        "ssm_conv1d_q",
        "shortconv.conv",
        "ffn_gate_inp",
    ),
    *(
        "ffn_gate_tid2eid",
        "ffn_gate_inp_b",
        "indexer.k_proj",
        "indexer.q_proj",
        "indexer.proj",
        "indexer.attn_k",
    ),
    *(
        "indexer.attn_q_b",
        "indexer_compressor_gate",
        "indexer_compressor_ape",
        "ssm_f_a",
        "ssm_f_b",
        "ssm_g_a",
    ),
    *(
        "ssm_g_b",
        "ssm_beta",
        "ssm_alpha",
        "attn_kv_a_mqa",
        "attn_k_b",
        "attn_v_b",
        "hc_ffn_base",
        "attn_rel_b",
    ),
    *(
        f"time_mix_{part}"
        for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g0", "g1")
    ),
    *(
        f"time_mix_{part}"
        for part in ("g2", "decay_w1", "decay_w2", "decay_w3", "lerp_fused", "lerp", "key", "output")
    ),
    *(
        "position_embd",
        "token_types",
        "x.position_embd",
        "sam.pos_embd",
        "sam.neck.0",
        "sam.net_2",
        "attn.rel_pos_h",
    ),
    *(
        "x.patch_embd",
        "patch_embd",
        "x.patch_merger.0",
        "a.rvq.codebook",
        "mm.a.code_embd",
        "attn_norm",
        "attn_norm_2",
    ),
    *(
        "cls.output",
        "output_s",
        "token_embd_2",
        "enc.token_embd",
        "weightless",
        "attn_q_a",
        "attn_q_b",
        "nextn.eh_proj",
    ),
)

MODELS: dict[str, Model] = {
    "llama": llama(9, dense(), ends()),
    "llama, tied": llama(16, dense(), ends(output=False)),
    "llama, grouped 8:1": llama(8, dense(), ends(), kv_heads=1),
    "llama, grouped 4:1, per layer": Model(
        metadata("llama", 8) | {"llama.attention.head_count_kv": [2, *[8] * 7]}, ends() | blocks(8, dense())
    ),
    "llama, rows of 96, 160 and 288": llama(8, dense(288, 160), ends(96)),
    "llama, rows of 48": llama(8, dense(48, 80), ends(48, output=False)),
    "mixtral": llama(17, experts(8), ends(), kv_heads=2, **MIXTRAL),
    "mixtral, odd rows": llama(8, experts(8, 96, 160), ends(output=False), **MIXTRAL),
    "four experts": llama(8, experts(4), ends(), expert_count=4, expert_used_count=2),
    "one layer": llama(1, dense(), ends()),
    "llama 70B": Model(metadata("llama", 80, kv_heads=1), ends() | slim(80)),
    "llama 65B": Model(metadata("llama", 80), ends() | slim(80)),
    "llama 70B, experts": Model(metadata("llama", 80, kv_heads=1, **MIXTRAL), ends() | slim(80)),
    "qwen2 72B": Model(metadata("qwen2", 80), ends() | slim(80)),
    "qwen2 72B with another": Model(metadata("qwen2", 81, nextn_predict_layers=1), ends() | slim(81)),
    "jais2 70B": Model(metadata("jais2", 68), ends() | slim(68)),
    "olmo 80": Model(metadata("olmo", 80, kv_heads=2), ends(output=False) | slim(80)),
    "deci 80": Model(metadata("deci", 80, kv_heads=2), ends() | slim(80)),
    "falcon": Model(
        metadata("falcon", 17, kv_heads=1),
        ends()
        | blocks(
            17, {"attn_qkv": (4, 256), "attn_output": (4, 256), "ffn_up": (4, 256), "ffn_down": (4, 512)}
        ),
    ),
    "falcon, tied": Model(
        metadata("falcon", 32),
        ends(output=False)
        | blocks(
            32, {"attn_qkv": (4, 256), "attn_output": (4, 256), "ffn_up": (4, 256), "ffn_down": (4, 512)}
        ),
    ),
    "deepseek2": Model(
        metadata("deepseek2", 10, kv_heads=1, **DEEPSEEK),
        ends() | blocks(10, MLA_EXPERTS) | {f"blk.9.{k}.weight": v for k, v in NEXTN.items()},
    ),
    "glm5-next": Model(
        metadata("glm5-next", 10, kv_heads=1, **GLM5),
        ends() | blocks(10, GLM5_BLOCK) | {f"blk.9.{k}.weight": v for k, v in NEXTN.items()},
    ),
    "bailingmoe3": Model(metadata("bailingmoe3", 8, **BAILING3), ends() | blocks(8, MLA_EXPERTS)),
    "mamba": Model(metadata("mamba", 8, **MAMBA), ends() | blocks(8, MAMBA_BLOCK)),
    "bert": Model(
        metadata("bert", 8),
        {"token_embd.weight": (8, 256), "token_types.weight": (2, 256), "position_embd.weight": (64, 256)}
        | blocks(8, dense()),
    ),
    "nanbeige, looped": Model(metadata("nanbeige", 8, num_loops=2), ends() | blocks(8, dense())),
    "granite with a switch": Model(metadata("graniteswitch", 15, **SWITCH), ends() | blocks(15, dense())),
    "thin and flat": llama(
        8,
        dense()
        | {
            "attn_gate": (4, 1),
            "ffn_gate_inp_shexp": (1, 256),
            "ffn_sub_norm": (2, 256),
            "extra": (2, 1, 256),
        },
        ends() | {"per_layer_token_embd.weight": (8, 256), "per_layer_model_proj.weight": (8, 256)},
    ),
    "odd names": llama(
        2, dict.fromkeys(ODD_NAMES, (4, 256)), {f"{name}.weight": (4, 256) for name in ODD_NAMES}
    ),
    "odd names in glm5-next": Model(
        metadata("glm5-next", 2, **GLM5),
        ends()
        | {f"blk.0.{name}.weight": (4, 256) for name in ODD_NAMES}
        | {"blk.1.attn_k.weights": (4, 256)},
    ),
    "a projector": Model(
        {"general.architecture": "clip"},
        {"v.patch_embd.weight": (4, 256), "mm.0.weight": (4, 256), "v.position_embd.weight": (4, 256)}
        | {f"v.blk.{i}.{name}.weight": shape for i in range(4) for name, shape in dense().items()},
    ),
}


def random_imatrix(model: Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        name: rng.random(shape[-1] * (shape[0] if len(shape) > 2 else 1), np.float32) + 0.1
        for name, shape in model.shapes.items()
        if len(shape) > 1
    }


FAMILIES = ("llama", "falcon", "qwen2", "deci", "olmo", "jais2", "gpt2", "qwen2moe", "gemma", "bloom", "phi3")
PARTS = (
    *(
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_qkv",
        "attn_kv_b",
        "attn_output",
        "attn_k_b",
        "attn_q_a",
        "attn_norm",
    ),
    *("ffn_up", "ffn_gate", "ffn_down", "ffn_up_exps", "ffn_gate_exps", "ffn_down_exps", "ffn_gate_inp"),
    *(
        "ffn_down_shexp",
        "ffn_gate_up_exps",
        "cross_attn_v",
        "ssm_in",
        "ssm_conv1d",
        "nextn.eh_proj",
        "time_mix_w1",
    ),
    *(
        "attn_sub_norm",
        "attn_q_norm",
        "ffn_norm",
        "attn_rel_b",
        "indexer.k_proj",
        "laurel_l",
        "per_layer_model_proj",
    ),
)


def random_model(rng: np.random.Generator) -> Model:
    """A header that no real model has: rules must hold for any set of names, not only for tidy ones."""
    arch = str(rng.choice(FAMILIES))
    layers = int(rng.choice([1, 3, 7, 8, 13, 16, 31, 33]))
    count = int(rng.choice([0, 0, 1, 2, 4, 8, 8, 16]))
    heads = int(rng.choice([4, 8, 16]))
    kv_heads = int(rng.choice([1, 2, heads // 2, heads]))
    more = {"expert_count": count, "expert_used_count": 1} if count else {}
    shapes: Shapes = {}
    for name in (
        "token_embd",
        "output",
        "output_norm",
        "per_layer_token_embd",
        "position_embd",
        "token_types",
    ):
        if rng.random() < 0.7:
            shapes[f"{name}.weight"] = (8, int(rng.choice([256, 512, 96, 100])))
    for part in PARTS:
        share, row = rng.choice([0.0, 0.5, 1.0]), int(rng.choice([256, 512, 256, 64, 96, 40]))
        head = (max(count, 2), 4) if part.endswith("_exps") else (4,)
        for layer in range(layers):
            if rng.random() < share:
                shapes[f"blk.{layer}.{part}.{rng.choice(['weight', 'weight', 'bias'])}"] = (*head, row)
    shuffled = [str(name) for name in rng.permutation(list(shapes))]
    types = {name: GGMLType.F32 if rng.random() < 0.3 else GGMLType.F16 for name in shuffled}
    return Model(
        metadata(arch, layers, heads, kv_heads, **more), {name: shapes[name] for name in shuffled}, types
    )
