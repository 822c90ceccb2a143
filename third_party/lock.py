"""Write the lock files: every package that development installs, with its version and the hashes of all its files.

    python third_party/lock.py            write them anew, from pyproject.toml and constraints.txt
    python third_party/lock.py --check    say whether they still fit; exit code 1 when not

One lock serves Python 3.10 and later on Linux, macOS and Windows: versions that differ carry markers. The
resolver (uv, pinned below) is installed into the cache folder. llama-cpp-python is compiled on the spot, so
its lock is apart and names its source distribution.

    python -m pip install --require-hashes -r third_party/development.lock
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from pins import CONSTRAINTS, cache_folder, pinned_version

HERE = Path(__file__).parent
UV = "0.13.9"
PIP_AUDIT = "2.10.1"
ATHERIS = "3.0.0"
_NATIVE = "llama-cpp-python"


def tool_environment(name: str, *requirements: str) -> Path:
    """The folder of programs of an environment in the cache that holds `requirements`."""
    folder = cache_folder() / "environments" / name
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    if not (folder / "complete").is_file():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(programs / "python"), "-m", "pip", "install", "--quiet", *requirements]
        subprocess.run(pip, check=True)
        (folder / "complete").touch()
    return programs


def resolve(source: list[str], *, text: str = "", python: str = "3.10") -> str:
    """uv's resolution for all systems, without anything that names a machine or an index."""
    uv = tool_environment(f"uv-{UV}", f"uv=={UV}") / "uv"
    command = [str(uv), "pip", "compile", "--quiet", "--universal", "--python-version", python]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", *source]
    environment = dict(os.environ)
    # Where pip was told of another certificate, uv needs it too.
    if "PIP_CERT" in environment:
        environment.setdefault("SSL_CERT_FILE", environment["PIP_CERT"])
    with tempfile.TemporaryDirectory() as scratch:
        if text:
            wanted = Path(scratch) / "wanted.in"
            wanted.write_text(text, encoding="utf-8")
            command.append(str(wanted))
        done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the resolver failed:\n{done.stderr}")
    return "".join(line for line in done.stdout.splitlines(keepends=True) if not line.startswith("#"))


def locks() -> dict[str, str]:
    """Content of every lock file by name."""
    constrained = ["-c", str(CONSTRAINTS.relative_to(HERE.parent))]
    ours = ["pyproject.toml", "--extra", "dev", "--extra", "plot", "--no-emit-package", _NATIVE]
    native = f"{_NATIVE}=={pinned_version()}\n"
    return {
        "development.lock": resolve([*ours, *constrained]),
        "native.lock": resolve(["--no-deps", "--no-binary", _NATIVE], text=native),
        "audit.lock": resolve([], text=f"pip-audit=={PIP_AUDIT}\n"),
        "fuzz.lock": resolve([], text=f"atheris=={ATHERIS}\n", python="3.11"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    stale = []
    for name, text in locks().items():
        path = HERE / name
        if options.check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{path.name}: {text.count('==')} packages, {text.count('--hash=')} files", file=sys.stderr)
    if stale:
        raise SystemExit(f"no longer what the index gives: {', '.join(stale)}; run third_party/lock.py")


if __name__ == "__main__":
    main()
