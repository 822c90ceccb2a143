"""The families before and beside Llama against llama.cpp's own converter: metadata, tensor bytes, and logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from compare_gguf import differences
from reference_converter import ReferenceConverter

from ewq_gguf.allocation.methods import uniform_plan
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.pipeline.convert import write_model
from ewq_gguf.pipeline.source import load_model
from ewq_gguf.vocab import TokenizerMode
from tests.parity.runtime import logits
from tests.tiny.build import build
from tests.tiny.vocabularies import PRE
from tests.tiny_classic import CLASSIC_CASES, ClassicCase, reference_copy
from tests.tiny_hybrid import HYBRID_CASES

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("case", [*CLASSIC_CASES, *HYBRID_CASES], ids=lambda case: case.name)
def test_same_file_and_logits_as_the_reference(
    case: ClassicCase, tmp_path: Path, converter: ReferenceConverter
) -> None:
    model = load_model(build(case, tmp_path / "ours" / case.name), tokenizer=TokenizerMode.CONVERTER)
    spelled = build(reference_copy(case), tmp_path / "reference" / case.name)
    for kind in case.types:
        ours, reference = tmp_path / f"ours-{kind}.gguf", tmp_path / f"reference-{kind}.gguf"
        write_model(model, uniform_plan(model, GGMLType[kind.upper()]), ours, threads=1)
        if case.reference is None:
            with pytest.raises(RuntimeError):
                converter.convert(spelled, reference, kind, pre=PRE)
            continue
        converter.convert(spelled, reference, kind, pre=PRE)
        expected = [f"metadata {key}: reference has none" for key in case.more]
        expected += [f"tensor {name}: F32 [" for name in case.exact if kind != "f32"]
        found = differences(ours, reference)
        assert [line for line in found if not line.startswith(tuple(expected))] == []
        assert len(found) == len(expected), "a difference that the case explains is gone"
    produced = logits(tmp_path / f"ours-{case.types[0]}.gguf")
    assert np.isfinite(produced).all()
    assert produced.std() > 0.01
    if case.reference is not None and case.loads:
        np.testing.assert_allclose(produced, logits(tmp_path / f"reference-{case.types[0]}.gguf"), atol=1e-3)
