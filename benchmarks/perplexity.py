"""Size against quality: baseline, stock presets and every method at matched sizes, measured on one text.

    make perplexity MODEL=benchmarks/reference-10m TEXT=benchmarks/data/evaluation.txt \
                    TYPES="Q3_K_M Q4_K_M Q5_K_M Q6_K Q8_0" METHODS="rd ewq fastewq" CHUNKS=20

MODEL is a checkpoint folder, a .gguf, `smollm2` or `gemma3` (made by models.py). Each method makes one file at
the size of each preset; EWQ also makes the paper's own mix, which has no size parameter. Results go to
benchmarks/results/<model>/: results.json, results.csv, results.md, size_kld.png, kld_by_block.png. A file
that was measured before with the same plan, text and number of contexts is not made again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring import Candidate, Recorder, measure_file
from models import ORIGINS, model_folder

from ewq_gguf.allocation.facts import Assignment
from ewq_gguf.allocation.methods import preset_plan, uniform_plan
from ewq_gguf.allocation.plan import make_plan, raw_type
from ewq_gguf.allocation.targets import Target
from ewq_gguf.decision import Decision, decide
from ewq_gguf.errors import EwqError
from ewq_gguf.ggml import GGMLType
from ewq_gguf.model import Model
from ewq_gguf.pipeline.convert import file_size, write_model
from ewq_gguf.pipeline.optimize import DEFAULT_TEXT, Studied, Study, default_cache, study_model
from ewq_gguf.pipeline.rd_plan import rd_plan
from ewq_gguf.pipeline.source import load_model

RESULTS = Path(__file__).parent / "results"
FIELDS = ("file", "method", "preset", "bytes", "bpw", "ppl", "ppl_se", "mean_kld", "mean_kld_se", "median_kld",
          "p99_kld", "top1_agreement", "top1_agreement_se", "rms_delta_p", "seconds")  # fmt: skip
LABELS = {
    "stock": "stock preset",
    "stock+imatrix": "stock preset + imatrix",
    "rd": "rate-distortion",
    "ewq": "EWQ",
    "fastewq": "FastEWQ",
}


def candidates(
    model: Model, studied: Studied | None, types: list[str], methods: list[str]
) -> Iterator[Candidate]:
    """The stock presets, and each method at each preset's size."""
    for preset in types:
        stock = preset_plan(model, preset) if not _needs_imatrix(model, preset) else None
        if stock is not None:
            yield Candidate(preset, "stock", preset, stock, False)
        if studied is not None and studied.importance is not None:
            weighted = preset_plan(model, preset, has_imatrix=True)
            yield Candidate(f"{preset} + imatrix", "stock+imatrix", preset, weighted, True)
    for method in methods:
        if method == "ewq":
            yield Candidate("EWQ, the paper's mix", "ewq", "", decide(model, Decision(method="ewq")), False)
        for preset in types:
            try:
                if method == "rd":
                    assert studied is not None
                    plan, weighted = (
                        rd_plan(model, studied, Target(like=preset)),
                        studied.importance is not None,
                    )
                else:
                    size = file_size(model, preset_plan(model, preset, has_imatrix=True))
                    options: dict[str, Any] = {"classes": "Q8_0,Q6_K,Q4_K", "embedding": "Q8_0"}
                    plan, weighted = decide(model, Decision(method=method, size=size, **options)), False
            except EwqError as error:
                print(f"  {method} at {preset}: {error}", flush=True)
                continue
            yield Candidate(f"{LABELS[method]} at {preset}", method, preset, plan, weighted)


def _needs_imatrix(model: Model, preset: str) -> bool:
    try:
        preset_plan(model, preset)
    except EwqError:
        return True
    return False


def one_block_plans(model: Model, kind: GGMLType = GGMLType.Q3_K) -> Iterator[Candidate]:
    """Each block alone in a coarse type, everything else untouched: how sensitive the blocks are."""
    baseline = uniform_plan(model, raw_type(model))
    coarse = uniform_plan(model, kind)
    for block in range(model.n_blocks):
        assignments = {
            t.name: Assignment(t.type, t.wanted, t.reason)
            for t in (
                c if f".{block}." in c.name[:8] else b for b, c in zip(baseline.tensors, coarse.tensors)
            )
        }
        plan = make_plan(model, "block", {"block": block, "type": kind.name}, assignments)
        yield Candidate(f"block {block} alone in {kind.name}", "block", str(block), plan, False)


