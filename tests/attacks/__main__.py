"""`python -m tests.attacks [WORD]`: run the corpus (or what has WORD in its name) and print the table."""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path

from tests.attacks.corpus import ATTACKS
from tests.attacks.runner import run, table
from tests.attacks.workshop import Workshop

# An attack that succeeds must not take the machine with it.
_ADDRESS_SPACE = 12 << 30


def main(words: list[str]) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    chosen = [a for a in ATTACKS if all(word in a.id for word in words if not word.startswith("-"))]
    with tempfile.TemporaryDirectory() as scratch:
        workshop = Workshop(Path(scratch) / "sound")
        workshop.folder.mkdir()
        workshop.gguf()
        outcomes = []
        for number, attack in enumerate(chosen):
            outcome = run(attack, Path(scratch) / str(number), workshop)
            outcomes.append(outcome)
            if outcome.faults or "-v" in words:
                print(f"{attack.id}: {'; '.join(outcome.faults) or 'refused'}: {outcome.sentence:.300}")
    print(table(outcomes))
    return int(any(outcome.faults for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
