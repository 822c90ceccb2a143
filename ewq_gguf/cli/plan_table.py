"""A plan as tables that a person likes to read: by block, then totals."""

from __future__ import annotations

from collections import Counter

from ewq_gguf.allocation.plan import Plan, PlannedTensor
from ewq_gguf.cli.terminal import Terminal, format_bytes
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.model import block_of
from ewq_gguf.pipeline.optimize import DEFAULT_TEXT


def _types_of(tensors: list[PlannedTensor]) -> str:
    """Types of a block's matrices, the one with most weights first, then exceptions by name."""
    weights: Counter[GGMLType] = Counter()
    for t in tensors:
        if len(t.shape) >= 2:
            weights[t.type] += t.n_elements
    if not weights:
        weights.update(t.type for t in tensors)
    return " ".join(kind.name for kind, _ in weights.most_common())


def prediction(plan: Plan) -> str | None:
    """What a measured plan is expected to cost, as a sentence."""
    if plan.predicted_kld is None:
        return None
    source = plan.parameters["text"]
    like = "the built-in calibration text" if source == DEFAULT_TEXT.name else source
    text = f"predicted mean KL divergence {plan.predicted_kld:.4f} nats per token on text like {like}"
    if plan.parameters.get("tried"):
        text += ", as tried out"
        wanted = plan.parameters["target"].get("max_kld")
        if wanted is not None and plan.predicted_kld > wanted:
            text += f", more than the {wanted:g} asked for"
    floor = plan.parameters.get("floor")
    if floor:
        text += f", {floor:.4f} of it by 8-bit activations, whatever the weights"
    stock = plan.parameters.get("stock")
    if plan.parameters.get("took_stock"):
        text += f"; these are {plan.parameters['target']['like']}'s own types, which did better than any chosen by probes"
    elif isinstance(stock, float) and stock > 0:
        ratio = plan.predicted_kld / stock
        text += f"; {ratio:.2f} times that of {plan.parameters['target']['like']}'s own types ({stock:.4f})"
    gap = plan.parameters.get("gap")
    if gap is not None:
        text += f"; no other choice of these types saves more than {100 * gap:.2g} % of the rest"
    return text


def show_plan(terminal: Terminal, plan: Plan, source_bytes: int | None = None) -> None:
    """Per block: entropy or probability and class where the method has them, types and bytes; then fallbacks and totals."""
    verdicts = {b["index"]: b for b in plan.parameters.get("blocks", [])}
    groups: dict[int | None, list[PlannedTensor]] = {}
    for t in plan.tensors:
        groups.setdefault(block_of(t.name), []).append(t)
    columns = [("block", True), ("types", False), ("weights", True), ("bytes", True), ("bpw", True)]
    # EWQ measured an entropy, FastEWQ guessed a probability; a variant that treats all blocks alike has neither.
    measure = next(
        (key for key in ("entropy", "probability") if any(key in v for v in verdicts.values())), None
    )
    if verdicts:
        columns[1:1] = [*([(measure, True)] if measure else []), ("class", False)]
    rows = []
    for block in sorted(groups, key=lambda b: (b is not None, b or 0)):
        tensors = groups[block]
        weights, nbytes = sum(t.n_elements for t in tensors), sum(t.nbytes for t in tensors)
        row = ["other" if block is None else str(block), _types_of(tensors)]
        if verdicts:
            verdict = verdicts.get(block) if block is not None else None
            figures = [f"{verdict[measure]:.9f}" if verdict else ""] if measure else []
            row[1:1] = [*figures, verdict["class"] if verdict else ""]
        rows.append([*row, f"{weights:,}", f"{nbytes:,}", f"{8 * nbytes / max(1, weights):.2f}"])
    caption = ""
    if "mu" in plan.parameters:
        p = plan.parameters
        caption = (
            f"mu {p['mu']:.9f}, sigma {p['sigma']:.3g}, T = mu - {p['x']:g} sigma = {p['threshold']:.9f}"
        )
    terminal.table(f"{plan.arch}: {plan.method}", columns, rows, caption)
    fallen = [t for t in plan.tensors if t.type != t.wanted]
    if fallen:
        shown = [[t.name, t.wanted.name, t.type.name, str(t.shape[-1])] for t in fallen]
        terminal.table(
            "rows that fit no block of the wanted type",
            [("tensor", False), ("wanted", False), ("stored", False), ("row length", True)],
            shown,
        )
    total = f"{format_bytes(plan.data_bytes)} of weights, {plan.bpw:.2f} bits per weight"
    if source_bytes:
        total += f"; {plan.data_bytes / source_bytes:.2f} of the source's {format_bytes(source_bytes)}"
    terminal.result(total)
