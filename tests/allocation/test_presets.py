"""Every preset against llama_model_quantize itself: files that it writes, and its dry run for all else.

The dry run decides types exactly as a real run does and prints them, so it needs no weights: thousands of
combinations of family, shapes, preset and options are compared in seconds.
"""

from __future__ import annotations

import ctypes
import re
import runpy
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
from llama_cpp._logger import llama_log_callback

from ewq_gguf.allocation.pins import Pin, exact_pin, parse_pin, read_pins
from ewq_gguf.allocation.presets import (
    ALIASES,
    PRESETS,
    Assignment,
    TensorFacts,
    fallback_type,
    find_preset,
    model_facts,
    preset_types,
    quantizable,
    quantize_order,
)
from ewq_gguf.errors import CheckpointError, PlanError
from ewq_gguf.ggml.types import GGMLType

PRINTED = re.compile(
    r"^\[ *\d+/ *\d+\] (\S+) +- \[[^]]*\], type = +(\w+), size = [^\n]*?MiB(?: -> [^\n]*\((\w+)\))?$", re.M
)
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
        for key, value in self.metadata.items():
            if key != "general.architecture":
                add_value(writer, key, value)
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


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


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


@contextmanager
def native_log() -> Iterator[list[str]]:
    """Collect what llama.cpp says instead of printing it."""
    lines: list[str] = []

    @llama_cpp.llama_log_callback
    def collect(_level: int, text: bytes, _data: Any) -> None:
        lines.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        llama_cpp.llama_log_set(llama_log_callback, ctypes.c_void_p(0))


