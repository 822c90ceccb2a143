"""Same source and plan, same bytes: whatever the threads, memory, order of files, locale, hash seed or path."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ewq_gguf
from ewq_gguf.ggml import GGMLType
from ewq_gguf.ggml.variant import library_variant
from ewq_gguf.pipeline.gguf_source import open_gguf
from ewq_gguf.pipeline.quantize import quantize_tensors
from ewq_gguf.pipeline.source import load_model
from tests.pipeline.odd_model import write_odd_model
from tests.tiny.build import build
from tests.tiny.established import MISTRAL

EWQ = ("--method", "ewq", "--tensor-type", "attn_v=q8_0")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_odd_model(tmp_path_factory.mktemp("odd") / "odd.gguf", "BF16")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, a model card and a SentencePiece tokenizer, under a name with words to be guessed from."""
    folder = build(MISTRAL, tmp_path_factory.mktemp("models") / "Tiny-Straße-7B-v0.1")
    (folder / "README.md").write_text(
        "---\nlicense: mit\nlanguage:\n- de\n- en\nbase_model: someone/größer\ntags:\n- a\n- b\n---\nTïny\n",
        encoding="utf-8",
    )
    return folder


@pytest.mark.parametrize("kind", [GGMLType.Q4_0, GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.F16])
def test_threads_and_chunks(odd: Path, kind: GGMLType) -> None:
    model = load_model(odd)
    some = tuple(t for t in model.tensors if t.block in (None, 0) and len(t.shape) > 1)
    types = {t.name: kind if t.row_length % kind.block_size == 0 else GGMLType.F16 for t in some}
    runs = [(1, 1 << 20), (1, 1), (2, 288 * 7), (3, 1 << 16), (5, 999), (8, 1 << 15), (8, 1 << 22)]

    def made(threads: int, chunk: int) -> bytes:
        chunks = quantize_tensors(some, types, threads=threads, chunk_weights=chunk)
        return b"".join(c.data.tobytes() for c in chunks)

    wanted = made(*runs[0])
    for threads, chunk in runs[1:]:
        assert made(threads, chunk) == wanted, (threads, chunk)


