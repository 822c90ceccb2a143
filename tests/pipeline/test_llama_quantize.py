"""Tensor bytes equal to llama-quantize's: every preset, every single type, with and without importance matrix.

pytest -m parity tests/pipeline
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

import ewq_gguf
from ewq_gguf.allocation.presets import PRESETS
from ewq_gguf.calibration.imatrix import ImportanceMatrix
from ewq_gguf.errors import EwqError
from ewq_gguf.pipeline.verify import open_gguf
from tests.pipeline.llama_quantize import digest, metadata, quantize, run_tool, tensors, tool
from tests.pipeline.odd_model import write_imatrix, write_odd_model

# The preset whose base type is the single type, for llama-quantize --pure.
SINGLE = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "Q4_0": "Q4_0", "Q4_1": "Q4_1", "Q5_0": "Q5_0", "Q5_1": "Q5_1",
    "Q8_0": "Q8_0", "Q2_K": "Q2_K", "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "Q6_K": "Q6_K",
    "IQ2_XXS": "IQ2_XXS", "IQ2_XS": "IQ2_XS", "IQ2_S": "IQ2_M", "IQ3_XXS": "IQ3_XXS", "IQ3_S": "IQ3_S",
    "IQ1_S": "IQ1_S", "IQ1_M": "IQ1_M", "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS", "TQ1_0": "TQ1_0", "TQ2_0": "TQ2_0",
    "MXFP4": "MXFP4_MOE", "Q1_0": "Q1_0", "Q2_0": "Q2_0",
}  # fmt: skip
# Without weights for the embedding ggml stops the whole process (an assertion) where we refuse.
HARD = ("IQ2_XXS", "IQ2_XS", "IQ1_S")


@dataclass(frozen=True)
class Source:
    """What both sides start from; the checkpoint is the GGUF itself where there is no other."""

    checkpoint: Path
    gguf: Path
    imatrix: Path
    matrix: ImportanceMatrix
    full_imatrix: Path
    full_matrix: ImportanceMatrix


def _source(checkpoint: Path, gguf: Path, folder: Path) -> Source:
    some, full = folder / "some.imatrix", folder / "full.imatrix"
    matrix = write_imatrix(gguf, some)
    full_matrix = write_imatrix(gguf, full, embedding=True)
    return Source(checkpoint, gguf, some, matrix, full, full_matrix)


@pytest.fixture(scope="session")
def sources(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    folder = tmp_path_factory.mktemp("reference")
    baseline = folder / "bf16.gguf"
    ewq_gguf.convert(reference, baseline, ewq_gguf.Decision(type="bf16"))
    odd = tmp_path_factory.mktemp("odd")
    model = write_odd_model(odd / "odd.gguf")
    return {"reference": _source(reference, baseline, folder), "odd": _source(model, model, odd)}


def both(
    source: Source, tmp_path: Path, name: str, preset: str, *, pure: bool, imatrix: bool
) -> tuple[object, object]:
    """What ours and theirs make: tensors and, between two GGUF files, metadata; or "refused"."""
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    hard = pure and name in HARD
    matrix = (source.full_matrix if hard else source.matrix) if imatrix else None
    file = (source.full_imatrix if hard else source.imatrix) if imatrix else None
    refusal = _refusal(source, ours, ewq_gguf.Decision(type=name, pure=pure, imatrix=file))
    # llama-quantize would abort where a quantizer asserts; where every row falls back, both go on.
    if hard and matrix is None and refusal:
        return ("refused" if "importance matrix" in refusal else refusal), "refused"
    made = quantize(source.gguf, theirs, PRESETS[preset].llama_ftype, pure=pure, imatrix=matrix)

    def content(path: Path) -> object:
        if source.checkpoint != source.gguf or pure:
            return tensors(path)
        return tensors(path), metadata(open_gguf(path), without=("ewq.", "quantize.imatrix."))

    return "refused" if refusal else content(ours), content(theirs) if made else "refused"


def _refusal(source: Source, target: Path, wish: ewq_gguf.Decision) -> str:
    try:
        ewq_gguf.convert(source.checkpoint, target, wish, threads=2)
    except EwqError as error:
        return str(error)
    return ""


@pytest.mark.parity
@pytest.mark.parametrize("imatrix", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("model", ["reference", "odd"])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset: str, model: str, imatrix: bool, sources: dict[str, Source], tmp_path: Path) -> None:
    ours, theirs = both(sources[model], tmp_path, preset, preset, pure=False, imatrix=imatrix)
    assert ours == theirs


@pytest.mark.parity
@pytest.mark.parametrize("imatrix", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("model", ["reference", "odd"])
@pytest.mark.parametrize("kind", SINGLE)
def test_single_types(
    kind: str, model: str, imatrix: bool, sources: dict[str, Source], tmp_path: Path
) -> None:
    ours, theirs = both(sources[model], tmp_path, kind, SINGLE[kind], pure=True, imatrix=imatrix)
    assert ours == theirs


@pytest.mark.parity
def test_the_program_itself(sources: dict[str, Source], tmp_path: Path) -> None:
    if tool("llama-quantize") is None:
        pytest.skip("llama-quantize is not built; run `make tools`")
    for source in sources.values():
        ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
        run_tool("--imatrix", source.imatrix, source.gguf, theirs, "Q3_K_M", 2)
        ewq_gguf.convert(source.checkpoint, ours, ewq_gguf.Decision(type="Q3_K_M", imatrix=source.imatrix))
        assert tensors(ours) == tensors(theirs)
        mine, its = metadata(open_gguf(ours)), metadata(open_gguf(theirs))
        recorded = {key: value for key, value in its.items() if key.startswith("quantize.imatrix.")}
        assert len(recorded) == 4
        assert {key: mine.get(key) for key in recorded} == recorded


@pytest.mark.parity
def test_leaving_the_output_alone(sources: dict[str, Source], tmp_path: Path) -> None:
    source = sources["odd"]
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    ewq_gguf.convert(source.gguf, ours, ewq_gguf.Decision(type="Q4_K_M", keep_output=True))
    assert quantize(source.gguf, theirs, PRESETS["Q4_K_M"].llama_ftype, quantize_output=False)
    assert tensors(ours) == tensors(theirs)


@pytest.mark.parity
def test_requantizing(sources: dict[str, Source], tmp_path: Path) -> None:
    first, ours, theirs = (tmp_path / f"{name}.gguf" for name in ("first", "ours", "theirs"))
    ewq_gguf.convert(sources["reference"].gguf, first, ewq_gguf.Decision(type="Q8_0"))
    ewq_gguf.convert(first, ours, ewq_gguf.Decision(type="Q4_K_M", allow_requantize=True))
    assert quantize(first, theirs, PRESETS["Q4_K_M"].llama_ftype, allow_requantize=True)
    assert tensors(ours) == tensors(theirs)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("odd-alone")
    model = write_odd_model(folder / "odd.gguf")
    return _source(model, model, folder)


@pytest.mark.parametrize("imatrix", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("preset", ["Q4_0", "Q8_0", "Q4_K_M", "Q3_K_L", "Q6_K", "TQ2_0", "F16"])
def test_some_presets_at_once(preset: str, imatrix: bool, odd: Source, tmp_path: Path) -> None:
    ours, theirs = both(odd, tmp_path, preset, preset, pure=False, imatrix=imatrix)
    assert ours == theirs


@pytest.mark.parametrize("kind", ["Q5_0", "Q5_K", "MXFP4", "BF16"])
def test_some_types_at_once(kind: str, odd: Source, tmp_path: Path) -> None:
    ours, theirs = both(odd, tmp_path, kind, SINGLE[kind], pure=True, imatrix=True)
    assert ours == theirs


def _multiplies_and_adds_at_once() -> bool:
    """Fused operations round once where others round twice, so other processors may give other bytes."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and " fma " in cpuinfo.read_text()


