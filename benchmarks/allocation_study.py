"""Rate-distortion allocation against everything else at equal bytes; writes ALLOCATION.md and its figures.

    make allocation-study MODELS="reference-10m smollm2 gemma3" PRESETS="Q2_K Q3_K_M Q4_K_S Q4_K_M Q5_K_M Q6_K"

For each model and preset, all files hold at most the bytes of tensor data that the preset takes: the preset with
the same importance matrix, the measured allocation, the same with embedding and output pinned to the preset's
types, with K-quants only, with damage from `imatrix` or `mse` alone, random allocation, and EWQ's order as a
demotion order. Calibration text and evaluation texts are disjoint. What was measured is not measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from measuring import Candidate, Recorder, keep_baseline, measure_file
from models import ORIGINS, model_folder

from ewq_gguf.allocation.distortion import PLAIN_POOL
from ewq_gguf.allocation.facts import Assignment
from ewq_gguf.allocation.methods import preset_plan, uniform_plan
from ewq_gguf.allocation.plan import Plan, make_plan, raw_type
from ewq_gguf.allocation.targets import Target
from ewq_gguf.decision import Decision, decide
from ewq_gguf.errors import EwqError
from ewq_gguf.ggml import GGMLType
from ewq_gguf.model import Model
from ewq_gguf.pipeline.convert import file_size, write_model
from ewq_gguf.pipeline.optimize import Studied, Study, study_model
from ewq_gguf.pipeline.rd_plan import rd_plan, tryout_of
from ewq_gguf.pipeline.source import load_model

HERE = Path(__file__).parent
GOALS = {"Q2_K": 0.65, "Q3_K_M": 0.65, "Q4_K_S": 0.65, "Q4_K_M": 0.65, "Q5_K_M": 0.85, "Q6_K": 0.85}
VARIANTS = {
    "stock": "stock + imatrix",
    "rd": "measured",
    "pinned": "measured, embedding and output as the preset",
    "k-quants": "measured, K-quants only",
    "direct": "every type measured",
    "imatrix": "weighted error only",
    "mse": "plain error only",
    "random": "random",
    "ewq": "EWQ's order",
}
# What is tried out before its file is made, as `convert --like` does.
TRIED = ("stock", "rd")
PRECISE = ("mean_kld", "mean_kld_se", "chunks")
OUTER = ("token_embd.weight", "output.weight")
# Contexts of 512 per text; those of the larger models take a minute a file on two cores.
CHUNKS = {"reference-10m": 20, "smollm2": 10, "gemma3": 6}
# Of what is tried out, to compare with predictions: the ratio of two files on few contexts is off by several percent.
MORE_CHUNKS = {"reference-10m": 60, "smollm2": 40, "gemma3": 24}
# Measuring every type of every tensor takes ten times as long as one probe each.
DIRECT_PARAMETERS = 20_000_000


def plans(model: Model, preset: str, studies: dict[str, Studied], variants: list[str]) -> Iterator[Candidate]:
    """Every variant's plan at the preset's bytes; what cannot be made is said and left out."""
    stock = preset_plan(model, preset, has_imatrix=True)
    target = Target(like=preset)
    measured = studies["probe"]
    for variant in variants:
        try:
            if variant == "stock":
                plan = stock
            elif variant == "rd":
                plan = rd_plan(model, measured, target)
            elif variant == "pinned":
                pins = {t.name: t.type for t in stock.tensors if t.name in OUTER}
                plan = rd_plan(model, measured, target, pins=pins)
            elif variant == "k-quants":
                plan = rd_plan(model, measured, target, pool=PLAIN_POOL)
            elif variant in ("direct", "imatrix", "mse"):
                if variant not in studies:
                    continue
                plan = rd_plan(model, studies[variant], target)
            elif variant == "random":
                plan = random_plan(model, measured, stock.data_bytes)
            else:
                size = file_size(model, stock, importance=measured.importance)
                wish = Decision(
                    method="ewq", size=size, classes="Q6_K,Q4_K,Q3_K", ternary="Q2_K", embedding="Q4_K"
                )
                plan = decide(
                    model, wish, size_of=lambda p: file_size(model, p, importance=measured.importance)
                )
        except EwqError as error:
            print(f"  {variant} at {preset}: {error}", flush=True)
            continue
        yield Candidate(f"{preset} {variant}", variant, preset, plan, True)


def random_plan(model: Model, studied: Studied, budget: int, seed: int = 1) -> Plan:
    """Types drawn tensor by tensor, then raised or lowered at random until the bytes fit just so."""
    rng = random.Random(seed)
    table = studied.table
    pool = [k for k in PLAIN_POOL if k is not GGMLType.Q8_0]
    options = {n: [k for k in row if k in pool] or list(row) for n, row in table.options.items()}
    chosen = {n: rng.choice(kinds) for n, kinds in options.items()}

    def total() -> int:
        return table.fixed_bytes + sum(table.options[n][k].bytes for n, k in chosen.items())

    names = list(options)
    for _ in range(100_000):
        name = rng.choice(names)
        at = options[name].index(chosen[name])
        step = -1 if total() > budget else 1
        if 0 <= at + step < len(options[name]):
            before, chosen[name] = chosen[name], options[name][at + step]
            if step == 1 and total() > budget:
                chosen[name] = before
                if rng.random() < 0.02:
                    break
    base = uniform_plan(model, raw_type(model))
    assignments = {
        t.name: Assignment(k, k, "random")
        if (k := chosen.get(t.name)) is not None
        else Assignment(t.type, t.type, t.reason)
        for t in base.tensors
    }
    return make_plan(model, "random", {"seed": seed}, assignments)


def study_one(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All measurements of one model on all texts."""
    source = model_folder(name) if name in ORIGINS else HERE / name
    model = load_model(source)
    chunks = options.chunks or CHUNKS.get(name, 10)
    base = Study(text=options.calibration, chunks=options.probe_chunks)
    studies = {"probe": study_model(model, base)}
    probes = studies["probe"].probes
    given = studies["probe"].importance
    for damage in ("direct", "imatrix", "mse"):
        if damage in options.variants and (damage != "direct" or model.n_parameters < DIRECT_PARAMETERS):
            # The same importance matrix for all: only what counts as damage differs.
            studies[damage] = study_model(model, replace(base, damage=damage))
    rows = []
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="ewq-gguf-", dir=options.scratch))
        baseline = Path(scratch) / "baseline.gguf"
        write_model(model, uniform_plan(model, raw_type(model)), baseline)
        facts = {
            "model": model.fingerprint,
            "texts": [hashlib.sha256(t.read_bytes()).hexdigest() for t in options.texts],
            "chunks": chunks,
            "imatrix": None if given is None else given.sha256,
        }
        recorder = Recorder(HERE / "results" / f"allocation-{name}", facts)
        more = MORE_CHUNKS.get(name, 2 * chunks)
        precise = Recorder(HERE / "results" / f"predicted-{name}", {**facts, "chunks": more})
        kept: dict[int, dict[str, Path]] = {}

        def measured(recorder: Recorder, chunks: int, c: Candidate) -> dict[str, Any]:
            def run() -> dict[str, Any]:
                if chunks not in kept:
                    kept[chunks] = keep_baseline(baseline, options.texts, chunks)
                return measure_file(model, c, given, baseline, options.texts, chunks, kept[chunks])

            return recorder.measure(c, run)

        tryout = stack.enter_context(tryout_of(model, studies["probe"]))
        for preset in options.presets:
            for c in plans(model, preset, studies, options.variants):
                row = measured(recorder, chunks, c)
                tried, again = None, {}
                if c.method in TRIED:
                    tried = tryout.kld(c.plan.types())
                    texts = measured(precise, more, c)["texts"]
                    again = {t: {key: figures[key] for key in PRECISE} for t, figures in texts.items()}
                summed = _summed(studies["probe"], c)
                about = {
                    "model": name,
                    "predicted": tried,
                    "summed": summed,
                    "probes": len(probes),
                    "probe_seconds": sum(p.seconds for p in probes),
                }
                known = {k: v for k, v in row.items() if k != "texts"}
                rows += [
                    {**known, **figures, **about, "text": t, "precise": again.get(t)}
                    for t, figures in row["texts"].items()
                ]
    return rows


