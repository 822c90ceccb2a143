"""What both build programs share: the pinned version, the cache folder, compiler flags."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from pathlib import Path

CONSTRAINTS = Path(__file__).with_name("constraints.txt")
# The pinned llama.cpp crashes in its AMX kernels on quantized files; everything is built without them.
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


def cache_folder() -> Path:
    """Where wheels and tools are kept between checkouts: EWQ_GGUF_CACHE, XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("EWQ_GGUF_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ewq-gguf"


def pinned_version() -> str:
    """The version of llama-cpp-python in constraints.txt."""
    match = re.search(r"^llama-cpp-python==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE)
    if match is None:
        raise SystemExit(f"{CONSTRAINTS} does not pin llama-cpp-python")
    return match.group(1)


def without_amx() -> str:
    """The flags that leave AMX out, or nothing where the compiler does not know them (arm64, old gcc)."""
    compiler = os.environ.get("CC", "cc")
    probe = [compiler, *NO_AMX.split(), "-x", "c", "-fsyntax-only", os.devnull]
    try:
        return NO_AMX if subprocess.run(probe, capture_output=True).returncode == 0 else ""
    except OSError:
        return ""


def machine_key() -> str:
    """Names the kind of CPU: a library built for one may not run on another."""
    flags = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    text = f"{platform.system()} {platform.machine()} {platform.processor()} {sorted(flags.split())}"
    return f"{platform.system().lower()}-{platform.machine().lower()}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
