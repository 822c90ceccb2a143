"""Open whatever the user named and see it as a `Model`: checkpoint + family + vocabulary."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ewq_gguf.arch import Family, family_for
from ewq_gguf.checkpoint import Checkpoint, open_checkpoint
from ewq_gguf.checkpoint.json_file import load_json_object
from ewq_gguf.checkpoint.mapping import DEFAULT_WINDOW
from ewq_gguf.errors import CheckpointError, TokenizerError, UnsupportedModelError
from ewq_gguf.model import Model, ModelTensor
from ewq_gguf.pipeline.gguf_source import is_gguf, model_from_gguf, open_parts
from ewq_gguf.vocab import Vocabulary

_log = logging.getLogger(__name__)

# Refused by name, with what to download instead; FP8 and MXFP4 are read.
_FOREIGN_QUANTIZATION = {
    "bitsandbytes": "bitsandbytes",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "aqlm": "AQLM",
    "hqq": "HQQ",
    "quanto": "Quanto",
    "eetq": "EETQ",
    "vptq": "VPTQ",
}


def load_model(path: Path, window: int | None = None, *, pre_tokenizer: str | None = None) -> Model:
    """Open a checkpoint folder, .safetensors or .gguf file and lay it out as a GGUF model; no weight is read.

    Args:
        path: for a split GGUF, any of its parts.
        window: bytes of mapped pages that may be resident at a time, or None for the default.
        pre_tokenizer: llama.cpp's name of the pre-tokenizer, where it is not recognised by itself.

    Raises:
        CheckpointError: damaged or missing files.
        UnsupportedModelError: a family, quantization or layout that is not supported.
        TokenizerError: the tokenizer files cannot be used.
    """
    path = Path(path)
    window = DEFAULT_WINDOW if window is None else window
    if is_gguf(path):
        return model_from_gguf(path, window)
    return model_from_checkpoint(open_checkpoint(path, window), pre_tokenizer=pre_tokenizer)


def source_files(path: Path) -> list[Path]:
    """The files that hold MODEL's weights."""
    path = Path(path)
    if is_gguf(path):
        return [part.path for part in open_parts(path)]
    return [path] if path.is_file() else sorted(path.glob("*.safetensors"))


def source_state(path: Path) -> str:
    """A sha256 of names, sizes and times of MODEL's files: it changes when one of them is written to.

    Raises:
        CheckpointError: a file cannot be looked at.
    """
    try:
        facts = [(p.name, (s := p.stat()).st_size, s.st_mtime_ns) for p in source_files(path)]
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def model_from_checkpoint(checkpoint: Checkpoint, *, pre_tokenizer: str | None = None) -> Model:
    """Lay out an opened checkpoint; see `load_model`."""
    _refuse_foreign_quantization(checkpoint)
    family = family_for(checkpoint.config)(checkpoint.config, checkpoint.tensors)
    tensors = tuple(family.tensors())
    _check_names(tensors)
    # The writer serves as an ordered, typed collection of keys; it opens no file.
    writer = gguf.GGUFWriter(None, family.arch)
    writer.add_type(gguf.GGUFType.MODEL)
    general_metadata(checkpoint.folder, tensors).set_gguf_meta_model(writer)
    family.add_metadata(writer)
    family.add_folder_metadata(writer, checkpoint.folder)
    loader: Callable[..., Vocabulary] = type(family).load_vocabulary
    if pre_tokenizer is not None:
        if "pre" not in inspect.signature(loader).parameters:
            raise TokenizerError(f"{checkpoint.folder} has a tokenizer without a pre-tokenizer to name")
        loader = functools.partial(loader, pre=pre_tokenizer)
    vocabulary = family.adjust_vocabulary(loader(checkpoint.folder, family.config))
    for note in (*family.notes(), *vocabulary.notes):
        _log.warning("%s", note)
    vocabulary.add_to(writer)
    _check_vocabulary_size(family, tensors, len(vocabulary))
    return Model(family.arch, dict(writer.kv_data[0]), tensors, fingerprint(checkpoint))


def general_metadata(folder: Path, tensors: tuple[ModelTensor, ...]) -> gguf.Metadata:
    """The general.* keys from the model card, config and folder name, as llama.cpp's converter finds them."""
    counter = gguf.GGUFWriter(None, "llama")
    for tensor in tensors:
        counter.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), 0)
    total, shared, expert, n_experts = counter.get_total_parameter_count()
    try:
        metadata = gguf.Metadata.load(None, folder, None, total)
        generation = folder / "generation_config.json"
        if metadata.sampling_penalty_repeat is None and generation.is_file():
            penalty = load_json_object(generation).get("repetition_penalty")
            if isinstance(penalty, (int, float)) and not isinstance(penalty, bool):
                metadata.sampling_penalty_repeat = penalty
    except Exception as error:
        # A model card is prose with a YAML head written by hand; a broken one is no reason to stop.
        _log.warning("the model card or generation_config.json of %s is not usable (%s)", folder, error)
        metadata = gguf.Metadata()
    if metadata.name is None:
        metadata.name = folder.resolve().name
    if metadata.size_label is None and total > 0:
        metadata.size_label = gguf.size_label(total, shared, expert, n_experts)
    return metadata


def fingerprint(checkpoint: Checkpoint) -> str:
    """A sha256 of config.json and of every shard's name, size and header; equal for copies of a folder."""
    state: dict[str, Any] = {"config": checkpoint.config, "shards": []}
    for shard in checkpoint.shards:
        entries = [(e.name, e.dtype.value, e.shape, e.begin) for e in shard.entries]
        state["shards"].append((shard.path.name, shard.size, entries))
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _refuse_foreign_quantization(checkpoint: Checkpoint) -> None:
    config = checkpoint.config.get("quantization_config")
    if not isinstance(config, dict):
        return
    method = str(config.get("quant_method", "")).lower()
    for key, name in _FOREIGN_QUANTIZATION.items():
        if key in method:
            raise UnsupportedModelError(
                f"{checkpoint.folder} is already quantized with {name}; quantizing it again would lose twice: "
                "download the original 16-bit checkpoint instead"
            )


def _check_names(tensors: tuple[ModelTensor, ...]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise CheckpointError(f"two tensors of the checkpoint both become {tensor.name!r}")
        seen.add(tensor.name)


def _check_vocabulary_size(family: Family, tensors: tuple[ModelTensor, ...], n_tokens: int) -> None:
    """A mismatch loads nowhere, so say it before the work."""
    embedding = next((t for t in tensors if t.name == "token_embd.weight"), None)
    if embedding is not None and embedding.shape[0] != n_tokens:
        raise UnsupportedModelError(
            f"the embedding has {embedding.shape[0]} rows and the vocabulary {n_tokens} tokens; "
            f"config.json's vocab_size is {family.config.find('vocab_size')!r}: are the files of one model?"
        )
