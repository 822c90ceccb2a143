"""Fuzz every parser, each in a process of its own.

    python -m tests.fuzz --minutes 30

The time is shared out among the parsers. Coverage-guided: atheris (libFuzzer) where it is installed, an engine of our
own elsewhere. What was found is kept with the input that did it; exit code 1 when something was found.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.engine import SECONDS, Report, atheris_engine, own_engine
from tests.fuzz.targets import BY_NAME, TARGETS

HERE = Path(__file__).parent


def child(name: str, engine: str, seconds: float, folder: Path) -> None:
    """What a process does: fuzz one parser and write its figures to FOLDER/NAME.json."""
    target, told = BY_NAME[name], folder / f"{slug(name)}.json"
    save, corpus = folder / "findings" / slug(name), folder / "corpus" / slug(name)

    def tell(report: Report) -> None:
        part = told.with_suffix(".part")
        part.write_text(json.dumps(report.as_json()), encoding="utf-8")
        part.replace(told)

    if engine == "atheris":
        atheris_engine(target, seconds, save, corpus, tell)
    else:
        tell(own_engine(target, seconds, save, corpus, seed=int(time.time())))


def slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def run(name: str, engine: str, seconds: float, folder: Path) -> Report:
    """One parser in a process of its own; a process that dies is a finding."""
    told, log = folder / f"{slug(name)}.json", folder / f"{slug(name)}.log"
    told.unlink(missing_ok=True)
    for artifact in (folder / "findings" / slug(name)).glob("*-*"):
        if artifact.name.startswith(("crash-", "timeout-", "oom-", "leak-")):
            artifact.unlink()
    command = [
        sys.executable,
        "-m",
        "tests.fuzz",
        "--child",
        name,
        "--engine",
        engine,
        "--folder",
        str(folder),
    ]
    paths = os.pathsep.join(filter(None, (str(HERE.parents[1]), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "EWQ_GGUF_CACHE": str(folder / "cache")}
    died = ""
    with log.open("wb") as output:
        try:
            done = subprocess.run(
                [*command, "--seconds", str(seconds)],
                stdout=output, stderr=output, env=environment, timeout=seconds + 10 * SECONDS, check=False,
            )  # fmt: skip
            if done.returncode:
                died = f"ended with exit code {done.returncode}, see {log.name}"
        except subprocess.TimeoutExpired:
            died = f"hung, see {log.name}"
    report = Report(name, engine)
    if told.is_file():
        report = Report(**json.loads(told.read_text(encoding="utf-8")))
    if engine == "atheris":
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            # libFuzzer's own last words: more exact than what was told a second before the end.
            if line.startswith("stat::number_of_executed_units:"):
                report.runs = int(line.split(":")[-1])
            if " cov: " in line:
                report.reached = int(line.split(" cov: ")[1].split()[0])
    if died:
        report.findings["the process"] = died
    return report


def table(reports: list[Report]) -> str:
    heads = ("parser", "engine", "executions", "accepted", "reached", "slowest s", "findings")
    rows = [
        (r.target, r.engine, f"{r.runs:,}", f"{r.accepted:,}", f"{r.reached:,}", f"{r.slowest:.2f}", str(len(r.findings)))
        for r in reports
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in (heads, *rows)]
    total = sum(r.runs for r in reports)
    findings = [f"  {r.target}: {key}: {text}" for r in reports for key, text in r.findings.items()]
    return "\n".join([*lines, f"{total:,} executions, {len(findings)} findings", *findings])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="for all parsers together")
    parser.add_argument("--target", action="append", choices=sorted(BY_NAME), help="only these parsers")
    parser.add_argument("--engine", choices=("auto", "atheris", "own"), default="auto")
    parser.add_argument("--folder", type=Path, default=Path(".fuzz"), help="findings, corpus and logs")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if options.child:
        child(options.child, options.engine, options.seconds, folder)
        return
    engine = options.engine
    if engine == "auto":
        engine = "own" if find_spec("atheris") is None else "atheris"
    names = options.target or [t.name for t in TARGETS]
    reports = []
    for name in names:
        reports.append(run(name, engine, 60 * options.minutes / len(names), folder))
        r = reports[-1]
        print(f"{name}: {r.runs:,} executions, {len(r.findings)} findings", file=sys.stderr, flush=True)
    print(table(reports))
    raise SystemExit(1 if any(r.findings for r in reports) else 0)


if __name__ == "__main__":
    main()
