"""ggml, as llama-cpp-python ships it: types, quantize, dequantize, validate."""

from ewq_gguf.ggml.library import Ggml, find_library, ggml, library_folder
from ewq_gguf.ggml.types import REQUIRES_IMATRIX, GGMLType

__all__ = ["REQUIRES_IMATRIX", "GGMLType", "Ggml", "find_library", "ggml", "library_folder"]
