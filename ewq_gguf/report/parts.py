"""The parts of the page, each from what the inputs hold; an empty part is left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ewq_gguf.allocation.plan import Plan
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.report.heatmap import alike, plan_picture, sensitivity_picture, types_of
from ewq_gguf.report.markup import Markup, clean, el, join
from ewq_gguf.report.methods import label, place_of, predicted, ratios
from ewq_gguf.report.pictures import (
    as_costs,
    block_picture,
    by_block,
    entropy_picture,
    prediction_picture,
    rank_correlation,
    ratio_picture,
    size_picture,
)
from ewq_gguf.report.runs import Measurement, PlanRun, ProbeFigure, Runs
from ewq_gguf.report.tables import Cell, command, details, facts, figure, table

_MOST_ROWS = 5000
# A longer table is folded away, so that the pictures stay together.
_FOLDED = 16
# Parameters that are drawn, or told elsewhere on the page.
_SHOWN_ELSEWHERE = ("blocks", "predicted", "unit")
_TOLD = {
    "gap": "distance from the bound at most",
    "text": "calibration text",
    "imatrix": "importance weights",
    "probe_chunks": "contexts per probe",
    "tried": "contexts tried out on",
    "stock": "divergence of the preset's own types",
    "took_stock": "these are the preset's own types",
    "x": "X in T = mu - X sigma",
    "forest_digest": "digest of the forest",
}


def plans_part(runs: Runs) -> Markup:
    """Every plan: what it is, its picture, its types, its tensors."""
    return join(*(_plan(run) for run in runs.plans))


def _plan(run: PlanRun) -> Markup:
    plan = run.plan
    made = [("file", f"{run.nbytes:,} bytes")] if run.nbytes is not None else []
    foretold = predicted(plan)
    pairs = [
        ("architecture", plan.arch),
        ("method", plan.method),
        *_parameters(plan.parameters),
        *made,
        ("weights", f"{plan.data_bytes:,} bytes in {len(plan.tensors):,} tensors, {plan.n_parameters:,} parameters"),
        ("bits per weight", f"{plan.bpw:.3f}"),
        *([("predicted divergence", f"{foretold:.4g} nats per token")] if foretold is not None else []),
        *run.facts,
        *([("fingerprint of the source", plan.fingerprint[:16])] if plan.fingerprint not in ("", "None") else []),
    ]  # fmt: skip
    return join(
        el("h3", run.file),
        facts(pairs),
        plan_picture(plan),
        el("p", "A column is a block, a row a role; vectors (norms and biases) are left out. Point at a cell for "
           "its shape, bytes and the reason of its type.", class_="quiet"),
        _types(plan),
        details(f"All {len(plan.tensors):,} tensors", _tensors(plan), print_it=False),
    )  # fmt: skip


def _parameters(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Parameters as people read them: short values as they are, the rest as JSON."""
    found = []
    for key, value in list(told.items())[:40]:
        if key in _SHOWN_ELSEWHERE or value is None:
            continue
        if isinstance(value, bool):
            shown = "yes" if value else "no"
        elif isinstance(value, float):
            shown = f"{value:.3g}" if key == "gap" else f"{value:.9g}"
        elif isinstance(value, dict) and all(isinstance(v, str | int | float) for v in value.values()):
            shown = ", ".join(f"{k} {v}" for k, v in value.items())
        else:
            shown = value if isinstance(value, str) else json.dumps(value)
        found.append((_TOLD.get(key) or clean(key, 80).replace("_", " "), clean(shown, 300)))
    return found


def _types(plan: Plan) -> Markup:
    totals: dict[GGMLType, list[int]] = {}
    for t in plan.tensors:
        row = totals.setdefault(t.type, [0, 0, 0])
        for i, amount in enumerate((1, t.n_elements, t.nbytes)):
            row[i] += amount
    rows = []
    for kind, (count, weights, nbytes) in sorted(totals.items(), key=lambda e: -e[1][2]):
        share = nbytes / max(1, plan.data_bytes)
        bar = el("svg", el("rect", x=0, y=4, width=max(0.5, 120 * share), height=9), viewBox="0 0 120 16", width=120,
                 height=16, class_="bar", aria_hidden="true")  # fmt: skip
        rows.append(
            [Cell(kind.name), figure(kind.bpw, "{:.2f}"), figure(count, "{:,}"), figure(weights, "{:,}"),
             figure(nbytes, "{:,}"), figure(100 * share, "{:.1f}"), Cell(bar)]
        )  # fmt: skip
    columns = ("type", "bits", "tensors", "weights", "bytes", "share, %", "of all bytes")
    return table("Types and the bytes they take", columns, rows)


