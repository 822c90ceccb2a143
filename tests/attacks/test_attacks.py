"""Every attack is refused in good order, in this process; one of each kind also in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.attack import OUT, Attack, conversion
from tests.attacks.corpus import ATTACKS
from tests.attacks.runner import Outcome, command, run, run_apart, table
from tests.attacks.workshop import Workshop

LEAST = 300
KINDS = tuple(dict.fromkeys(attack.kind for attack in ATTACKS))
OUTCOMES: list[Outcome] = []


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    made = Workshop(tmp_path_factory.mktemp("sound"))
    # Made before anything is measured; and everything a conversion imports is imported.
    made.gguf()
    yield made
    print(f"\n{table(OUTCOMES)}")


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.id)
def test_attack(attack: Attack, tmp_path: Path, workshop: Workshop) -> None:
    outcome = run(attack, tmp_path / "a", workshop)
    OUTCOMES.append(outcome)
    assert not outcome.faults, f"{'; '.join(outcome.faults)}: {outcome.sentence}"


@pytest.fixture(scope="module")
def usual(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, int]:
    """Seconds and bytes of a sound conversion, which also shows that attacks are not refused for another reason."""
    folder = tmp_path_factory.mktemp("usual")
    (folder / OUT).mkdir()
    code, shown, seconds, most = command(conversion(workshop.sound("llama"), folder))
    assert (code, (folder / OUT / "model.gguf").is_file()) == (0, True), shown
    return seconds, most


@pytest.mark.parametrize("kind", KINDS)
def test_one_of_each_kind_apart(
    kind: str, tmp_path: Path, workshop: Workshop, usual: tuple[float, int]
) -> None:
    attack = next(a for a in ATTACKS if a.kind == kind)
    outcome = run_apart(attack, tmp_path / "a", workshop, usual)
    assert not outcome.faults, f"{'; '.join(outcome.faults)}: {outcome.sentence}"


def test_the_corpus_is_large_and_of_many_kinds() -> None:
    assert len(ATTACKS) >= LEAST
    assert len({attack.id for attack in ATTACKS}) == len(ATTACKS)
