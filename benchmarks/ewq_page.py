"""benchmarks/EWQ.md and its plots, from the figures of ewq_study.py; every sentence follows from a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ewq_gguf.allocation.fastewq import load_forest

NAMES = {
    "reference-10m": "reference-10m (12 blocks)",
    "smollm2": "SmolLM2-135M-Instruct (30 blocks)",
    "gemma3": "Gemma 3 270M (18 blocks)",
}
READINGS = {"paper": "raw / Q8_0 / Q4_K", "gguf": "Q8_0 / Q6_K / Q4_K"}
_SHOWN = ("ewq", "reversed", "variance", "last blocks fewest", "first blocks fewest")


def write_page(kept: dict[str, Any], folder: Path) -> None:
    """Write EWQ.md and one plot per model into `folder` from whatever is complete."""
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    parts = [_HEAD]
    verdicts: list[str] = []
    for name, entry in kept.items():
        groups = [g for g in entry["groups"] if all(key in entry["files"] for _, key in g["arrangements"])]
        if not groups:
            continue
        _plot(entry, groups, plots / f"ewq-{name}.svg", NAMES.get(name, name))
        section, found = _section(name, entry, groups)
        parts.append(section)
        verdicts.extend(found)
    parts.append(_fastewq())
    chance = sum("better than chance)" in v for v in verdicts)
    beaten = sum("both smaller and closer" in v for v in verdicts)
    summary = (
        f"In {chance} of {len(verdicts)} groups EWQ's order is better than chance, in {beaten} a uniform type is both "
        "smaller and closer to the original than EWQ's classes. The groups of one model are not independent.\n\n"
    )
    parts.insert(1, "## What was found\n\n" + summary + "\n".join(f"- {v}" for v in verdicts) + "\n")
    (folder / "EWQ.md").write_text("\n".join(parts), encoding="utf-8")


_HEAD = """# What EWQ's order is worth

Made by `make ewq-study` (benchmarks/ewq_study.py); do not edit. Paper: arXiv 2503.04704.