def _tensors(plan: Plan) -> Markup:
    rows = [
        [Cell(t.name), Cell(t.type.name), figure(8 * t.nbytes / max(1, t.n_elements), "{:.2f}"),
         Cell("×".join(map(str, t.shape))), figure(t.nbytes, "{:,}"), Cell(t.reason)]
        for t in plan.tensors[:_MOST_ROWS]
    ]  # fmt: skip
    left = len(plan.tensors) - len(rows)
    caption = "In the order of the file" + (f"; {left:,} more are not listed" if left > 0 else "")
    return table(caption, ("tensor", "type", "bits", "shape", "bytes", "why"), rows)


def measured_part(runs: Runs, measurements: Sequence[Measurement]) -> Markup:
    """Size against divergence for every model and text, predicted against measured, and all figures."""
    groups: dict[tuple[str, str, str], list[Measurement]] = {}
    for m in measurements:
        groups.setdefault((m.model, m.text, m.study), []).append(m)
    measured = {m.file for m in measurements}
    ladder = [
        (p.file, p.nbytes or p.plan.data_bytes, value, place_of(p.plan)[1][:40])
        for p in runs.plans
        if p.file not in measured and (value := predicted(p.plan)) is not None
    ]
    parts: list[Markup] = []
    for (model, text, study), group in groups.items():
        # A plan without a measurement belongs to a group only if there is no choice.
        picture = size_picture(group, ladder if len(groups) == 1 else ())
        parts.append(el("h3", f"{model or 'files'}: {study or 'size against divergence'}, {text}"))
        if picture is not None:
            about = (
                f" {group[0].chunks} contexts of {group[0].n_ctx or 512} tokens." if group[0].chunks else ""
            )
            parts.append(picture)
            parts.append(
                el(
                    "p",
                    "Lower and further left is better. Bars are two standard errors." + about,
                    class_="quiet",
                )
            )
        relative = ratio_picture(group, ratios(group))
        if relative is not None:
            parts.append(relative)
            parts.append(
                el(
                    "p",
                    "Divergence relative to the stock preset of the same size (with importance matrix, where that was "
                    "measured); below 1 is better.",
                    class_="quiet",
                )
            )
        parts.append(_figures(group))
    if not groups and len(ladder) > 1 and (alone := size_picture([], ladder)) is not None:
        parts += [el("h3", "Size against predicted divergence"), alone]
    prediction = prediction_picture(measurements)
    if prediction is not None:
        picture, sentences = prediction
        parts += [el("h3", "Predicted against measured"), picture]
        parts.append(el("ul", *(el("li", sentence) for sentence in sentences)))
        parts.append(
            el("p", "A prediction is made from the calibration text; on a text unlike it the ratio of two plans "
               "holds better than the figure itself.", class_="quiet")
        )  # fmt: skip
    return join(*parts)


def _figures(group: Sequence[Measurement]) -> Markup:
    relative = ratios(group)
    rows = []
    for m in sorted(group, key=lambda m: (m.nbytes or 0, m.kld or 0.0)):
        ratio = relative.get(m)
        percent = None if m.top1 is None else 100 * m.top1
        rows.append(
            [Cell(m.file), Cell(label(m.method) if m.method else ""), figure(m.nbytes, "{:,}"), figure(m.bpw, "{:.2f}"),
             figure(m.kld, "{:.5f}", m.kld_se), figure(None if ratio is None else ratio.value, "{:.2f}"),
             figure(m.predicted, "{:.5f}"), figure(percent, "{:.2f}"), figure(m.ppl, "{:.3f}", m.ppl_se),
             figure(m.median_kld, "{:.5f}"), figure(m.p99_kld, "{:.4f}"),
             figure(None if m.rms_delta_p is None else 100 * m.rms_delta_p, "{:.2f}")]
        )  # fmt: skip
    columns = ("file", "method", "bytes", "bpw", "KLD", "KLD / stock", "predicted", "same top token, %", "perplexity",
               "KLD median", "KLD 99 %", "Δp RMS, %")  # fmt: skip
    caption = f"All {len(rows)} figures" if len(rows) > 1 else "The figures"
    found = table(caption + "; ± one standard error. Headings sort.", columns, rows)
    return found if len(rows) <= _FOLDED else details(f"All {len(rows)} figures", found)


