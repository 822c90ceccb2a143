"""Probes: repeatable, resumable, adapted to each tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ewq_gguf.calibration.imatrix import collect_imatrix
from ewq_gguf.calibration.journal import Journal
from ewq_gguf.calibration.meter import Meter
from ewq_gguf.calibration.probe import Forecast, Prober, ladder_for, run_probes, shared_tensors
from ewq_gguf.calibration.session import ProbeSettings, probe_model
from ewq_gguf.calibration.workbench import MappedWorkbench
from ewq_gguf.errors import EvaluationError
from ewq_gguf.ggml import GGMLType, ggml

N_CTX = 64


@pytest.fixture(scope="module")
def lab(dense_model: Path, text: str) -> Iterator[tuple[MappedWorkbench, Meter]]:
    with (
        MappedWorkbench(dense_model, n_ctx=N_CTX, n_batch=N_CTX, n_threads=1) as bench,
        Meter(bench.engine, text, 2) as meter,
    ):
        yield bench, meter


def test_a_probe_is_what_quantizing_does(lab: tuple[MappedWorkbench, Meter]) -> None:
    bench, meter = lab
    probe = Prober(bench, meter).probe("blk.0.ffn_up.weight", GGMLType.Q3_K)
    rows = bench.rows("blk.0.ffn_up.weight", 0, 256)
    decoded = ggml().dequantize(GGMLType.Q3_K, ggml().quantize(GGMLType.Q3_K, rows), 256)
    bench.write("blk.0.ffn_up.weight", 0, decoded)
    expected = meter.read().mean
    bench.restore("blk.0.ffn_up.weight")
    assert (probe.kld, probe.se) == (expected.value, expected.se)
    assert probe.tokens == 2 * (N_CTX // 2 - 1)
    assert probe.kld > 0
    assert bench.intact()


def test_scale_is_a_factor_on_the_error(lab: tuple[MappedWorkbench, Meter]) -> None:
    prober = Prober(*lab)
    one = prober.probe("blk.0.attn_v.weight", GGMLType.Q5_K)
    two = prober.probe("blk.0.attn_v.weight", GGMLType.Q5_K, 2.0)
    assert two.kld / one.kld == pytest.approx(4, rel=0.1)


def test_adaptive_probes_stand_clear_and_stay_small(lab: tuple[MappedWorkbench, Meter]) -> None:
    bench, meter = lab
    prober = Prober(bench, meter)
    for name in bench.slots:
        probe = prober.adaptive(name)
        assert probe.kld > 30 * probe.noise, name
        assert 1e-4 < probe.kld < 0.2, name


def test_weak_and_strong_tensors_get_other_types(
    lab: tuple[MappedWorkbench, Meter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measurement is replaced by a law, so that both ends of the ladder can be reached."""
    prober = Prober(*lab)
    errors = dict(zip(ladder_for(256), (4.0**-i for i in range(6))))

    def scaled(strength: float) -> tuple[str, float]:
        def probe(name: str, kind: GGMLType, scale: float = 1.0):  # type: ignore[no-untyped-def]
            value = strength * errors[kind] * scale**2
            return replace(template, type=kind.name, scale=scale, kld=value, se=value / 20, noise=1e-8)

        monkeypatch.setattr(prober, "probe", probe)
        found = prober.adaptive("blk.0.attn_q.weight")
        return found.type, found.scale

    template = prober.probe("blk.0.attn_q.weight", GGMLType.Q3_K)
    assert scaled(1e-2) == ("Q3_K", 1.0)
    assert scaled(5e-4) == ("Q2_K", 1.0)
    assert scaled(2e-5) == ("Q2_K", 4.0)
    assert scaled(3.0) == ("Q5_K", 1.0)
    assert scaled(1e4)[1] < 1


