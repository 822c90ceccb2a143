"""Two small random models that llama.cpp runs: a dense one with tied output, and a mixture of experts."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

N_EMBD, N_FF, N_HEAD, N_KV, N_BLOCKS, N_EXPERTS, N_USED = 256, 256, 4, 2, 2, 6, 2
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *"etaoinshrdlu"]
TEXT = " ".join(
    f"the {a} {b} said that {c} is in {a}"
    for a in ("rain", "house", "list", "island", "son", "trail")
    for b in ("turned", "old", "sand", "northern", "rusted")
    for c in ("read", "tin", "also", "hidden", "utter")
)


def _vocabulary(writer: gguf.GGUFWriter) -> None:
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * (len(PIECES) - 259)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(PIECES)
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(len(PIECES) - 259)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)


def write_model(path: Path, *, experts: bool, dtype: type[np.generic] = np.float32) -> Path:
    rng = np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_BLOCKS)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(N_EMBD // N_HEAD)
    writer.add_vocab_size(len(PIECES))
    if experts:
        writer.add_expert_count(N_EXPERTS)
        writer.add_expert_used_count(N_USED)
    _vocabulary(writer)

    def matrix(name: str, *shape: int, size: float = 1.0) -> None:
        values = rng.standard_normal(shape) * size / np.sqrt(shape[-1])
        writer.add_tensor(name, values.astype(dtype))

    def ones(name: str) -> None:
        writer.add_tensor(name, rng.uniform(0.5, 1.5, N_EMBD).astype(np.float32))

    matrix("token_embd.weight", len(PIECES), N_EMBD, size=3.0)
    ones("output_norm.weight")
    if experts:
        matrix("output.weight", len(PIECES), N_EMBD, size=2.0)
    for i in range(N_BLOCKS):
        at = f"blk.{i}."
        ones(at + "attn_norm.weight")
        ones(at + "ffn_norm.weight")
        matrix(at + "attn_q.weight", N_EMBD, N_EMBD)
        matrix(at + "attn_k.weight", N_EMBD // N_HEAD * N_KV, N_EMBD)
        matrix(at + "attn_v.weight", N_EMBD // N_HEAD * N_KV, N_EMBD)
        matrix(at + "attn_output.weight", N_EMBD, N_EMBD)
        if experts:
            # The last expert is never chosen: its router row is far below the others on every input.
            router = rng.standard_normal((N_EXPERTS, N_EMBD)).astype(np.float32) / 16
            router[-1] = 0
            writer.add_tensor(at + "ffn_gate_inp.weight", router)
            matrix(at + "ffn_gate_exps.weight", N_EXPERTS, N_FF, N_EMBD)
            matrix(at + "ffn_up_exps.weight", N_EXPERTS, N_FF, N_EMBD)
            matrix(at + "ffn_down_exps.weight", N_EXPERTS, N_EMBD, N_FF)
        else:
            matrix(at + "ffn_gate.weight", N_FF, N_EMBD)
            matrix(at + "ffn_up.weight", N_FF, N_EMBD)
            matrix(at + "ffn_down.weight", N_EMBD, N_FF)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def dense_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("dense") / "dense.gguf", experts=False)


@pytest.fixture(scope="session")
def expert_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("experts") / "experts.gguf", experts=True)


@pytest.fixture(scope="session")
def half_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "half.gguf"
    return write_model(path, experts=False, dtype=np.float16)


@pytest.fixture(scope="session")
def text() -> str:
    return TEXT
