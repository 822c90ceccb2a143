"""A random mixture of experts whose rows are no multiple of 256, some not even of 32; and importance matrices."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from ewq_gguf.calibration.imatrix import Entry, ImportanceMatrix
from ewq_gguf.calibration.imatrix_file import save_imatrix
from ewq_gguf.pipeline.source import load_model

N_EMBD, N_FF, N_EXPERTS, N_BLOCKS, N_VOCAB = 288, 200, 3, 8, 64
_HEADS, _KV_HEADS = 4, 2


def write_odd_model(path: Path, dtype: str = "F16") -> Path:
    """A GGUF file of llama architecture; matrices in `dtype` (F32, F16 or BF16), norms and routers in F32."""
    rng = np.random.default_rng(11)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_BLOCKS)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(N_EXPERTS)
    writer.add_expert_used_count(2)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(N_VOCAB)
    writer.add_array("odd.numbers", [3, 1, 2])
    writer.add_bool("odd.flag", True)
    writer.add_float64("odd.precise", 0.1)

    def matrix(name: str, *shape: int) -> None:
        # Columns of different size, so that weights per column matter.
        values = rng.standard_normal(shape) * rng.uniform(0.2, 2.0, shape[-1]) / np.sqrt(shape[-1])
        values = values.astype(np.float32)
        if dtype == "BF16":
            codes = (values.view(np.uint32) >> 16).astype(np.uint16)
            writer.add_tensor(name, codes.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, values.astype({"F16": np.float16, "F32": np.float32}[dtype]))

    def vector(name: str, n: int) -> None:
        writer.add_tensor(name, rng.uniform(0.5, 1.5, n).astype(np.float32))

    matrix("token_embd.weight", N_VOCAB, N_EMBD)
    for i in range(N_BLOCKS):
        kv = N_EMBD // _HEADS * _KV_HEADS
        vector(f"blk.{i}.attn_norm.weight", N_EMBD)
        matrix(f"blk.{i}.attn_q.weight", N_EMBD, N_EMBD)
        matrix(f"blk.{i}.attn_k.weight", kv, N_EMBD)
        matrix(f"blk.{i}.attn_v.weight", kv, N_EMBD)
        matrix(f"blk.{i}.attn_output.weight", N_EMBD, N_EMBD)
        vector(f"blk.{i}.ffn_norm.weight", N_EMBD)
        writer.add_tensor(
            f"blk.{i}.ffn_gate_inp.weight", rng.standard_normal((N_EXPERTS, N_EMBD)).astype(np.float32)
        )
        matrix(f"blk.{i}.ffn_gate_exps.weight", N_EXPERTS, N_FF, N_EMBD)
        matrix(f"blk.{i}.ffn_up_exps.weight", N_EXPERTS, N_FF, N_EMBD)
        matrix(f"blk.{i}.ffn_down_exps.weight", N_EXPERTS, N_EMBD, N_FF)
    vector("output_norm.weight", N_EMBD)
    matrix("output.weight", N_VOCAB, N_EMBD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_imatrix(model: Path, path: Path, *, embedding: bool = False) -> ImportanceMatrix:
    """Random importance of every matrix in the blocks but one, and with `embedding` of those outside."""
    rng = np.random.default_rng(7)
    entries = {}
    for t in load_model(model).tensors:
        outside = t.block is None
        if t.fixed is not None or len(t.shape) < 2 or t.name == "blk.1.attn_k.weight":
            continue
        if outside and not embedding:
            continue
        n = t.shape[0] if len(t.shape) == 3 else 1
        counts = rng.integers(20, 400, n)
        if n > 1:
            counts[0] = 0  # an expert that saw no token
        sums = (rng.uniform(0.01, 3.0, (n, t.row_length)) ** 3 * counts[:, None]).astype(np.float32)
        entries[t.name] = Entry(sums, counts.astype(np.int64))
    matrix = ImportanceMatrix(entries, ("some-text.txt",), 12, 512)
    save_imatrix(matrix, path)
    return matrix
