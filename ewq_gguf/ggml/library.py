"""The native library that llama-cpp-python ships (libggml-base), through ctypes.

Quantization is ggml's own arithmetic, so that our bytes are llama-quantize's bytes. Calls release the
GIL; several threads may quantize at once. Every precondition that ggml would answer with an abort
(ggml/src/ggml.c, ggml_quantize_chunk) is checked here first and raised as an exception.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ewq_gguf.errors import EwqError, QuantizationError
from ewq_gguf.ggml.types import GGMLType

_INSTALL_HINT = "install it with `make install`, or `pip install llama-cpp-python`"
_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _TypeTraits(ctypes.Structure):
    """struct ggml_type_traits (ggml/include/ggml.h); trusted only after `_check_abi`."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )


def library_folder() -> Path:
    """The folder of llama-cpp-python's shared libraries, found without importing the package.

    Raises:
        EwqError: llama-cpp-python is not installed.
    """
    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    if override:
        return Path(override)
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise EwqError(f"llama-cpp-python is not installed, and ggml comes with it; {_INSTALL_HINT}")
    return Path(spec.origin).parent / "lib"


def _candidates(stem: str) -> list[str]:
    if sys.platform == "win32":
        return [f"{stem}.dll", f"lib{stem}.dll"]
    if sys.platform == "darwin":
        return [f"lib{stem}.dylib", f"lib{stem}.so"]
    return [f"lib{stem}.so"]


def find_library(stem: str) -> Path:
    """The path of a shared library such as "ggml-base" or "ggml-cpu" on Linux, macOS or Windows.

    Raises:
        EwqError: no such library beside llama-cpp-python's others.
    """
    folder = library_folder()
    for name in _candidates(stem):
        if (folder / name).is_file():
            return folder / name
    raise EwqError(
        f"no {_candidates(stem)[0]} in {folder}: this llama-cpp-python is too old; {_INSTALL_HINT}"
    )


