"""Folders: shards, index and config must agree, and nothing is read from outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ewq_gguf.checkpoint import open_checkpoint
from ewq_gguf.checkpoint.folder import INDEX_NAME
from ewq_gguf.errors import CheckpointError, EwqError, UnsupportedModelError

SHARD = "model-00001-of-00002.safetensors"


def test_reference_model_opens(reference: Path) -> None:
    checkpoint = open_checkpoint(reference)
    assert len(checkpoint.tensors) == 110
    assert sum(t.n_elements for t in checkpoint.tensors.values()) == 10_492_160
    assert checkpoint.tensors["model.embed_tokens.weight"].shape == (4096, 256)


def edit_index(folder: Path, **changes: str) -> None:
    path = folder / INDEX_NAME
    index = json.loads(path.read_text())
    index["weight_map"].update(changes)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "..",
        "",
        "a\\b.safetensors",
        "x\0.safetensors",
    ],
)
def test_an_index_reaches_nothing_outside_the_folder(checkpoint_copy: Path, name: str) -> None:
    edit_index(checkpoint_copy, **{"model.norm.weight": name})
    with pytest.raises(CheckpointError, match="not a plain file name"):
        open_checkpoint(checkpoint_copy)


def test_missing_shard(checkpoint_copy: Path) -> None:
    (checkpoint_copy / SHARD).unlink()
    with pytest.raises(CheckpointError, match=f"lacks 1 of 2 shards.*{SHARD}"):
        open_checkpoint(checkpoint_copy)


def test_index_and_shards_must_agree(checkpoint_copy: Path) -> None:
    edit_index(checkpoint_copy, **{"model.norm.weight": SHARD})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        open_checkpoint(checkpoint_copy)


def test_tensor_only_in_the_index(checkpoint_copy: Path) -> None:
    edit_index(checkpoint_copy, ghost=SHARD)
    with pytest.raises(CheckpointError, match="ghost"):
        open_checkpoint(checkpoint_copy)


def test_tensor_only_in_a_shard(checkpoint_copy: Path) -> None:
    path = checkpoint_copy / INDEX_NAME
    index = json.loads(path.read_text())
    del index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not listed"):
        open_checkpoint(checkpoint_copy)


def test_the_same_tensor_in_two_shards(checkpoint_copy: Path) -> None:
    (checkpoint_copy / INDEX_NAME).unlink()
    (checkpoint_copy / "model-copy.safetensors").write_bytes((checkpoint_copy / SHARD).read_bytes())
    with pytest.raises(CheckpointError, match="in both"):
        open_checkpoint(checkpoint_copy)


def test_pickled_weights_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnsupportedModelError, match="pickled"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a":1,"a":2}', "\xff\xfe"])
def test_broken_config(checkpoint_copy: Path, content: str) -> None:
    (checkpoint_copy / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(EwqError, match=r"config\.json"):
        open_checkpoint(checkpoint_copy)


def test_missing_folder_and_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "says"), [("adapter_config.json", "LoRA"), ("model_index.json", "diffusion")]
)
def test_other_kinds_of_folder_are_named(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(UnsupportedModelError, match=says):
        open_checkpoint(tmp_path)
