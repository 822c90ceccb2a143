"""The report as one HTML page that asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from ewq_gguf._version import __version__
from ewq_gguf.allocation.plan import Plan
from ewq_gguf.report.markup import Markup, el, join
from ewq_gguf.report.methods import joined, once
from ewq_gguf.report.parts import blocks_part, commands_part, measured_part, other_part, plans_part
from ewq_gguf.report.runs import Measurement, Runs
from ewq_gguf.report.scale import count, size
from ewq_gguf.report.script import SCRIPT
from ewq_gguf.report.style import style_sheet
from ewq_gguf.report.tables import facts, numbers, section


def page(runs: Runs, title: str = "", command: str = "") -> str:
    """The whole page.

    Args:
        title: heading; made from the inputs by default.
        command: the command line that makes this page again.
    """
    measurements = once(joined(runs.measurements, runs.plans))
    parts: list[tuple[str, str, Markup]] = [
        ("plans", "What was converted", plans_part(runs)),
        ("measured", "What it cost", measured_part(runs, measurements)),
        ("blocks", "What the blocks are like", blocks_part(runs)),
        ("more", "More measurements", other_part(runs)),
        ("commands", "Make it again", commands_part(runs, command)),
    ]
    present = [(i, name, content) for i, name, content in parts if content]
    heading = title or _title(runs, measurements)
    style, script = Markup(style_sheet()), Markup(SCRIPT)
    links = el(
        "nav", el("ul", *(el("li", el("a", n, href=f"#{i}")) for i, n, _ in present)), aria_label="Parts"
    )
    toggle = el("button", "Colours: auto", type="button", id="scheme", hidden=True)
    body = join(
        el("a", "Skip to content", href="#content", class_="skip"),
        el("header", el("div", el("h1", heading), toggle, class_="top"), numbers(_glance(runs, measurements)), links),
        el("main", *(section(i, name, content) for i, name, content in present), id="content"),
        el("footer", _sources(runs), el("p", f"Made by ewq-gguf {__version__}. This page loads nothing: it can be kept, sent and printed.")),
        el("script", script),
    )  # fmt: skip
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="referrer", content="no-referrer"),
        # An empty icon: a browser would ask a server for one.
        el("link", rel="icon", href="data:,"),
        el("title", heading),
        el("style", style),
    )
    return f"<!doctype html>\n{el('html', head, el('body', body), lang='en')}\n"


def _policy(style: str, script: str) -> str:
    """Nothing may be loaded or sent; the one style sheet and the one script are named by their hashes."""

    def digest(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; style-src {digest(style)}; script-src {digest(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _title(runs: Runs, measurements: Sequence[Measurement]) -> str:
    names = list(dict.fromkeys(p.file for p in runs.plans)) or list(
        dict.fromkeys(m.model for m in measurements)
    )
    if not names:
        names = [name for name, _ in runs.sources]
    rest = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"Quantization report: {', '.join(names[:2])}{rest}"


def _glance(runs: Runs, measurements: Sequence[Measurement]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if len(runs.plans) == 1:
        run = runs.plans[0]
        plan: Plan = run.plan
        found.append((f"{plan.arch}, parameters", count(plan.n_parameters)))
        found.append(("file" if run.made else "weights", size(run.nbytes or plan.data_bytes)))
        found.append(("bits per weight", f"{plan.bpw:.2f}"))
    elif runs.plans:
        found.append(("plans", str(len(runs.plans))))
    diverged = [m for m in measurements if m.kld is not None]
    if len(diverged) == 1 and diverged[0].kld is not None:
        only = diverged[0]
        found.append(("mean KL divergence, nats", f"{only.kld:.4g}"))
        found += [("same top token", f"{100 * only.top1:.2f} %")] if only.top1 is not None else []
    elif measurements:
        found.append(("measurements", str(len(measurements))))
    probes = sum(len(s.probes) for s in runs.sensitivities)
    return [*found, *([("probes", str(probes))] if probes else [])]


def _sources(runs: Runs) -> Markup:
    return join(el("h3", "Made from"), facts([(name, what) for name, what in runs.sources]))
