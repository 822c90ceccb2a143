"""The memory a run may take: how it is divided, and that a run keeps to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ewq_gguf
from ewq_gguf.errors import QuantizationError
from ewq_gguf.pipeline.memory import DEFAULT_MEMORY, MIN_MEMORY, budget, peak_rss
from ewq_gguf.pipeline.quantize import CHUNK_WEIGHTS


@given(st.integers(MIN_MEMORY, 1 << 36), st.integers(1, 1024))
def test_the_parts_fit_into_the_whole(memory: int, threads: int) -> None:
    b = budget(memory, threads)
    assert 1 <= b.threads <= threads
    assert b.in_flight > b.threads
    held = b.chunk_weights * (16 * b.threads + 4 * b.in_flight)
    assert held <= memory - (150 << 20)


def test_a_large_machine_gets_all_its_threads() -> None:
    assert budget(DEFAULT_MEMORY, 2).chunk_weights == CHUNK_WEIGHTS
    assert budget(DEFAULT_MEMORY, 256).threads == 256


def test_too_little(tmp_path: Path, reference: Path) -> None:
    with pytest.raises(QuantizationError, match="at least 256 MiB"):
        ewq_gguf.convert(reference, tmp_path / "m.gguf", memory=1 << 20)


def test_the_bytes_do_not_depend_on_it(tmp_path: Path, reference: Path) -> None:
    files = []
    for memory in (MIN_MEMORY, DEFAULT_MEMORY):
        wish = ewq_gguf.Decision(type="Q5_0")
        ewq_gguf.convert(reference, tmp_path / "m.gguf", wish, memory=memory, threads=7)
        files.append((tmp_path / "m.gguf").read_bytes())
    assert files[0] == files[1]


_RUN = """
import sys
import numpy as np, gguf
from ewq_gguf.allocation.methods import uniform_plan
from ewq_gguf.checkpoint.tensor import DType, Tensor
from ewq_gguf.ggml import GGMLType
from ewq_gguf.model import Model, ModelTensor
from ewq_gguf.pipeline.convert import write_model
from pathlib import Path

class Ramp(Tensor):
    dtype = DType.BF16
    def __init__(self, rows): self.shape = (rows, 4096)
    def raw_rows(self, start, stop):
        return np.broadcast_to(np.arange(4096, dtype="<u2") % 512 + 0x3C00, (stop - start, 4096))

V = gguf.GGUFValueType
metadata = {"general.architecture": gguf.GGUFValue("llama", V.STRING), "llama.block_count": gguf.GGUFValue(1, V.UINT32)}
model = Model("llama", metadata, (ModelTensor("token_embd.weight", Ramp(int(sys.argv[2]))),), "x")
done = write_model(model, uniform_plan(model, GGMLType.Q8_0), Path(sys.argv[1]), threads=2, memory=256 << 20)
print(done.peak_rss)
"""


@pytest.mark.skipif(peak_rss() is None, reason="the system does not tell")
def test_one_huge_tensor_stays_within(tmp_path: Path) -> None:
    peaks = []
    for rows in (4_000, 40_000):
        command = [sys.executable, "-c", _RUN, str(tmp_path / "m.gguf"), str(rows)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peaks.append(int(said))
    assert peaks[1] < 256 << 20
    assert peaks[1] < 1.15 * peaks[0]
