"""Convert a Hugging Face checkpoint to a mixed-precision GGUF file, without torch, and prove what it cost."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ewq_gguf._version import __version__
from ewq_gguf.errors import (
    CheckpointError,
    EvaluationError,
    EwqError,
    PlanError,
    QuantizationError,
    TokenizerError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from ewq_gguf.api import Decision, analyze, convert, plan, preview
    from ewq_gguf.pipeline.split import Split

# Loaded when first asked for: `import ewq_gguf` and `ewq-gguf --help` stay quick.
_LAZY = ("Decision", "Split", "analyze", "convert", "plan", "preview")

__all__ = [
    "CheckpointError",
    "Decision",
    "EvaluationError",
    "EwqError",
    "PlanError",
    "QuantizationError",
    "Split",
    "TokenizerError",
    "UnsupportedModelError",
    "__version__",
    "analyze",
    "convert",
    "plan",
    "preview",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module("ewq_gguf.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
