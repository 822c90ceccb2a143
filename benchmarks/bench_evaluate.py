"""Wall time of `evaluate` against llama-perplexity: perplexity alone, and baseline plus divergence.

    make bench-evaluate

Whole processes in turn on the reference model in Q8_0, the best of three, as ratios of one run; enough contexts that the
work counts and not the start of an interpreter. Wants `make tools` and an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from processes import Usage, run

from ewq_gguf.api import convert
from ewq_gguf.decision import Decision
from ewq_gguf.evaluation.crash import cache_folder

HERE = Path(__file__).parent
TEXT = HERE / "data" / "evaluation.txt"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=80, help="contexts of 512 tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    found = sorted(cache_folder().glob("llama.cpp-*/bin/llama-perplexity"))
    if not found:
        sys.exit("llama-perplexity is not built; run `make tools`")
    with tempfile.TemporaryDirectory(prefix="ewq-gguf-") as scratch:
        folder = Path(scratch)
        baseline, candidate, kept = (folder / name for name in ("base.gguf", "q8.gguf", "base.bin"))
        convert(HERE / "reference-10m", baseline, Decision(type="bf16"))
        convert(HERE / "reference-10m", candidate, Decision(type="Q8_0"))
        threads, chunks = str(options.threads), str(options.chunks)
        program = [str(found[-1]), "-c", "512", "-t", threads, "--chunks", chunks, "--no-repack"]
        program += ["-f", str(TEXT)]
        ours = [sys.executable, "-m", "ewq_gguf", "-q", "evaluate"]
        common = ["--text", str(TEXT), "--threads", threads, "--chunks", chunks, "--json"]

        def took(*command: Sequence[str]) -> Usage:
            return run([str(part) for piece in command for part in piece], folder / "log")

        def perplexity() -> tuple[Usage, Usage]:
            theirs = took(program, ["-m", str(candidate)])
            return took(ours, ["perplexity", str(candidate)], common), theirs

        def divergence() -> tuple[Usage, Usage]:
            base_file = ["--kl-divergence-base", str(kept)]
            theirs = took(program, ["-m", str(baseline)], base_file).then(
                took(program, ["-m", str(candidate)], base_file, ["--kl-divergence"])
            )
            options = ["divergence", str(candidate), "--baseline", str(baseline)]
            return took(ours, options, common), theirs

        perplexity()  # what the page cache and the interpreter's caches want
        print("| what | ours, s | llama-perplexity, s | ratio |\n|---|--:|--:|--:|")
        for name, measured in (("perplexity", perplexity), ("baseline and divergence", divergence)):
            pairs = [measured() for _ in range(options.repeat)]
            mine, theirs = (min(usage.wall for usage in side) for side in zip(*pairs))
            print(f"| {name} | {mine:.2f} | {theirs:.2f} | {mine / theirs:.2f} |", flush=True)


if __name__ == "__main__":
    main()
