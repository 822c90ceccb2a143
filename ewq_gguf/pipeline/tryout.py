"""A plan tried out before its file is made: written to a scratch file and measured on the calibration text.

A sum of probes flatters the plan that it chose: whatever is best on the two contexts of the probes is a little worse
elsewhere, by up to a tenth, while a plan that nobody chose for them is not. So what is told of a plan, and of the stock
preset at the same bytes, is what their files do on contexts spread over the whole text. That also gives `--max-kld`
something to hold to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ewq_gguf.allocation.facts import Assignment
from ewq_gguf.allocation.methods import preset_plan
from ewq_gguf.allocation.plan import Plan, make_plan, raw_type
from ewq_gguf.allocation.targets import Target
from ewq_gguf.calibration.journal import Journal, fingerprint
from ewq_gguf.calibration.meter import Meter
from ewq_gguf.errors import PlanError, QuantizationError
from ewq_gguf.evaluation.engine import Settings
from ewq_gguf.ggml import GGMLType
from ewq_gguf.model import Model
from ewq_gguf.pipeline.convert import write_model
from ewq_gguf.pipeline.importance import Importance
from ewq_gguf.pipeline.scratch import ScratchCopies

Progress = Callable[[int, int], None]

# Contexts of 512 tokens; the mean of 32 has a standard error of some 5 % where contexts differ by 30 %, the ratio of
# two files on the same contexts less.
CONTEXTS = 32
# What a plan that is made anew for an accuracy aims at, a part of it: nearer at first, for a plan just above it is none.
_AIMS = (0.98, 0.96, 0.94)
# A plan this near below needs no better.
_NEAR = 0.93


class Tryout:
    """Writes files of given types and measures them; what an earlier run measured is taken from the record.

    A context manager: the original runs once, when a first file is measured, and its distributions are kept in memory
    (at most 1 GiB; see `Meter`).

    Args:
        scratch: where the original lies and the files are written.
        text: calibration text.
        importance: what the files are quantized with.
    """

    def __init__(
        self,
        model: Model,
        scratch: ScratchCopies,
        text: Path,
        importance: Importance | None,
        record: Journal,
        threads: int,
    ) -> None:
        self.model = model
        self.importance = importance
        self._scratch = scratch
        self._text = text
        self._record = record
        self._settings = Settings(n_threads=threads)
        self._threads = threads
        self._meter: Meter | None = None

    def __enter__(self) -> Tryout:
        return self

    def __exit__(self, *_: object) -> None:
        if self._meter is not None:
            self._meter.close()
            self._meter = None

    def kld(self, types: Mapping[str, GGMLType], progress: Progress | None = None) -> float:
        """Mean divergence from the original of a file with these types, in nats per token; inf where it breaks down.

        Args:
            types: by tensor; those not named stay as they are in every file.

        Raises:
            EvaluationError: llama.cpp cannot run a file, or the text is unusable.
        """
        raw = raw_type(self.model)
        whole = {t.name: types.get(t.name, raw if t.fixed is None else t.fixed) for t in self.model.tensors}
        key = f"file on {CONTEXTS} contexts " + fingerprint({name: kind.name for name, kind in whole.items()})
        known = self._record.get(key)
        if known is None:
            known = {"kld": self._measured(whole, progress)}
            self._record.add(key, known)
        return float(known["kld"])

    def _measured(self, types: Mapping[str, GGMLType], progress: Progress | None) -> float:
        original = self._scratch.original()
        if self._meter is None:
            with self._settings.engine(original) as engine:
                self._meter = Meter(engine, self._text, CONTEXTS, compact=True, spread=True)
        # One file after the other: several beside the original may be more than the memory holds.
        file = original.with_name("tryout.gguf")
        try:
            self._write(types, file)
            with self._settings.engine(file) as engine:
                return self._meter.read(engine, progress).mean.value
        finally:
            file.unlink(missing_ok=True)

    def _write(self, types: Mapping[str, GGMLType], out: Path) -> None:
        assignments = {name: Assignment(kind, kind, "to try out") for name, kind in types.items()}
        plan = make_plan(self.model, "rd", {}, assignments)
        write_model(self.model, plan, out, threads=self._threads, importance=self.importance)


def tried_plan(
    tryout: Tryout,
    plan: Plan,
    target: Target,
    again: Callable[[Target], Plan],
    size_of: Callable[[Plan], int],
    allowed: Callable[[Plan], bool],
    progress: Progress | None = None,
) -> Plan:
    """The plan with what its file measures as its prediction; for an accuracy, the smallest found that keeps it.

    Beside `--like` the stock preset is measured too (`stock`, nats per token, in the plan's parameters), and its types
    are taken where they are allowed and do better (`took_stock`).

    Args:
        plan: from `rd_plan` for the target.
        again: makes a plan for another target.
        size_of: exact bytes of a plan's file.
        allowed: whether pool and pins allow a plan's types.

    Raises:
        EvaluationError: llama.cpp cannot run a file.
    """
    measured = tryout.kld(plan.types(), progress)
    if target.max_kld is not None:
        plan, measured = _within(tryout, plan, measured, target, again, progress)
    if not math.isfinite(measured):
        return plan
    told = {**plan.parameters, "predicted": _rounded(measured), "tried": CONTEXTS}
    if target.like is not None:
        # Some presets cannot be made without an importance matrix.
        with suppress(PlanError, QuantizationError):
            stock = preset_plan(tryout.model, target.like, has_imatrix=tryout.importance is not None)
            theirs = tryout.kld(stock.types(), progress)
            if math.isfinite(theirs):
                told["stock"] = _rounded(theirs)
            if theirs < measured and allowed(stock):
                own = tuple(replace(t, reason=f"{target.like}'s own type") for t in stock.tensors)
                plan = replace(plan, tensors=own)
                told |= {"predicted": told["stock"], "gap": None, "took_stock": True}
    found = replace(plan, parameters=told)
    # The parameters are part of the header, and the file never exceeds its size.
    return plan if target.size is not None and size_of(found) > target.size else found


def _within(
    tryout: Tryout,
    plan: Plan,
    measured: float,
    target: Target,
    again: Callable[[Target], Plan],
    progress: Progress | None,
) -> tuple[Plan, float]:
    """The smallest plan that keeps an accuracy where one is found, else the one that comes closest."""
    wanted, floor = target.max_kld, float(plan.parameters["floor"])
    assert wanted is not None
    asked = wanted
    found = [(plan, measured)]
    for aim in _AIMS:
        reached = _NEAR * wanted <= measured <= wanted
        if reached or not floor < measured < math.inf or aim * wanted <= floor:
            break
        # What weights cost is taken to grow in proportion with what is asked of them.
        asked = floor + (asked - floor) * (aim * wanted - floor) / (measured - floor)
        try:
            plan = again(replace(target, max_kld=asked))
        except PlanError:
            break
        if any(plan.types() == known.types() for known, _ in found):
            break
        measured = tryout.kld(plan.types(), progress)
        found.append((plan, measured))
    kept = [(p, kld) for p, kld in found if kld <= wanted]
    best, kld = min(kept, key=lambda f: f[0].data_bytes) if kept else min(found, key=lambda f: f[1])
    told = {**best.parameters, "target": found[0][0].parameters["target"]}
    return replace(best, parameters=told), kld


def _rounded(kld: float) -> float:
    """To six digits: shorter in a header than any sum."""
    return float(f"{kld:.6g}")
