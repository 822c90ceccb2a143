"""Checkpoints as tensor sources: names, shapes, dtypes, and rows on demand."""

from ewq_gguf.checkpoint.folder import Checkpoint, open_checkpoint
from ewq_gguf.checkpoint.tensor import ArrayTensor, DType, Tensor

__all__ = ["ArrayTensor", "Checkpoint", "DType", "Tensor", "open_checkpoint"]
