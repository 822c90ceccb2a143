"""Whether a wrong header or wrong values are seen."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from client_check.judge import header_difference, read_header, reference_values, values_difference

from ewq_gguf.api import convert
from ewq_gguf.decision import Decision


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, reference: Path) -> Path:
    path = tmp_path_factory.mktemp("judge") / "q8_0.gguf"
    convert(reference, path, Decision(type="Q8_0"), threads=1)
    return path


def test_the_header_equals_itself_and_every_change_is_named(file: Path) -> None:
    header = read_header(file)
    assert header_difference(header, copy.deepcopy(header)) == ""
    other = copy.deepcopy(header)
    other["metadata"]["llama.block_count"] = "13"
    assert header_difference(header, other) == "llama.block_count differs"
    other = copy.deepcopy(header)
    other["metadata"]["tokenizer.ggml.tokens"][7] += "x"
    assert header_difference(header, other) == "tokenizer.ggml.tokens differs"
    other = copy.deepcopy(header)
    del other["metadata"]["general.name"]
    assert header_difference(header, other) == "general.name is missing"
    for key, value in (("offset", "32"), ("type", 2), ("shape", ["256"])):
        other = copy.deepcopy(header)
        other["tensors"][3][key] = value
        assert header_difference(header, other) == f"{header['tensors'][3]['name']} differs"
    other["tensors"].reverse()
    assert "order" in header_difference(header, other)


def test_floats_may_be_spelled_as_another_language_does(file: Path) -> None:
    header = read_header(file)
    other = copy.deepcopy(header)
    other["metadata"]["llama.rope.freq_base"] = "10000"
    assert header_difference(header, other) == ""


def test_values_are_held_to_sixteen_bits(file: Path, tmp_path: Path) -> None:
    values = reference_values(file)
    found = tmp_path / "values.npz"
    np.savez(found, **{name: array.astype(np.float16) for name, array in values.items()})
    assert values_difference(values, found) == ""
    name = "blk.3.ffn_down.weight"
    for spoil in (lambda a: a * 1.01, lambda a: a[:-1], lambda a: a + np.nan):
        np.savez(found, **{**values, name: spoil(values[name])})
        assert values_difference(values, found).startswith(name)
    np.savez(found, **{key: array for key, array in values.items() if key != name})
    assert values_difference(values, found) == f"{name} is missing"
