"""Row views against the same thing done with plain numpy on whole arrays, for every range of rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ewq_gguf.arch.views import (
    ConcatRows,
    PadRows,
    Reshape,
    SliceRows,
    TakeColumns,
    Transpose,
    permute_heads,
    plus_one,
    stack,
    take,
)
from ewq_gguf.checkpoint.reading import Scratch
from ewq_gguf.checkpoint.tensor import AnyArray, ArrayTensor, DType, Tensor
from ewq_gguf.errors import UnsupportedModelError

Array = npt.NDArray[np.float32]


def numbered(*shape: int) -> Array:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def check(view: Tensor, expected: npt.NDArray[np.generic]) -> int:
    """Shape, and every range of rows; how many there were."""
    assert view.shape == expected.shape
    rows = expected.reshape(-1, expected.shape[-1])
    assert view.n_rows == len(rows)
    scratch = Scratch()
    for start in range(len(rows) + 1):
        for stop in range(start, len(rows) + 1):
            for found in (view.raw_rows(start, stop), view.borrow_rows(start, stop, scratch)):
                assert found.shape == (stop - start, rows.shape[1])
                np.testing.assert_array_equal(found, rows[start:stop])
    return (len(rows) + 1) * (len(rows) + 2) // 2


class Lent(ArrayTensor):
    """Rows that are only there until the next ones are read, where they may be."""

    def borrow_rows(self, start: int, stop: int, scratch: Scratch) -> AnyArray:
        rows = self.raw_rows(start, stop)
        lent = scratch.take(rows.nbytes).view(rows.dtype).reshape(rows.shape)
        lent[...] = rows
        return lent


def tensor(array: Array) -> Tensor:
    return Lent(array)


CASES: dict[str, tuple[Callable[[], Tensor], Callable[[], npt.NDArray[np.generic]]]] = {
    "reshape split rows": (
        lambda: Reshape(tensor(numbered(4, 6)), (8, 3)),
        lambda: numbered(4, 6).reshape(8, 3),
    ),
    "reshape joined rows": (
        lambda: Reshape(tensor(numbered(6, 4)), (3, 8)),
        lambda: numbered(6, 4).reshape(3, 8),
    ),
    "reshape uneven rows": (
        lambda: Reshape(tensor(numbered(4, 6)), (3, 8)),
        lambda: numbered(4, 6).reshape(3, 8),
    ),
    "slice a matrix": (lambda: SliceRows(tensor(numbered(7, 3)), 2, 6), lambda: numbered(7, 3)[2:6]),
    "slice a stack": (lambda: SliceRows(tensor(numbered(5, 2, 3)), 1, 4), lambda: numbered(5, 2, 3)[1:4]),
    "slice a vector": (lambda: SliceRows(tensor(numbered(9)), 2, 7), lambda: numbered(9)[2:7]),
    "join matrices": (
        lambda: ConcatRows([tensor(numbered(n, 3)) for n in (2, 0, 4, 1)]),
        lambda: np.concatenate([numbered(n, 3) for n in (2, 0, 4, 1)]),
    ),
    "join vectors": (
        lambda: ConcatRows([tensor(numbered(n)) for n in (2, 4)]),
        lambda: np.concatenate([numbered(n) for n in (2, 4)]),
    ),
    "stack": (
        lambda: stack([tensor(numbered(3, 2) + i) for i in range(3)]),
        lambda: np.stack([numbered(3, 2) + i for i in range(3)]),
    ),
    "transpose": (lambda: Transpose(tensor(numbered(5, 3))), lambda: numbered(5, 3).T),
    "transpose a stack": (
        lambda: Transpose(tensor(numbered(3, 4, 2))),
        lambda: numbered(3, 4, 2).transpose(0, 2, 1),
    ),
    "take odd rows of a stack": (
        lambda: take(tensor(numbered(3, 6, 2)), slice(1, None, 2)),
        lambda: numbered(3, 6, 2)[:, 1::2],
    ),
    "take listed rows": (
        lambda: take(tensor(numbered(5, 2)), np.array([4, 0, 0, 3])),
        lambda: numbered(5, 2)[[4, 0, 0, 3]],
    ),
    "take elements": (lambda: take(tensor(numbered(6)), slice(1, 5, 2)), lambda: numbered(6)[1:5:2]),
    "take columns": (
        lambda: TakeColumns(tensor(numbered(4, 5)), np.array([4, 1, 1])),
        lambda: numbered(4, 5)[:, [4, 1, 1]],
    ),
    "pad": (
        lambda: PadRows(tensor(numbered(3, 2)), 5),
        lambda: np.concatenate([numbered(3, 2), np.zeros((2, 2), dtype=np.float32)]),
    ),
    "plus one": (lambda: plus_one(tensor(numbered(4, 3))), lambda: numbered(4, 3) + 1),
    "permute heads": (
        lambda: permute_heads(tensor(numbered(12, 2)), 3),
        lambda: numbered(12, 2).reshape(3, 2, 2, 2).swapaxes(1, 2).reshape(12, 2),
    ),
    "permute a bias": (
        lambda: permute_heads(tensor(numbered(12)), 2),
        lambda: numbered(12).reshape(2, 2, 3).swapaxes(1, 2).reshape(12),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_view_gives_the_rows_of_the_whole_transform(name: str) -> None:
    view, expected = CASES[name]
    assert check(view(), expected()) > 2


@given(
    n=st.integers(1, 9),
    m=st.integers(1, 7),
    band=st.integers(1, 64),
    data=st.data(),
)
@settings(max_examples=50, deadline=None)
def test_transpose_is_the_same_for_every_band(n: int, m: int, band: int, data: st.DataObject) -> None:
    view = Transpose(tensor(numbered(2, n, m)))
    view._BAND_BYTES = band
    start = data.draw(st.integers(0, 2 * m))
    stop = data.draw(st.integers(start, 2 * m))
    expected = numbered(2, n, m).transpose(0, 2, 1).reshape(-1, n)
    np.testing.assert_array_equal(view.raw_rows(start, stop), expected[start:stop])


def test_rearranging_keeps_the_storage_dtype() -> None:
    codes = ArrayTensor(np.arange(12, dtype="<u2").reshape(6, 2), DType.BF16)
    for view in (take(codes, slice(0, 4)), permute_heads(codes, 1), Transpose(codes), stack([codes, codes])):
        assert view.dtype is DType.BF16


def test_plus_one_rounds_as_its_source_does() -> None:
    values = np.array([[2.0**-11, 2.0**-9]], dtype=np.float16)
    assert plus_one(ArrayTensor(values)).rows(0, 1).tolist() == [[1.0, 1.0 + 2.0**-9]]
    assert plus_one(ArrayTensor(values.astype(np.float32))).rows(0, 1)[0, 0] == np.float32(1.0 + 2.0**-11)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Reshape(tensor(numbered(4, 3)), (5, 2)),
        lambda: SliceRows(tensor(numbered(4, 3)), 2, 5),
        lambda: ConcatRows([tensor(numbered(2, 3)), tensor(numbered(2, 4))]),
        lambda: permute_heads(tensor(numbered(10, 2)), 3),
        lambda: Transpose(tensor(numbered(4))),
    ],
)
def test_shapes_that_do_not_fit_are_refused(make: Callable[[], Tensor]) -> None:
    with pytest.raises(UnsupportedModelError):
        make()
