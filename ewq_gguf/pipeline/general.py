"""The general.* keys: what the model card, config.json, generation_config.json and the folder's name say of a model.

Names are taken apart as llama.cpp's converter does, by gguf's own rules (gguf-py/gguf/metadata.py); the files
are read here, for they are untrusted. A model card is prose with a YAML head written by hand, and nothing
depends on it: what cannot be used of it is left out with a note. Sampling values in generation_config.json
take part in what a model writes: one that cannot be stored is refused.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ewq_gguf.checkpoint.hub import hub_origin
from ewq_gguf.checkpoint.json_file import load_json_object
from ewq_gguf.errors import CheckpointError
from ewq_gguf.model import ModelTensor

_log = logging.getLogger(__name__)

CARD, GENERATION = "README.md", "generation_config.json"
_MAX_CARD_BYTES = 4 << 20
# Heads with benchmark results reach 300 kB. The parser written in Python reads about 100 kB a second.
_MAX_HEAD, _MAX_SLOW_HEAD = 1 << 20, 1 << 17
_HEAD_ENDS = "---"

# generation_config.json -> field of gguf.Metadata; whole numbers are stored as INT32, others as FLOAT32.
_TEXTS = {"sequence": "sampling_sequence"}
_INTEGERS = {
    "top_k": "sampling_top_k",
    "penalty_last_n": "sampling_penalty_last_n",
    "mirostat": "sampling_mirostat",
}
_NUMBERS = {
    "top_p": "sampling_top_p",
    "min_p": "sampling_min_p",
    "xtc_probability": "sampling_xtc_probability",
    "xtc_threshold": "sampling_xtc_threshold",
    "temperature": "sampling_temp",
    "penalty_repeat": "sampling_penalty_repeat",
    "mirostat_tau": "sampling_mirostat_tau",
    "mirostat_eta": "sampling_mirostat_eta",
}
_F32_LIMIT = 3.4e38


def general_metadata(
    folder: Path, config: Mapping[str, Any], tensors: tuple[ModelTensor, ...]
) -> gguf.Metadata:
    """Name, version, licence, tags, sampling values and the like, as llama.cpp's converter finds them.

    Raises:
        CheckpointError: a sampling value of generation_config.json is none.
    """
    counter = gguf.GGUFWriter(None, "llama")
    for tensor in tensors:
        counter.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), 0)
    total, shared, expert, n_experts = counter.get_total_parameter_count()
    metadata = _described(folder, config, total)
    _add_sampling(metadata, folder / GENERATION)
    origin = hub_origin(folder)
    if origin is not None and metadata.source_repo_url is None:
        metadata.source_repo_url = origin.url
    if metadata.name is None:
        metadata.name = _text_name(folder.resolve())
    if metadata.size_label is None and total > 0:
        metadata.size_label = gguf.size_label(total, shared, expert, n_experts)
    return metadata


def _described(folder: Path, config: Mapping[str, Any], total: int) -> gguf.Metadata:
    name = config.get("_name_or_path")
    known = {"_name_or_path": name} if isinstance(name, str) and _is_text(name) else {}
    # "." has no name, and the locale has no say in what a folder is called.
    named = Path(_text_name(folder if folder.name not in ("", "..") else folder.resolve()))
    for card in (_card(folder / CARD), {}):
        try:
            found = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), card, known, named, total)
        except Exception as error:
            _log.warning("%s is left out: %s", folder / CARD, error)
            continue
        return _storable(found, folder / CARD)
    return gguf.Metadata()


def _text_name(folder: Path) -> str:
    return os.fsencode(folder.name).decode("utf-8", "replace")


def _card(path: Path) -> dict[str, Any]:
    """The YAML head of a model card; empty where there is none or it cannot be used."""
    try:
        if not path.is_file():
            return {}
        with path.open("rb") as file:
            text = file.read(_MAX_CARD_BYTES).decode("utf-8", "ignore")
        lines = text.splitlines()
        if not lines or lines[0] != _HEAD_ENDS:
            return {}
        end = lines.index(_HEAD_ENDS, 1) if _HEAD_ENDS in lines[1:] else len(lines)
        # As the converter reads it: "no" is a language, and tabs are spaces.
        head = ("\n".join(lines[1:end]) + "\n").replace("- no\n", '- "no"\n').replace("\t", "  ")
        found = _parsed(head)
    except Exception as error:
        _log.warning("%s is left out: %s", path, " ".join(str(error).split())[:200])
        return {}
    if found is None:
        return {}
    if not isinstance(found, dict):
        _log.warning("%s is left out: its head is no list of names and values", path)
        return {}
    return {key: value for key, value in found.items() if isinstance(key, str)}


def _parsed(head: str) -> Any:
    yaml = importlib.import_module("yaml")
    fast = getattr(yaml, "CSafeLoader", None)
    limit = _MAX_SLOW_HEAD if fast is None else _MAX_HEAD
    if len(head) > limit:
        raise ValueError(f"its head has {len(head):,} characters, more than {limit:,}")
    if "<<" in head:
        # Merged keys double with every level.
        raise ValueError("its head merges keys with <<")
    return yaml.load(head, Loader=fast or yaml.SafeLoader)


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _storable(metadata: gguf.Metadata, source: Path) -> gguf.Metadata:
    """The metadata without the values that are not what their keys hold."""
    for item in fields(metadata):
        value = getattr(metadata, item.name)
        if value is None or (
            item.name == "license" and isinstance(value, list) and all(map(_is_text, value))
        ):
            continue
        kept: Any = value
        if item.name in ("base_models", "datasets"):
            kept = [
                {k: v for k, v in entry.items() if _is_text(v)} if isinstance(entry, dict) else {}
                for entry in value
            ]
        elif isinstance(value, list):
            kept = [entry for entry in value if _is_text(entry)]
        elif not _is_text(value):
            kept = None
        if kept != value:
            _log.warning("%s: what it says of %s is no text, and is left out", source, item.name)
            setattr(metadata, item.name, kept)
    return metadata


def _add_sampling(metadata: gguf.Metadata, path: Path) -> None:
    if not path.is_file():
        return
    try:
        values = load_json_object(path)
    except CheckpointError as error:
        # The converter passes over a damaged one too: not all models have a valid one.
        _log.warning("left out: %s", error)
        return
    for table, kind, fits in (
        (_TEXTS, "a text", _is_text),
        (_INTEGERS, "a whole number of 32 bits", _is_integer),
        (_NUMBERS, "a finite number", _is_number),
    ):
        for key, name in table.items():
            if (value := values.get(key)) is None:
                continue
            if not fits(value):
                raise CheckpointError(
                    f"{path} gives {key} = {value!r:.60}, not {kind}; correct it or remove the file"
                )
            setattr(metadata, name, value)
    penalty = values.get("repetition_penalty")
    if metadata.sampling_penalty_repeat is None and penalty is not None:
        if not _is_number(penalty):
            raise CheckpointError(
                f"{path} gives repetition_penalty = {penalty!r:.60}, not a finite number; correct it or remove the file"
            )
        metadata.sampling_penalty_repeat = penalty


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**31) <= value < 2**31


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= _F32_LIMIT and not math.isnan(value)
