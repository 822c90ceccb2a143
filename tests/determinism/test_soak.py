"""The large matrix: the reference model, every type and preset, many thread counts, interrupted and resumed.

Minutes of work; `make soak`.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest

import ewq_gguf
from ewq_gguf.allocation.presets import PRESETS
from ewq_gguf.calibration.imatrix import Entry, ImportanceMatrix
from ewq_gguf.calibration.imatrix_file import save_imatrix
from ewq_gguf.ggml import GGMLType, ggml
from ewq_gguf.pipeline.source import load_model

pytestmark = pytest.mark.slow

_TYPES = sorted(t.name for t in GGMLType if not t.is_integer and t is not GGMLType.F64)
_WEIGHTED = sorted(
    t.name for t in GGMLType if t.is_quantized and not t.is_integer and ggml().requires_imatrix(t)
)


@pytest.fixture(scope="module")
def imatrix(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random importance of every matrix: what the bytes are does not matter, that they are the same does."""
    path = tmp_path_factory.mktemp("imatrix") / "random.imatrix"
    rng = np.random.default_rng(5)
    entries = {
        t.name: Entry(rng.uniform(0.01, 3.0, (1, t.row_length)).astype(np.float32), np.array([100]))
        for t in load_model(reference).tensors
        if t.fixed is None
    }
    save_imatrix(ImportanceMatrix(entries, ("none.txt",), 1, 512), path)
    return path


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def same_everywhere(reference: Path, folder: Path, wish: ewq_gguf.Decision, seed: str) -> bool:
    """One thread, others with other memory, and a run that is stopped twice and resumed."""
    rng = random.Random(seed)
    out = folder / "m.gguf"
    ewq_gguf.convert(reference, out, wish, threads=1)
    wanted = digest(out)
    for threads, memory in ((rng.randint(2, 8), 256), (rng.randint(2, 8), 1024)):
        ewq_gguf.convert(reference, out, wish, threads=threads, memory=memory << 20)
        assert digest(out) == wanted, (threads, memory)
    out.unlink()
    for share in (rng.uniform(0.2, 0.5), rng.uniform(0.55, 0.95)):

        def stop(stage: str, done: int, total: int, share: float = share) -> None:
            if stage == "Quantizing" and done > share * total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ewq_gguf.convert(reference, out, wish, threads=rng.randint(1, 4), resume=True, progress=stop)
        assert not out.exists()
    done = ewq_gguf.convert(reference, out, wish, threads=rng.randint(1, 8), resume=True)
    assert done.resumed > 0
    return digest(out) == wanted and [p.name for p in folder.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("name", sorted({*_TYPES, *PRESETS}))
def test_types_and_presets(reference: Path, imatrix: Path, tmp_path: Path, name: str) -> None:
    wish = ewq_gguf.Decision(type=name, imatrix=imatrix)
    try:
        ewq_gguf.preview(reference, wish)
    except ewq_gguf.EwqError as error:
        pytest.skip(f"the reference model cannot be {name}: {error}")
    assert same_everywhere(reference, tmp_path, wish, name)


@pytest.mark.parametrize("method", ["ewq", "fastewq"])
@pytest.mark.parametrize("size", [None, 8_000_000])
def test_methods(reference: Path, tmp_path: Path, method: str, size: int | None) -> None:
    assert same_everywhere(
        reference, tmp_path, ewq_gguf.Decision(method=method, size=size), f"{method} {size}"
    )


def test_rate_distortion_without_running_the_model(reference: Path, imatrix: Path, tmp_path: Path) -> None:
    from ewq_gguf.pipeline.optimize import Study

    study = Study(damage="mse")
    wish = ewq_gguf.Decision(method="rd", size=6_000_000, imatrix=imatrix, study=study)
    # Every run measures the errors of all types anew, so two must do.
    for threads in (1, 3):
        ewq_gguf.convert(reference, tmp_path / f"{threads}.gguf", wish, threads=threads)
    assert digest(tmp_path / "1.gguf") == digest(tmp_path / "3.gguf")


def test_every_type_that_needs_weights_is_among_them(reference: Path) -> None:
    assert set(_WEIGHTED) <= set(_TYPES)
    assert load_model(reference).n_parameters > 10_000_000