@pytest.mark.parametrize("threads", range(1, 9))
def test_whole_runs(odd: Path, tmp_path: Path, threads: int) -> None:
    wish = ewq_gguf.Decision(type="Q4_0")
    files = []
    for number, memory in ((1, 1 << 30), (threads, (256 + 64 * threads) << 20)):
        ewq_gguf.convert(odd, tmp_path / "m.gguf", wish, threads=number, memory=memory)
        files.append((tmp_path / "m.gguf").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("reverse", [False, True])
def test_the_order_in_which_the_system_lists_files(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reverse: bool
) -> None:
    ewq_gguf.convert(checkpoint, tmp_path / "plain.gguf")
    asked = []

    class Ordered(list[os.DirEntry[str]]):
        def __init__(self, path: Any = ".") -> None:
            asked.append(str(path))
            with real_scandir(path) as entries:
                super().__init__(sorted(entries, key=lambda e: e.name, reverse=reverse))

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return iter(self)

        def __exit__(self, *_: object) -> None:
            pass

    real_scandir, real_listdir = os.scandir, os.listdir
    monkeypatch.setattr(os, "scandir", Ordered)
    monkeypatch.setattr(
        os, "listdir", lambda path=".": asked.append(str(path)) or sorted(real_listdir(path), reverse=reverse)
    )
    ewq_gguf.convert(checkpoint, tmp_path / "ordered.gguf")
    monkeypatch.undo()
    assert str(checkpoint) in asked
    assert (tmp_path / "ordered.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


SURROUNDINGS = {
    "plain C locale, other seed": {"LC_ALL": "C", "PYTHONHASHSEED": "1", "TZ": "Pacific/Kiritimati"},
    "without UTF-8 by default": {
        "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONHASHSEED": "2", "TZ": "UTC+11",
    },
    "decimal comma": {"LC_ALL": "de_DE.UTF-8", "PYTHONHASHSEED": "4294967295", "OMP_NUM_THREADS": "1"},
    "dotless i": {"LC_ALL": "tr_TR.UTF-8", "PYTHONOPTIMIZE": "2", "NO_COLOR": "1", "COLUMNS": "20"},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("made") / "m.gguf"
    convert_elsewhere(checkpoint, out, {}, Path.cwd())
    return out.read_bytes()


def convert_elsewhere(model: Path | str, out: Path, environment: dict[str, str], cwd: Path) -> None:
    """Run the command with other surroundings; a default encoding in our own code is an error."""
    program = (
        "import warnings, sys\n"
        "warnings.filterwarnings('error', category=EncodingWarning, module=r'ewq_gguf\\b')\n"
        "from ewq_gguf.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-X", "warn_default_encoding", "-c", program, "-q", "convert", str(model)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "TZ"))}
    done = subprocess.run(
        [*command, "-o", str(out), *EWQ],
        cwd=cwd,
        env={**clean, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_surroundings(checkpoint: Path, made: bytes, tmp_path: Path, name: str) -> None:
    convert_elsewhere(checkpoint, tmp_path / "m.gguf", SURROUNDINGS[name], tmp_path)
    assert (tmp_path / "m.gguf").read_bytes() == made


@pytest.mark.parametrize("way", [".", "relative", "trailing", "up and down"])
def test_ways_to_name_the_same_folder(checkpoint: Path, made: bytes, tmp_path: Path, way: str) -> None:
    model, cwd = {
        ".": (".", checkpoint),
        "relative": (checkpoint.name, checkpoint.parent),
        "trailing": (f"{checkpoint}/", tmp_path),
        "up and down": (f"../{checkpoint.name}/../{checkpoint.name}", checkpoint),
    }[way]
    convert_elsewhere(model, tmp_path / "m.gguf", {}, cwd)
    assert (tmp_path / "m.gguf").read_bytes() == made


def test_a_copy_of_the_folder(checkpoint: Path, made: bytes, tmp_path: Path) -> None:
    """Times of files and the folder around play no part; the folder's own name does, as for llama.cpp."""
    copy = tmp_path / checkpoint.name
    copy.mkdir()
    for file in sorted(checkpoint.iterdir(), reverse=True):
        (copy / file.name).write_bytes(file.read_bytes())
    convert_elsewhere(copy, tmp_path / "m.gguf", {}, tmp_path)
    assert (tmp_path / "m.gguf").read_bytes() == made


def test_a_plan_replayed_gives_the_same_tensors(checkpoint: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from ewq_gguf.cli import cli

    plan, files = tmp_path / "plan.json", []
    assert CliRunner().invoke(cli, ["plan", str(checkpoint), "-o", str(plan), *EWQ]).exit_code == 0
    for threads in (1, 4):
        out = tmp_path / f"{threads}.gguf"
        wish = ewq_gguf.Decision(plan=plan)
        ewq_gguf.convert(checkpoint, out, wish, threads=threads)
        files.append(out.read_bytes())
    assert files[0] == files[1]


def test_the_file_names_the_build_that_made_it(odd: Path, tmp_path: Path) -> None:
    ewq_gguf.convert(odd, tmp_path / "m.gguf", ewq_gguf.Decision(type="Q8_0"))
    told = open_gguf(tmp_path / "m.gguf").value("ewq.library")
    assert told == library_variant()
    assert told.startswith("ggml ")


def test_the_build_is_what_llama_cpp_reports() -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    reported = llama_cpp.llama_print_system_info().decode()
    features = [
        part.split(" = ")[0].split()[-1] for part in reported.split("|") if part.strip().endswith("= 1")
    ]
    assert library_variant().rpartition(", ")[2].split() == features


def test_another_build_does_not_go_on(odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ewq_gguf.pipeline import convert

    def stop(stage: str, done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    out, wish = tmp_path / "m.gguf", ewq_gguf.Decision(type="Q8_0")
    with pytest.raises(KeyboardInterrupt):
        ewq_gguf.convert(odd, out, wish, progress=stop)
    monkeypatch.setattr(convert, "library_variant", lambda: "ggml 0.0, elsewhere")
    with pytest.raises(ewq_gguf.QuantizationError, match="with another build of the native library"):
        ewq_gguf.convert(odd, out, wish, resume=True)
