"""What EWQ's order is worth: its classes against the same classes in other orders, by KL divergence.

    python benchmarks/ewq_study.py [--model NAME ...] [--seeds 20] [--fresh]

Every arrangement of a group has the same number of blocks in each class, and, since the blocks of these models
are alike, the same bytes. Measured files are kept in benchmarks/results/ewq_study.json, so an interrupted run
goes on where it stopped; the page and its plots are written from there (see ewq_page.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
from ewq_page import write_page
from models import ORIGINS, model_folder

from ewq_gguf.allocation.analysis import Analysis, analyze_model
from ewq_gguf.allocation.ewq import ClassTypes, Precision, classify, parse_classes
from ewq_gguf.allocation.methods import class_plan
from ewq_gguf.allocation.plan import Plan
from ewq_gguf.evaluation.divergence import Divergence, divergence
from ewq_gguf.evaluation.engine import Settings
from ewq_gguf.model import Model
from ewq_gguf.pipeline.convert import default_threads, file_size, write_model
from ewq_gguf.pipeline.source import load_model

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "ewq_study.json"
TEXT = HERE / "data" / "evaluation.txt"
GROUPS = (("paper", 0.01), ("paper", 0.0), ("gguf", 0.01))
READINGS = {"paper": ClassTypes(), "gguf": parse_classes("Q8_0,Q6_K,Q4_K")}
# Contexts of 512 tokens, and how many of the groups: the larger models take half a minute a file on two cores.
MODELS = {"reference-10m": (8, 3), "smollm2": (2, 2), "gemma3": (2, 2)}
_RUNS = 4  # parts of a context whose means are kept
_LETTERS = {Precision.RAW: "R", Precision.EIGHT_BIT: "8", Precision.FOUR_BIT: "4"}
_BATCH = 4

Classes = tuple[Precision, ...]


@dataclass(frozen=True)
class Arrangement:
    """Classes of the blocks in order, under a name such as "ewq" or "random 7"."""

    name: str
    classes: Classes

    @property
    def key(self) -> str:
        return "".join(_LETTERS[c] for c in self.classes)


def by_rank(classes: Classes, fewest_first: Sequence[int]) -> Classes:
    """The same number of each class, the fewest bits to the first of `fewest_first`, and so on."""
    falling = sorted(classes, key=list(Precision).index, reverse=True)
    placed = dict(zip(fewest_first, falling))
    return tuple(placed[i] for i in range(len(classes)))


def arrangements(analysis: Analysis, seeds: int) -> list[Arrangement]:
    """EWQ's classes and the same classes in other orders."""
    blocks = analysis.blocks
    n = len(blocks)
    found = classify([b.entropy for b in blocks]).classes
    rising = sorted(range(n), key=lambda i: (blocks[i].entropy, i))
    variance = sorted(range(n), key=lambda i: (-blocks[i].variance, i))
    rules = {
        "reversed": rising[::-1],
        "variance": variance,
        "last blocks fewest": list(range(n))[::-1],
        "first blocks fewest": list(range(n)),
    }
    made = [Arrangement("ewq", found)]
    made += [Arrangement(name, by_rank(found, order)) for name, order in rules.items()]
    for seed in range(seeds):
        shuffled = list(found)
        random.Random(seed).shuffle(shuffled)
        made.append(Arrangement(f"random {seed}", tuple(shuffled)))
    return made


