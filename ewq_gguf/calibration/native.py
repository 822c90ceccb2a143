"""A guarded view of ggml's graph nodes, as the evaluation callback hands them out.

The callback receives `struct ggml_tensor *` (ggml/include/ggml.h), whose layout is no public promise. Before
a single field is trusted, `NodeReader` builds a matrix product and an expert product with the library's own
functions and compares every field it will use with what it asked for; at each node the name and the element
size are compared again. A library that lays the structure out differently is refused with one sentence.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ewq_gguf.errors import EvaluationError

_MAX_DIMS = 4
_MAX_SRC = 10
_HINT = "the installed llama-cpp-python does not fit this version; reinstall the one that it was pinned to"


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class _Node(ctypes.Structure):
    """struct ggml_tensor of ggml 0.25."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * _MAX_DIMS),
        ("nb", ctypes.c_size_t * _MAX_DIMS),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * _MAX_SRC),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


@dataclass(frozen=True)
class Node:
    """One tensor of a running graph; `ne` and `nb` in ggml's order, innermost first."""

    address: int
    name: str
    op: str
    type: str
    ne: tuple[int, ...]
    nb: tuple[int, ...]
    sources: tuple[int, ...]
    buffer: int


class NodeReader:
    """Reads graph nodes through the ggml-base library.

    Raises:
        EvaluationError: the library's structures are not laid out as expected.
    """

    def __init__(self, library: Path) -> None:
        self.path = library
        try:
            self._lib = _declare(ctypes.CDLL(str(library)))
        except (OSError, AttributeError) as error:
            raise EvaluationError(
                f"cannot look into running models with {library}: {error}; {_HINT}"
            ) from error
        self._self_test()

    def node(self, address: int) -> Node:
        """The node at `address`, which must come from a callback or from another node's `sources`.

        Raises:
            EvaluationError: what the fields say differs from what the library says.
        """
        raw = _Node.from_address(address)
        name = self._lib.ggml_get_name(address)
        if raw.name != name or self._lib.ggml_element_size(address) != self._lib.ggml_type_size(raw.type):
            raise EvaluationError(f"a graph node of {self.path} cannot be read; {_HINT}")
        sources: list[int] = []
        for source in raw.src:
            if not source:
                break
            sources.append(source)
        return Node(
            address,
            (name or b"").decode(errors="replace"),
            (self._lib.ggml_op_name(raw.op) or b"").decode(),
            (self._lib.ggml_type_name(raw.type) or b"").decode(),
            tuple(raw.ne),
            tuple(raw.nb),
            tuple(sources),
            raw.buffer or 0,
        )

    def read(self, node: Node, dtype: type[np.generic]) -> npt.NDArray[Any]:
        """The node's elements as an array of shape ne[::-1], strides kept; a view if it lies in host memory.

        A view is valid only until the callback returns.

        Raises:
            EvaluationError: the elements are not of `dtype`, or not laid out as the strides say.
        """
        n_bytes = self._lib.ggml_nbytes(node.address)
        itemsize = np.dtype(dtype).itemsize
        extent = itemsize + sum((n - 1) * stride for n, stride in zip(node.ne, node.nb))
        if node.nb[0] != itemsize or n_bytes != extent or not node.buffer:
            raise EvaluationError(
                f"the activations {node.name} are not laid out as {np.dtype(dtype)} rows; {_HINT}"
            )
        if self._lib.ggml_backend_buffer_is_host(node.buffer):
            memory: Any = (ctypes.c_char * n_bytes).from_address(self._lib.ggml_get_data(node.address))
        else:
            memory = ctypes.create_string_buffer(n_bytes)
            self._lib.ggml_backend_tensor_get(node.address, memory, 0, n_bytes)
        return np.ndarray(node.ne[::-1], dtype=dtype, buffer=memory, strides=node.nb[::-1])

    def _self_test(self) -> None:
        lib = self._lib
        context = lib.ggml_init(_InitParams(1 << 16, None, False))
        if not context:
            raise EvaluationError(f"{self.path} gave no memory for its self-test; {_HINT}")
        try:
            f32, i32 = 0, 26
            experts = lib.ggml_new_tensor_3d(context, f32, 32, 5, 3)
            plain = lib.ggml_new_tensor_2d(context, f32, 32, 7)
            routed = lib.ggml_new_tensor_3d(context, f32, 32, 2, 4)
            ids = lib.ggml_new_tensor_2d(context, i32, 2, 4)
            weight = lib.ggml_new_tensor_2d(context, f32, 32, 6)
            lib.ggml_set_name(weight, b"blk.0.weight")
            product = lib.ggml_mul_mat(context, weight, plain)
            chosen = lib.ggml_mul_mat_id(context, experts, routed, ids)
            seen = [self.node(address) for address in (weight, plain, product, chosen, ids)]
            facts = [
                seen[0].name == "blk.0.weight",
                seen[0].ne == (32, 6, 1, 1) and seen[0].nb == (4, 128, 768, 768),
                seen[1].type == "f32" and seen[4].type == "i32",
                seen[2].op == "MUL_MAT" and seen[2].sources == (weight, plain),
                seen[3].op == "MUL_MAT_ID" and seen[3].sources == (experts, routed, ids),
                seen[2].ne == (6, 7, 1, 1) and seen[3].ne == (5, 2, 4, 1),
                _Node.from_address(plain).data == lib.ggml_get_data(plain),
                not _Node.from_address(plain).buffer and not _Node.from_address(plain).view_src,
            ]
        finally:
            lib.ggml_free(context)
        if not all(facts):
            raise EvaluationError(f"{self.path} lays out its graph nodes differently; {_HINT}")


def _declare(lib: ctypes.CDLL) -> ctypes.CDLL:
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "ggml_init": (pointer, [_InitParams]),
        "ggml_free": (None, [pointer]),
        "ggml_new_tensor_2d": (pointer, [pointer, ctypes.c_int, number, number]),
        "ggml_new_tensor_3d": (pointer, [pointer, ctypes.c_int, number, number, number]),
        "ggml_mul_mat": (pointer, [pointer, pointer, pointer]),
        "ggml_mul_mat_id": (pointer, [pointer, pointer, pointer, pointer]),
        "ggml_set_name": (pointer, [pointer, ctypes.c_char_p]),
        "ggml_get_name": (ctypes.c_char_p, [pointer]),
        "ggml_get_data": (pointer, [pointer]),
        "ggml_nbytes": (size, [pointer]),
        "ggml_element_size": (size, [pointer]),
        "ggml_type_size": (size, [ctypes.c_int]),
        "ggml_type_name": (ctypes.c_char_p, [ctypes.c_int]),
        "ggml_op_name": (ctypes.c_char_p, [ctypes.c_int]),
        "ggml_backend_buffer_is_host": (ctypes.c_bool, [pointer]),
        "ggml_backend_tensor_get": (None, [pointer, pointer, size, size]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib
