"""Little memory, many tensors, many files, odd paths."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import ewq_gguf
from ewq_gguf.checkpoint.folder import INDEX_NAME
from ewq_gguf.pipeline.gguf_source import open_gguf
from ewq_gguf.pipeline.quantize import chunk_rows
from ewq_gguf.pipeline.source import load_model
from ewq_gguf.pipeline.verify import verify
from tests.pipeline.odd_model import write_odd_model
from tests.tiny.build import build
from tests.tiny.established import MISTRAL
from tests.tiny.weights import Stored, write_safetensors

Q8 = ewq_gguf.Decision(type="Q8_0")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_odd_model(tmp_path_factory.mktemp("odd") / "odd.gguf")


@pytest.fixture(scope="module")
def whole(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "m.gguf"
    ewq_gguf.convert(odd, out, Q8)
    return out.read_bytes()


def limited(nbytes: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run with so much address space (`ulimit -v`)."""

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (nbytes, nbytes))

    return subprocess.run(
        [sys.executable, "-m", "ewq_gguf", "convert", *arguments],
        preexec_fn=limit,
        # Threads of numerical libraries reserve address space for their stacks.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="macOS does not keep RLIMIT_AS")
def test_address_space_that_is_enough(odd: Path, whole: bytes, tmp_path: Path) -> None:
    """No file is mapped, so the size of the source plays no part."""
    out = tmp_path / "m.gguf"
    done = limited(800 << 20, [str(odd), "-o", str(out), "--type", "Q8_0", "--threads", "2"])
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == whole


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="macOS does not keep RLIMIT_AS")
def test_a_source_larger_than_the_address_space(tmp_path: Path) -> None:
    """3 GB of a tensor that no GGUF file holds, in a hole that takes no space on disk."""
    folder, plain = build(MISTRAL, tmp_path / "model"), tmp_path / "plain.gguf"
    ewq_gguf.convert(folder, plain, Q8)
    header, data = split_shard(folder / "model.safetensors")
    count = 750_000_000
    header["model.layers.0.self_attn.rotary_emb.inv_freq"] = {
        "dtype": "F32", "shape": [count], "data_offsets": [len(data), len(data) + 4 * count],
    }  # fmt: skip
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + data)
        file.truncate(8 + len(text) + len(data) + 4 * count)
    out = tmp_path / "m.gguf"
    done = limited(800 << 20, [str(folder), "-o", str(out), "--type", "Q8_0", "--threads", "2"])
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size == plain.stat().st_size


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="macOS does not keep RLIMIT_AS")
@pytest.mark.parametrize("mib", [120, 200, 260, 330])
def test_address_space_that_is_not_enough(odd: Path, tmp_path: Path, mib: int) -> None:
    """Whatever comes first, the interpreter or the work, runs out: no file stands under the name."""
    out = tmp_path / "m.gguf"
    done = limited(mib << 20, [str(odd), "-o", str(out), "--type", "Q8_0", "--threads", "2"])
    if done.returncode == 0:
        verify(out)
    else:
        assert not out.exists()
        assert done.returncode > 0, f"killed by signal {-done.returncode}"


