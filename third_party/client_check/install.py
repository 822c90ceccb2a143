"""Get each program from its registry, into an environment of its own in the cache folder.

Nothing is installed system-wide but Chromium and clang, and those only where the caller allows it. Requirements that are
there already are not touched, so a second run costs nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pins import cache_folder

from client_check.catalogue import WORKERS, Client

# Debian's package first, then what else the program is called.
PROGRAMS = {"chromium": ("chromium", "chromium-browser", "google-chrome"), "clang": ("clang",)}
_SECONDS = 1200


class CannotInstallError(Exception):
    """The program is not to be had here; the message is the reason."""


@dataclass(frozen=True)
class Installed:
    """A program that is ready.

    Attributes:
        command: what runs its worker, to which the request's path is added.
        version: of the program's own package.
    """

    client: Client
    command: tuple[str, ...]
    version: str
    environment: dict[str, str]


def install(client: Client, *, system: bool = False) -> Installed:
    """Install the program unless it is there.

    Args:
        system: Debian's packages that it needs may be installed.

    Raises:
        CannotInstallError: no interpreter, no such package here, no room; the message says which.
    """
    worker = str(WORKERS / client.worker)
    if client.kind == "self":
        return Installed(client, (sys.executable, worker), version(client.packages[0]), {})
    if client.kind == "reference":
        return _reference(client, worker)
    folder = cache_folder() / "clients" / _bare(client.packages[0]).replace("/", "-")
    environment = {f"CLIENT_{name.upper()}": _program(name, system) for name in client.needs}
    if client.kind == "pypi":
        python = _python_environment(folder, client.packages)
        found = _ask(
            python, f"import importlib.metadata as m; print(m.version({_bare(client.packages[0])!r}))"
        )
        return Installed(client, (str(python), worker), found, environment)
    environment["CLIENT_MODULES"] = str(folder / "node_modules")
    node = _node_modules(folder, client.packages)
    described = json.loads((folder / "node_modules" / client.packages[0] / "package.json").read_text())
    return Installed(client, (node, worker), described["version"], environment)


def _reference(client: Client, worker: str) -> Installed:
    """The environment with torch, and beside it what else the program asks for."""
    from reference_converter import reference_python

    extra = cache_folder() / "clients" / f"{client.packages[0]}-extra"
    try:
        python = reference_python()
        found = _ask(python, f"import {client.packages[0]}; print({client.packages[0]}.__version__)")
    except (OSError, subprocess.SubprocessError) as error:
        raise CannotInstallError(f"no environment with torch: {error}") from error
    if not extra.is_dir():
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        _run([*command, "--target", str(extra), *client.packages[1:]])
    return Installed(client, (str(python), worker), found, {"PYTHONPATH": str(extra)})


def _python_environment(folder: Path, packages: tuple[str, ...]) -> Path:
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = folder / "requirements.txt"
    wanted = "\n".join(packages)
    if done.is_file() and done.read_text() == wanted:
        return python
    venv.create(folder, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Only what is ready to run: compiling an inference engine takes an hour.
    _run([*command, "--only-binary", ":all:", *packages])
    done.write_text(wanted)
    return python


def _node_modules(folder: Path, packages: tuple[str, ...]) -> str:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise CannotInstallError("Node.js and npm are not installed")
    done = folder / "requirements.txt"
    wanted = "\n".join(packages)
    if not (done.is_file() and done.read_text() == wanted):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}\n')
        # Scripts would fetch or compile binaries; the ones that are used come as packages.
        _run([npm, "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts",
              "--prefix", str(folder), *packages])  # fmt: skip
        done.write_text(wanted)
    return node


def _program(name: str, system: bool) -> str:
    """A program of the system; its path may be given in a variable of its name, CHROMIUM or CLANG."""
    known = PROGRAMS[name]
    found = os.environ.get(name.upper()) or next((path for n in known if (path := shutil.which(n))), None)
    if found is None and system and shutil.which("apt-get"):
        _run(["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", name])
        found = shutil.which(name)
    if found is None:
        raise CannotInstallError(f"no {name}; install it, name one in {name.upper()}, or run with --system")
    return found


def _bare(requirement: str) -> str:
    return requirement.split("[")[0].split("=")[0]


def _ask(python: Path, code: str) -> str:
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.strip()


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.CalledProcessError as error:
        lines = [line.strip() for line in (error.stderr or error.stdout or "").splitlines() if line.strip()]
        reason = next((line for line in lines if "rror" in line), lines[-1] if lines else str(error))
        raise CannotInstallError(f"{Path(command[0]).name}: {reason[:200]}") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise CannotInstallError(str(error)[:200]) from error
