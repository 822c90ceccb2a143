"""llama.cpp's own converter, in an environment of its own with torch and transformers.

    with ReferenceConverter() as reference:
        reference.convert(folder, target, "bf16")

The environment is made once in the cache folder; EWQ_REFERENCE_PYTHON names an interpreter to use instead.
Where the registry's torch comes with gigabytes for graphics cards, PIP_EXTRA_INDEX_URL can name one without.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from types import TracebackType

sys.path.insert(0, str(Path(__file__).parent))
from build_tools import cache_folder, fetch_source, pinned_version

REQUIREMENTS = (
    "torch==2.13.0",
    "transformers==5.23.0",
    "numpy",
    "sentencepiece",
    "protobuf",
    "safetensors",
    "PyYAML",
)


def reference_python() -> Path:
    """The interpreter that has torch and transformers; installs them on first use."""
    named = os.environ.get("EWQ_REFERENCE_PYTHON")
    if named:
        return Path(named)
    folder = cache_folder() / "reference-environment"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = folder / "requirements.txt"
    wanted = "\n".join(REQUIREMENTS)
    if done.is_file() and done.read_text() == wanted:
        return python
    print("installing torch and transformers for the reference converter, once", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True, stdout=sys.stderr)
    done.write_text(wanted)
    return python


class ReferenceConverter:
    """The converter as one process that is given folder after folder, so that torch is imported once."""

    def __init__(self) -> None:
        folder = cache_folder() / f"llama.cpp-{pinned_version()}"
        folder.mkdir(parents=True, exist_ok=True)
        worker = Path(__file__).with_name("reference_worker.py")
        command = [str(reference_python()), str(worker), str(fetch_source(folder))]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        if self._read() != "ready":
            raise RuntimeError(f"the reference converter does not start: {' '.join(command)}")

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def convert(self, folder: Path, target: Path, kind: str, pre: str | None = None) -> None:
        """Convert `folder` to `target` as --outtype `kind`; `pre` stands in for its pre-tokenizer detection.

        Raises:
            RuntimeError: the converter failed; the message is its traceback.
        """
        assert self._process.stdin is not None
        job = {"folder": str(folder), "target": str(target), "type": kind, "pre": pre}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._read() or '{"error": "the reference converter died"}')
        if answer["error"]:
            raise RuntimeError(answer["error"])

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def __enter__(self) -> ReferenceConverter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