def split_shard(path: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    return header, raw[8 + size :]


def test_tensors_larger_than_a_chunk_and_rows_larger_too(tmp_path: Path, odd: Path) -> None:
    tensors = load_model(odd).tensors
    for t in tensors:
        for chunk in (
            1,
            t.row_length - 1,
            t.row_length,
            5 * t.row_length + 1,
            t.n_elements,
            10 * t.n_elements,
        ):
            ranges = chunk_rows(t, max(1, chunk))
            assert ranges[0][0] == 0
            assert ranges[-1][1] == t.n_rows
            assert all(a[1] == b[0] and a[0] < a[1] for a, b in pairwise(ranges))


def write_many(folder: Path, n_layers: int, per_shard: int) -> Path:
    """A Mistral-like checkpoint of so many tiny layers, nine tensors each, in shards of so many tensors."""
    from dataclasses import replace

    shape = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 1, "num_key_value_heads": 1}
    case = replace(MISTRAL, config={**MISTRAL.config, **shape, "num_hidden_layers": 1, "head_dim": 32})
    build(case, folder)
    raw = folder / "model.safetensors"
    header, data = split_shard(raw)
    raw.unlink()
    stored = {
        name: Stored(
            str(e["dtype"]), np.frombuffer(data[slice(*e["data_offsets"])], "<u2").reshape(e["shape"])
        )
        for name, e in header.items()
    }
    tensors = {n: s for n, s in stored.items() if ".layers.0." not in n}
    for i in range(n_layers):
        tensors |= {
            n.replace(".layers.0.", f".layers.{i}."): s for n, s in stored.items() if ".layers.0." in n
        }
    names = list(tensors)
    count = -(-len(names) // per_shard)
    weight_map = {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = names[number * per_shard : (number + 1) * per_shard]
        write_safetensors(folder / file, {n: tensors[n] for n in part})
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    config = {**case.config, "num_hidden_layers": n_layers}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_ten_thousand_tensors(tmp_path: Path) -> None:
    folder = write_many(tmp_path / "model", 1112, 5000)
    done = ewq_gguf.convert(folder, tmp_path / "m.gguf", Q8)
    assert len(done.plan.tensors) > 10_000
    assert len(open_gguf(tmp_path / "m.gguf").entries) == len(done.plan.tensors)


def test_a_thousand_shards(tmp_path: Path) -> None:
    """More files than a process may usually have open."""
    folder = write_many(tmp_path / "model", 112, 1)
    assert len(list(folder.glob("*.safetensors"))) > 1000
    many, few = tmp_path / "many.gguf", tmp_path / "few.gguf"
    script = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)); from ewq_gguf.cli import main; main()"
    arguments = ["-q", "convert", str(folder), "-o", str(many), "--type", "Q8_0"]
    if sys.platform == "win32":
        ewq_gguf.convert(folder, many, Q8)
    else:
        subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True)
    ewq_gguf.convert(write_many(tmp_path / "one" / "model", 112, 10_000), few, Q8)
    ours, theirs = open_gguf(many), open_gguf(few)
    assert {e.name for e in ours.entries} == {e.name for e in theirs.entries}
    left, right = many.read_bytes(), few.read_bytes()
    wanted = {e.name: right[e.begin : e.end] for e in theirs.entries}
    assert all(left[e.begin : e.end] == wanted[e.name] for e in ours.entries)


@pytest.mark.parametrize(
    "name",
    [
        "with spaces  and\ttabs",
        "ünïcödé 模型 🙂 مُوديل",
        "e\u0301 combining",
        "quote'\"$(touch gone)`;&|",
        "-o",
        "--type",
        "[bold]rich %s {0}",
        "new\nline",
        "n" * 200,
    ],
)
def test_paths(tmp_path: Path, name: str) -> None:
    if sys.platform == "win32" and set(name) & set('\t\n"|'):
        pytest.skip("no such names there")
    folder = build(MISTRAL, tmp_path / "plain")
    model, made = tmp_path / name / name, tmp_path / name / "out"
    made.mkdir(parents=True)
    folder.rename(model)
    out = made / f"{name}.gguf"
    command = [
        sys.executable,
        "-m",
        "ewq_gguf",
        "convert",
        "--type",
        "q8_0",
        "-o",
        str(out),
        "--",
        str(model),
    ]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout
    assert [p.name for p in made.iterdir()] == [out.name]
    verify(out)


def test_a_very_deep_path(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(12):
        deep = deep / ("d" * 200)
    deep.mkdir(parents=True)
    folder = build(MISTRAL, deep / "model")
    ewq_gguf.convert(folder, deep / "m.gguf", Q8)
    assert len(str(deep)) > 2400
    verify(deep / "m.gguf")


def test_a_source_that_may_only_be_read(tmp_path: Path) -> None:
    folder = build(MISTRAL, tmp_path / "model")
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    try:
        ewq_gguf.convert(folder, tmp_path / "m.gguf", Q8)
    finally:
        folder.chmod(0o755)
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()} == before


def test_a_source_behind_links(tmp_path: Path) -> None:
    """As the Hub's cache has it: a folder of links to files with other names."""
    folder = build(MISTRAL, tmp_path / "model")
    ewq_gguf.convert(folder, tmp_path / "m.gguf", Q8)
    blobs, linked = tmp_path / "models--org--name" / "blobs", tmp_path / "linked" / "model"
    blobs.mkdir(parents=True)
    linked.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / f"{number:040x}")
        (linked / file.name).symlink_to(Path("..") / ".." / blobs.relative_to(tmp_path) / f"{number:040x}")
    for path in (linked, tmp_path / "again" / "model"):
        if path is not linked:
            path.parent.mkdir()
            path.symlink_to(linked, target_is_directory=True)
        ewq_gguf.convert(path, tmp_path / "n.gguf", Q8)
        assert (tmp_path / "n.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()
