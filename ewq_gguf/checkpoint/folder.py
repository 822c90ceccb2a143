"""A Hugging Face checkpoint: a folder with config.json and safetensors shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ewq_gguf.checkpoint.json_file import load_json_object
from ewq_gguf.checkpoint.links import refuse_links_out
from ewq_gguf.checkpoint.reading import SourceFiles
from ewq_gguf.checkpoint.safetensors import FileTensor, Shard, read_shard
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import CheckpointError, UnsupportedModelError

INDEX_NAME = "model.safetensors.index.json"
# The limit of every common file system.
MAX_NAME_BYTES = 255
# Files that give away another kind of folder.
_NO_LANGUAGE_MODEL = {
    "adapter_config.json": "a LoRA adapter, not a model; merge it into its base model first",
    "model_index.json": "a diffusion pipeline, not a language model; it cannot be converted",
}


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: nothing but headers and config.json has been read.

    Attributes:
        folder: where it lies.
        config: config.json as parsed.
        tensors: Hugging Face name -> tensor, shard by shard in the order of shard names, by name within.
        shards: the files behind them.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    shards: tuple[Shard, ...]

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint folder, or a single .safetensors file with config.json beside it.

    Raises:
        CheckpointError: missing, damaged or inconsistent files.
        UnsupportedModelError: the weights are in another format (pickle, GGUF parts, ...).
    """
    folder, shard_paths, weight_map = _find_shards(path)
    refuse_links_out(folder)
    config = load_json_object(folder / "config.json")
    shards = tuple(read_shard(p) for p in shard_paths)
    files = SourceFiles()
    tensors: dict[str, Tensor] = {}
    owner: dict[str, Path] = {}
    for shard in shards:
        for entry in shard.entries:
            if entry.name in owner:
                raise CheckpointError(
                    f"tensor {entry.name!r} is in both {owner[entry.name].name} and {shard.path.name} of {folder}"
                )
            owner[entry.name] = shard.path
            tensors[entry.name] = FileTensor(shard, entry, files)
    if weight_map is not None:
        _check_index(folder, weight_map, owner)
    if not tensors:
        raise CheckpointError(f"{folder} holds no tensors: {shard_paths[0].name} is empty; download it again")
    return Checkpoint(folder, config, tensors, shards)


def _find_shards(path: Path) -> tuple[Path, list[Path], dict[str, str] | None]:
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UnsupportedModelError(f"{path} is neither a folder, a .safetensors nor a .gguf file")
        return path.parent, [path], None
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist; give a folder, a .safetensors or a .gguf file")
    if not (path / "config.json").is_file():
        for name, what in _NO_LANGUAGE_MODEL.items():
            if (path / name).is_file():
                raise UnsupportedModelError(f"{path} holds {what}")
        raise CheckpointError(f"{path} has no config.json; is it a Hugging Face checkpoint?")
    if (path / INDEX_NAME).is_file():
        weight_map = _read_index(path / INDEX_NAME)
        names = sorted(set(weight_map.values()))
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{path} lacks {len(missing)} of {len(names)} shards named by {INDEX_NAME}, "
                f"first {missing[0]}; download it again"
            )
        return path, [path / name for name in names], weight_map
    found = sorted(p for p in path.glob("model*.safetensors") if p.is_file())
    if found:
        return path, found, None
    if any(path.glob("*.bin")) or any(path.glob("*.pt*")):
        raise UnsupportedModelError(
            f"{path} has only pickled weights (.bin, .pt), which can run code when opened; "
            "download the safetensors version"
        )
    raise CheckpointError(f"{path} has no model*.safetensors")


def _read_index(index: Path) -> dict[str, str]:
    weight_map = load_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; download it again")
    for tensor, name in weight_map.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{index} maps tensor {tensor[:200]!r} to {name!r:.40}, not to a file name")
    for name in set(weight_map.values()):
        # A shard lies in the folder itself: anything else reaches outside what the user named.
        if PurePosixPath(name).name != name or "\\" in name or "\0" in name or name in ("", ".", ".."):
            raise CheckpointError(f"{index} names the shard {name[:200]!r}, which is not a plain file name")
        if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
            raise CheckpointError(
                f"{index} names the shard {name[:80]!r}..., longer than any file name can be"
            )
        if not name.endswith(".safetensors"):
            raise UnsupportedModelError(
                f"{index} names the shard {name[:200]!r}, which is no .safetensors file"
            )
    return weight_map


def _check_index(folder: Path, weight_map: dict[str, str], owner: dict[str, Path]) -> None:
    for name, shard in weight_map.items():
        if name not in owner:
            raise CheckpointError(
                f"{folder}/{INDEX_NAME} puts tensor {name!r} in {shard}, which does not hold it"
            )
        if owner[name].name != shard:
            raise CheckpointError(
                f"{folder}/{INDEX_NAME} puts tensor {name!r} in {shard}, but it is in {owner[name].name}"
            )
    extra = next((name for name in owner if name not in weight_map), None)
    if extra is not None:
        raise CheckpointError(f"tensor {extra!r} of {owner[extra]} is not listed in {INDEX_NAME}")
