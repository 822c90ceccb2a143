"""What a report shows: plans, measurements, entropies and sensitivities, whatever file they came from."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from ewq_gguf.allocation.plan import Plan


@dataclass(frozen=True)
class PlanRun:
    """A plan, and the file that was made with it where it came from one.

    Attributes:
        file: name shown; `made` says that it is a GGUF file rather than a plan.
        nbytes: of the file or all its parts; None for a plan.
        facts: what else the file says about itself, as (name, value).
    """

    file: str
    made: bool
    plan: Plan = field(repr=False)
    nbytes: int | None
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Measurement:
    """One file measured on one text. Divergences in nats per token; None where something was not measured.

    Attributes:
        model: what it is compared with, or was made from; with `text` the group it is drawn in.
        method: curve that it belongs to, "" if unknown; `preset` names its place on it ("" for none).
        study: the study it is part of, "" for none: its curves are not mixed with another's.
        predicted: divergence that was predicted before the file was made.
        key: the same for the same measurement from two sources, "" if unknown.
    """

    file: str
    model: str
    text: str
    method: str = ""
    preset: str = ""
    study: str = ""
    nbytes: int | None = None
    bpw: float | None = None
    ppl: float | None = None
    ppl_se: float | None = None
    kld: float | None = None
    kld_se: float | None = None
    median_kld: float | None = None
    p99_kld: float | None = None
    top1: float | None = None
    top1_se: float | None = None
    rms_delta_p: float | None = None
    predicted: float | None = None
    chunks: int | None = None
    n_ctx: int | None = None
    key: str = ""


@dataclass(frozen=True)
class BlockFigure:
    """One block's entropy (nats) and the class it got, "" for none."""

    index: int
    entropy: float
    verdict: str = ""


@dataclass(frozen=True)
class Entropies:
    """Block entropies of one model; `mu` and `threshold` where they are known."""

    source: str
    blocks: tuple[BlockFigure, ...]
    epsilon: float | None = None
    mu: float | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class ProbeFigure:
    """Divergence (nats per token) with one tensor disturbed by `scale` times the error of `type`."""

    tensor: str
    type: str
    scale: float
    kld: float
    se: float


@dataclass(frozen=True)
class Sensitivity:
    """Probes of one model."""

    source: str
    probes: tuple[ProbeFigure, ...]


@dataclass(frozen=True)
class BlockCosts:
    """Divergence with one block alone in a coarse type: (block, divergence, standard error), nats per token."""

    source: str
    type: str
    blocks: tuple[tuple[int, float, float], ...]


@dataclass(frozen=True)
class Figures:
    """A small table of something else that was measured: multiple choice, speed, paired comparisons."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...]


@dataclass(frozen=True)
class Runs:
    """Everything that one or several inputs hold.

    Attributes:
        sources: (name, what it was taken for), one per input.
        commands: (what it does, command line) that make these figures again.
    """

    sources: tuple[tuple[str, str], ...] = ()
    plans: tuple[PlanRun, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    entropies: tuple[Entropies, ...] = ()
    sensitivities: tuple[Sensitivity, ...] = ()
    block_costs: tuple[BlockCosts, ...] = ()
    figures: tuple[Figures, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: Runs) -> Runs:
        together: dict[str, Any] = {
            f.name: tuple(dict.fromkeys((*getattr(self, f.name), *getattr(other, f.name))))
            if f.name in ("measurements", "commands")
            else (*getattr(self, f.name), *getattr(other, f.name))
            for f in fields(self)
        }
        return Runs(**together)
