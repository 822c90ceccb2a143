"""Fetch and build llama.cpp's own programs, for side-by-side checks only.

The source is the one inside the pinned llama-cpp-python source distribution, so that the programs and
the library under test are the same commit. Nothing of it is committed or shipped.

    python third_party/build_tools.py            build llama-quantize, llama-perplexity, llama-imatrix, llama-gguf-split
    python third_party/build_tools.py --source   only unpack the source (the reference converter is in it)

Prints the folder that holds `bin/` and `source/`. Needs pip, cmake (installed when missing) and a C++ compiler.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from pins import cache_folder, pinned_version, without_amx

TOOLS = ("llama-quantize", "llama-perplexity", "llama-imatrix", "llama-gguf-split", "llama-tokenize")


def fetch_source(folder: Path) -> Path:
    """Unpack vendor/llama.cpp of the pinned source distribution into folder/source, once."""
    source = folder / "source"
    if source.is_dir():
        return source
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        requirement = f"llama-cpp-python=={pinned_version()}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        pip += ["--no-build-isolation", "-d", scratch, requirement]
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "scikit-build-core"], check=True)
        subprocess.run(pip, check=True)
        archive = next(Path(scratch).glob("*.tar.gz"))
        unpacked = Path(scratch) / "unpacked"
        with tarfile.open(archive) as tar:
            members = [m for m in tar.getmembers() if "/vendor/llama.cpp/" in m.name]
            tar.extractall(unpacked, members=members)
        vendored = next(unpacked.glob("*/vendor/llama.cpp"))
        shutil.move(str(vendored), str(source))
    return source


def build(folder: Path, source: Path) -> Path:
    """Configure and compile the tools into folder/bin; skipped when they are all there."""
    binaries = folder / "bin"
    if all((binaries / tool).is_file() for tool in TOOLS):
        return binaries
    cmake = shutil.which("cmake")
    if cmake is None:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "cmake"], check=True)
        cmake = str(Path(sys.executable).with_name("cmake"))
    work = folder / "build"
    flags = without_amx()
    print("building llama.cpp's tools for comparison; about 10 minutes on two cores", file=sys.stderr)
    configure = [cmake, "-S", str(source), "-B", str(work), "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}", "-DLLAMA_BUILD_SERVER=OFF"]
    configure += ["-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_CURL=OFF"]
    configure += ["-DLLAMA_BUILD_UI=OFF", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_BUILD_TOOLS=ON"]
    subprocess.run(configure, check=True, stdout=sys.stderr)
    jobs = str(os.cpu_count() or 2)
    subprocess.run(
        [cmake, "--build", str(work), "-j", jobs, "--target", *TOOLS], check=True, stdout=sys.stderr
    )
    binaries.mkdir(exist_ok=True)
    for tool in TOOLS:
        shutil.copy2(work / "bin" / tool, binaries / tool)
    shutil.rmtree(work)
    return binaries


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", action="store_true", help="only unpack the source")
    options = parser.parse_args()
    folder = cache_folder() / f"llama.cpp-{pinned_version()}"
    folder.mkdir(parents=True, exist_ok=True)
    source = fetch_source(folder)
    if not options.source:
        build(folder, source)
    print(folder)


if __name__ == "__main__":
    main()