EWQ sorts a model's blocks into three classes by entropy. The question is whether entropy puts the *right* blocks
there. Each group below keeps the number of blocks in each class, hence the bytes, and changes only which blocks
they are: EWQ's choice, the reverse (highest entropy to the fewest bits), variance in place of entropy (highest
variance to the fewest bits), depth (the last, or the first, blocks to the fewest bits), and random orders.
Figures are KL divergences from the bf16 file, in nats per token, on contexts of 512 tokens of
benchmarks/data/evaluation.txt, with standard errors; differences are paired, their errors taken over
quarters of contexts. Embedding and output stay raw as in the paper. Where two arrangements are the same file they have the
same figure. SmolLM2 and Gemma come from 4-bit files of the package registry, moved off their grid (see
models.py), not from the publishers' 16-bit checkpoints. One machine, one text, small models: no claim beyond that.
"""


def _fastewq() -> str:
    """What the shipped classifier is worth, from its own file."""
    about = load_forest("fast").about
    tested = about["leave_one_model_out"]
    split = load_forest("fast-train").about
    lines = [
        "## FastEWQ", "",
        f"Trained on {about['rows']} blocks ({about['quantized_rows']} of them quantized by full analysis) of "
        f"{len(about['models'])} models; {about['note']}. Agreement with full analysis on the model left out of "
        "training:", "",
        "| model left out | blocks | forest | majority of the others | best cut of depth | always raw |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    kinds = ("forest", "majority", "position", "raw")
    for m in tested["models"]:
        lines.append(
            f"| {m['model']} | {m['rows']} | " + " | ".join(f"{100 * m[k]:.0f} %" for k in kinds) + " |"
        )
    means = [f"{100 * tested[k]['mean']:.0f} ± {100 * tested[k]['se']:.0f} %" for k in kinds]
    lines.append(f"| mean | {about['rows']} | " + " | ".join(means) + " |")
    forest, raw = tested["forest"], tested["raw"]
    clear = forest["mean"] - raw["mean"] > 2 * math.hypot(forest["se"], raw["se"])
    importances = ", ".join(f"{name} {100 * value:.0f} %" for name, value in about["importances"].items())
    lines += [
        "",
        "The forest is clearly better than leaving every block raw."
        if clear
        else "The forest is not clearly better than leaving every block raw: do not rely on it with these labels.",
        f"The paper reports 80 %. On a random split ({split['test_rows']} rows held back, whose neighbours were "
        f"trained on) ours has {100 * split['test_accuracy']:.0f} %. "
        f"Importances: {importances}.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _section(name: str, entry: dict[str, Any], groups: list[dict[str, Any]]) -> tuple[str, list[str]]:
    files = entry["files"]
    title = NAMES.get(name, name)
    lines = [f"## {title}", "", f"{entry['contexts']} contexts; {files[groups[0]['arrangements'][0][1]]['tokens']:,} scored tokens.", ""]  # fmt: skip
    for epsilon, b in entry["blocks"].items():
        depth = list(range(len(b["entropy"])))
        lines.append(
            f"- epsilon {float(epsilon):g}: rank correlation of entropy with variance "
            f"{_spearman(b['entropy'], b['variance']):+.2f}, with depth {_spearman(b['entropy'], depth):+.2f}."
        )
    lines += ["", f"![KL divergence of every arrangement](plots/ewq-{name}.svg)", ""]
    found = []
    for group in groups:
        table, sentence = _group(title, files, group, entry["uniform"])
        lines += table
        found.append(sentence)
    lines += ["Uniform block types, embedding raw as above:", "", "| type | bytes | KLD |", "|---|---|---|"]
    lines += [f"| {kind} | {files[key]['bytes']:,} | {_figure(files[key])} |" for kind, key in entry["uniform"] if key in files]  # fmt: skip
    return "\n".join([*lines, ""]), found


def _group(
    title: str, files: dict[str, Any], group: dict[str, Any], uniform: list[list[str]]
) -> tuple[list[str], str]:
    named = {n: key for n, key in group["arrangements"] if not n.startswith("random")}
    rand = [files[key]["kld"] for n, key in group["arrangements"] if n.startswith("random")]
    ewq = files[named["ewq"]]
    letters = named["ewq"].split()[1]
    counts = " / ".join(str(letters.count(c)) for c in "R84")
    what = f"epsilon {group['epsilon']:g}, {READINGS[group['reading']]}"
    lines = [
        f"### {what}", "",
        f"{counts} blocks in the three classes, {ewq['bytes']:,} bytes. EWQ: `{letters}`", "",
        "| order | KLD | minus EWQ's, paired |", "|---|---|---|",
    ]  # fmt: skip
    for name in _SHOWN:
        if name in named:
            f = files[named[name]]
            lines.append(f"| {name} | {_figure(f)} | {'' if name == 'ewq' else _difference(f, ewq)} |")
    if rand:
        lines.append(
            f"| {len(rand)} random: mean, least to most | {_mean(rand):.4g}, {min(rand):.4g} to {max(rand):.4g} | |"
        )
    lines.append("")
    return lines, _verdict(title, what, files, named, rand, uniform)


def _verdict(
    title: str, what: str, files: dict[str, Any], named: dict[str, str], rand: list[float], uniform: list[list[str]]
) -> str:  # fmt: skip
    """One sentence per group, in words that the figures choose."""
    ewq = files[named["ewq"]]
    parts = []
    if rand:
        better = sum(r > ewq["kld"] for r in rand)
        p = (1 + sum(r <= ewq["kld"] for r in rand)) / (1 + len(rand))
        verdict = "better than chance" if p <= 0.05 else "worse than chance" if p >= 0.95 else "no better than chance can be shown"  # fmt: skip
        parts.append(
            f"EWQ's order beats {better} of {len(rand)} random ones (one-sided p {p:.2f}: {verdict}), "
            f"KLD {ewq['kld']:.4g} against their mean {_mean(rand):.4g}"
        )
    for name, words in (
        ("reversed", "the reversed order"),
        ("variance", "variance"),
        ("last blocks fewest", "depth (last blocks fewest)"),
        ("first blocks fewest", "depth (first blocks fewest)"),
    ):
        if named[name] == named["ewq"]:
            parts.append(f"{words} is the same arrangement")
            continue
        mean, se = _paired(files[named[name]], ewq)
        if abs(mean) <= 2 * se:
            parts.append(f"{words} is not clearly different")
        else:
            ratio = files[named[name]]["kld"] / ewq["kld"]
            parts.append(f"{words} is {'worse' if mean > 0 else 'better'} ({ratio:.2f} x)")
    smaller = [
        kind for kind, key in uniform
        if key in files and files[key]["bytes"] < ewq["bytes"] and files[key]["kld"] < ewq["kld"]
    ]  # fmt: skip
    if smaller:
        are = "is" if len(smaller) == 1 else "are"
        parts.append(f"uniform {' and '.join(smaller)} {are} both smaller and closer to the original")
    return f"**{title}, {what}**: " + "; ".join(parts) + "."


def _figure(f: dict[str, Any]) -> str:
    return f"{f['kld']:.4g} ± {f['kld_se']:.1g}"


def _difference(f: dict[str, Any], ewq: dict[str, Any]) -> str:
    mean, se = _paired(f, ewq)
    return f"{mean:+.4g} ± {se:.1g}"


def _paired(a: dict[str, Any], b: dict[str, Any]) -> tuple[float, float]:
    """Mean difference of two files and its standard error over runs of tokens."""
    differences = [x - y for x, y in zip(a["kld_of_runs"], b["kld_of_runs"], strict=True)]
    n = len(differences)
    mean = _mean(differences)
    se = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n) if n > 1 else math.inf
    return mean, se


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation; ties do not occur in these figures but share a rank by order."""

    def ranks(values: Sequence[float]) -> list[int]:
        order = sorted(range(len(values)), key=values.__getitem__)
        place = [0] * len(values)
        for rank, i in enumerate(order):
            place[i] = rank
        return place

    x, y = ranks(a), ranks(b)
    n = len(x)
    return 1 - 6 * sum((p - q) ** 2 for p, q in zip(x, y)) / (n * (n * n - 1))


def _plot(entry: dict[str, Any], groups: list[dict[str, Any]], path: Path, title: str) -> None:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "ewq"  # the same figures, the same file
    figure = Figure(figsize=(8, 1.2 + 0.8 * len(groups)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    markers = {"ewq": ("D", "#b2182b"), "reversed": ("s", "#2166ac"), "variance": ("^", "#1b7837"),
               "last blocks fewest": (">", "#762a83"), "first blocks fewest": ("<", "#bf812d")}  # fmt: skip
    for row, group in enumerate(groups):
        values = {n: entry["files"][key]["kld"] for n, key in group["arrangements"]}
        rand = [v for n, v in values.items() if n.startswith("random")]
        axes.scatter(
            rand, [row] * len(rand), color="grey", alpha=0.5, s=18, label="random" if row == 0 else None
        )
        for name, (marker, colour) in markers.items():
            axes.scatter(
                values[name],
                row,
                marker=marker,
                color=colour,
                s=45,
                zorder=3,
                label=name if row == 0 else None,
            )
    axes.set_yticks(range(len(groups)), [f"eps {g['epsilon']:g}\n{READINGS[g['reading']]}" for g in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.set_xlabel("KL divergence from bf16, nats per token")
    axes.set_title(title)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, metadata={"Date": None})
