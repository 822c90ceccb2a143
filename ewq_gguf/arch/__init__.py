"""Model families: config.json to GGUF metadata, Hugging Face tensors to GGUF tensors."""

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.registry import family_for, supported_architectures

__all__ = ["Family", "family_for", "supported_architectures"]
