"""Measurements out of JSON: `evaluate --json`, and the records that the studies under benchmarks/ keep."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ewq_gguf.report.fields import argument, last_part, objects, real, whole, words
from ewq_gguf.report.runs import BlockCosts, Figures, Measurement, Runs

_ALLOCATION, _QUALITY = "allocation at equal bytes", "size against divergence"
# The allocation study has an importance matrix in every file.
_WITH_IMATRIX = {"stock": "stock+imatrix", "imatrix": "damage-imatrix", "mse": "damage-mse"}


def measurement(
    entry: Mapping[str, Any], *, model: str, text: str, method: str = "", preset: str = "", study: str = ""
) -> Measurement | None:
    """A measurement from an object with the fields of `evaluate --json`; None if it holds no figure."""
    ppl, kld = real(entry, "ppl"), real(entry, "mean_kld")
    if ppl is None and kld is None:
        return None
    return Measurement(
        file=last_part(words(entry, "file")) or "unnamed",
        model=model,
        text=text,
        method=method,
        preset=preset,
        study=study,
        nbytes=whole(entry, "bytes"),
        bpw=real(entry, "bpw"),
        ppl=ppl,
        ppl_se=real(entry, "ppl_se"),
        kld=kld,
        kld_se=real(entry, "mean_kld_se"),
        median_kld=real(entry, "median_kld"),
        p99_kld=real(entry, "p99_kld"),
        top1=real(entry, "top1_agreement"),
        top1_se=real(entry, "top1_agreement_se"),
        rms_delta_p=real(entry, "rms_delta_p"),
        predicted=real(entry, "predicted"),
        chunks=whole(entry, "chunks"),
        n_ctx=whole(entry, "n_ctx"),
        key=words(entry, "key"),
    )


def of_evaluation(data: Mapping[str, Any], source: str) -> Runs | None:
    """`evaluate perplexity|divergence|choice|speed --json`; None if it is none of them."""
    files = objects(data.get("files"))
    if not files:
        return None
    if "accuracy" in files[0]:
        return _choice(data, files, source)
    if "generate_tps" in files[0]:
        return _speed(files, source)
    text = last_part(words(data, "text")) or "the baseline's text"
    baseline = words(data, "baseline")
    found = [measurement(f, model=_stem(baseline), text=text) for f in files]
    kept = tuple(m for m in found if m is not None)
    if not kept:
        return None
    kind = "divergence" if baseline else "perplexity"
    figures = _pairs(data)
    command = ["ewq-gguf", "evaluate", kind, *(argument(m.file) for m in kept)]
    command += ["--baseline", argument(last_part(baseline))] if baseline else []
    command += ["--text", argument(text)] if data.get("text") else []
    command += ["--chunks", str(kept[0].chunks)] if kept[0].chunks else []
    command += ["--n-ctx", str(kept[0].n_ctx)] if kept[0].n_ctx not in (None, 512) else []
    shown = f"measurements of {len(kept)} file{'s' if len(kept) > 1 else ''}"
    return Runs(
        sources=((source, shown),),
        measurements=kept,
        figures=figures,
        commands=((f"measure: {source}", shlex.join([*command, "--json"])),),
    )


def _stem(path: str) -> str:
    name = last_part(path)
    return name.rsplit(".", 1)[0] if "." in name else name


def _pairs(data: Mapping[str, Any]) -> tuple[Figures, ...]:
    rows = []
    for pair in objects(data.get("pairs")):
        row = (
            last_part(words(pair, "first")),
            last_part(words(pair, "second")),
            real(pair, "difference"),
            real(pair, "se"),
            real(pair, "z"),
            last_part(words(pair, "better")) or "no difference beyond noise",
        )
        rows.append(row)
    if not rows:
        return ()
    measure = words(objects(data["pairs"])[0], "measure") or "figure"
    columns = ("first", "second", f"difference of {measure}", "standard error", "z", "better")
    return (Figures("Files compared on the same tokens", columns, tuple(rows)),)


def _choice(data: Mapping[str, Any], files: Sequence[Mapping[str, Any]], source: str) -> Runs:
    flips = {last_part(words(f, "second")): f for f in objects(data.get("flips"))}
    baseline = data.get("baseline")
    rows = []
    for entry in [*files, *([baseline] if isinstance(baseline, dict) else [])]:
        name = last_part(words(entry, "file"))
        flip = flips.get(name, {})
        rows.append(
            (name, _percent(entry, "accuracy"), _percent(entry, "accuracy_se"), real(entry, "questions"),
             _percent(flip, "agreement"), real(flip, "lost"), real(flip, "gained"))
        )  # fmt: skip
    columns = ("file", "accuracy, %", "standard error", "questions", "same answer, %", "lost", "gained")
    return Runs(
        sources=((source, "multiple choice"),), figures=(Figures("Multiple choice", columns, tuple(rows)),)
    )


def _percent(entry: Mapping[str, Any], key: str) -> float | None:
    value = real(entry, key)
    return None if value is None else 100 * value


def _speed(files: Sequence[Mapping[str, Any]], source: str) -> Runs:
    rows = []
    for entry in files:
        memory = real(entry, "rss_bytes")
        rows.append(
            (last_part(words(entry, "file")), real(entry, "prompt_tps"), real(entry, "generate_tps"),
             real(entry, "load_seconds"), None if memory is None else memory / 2**20, real(entry, "n_threads"))
        )  # fmt: skip
    columns = ("file", "prompt, tokens/s", "generation, tokens/s", "load, s", "memory, MiB", "threads")
    return Runs(sources=((source, "speed"),), figures=(Figures("Speed", columns, tuple(rows)),))


def of_record(data: Mapping[str, Any], folder: str) -> Runs | None:
    """results.json of `make perplexity` or of one model of `make allocation-study`; `folder` names the model."""
    rows, facts = objects(data.get("measurements")), data.get("facts")
    if not rows or not isinstance(facts, dict):
        return None
    # The two studies write the same kind of record; only the allocation study knows several texts.
    allocation = "texts" in facts
    model = folder.removeprefix("allocation-")
    found: list[Measurement] = []
    costs: dict[str, list[tuple[int, float, float]]] = {}
    for row in rows:
        method, kld = words(row, "method"), real(row, "mean_kld")
        if method == "block":
            block = words(row, "preset")
            if block.isdecimal() and len(block) < 6 and kld is not None:
                kind = words(row, "file").rsplit(" ", 1)[-1]
                costs.setdefault(kind, []).append((int(block), kld, real(row, "mean_kld_se") or 0.0))
            continue
        found += _by_text(row, model, allocation)
    if not found and not costs:
        return None
    command = f"make allocation-study MODELS={shlex.quote(model)}" if allocation else "make perplexity"
    if not allocation:
        command += f" MODEL={shlex.quote(model if model in ('smollm2', 'gemma3') else 'benchmarks/' + model)}"
    shown = f"{len(found)} measurements, {_ALLOCATION if allocation else _QUALITY}"
    return Runs(
        sources=((folder, shown),),
        measurements=tuple(found),
        block_costs=tuple(BlockCosts(model, k, tuple(sorted(v))) for k, v in costs.items()),
        commands=((f"measure {model}: {_ALLOCATION if allocation else _QUALITY}", command),),
    )


def of_study_rows(rows: Sequence[Mapping[str, Any]], source: str) -> Runs | None:
    """allocation.json of `make allocation-study`: a list of rows with model, text, method and preset."""
    found = []
    for row in rows:
        method = words(row, "method")
        m = measurement(
            row,
            model=words(row, "model") or source,
            text=words(row, "text"),
            method=_WITH_IMATRIX.get(method, method),
            preset=words(row, "preset"),
            study=_ALLOCATION,
        )
        found += [] if m is None else [_named(m, row)]
    if not found:
        return None
    models = " ".join(dict.fromkeys(m.model for m in found))
    return Runs(
        sources=((source, f"{len(found)} measurements, {_ALLOCATION}"),),
        measurements=tuple(found),
        commands=(
            (f"measure {models}: {_ALLOCATION}", f"make allocation-study MODELS={shlex.quote(models)}"),
        ),
    )


def _by_text(row: Mapping[str, Any], model: str, allocation: bool) -> list[Measurement]:
    method = words(row, "method")
    if allocation:
        method = _WITH_IMATRIX.get(method, method)
    texts = row.get("texts")
    parts = texts if isinstance(texts, dict) and texts else {"": {}}
    found = []
    for text, figures in parts.items():
        whole_row = {**row, **figures} if isinstance(figures, dict) else dict(row)
        m = measurement(
            whole_row,
            model=model,
            text=text or "the text",
            method=method,
            preset=words(row, "preset"),
            study=_ALLOCATION if allocation else _QUALITY,
        )
        found += [] if m is None else [_named(m, row)]
    return found


def _named(found: Measurement, row: Mapping[str, Any]) -> Measurement:
    """With the name of the candidate, where the figures of a text name a scratch file."""
    preset, method, name = found.preset, found.method, words(row, "file")
    if "candidate.gguf" in name or not name:
        name = " ".join(part for part in (preset, method) if part) or found.file
    return replace(found, file=name)
