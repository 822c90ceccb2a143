"""The exception tree. Each message says what is wrong, where, and what to do about it."""

from __future__ import annotations


class EwqError(Exception):
    """Base of everything this package raises on purpose; the command line prints it as one sentence."""


class CheckpointError(EwqError):
    """A checkpoint, shard, index or GGUF file is damaged, inconsistent or unreadable."""


class UnsupportedModelError(EwqError):
    """The checkpoint is sound, but of a family, dtype or layout that cannot be converted."""


class TokenizerError(EwqError):
    """Tokenizer files are missing, damaged or of an unknown kind."""


class PlanError(EwqError):
    """A plan, pattern, type name or size target cannot be honoured."""


class QuantizationError(EwqError):
    """ggml refused, or the result of a quantization is not valid."""


class EvaluationError(EwqError):
    """A model cannot be measured: it does not load, does not fit its baseline, or yields no numbers."""
