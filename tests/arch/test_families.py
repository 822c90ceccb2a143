"""Tiny checkpoints of every family still give the bytes that agreed with the reference converter's.

The digests were taken when `make parity` found no difference; see tests/tiny/digests.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ewq_gguf.arch import supported_architectures
from ewq_gguf.arch.registry import architecture_name
from tests.tiny.case import Case
from tests.tiny.cases import CASES
from tests.tiny.digests import FILE, digest

PINNED: dict[str, str] = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_conversion_is_what_agreed_with_the_reference(case: Case, tmp_path: Path) -> None:
    assert digest(case, tmp_path) == PINNED[case.name]


def test_every_pinned_digest_belongs_to_a_case() -> None:
    assert set(PINNED) == {case.name for case in CASES}


def test_every_case_names_a_supported_architecture() -> None:
    for case in CASES:
        assert architecture_name(case.config) in supported_architectures()
