"""The binding: table and library agree, arithmetic is ggml's, and its aborts never happen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ewq_gguf.errors import EwqError, PlanError, QuantizationError
from ewq_gguf.ggml import REQUIRES_IMATRIX, Ggml, GGMLType, ggml

QUANTIZERS = [t for t in GGMLType if not t.is_integer and t is not GGMLType.F64]


def gaussian(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(rows, columns)).astype(np.float32)


@pytest.mark.parametrize("kind", QUANTIZERS, ids=lambda t: t.name)
def test_round_trip_error_shrinks_with_bits(kind: GGMLType) -> None:
    rows = gaussian(4, 512)
    data = ggml().quantize(kind, rows, np.ones(512, dtype=np.float32))
    assert data.shape == (4, kind.row_bytes(512))
    back = ggml().dequantize(kind, data, 512)
    error = float(((back - rows) ** 2).mean())
    # Rate-distortion bound of a Gaussian at this rate, and a generous factor above it.
    assert error < 2.5 * 4.0 ** (0.6 - kind.bpw * 0.55) or kind.bpw < 2.2
    assert ggml().validate(kind, data)


def test_floats_are_exact_where_they_can_be() -> None:
    rows = gaussian(3, 7)
    assert np.array_equal(ggml().dequantize(GGMLType.F32, ggml().quantize(GGMLType.F32, rows), 7), rows)
    f16 = ggml().dequantize(GGMLType.F16, ggml().quantize(GGMLType.F16, rows), 7)
    assert np.array_equal(f16, rows.astype(np.float16).astype(np.float32))


def test_imatrix_types_agree_with_the_library() -> None:
    assert {t for t in QUANTIZERS if ggml().requires_imatrix(t)} == set(REQUIRES_IMATRIX)
    with pytest.raises(QuantizationError, match="importance matrix"):
        ggml().quantize(GGMLType.IQ2_XXS, gaussian(1, 256))


def test_what_ggml_would_abort_on_is_refused() -> None:
    with pytest.raises(PlanError, match="whose blocks hold 256"):
        ggml().quantize(GGMLType.Q4_K, gaussian(2, 100))
    with pytest.raises(QuantizationError, match="another model"):
        ggml().quantize(GGMLType.Q4_K, gaussian(2, 256), np.ones(255, dtype=np.float32))
    with pytest.raises(QuantizationError, match="2-d"):
        ggml().quantize(GGMLType.Q4_K, np.ones(256, dtype=np.float32))
    with pytest.raises(QuantizationError, match="no quantizer"):
        ggml().quantize(GGMLType.I32, gaussian(2, 256))


def test_empty_input() -> None:
    assert ggml().quantize(GGMLType.Q8_0, np.empty((0, 32), dtype=np.float32)).shape == (0, 34)


def test_a_library_that_is_not_ggml(tmp_path: Path) -> None:
    fake = tmp_path / "libggml-base.so"
    fake.write_bytes(b"not a library")
    with pytest.raises(EwqError, match="cannot use"):
        Ggml(fake)


def test_a_missing_library_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ewq_gguf.ggml import find_library

    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    with pytest.raises(EwqError, match="too old"):
        find_library("ggml-base")
