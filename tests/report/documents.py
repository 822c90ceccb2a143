"""Small inputs of every kind that a report takes, written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np


def written(path: Path, value: Any) -> Path:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def plan_entry(name: str, kind: str, shape: list[int], reason: str = "because") -> dict[str, Any]:
    """One tensor of a plan."""
    return {"name": name, "type": kind, "shape": shape, "reason": reason}


def plan(
    tensors: list[dict[str, Any]] | None = None,
    method: str = "rd",
    parameters: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A plan of two blocks with three matrices and a norm each."""
    if tensors is None:
        tensors = [plan_entry("token_embd.weight", "Q6_K", [64, 256])]
        for block, kind in enumerate(("Q4_K", "Q5_K")):
            tensors.append(plan_entry(f"blk.{block}.attn_norm.weight", "F32", [256]))
            tensors.append(plan_entry(f"blk.{block}.attn_q.weight", kind, [256, 256]))
            tensors.append(plan_entry(f"blk.{block}.ffn_down.weight", "Q8_0", [256, 512]))
    told = {"target": {"like": "Q4_K_M"}, "predicted": 0.04, "unit": "nats per token", "text": "default.txt"}
    return {
        "format": "ewq-gguf plan",
        "version": 1,
        "method": method,
        "parameters": told if parameters is None else dict(parameters),
        "source": {"arch": "llama", "fingerprint": "f" * 64},
        "tensors": tensors,
    }


def model_file(
    path: Path, method: str, parameters: Mapping[str, Any], more: Mapping[str, str] | None = None
) -> int:
    """A GGUF file of one tensor with the provenance keys that ours have; returns its bytes."""
    writer = gguf.GGUFWriter(path, "llama")
    keys = {"ewq.parameters": json.dumps(parameters), "ewq.method": method,
            "ewq.plan": json.dumps({"method": method, "tensors": {"blk.0.ffn_up.weight": "F32"}})}  # fmt: skip
    for key, value in {**keys, **(more or {})}.items():
        writer.add_string(key, value)
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((4, 32), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    return path.stat().st_size


def figures(file: str, nbytes: int, kld: float, **more: Any) -> dict[str, Any]:
    """One file of `evaluate divergence --json`."""
    found = {"file": file, "bytes": nbytes, "ppl": 20.0, "ppl_se": 0.5, "mean_kld": kld, "mean_kld_se": kld / 50,
             "top1_agreement": 0.9, "chunks": 4, "n_ctx": 512}  # fmt: skip
    return {**found, **more}


def divergence(*files: dict[str, Any]) -> dict[str, Any]:
    """`evaluate divergence --json`."""
    return {
        "baseline": "/somewhere/base.gguf",
        "text": "/somewhere/words.txt",
        "files": list(files),
        "pairs": [],
    }


def record(allocation: bool = False) -> dict[str, Any]:
    """results.json of a study: two presets, stock and rate-distortion, and two blocks alone."""
    rows: list[dict[str, Any]] = []
    for preset, nbytes, stock in (("Q4_K_M", 5 << 20, 0.06), ("Q6_K", 8 << 20, 0.008)):
        for method, kld in (("stock", stock), ("rd", stock / 2)):
            own = figures("candidate.gguf", nbytes, kld)
            rows.append({**own, "file": f"{preset} {method}", "method": method, "preset": preset,
                         "key": f"{preset}{method}", "texts": {"words.txt": own}})  # fmt: skip
    for block in (0, 1):
        rows.append({**figures(f"block {block} alone in Q3_K", 9 << 20, 0.02 + block / 100), "method": "block",
                     "preset": str(block), "key": f"b{block}"})  # fmt: skip
    facts = {"model": "f" * 64, "chunks": 4, **({"texts": ["t"]} if allocation else {"text": "t"})}
    return {"facts": facts, "measurements": rows}


def analysis() -> dict[str, Any]:
    """`analyze --json` of four blocks."""
    blocks = [
        {"index": i, "entropy": 4.604 + i * 1e-8, "class": "raw" if i > 1 else "8-bit"} for i in range(4)
    ]
    return {"epsilon": 0.01, "reading": "weighted-mean", "x": 1.0, "mu": 4.604, "sigma": 1e-8,
            "threshold": 4.604 - 1e-8, "blocks": blocks, "tensors": []}  # fmt: skip


def probes(blocks: int = 4) -> list[dict[str, Any]]:
    """`calibrate probe --json`: every block's matrix in two types, the embedding with an enlarged error only."""
    found = [
        {"tensor": f"blk.{i}.attn_q.weight", "type": kind, "scale": 1.0, "kld": kld * (i + 1), "se": 1e-5, "noise": 0.0}
        for i in range(blocks)
        for kind, kld in (("Q3_K", 1e-3), ("Q2_K", 4e-3))
    ]  # fmt: skip
    return [*found, {"tensor": "token_embd.weight", "type": "Q2_K", "scale": 2.0, "kld": 0.1, "se": 1e-3}]


def journal(kind: str = "probe") -> str:
    """The journal that a study keeps of the same probes, its last line cut short."""
    head = {"format": "ewq-gguf measurements", "version": 1, "kind": kind, "fingerprint": "0", "facts": {}}
    lines = [json.dumps(head), json.dumps({"key": "noise", "value": {"kld": 0.0}})]
    lines += [json.dumps({"key": str(i), "value": p}) for i, p in enumerate(probes())]
    return "\n".join(lines) + '\n{"key": "cut'
