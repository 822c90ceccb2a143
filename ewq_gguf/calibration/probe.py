"""How much the model as a whole minds an error in one tensor: the output side that no importance matrix knows.

To second order KL ~ 1/2 d' F d, so an error of a tensor costs g_t times its (weighted) square, and one measured
divergence per tensor gives g_t. It is the quantity that CVXQ calls P_n G_n^2 (arXiv 2409.02026), Radio
estimates with gradients (arXiv 2505.03031) and the linearity theorem calls alpha_l (arXiv 2411.17525); here it
is measured: the tensor is quantized and decoded in the running model, the calibration text is run, the
divergence from the undisturbed model is taken, and the tensor is put back.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ewq_gguf.calibration.imatrix import ImportanceMatrix
from ewq_gguf.calibration.journal import Journal, file_fingerprint
from ewq_gguf.calibration.meter import Meter
from ewq_gguf.calibration.workbench import Slot, Workbench
from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.contexts import read_text
from ewq_gguf.evaluation.engine import F32Array
from ewq_gguf.ggml import GGMLType, ggml

# From coarse to fine. The first list needs rows in multiples of 256 weights, the second of 32: the types that
# stand in for those of the first where rows do not fit (`allocation.facts.fallback_type`).
LADDER = (GGMLType.Q2_K, GGMLType.Q3_K, GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K, GGMLType.Q8_0)
SHORT_LADDER = (GGMLType.Q4_0, GGMLType.Q5_0, GGMLType.Q8_0)
# Divergences (nats per token) within which the law "half the error, a quarter of the divergence" was found to
# hold and the arithmetic's own noise does not show.
_LOW, _HIGH = 2e-4, 5e-2
_CLEAR = 30.0
_START = GGMLType.Q3_K
# Original float32 rows and the index of their matrix (an expert's, else 0) -> the rows to put in their place.
Disturbance = Callable[[F32Array, int], F32Array]


@dataclass(frozen=True)
class Probe:
    """One measurement.

    Attributes:
        tensor: the weight that was disturbed.
        type: the ggml type whose error was put in.
        scale: factor on that error; 1 is what quantizing does.
        kld: mean KL(model || disturbed model), nats per token.
        se: its standard error over tokens.
        noise: divergence that the arithmetic shows for a disturbance too small to matter.
        tokens: scored tokens.
        seconds: time it took.
    """

    tensor: str
    type: str
    scale: float
    kld: float
    se: float
    noise: float
    tokens: int
    seconds: float

    @property
    def clear(self) -> bool:
        """Whether the divergence stands clear of the arithmetic's noise and of its own error."""
        return self.kld > _CLEAR * self.noise and self.kld > 3 * self.se


@dataclass(frozen=True)
class Forecast:
    """What a series of probes will take, told before it begins.

    Attributes:
        probes: measurements still to be made (adaptive probing may add some).
        known: measurements found on disk.
        tokens: tokens per measurement.
        seconds: expected time.
    """

    probes: int
    known: int
    tokens: int
    seconds: float