def native(
    source: Path,
    target: Path | None,
    preset: str,
    *,
    imatrix: Mapping[str, np.ndarray] | None = None,
    pins: Sequence[Pin] = (),
    output_type: GGMLType | None = None,
    embedding_type: GGMLType | None = None,
    **flags: bool,
) -> tuple[int, str]:
    """Call llama_model_quantize, dry when `target` is None; its return code and everything it said."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = PRESETS[preset].llama_ftype
    params.nthread = 1
    params.dry_run = target is None
    if output_type is not None:
        params.output_tensor_type = int(output_type)
    if embedding_type is not None:
        params.token_embedding_type = int(embedding_type)
    for name, value in flags.items():
        setattr(params, name, value)
    held: list[Any] = []  # everything the structure points to
    if imatrix is not None:
        entries = (llama_cpp.llama_model_imatrix_data * (len(imatrix) + 1))()
        for entry, (name, values) in zip(entries, imatrix.items()):
            values = np.ascontiguousarray(values, np.float32)
            held.append(values)
            entry.name = name.encode()
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = values.size
        params.imatrix = entries
        held.append(entries)
    if pins:
        overrides = (llama_cpp.llama_model_tensor_override * (len(pins) + 1))()
        for override, pin in zip(overrides, pins):
            override.pattern = pin.pattern.encode()
            override.type = int(pin.type)
        params.tt_overrides = overrides
        held.append(overrides)
    with native_log() as lines:
        code = llama_cpp.llama_model_quantize(
            str(source).encode(), str(target or "").encode(), ctypes.byref(params)
        )
    return int(code), "".join(lines)


def printed_types(text: str) -> dict[str, str]:
    return {name: (after or before).upper() for name, before, after in PRINTED.findall(text)}


def dry_run(source: Path, preset: str, **options: Any) -> dict[str, str]:
    code, text = native(source, None, preset, **options)
    assert code == 0, text
    return printed_types(text)


def names(assignments: Mapping[str, Assignment]) -> dict[str, str]:
    return {name: assignment.type.name for name, assignment in assignments.items()}


def stored_types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def random_imatrix(model: Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        name: rng.random(shape[-1] * (shape[0] if len(shape) > 2 else 1), np.float32) + 0.1
        for name, shape in model.shapes.items()
        if len(shape) > 1
    }


def test_every_preset_of_llama_quantize_is_known() -> None:
    numbers = {
        name.removeprefix("LLAMA_FTYPE_").removeprefix("ALL_").removeprefix("MOSTLY_"): getattr(
            llama_cpp, name
        )
        for name in dir(llama_cpp)
        if name.startswith("LLAMA_FTYPE_") and name != "LLAMA_FTYPE_GUESSED"
    }
    del numbers["NVFP4"]  # llama-quantize offers it neither by name nor by number
    assert {name: preset.llama_ftype for name, preset in PRESETS.items()} == numbers
    assert all(preset.about and preset.name == name for name, preset in PRESETS.items())


@pytest.mark.parametrize("has_imatrix", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("name", MODELS)
def test_types_are_those_of_the_dry_run(name: str, has_imatrix: bool, tmp_path: Path) -> None:
    model = MODELS[name]
    source = model.write(tmp_path / "model.gguf")
    facts = model_facts(model.metadata)
    some = {"no.such.tensor": np.ones(1, np.float32)} if has_imatrix else None
    compared = 0
    for preset, known in PRESETS.items():
        if facts.arch == "clip" and any(rule.gqa_from for rule in known.rules.get("attn_v", ())):
            continue  # llama.cpp aborts: a projector has no first block whose heads it could count
        code, text = native(source, None, preset, imatrix=some)
        if code:
            assert "no tensor type fallback is defined" in text, text
            with pytest.raises(PlanError, match="choose a type with smaller blocks"):
                preset_types(preset, model.tensors, facts, has_imatrix=has_imatrix)
            continue
        ours = preset_types(preset, model.tensors, facts, has_imatrix=has_imatrix)
        assert names(ours) == printed_types(text), preset
        assert list(ours) == list(printed_types(text)), preset
        if not has_imatrix:
            wants_one = "will require an imatrix" in text
            assert any(a.requires_imatrix for a in ours.values()) == wants_one, preset
        compared += 1
    assert compared >= (len(PRESETS) - 1 if facts.n_layer else 20)


WRITTEN = ("llama", "llama, rows of 96, 160 and 288", "mixtral", "llama, tied", "falcon")


def made_of_codebooks(preset: str) -> bool:
    """IQ1 to IQ3: ggml builds their tables on first use, which takes seconds each."""
    return preset.startswith(("IQ1", "IQ2", "IQ3"))


def differs_from_written_file(name: str, preset: str, folder: Path) -> bool:
    """Whether our types are others than those that llama-quantize writes; presets that it refuses do not differ."""
    model = MODELS[name]
    source = folder / "model.gguf"
    if not source.exists():
        model.write(source, data=True)
    target = folder / "out.gguf"
    imatrix = random_imatrix(model) if PRESETS[preset].needs_imatrix else None
    code, text = native(source, target, preset, imatrix=imatrix)
    if code:
        assert preset == "Q1_0", text
        assert "no tensor type fallback is defined" in text
        return False
    ours = preset_types(preset, model.tensors, model_facts(model.metadata), has_imatrix=imatrix is not None)
    return names(ours) != stored_types(target)


@pytest.mark.parametrize("name", WRITTEN)
def test_types_are_those_of_written_files(name: str, tmp_path: Path) -> None:
    # The installed gguf cannot name Q2_0; the dry run covers it.
    presets = [p for p in PRESETS if p != "Q2_0" and not made_of_codebooks(p)]
    assert [p for p in presets if differs_from_written_file(name, p, tmp_path)] == []


@pytest.mark.parity
@pytest.mark.parametrize("name", WRITTEN)
def test_types_are_those_of_written_files_of_codebook_presets(name: str, tmp_path: Path) -> None:
    presets = filter(made_of_codebooks, PRESETS)
    assert [p for p in presets if differs_from_written_file(name, p, tmp_path)] == []


def test_presets_that_need_an_importance_matrix_are_refused_without(tmp_path: Path) -> None:
    source = MODELS["llama"].write(tmp_path / "model.gguf", data=True)
    for preset, known in PRESETS.items():
        if known.needs_imatrix:
            code, text = native(source, tmp_path / "out.gguf", preset)
            assert code != 0, preset
            assert "requires an imatrix" in text, preset
        else:
            _, text = native(source, None, preset)
            assert "will require an imatrix" not in text, preset


OPTIONS: dict[str, dict[str, Any]] = {
    "pure": {"pure": True},
    "output": {"output_type": GGMLType.Q5_K},
    "embedding": {"embedding_type": GGMLType.Q3_K},
    "both": {"output_type": GGMLType.F16, "embedding_type": GGMLType.IQ4_NL},
    "leave output": {"quantize_output_tensor": False},
    "pinned values": {"pins": ["attn_v=q8_0"]},
    "some pinned": {"pins": [r"blk\.[0-2]\.(attn_v|ffn_down)=iq4_xs", "ffn_down=q3_k", "FFN_UP=BF16"]},
    "pinned ends": {"pins": ["^token_embd=q2_k", "^output.weight=q3_k"], "embedding_type": GGMLType.Q6_K},
    "pure and pinned": {"pure": True, "pins": ["attn_q.weight=q5_0", "attn=q5_1"]},
    "pinned table": {"pins": ["per_layer_token=q4_1"], "embedding_type": GGMLType.Q6_K},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_are_those_of_the_dry_run(options: dict[str, Any], tmp_path: Path) -> None:
    options = {**options, "pins": [parse_pin(pin) for pin in options.get("pins", ())]}
    ours = {key: value for key, value in options.items() if key != "quantize_output_tensor"}
    ours["keep_output"] = not options.get("quantize_output_tensor", True)
    compared = 0
    for name in ("llama", "llama, tied", "mixtral", "falcon", "thin and flat"):
        model = MODELS[name]
        source = model.write(tmp_path / "model.gguf")
        present = [pin for pin in options["pins"] if any(pin.matches(tensor) for tensor in model.shapes)]
        for preset, known in PRESETS.items():
            if present and not known.base.is_quantized:
                continue  # llama-quantize drops pins silently here
            if preset == "Q1_0" and name == "thin and flat":
                continue  # it has no stand-in for rows of one weight
            theirs = dry_run(source, preset, **{**options, "pins": present})
            mine = preset_types(
                preset, model.tensors, model_facts(model.metadata), **{**ours, "pins": present}
            )
            assert names(mine) == theirs, (name, preset)
            compared += 1
    assert compared > 100


def write_imatrix(model: Model, path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["text"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in random_imatrix(model).items():
        stacks = model.shapes[name][0] if len(model.shapes[name]) > 2 else 1
        writer.add_tensor(f"{name}.in_sum2", values.reshape(stacks, -1))
        writer.add_tensor(f"{name}.counts", np.full((stacks, 1), 2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parity
@pytest.mark.parametrize("name", ["llama", "mixtral, odd rows"])
@pytest.mark.parametrize("preset", ["Q4_K_M", "Q4_0", "IQ4_XS", "Q2_K_S", "Q3_K_L", "MXFP4_MOE"])
def test_types_are_those_of_the_program(name: str, preset: str, tmp_path: Path) -> None:
    pinned = runpy.run_path(str(Path(__file__).parents[2] / "third_party" / "pins.py"))
    program = pinned["cache_folder"]() / f"llama.cpp-{pinned['pinned_version']()}" / "bin" / "llama-quantize"
    if not program.exists():
        pytest.skip("llama-quantize has not been built")
    model = MODELS[name]
    source = model.write(tmp_path / "model.gguf", data=True)
    imatrix = write_imatrix(model, tmp_path / "imatrix.gguf")
    entries = tmp_path / "types.txt"
    entries.write_text("blk.3.*attn_v=Q6_K\nFFN_(up|gate)=q5_k\n", encoding="utf-8")
    pins = [parse_pin("attn_q=iq4_nl"), *read_pins(entries)]
    command = [program, "--imatrix", imatrix, "--tensor-type", "attn_q=IQ4_NL", "--tensor-type-file", entries]
    command += ["--token-embedding-type", "q5_1", source, tmp_path / "out.gguf", preset, "2"]
    subprocess.run(command, check=True, capture_output=True)
    ours = preset_types(
        preset,
        model.tensors,
        model_facts(model.metadata),
        has_imatrix=True,
        embedding_type=GGMLType.Q5_1,
        pins=pins,
    )
    assert names(ours) == stored_types(tmp_path / "out.gguf")


def test_pins_are_honoured_where_llama_quantize_drops_them(tmp_path: Path) -> None:
    model = MODELS["llama"]
    pins = [parse_pin("ffn_down=q8_0")]
    dropped = dry_run(model.write(tmp_path / "model.gguf"), "BF16", pins=pins)
    assert set(dropped.values()) == {"BF16", "F32"}
    ours = preset_types("BF16", model.tensors, model_facts(model.metadata), pins=pins)
    assert {n for n, a in ours.items() if a.type == GGMLType.Q8_0} == {n for n in ours if "ffn_down" in n}


PATTERNS = (
    *(
        "attn_v",
        r"blk\.[0-3]\.",
        "^token",
        "weight$",
        r"blk\.\d\.ffn_(up|down)",
        r"blk\.(1|2)\d?\.attn",
        "ATTN_K",
    ),
    *(
        r"\bffn_up\b",
        r"[[:digit:]]\.ffn_gate",
        "(?:attn|ffn)_q",
        "attn_(?!q)",
        "blk.*down",
        "ffn_[^dg]",
        "attn_q|_k",
    ),
    *(
        r"blk\.[^[:space:]5]\.attn_k",
        r"(t)\1n_v",
        r"\.\w{6}\.weight",
        r"blk\.(?=3)",
        "x?attn_q",
        r"\D\.attn_q",
    ),
    *(
        r"[\d]\.attn",
        "t{2}n_v",
        ".",
        "[[:alpha:]_]+_up",
        r"\s|attn_v",
        "[a-c]lk.7",
        "blk.[3-][.]",
        r"^blk\.1\.",
        "attn_[:kv:]",
        "ffn_[^[:alpha:]_d]|_q",
        r"[\]n]_k",
    ),
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_are_found_where_llama_quantize_finds_them(pattern: str, tmp_path: Path) -> None:
    model = MODELS["llama, tied"]
    pin = parse_pin(f"{pattern}=q4_1")
    theirs = dry_run(model.write(tmp_path / "model.gguf"), "Q8_0", pins=[pin])
    facts = model_facts(model.metadata)
    assert names(preset_types("Q8_0", model.tensors, facts, pins=[pin])) == theirs
    pinned = {
        tensor.name for tensor in model.tensors if pin.matches(tensor.name) and quantizable(tensor, facts)
    }
    assert pinned == {name for name, kind in theirs.items() if kind == "Q4_1"}
    assert pinned


REFUSED = (
    "(",
    "attn_v)",
    "[z-a]",
    "[a",
    "(?i)attn",
    "(?<=a)ttn",
    "(?P<x>a)",
    "*a",
    "a{2,1}",
    "a\\",
)


@pytest.mark.parametrize("pattern", REFUSED)
def test_patterns_that_llama_quantize_refuses_are_refused(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"^pattern '"):
        parse_pin(f"{pattern}=q4_1")
    # The same text behind another pin's back: what llama.cpp says of it.
    source = MODELS["one layer"].write(tmp_path / "model.gguf")
    unchecked = replace(parse_pin("x=q4_1"), pattern=pattern.lower())
    code, text = native(source, None, "Q8_0", pins=[unchecked])
    assert code != 0, text


def test_an_exact_pin_matches_one_name_for_llama_quantize(tmp_path: Path) -> None:
    odd = [
        "a-b+c.weight",
        "a-b+cd.weight",
        "(v)[1]{2}|*?^$.weight",
        "v.Block.0/x weight",
        "blk.1.x.weight",
        "blk.11.x.weight",
    ]
    model = Model(metadata("llama", 12), dict.fromkeys(odd, (4, 256)))
    source = model.write(tmp_path / "model.gguf")
    for name in odd:
        pin = exact_pin(name, GGMLType.Q4_1)
        code, text = native(source, None, "Q8_0", pins=[pin])
        assert code == 0, text
        chosen = re.findall(
            r"^llama_tensor_get_type: (.*?) +- applying manual override: q8_0 -> q4_1$", text, re.M
        )
        assert chosen == [name]
        assert [n for n in odd if pin.matches(n)] == [name]


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


@pytest.mark.parametrize("seed", range(12))
def test_random_headers_get_the_types_of_the_dry_run(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    while True:
        model = random_model(rng)
        if model.shapes:
            break
    source = model.write(tmp_path / "model.gguf")
    facts = model_facts(model.metadata)
    for preset in PRESETS:
        has_imatrix = bool(rng.random() < 0.5)
        some = {"no.such.tensor": np.ones(1, np.float32)} if has_imatrix else None
        code, text = native(source, None, preset, imatrix=some)
        if code:
            assert "no tensor type fallback is defined" in text, text
            with pytest.raises(PlanError):
                preset_types(preset, model.tensors, facts, has_imatrix=has_imatrix)
        else:
            ours = preset_types(preset, model.tensors, facts, has_imatrix=has_imatrix)
            assert names(ours) == printed_types(text), preset


def test_the_order_in_which_tensors_are_given_does_not_matter() -> None:
    model = MODELS["mixtral"]
    facts = model_facts(model.metadata)
    expected = preset_types("Q4_K_M", model.tensors, facts)
    shuffled = [model.tensors[i] for i in np.random.default_rng(1).permutation(len(model.tensors))]
    assert list(preset_types("Q4_K_M", shuffled, facts).items()) == list(expected.items())


def test_order_is_by_number_of_block_then_name() -> None:
    given = [
        "blk.10.b.weight",
        "blk.2.a.weight",
        "output.weight",
        "blk.2.B.weight",
        "blk.10.a.weight",
        "a.weight",
    ]
    ordered = quantize_order(TensorFacts(name, (4, 4), GGMLType.F16) for name in given)
    assert [t.name for t in ordered] == [
        *(
            "a.weight",
            "output.weight",
            "blk.2.B.weight",
            "blk.2.a.weight",
            "blk.10.a.weight",
            "blk.10.b.weight",
        )
    ]


def test_reasons_tell_rule_fallback_and_pin() -> None:
    model = MODELS["llama, rows of 96, 160 and 288"]
    ours = preset_types(
        "Q4_K_M", model.tensors, model_facts(model.metadata), pins=[parse_pin("blk.3.attn_q=q6_k")]
    )
    down = ours["blk.0.ffn_down.weight"]
    assert (down.wanted, down.type, down.fell_back) == (GGMLType.Q6_K, GGMLType.Q8_0, True)
    assert down.reason == "ffn_down, not_arch=falcon, more_bits; Q6_K needs rows in multiples of 256, not 160"
    assert ours["blk.3.attn_q.weight"].reason.startswith("pin blk.3.attn_q=q6_k;")
    assert ours["blk.1.attn_norm.weight"].reason == "kept as in the source"
    assert not ours["blk.1.attn_norm.weight"].fell_back


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_and_case(alias: str) -> None:
    assert find_preset(alias.lower()) is PRESETS[f"{alias}_M"]


def test_unknown_presets_are_refused_with_a_hint() -> None:
    with pytest.raises(PlanError, match=r"'Q4_KM' is no llama-quantize preset; did you mean .*Q4_K_M"):
        find_preset("Q4_KM")
    with pytest.raises(PlanError, match="presets are F32, F16"):
        find_preset("copy")


def test_fallbacks() -> None:
    assert fallback_type(GGMLType.Q4_K, 512) == GGMLType.Q4_K
    assert fallback_type(GGMLType.Q4_K, 96) == GGMLType.Q5_0
    assert fallback_type(GGMLType.IQ2_XXS, 96) == GGMLType.IQ4_NL
    assert fallback_type(GGMLType.Q6_K, 40) == GGMLType.F16
    assert fallback_type(GGMLType.Q8_0, 40) == GGMLType.F16
    assert fallback_type(GGMLType.Q1_0, 64) is None
    assert fallback_type(GGMLType.NVFP4, 32) is None
    for kind in GGMLType:
        for row in (1, 32, 40, 64, 96, 128, 256, 4096):
            fitting = fallback_type(kind, row)
            assert fitting is None or row % fitting.block_size == 0


def test_leading_ones_are_no_dimensions() -> None:
    facts = model_facts(MODELS["llama"].metadata)
    assert not quantizable(TensorFacts("blk.0.gate.weight", (1, 256), GGMLType.F16), facts)
    assert quantizable(TensorFacts("blk.0.gate.weight", (256, 1), GGMLType.F16), facts)
    assert not quantizable(TensorFacts("blk.0.ffn_up.bias", (4, 256), GGMLType.F16), facts)
    assert TensorFacts("scalar", (), GGMLType.F32).n_dims == 1


def test_facts_of_metadata() -> None:
    facts = model_facts(MODELS["llama, grouped 4:1, per layer"].metadata)
    assert (facts.n_head, facts.n_head_kv, facts.n_gqa, facts.n_expert) == (8, 2, 4, 0)
    without = model_facts(
        {"general.architecture": "llama", "llama.block_count": 3, "llama.attention.head_count": 4}
    )
    assert (without.n_gqa, without.n_layer) == (1, 3)
    array = model_facts({**MODELS["llama"].metadata, "llama.attention.head_count_kv": np.array([4, 8])})
    assert array.n_gqa == 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "general.architecture"),
        ({"general.architecture": "llama"}, "llama.block_count"),
        ({"general.architecture": "llama", "llama.block_count": "many"}, "'many', not a whole number"),
    ],
)
def test_metadata_without_facts_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        model_facts(values)