class Ggml:
    """ggml's type functions. Use `ggml()` for the one shared instance."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if sys.platform == "win32":
                os.add_dll_directory(str(path.parent))
            # Read once, when the first library loads OpenMP's runtime: threads that spin at barriers starve one
            # another on a busy machine (see evaluation/native.py).
            os.environ.setdefault("GOMP_SPINCOUNT", "10000")
            lib = ctypes.CDLL(str(path))
            lib.ggml_type_name.restype = ctypes.c_char_p
            lib.ggml_blck_size.restype = ctypes.c_int64
            lib.ggml_type_size.restype = ctypes.c_size_t
            lib.ggml_version.restype = ctypes.c_char_p
            lib.ggml_commit.restype = ctypes.c_char_p
            lib.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
            lib.ggml_validate_row_data.restype = ctypes.c_bool
            lib.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
            lib.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
            lib.ggml_quantize_chunk.restype = ctypes.c_size_t
            lib.ggml_quantize_chunk.argtypes = [
                ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
                ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
            ]  # fmt: skip
            lib.ggml_quantize_init.restype = None
        except (OSError, AttributeError) as error:
            raise EwqError(f"cannot use {path}: {error}; {_INSTALL_HINT}") from error
        self._lib = lib
        self._check_abi()
        self._to_float: dict[GGMLType, Any] = {
            t: self._dequantizer(t) for t in GGMLType if not t.is_integer and t != GGMLType.F64
        }

    def _check_abi(self) -> None:
        """Compare every type's name and sizes with our table, and the traits struct with the functions."""
        for t in GGMLType:
            block, size = self._lib.ggml_blck_size(int(t)), self._lib.ggml_type_size(int(t))
            traits = self._lib.ggml_get_type_traits(int(t)).contents
            told = (block, size, self._lib.ggml_type_name(int(t)))
            if told[:2] != (t.block_size, t.block_bytes):
                raise EwqError(
                    f"{self.path} says {t.name} has blocks of {block} weights and {size} bytes, "
                    f"not {t.block_size} and {t.block_bytes}: this llama-cpp-python does not fit; {_INSTALL_HINT}"
                )
            if (traits.blck_size, traits.type_size, traits.type_name) != told:
                raise EwqError(
                    f"{self.path} lays out its type table differently from llama.cpp of llama-cpp-python 0.3.36; "
                    f"{_INSTALL_HINT}"
                )

    def _dequantizer(self, t: GGMLType) -> Any:
        address = self._lib.ggml_get_type_traits(int(t)).contents.to_float
        return _TO_FLOAT(address) if address else None

    @property
    def version(self) -> str:
        """ggml's version and commit, for example "0.25.3 (unknown)"."""
        return f"{self._lib.ggml_version().decode()} ({self._lib.ggml_commit().decode()})"

    def requires_imatrix(self, t: GGMLType) -> bool:
        """Whether quantizing to `t` needs importance weights."""
        return bool(self._lib.ggml_quantize_requires_imatrix(int(t)))

    def quantize(
        self,
        t: GGMLType,
        rows: npt.NDArray[np.float32],
        weights: npt.NDArray[np.float32] | None = None,
        out: npt.NDArray[np.uint8] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Quantize rows of weights; F32, F16 and BF16 are types like the others.

        Args:
            t: the type to write.
            rows: float32 (n_rows, row_length), C order, all finite.
            weights: importance per column, float32 (row_length,), or None.
            out: uint8 (n_rows, row bytes) to write into, or None for a new array.

        Returns:
            uint8 (n_rows, row bytes), the same bytes that llama-quantize writes.

        Raises:
            QuantizationError: a shape does not fit, or the type needs weights that are missing.
        """
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        if rows.ndim != 2:
            raise QuantizationError(f"expected rows as a 2-d array, got shape {rows.shape}")
        n_rows, row_length = rows.shape
        if t.is_integer or t == GGMLType.F64:
            raise QuantizationError(f"ggml has no quantizer for {t.name}; choose another type")
        row_bytes = t.row_bytes(row_length)
        if weights is None:
            if t.is_quantized and self.requires_imatrix(t):
                raise QuantizationError(
                    f"{t.name} cannot be made without an importance matrix; give one with --imatrix"
                )
        else:
            weights = np.ascontiguousarray(weights, dtype=np.float32)
            if weights.shape != (row_length,):
                raise QuantizationError(
                    f"the importance matrix has shape {weights.shape} for rows of {row_length} weights; "
                    "it was made from another model"
                )
        if out is None:
            out = np.empty((n_rows, row_bytes), dtype=np.uint8)
        elif out.shape != (n_rows, row_bytes) or not out.flags.c_contiguous or out.dtype != np.uint8:
            raise QuantizationError(
                f"expected an output array of shape {(n_rows, row_bytes)}, got {out.shape}"
            )
        if n_rows == 0 or row_length == 0:
            return out
        written = self._lib.ggml_quantize_chunk(
            int(t), rows.ctypes.data, out.ctypes.data, 0, n_rows, row_length,
            None if weights is None else weights.ctypes.data,
        )  # fmt: skip
        if written != out.nbytes:
            raise QuantizationError(
                f"ggml wrote {written} bytes of {t.name} where {out.nbytes} were expected"
            )
        return out

    def dequantize(
        self,
        t: GGMLType,
        data: npt.NDArray[np.uint8],
        row_length: int,
        out: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Decode rows of type `t`: uint8 (n_rows, row bytes) -> float32 (n_rows, row_length).

        Args:
            out: float32 (n_rows, row_length) to write into, or None for a new array.

        Raises:
            QuantizationError: the byte count does not fit the type and row length.
        """
        data = np.ascontiguousarray(data).view(np.uint8)
        row_bytes = t.row_bytes(row_length)
        if row_bytes == 0 or data.nbytes % row_bytes:
            raise QuantizationError(
                f"{data.nbytes} bytes are no whole number of {t.name} rows of {row_length} weights"
            )
        n_rows = data.nbytes // row_bytes
        if t == GGMLType.F32:
            return data.reshape(-1).view("<f4").reshape(n_rows, row_length)
        if out is None:
            out = np.empty((n_rows, row_length), dtype=np.float32)
        elif out.shape != (n_rows, row_length) or not out.flags.c_contiguous or out.dtype != np.float32:
            raise QuantizationError(
                f"expected an output array of shape {(n_rows, row_length)}, got {out.shape}"
            )
        convert = self._to_float.get(GGMLType(t))
        if convert is None:
            raise QuantizationError(f"ggml cannot decode {t.name}")
        if out.size:
            convert(data.ctypes.data, out.ctypes.data, out.size)
        return out

    def validate(self, t: GGMLType, data: npt.NDArray[np.uint8]) -> bool:
        """Whether no block holds NaN or infinity (ggml_validate_row_data)."""
        data = np.ascontiguousarray(data)
        return bool(self._lib.ggml_validate_row_data(int(t), data.ctypes.data, data.nbytes))


@functools.cache
def ggml() -> Ggml:
    """The shared instance; the library is loaded and checked at the first call.

    Raises:
        EwqError: the library is missing or its ABI is not the expected one.
    """
    return Ggml(find_library("ggml-base"))
