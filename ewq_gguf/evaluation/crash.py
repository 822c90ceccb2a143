"""Does this machine's llama.cpp survive a quantized file? Found out in a child process, and remembered.

Some builds of llama.cpp die with SIGSEGV in their AMX kernels as soon as a quantized matrix with repacked
weights is multiplied. A signal cannot be caught in the process that gets it, so a child runs a tiny quantized
model first.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.native import library_path

_TIMEOUT = 120.0
_MEMORY = "native-probe.json"
_SURVIVED = "survived"
_REINSTALL = (
    "reinstall it without AMX: "
    "CMAKE_ARGS=\"-DCMAKE_C_FLAGS='-mno-amx-tile -mno-amx-int8 -mno-amx-bf16' "
    "-DCMAKE_CXX_FLAGS='-mno-amx-tile -mno-amx-int8 -mno-amx-bf16'\" "
    "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
)


@dataclass(frozen=True)
class ProbeResult:
    """What became of the child.

    Attributes:
        safe: True if it ran to its end, False if it died, None if it could not be tried.
        sentence: the same for a person.
    """

    safe: bool | None
    sentence: str


def cache_folder() -> Path:
    """Where results are remembered: EWQ_GGUF_CACHE, XDG_CACHE_HOME/ewq-gguf or ~/.cache/ewq-gguf."""
    chosen = os.environ.get("EWQ_GGUF_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ewq-gguf"


def machine_key() -> str:
    """Identity of the native library files (path, size, time) and of the CPU, as a hexadecimal digest."""
    library = library_path()
    parts = [sys.platform, platform.machine(), _cpu_flags()]
    for file in sorted(library.parent.glob("*")):
        if file.is_file():
            status = file.stat()
            parts.append(f"{file} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _cpu_flags() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    except OSError:
        pass
    return platform.processor()


def _child_command(model: Path, use_extra_bufts: bool) -> list[str]:
    module = "ewq_gguf.evaluation.crash_child"
    return [sys.executable, "-m", module, str(model), "1" if use_extra_bufts else "0"]


def run_probe(use_extra_bufts: bool) -> ProbeResult:
    """Run the child now, without looking at what is remembered."""
    from ewq_gguf.evaluation.tiny_model import TinyModel, write_tiny_model

    types = {"attn": "Q8_0", "ffn": "Q4_K", "embd": "Q8_0", "output": "Q6_K"}
    shape = TinyModel(n_embd=256, n_ff=256, n_blocks=1, types=types)
    # The child must find this package wherever the parent did.
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    try:
        with tempfile.TemporaryDirectory(prefix="ewq-gguf-") as folder:
            model = write_tiny_model(Path(folder) / "probe.gguf", shape)
            child = subprocess.run(
                _child_command(model, use_extra_bufts),
                capture_output=True,
                timeout=_TIMEOUT,
                env=environment,
                check=False,
            )
    except subprocess.TimeoutExpired:
        return ProbeResult(None, f"llama.cpp did not finish a tiny quantized model within {_TIMEOUT:.0f} s")
    except OSError as error:
        return ProbeResult(None, f"llama.cpp could not be tried in a child process ({error})")
    how = "with" if use_extra_bufts else "without"
    if child.returncode == 0 and _SURVIVED.encode() in child.stdout:
        return ProbeResult(True, f"llama.cpp runs quantized files {how} repacked weights")
    if child.returncode < 0 or child.returncode > 128:
        return ProbeResult(
            False,
            f"llama.cpp crashes on quantized files {how} repacked weights ({_cause(child.returncode)})",
        )
    last = child.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
    return ProbeResult(None, f"llama.cpp could not be tried: {last[0]}")


def _cause(code: int) -> str:
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code:#x}"


def probe_engine(use_extra_bufts: bool = False, *, refresh: bool = False) -> ProbeResult:
    """The remembered answer for this library and CPU, or a fresh one (about a second).

    Args:
        use_extra_bufts: whether weights are repacked, as `Engine` is told.
        refresh: try again even if the answer is known.
    """
    if refresh:
        _probe_once.cache_clear()
    return _probe_once(bool(use_extra_bufts), str(cache_folder()), refresh)


@lru_cache(maxsize=8)
def _probe_once(use_extra_bufts: bool, folder: str, refresh: bool) -> ProbeResult:
    key = f"{machine_key()}-{int(use_extra_bufts)}"
    memory = Path(folder) / _MEMORY
    known = _remembered(memory)
    entry = known.get(key)
    if not refresh and isinstance(entry, dict):
        safe, sentence = entry.get("safe"), entry.get("sentence")
        if isinstance(safe, bool) and isinstance(sentence, str):
            return ProbeResult(safe, sentence)
    result = run_probe(use_extra_bufts)
    if result.safe is not None:
        _remember(memory, key, result)
    return result


def _remembered(memory: Path) -> dict[str, object]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(memory: Path, key: str, result: ProbeResult) -> None:
    """Best effort: a read-only home costs a second per run, nothing else."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        known = _remembered(memory)
        known[key] = {"safe": result.safe, "sentence": result.sentence}
        part = memory.with_name(f"{memory.name}.{os.getpid()}")
        part.write_text(json.dumps(known, indent=1), encoding="utf-8")
        part.replace(memory)
    except OSError:
        pass


def engine_is_safe(use_extra_bufts: bool = False) -> bool:
    """False only if llama.cpp is known to die on quantized files; an inconclusive probe counts as safe."""
    return probe_engine(use_extra_bufts).safe is not False


def require_safe_engine(path: Path, *, use_extra_bufts: bool) -> None:
    """Refuse to load a quantized file where llama.cpp would take the process with it.

    Raises:
        EvaluationError: with what happened and what to do.
    """
    result = probe_engine(use_extra_bufts)
    if result.safe is not False:
        return
    if use_extra_bufts and engine_is_safe(False):
        raise EvaluationError(
            f"{path} is not loaded: {result.sentence}; leave use_extra_bufts off, which works on this machine"
        )
    raise EvaluationError(f"{path} is not loaded: {result.sentence} in {library_path()}; {_REINSTALL}")
