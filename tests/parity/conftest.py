"""The reference converter and a place for its files, shared by the whole run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "third_party"))

from reference_converter import ReferenceConverter  # noqa: E402


@pytest.fixture(scope="session")
def converter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReferenceConverter]:
    with pytest.MonkeyPatch.context() as patch:
        # Where transformers copies the code that stands in for a tiktoken tokenizer's own.
        patch.setenv("HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        with ReferenceConverter() as started:
            yield started
