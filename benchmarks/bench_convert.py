"""One pass against two: ewq-gguf, and llama.cpp's convert_hf_to_gguf.py followed by llama-quantize.

    python benchmarks/bench_convert.py [--size 1GB,4GB] [--types Q8_0,Q4_K_M,EWQ] [--threads N] [--warm]

Makes a bf16 checkpoint of Llama shape in a temporary folder and removes it. The other side needs `make tools`
and a Python with torch in EWQ_REFERENCE_PYTHON; without them only our own figures are shown. Each run starts
with its source dropped from the page cache; --warm starts with it in the cache.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "third_party"))

from pins import cache_folder, pinned_version
from processes import Usage, forget, remember, run
from synthetic import llama_of, write_checkpoint

from ewq_gguf.allocation.parsing import parse_size

_HEAD = (
    "| source | output | program | wall, s | CPU, s | peak RSS, MB | read, MB | written, MB | output, MB |"
)


def _row(source: int, kind: str, who: str, usage: Usage, output: int) -> str:
    figures = [usage.peak, usage.read, usage.written, output]
    cells = [f"{usage.wall:.2f}", f"{usage.cpu:.2f}", *(f"{n / 1e6:.0f}" for n in figures)]
    return " | ".join(["", f"{source / 1e9:.2f} GB", kind, who, *cells, ""]).strip()


class Bench:
    """One checkpoint, and both ways to go."""

    def __init__(self, folder: Path, checkpoint: Path, threads: int, warm: bool) -> None:
        self.folder, self.checkpoint, self.threads, self.warm = folder, checkpoint, threads, warm
        self.log = folder / "log.txt"
        self.tools = cache_folder() / f"llama.cpp-{pinned_version()}"
        self.torch = os.environ.get("EWQ_REFERENCE_PYTHON", "")

    @property
    def has_reference(self) -> bool:
        return bool(self.torch) and (self.tools / "bin" / "llama-quantize").is_file()

    def _ready(self) -> None:
        shards = list(self.checkpoint.glob("*.safetensors"))
        (remember if self.warm else forget)(shards)

    def ours(self, kind: str) -> tuple[Usage, int]:
        """One pass to a preset, or with EWQ's analysis before."""
        out = self.folder / "ours.gguf"
        self._ready()
        wish = ["--method", "ewq"] if kind == "EWQ" else ["--type", kind]
        command = [sys.executable, "-m", "ewq_gguf", "-q", "convert", str(self.checkpoint), "-o", str(out)]
        usage = run([*command, *wish, "--threads", str(self.threads)], self.log)
        return usage, _take(out)

    def theirs(self, kind: str) -> tuple[Usage, int]:
        """To 16 bits with torch, then to the preset."""
        between, out = self.folder / "between.gguf", self.folder / "theirs.gguf"
        self._ready()
        converter = self.tools / "source" / "convert_hf_to_gguf.py"
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        first = run(
            [
                self.torch,
                str(converter),
                str(self.checkpoint),
                "--outfile",
                str(between),
                "--outtype",
                "bf16",
            ],
            self.log,
            {**os.environ, **threads},
        )
        if not self.warm:
            forget([between])
        program = self.tools / "bin" / "llama-quantize"
        second = run([str(program), str(between), str(out), kind, str(self.threads)], self.log)
        between.unlink()
        return first.then(second), _take(out)


def _take(path: Path) -> int:
    """The size of a file that is no longer needed."""
    size = path.stat().st_size
    path.unlink()
    return size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="1GB", help="of the checkpoint; several with commas")
    parser.add_argument("--types", default="Q8_0,Q4_K_M,EWQ")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=1, help="the fastest of so many runs counts")
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    options = parser.parse_args()
    lines, ratios = [_HEAD, "|" + "---|" * 9], []
    for text in options.size.split(","):
        folder = Path(tempfile.mkdtemp(prefix="ewq-bench-", dir=options.folder))
        try:
            checkpoint = folder / "checkpoint"
            source = write_checkpoint(checkpoint, llama_of(parse_size(text)))
            bench = Bench(folder, checkpoint, options.threads, options.warm)
            for kind in options.types.split(","):
                ours, size = min((bench.ours(kind) for _ in range(options.repeat)), key=lambda r: r[0].wall)
                lines.append(_row(source, kind, "ewq-gguf", ours, size))
                if kind == "EWQ" or options.only_ours or not bench.has_reference:
                    continue
                theirs, size = min(
                    (bench.theirs(kind) for _ in range(options.repeat)), key=lambda r: r[0].wall
                )
                lines.append(_row(source, kind, "llama.cpp, two steps", theirs, size))
                ratios.append(
                    f"- {text}, {kind}: wall {ours.wall / theirs.wall:.2f} x, CPU {ours.cpu / theirs.cpu:.2f} x, "
                    f"peak memory {ours.peak / theirs.peak:.2f} x, written {ours.written / theirs.written:.2f} x"
                )
            if not bench.has_reference:
                print("without EWQ_REFERENCE_PYTHON and `make tools`: our own figures only", file=sys.stderr)
        finally:
            shutil.rmtree(folder)
    start = "in the page cache" if options.warm else "dropped from the page cache"
    print(f"{options.threads} threads, source {start} before each run\n")
    print("\n".join([*lines, "", *ratios]))


if __name__ == "__main__":
    main()
