"""Every family against llama.cpp's own converter: metadata, tensor bytes, and logits.

EWQ_REFERENCE_PYTHON=/path/to/python pytest -m parity tests/parity
"""

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
from tests.parity.runtime import embeddings, logits
from tests.tiny.build import build
from tests.tiny.case import Case
from tests.tiny.cases import CASES

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_same_file_and_logits_as_the_reference(
    case: Case, tmp_path: Path, converter: ReferenceConverter
) -> None:
    folder = build(case, tmp_path / case.name)
    model = load_model(folder, tokenizer=TokenizerMode.CONVERTER)
    for kind in case.types:
        ours, reference = tmp_path / f"ours-{kind}.gguf", tmp_path / f"reference-{kind}.gguf"
        converter.convert(folder, reference, kind, pre=case.pre)
        write_model(model, uniform_plan(model, GGMLType[kind.upper()]), ours, threads=1)
        lines = differences(ours, reference)
        known = tuple(f"metadata {key}: " for key in case.differs)
        assert [line for line in lines if not line.startswith(known or ("\0",))] == []
        assert len(lines) == len(case.differs), "a difference that the case explains is gone"
    kind = case.types[0]
    run = embeddings if case.embeds else logits
    produced = run(tmp_path / f"ours-{kind}.gguf")
    assert np.isfinite(produced).all()
    assert produced.std() > 0.01
    if case.loads:
        np.testing.assert_allclose(produced, run(tmp_path / f"reference-{kind}.gguf"), atol=1e-3)
