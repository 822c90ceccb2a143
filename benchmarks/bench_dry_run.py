"""A plan and its exact size from headers alone: seconds and megabytes, for models of 70 and 671 billion weights.

    python benchmarks/bench_dry_run.py

The models are shards with headers and holes, in a temporary folder: nothing is stored, nothing is downloaded.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from processes import run
from synthetic import LlamaShape, write_checkpoint, write_shards

from ewq_gguf.ggml import GGMLType
from ewq_gguf.pipeline.header import HeaderTensor, header_bytes, padded
from ewq_gguf.pipeline.source import load_model
from tests.tiny.shapes import deepseek
from tests.tiny.vocabularies import write_bpe

_DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "hidden_act": "silu",
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
        "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def write_deepseek(folder: Path) -> None:
    """The shapes of DeepSeek-V3, with a small vocabulary; 45,000 tensors."""
    folder.mkdir()
    config = {**_DEEPSEEK, "vocab_size": write_bpe(folder)}
    (folder / "config.json").write_text(json.dumps(config))
    write_shards(folder, deepseek(config), 5 << 30, None)


def write_gguf(checkpoint: Path, path: Path) -> None:
    """The same model as one GGUF file of the same kind: a header, and a hole."""
    model = load_model(checkpoint)
    table = []
    for t in model.tensors:
        kind = GGMLType.BF16 if t.fixed is None else t.fixed
        table.append(HeaderTensor(t.name, t.shape, kind, t.bytes_as(kind)))
    head = header_bytes(dict(model.metadata), table)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + sum(padded(t.nbytes) for t in table))


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="ewq-bench-"))
    print("| model | source | weights | plan | bytes of the file | wall, s | CPU, s | peak RSS, MB |")
    print("|" + "---|" * 8)
    try:
        write_checkpoint(folder / "llama-70b", LlamaShape(8192, 80, 28672, 64, 8), data=False)
        write_deepseek(folder / "deepseek-671b")
        for name in ("llama-70b", "deepseek-671b"):
            write_gguf(folder / name, folder / f"{name}.gguf")
            for source in (folder / name, folder / f"{name}.gguf"):
                for kind in ("Q4_K_M", "fastewq"):
                    wish = ["--method", kind] if kind == "fastewq" else ["--type", kind]
                    log = folder / "log.txt"
                    command = [sys.executable, "-m", "ewq_gguf", "-q", "convert", str(source), "--dry-run"]
                    usage = run([*command, "--json", *wish], log)
                    told = json.loads(log.read_text())
                    cells = [name, "GGUF" if source.is_file() else "safetensors", f"{told['parameters'] / 1e9:.1f} G",
                             kind, f"{told['bytes']:,}", f"{usage.wall:.2f}", f"{usage.cpu:.2f}", f"{usage.peak / 1e6:.0f}"]  # fmt: skip
                    print("|", " | ".join(cells), "|", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