def blocks_part(runs: Runs) -> Markup:
    """Entropies, sensitivities by tensor and by block, and how the two go together."""
    parts: list[Markup] = []
    entropies = [
        e for i, e in enumerate(runs.entropies) if e.blocks not in [f.blocks for f in runs.entropies[:i]]
    ]
    for entropy in entropies:
        epsilon = "" if entropy.epsilon is None else f", ε = {entropy.epsilon:g}"
        parts += [el("h3", f"Block entropy{epsilon}: {entropy.source}"), entropy_picture(entropy)]
    costs: dict[str, dict[int, tuple[float, float]]] = {}
    for found in runs.sensitivities:
        probes = alike(found)
        parts.append(el("h3", f"Sensitivity by tensor: {found.source}"))
        parts.append(
            el("p", f"Mean KL divergence with one tensor alone in {types_of(probes)}, from the probes. "
               "Yellow is most sensitive.", class_="quiet")
        )  # fmt: skip
        parts.append(sensitivity_picture(probes))
        parts.append(details(f"All {len(probes)} tensors", _probes(probes)))
        if blocks := by_block(probes):
            costs[f"tensors one at a time, summed: {found.source}"] = blocks
    for cost in runs.block_costs:
        costs[f"whole block in {cost.type}: {cost.source}"] = as_costs(cost)
    if costs:
        parts += [el("h3", "Sensitivity by block"), block_picture(costs)]
        parts.append(el("p", "Bars are two standard errors.", class_="quiet"))
    if len(entropies) == 1:
        entropy_of = {b.index: b.entropy for b in entropies[0].blocks}
        for name, values in costs.items():
            if values.keys() != entropy_of.keys():
                continue
            found_rank = rank_correlation(entropy_of, {b: kld for b, (kld, _) in values.items()})
            if found_rank is not None:
                parts.append(
                    el("p", f"Rank correlation (Spearman) of block entropy with “{name}”: {found_rank:+.2f} over "
                       f"{len(values)} blocks. EWQ gives fewest bits to blocks of low entropy, so it wants this "
                       "to be positive.")
                )  # fmt: skip
    return join(*parts)


def _probes(probes: Sequence[ProbeFigure]) -> Markup:
    rows = [
        [Cell(p.tensor), Cell(p.type), figure(p.scale, "{:g}"), figure(p.kld, "{:.3e}", p.se)]
        for p in sorted(probes, key=lambda p: -p.kld)[:_MOST_ROWS]
    ]
    return table("Most sensitive first", ("tensor", "disturbed as", "times", "KLD, nats"), rows)


def other_part(runs: Runs) -> Markup:
    """Multiple choice, speed, and files compared pairwise."""
    parts = []
    for found in runs.figures:
        rows = [
            [figure(value, "{:,.4g}") if isinstance(value, float) else Cell(value or "") for value in row]
            for row in found.rows
        ]
        parts += [el("h3", found.title), table("", found.columns, rows, name=found.title)]
    return join(*parts)


def commands_part(runs: Runs, again: str) -> Markup:
    """Command lines with a button each; MODEL stands for the checkpoint, whose place is not recorded."""
    lines = [*runs.commands, *([("this page", again)] if again else [])]
    note = el("p", "MODEL stands for the checkpoint; folders are left out of file names.", class_="quiet")
    return join(note, *(command(purpose[:1].upper() + purpose[1:], line) for purpose, line in lines))
