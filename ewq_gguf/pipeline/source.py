"""Open whatever the user named and see it as a `Model`: checkpoint + family + vocabulary."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from ewq_gguf.arch import Family, family_for
from ewq_gguf.checkpoint import Checkpoint, open_checkpoint
from ewq_gguf.errors import CheckpointError, TokenizerError, UnsupportedModelError
from ewq_gguf.model import Model, ModelTensor
from ewq_gguf.pipeline.general import general_metadata
from ewq_gguf.pipeline.gguf_source import is_gguf, model_from_gguf, open_parts
from ewq_gguf.vocab import TokenizerMode, Vocabulary, faithful, limits

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


def load_model(
    path: Path,
    *,
    pre_tokenizer: str | None = None,
    tokenizer: TokenizerMode = TokenizerMode.FAITHFUL,
) -> Model:
    """Open a checkpoint folder, .safetensors or .gguf file and lay it out as a GGUF model; no weight is read.

    Args:
        path: for a split GGUF, any of its parts.
        pre_tokenizer: llama.cpp's name of the pre-tokenizer, where it is not recognised by itself.
        tokenizer: whether a checkpoint's tokenizer metadata may differ from the converter's so that llama.cpp
            gives the tokenizer's own ids (see `vocab.faithful`).

    Raises:
        CheckpointError: damaged or missing files.
        UnsupportedModelError: a family, quantization or layout that is not supported.
        TokenizerError: the tokenizer files cannot be used.
    """
    path = Path(path)
    if is_gguf(path):
        return model_from_gguf(path)
    return model_from_checkpoint(open_checkpoint(path), pre_tokenizer=pre_tokenizer, tokenizer=tokenizer)


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
        raise CheckpointError(f"cannot read {error.filename or path}: {error.strerror or error}") from error
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def model_from_checkpoint(
    checkpoint: Checkpoint,
    *,
    pre_tokenizer: str | None = None,
    tokenizer: TokenizerMode = TokenizerMode.FAITHFUL,
) -> Model:
    """Lay out an opened checkpoint; see `load_model`."""
    _refuse_foreign_quantization(checkpoint)
    with _config_errors(checkpoint) as progress:
        return _laid_out(checkpoint, progress, pre_tokenizer, tokenizer)


@dataclass
class _Progress:
    """How far laying out a checkpoint has come."""

    family: Family | None = None


@contextlib.contextmanager
def _config_errors(checkpoint: Checkpoint) -> Iterator[_Progress]:
    """Families take config.json's values as they come; one that makes no sense shows in what is done with it."""
    progress = _Progress()
    try:
        yield progress
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        asked = "" if progress.family is None else progress.family.config.asked
        raise UnsupportedModelError(
            f"{checkpoint.folder / 'config.json'} does not describe a model of its family"
            + (f", see {asked} or what belongs to it" if asked else "")
            + f" ({type(error).__name__}: {error!s:.200}); correct it, or run with --debug and report what it shows"
        ) from error


def _laid_out(
    checkpoint: Checkpoint, progress: _Progress, pre_tokenizer: str | None, tokenizer: TokenizerMode
) -> Model:
    family = progress.family = family_for(checkpoint.config)(checkpoint.config, checkpoint.tensors)
    tensors = tuple(family.tensors())
    _check_names(tensors)
    _check_claimed_vocabulary(family, tensors)
    # The writer serves as an ordered, typed collection of keys; it opens no file.
    writer = gguf.GGUFWriter(None, family.arch)
    writer.add_type(gguf.GGUFType.MODEL)
    general_metadata(checkpoint.folder, checkpoint.config, tensors).set_gguf_meta_model(writer)
    family.add_metadata(writer)
    family.add_folder_metadata(writer, checkpoint.folder)
    loader: Callable[..., Vocabulary] = type(family).load_vocabulary
    if pre_tokenizer is not None:
        if "pre" not in inspect.signature(loader).parameters:
            raise TokenizerError(f"{checkpoint.folder} has a tokenizer without a pre-tokenizer to name")
        loader = functools.partial(loader, pre=pre_tokenizer)
    vocabulary = family.adjust_vocabulary(loader(checkpoint.folder, family.config))
    if tokenizer is TokenizerMode.FAITHFUL:
        vocabulary = faithful(vocabulary, keep_pre=pre_tokenizer is not None)
    for note in (*family.notes(), *vocabulary.notes, *limits(vocabulary)):
        _log.warning("%s", note)
    vocabulary.add_to(writer)
    _check_vocabulary_size(family, tensors, len(vocabulary))
    return Model(family.arch, dict(writer.kv_data[0]), tensors, fingerprint(checkpoint))


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
                f"{checkpoint.folder / 'config.json'} says that the weights are already quantized with {name}; quantizing it again would lose twice: "
                "download the original 16-bit checkpoint instead"
            )


def _check_names(tensors: tuple[ModelTensor, ...]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise CheckpointError(f"two tensors of the checkpoint both become {tensor.name!r}")
        seen.add(tensor.name)


def _check_claimed_vocabulary(family: Family, tensors: tuple[ModelTensor, ...]) -> None:
    """Vocabularies are padded to what config.json claims, so an absurd claim is refused before it takes memory."""
    claimed, embedding = family.config.find("vocab_size"), _embedding(tensors)
    if embedding is not None and isinstance(claimed, int) and claimed > 2 * embedding.shape[0] + (1 << 16):
        raise UnsupportedModelError(
            f"config.json gives vocab_size = {claimed:,}, and the embedding has {embedding.shape[0]:,} rows: "
            "are the files of one model?"
        )


def _embedding(tensors: tuple[ModelTensor, ...]) -> ModelTensor | None:
    return next((t for t in tensors if t.name == "token_embd.weight" and t.shape), None)


def _check_vocabulary_size(family: Family, tensors: tuple[ModelTensor, ...], n_tokens: int) -> None:
    """A mismatch loads nowhere, so say it before the work."""
    embedding = _embedding(tensors)
    if embedding is not None and embedding.shape[0] != n_tokens:
        raise UnsupportedModelError(
            f"the embedding has {embedding.shape[0]} rows and the vocabulary {n_tokens} tokens; "
            f"config.json's vocab_size is {family.config.find('vocab_size')!r}: are the files of one model?"
        )
