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
    from ewq_gguf.allocation.targets import Target
    from ewq_gguf.api import analyze, convert, plan, preview
    from ewq_gguf.decision import Decision
    from ewq_gguf.evaluation.engine import Settings
    from ewq_gguf.evaluation.evaluate import evaluate
    from ewq_gguf.pipeline.optimize import Study
    from ewq_gguf.pipeline.split import Split
    from ewq_gguf.series import ladder, parse_rung

# Loaded when first asked for: `import ewq_gguf` and `ewq-gguf --help` stay quick. Name -> module.
_LAZY = {
    "Decision": "decision",
    "Settings": "evaluation.engine",
    "Split": "pipeline.split",
    "Study": "pipeline.optimize",
    "Target": "allocation.targets",
    "analyze": "api",
    "convert": "api",
    "evaluate": "evaluation.evaluate",
    "ladder": "series",
    "parse_rung": "series",
    "plan": "api",
    "preview": "api",
}

__all__ = [
    "CheckpointError",
    "Decision",
    "EvaluationError",
    "EwqError",
    "PlanError",
    "QuantizationError",
    "Settings",
    "Split",
    "Study",
    "Target",
    "TokenizerError",
    "UnsupportedModelError",
    "__version__",
    "analyze",
    "convert",
    "evaluate",
    "ladder",
    "parse_rung",
    "plan",
    "preview",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"ewq_gguf.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
