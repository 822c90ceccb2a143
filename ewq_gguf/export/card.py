"""A model card for a GGUF file: what it is, what it is made of, what was measured, and how to make it again.

Source of the front matter's fields: the Hugging Face Hub's documentation of model cards.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ewq_gguf.allocation.plan import Plan
from ewq_gguf.checkpoint.gguf_file import GGUFFile
from ewq_gguf.checkpoint.json_file import load_json_object
from ewq_gguf.export.placing import ExportError
from ewq_gguf.model import block_of
from ewq_gguf.pipeline.gguf_source import open_parts
from ewq_gguf.pipeline.plan_file import is_as_made, read_plan

_HUB_URL = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+?)/?$")
_FIGURES = (
    ("ppl", "ppl_se", "perplexity", "{:.4f}"),
    ("mean_kld", "mean_kld_se", "mean KL divergence, nats", "{:.6f}"),
    ("median_kld", None, "median KL divergence, nats", "{:.6f}"),
    ("p99_kld", None, "99th percentile of KL divergence, nats", "{:.4f}"),
    ("top1_agreement", "top1_agreement_se", "same most likely token", "{:.4f}"),
    ("accuracy", "accuracy_se", "accuracy", "{:.4f}"),
)


@dataclass(frozen=True)
class ModelCard:
    """A card's text, and the model it is quantized from where that is known ("org/name")."""

    text: str
    base_model: str | None


def export_card(
    gguf: str | os.PathLike[str],
    *,
    measurements: str | os.PathLike[str] | None = None,
    base_model: str | None = None,
    repository: str | None = None,
) -> ModelCard:
    """Write the card of a GGUF file, of a split one from any part, out of its own metadata.

    Args:
        measurements: what `evaluate perplexity`, `divergence` or `choice` printed with --json; without it the card
            holds no figures of quality.
        base_model: "org/name" of the original on the Hub; what the metadata say by default.
        repository: "org/name" under which the card will be, for its commands.

    Raises:
        ExportError: the measurements are of another file.
        CheckpointError, UnsupportedModelError: a file that cannot be read.
    """
    path = Path(gguf)
    parts = open_parts(path)
    plan = read_plan(path)
    base = base_model or _base_model(parts[0])
    figures = "" if measurements is None else _figures(Path(measurements), [p.path.name for p in parts])
    name = parts[0].value("general.name")
    title = name if isinstance(name, str) and name else path.stem
    sections = [
        _front_matter(parts[0], base),
        f"# {_plain(title)} GGUF\n\n{_introduction(parts, plan, base)}",
        f"## Types\n\n{_types(plan)}",
        *([f"## Measured\n\n{figures}"] if figures else []),
        f"## Use\n\n{_use(parts, repository)}",
        f"## Make it again\n\n{_again(parts, plan, base, repository)}",
    ]
    return ModelCard("\n\n".join(sections) + "\n", base)


def _base_model(file: GGUFFile) -> str | None:
    """What the file was made from; a base model of the original's is not meant."""
    for key in ("general.source.repo_url", "general.repo_url", "general.source.url", "general.url"):
        found = file.value(key)
        match = _HUB_URL.match(found) if isinstance(found, str) else None
        if match is not None:
            return match[1]
    return None


def _front_matter(file: GGUFFile, base: str | None) -> str:
    tags = [t for t in _strings(file.value("general.tags")) if t != "text-generation"]
    fields: dict[str, Any] = {
        "base_model": base,
        "base_model_relation": "quantized" if base else None,
        "license": file.value("general.license"),
        "license_name": file.value("general.license.name"),
        "license_link": file.value("general.license.link"),
        "language": _strings(file.value("general.languages")),
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(["gguf", "quantized", "ewq-gguf", *tags])),
    }
    lines = ["---"]
    for key, value in fields.items():
        if isinstance(value, str) and value:
            lines.append(f"{key}: {json.dumps(value, ensure_ascii=False)}")
        elif isinstance(value, list) and value:
            lines.append(f"{key}:")
            lines += [f"- {json.dumps(item, ensure_ascii=False)}" for item in value]
    return "\n".join([*lines, "---"])


def _introduction(parts: Sequence[GGUFFile], plan: Plan, base: str | None) -> str:
    size = sum(part.size for part in parts)
    files = parts[0].path.name if len(parts) == 1 else f"{parts[0].path.name} and {len(parts) - 1} more"
    of = f"[{base}](https://huggingface.co/{base})" if base else "the original model"
    weights = plan.n_parameters
    return (
        f"A GGUF file of {of} for llama.cpp and the programs that build on it, made by ewq-gguf.\n\n"
        f"| | |\n|---|---|\n| file | `{files}` |\n| bytes | {size:,} |\n| weights | {weights:,} |\n"
        f"| bits per weight | {plan.bpw:.3f} |\n| architecture | {_plain(plan.arch)} |\n"
        f"| types chosen by | {_method(plan)} |"
    )


def _method(plan: Plan) -> str:
    names = {
        "rd": "rate-distortion allocation: the measured damage of every tensor under a size",
        "ewq": "EWQ: the entropy of every block",
        "fastewq": "FastEWQ: a forest's guess of EWQ's classes",
        "preset": f"llama-quantize's preset {_plain(str(plan.parameters.get('preset')))}",
        "uniform": "one type for all",
    }
    return names.get(plan.method, _plain(plan.method))


