"""The main job on the reference model: bytes, metadata, threads, and what is left after a failure."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest

import ewq_gguf
from ewq_gguf.allocation.methods import uniform_plan
from ewq_gguf.checkpoint.folder import INDEX_NAME
from ewq_gguf.errors import CheckpointError, QuantizationError
from ewq_gguf.ggml import GGMLType
from ewq_gguf.pipeline.convert import file_size, write_model
from ewq_gguf.pipeline.source import load_model
from ewq_gguf.pipeline.verify import open_gguf, verify

# sha256 over name, type, shape and bytes of every tensor, and over all keys but the producer's, of the files
# that llama.cpp's own converter (pinned) writes for the reference model. `make parity` redoes the comparison.
CONVERTER_DIGESTS = {
    "bf16": (
        "f43c93d1a05784a421712ef252e9565cf6a28be4936db5ddb266922ff4202818",
        "2a046a82f2dcd8f71ae89a87f30adc4f57b6f352b83eb37cdf2e7021c873c69c",
    ),
    "f16": (
        "1a49298fa23eb84c4ffcb715e361d949c320522e7e8f914f45d118e2ade4e340",
        "32ce4fd22fb0d0cbcd4b7d21f46d413d705a88a07c33f8c73e70dc2f531f80f2",
    ),
    "f32": (
        "5ee3c37c2f8c0e4d819508b588b7209f78b7015b448048fa38ee679383d6c27b",
        "6d7adfa71b20dcbd0dfd923063ab4e36b876febb090b52916de2b39970a6df56",
    ),
    "q8_0": (
        "ed3b737daf4adf8cc469463679072e078d6ff142e1e9a29b460038b0783a24bd",
        "c40b570e2697a5156a25f903b8013aeea8ebdb715a1db0b14c20dd0e8fd5d678",
    ),
}


def digests(path: Path) -> tuple[str, str]:
    file = open_gguf(path)
    data = path.read_bytes()
    tensors, keys = hashlib.sha256(), hashlib.sha256()
    for e in sorted(file.entries, key=lambda e: e.name):
        tensors.update(f"{e.name} {e.type} {e.shape} ".encode() + data[e.begin : e.end])
    for key in sorted(k for k in file.metadata if not k.startswith("ewq.")):
        value = file.metadata[key]
        keys.update(f"{key} {value.type} {value.sub_type} {value.value!r}\n".encode())
    return tensors.hexdigest(), keys.hexdigest()


@pytest.mark.parametrize("kind", CONVERTER_DIGESTS)
def test_equal_to_llama_cpp_s_converter(reference: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out.gguf"
    ewq_gguf.convert(reference, out, ewq_gguf.Decision(type=kind))
    assert digests(out) == CONVERTER_DIGESTS[kind]


def test_same_bytes_for_any_thread_count(reference: Path, tmp_path: Path) -> None:
    files = []
    for threads in (1, 2, 5):
        out = tmp_path / f"{threads}.gguf"
        result = ewq_gguf.convert(reference, out, threads=threads)
        assert result.nbytes == out.stat().st_size
        files.append(out.read_bytes())
    assert files[0] == files[1] == files[2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.gguf", "2.gguf", "5.gguf"]


def as_f32(folder: Path) -> None:
    """Rewrite a bf16 checkpoint as one F32 shard with the same values."""
    header: dict[str, object] = {}
    parts: list[bytes] = []
    at = 0
    for shard in sorted(folder.glob("*.safetensors")):
        raw = shard.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        for name, e in json.loads(raw[8 : 8 + length]).items():
            if name == "__metadata__":
                continue
            begin, end = e["data_offsets"]
            codes = np.frombuffer(raw, dtype="<u2", count=(end - begin) // 2, offset=8 + length + begin)
            parts.append((codes.astype("<u4") << 16).tobytes())
            header[name] = {"dtype": "F32", "shape": e["shape"], "data_offsets": [at, at + len(parts[-1])]}
            at += len(parts[-1])
        shard.unlink()
    (folder / INDEX_NAME).unlink()
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def test_f32_copy_gets_the_same_entropies_and_classes(reference: Path, checkpoint_copy: Path) -> None:
    as_f32(checkpoint_copy)
    ours, copy = ewq_gguf.plan(reference), ewq_gguf.plan(checkpoint_copy)
    assert ours.parameters["blocks"] == copy.parameters["blocks"]
    assert copy.parameters["raw"] == "F16"


def test_dry_size_is_the_written_size(reference: Path, tmp_path: Path) -> None:
    model = load_model(reference)
    plan = uniform_plan(model, GGMLType.Q4_K)
    assert write_model(model, plan, tmp_path / "a.gguf").nbytes == file_size(model, plan)
    assert (tmp_path / "a.gguf").stat().st_size == file_size(model, plan)


def test_verify_against_the_source(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "q8.gguf"
    ewq_gguf.convert(reference, out, ewq_gguf.Decision(type="Q8_0"))
    checks = {c.name: c for c in verify(out, load_model(reference))}
    assert checks["blk.0.attn_norm.weight"].relative_error == 0
    error = checks["token_embd.weight"].relative_error
    assert error is not None
    assert 1e-6 < error < 1e-4


def nan_in(folder: Path, tensor: str) -> None:
    for shard in folder.glob("*.safetensors"):
        raw = bytearray(shard.read_bytes())
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        if tensor in header:
            at = 8 + length + header[tensor]["data_offsets"][0] + 2 * 300
            raw[at : at + 2] = b"\xc0\x7f"
            shard.write_bytes(raw)


@pytest.mark.parametrize("kind", ["bf16", "f32", "Q8_0", "Q4_K_M", None])
def test_nan_weights_are_named_and_nothing_is_left(
    checkpoint_copy: Path, tmp_path: Path, kind: str | None
) -> None:
    nan_in(checkpoint_copy, "model.layers.3.mlp.up_proj.weight")
    out = tmp_path / "out" / "m.gguf"
    out.parent.mkdir()
    with pytest.raises(CheckpointError, match=r"blk\.3\.ffn_up\.weight holds nan in row 1, column 44"):
        ewq_gguf.convert(checkpoint_copy, out, ewq_gguf.Decision(type=kind))
    assert list(out.parent.iterdir()) == []


def test_targets_that_cannot_be_written(reference: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="does not exist"):
        ewq_gguf.convert(reference, tmp_path / "no" / "m.gguf", ewq_gguf.Decision(type="Q8_0"))
    with pytest.raises(QuantizationError, match="is a folder"):
        ewq_gguf.convert(reference, tmp_path, ewq_gguf.Decision(type="Q8_0"))


def test_no_space_is_found_before_work(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(QuantizationError, match="1,000 bytes free"):
        ewq_gguf.convert(reference, tmp_path / "m.gguf", ewq_gguf.Decision(type="Q8_0"))


def test_an_existing_file_survives_a_failed_run(checkpoint_copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    out.write_bytes(b"precious")
    nan_in(checkpoint_copy, "model.layers.11.mlp.up_proj.weight")
    with pytest.raises(CheckpointError):
        ewq_gguf.convert(checkpoint_copy, out, ewq_gguf.Decision(type="bf16"))
    assert out.read_bytes() == b"precious"
    assert not out.with_name("m.gguf.part").exists()


def test_progress_counts_every_weight(reference: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    ewq_gguf.convert(reference, tmp_path / "m.gguf", progress=lambda *call: calls.append(call))
    for stage in ("Analysing", "Quantizing"):
        seen = [(done, total) for name, done, total in calls if name == stage]
        assert seen == sorted(seen)
        assert seen[-1][0] == seen[-1][1] > 0
