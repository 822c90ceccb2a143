"""Build llama-cpp-python's wheel once per machine, lean, and keep it in the cache.

    python third_party/build_wheel.py     prints the wheel's path

The registry has no wheels of it. The build leaves out the multimodal library, uses the CPU's own
instructions, and avoids AMX (see pins.py). It needs a C and C++ compiler; cmake comes along if missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pins import CONSTRAINTS, cache_folder, machine_key, pinned_version, without_amx


def find(folder: Path) -> Path | None:
    """The cached wheel, if there is one."""
    return next(iter(sorted(folder.glob(f"llama_cpp_python-{pinned_version()}-*.whl"))), None)


def build(folder: Path) -> Path:
    """Compile the wheel into `folder`; progress and the time it takes are told on stderr."""
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang", "cl")):
        raise SystemExit(
            "no C compiler found; install one (Debian: build-essential, macOS: xcode-select --install)"
        )
    version = pinned_version()
    print(
        f"Compiling llama-cpp-python {version}: once per machine, 4 to 12 minutes on two cores.\n"
        f"The result is kept in {folder}.\n"
        "Faster: put a wheel you already have there, or run make with LLAMA_WHEEL=path/to/it.whl",
        file=sys.stderr,
        flush=True,
    )
    flags = without_amx()
    environment = dict(os.environ)
    environment["CMAKE_ARGS"] = f"-DLLAVA_BUILD=OFF {environment.get('CMAKE_ARGS', '')}".strip()
    for name in ("CFLAGS", "CXXFLAGS"):
        environment[name] = f"{flags} {environment.get(name, '')}".strip()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", scratch, "-c", str(CONSTRAINTS)]
        command += ["--no-binary", "llama-cpp-python", f"llama-cpp-python=={version}"]
        log = folder / "build.log"
        started = time.monotonic()
        with log.open("w") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            while process.poll() is None:
                time.sleep(2)
                if int(time.monotonic() - started) % 30 < 2:
                    print(f"  ... {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        if process.returncode:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
            raise SystemExit(f"the build failed; the end of {log}:\n{tail}")
        wheel = next(Path(scratch).glob("*.whl"))
        print(f"  built in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        # A rename on one file system: two builds at once do not see each other's half.
        return wheel.replace(folder / wheel.name)


def main() -> None:
    folder = cache_folder() / "wheels" / machine_key()
    given = os.environ.get("LLAMA_WHEEL")
    if given:
        if not Path(given).is_file():
            raise SystemExit(f"LLAMA_WHEEL names {given}, which is not a file")
        print(given)
        return
    print(find(folder) or build(folder))


if __name__ == "__main__":
    main()