def _types(plan: Plan) -> str:
    by_type: dict[str, list[int]] = {}
    for t in plan.tensors:
        row = by_type.setdefault(t.type.name, [0, 0, 0])
        row[0] += 1
        row[1] += math.prod(t.shape)
        row[2] += t.nbytes
    total = max(1, plan.data_bytes)
    lines = ["| type | tensors | weights | bytes | share |", "|---|--:|--:|--:|--:|"]
    for name, (n, weights, nbytes) in sorted(by_type.items(), key=lambda item: -item[1][2]):
        lines.append(f"| {name} | {n} | {weights:,} | {nbytes:,} | {100 * nbytes / total:.1f} % |")
    return "\n".join([*lines, "", *_by_role(plan)])


def _by_role(plan: Plan) -> list[str]:
    """One line per kind of matrix: the types over the blocks, most weights first."""
    roles: dict[str, dict[str, int]] = {}
    for t in plan.tensors:
        if len(t.shape) < 2:
            continue
        role = t.name if block_of(t.name) is None else re.sub(r"^\w+\.\d+\.", "", t.name)
        counts = roles.setdefault(role, {})
        counts[t.type.name] = counts.get(t.type.name, 0) + 1
    lines = ["| tensor | types |", "|---|---|"]
    for role, counts in roles.items():
        told = ", ".join(
            f"{kind}" if n == 1 and len(counts) == 1 else f"{n} x {kind}" for kind, n in counts.items()
        )
        lines.append(f"| `{_plain(role)}` | {told} |")
    return lines


def _figures(path: Path, names: Sequence[str]) -> str:
    found = load_json_object(path)
    files = found.get("files")
    entries = [e for e in files if isinstance(e, Mapping)] if isinstance(files, list) else []
    entry = next((e for e in entries if Path(str(e.get("file"))).name in names), None)
    if entry is None:
        raise ExportError(
            f"{path} has no figures of {names[0]}; it must be what `ewq-gguf evaluate ... --json` printed for this file"
        )
    lines = ["| figure | value | standard error |", "|---|--:|--:|"]
    for key, error, title, form in _FIGURES:
        value, se = entry.get(key), entry.get(error or "")
        if isinstance(value, (int, float)):
            told = form.format(se) if isinstance(se, (int, float)) else ""
            lines.append(f"| {title} | {form.format(value)} | {told} |")
    if len(lines) == 2:
        raise ExportError(f"{path} has no figures that a card shows")
    against = [
        f"{word} `{_plain(Path(str(value)).name)}`"
        for word, value in (("baseline", found.get("baseline")), ("text", found.get("text")))
        if isinstance(value, str)
    ]
    if isinstance(entry.get("tokens"), int):
        against.append(f"{entry['tokens']:,} tokens")
    return "\n".join(lines) + (f"\n\nMeasured with {', '.join(against)}." if against else "")


def _use(parts: Sequence[GGUFFile], repository: str | None) -> str:
    name = parts[0].path.name
    lines = [f"llama-cli -m {name}"]
    if repository:
        lines = [f"hf download {repository} {name} --local-dir .", *lines]
    if len(parts) == 1:
        lines += [f"ewq-gguf export ollama {name}", f"ewq-gguf export lmstudio {name}"]
    return "```\n" + "\n".join(lines) + "\n```"


def _again(parts: Sequence[GGUFFile], plan: Plan, base: str | None, repository: str | None) -> str:
    name, source = parts[0].path.name, base or "path/to/original"
    if not is_as_made(tuple(parts)):
        return (
            "The file does not say how it was made. A file with the same types is made with\n\n```\n"
            f"ewq-gguf convert {source} -o again.gguf --plan {name}\n```"
        )
    imatrix = parts[0].value("ewq.imatrix.sha256")
    matrix = " --imatrix THE_SAME.imatrix" if isinstance(imatrix, str) else ""
    text = (
        "The type of every tensor is stored in the file; these commands make the same weights from the original "
        f"and check them:\n\n```\newq-gguf convert {source} -o again.gguf --plan {name}{matrix}\n"
        f"ewq-gguf verify {name} --against {source}\n```"
    )
    if matrix:
        text += f"\n\nThe importance matrix has the sha256 `{_plain(str(imatrix))}`."
    if plan.parameters:
        text += f"\n\nDecided with:\n\n```json\n{json.dumps(plan.parameters, indent=2, sort_keys=True)}\n```"
    version = parts[0].value("ewq.version")
    return text + (f"\n\newq-gguf {_plain(version)}." if isinstance(version, str) else "")


def _strings(value: Any) -> list[str]:
    return [v for v in value if isinstance(v, str) and v] if isinstance(value, list) else []


def _plain(text: str) -> str:
    """Text of a file's metadata inside Markdown: one line, no markup of its own."""
    return re.sub(r"[\s`|<>\[\]#*]+", " ", text).strip()[:200]


def write_card(card: ModelCard, path: Path, *, force: bool = False) -> None:
    """Write a card's text.

    Raises:
        ExportError: another file of that name, or no permission.
    """
    try:
        if path.exists() and not force and path.read_bytes() != card.text.encode():
            raise ExportError(f"{path} exists and says something else; use --force to replace it")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(card.text, encoding="utf-8", newline="\n")
        partial.replace(path)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from error