def _summed(studied: Studied, candidate: Candidate) -> float | None:
    """What the sum of probes foresees of a candidate's divergence; None where its types are not in the table."""
    types = {t.name: t.type for t in candidate.plan.tensors if t.name in studied.table.options}
    try:
        return studied.table.predict(types)[1]
    except EwqError:
        return None


def ratio(row: dict[str, Any], stock: dict[str, Any]) -> tuple[float, float]:
    """KLD of a file relative to the stock preset's, and its standard error (errors taken as independent)."""
    value = row["mean_kld"] / stock["mean_kld"]
    relative = math.hypot(row["mean_kld_se"] / row["mean_kld"], stock["mean_kld_se"] / stock["mean_kld"])
    return value, value * relative


def write_page(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """ALLOCATION.md: ratios with errors, geometric means against the goals, predictions."""
    by = {(r["model"], r["text"], r["preset"], r["method"]): r for r in rows}
    models, texts = (
        list(dict.fromkeys(r["model"] for r in rows)),
        list(dict.fromkeys(r["text"] for r in rows)),
    )
    contexts = ", ".join(
        f"{next(r['chunks'] for r in rows if r['model'] == name)} for {name}" for name in models
    )
    lines = [
        "# Allocation at equal bytes",
        "",
        "Made by `make allocation-study`. Mean KL divergence from the unquantized model relative to the stock preset "
        "with the same importance matrix, at no more than the preset's bytes of tensor data; plus or minus one "
        f"standard error; contexts of 512 of each text: {contexts}. Below 1 is better than stock.",
        "",
    ]
    for name in models:
        if name in ORIGINS:
            lines += [
                f"`{name}` starts from {ORIGINS[name].licence}, moved off its grid by `benchmarks/models.py`.",
                "",
            ]
    presets = [p for p in options.presets if any(r["preset"] == p for r in rows)]
    lines += ["## Geometric mean over models and texts", "", "| |" + "".join(f" {p} |" for p in presets)]
    lines.append("|---|" + "--:|" * len(presets))
    for variant, label in VARIANTS.items():
        cells = []
        for preset in presets:
            logs = [
                math.log(ratio(by[m, t, preset, variant], by[m, t, preset, "stock"])[0])
                for m in models
                for t in texts
                if (m, t, preset, variant) in by and (m, t, preset, "stock") in by
            ]
            cells.append(f" {math.exp(sum(logs) / len(logs)):.2f} |" if logs else " - |")
        if any(c != " - |" for c in cells):
            lines.append(f"| {label} |" + "".join(cells))
    lines.append("| goal |" + "".join(f" {GOALS.get(p, math.nan):.2f} |" for p in presets))
    for name in models:
        for text in texts:
            lines += ["", f"## {name}, {text}", "", "| |" + "".join(f" {p} |" for p in presets)]
            lines.append("|---|" + "--:|" * len(presets))
            stocks = [by.get((name, text, p, "stock")) for p in presets]
            lines.append("| bytes |" + "".join(f" {s['bytes']:,} |" if s else " - |" for s in stocks))
            lines.append(
                "| stock KLD |" + "".join(f" {s['mean_kld']:.4f} |" if s else " - |" for s in stocks)
            )
            for variant, label in VARIANTS.items():
                cells = []
                for preset, s in zip(presets, stocks):
                    r = by.get((name, text, preset, variant))
                    cells.append(
                        " - |" if r is None or s is None else " {:.2f} ± {:.2f} |".format(*ratio(r, s))
                    )
                if variant != "stock" and any(c != " - |" for c in cells):
                    lines.append(f"| {label} |" + "".join(cells))
    lines += ["", "## What probing takes", "", "| model | tensors | seconds |", "|---|--:|--:|"]
    for name in models:
        row = next(r for r in rows if r["model"] == name)
        lines.append(f"| {name} | {row['probes']} | {row['probe_seconds']:.0f} |")
    lines += [
        "", "## Predicted and measured", "",
        "The divergence of the measured allocation, and its ratio to the stock preset's with importance matrix, as "
        "predicted on the calibration text, by trying out both, and as measured on other text, on more contexts than "
        "above: " + ", ".join(f"{c} for {m}" for m, c in MORE_CHUNKS.items() if m in models) + ". In the last column "
        "the same ratio by sums of probes.", "",
        "| model | text | preset | predicted | measured | of the two | ratio predicted | ratio measured | of the two | by sums |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for r in rows:
        stock = by.get((r["model"], r["text"], r["preset"], "stock"))
        if r["method"] != "rd" or stock is None or stock["precise"] is None:
            continue
        found = r["precise"]
        foreseen, (value, error) = r["predicted"] / stock["predicted"], ratio(found, stock["precise"])
        summed = f"{r['summed'] / stock['summed'] / value:.2f}" if r["summed"] and stock["summed"] else "-"
        lines.append(
            f"| {r['model']} | {r['text']} | {r['preset']} | {r['predicted']:.4f} | "
            f"{found['mean_kld']:.4f} ± {found['mean_kld_se']:.4f} | {r['predicted'] / found['mean_kld']:.2f} | "
            f"{foreseen:.3f} | {value:.3f} ± {error:.3f} | {foreseen / value:.2f} | {summed} |"
        )
    notes = HERE / "ALLOCATION.notes.md"
    if notes.is_file():
        lines += ["", notes.read_text().rstrip()]
    (HERE / "ALLOCATION.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["reference-10m"])
    parser.add_argument("--presets", nargs="+", default=list(GOALS))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--texts", nargs="+", type=Path, default=[HERE / "data" / "evaluation.txt"])
    parser.add_argument("--calibration", type=Path, default=HERE / "data" / "calibration.txt")
    parser.add_argument(
        "--chunks", type=int, help="contexts of 512 per text; by default fewer for larger models"
    )
    parser.add_argument("--probe-chunks", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="folder for the files measured; needs room for two")
    options = parser.parse_args()
    kept = HERE / "results" / "allocation.json"
    rows: list[dict[str, Any]] = []
    for name in options.models:
        rows += study_one(name, options)
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(rows, indent=1))
        write_page(rows, options)
    print((HERE / "ALLOCATION.md").read_text())


if __name__ == "__main__":
    main()
