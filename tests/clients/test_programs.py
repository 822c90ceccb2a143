"""The programs themselves, as far as they can be installed; run by `make clients`."""

from __future__ import annotations

import pytest
from client_check.catalogue import CLIENTS, REFERENCE
from client_check.files import COMPATIBLE, MIXED, SampleFile, sample_files
from client_check.install import CannotInstallError, Installed, install
from client_check.measure import Journal, ask, judged
from pins import cache_folder

from ewq_gguf.allocation.clients import Reading, load_clients

pytestmark = pytest.mark.clients
# One of each way to store weights, and a file of many types.
LABELS = ("F16", "Q8_0", "Q4_K", "IQ4_XS", MIXED, COMPATIBLE)


@pytest.fixture(scope="module")
def samples() -> list[SampleFile]:
    return sample_files(cache_folder() / "clients" / "files", LABELS)


@pytest.fixture(scope="module")
def readings(samples: list[SampleFile]) -> dict[tuple[str, str], Reading]:
    """By program and label; programs that cannot be installed are left out."""
    journal = Journal(cache_folder() / "clients" / "answers.jsonl")
    expected = ask(install(REFERENCE), samples, journal)
    prompts = {label: answer.prompt for label, answer in expected.items()}
    found = {}
    for client in CLIENTS:
        try:
            program: Installed = install(client)
        except CannotInstallError:
            continue
        given = None if client == REFERENCE else prompts
        for label, answer in ask(program, samples, journal, prompts=given).items():
            found[client.name, label] = judged(client.name, label, answer, expected[label])
    return found


def test_five_engines_generate_and_one_has_no_llama_cpp(readings: dict[tuple[str, str], Reading]) -> None:
    ran = {name for (name, _), reading in readings.items() if reading.loads and reading.agreeing is not None}
    assert len(ran) >= 5
    assert any(not client.llama_cpp for client in CLIENTS if client.name in ran)


@pytest.mark.parametrize("client", [c for c in CLIENTS if c.llama_cpp], ids=lambda c: c.name)
@pytest.mark.parametrize("label", LABELS)
def test_every_build_of_llama_cpp_says_the_same(
    readings: dict[tuple[str, str], Reading], client: object, label: str
) -> None:
    reading = readings.get((client.name, label))  # type: ignore[attr-defined]
    if reading is None:
        pytest.skip("not installed")
    assert reading.same_text, reading


def test_a_file_made_to_be_read_is(readings: dict[tuple[str, str], Reading]) -> None:
    reading = readings.get(("openvino-genai", COMPATIBLE))
    if reading is None:
        pytest.skip("openvino-genai is not installed")
    assert load_clients().reads(reading), reading
    assert not readings["openvino-genai", MIXED].loads


@pytest.mark.parametrize("client", CLIENTS, ids=lambda c: c.name)
def test_the_committed_table_says_what_is_measured(
    readings: dict[tuple[str, str], Reading], client: object
) -> None:
    name = client.name  # type: ignore[attr-defined]
    table = load_clients()
    mine = {label: reading for (who, label), reading in readings.items() if who == name}
    if not mine or name not in table.clients:
        pytest.skip("not installed, or not in the table")
    committed = {r.type: table.reads(r) for r in table.readings if r.client == name}
    assert {label: table.reads(reading) for label, reading in mine.items()} == {
        label: committed[label] for label in mine
    }
