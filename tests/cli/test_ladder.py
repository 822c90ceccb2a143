"""`ewq-gguf ladder`: several targets, one measurement, files that keep to their sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ewq_gguf.allocation.targets import Target
from ewq_gguf.cli import cli
from ewq_gguf.decision import Decision
from ewq_gguf.errors import PlanError
from ewq_gguf.series import Rung, ladder, parse_rung


@pytest.mark.parametrize(
    ("text", "rung"),
    [
        ("4.2GiB", Rung("4.2GiB", Target(size=4_509_715_660))),
        (" 900 MB ", Rung("900MB", Target(size=900_000_000))),
        ("4.5bpw", Rung("4.5bpw", Target(bpw=4.5))),
        ("4 BPW", Rung("4BPW", Target(bpw=4.0))),
        ("q4_k_m", Rung("Q4_K_M", Target(like="Q4_K_M"))),
    ],
)
def test_a_rung_is_a_size_bits_per_weight_or_a_preset(text: str, rung: Rung) -> None:
    assert parse_rung(text) == rung


@pytest.mark.parametrize("text", ["", "big", "4.5", "-3MB", "Q9_K", "bpw"])
def test_what_is_no_rung_is_refused(text: str) -> None:
    if text == "4.5":
        # Four and a half bytes are a size, though a useless one: refused where it is used.
        assert parse_rung(text).target.size == 4
        return
    with pytest.raises(PlanError, match=r"write a size \(4.2GiB\), 4.5bpw or a preset"):
        parse_rung(text)


def test_files_keep_to_their_targets(reference: Path, tmp_path: Path) -> None:
    ran = CliRunner().invoke(
        cli,
        ["-q", "ladder", str(reference), "--sizes", "6MB,8MB,Q4_K_M", "-o", str(tmp_path / "files"),
         "--damage", "mse", "--pool", "Q2_K,Q4_K,Q6_K,Q8_0", "--json"],
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    made = json.loads(ran.stdout)
    assert [Path(m["output"]).name for m in made] == [
        f"{reference.name}-{label}.gguf" for label in ("6MB", "8MB", "Q4_K_M")
    ]
    assert [m["bytes"] for m in made] == [Path(m["output"]).stat().st_size for m in made]
    assert 5_900_000 < made[0]["bytes"] <= 6_000_000 < 7_900_000 < made[1]["bytes"] <= 8_000_000
    assert all(m["predicted_kld"] is None for m in made), "plain error predicts no divergence"


def test_misuse_is_one_sentence(reference: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="gets its targets from --sizes"):
        ladder(reference, tmp_path, [parse_rung("6MB")], Decision(type="Q8_0"))
    with pytest.raises(PlanError, match="would be written twice"):
        ladder(reference, tmp_path, [parse_rung("6MB"), parse_rung("6 MB")])
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(PlanError, match="is a file; give a folder"):
        ladder(reference, file, [parse_rung("6MB")])
    assert list(tmp_path.iterdir()) == [file]
