"""A plan or a measurement as a picture: blocks from left to right, a row per role, the rest below."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ewq_gguf.allocation.plan import Plan, PlannedTensor
from ewq_gguf.model import block_of
from ewq_gguf.report.chart import scrolling
from ewq_gguf.report.markup import Markup, clean, el, join
from ewq_gguf.report.runs import ProbeFigure, Sensitivity
from ewq_gguf.report.scale import number

# Upper ends of the classes of bits per weight, one colour each: h0 to h8 in the style sheet.
BITS = (2.0, 2.5, 3.2, 4.0, 5.0, 6.0, 7.0, 9.0, math.inf)
_NAMES = (
    "up to 2",
    "2 to 2.5",
    "2.5 to 3.2",
    "3.2 to 4",
    "4 to 5",
    "5 to 6",
    "6 to 7",
    "7 to 9",
    "16 and more",
)
_ROLE = re.compile(r"^blk\.\d+\.")
# Attention first, then the feed-forward part, each in the order in which a block computes.
_ORDER = (
    "attn_qkv", "attn_q", "attn_q_a", "attn_q_b", "attn_k", "attn_kv_a_mqa", "attn_kv_b", "attn_k_b", "attn_v_b",
    "attn_v", "attn_output", "attn_gate", "ssm_in", "ssm_x", "ssm_dt", "ssm_out", "ffn_gate", "ffn_up", "ffn_down",
    "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_shexp", "ffn_up_shexp",
    "ffn_down_shexp",
)  # fmt: skip
_ROW, _LEFT, _TOP = 27.0, 132.0, 22.0
_MOST_ROLES, _MOST_COLUMNS, _MOST_OUTSIDE = 60, 400, 24


@dataclass(frozen=True)
class Cell:
    """One tensor: its colour class, what stands in it, and what is told when it is pointed at."""

    colour: int
    text: str
    title: str


def role_of(name: str) -> str:
    """What a tensor does in its block: its name without block and suffix."""
    return _ROLE.sub("", name).removesuffix(".weight")


def bits_colour(bits: float) -> int:
    """The colour class of a number of bits per weight."""
    return next(i for i, limit in enumerate(BITS) if bits <= limit)


def plan_picture(plan: Plan) -> Markup:
    """Every matrix of a plan, coloured by bits; vectors (norms and biases) are left out."""
    cells = {t.name: _planned(t) for t in plan.tensors if len(t.shape) >= 2}
    used = sorted({cell.colour for cell in cells.values()})
    keys = [(i, _NAMES[i]) for i in used]
    return join(_grid(cells, "Bits per weight of every matrix"), _key("bits per weight", keys))


def _planned(tensor: PlannedTensor) -> Cell:
    bits = 8 * tensor.nbytes / max(1, tensor.n_elements)
    shape = "×".join(map(str, tensor.shape))
    fallen = f"; {tensor.wanted.name} does not fit its rows" if tensor.wanted is not tensor.type else ""
    title = (
        f"{tensor.name}: {tensor.type.name}, {bits:.2f} bits, {shape}, {tensor.nbytes:,} bytes"
        f"{fallen}; {tensor.reason}"
    )
    return Cell(bits_colour(bits), tensor.type.name, title)


def alike(found: Sensitivity) -> list[ProbeFigure]:
    """One probe per tensor, as comparable as can be.

    The type that most tensors were disturbed with, undiminished; among those that were not, because their rows do
    not fit it, the type that most of them have, and so on. A tensor that only scaled errors were put into gives
    the probe with the largest divergence.
    """
    left: dict[str, dict[str, ProbeFigure]] = {}
    rest: dict[str, ProbeFigure] = {}
    for p in found.probes:
        if p.scale == 1:
            left.setdefault(p.tensor, {})[p.type] = p
        elif p.tensor not in rest or p.kld > rest[p.tensor].kld:
            rest[p.tensor] = p
    chosen = {name: p for name, p in rest.items() if name not in left}
    while left:
        counts: dict[str, int] = {}
        for kinds in left.values():
            for kind in kinds:
                counts[kind] = counts.get(kind, 0) + 1
        # Of types that as many tensors have, the one that hurts most tells most.
        common = max(
            counts, key=lambda kind: (counts[kind], sum(k[kind].kld for k in left.values() if kind in k))
        )
        chosen |= {name: kinds[common] for name, kinds in left.items() if common in kinds}
        left = {name: kinds for name, kinds in left.items() if common not in kinds}
    return list(chosen.values())


def types_of(probes: Sequence[ProbeFigure]) -> str:
    """The types that tensors were disturbed with, the most frequent first: "Q3_K", "Q4_0 (180 tensors) or Q3_K (30)"."""
    counts: dict[str, int] = {}
    for p in probes:
        counts[p.type] = counts.get(p.type, 0) + 1
    ordered = sorted(counts, key=lambda kind: -counts[kind])
    return (
        ordered[0]
        if len(ordered) == 1
        else " or ".join(f"{kind} ({counts[kind]} tensors)" for kind in ordered)
    )


def sensitivity_picture(probes: Sequence[ProbeFigure]) -> Markup:
    """What a coarse type costs in each tensor alone, in nine steps of the logarithm."""
    floor = max((p.kld for p in probes), default=1.0) / 1e4
    logs = [math.log10(max(p.kld, floor, 1e-12)) for p in probes]
    low, high = min(logs), max(logs)
    width = max(high - low, 1e-9)
    cells = {}
    for p, value in zip(probes, logs):
        # Bright where it hurts, as few bits are in a plan's picture.
        colour = 8 - min(8, int(9 * (value - low) / width))
        scaled = "" if p.scale == 1 else f" with {p.scale:g} times its error"
        title = f"{p.tensor} alone in {p.type}{scaled}: {number(p.kld)} ± {number(p.se)} nats"
        cells[p.tensor] = Cell(colour, _thousandths(p.kld), title)
    ends = [10 ** (low + width * (i + 1) / 9) for i in range(9)]
    keys = [(8 - i, f"up to {_thousandths(end)}") for i, end in enumerate(ends)]
    name = "thousandths of a nat per token"
    return join(_grid(cells, "Divergence caused by each tensor alone"), _key(name, keys))


def _thousandths(kld: float) -> str:
    """A divergence in thousandths of a nat, two digits: what fits into a cell."""
    return number(float(f"{1000 * kld:.2g}"))


def _key(name: str, keys: Sequence[tuple[int, str]]) -> Markup:
    items = [
        el("li", el("svg", el("rect", x=0, y=0, width=16, height=16, class_=f"h{i}"), viewBox="0 0 16 16", width=16,
                    height=16, aria_hidden="true"), text)
        for i, text in keys
    ]  # fmt: skip
    return el("ul", el("li", name, class_="quiet"), *items, class_="legend")


def _grid(cells: Mapping[str, Cell], description: str) -> Markup:
    inside: dict[str, dict[int, Cell]] = {}
    outside: dict[str, Cell] = {}
    for name, cell in cells.items():
        block = block_of(name)
        if block is None:
            outside[name.removesuffix(".weight")] = cell
        else:
            inside.setdefault(role_of(name), {})[block] = cell
    roles = sorted(inside, key=_rank)[:_MOST_ROLES]
    blocks = sorted({b for role in roles for b in inside[role]})
    dropped = max(0, len(blocks) - _MOST_COLUMNS) + max(0, len(inside) - _MOST_ROLES)
    blocks = blocks[:_MOST_COLUMNS]
    n = max(1, len(blocks))
    column = 50.0 if n <= 16 else 30.0 if n <= 40 else 14.0
    width = _LEFT + max(n * column, 320.0) + 6
    parts: list[Markup] = []
    every = 1 if column >= 30 else 5
    for i, block in enumerate(blocks):
        if i % every == 0:
            parts.append(
                el(
                    "text",
                    block,
                    x=_LEFT + (i + 0.5) * column,
                    y=_TOP - 7,
                    text_anchor="middle",
                    class_="small",
                )
            )
    if blocks:
        parts.append(el("text", "block", x=_LEFT - 10, y=_TOP - 7, text_anchor="end", class_="small"))
    top = _TOP
    for role in roles:
        parts.append(_name(role, top))
        parts += [
            _cell(inside[role][block], _LEFT + i * column, top, column)
            for i, block in enumerate(blocks)
            if block in inside[role]
        ]
        top += _ROW
    top += 10 if roles else 0
    for name, cell in list(outside.items())[:_MOST_OUTSIDE]:
        parts += [_name(name, top), _cell(cell, _LEFT, top, max(n * column, 120.0))]
        top += _ROW
    dropped += max(0, len(outside) - _MOST_OUTSIDE)
    kind = "heat fixed" if n > 24 else "heat"
    picture = el("svg", *parts, viewBox=f"0 0 {width:g} {top + 4:g}", width=width, height=top + 4, class_=kind,
                 role="img", aria_label=description)  # fmt: skip
    note = (
        el("p", f"{dropped} more rows or columns are left out of the picture.", class_="quiet")
        if dropped
        else Markup("")
    )
    return join(scrolling(picture, description), note)


def _rank(role: str) -> tuple[int, str]:
    return (_ORDER.index(role) if role in _ORDER else len(_ORDER), role)


def _name(text: str, top: float) -> Markup:
    shown = clean(text)
    shown = shown if len(shown) <= 19 else shown[:18] + "…"
    return el("text", shown, x=_LEFT - 10, y=top + 17, text_anchor="end")


def _cell(cell: Cell, left: float, top: float, width: float) -> Markup:
    box = el("rect", x=left + 1, y=top + 1, width=width - 2, height=_ROW - 2, rx=2, class_=f"h{cell.colour}")
    text = _fitting(cell.text, width)
    inner = el("text", text, x=left + width / 2, y=top + 17, text_anchor="middle", class_=f"t{cell.colour}")
    return el("g", box, inner if text else "", el("title", cell.title))


def _fitting(text: str, width: float) -> str:
    """The text, or the digits of a type's name, or nothing, as there is room."""
    wide = 6.4 if text[:1].isdigit() else 7.4
    if len(text) * wide <= width - 3:
        return text
    digits = re.match(r"[A-Z]+(\d+)", text)
    return digits.group(1) if digits and width >= 24 else ""
