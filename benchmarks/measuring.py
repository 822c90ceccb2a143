"""What the studies share: candidates to make and measure, and a record that is never measured twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ewq_gguf.allocation.plan import Plan
from ewq_gguf.evaluation.baseline_cache import write_baseline
from ewq_gguf.evaluation.divergence import divergence
from ewq_gguf.model import Model
from ewq_gguf.pipeline.convert import write_model
from ewq_gguf.pipeline.importance import Importance


@dataclass(frozen=True)
class Candidate:
    """A file to make and measure: its plan, and whether the importance matrix is used."""

    name: str
    method: str
    preset: str
    plan: Plan
    weighted: bool


class Recorder:
    """Measurements by what they depend on, in results.json; what is there is not measured again."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.path = folder / "results.json"
        self.facts = facts
        folder.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            self.rows = {r["key"]: r for r in json.loads(self.path.read_text())["measurements"]}
        self.current: list[str] = []

    def measure(self, candidate: Candidate, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        types = {t.name: t.type.name for t in candidate.plan.tensors}
        state = json.dumps([self.facts, candidate.name, candidate.weighted, types], sort_keys=True)
        key = hashlib.sha256(state.encode()).hexdigest()[:24]
        if key not in self.rows:
            self.rows[key] = {"key": key, **run()}
        named = {"file": candidate.name, "method": candidate.method, "preset": candidate.preset}
        self.rows[key].update(named)
        self.current.append(key)
        self._save()
        return self.rows[key]

    def _save(self) -> None:
        state = {
            "facts": self.facts,
            "measurements": [self.rows[k] for k in dict.fromkeys([*self.current, *self.rows])],
        }
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(state, indent=1))
        part.replace(self.path)


def keep_baseline(baseline: Path, texts: Sequence[Path], chunks: int) -> dict[str, Path]:
    """Run the baseline over each text once; its distributions lie beside it, by the text's file name."""
    out = {}
    for text in texts:
        out[text.name] = baseline.with_name(f"{text.name}.baseline")
        write_baseline(baseline, text, out[text.name], chunks=chunks)
    return out


def measure_file(
    model: Model,
    candidate: Candidate,
    importance: Importance | None,
    baseline: Path,
    texts: Sequence[Path],
    chunks: int,
    kept: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Write a candidate beside the baseline, compare the two on each text, and remove it again.

    The figures of the first text stand in the row itself, those of all under `texts` by file name. With `kept`
    (see `keep_baseline`) the baseline is not run again.
    """
    print(f"  measuring {candidate.name}", flush=True)
    file = baseline.with_name("candidate.gguf")
    done = write_model(model, candidate.plan, file, importance=importance if candidate.weighted else None)
    found = {}
    for text in texts:
        if kept is None:
            result = divergence(file, baseline, text, chunks=chunks)[0]
        else:
            result = divergence(file, kept[text.name])[0]
        # Names alone: where the files lay for a minute is of no use to a reader.
        found[text.name] = {**result.as_json(), "file": candidate.name, "baseline": "unquantized"}
    file.unlink()
    return {"bytes": done.nbytes, "bpw": done.plan.bpw, **found[texts[0].name], "texts": found}