def test_measurements_are_not_made_twice(lab: tuple[MappedWorkbench, Meter], tmp_path: Path) -> None:
    bench, meter = lab
    names = ["blk.0.attn_q.weight", "blk.1.attn_q.weight"]
    first = run_probes(Prober(bench, meter, journal=Journal(tmp_path, "probe", {})), names)

    class Broken(Meter):
        def __init__(self) -> None:
            self.contexts, self.tokens = meter.contexts, meter.tokens

        def read(self):  # type: ignore[no-untyped-def]
            raise AssertionError("measured again")

    told: list[Forecast] = []
    prober = Prober(bench, Broken(), journal=Journal(tmp_path, "probe", {}))
    assert run_probes(prober, names, announce=told.append) == first
    assert told == []


def test_forecast_comes_before_work_and_progress_counts_tensors(lab: tuple[MappedWorkbench, Meter]) -> None:
    events: list[object] = []
    names = ["blk.0.attn_q.weight", "blk.0.attn_k.weight"]
    types = [GGMLType.Q2_K, GGMLType.Q4_K, GGMLType.IQ2_XS]
    probes = run_probes(
        Prober(*lab), names, types, announce=events.append, progress=lambda *at: events.append(at)
    )
    # IQ2_XS needs an importance matrix, so it is not measured.
    assert [(p.tensor, p.type) for p in probes] == [(n, t.name) for n in names for t in types[:2]]
    assert isinstance(events[0], Forecast)
    assert (events[0].probes, events[0].known, events[0].tokens) == (4, 0, 2 * N_CTX)
    assert events[1:] == [(1, 2), (2, 2)]


def test_interrupted_probes_leave_the_model_intact(
    lab: tuple[MappedWorkbench, Meter], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, meter = lab
    prober = Prober(bench, meter)
    prober.noise()

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(meter, "read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prober.probe("blk.0.attn_q.weight", GGMLType.Q2_K)
    assert bench.intact()


def test_unknown_tensors_and_types_that_do_not_fit(lab: tuple[MappedWorkbench, Meter]) -> None:
    prober = Prober(*lab)
    with pytest.raises(EvaluationError, match="no weight matrix"):
        prober.probe("blk.9.attn_q.weight", GGMLType.Q2_K)
    with pytest.raises(EvaluationError, match="no weight matrix"):
        prober.adaptive("output_norm.weight")
    assert ladder_for(96)[0] is GGMLType.Q4_0


def test_experts_are_quantized_with_their_own_weights(expert_model: Path, text: str, tmp_path: Path) -> None:
    matrix = collect_imatrix(expert_model, text, n_ctx=N_CTX, chunks=4, n_threads=1)
    settings = ProbeSettings(n_ctx=N_CTX, chunks=2, n_threads=1, cache=tmp_path, types=[GGMLType.Q2_K])
    names = ["blk.0.ffn_up_exps.weight", "blk.1.ffn_down_exps.weight"]
    first = probe_model(expert_model, text, names, imatrix=matrix, settings=settings)
    again = probe_model(expert_model, text, names, imatrix=matrix, settings=settings)
    assert first == again
    assert all(np.isfinite(p.kld) and p.kld > 0 for p in first)
    other = probe_model(expert_model, text, names, imatrix=None, settings=settings)
    assert all(a.kld != b.kld for a, b in zip(first, other))


def test_threads_and_repetition_do_not_change_a_probe(dense_model: Path, text: str) -> None:
    found = []
    for n_threads in (1, 2, 2):
        settings = ProbeSettings(n_ctx=N_CTX, chunks=2, n_threads=n_threads)
        (probe,) = probe_model(dense_model, text, ["blk.1.ffn_gate.weight"], settings=settings)
        found.append((probe.type, probe.kld, probe.se))
    assert found[0] == found[1] == found[2]


def test_sharing_keeps_the_ends_and_what_stands_outside() -> None:
    names = ["token_embd.weight", *(f"blk.{i}.{w}.weight" for i in range(10) for w in ("attn_q", "ffn_up"))]
    assert shared_tensors(names, None) == names
    assert shared_tensors(names, 12) == names
    kept = shared_tensors(names, 3)
    assert kept[0] == "token_embd.weight"
    assert sorted({int(n.split(".")[1]) for n in kept[1:]}) == [0, 4, 9]
    with pytest.raises(EvaluationError, match="at least 2"):
        shared_tensors(names, 1)