class Study:
    """One model: files are made in batches, measured against the bf16 file, and forgotten."""

    def __init__(self, name: str, folder: Path, contexts: int, groups: int, kept: dict[str, Any]) -> None:
        self.name = name
        self.model: Model = load_model(folder)
        self.contexts = contexts
        self.groups = GROUPS[:groups]
        text = hashlib.sha256(TEXT.read_bytes()).hexdigest()[:16]
        setting = {"contexts": contexts, "text": text, "fingerprint": self.model.fingerprint}
        entry = kept.setdefault(name, {})
        if {k: entry.get(k) for k in setting} != setting:
            entry.clear()
            entry.update(setting, files={}, groups=[], blocks={})
        self.entry = entry
        self.files: dict[str, Any] = entry["files"]

    def plan(self, reading: str, classes: Sequence[Precision]) -> Plan:
        return class_plan(self.model, dict(enumerate(classes)), READINGS[reading], method="study")

    def measure(self, wanted: Sequence[tuple[str, Sequence[Precision]]]) -> Iterator[None]:
        """Measure what is not known yet; yields after each batch."""
        seen: dict[str, tuple[str, Sequence[Precision]]] = {}
        for reading, classes in wanted:
            key = f"{reading} {Arrangement('', tuple(classes)).key}"
            if key not in self.files:
                seen.setdefault(key, (reading, classes))
        todo = list(seen.items())
        with tempfile.TemporaryDirectory(prefix="ewq-study-") as scratch:
            baseline = Path(scratch) / "baseline.gguf"
            if todo:
                raw = [Precision.RAW] * self.model.n_blocks
                write_model(self.model, self.plan("paper", raw), baseline)
            for at in range(0, len(todo), _BATCH):
                batch = todo[at : at + _BATCH]
                paths = []
                for i, (_, (reading, classes)) in enumerate(batch):
                    path = Path(scratch) / f"{i}.gguf"
                    write_model(self.model, self.plan(reading, classes), path)
                    paths.append(path)
                settings = Settings(n_ctx=512, n_threads=default_threads())
                results = divergence(paths, baseline, TEXT, settings=settings, chunks=self.contexts)
                for (key, (reading, classes)), result in zip(batch, results):
                    size = file_size(self.model, self.plan(reading, classes))
                    self.files[key] = {"bytes": size, **_figures(result)}
                print(f"{self.name}: {at + len(batch)} of {len(todo)} files", file=sys.stderr, flush=True)
                yield

    def run(self, seeds: int) -> Iterator[None]:
        """Everything about this model; yields whenever there is something new to keep."""
        groups = []
        n = self.model.n_blocks
        wanted: list[tuple[str, Sequence[Precision]]] = [
            ("paper", [Precision.EIGHT_BIT] * n),
            ("gguf", [Precision.EIGHT_BIT] * n),
            ("paper", [Precision.FOUR_BIT] * n),
        ]
        self.entry["uniform"] = [
            ["Q8_0", f"paper {'8' * n}"], ["Q6_K", f"gguf {'8' * n}"], ["Q4_K", f"paper {'4' * n}"]
        ]  # fmt: skip
        for reading, epsilon in self.groups:
            analysis = analyze_model(self.model, epsilon=epsilon, threads=default_threads(), only_blocks=True)
            self.entry["blocks"][repr(epsilon)] = {
                "entropy": [b.entropy for b in analysis.blocks],
                "variance": [b.variance for b in analysis.blocks],
            }
            made = arrangements(analysis, seeds)
            keys = [[a.name, f"{reading} {a.key}"] for a in made]
            groups.append({"epsilon": epsilon, "reading": reading, "arrangements": keys})
            wanted += [(reading, a.classes) for a in made]
        self.entry["groups"] = groups
        yield from self.measure(wanted)


def _figures(result: Divergence) -> dict[str, Any]:
    """What is kept of a measurement; the means of runs of tokens allow paired errors later."""
    contexts = result.per_token.kld.reshape(result.chunks, -1)
    runs = [float(run.mean()) for context in contexts for run in np.array_split(context, _RUNS)]
    return {
        "kld": result.mean_kld,
        "kld_se": result.mean_kld_se,
        "top1": result.top1_agreement,
        "ppl_ratio": result.ppl_ratio,
        "tokens": result.tokens,
        "kld_of_runs": runs,
    }


def folders(names: Sequence[str] | None) -> Iterator[tuple[str, Path]]:
    """The models asked for; without a wish the reference model and those whose packages can be had."""
    for name in names or MODELS:
        if name == "reference-10m":
            yield name, HERE / "reference-10m"
            continue
        try:
            yield name, model_folder(name)
        except Exception as error:
            # A machine without a package registry still gets the reference model's figures.
            if names:
                raise
            print(f"{name} left out: {error}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", action="append", choices=["reference-10m", *ORIGINS], help="repeatable; all by default"
    )
    parser.add_argument("--seeds", type=int, default=20, help="random orders per group")
    parser.add_argument("--contexts", type=int, help="of 512 tokens; 8 for the reference model, 2 for others")
    parser.add_argument("--all-groups", action="store_true", help="the GGUF reading for larger models too")
    parser.add_argument("--fresh", action="store_true", help="measure again what is known")
    arguments = parser.parse_args()
    known = RESULTS.is_file() and not arguments.fresh
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if known else {}
    RESULTS.parent.mkdir(exist_ok=True)
    for name, folder in folders(arguments.model):
        contexts, groups = MODELS[name]
        groups = len(GROUPS) if arguments.all_groups else groups
        study = Study(name, folder, arguments.contexts or contexts, groups, kept)
        for _ in study.run(arguments.seeds):
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    write_page(kept, HERE)


if __name__ == "__main__":
    main()
