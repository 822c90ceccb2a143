"""Sound checkpoints and GGUF files to be damaged, each made once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from ewq_gguf.api import convert
from ewq_gguf.decision import Decision
from ewq_gguf.evaluation.tiny_model import TinyModel, write_tiny_model
from tests.tiny import established, newest
from tests.tiny.build import build
from tests.tiny.case import Case


def _cases() -> dict[str, Case]:
    found = {case.name: case for case in (*established.CASES, *newest.CASES)}
    return found | {"llama": established.LLAMA, "qwen2": established.QWEN2}


class Workshop:
    """A folder of sound models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cases = _cases()

    def _once(self, name: str, make: Callable[[Path], object]) -> Path:
        path = self.folder / name
        if not path.exists():
            make(path)
        return path

    def sound(self, base: str) -> Path:
        """The sound checkpoint of that name itself; do not write into it."""
        return self._once(base, lambda path: build(self._cases[base], path))

    def checkpoint(self, base: str, folder: Path) -> Path:
        """A copy of the sound checkpoint of that name."""
        shutil.copytree(self.sound(base), folder)
        return folder

    def sharded(self, folder: Path) -> Path:
        """A copy of the Llama whose only shard is named by an index."""
        self.checkpoint("llama", folder)
        shard = folder / "model-00001-of-00001.safetensors"
        (folder / "model.safetensors").rename(shard)
        data = shard.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        names = [name for name in header if name != "__metadata__"]
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard.name)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        return folder

    def gguf(self) -> Path:
        """The Llama as an F16 GGUF file."""
        return self._once(
            "sound.gguf", lambda path: convert(self.sound("llama"), path, Decision(type="f16"), threads=1)
        )

    def runnable(self) -> Path:
        """A model small enough to be run in no time."""
        return self._once("runnable.gguf", lambda path: write_tiny_model(path, TinyModel()))