class Prober:
    """Makes probes on a workbench, or finds them in a journal.

    Args:
        bench: the running model.
        meter: reads its divergence.
        imatrix: importance weights used in quantizing, or None.
        journal: where measurements are kept.
    """

    def __init__(
        self,
        bench: Workbench,
        meter: Meter,
        *,
        imatrix: ImportanceMatrix | None = None,
        journal: Journal | None = None,
    ) -> None:
        self._bench = bench
        self._meter = meter
        self._imatrix = imatrix
        self._journal = journal if journal is not None else Journal(None, "probe", {})
        self._noise: float | None = None

    def known(self, name: str, kind: GGMLType, scale: float = 1.0) -> bool:
        """Whether the measurement is on disk already."""
        return _key(name, kind, scale) in self._journal

    def fits(self, name: str, kind: GGMLType) -> bool:
        """Whether the tensor can be disturbed with the error of `kind`."""
        slot = self._bench.slots.get(name)
        if slot is None or slot.columns % kind.block_size:
            return False
        return not ggml().requires_imatrix(kind) or (self._imatrix is not None and name in self._imatrix)

    def first_rung(self, name: str) -> GGMLType:
        """The type that adaptive probing begins with."""
        slot = self._bench.slots.get(name)
        ladder = ladder_for(slot.columns if slot is not None else 0)
        return _START if _START in ladder else ladder[0]

    def forecast(self, probes: int, known: int) -> Forecast:
        """What `probes` measurements take, from timing one."""
        began = time.perf_counter()
        self._meter.read()
        one = time.perf_counter() - began
        contexts = self._meter.contexts
        # Writing, quantizing and restoring a tensor is little beside running the text.
        return Forecast(probes, known, contexts.chunks * contexts.n_ctx, 1.1 * one * probes)

    def noise(self) -> float:
        """Divergence that a disturbance of no consequence causes: rounding in the KV cache and the like."""
        if self._noise is None:
            found = self._journal.get("noise")
            if found is None:
                name = next(
                    n for n in self._bench.slots if n.startswith("blk.") or len(self._bench.slots) == 1
                )
                kld, _ = self._measure(name, _nudged)
                found = {"kld": kld}
                self._journal.add("noise", found)
            self._noise = float(found["kld"])
        return self._noise

    def probe(self, name: str, kind: GGMLType, scale: float = 1.0) -> Probe:
        """Disturb one tensor by `scale` times the error of `kind`, measure, restore.

        Raises:
            EvaluationError: no such tensor, its rows do not fit the type, or it cannot be restored.
        """
        key = _key(name, kind, scale)
        found = self._journal.get(key)
        if found is not None:
            return Probe(**found)
        slot = self._bench.slots.get(name)
        if slot is None:
            raise EvaluationError(f"the probed file has no weight matrix {name} in a float type")
        if slot.columns % kind.block_size:
            raise EvaluationError(f"{name} has rows of {slot.columns} weights, which {kind.name} cannot hold")
        noise = self.noise()
        began = time.perf_counter()
        kld, se = self._measure(name, error_of(slot, kind, self._imatrix, scale))
        probe = Probe(name, kind.name, scale, kld, se, noise, self._meter.tokens, time.perf_counter() - began)
        self._journal.add(key, asdict(probe))
        return probe

    def adaptive(self, name: str) -> Probe:
        """Probe with a type whose signal stands clear of noise and stays in the quadratic range.

        Begins in the middle and goes one type coarser or finer at a time; where even the coarsest type's error
        is hardly felt, that error is enlarged, and where the finest is too much, it is reduced.

        Raises:
            EvaluationError: as `probe`.
        """
        slot = self._bench.slots.get(name)
        if slot is None:
            raise EvaluationError(f"the probed file has no weight matrix {name} in a float type")
        ladder = ladder_for(slot.columns)
        rung = ladder.index(self.first_rung(name))
        low = max(_LOW, _CLEAR * self.noise())
        tried: dict[int, Probe] = {}
        while rung not in tried:
            found = tried[rung] = self.probe(name, ladder[rung])
            if found.kld < low and rung > 0:
                rung -= 1
            elif found.kld > _HIGH and rung < len(ladder) - 1:
                rung += 1
        best = tried[rung]
        for factor in (2.0, 4.0, 8.0):
            if best.kld >= low and best.clear:
                break
            best = self.probe(name, ladder[rung], factor)
        while best.kld > 4 * _HIGH and best.scale > 1e-3:
            best = self.probe(name, ladder[rung], best.scale / 4)
        return best

    def _measure(self, name: str, disturb: Disturbance) -> tuple[float, float]:
        try:
            apply(self._bench, name, disturb)
            reading = self._meter.read().mean
        finally:
            self._bench.restore(name)
        return reading.value, reading.se


def _nudged(rows: F32Array, matrix: int) -> F32Array:
    """Rows of which the first is a little larger: enough for a 16-bit weight to notice, too little to matter."""
    out = rows.copy()
    out[:1] *= np.float32(1 + 2**-7)
    return out


