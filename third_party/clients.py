"""Try the files that ewq-gguf writes in other programs, and write down which types each of them reads.

    python third_party/clients.py                       every program, every type
    python third_party/clients.py --only mistralrs      some programs; the others' rows stay as they are
    python third_party/clients.py --system              also install Chromium and clang with apt-get
    python third_party/clients.py --fresh               convert again: the files in the cache are kept between runs
    python third_party/clients.py --page                only render benchmarks/CLIENTS.md again

Writes ewq_gguf/allocation/clients.json, which `--compat` uses, and benchmarks/CLIENTS.md. Each program comes
from its registry into the cache folder and runs in a child process; one that cannot be installed is skipped,
with the reason on the page. Answers are kept: a second run asks only what is new.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from client_check.catalogue import CLIENTS, REFERENCE
from client_check.files import LABELS, MIXED, MODEL, ROOT, sample_files
from client_check.install import CannotInstallError, Installed, install
from client_check.measure import N_TOKENS, Journal, measure
from client_check.page import render
from pins import cache_folder

from ewq_gguf.allocation.clients import TABLE, Reading, load_clients

PAGE = ROOT / "benchmarks" / "CLIENTS.md"
# Where the two likeliest tokens are closer than this in the reference, rounding decides: in a file of one or two
# bits per weight the order of additions alone moves logits by a tenth and more.
NEAR_TIE = 0.2
# Of the text of an engine that computes otherwise; a weight read wrongly shows within one or two.
FIRST_TOKENS = 8


def ready(names: list[str], system: bool) -> tuple[list[Installed], list[dict[str, str]]]:
    """The programs that can be installed, and why the others cannot."""
    found, skipped = [], []
    for client in CLIENTS:
        if client != REFERENCE and names and client.name not in names:
            continue
        try:
            found.append(install(client, system=system))
            print(f"{client.name} {found[-1].version}", file=sys.stderr)
        except CannotInstallError as error:
            skipped.append({"name": client.name, "reason": str(error)})
            print(f"{client.name} skipped: {error}", file=sys.stderr)
    return found, skipped


def described(client: Installed) -> dict[str, Any]:
    """A program's entry in the table."""
    entry = client.client
    return {
        "name": entry.name,
        "version": client.version,
        "llama_cpp": entry.llama_cpp,
        "duty": entry.duty,
        "about": entry.about,
    }


def merged(fresh: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """The old table with what was measured afresh in place of its rows, in the catalogue's order."""
    order = [client.name for client in CLIENTS]
    new = {(row["client"], row["type"]): row for row in fresh["readings"]}
    rows = {(row["client"], row["type"]): row for row in old.get("readings", [])} | new
    clients = {entry["name"]: entry for entry in [*old.get("clients", []), *fresh["clients"]]}
    skipped = {entry["name"]: entry for entry in [*old.get("skipped", []), *fresh["skipped"]]}
    labels = list(LABELS)
    return {
        **fresh,
        "clients": [clients[name] for name in order if name in clients],
        "skipped": [skipped[name] for name in order if name in skipped and name not in clients],
        "readings": sorted(
            (row for row in rows.values() if row["client"] in clients and row["type"] in labels),
            key=lambda row: (order.index(row["client"]), labels.index(row["type"])),
        ),
    }


def to_json(data: dict[str, Any]) -> str:
    """The table as text, a reading a line."""
    head = {key: value for key, value in data.items() if key != "readings"}
    rows = ",\n  ".join(json.dumps(row) for row in data["readings"])
    return json.dumps(head, indent=1)[:-2] + ',\n "readings": [\n  ' + rows + "\n ]\n}\n"


def write_page() -> None:
    """Render the page from the table on disk."""
    load_clients.cache_clear()
    PAGE.write_text(render(json.loads(TABLE.read_text(encoding="utf-8")), load_clients()), encoding="utf-8")


def plain(reading: Reading) -> dict[str, Any]:
    """A reading's row, with what is not there left out."""
    margin = None if reading.tie is None else round(reading.tie, 4)
    return {
        key: value for key, value in asdict(replace(reading, tie=margin)).items() if value not in (None, "")
    } | {"same_text": reading.same_text}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], metavar="PROGRAM", help="these programs")
    parser.add_argument("--types", nargs="*", default=list(LABELS), metavar="TYPE", help="these types")
    parser.add_argument("--system", action="store_true", help="install Chromium and clang where missing")
    parser.add_argument(
        "--fresh", action="store_true", help="convert again instead of taking the files in the cache"
    )
    parser.add_argument("--page", action="store_true", help="only render the page again")
    options = parser.parse_args()
    if options.page:
        write_page()
        return
    folder = cache_folder() / "clients"
    if options.fresh:
        shutil.rmtree(folder / "files", ignore_errors=True)
    samples = sample_files(folder / "files", tuple(options.types))
    programs, skipped = ready(options.only, options.system)
    reference = next(program for program in programs if program.client == REFERENCE)
    readings = measure(
        reference,
        programs,
        samples,
        Journal(folder / "answers.jsonl"),
        lambda line: print(line, file=sys.stderr),
    )
    old = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}
    mixed = next((sample.types for sample in samples if sample.label == MIXED), old.get("mixed_types", ()))
    fresh = {
        "made_by": "third_party/clients.py",
        "model": MODEL.relative_to(ROOT).as_posix(),
        "tokens": N_TOKENS,
        "near_tie": NEAR_TIE,
        "first_tokens": FIRST_TOKENS,
        "mixed_types": list(mixed),
        "clients": [described(program) for program in programs],
        "skipped": skipped,
        "readings": [plain(reading) for reading in readings],
    }
    TABLE.write_text(to_json(merged(fresh, old)), encoding="utf-8")
    write_page()
    engines = {r.client for r in readings if r.loads and r.agreeing}
    print(f"{len(engines)} engines ran: {', '.join(sorted(engines))}")


if __name__ == "__main__":
    main()
