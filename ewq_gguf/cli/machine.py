"""`ewq-gguf models` and `ewq-gguf doctor`."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import click

from ewq_gguf._version import __version__
from ewq_gguf.arch import supported_architectures
from ewq_gguf.cli.options import json_option
from ewq_gguf.cli.terminal import Terminal, format_bytes
from ewq_gguf.errors import EwqError
from ewq_gguf.evaluation.native import cpu_features
from ewq_gguf.ggml import ggml

_PACKAGES = ("llama-cpp-python", "gguf", "numpy", "sentencepiece", "tokenizers", "click", "rich")
Check = tuple[bool, str]


@click.command("models")
@json_option
@click.pass_obj
def models_command(terminal: Terminal, as_json: bool) -> None:
    """The architectures that can be converted, as config.json names them."""
    found = supported_architectures()
    if as_json:
        terminal.json([{"architecture": name, "family": family} for name, family in found.items()])
        return
    families: dict[str, list[str]] = {}
    for name, family in found.items():
        families.setdefault(family, []).append(name)
    rows = [[family, ", ".join(names)] for family, names in sorted(families.items())]
    terminal.table("", [("family", False), ("architectures in config.json", False)], rows)
    terminal.result(f"{len(found)} architectures in {len(families)} families")


@click.command("doctor")
@json_option
@click.pass_context
def doctor_command(ctx: click.Context, as_json: bool) -> None:
    """Is this machine ready? Versions, native library, CPU, a crash test, disk space.

    Exit code 1 when something must be mended.
    """
    terminal: Terminal = ctx.obj
    checks = {name: _run(check) for name, check in _CHECKS.items()}
    if as_json:
        terminal.json([{"check": name, "ok": ok, "finding": text} for name, (ok, text) in checks.items()])
    else:
        rows = [["ok" if ok else "PROBLEM", name, text] for name, (ok, text) in checks.items()]
        terminal.table("", [("", False), ("check", False), ("finding", False)], rows)
    if not all(ok for ok, _ in checks.values()):
        ctx.exit(1)


def _run(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except EwqError as error:
        return False, str(error)


def _python() -> Check:
    version = platform.python_version()
    return sys.version_info >= (3, 10), f"{version} on {platform.system()} {platform.machine()}"


def _packages() -> Check:
    versions = {name: _version(name) for name in _PACKAGES}
    missing = [name for name, version in versions.items() if version is None]
    found = [f"ewq-gguf {__version__}", *(f"{name} {version}" for name, version in versions.items())]
    if missing:
        return False, f"missing {', '.join(missing)}: pip install {' '.join(missing)}"
    return True, ", ".join(found)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _library() -> Check:
    library = ggml()
    return True, f"ggml {library.version}, types as expected, {library.path}"


def _cpu() -> Check:
    """What the native library was compiled for and found in this processor."""
    found = cpu_features()
    return bool(found), ", ".join(
        found
    ) if found else "the native library reports no features of the processor"


def _compiler() -> Check:
    """Only needed to compile llama-cpp-python; with the library there, its absence is no fault."""
    found = [name for name in ("cc", "c++", "cl") if shutil.which(name)]
    if not found:
        return True, "none found; needed only to install llama-cpp-python again"
    return True, ", ".join(str(shutil.which(name)) for name in found)


def _programs() -> Check:
    """Programs that finished files can be handed to."""
    found = [name for name in ("ollama", "lms", "llama-cli") if shutil.which(name)]
    return True, ", ".join(
        found
    ) if found else "none of ollama, lms, llama-cli on the path; files can be made anyway"


def _crash_test(use_extra_bufts: bool) -> Check:
    from ewq_gguf.evaluation.crash import probe_engine

    result = probe_engine(use_extra_bufts, refresh=True)
    return result.safe is not False, result.sentence


def _repacking() -> Check:
    """Repacked weights are faster but off by default; a crash there is worth knowing, not mending."""
    ok, sentence = _crash_test(True)
    return True, sentence if ok else f"{sentence}; it stays off, nothing to do"


def _disk() -> Check:
    usage = shutil.disk_usage(Path.cwd())
    return usage.free > 1 << 30, f"{format_bytes(usage.free)} free in {Path.cwd()}"


_CHECKS: dict[str, Callable[[], Check]] = {
    "python": _python,
    "packages": _packages,
    "compiler": _compiler,
    "native library": _library,
    "processor": _cpu,
    "quantized model runs": lambda: _crash_test(False),
    "with repacked weights": _repacking,
    "disk": _disk,
    "programs": _programs,
}
