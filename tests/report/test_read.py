"""Every kind of input is recognised by what is in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ewq_gguf
from ewq_gguf.errors import EwqError
from ewq_gguf.report.fields import real
from ewq_gguf.report.heatmap import alike, types_of
from ewq_gguf.report.methods import joined, once, ratios
from ewq_gguf.report.planned import plan_commands
from ewq_gguf.report.read import read_file, read_runs
from ewq_gguf.report.runs import Measurement, Sensitivity
from tests.report.documents import (
    analysis,
    divergence,
    figures,
    journal,
    model_file,
    plan,
    plan_entry,
    probes,
    record,
    written,
)


def test_a_plan(tmp_path: Path) -> None:
    found = read_file(written(tmp_path / "anything.txt", plan()))
    assert found.plans[0].plan.method == "rd"
    assert not found.plans[0].made
    assert [line for _, line in found.commands] == [
        "ewq-gguf convert MODEL -o anything-again.gguf --plan anything.txt",
        "ewq-gguf convert MODEL -o anything.gguf --like Q4_K_M",
    ]


def test_replaying_a_plan_takes_the_importance_matrix_along(tmp_path: Path) -> None:
    model_file(tmp_path / "-m.gguf", "rd", {"imatrix": True}, {"quantize.imatrix.file": "/x/a b.gguf"})
    assert read_file(tmp_path / "-m.gguf").commands[0][1] == (
        "ewq-gguf convert MODEL -o ./-m-again.gguf --plan ./-m.gguf --imatrix 'a b.gguf'"
    )
    path = written(tmp_path / "p.json", plan(method="rd", parameters={"imatrix": True}))
    assert read_file(path).commands[0][1].endswith("--plan p.json --imatrix IMATRIX")


def test_numbers_no_measurement_yields_are_none() -> None:
    given = {"a": 1e308, "b": float("nan"), "c": 5e-324, "d": True, "e": 10**400, "f": -2, "g": "1"}
    assert [real(given, key) for key in "abcdefgh"] == [None, None, 0.0, None, None, -2.0, None, None]


def test_a_plan_tells_how_it_was_decided_or_keeps_silent(tmp_path: Path) -> None:
    cases = [
        ("preset", {"preset": "Q4_K_M", "imatrix": True}, "--type Q4_K_M --imatrix IMATRIX"),
        ("uniform", {"type": "Q8_0"}, "--type Q8_0"),
        ("rd", {"target": {"size": 5000000}, "text": "a b.txt", "probe_chunks": 4, "damage": "mse"},
         "--size 5000000 --text 'a b.txt' --damage mse --probe-chunks 4"),
        ("rd", {"target": {"bpw": 4.5}, "damage": "probe", "tried": 0}, "--bpw 4.5 --no-try-out"),
        ("rd", {"target": {"like": "Q4_K_M"}, "damage": "probe", "tried": 32}, "--like Q4_K_M"),
        ("rd", {"target": {"vram": 8589934592, "context": 4096, "cache_type": "Q8_0"}},
         "--vram 8589934592 --context 4096 --cache-type Q8_0"),
        ("preset", {"preset": "Q4_K_M; rm -r ."}, None),
        ("preset", {"preset": "Q4_K_M", "pins": ["x=Q8_0"]}, None),
        ("ewq", {"x": 1.0}, None),
    ]  # fmt: skip
    for method, parameters, expected in cases:
        path = written(tmp_path / "p.json", plan(method=method, parameters=parameters))
        lines = [line for _, line in read_file(path).commands[1:]]
        assert lines == ([] if expected is None else [f"ewq-gguf convert MODEL -o p.gguf {expected}"])


def test_ewq_plans_bring_their_entropies(tmp_path: Path) -> None:
    found = read_file(written(tmp_path / "p.json", plan(method="ewq", parameters=analysis())))
    assert [b.verdict for b in found.entropies[0].blocks] == ["8-bit", "8-bit", "raw", "raw"]


def test_measurements_and_the_command_that_makes_them(tmp_path: Path) -> None:
    data = divergence(figures("/home/me/a b.gguf", 5, 0.1), figures("-c.gguf", 6, 0.05))
    found = read_file(written(tmp_path / "m.json", data))
    assert [(m.file, m.model, m.text, m.kld) for m in found.measurements] == [
        ("a b.gguf", "base", "words.txt", 0.1),
        ("-c.gguf", "base", "words.txt", 0.05),
    ]
    assert found.commands[0][1] == (
        "ewq-gguf evaluate divergence 'a b.gguf' ./-c.gguf --baseline base.gguf --text words.txt --chunks 4 --json"
    )


def test_perplexity_choice_and_speed(tmp_path: Path) -> None:
    perplexity = {"text": "t.txt", "files": [{"file": "a.gguf", "bytes": 1, "ppl": 9.5, "ppl_se": 0.1}]}
    assert read_file(written(tmp_path / "p.json", perplexity)).measurements[0].ppl == 9.5
    choice = {"files": [{"file": "a.gguf", "accuracy": 0.5, "accuracy_se": 0.01, "questions": 200}],
              "flips": [{"second": "a.gguf", "agreement": 0.97, "lost": 4, "gained": 2}], "baseline": None}  # fmt: skip
    table = read_file(written(tmp_path / "c.json", choice)).figures[0]
    assert table.rows == (("a.gguf", 50.0, 1.0, 200.0, 97.0, 4.0, 2.0),)
    speed = {"files": [{"file": "a.gguf", "prompt_tps": 900.0, "generate_tps": 50.5, "rss_bytes": 3 << 20}]}
    assert read_file(written(tmp_path / "s.json", speed)).figures[0].rows[0][:3] == ("a.gguf", 900.0, 50.5)


def test_records_of_the_two_studies(tmp_path: Path) -> None:
    quality = read_runs([written(tmp_path / "tiny" / "results.json", record()).parent])
    assert [m.method for m in quality.measurements] == ["stock", "rd", "stock", "rd"]
    assert {m.model for m in quality.measurements} == {"tiny"}
    assert quality.block_costs[0].type == "Q3_K"
    assert [block for block, _, _ in quality.block_costs[0].blocks] == [0, 1]
    file = written(tmp_path / "allocation-tiny" / "results.json", record(allocation=True))
    allocation = read_file(file)
    assert [(m.method, m.model) for m in allocation.measurements][:2] == [
        ("stock+imatrix", "tiny"),
        ("rd", "tiny"),
    ]
    # The same measurements with predictions, as the study's own list of rows has them.
    rows = [
        {**r, "model": "tiny", "text": "words.txt", "predicted": 0.02}
        for r in record(True)["measurements"][:4]
    ]
    both = once((allocation + read_file(written(tmp_path / "allocation.json", rows))).measurements)
    assert [m.predicted for m in both] == [0.02] * 4


def test_ratios_to_the_stock_preset(tmp_path: Path) -> None:
    group = read_file(written(tmp_path / "x" / "results.json", record())).measurements
    found = ratios(group)
    assert {m.preset: round(r.value, 6) for m, r in found.items()} == {"Q4_K_M": 0.5, "Q6_K": 0.5}
    assert all(0 < r.se < 0.1 for r in found.values())


def test_a_measurement_finds_the_plan_of_its_file(tmp_path: Path) -> None:
    nbytes = model_file(tmp_path / "m.gguf", "preset", {"preset": "Q4_K_M", "imatrix": False})
    data = divergence(figures("m.gguf", nbytes, 0.05), figures("m.gguf", nbytes + 1, 0.05))
    found = read_runs([tmp_path / "m.gguf", written(tmp_path / "m.json", data)])
    ours, other = joined(found.measurements, found.plans)
    assert (ours.method, ours.preset, other.method) == ("stock", "Q4_K_M", "")


def test_a_real_model(reference: Path, tmp_path: Path) -> None:
    made = ewq_gguf.convert(reference, tmp_path / "m.gguf", ewq_gguf.Decision(type="bf16"))
    run = read_file(tmp_path / "m.gguf").plans[0]
    assert (run.made, run.nbytes, run.plan.method) == (True, made.nbytes, "uniform")
    assert dict(run.facts)["ewq-gguf"] == ewq_gguf.__version__
    assert plan_commands(run)[1][1] == "ewq-gguf convert MODEL -o m.gguf --type BF16"


def test_an_importance_matrix_is_no_model(tmp_path: Path) -> None:
    model_file(tmp_path / "i.gguf", "", {}, {"general.type": "imatrix"})
    with pytest.raises(EwqError, match="is an importance matrix"):
        read_file(tmp_path / "i.gguf")
    with pytest.raises(EwqError, match="holds nothing"):
        read_runs([tmp_path])


def test_analysis_and_probes(tmp_path: Path) -> None:
    found = read_file(written(tmp_path / "a.json", analysis()))
    assert [b.index for b in found.entropies[0].blocks] == [0, 1, 2, 3]
    assert len(read_file(written(tmp_path / "p.json", probes())).sensitivities[0].probes) == 9


def test_a_cached_study(tmp_path: Path) -> None:
    (tmp_path / "probe-1.jsonl").write_text(journal())
    (tmp_path / "probe-2.jsonl").write_text(journal().split("\n")[0] + "\n")
    (tmp_path / "distortion-1.jsonl").write_text(journal("distortion"))
    found = read_runs([tmp_path])
    assert len(found.sensitivities) == 1
    assert len(found.sensitivities[0].probes) == 9
    assert read_file(tmp_path / "probe-1.jsonl").sensitivities[0].probes == found.sensitivities[0].probes
    with pytest.raises(EwqError, match="distortion records and no probes"):
        read_file(tmp_path / "distortion-1.jsonl")


def test_probes_are_compared_like_with_like(tmp_path: Path) -> None:
    rows = probes()
    rows.append({"tensor": "blk.0.ffn_down.weight", "type": "Q4_0", "scale": 1.0, "kld": 0.5, "se": 0.0})
    found = read_file(written(tmp_path / "p.json", rows)).sensitivities[0]
    chosen = alike(found)
    # Q2_K and Q3_K are equally frequent; the coarser tells more. The embedding has a scaled error only.
    assert types_of(chosen) == "Q2_K (5 tensors) or Q4_0 (1 tensors)"
    assert [p.kld for p in chosen if p.type == "Q2_K" and p.scale == 1] == [0.004, 0.008, 0.012, 0.016]
    assert alike(Sensitivity("none", ())) == []


def test_a_folder_is_what_is_in_it(tmp_path: Path) -> None:
    written(tmp_path / "plan.json", plan())
    written(tmp_path / "kld.json", divergence(figures("a.gguf", 5, 0.1)))
    written(tmp_path / "config.json", {"architectures": ["X"]})
    (tmp_path / "notes.txt").write_text("not looked at")
    (tmp_path / "sub").mkdir()
    found = read_runs([tmp_path, tmp_path / "sub" / ".."])
    assert [name for name, _ in found.sources] == ["kld.json", "plan.json"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "nothing that a report can show"),
        (b"\x93NUMPY", "nothing that a report can show"),
        (b'"text"', "nothing that a report can show"),
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply|not valid JSON"),
        (b'{"a": "\xff"}', "nothing that a report can show"),
        (b"{}", "JSON, but nothing"),
        (b"[1, 2]", "JSON, but nothing"),
        (b'{"files": [{"file": "x"}]}', "JSON, but nothing"),
        (b'{"files": [{"file": "x", "ppl": NaN}]}', "JSON, but nothing"),
        (b'{"files": [{"file": "x", "ppl": true, "mean_kld": "0.1"}]}', "JSON, but nothing"),
        (b'{"facts": {}, "measurements": [{"method": "block", "preset": "x"}]}', "JSON, but nothing"),
        (b'{"format": "ewq-gguf plan", "version": 7}', "not a version 1 plan"),
        (b"GGUF\x00\x00\x00\x00", "GGUF"),
    ],
)
def test_what_is_unknown_or_damaged_is_said_in_a_sentence(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "thing.json"
    path.write_bytes(content)
    with pytest.raises(EwqError, match=told) as caught:
        read_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(EwqError, match="does not exist"):
        read_runs([tmp_path / "none.json"])
    with pytest.raises(EwqError, match="holds nothing"):
        read_runs([tmp_path])
    with pytest.raises(EwqError, match="nothing to report"):
        read_runs([])


def test_figures_of_any_kind_do_no_harm(tmp_path: Path) -> None:
    odd = {"file": 3, "bytes": -1, "ppl": 10**400, "mean_kld": 0.1, "top1_agreement": [], "chunks": 2.5}
    m = read_file(written(tmp_path / "o.json", {"files": [odd, "x", None]})).measurements[0]
    assert m == Measurement("unnamed", "", "the baseline's text", kld=0.1)


def test_hostile_block_numbers_do_not_make_hostile_pictures(tmp_path: Path) -> None:
    from ewq_gguf.report import write_report

    names = [f"blk.{10**i}.{role}.weight" for i in range(17) for role in ("a", "b")]
    tensors = [plan_entry(name, "F16", [2, 2]) for name in names]
    blocks = [{"index": 10**i, "entropy": 1e300 * i} for i in range(20)]
    data = plan(tensors, method="ewq", parameters={"blocks": blocks, "mu": 1e308})
    report = write_report(written(tmp_path / "p.json", data), tmp_path / "r.html")
    assert report.nbytes < 200_000
    assert json.loads((tmp_path / "p.json").read_text())["method"] == "ewq"