def run(options: argparse.Namespace) -> Path:
    """Make, measure and draw; returns the folder of results."""
    name = options.model
    source = model_folder(name) if name in ORIGINS else Path(name)
    model = load_model(source)
    name = name if name in ORIGINS else source.stem
    folder = RESULTS / name
    studied = None
    if "rd" in options.methods or options.imatrix:
        study = Study(text=options.calibration, cache=default_cache())
        studied = study_model(model, study, progress=_progress)
    facts = {
        "model": model.fingerprint,
        "text": hashlib.sha256(options.text.read_bytes()).hexdigest(),
        "chunks": options.chunks,
        "imatrix": None if studied is None or studied.importance is None else studied.importance.sha256,
    }
    recorder = Recorder(folder, facts)
    with tempfile.TemporaryDirectory(prefix="ewq-gguf-") as scratch:
        baseline = Path(scratch) / "baseline.gguf"
        write_model(model, uniform_plan(model, raw_type(model)), baseline)

        def measure(candidate: Candidate) -> dict[str, Any]:
            importance = None if studied is None else studied.importance
            return measure_file(model, candidate, importance, baseline, [options.text], options.chunks)

        rows = [
            recorder.measure(c, lambda c=c: measure(c))  # type: ignore[misc]
            for c in candidates(model, studied, options.types, options.methods)
        ]
        blocks = []
        if options.blocks:
            blocks = [recorder.measure(c, lambda c=c: measure(c)) for c in one_block_plans(model)]  # type: ignore[misc]
    write_tables(folder, name, rows, options)
    draw(folder, name, rows, blocks)
    return folder


def _progress(stage: str, done: int, total: int) -> None:
    if done == total:
        print(f"  {stage}: done", flush=True)


def write_tables(folder: Path, name: str, rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """results.csv with all fields, results.md for people."""
    with (folder / "results.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, FIELDS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    lines = [
        f"# {name}",
        "",
        f"Mean KL divergence from the unquantized model in nats, {options.chunks or 'all'} contexts of 512 of "
        f"`{options.text.name}`; made by `make perplexity MODEL={name}`.",
        "",
        *(
            [f"Origin: {ORIGINS[name].licence}, moved off its grid by `benchmarks/models.py`.", ""]
            if name in ORIGINS
            else []
        ),
        "| file | bytes | bpw | perplexity | KLD | same top token |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for r in sorted(rows, key=lambda r: (r["bytes"], r["mean_kld"])):
        lines.append(
            f"| {r['file']} | {r['bytes']:,} | {r['bpw']:.2f} | {r['ppl']:.3f} | "
            f"{r['mean_kld']:.5f} ± {r['mean_kld_se']:.5f} | {100 * r['top1_agreement']:.2f} % |"
        )
    (folder / "results.md").write_text("\n".join(lines) + "\n")


def draw(folder: Path, name: str, rows: list[dict[str, Any]], blocks: list[dict[str, Any]]) -> None:
    """Size against KLD with error bars, one curve per method; KLD by block."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for method, marker in zip(LABELS, "osD^v"):
        points = sorted(
            (r["bytes"] / 2**20, r["mean_kld"], r["mean_kld_se"])
            for r in rows
            if r["method"] == method and r["preset"]
        )
        if points:
            x, y, e = zip(*points)
            axes.errorbar(
                x, y, yerr=[2 * v for v in e], marker=marker, capsize=3, label=LABELS[method], markersize=5
            )
    for r in rows:
        if r["method"] == "ewq" and not r["preset"]:
            axes.errorbar(r["bytes"] / 2**20, r["mean_kld"], yerr=2 * r["mean_kld_se"], marker="*", markersize=12,
                          linestyle="", label="EWQ, the paper's mix")  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("file size, MiB")
    axes.set_ylabel("mean KL divergence from the original, nats")
    axes.set_title(f"{name}: lower and further left is better (bars: 2 standard errors)")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(folder / "size_kld.png", dpi=120)
    plt.close(figure)
    if not blocks:
        return
    figure, axes = plt.subplots(figsize=(8, 4))
    x = [int(r["preset"]) for r in blocks]
    axes.bar(
        x,
        [r["mean_kld"] for r in blocks],
        yerr=[2 * r["mean_kld_se"] for r in blocks],
        capsize=2,
        color="#4878a8",
    )
    axes.set_xlabel("block that alone is in Q3_K")
    axes.set_ylabel("mean KL divergence, nats")
    axes.set_title(f"{name}: what each block costs (bars: 2 standard errors)")
    axes.set_xticks(x if len(x) <= 20 else x[::2])
    figure.tight_layout()
    figure.savefig(folder / "kld_by_block.png", dpi=120)
    plt.close(figure)


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(here / "reference-10m"))
    parser.add_argument("--text", type=Path, default=here / "data" / "evaluation.txt")
    parser.add_argument("--calibration", type=Path, default=DEFAULT_TEXT)
    parser.add_argument("--types", nargs="+", default=["Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"])
    parser.add_argument("--methods", nargs="*", default=["rd", "ewq", "fastewq"])
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--imatrix", action="store_true", help="stock presets with an importance matrix too")
    parser.add_argument("--no-blocks", dest="blocks", action="store_false", help="leave out KLD by block")
    options = parser.parse_args()
    folder = run(options)
    print((folder / "results.md").read_text())
    print(f"written to {folder}")


if __name__ == "__main__":
    main()
