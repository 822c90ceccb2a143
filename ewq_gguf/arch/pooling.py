"""How an embedding model makes one vector of many, as sentence-transformers records it."""

from __future__ import annotations

from pathlib import Path

import gguf

from ewq_gguf.checkpoint.json_file import load_json, load_json_object
from ewq_gguf.errors import CheckpointError, UnsupportedModelError

_KEYS = {
    "pooling_mode_mean_tokens": gguf.PoolingType.MEAN,
    "pooling_mode_cls_token": gguf.PoolingType.CLS,
    "pooling_mode_lasttoken": gguf.PoolingType.LAST,
}
_NAMES = {
    "mean": gguf.PoolingType.MEAN,
    "cls": gguf.PoolingType.CLS,
    "lasttoken": gguf.PoolingType.LAST,
}


def pooling_type(folder: Path) -> gguf.PoolingType | None:
    """What modules.json and the pooling module's config say, or None for a model that is no embedding model.

    Raises:
        CheckpointError: modules.json names a place outside the folder, or a file is damaged.
        UnsupportedModelError: a way of pooling that llama.cpp does not have.
    """
    file = folder / "modules.json"
    if not file.is_file():
        return None
    modules = load_json(file)
    entries = [m for m in modules if isinstance(m, dict)] if isinstance(modules, list) else []
    module = next((m for m in entries if str(m.get("type", "")).endswith("Pooling")), None)
    if module is None:
        return None
    inside = (folder / str(module.get("path", ""))).resolve()
    if not inside.is_relative_to(folder.resolve()):
        raise CheckpointError(f"{file} names a module outside the checkpoint: {module.get('path')!r:.80}")
    config = load_json_object(inside / "config.json")
    for key, kind in _KEYS.items():
        if config.get(key):
            return kind
    name = config.get("pooling_mode")
    if name not in _NAMES:
        raise UnsupportedModelError(f"{inside / 'config.json'}: pools in a way that llama.cpp does not know")
    return _NAMES[name]