def error_of(slot: Slot, kind: GGMLType, imatrix: ImportanceMatrix | None, scale: float = 1.0) -> Disturbance:
    """What quantizing to `kind` does to a tensor's rows, times `scale`."""
    weights = None
    if imatrix is not None and slot.name in imatrix:
        weights = imatrix.weights(slot.name, slot.columns)

    def disturb(rows: F32Array, matrix: int) -> F32Array:
        importance = None if weights is None else weights[matrix if len(weights) > 1 else 0]
        decoded = ggml().dequantize(kind, ggml().quantize(kind, rows, importance), slot.columns)
        return decoded if scale == 1.0 else rows + np.float32(scale) * (decoded - rows)

    return disturb


def apply(bench: Workbench, name: str, disturb: Disturbance) -> None:
    """Put a disturbed tensor into the running model; whoever calls restores it."""
    slot = bench.slots[name]
    per_matrix = max(1, slot.n_rows // slot.n_matrices)

    def work(span: tuple[int, int]) -> None:
        start, stop = span
        bench.write(name, start, disturb(bench.rows(name, start, stop), start // per_matrix))

    with ThreadPoolExecutor(bench.engine.n_threads) as pool:
        # list: so that an exception in a thread is raised here.
        list(pool.map(work, slot.slabs()))


def ladder_for(columns: int) -> tuple[GGMLType, ...]:
    """Types to probe with, from coarse to fine, for rows of `columns` weights."""
    if columns % 256 == 0:
        return LADDER
    return SHORT_LADDER if columns % 32 == 0 else (GGMLType.F16,)


def shared_tensors(names: Sequence[str], blocks: int | None) -> list[str]:
    """Tensors to probe when only `blocks` blocks are looked at: evenly spread, the first and last among them.

    None probes all. Tensors outside the blocks are always probed.
    """
    indices = sorted({int(name.split(".")[1]) for name in names if name.startswith("blk.")})
    if blocks is None or blocks >= len(indices):
        return list(names)
    if blocks < 2:
        raise EvaluationError(f"{blocks} blocks are too few to share probes among; give at least 2")
    places = np.linspace(0, len(indices) - 1, blocks).round().astype(int)
    chosen = {indices[i] for i in places}
    return [name for name in names if not name.startswith("blk.") or int(name.split(".")[1]) in chosen]


def run_probes(
    prober: Prober,
    names: Sequence[str],
    types: Sequence[GGMLType] | None = None,
    *,
    thorough: Mapping[str, Sequence[GGMLType]] | None = None,
    announce: Callable[[Forecast], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Probe]:
    """Probe tensors one after another; what is on disk is not measured again.

    Args:
        names: tensors, in the order in which they are probed.
        types: the types to measure for each tensor whose rows fit (direct damage), or None for one probe each
            with a type that suits (see `Prober.adaptive`).
        thorough: tensors of which these types are measured in any case.
        announce: told what is to come, once, after a first measurement has shown how long one takes.
        progress: called with (tensors done, tensors in all).

    Raises:
        EvaluationError: see `Prober.probe`.
    """
    out: list[Probe] = []
    jobs: list[tuple[str, GGMLType | None]] = []
    for name in names:
        wanted = (thorough or {}).get(name, types)
        jobs += [(name, None)] if wanted is None else [(name, t) for t in wanted if prober.fits(name, t)]
    known = sum(prober.known(name, prober.first_rung(name) if kind is None else kind) for name, kind in jobs)
    if announce is not None and known < len(jobs):
        announce(prober.forecast(len(jobs) - known, known))
    done = 0
    for index, (name, kind) in enumerate(jobs):
        out.append(prober.adaptive(name) if kind is None else prober.probe(name, kind))
        if index + 1 == len(jobs) or jobs[index + 1][0] != name:
            done += 1
            if progress is not None:
                progress(done, len(names))
    return out


def _key(name: str, kind: GGMLType, scale: float) -> str:
    return f"{name}|{kind.name}|{scale!r}"


def probe_facts(
    model: Path, text: Path | str, imatrix: ImportanceMatrix | None, *, n_ctx: int, chunks: int
) -> Mapping[str, Any]:
    """What probes depend on, for the journal."""
    return {
        "model": file_fingerprint(model),
        "text": hashlib.sha256(read_text(text)).hexdigest(),
        "imatrix": None if imatrix is None else imatrix.fingerprint(),
        "n_ctx": n_ctx,
        "chunks": chunks,
        "ggml": ggml().version,
    }
