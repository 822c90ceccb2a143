"""Side by side with llama-perplexity, on the reference model and, where they are given, on other files.

Needs the programs of `python third_party/build_tools.py`. `EWQ_PARITY_MODELS=BASE.gguf:CANDIDATE.gguf` adds a pair.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ewq_gguf.api import convert
from ewq_gguf.decision import Decision
from ewq_gguf.evaluation.contexts import cut_contexts, read_text
from ewq_gguf.evaluation.crash import cache_folder
from ewq_gguf.evaluation.divergence import Divergence, divergence
from ewq_gguf.evaluation.engine import Settings
from ewq_gguf.evaluation.perplexity import perplexity

pytestmark = pytest.mark.parity

ROOT = Path(__file__).resolve().parents[2]
EVALUATION = ROOT / "benchmarks" / "data" / "evaluation.txt"
WIKITEXT = ROOT.parent / "shared" / "data" / "wiki.test.raw"
# Looked up on import: the tests' own cache folder is set later.
TOOLS = sorted(cache_folder().glob("llama.cpp-*/bin"))
CHUNKS = 20
THREADS = 2


@dataclass(frozen=True)
class Pair:
    name: str
    baseline: Path
    candidate: Path


@dataclass(frozen=True)
class Theirs:
    """What llama-perplexity printed."""

    ppl: float
    ppl_se: float
    statistics: dict[str, tuple[float, float | None]]
    base_file: Path


@pytest.fixture(scope="session")
def tools() -> Path:
    if not TOOLS or not (TOOLS[-1] / "llama-perplexity").is_file():
        pytest.skip("llama.cpp's programs are not built; run python third_party/build_tools.py")
    return TOOLS[-1]


def _run(program: Path, *arguments: object) -> str:
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=True)
    return (done.stdout + done.stderr).decode("utf-8", "replace")


@pytest.fixture(scope="session")
def pairs(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    folder = tmp_path_factory.mktemp("parity")
    base = folder / "reference-bf16.gguf"
    convert(ROOT / "benchmarks" / "reference-10m", base, Decision(type="bf16"))
    out = []
    for preset in ("Q4_K_M", "Q8_0"):
        candidate = folder / f"reference-{preset}.gguf"
        _run(tools / "llama-quantize", base, candidate, preset, THREADS)
        out.append(Pair(f"reference {preset}", base, candidate))
    given = os.environ.get("EWQ_PARITY_MODELS")
    if given:
        one, other = given.split(":")
        out.append(Pair(Path(other).stem, Path(one), Path(other)))
    return out


@pytest.fixture(scope="session", params=["evaluation", "wikitext"])
def text(request: pytest.FixtureRequest) -> Path:
    path = EVALUATION if request.param == "evaluation" else WIKITEXT
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    return path


def _theirs(tools: Path, pair: Pair, text: Path, folder: Path) -> Theirs:
    common = ["-c", 512, "-t", THREADS, "--chunks", CHUNKS, "--no-repack", "-f", text]
    base_file = folder / f"{pair.baseline.stem}-{text.stem}.bin"
    program = tools / "llama-perplexity"
    _run(program, "-m", pair.baseline, *common, "--kl-divergence-base", base_file)
    plain = _run(program, "-m", pair.candidate, *common)
    found = re.search(r"Final estimate: PPL = ([\d.]+) \+/- ([\d.]+)", plain)
    assert found, plain
    for _ in range(4):
        compared = _run(
            program, "-m", pair.candidate, *common, "--kl-divergence-base", base_file, "--kl-divergence"
        )
        # On a busy machine it sometimes ends before its log thread has written everything.
        if "Same top p:" in compared:
            break
    statistics: dict[str, tuple[float, float | None]] = {}
    pattern = r"^(\S.*?)\s*:\s+(-?[\d.]+)\s*%?(?:\s*\u00b1\s*([\d.]+))?"
    for line in compared.splitlines():
        match = re.match(pattern, line)
        if match and any(part in line for part in ("KLD", "PPL", "\u0394p", "top p")):
            error = float(match[3]) if match[3] else None
            statistics[re.sub(r"\s+", " ", match[1])] = (float(match[2]), error)
    return Theirs(float(found[1]), float(found[2]), statistics, base_file)


def _ours(found: Divergence) -> dict[str, tuple[float, float | None]]:
    """Our figures under their names and in their units."""
    delta = found.per_token.delta_p * 100
    kld = found.per_token.kld
    out: dict[str, tuple[float, float | None]] = {
        "Mean PPL(Q)": (found.ppl, found.ppl_se),
        "Mean PPL(base)": (found.baseline_ppl, found.baseline_ppl_se),
        "Cor(ln(PPL(Q)), ln(PPL(base)))": (100 * found.correlation, None),
        "Mean ln(PPL(Q)/PPL(base))": (found.ln_ppl_ratio, found.ln_ppl_ratio_se),
        "Mean PPL(Q)/PPL(base)": (found.ppl_ratio, found.ppl_ratio_se),
        "Mean KLD": (found.mean_kld, found.mean_kld_se),
        "Maximum KLD": (found.max_kld, None),
        "99.9% KLD": (found.p999_kld, None),
        "99.0% KLD": (found.p99_kld, None),
        "95.0% KLD": (found.p95_kld, None),
        "90.0% KLD": (found.p90_kld, None),
        "Median KLD": (found.median_kld, None),
        "Mean \u0394p": (100 * found.mean_delta_p, 100 * found.mean_delta_p_se),
        "RMS \u0394p": (100 * found.rms_delta_p, 100 * found.rms_delta_p_se),
        "Same top p": (100 * found.top1_agreement, 100 * found.top1_agreement_se),
        "Maximum \u0394p": (float(delta.max()), None),
        "Minimum \u0394p": (float(delta.min()), None),
        "Median \u0394p": (float(np.median(delta)), None),
    }
    for share in (10, 5, 1):
        out[f"{share:.1f}% KLD"] = (float(np.percentile(kld, share)), None)
    for share in (99.9, 99, 95, 90, 75, 25, 10, 5, 1, 0.1):
        out[f"{share:.1f}% \u0394p"] = (float(np.percentile(delta, share)), None)
    return out


def _compare(
    title: str, theirs: dict[str, tuple[float, float | None]], ours: dict[str, tuple[float, float | None]]
) -> dict[str, float]:
    """Print both columns; returns the deviation of each figure in per cent, beyond what printing rounds off."""
    print(f"\n{title}")
    out: dict[str, float] = {}
    for name, (value, error) in ours.items():
        if name not in theirs:
            continue
        for label, mine, printed in (("", value, theirs[name][0]), (" +/-", error, theirs[name][1])):
            if mine is None or printed is None:
                continue
            digits = 2 if name.startswith("Cor") else 3 if "\u0394p" in name or "top" in name else 6
            slack = 0.5 * 10.0**-digits
            gap = max(0.0, abs(mine - printed) - slack) / max(abs(printed), 1e-12) * 100
            out[name + label] = gap
            print(f"  {name + label:36} llama.cpp {printed:12.6f}  ours {mine:12.6f}  off {gap:7.3f} %")
    return out


# llama.cpp's file cuts log-probabilities off 16 nats below the largest, so what depends on the baseline's own
# perplexity is not the same figure when the baseline runs live; and figures near zero feel its 16-bit rounding.
_CUT = ("PPL(base)", "Cor(")
# It also leaves tokens below e^-16 out of its sums, which shows where a divergence is small.
_LOW = ("10.0% KLD", "5.0% KLD", "1.0% KLD")
_NEAR_ZERO = 2e-4


def test_figures(tools: Path, pairs: list[Pair], text: Path, tmp_path: Path) -> None:
    settings = Settings(n_threads=THREADS)
    for pair in pairs:
        theirs = _theirs(tools, pair, text, tmp_path)
        alone = perplexity(pair.candidate, text, settings=settings, chunks=CHUNKS)
        print(
            f"\n{pair.name}, {text.name}: {theirs.ppl} +/- {theirs.ppl_se}, ours {alone.ppl} +/- {alone.ppl_se}"
        )
        assert alone.ppl == pytest.approx(theirs.ppl, rel=1e-3)
        assert alone.ppl_se == pytest.approx(theirs.ppl_se, rel=1e-2)
        assert len(theirs.statistics) > 20
        assert alone.tokens == CHUNKS * 255
        (from_file,) = divergence(pair.candidate, theirs.base_file, settings=settings)
        gaps = _compare("their baseline file, both", theirs.statistics, _ours(from_file))
        assert len(gaps) > 25
        for name, gap in gaps.items():
            assert gap <= 1, name
        (live,) = divergence(pair.candidate, pair.baseline, text, settings=settings, chunks=CHUNKS)
        ours = _ours(live)
        gaps = _compare("their baseline file, our live baseline", theirs.statistics, ours)
        for name, gap in gaps.items():
            value = ours[name.removesuffix(" +/-")][0]
            if name not in _LOW and not any(part in name for part in _CUT) and abs(value) > _NEAR_ZERO:
                assert gap <= 1, name


def test_tokens(tools: Path, pairs: list[Pair], text: Path, tmp_path: Path) -> None:
    """Every token of the whole text."""
    model = pairs[-1].baseline
    # llama-tokenize keeps a file's last newline, llama-perplexity drops it.
    plain = tmp_path / "plain.txt"
    plain.write_bytes(read_text(text))
    printed = _run(tools / "llama-tokenize", "-m", model, "-f", plain, "--ids", "--no-parse-special",
                   "--no-escape", "--log-disable")  # fmt: skip
    theirs = json.loads(printed[printed.index("[") : printed.rindex("]") + 1])
    with Settings(n_ctx=512).engine(model) as engine:
        contexts = cut_contexts(engine, text)
        assert contexts.chunks == len(theirs) // 512
        np.testing.assert_array_equal(contexts.tokens.reshape(-1), theirs[: contexts.chunks * 512])
