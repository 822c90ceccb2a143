"""Ask the advisory database about every locked package.

    python third_party/audit.py

pip-audit is installed into the cache folder from audit.lock, with hashes. A service that knows nothing of an old
release with published advisories knows nothing at all (mirrors of the index leave them out), and is not believed.

Exit codes: 0 nothing known, 1 something known, 3 no database could be asked: then nothing was checked, and the
message says so.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from lock import HERE, tool_environment

LOCKS = ("development.lock", "native.lock", "audit.lock", "fuzz.lock")
SERVICES = ("pypi", "osv")
# CVE-2018-18074, and others since.
CANARY = "requests==2.19.0"


def ask(service: str, path: Path, *more: str) -> tuple[str, str]:
    """pip-audit's verdict on a list of pinned packages, "clean", "found" or "silent", and what it said.

    Nothing is installed or resolved.
    """
    programs = tool_environment("pip-audit", "--require-hashes", "-r", str(HERE / "audit.lock"))
    command = [str(programs / "pip-audit"), "-r", str(path), "-s", service, "--disable-pip", *more]
    done = subprocess.run(
        [*command, "--progress-spinner", "off", "--timeout", "30"], capture_output=True, text=True
    )
    return verdict(done.returncode, done.stdout + done.stderr), (done.stderr + done.stdout).strip()


def verdict(code: int, said: str) -> str:
    """What an exit code and output of pip-audit mean; a failure to connect has the same code as a finding."""
    if code == 0:
        return "clean"
    return "found" if re.search(r"^Found \d+ known vulnerabilit", said, re.MULTILINE) else "silent"


def informed_service() -> tuple[str | None, str]:
    """The first service that knows of the canary, or None with the reasons."""
    reasons = []
    with tempfile.TemporaryDirectory() as scratch:
        canary = Path(scratch) / "canary.txt"
        canary.write_text(f"{CANARY}\n", encoding="utf-8")
        for service in SERVICES:
            found, said = ask(service, canary, "--no-deps")
            if found == "found":
                return service, ""
            last = said.splitlines()[-1:] or ["no reason given"]
            reasons.append(
                f"{service}: knows nothing of {CANARY}" if found == "clean" else f"{service}: {last[0][:160]}"
            )
    return None, "; ".join(reasons)


def main() -> None:
    service, reasons = informed_service()
    if service is None:
        print(f"NOT CHECKED: no advisory database answered ({reasons})", file=sys.stderr)
        raise SystemExit(3)
    worst = 0
    for name in LOCKS:
        found, said = ask(service, HERE / name, "--require-hashes")
        if found == "clean":
            print(f"{name}: nothing known to {service}", file=sys.stderr)
        elif found == "found":
            print(f"{name}: known vulnerabilities\n{said}", file=sys.stderr)
            worst = 1
        else:
            print(f"{name}: NOT CHECKED, {service} did not answer: {said[-300:]}", file=sys.stderr)
            worst = worst or 3
    raise SystemExit(worst)


if __name__ == "__main__":
    main()