# What llama-quantize (the program) made of the reference model in bf16, and of the odd model.
DIGESTS = {
    ("reference", "Q8_0", False): "e2a1039b0760b5cb0bab60971032d520b047994da9d077c6f27a38aaa3c208f8",
    ("reference", "Q4_0", False): "39732dee80e835c8811236fac31f886f15a9a3b933ef1e5245eefde0317f3d6d",
    ("odd", "Q4_K_M", False): "a8cb659dc42a652a49bad1c0b9fd8725450c56386c1bbb5756a3b2eb77ebeeb8",
    ("odd", "Q4_K_M", True): "0632b7c27471488c72524c3109367016e1bc19d40975f75f0f4cabf1486e6269",
    ("odd", "Q5_1", False): "1e60f7a045ced053f5bda1fa8b38f8495e1a3df074b968f04283c41342e6bcd2",
}


@pytest.mark.skipif(not _multiplies_and_adds_at_once(), reason="recorded on a processor with FMA")
@pytest.mark.parametrize(("model", "preset", "imatrix"), DIGESTS)
def test_pinned_digests(
    model: str, preset: str, imatrix: bool, odd: Source, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    wish = ewq_gguf.Decision(type=preset, imatrix=odd.imatrix if imatrix else None)
    ewq_gguf.convert(reference if model == "reference" else odd.gguf, out, wish)
    assert digest(out) == DIGESTS[model, preset, imatrix]
