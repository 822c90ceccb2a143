"""The committed page and table belong together, and new rows replace old ones."""

from __future__ import annotations

import importlib.util
import json
from types import ModuleType

import pytest
from client_check.catalogue import CLIENTS
from client_check.files import LABELS, ROOT
from client_check.page import render

from ewq_gguf.allocation.clients import TABLE, load_clients


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("clients_program", ROOT / "third_party" / "clients.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_table_renders_to() -> None:
    data = json.loads(TABLE.read_text(encoding="utf-8"))
    page = (ROOT / "benchmarks" / "CLIENTS.md").read_text(encoding="utf-8")
    assert page == render(data, load_clients())


def test_a_cell_of_each_kind_stands_on_the_page() -> None:
    table = load_clients()
    page = render(json.loads(TABLE.read_text(encoding="utf-8")), table)
    for client in table.clients.values():
        assert f"| {client.name} | {client.version} |" in page
    for label in {row.type for row in table.readings}:
        assert f"\n| {label} |" in page


def test_measuring_some_programs_keeps_the_others(program: ModuleType) -> None:
    old = {
        "clients": [{"name": "xllamacpp", "version": "1"}, {"name": "mlx", "version": "1"}],
        "skipped": [{"name": "tinygrad", "reason": "no clang"}],
        "readings": [
            {"client": "mlx", "type": "Q8_0", "loads": True, "same_text": True},
            {"client": "xllamacpp", "type": "Q8_0", "loads": False, "same_text": None},
            {"client": "xllamacpp", "type": "F16", "loads": True, "same_text": True},
        ],
    }
    fresh = {
        "clients": [{"name": "xllamacpp", "version": "2"}, {"name": "tinygrad", "version": "1"}],
        "skipped": [],
        "readings": [
            {"client": "tinygrad", "type": "F16", "loads": True, "same_text": True},
            {"client": "xllamacpp", "type": "Q8_0", "loads": True, "same_text": True},
        ],
    }
    both = program.merged(fresh, old)
    assert [entry["version"] for entry in both["clients"]] == ["2", "1", "1"]
    assert both["skipped"] == []
    found = {(row["client"], row["type"]): row["loads"] for row in both["readings"]}
    assert found == {
        ("xllamacpp", "F16"): True,
        ("xllamacpp", "Q8_0"): True,
        ("tinygrad", "F16"): True,
        ("mlx", "Q8_0"): True,
    }
    assert json.loads(program.to_json(both)) == both


def test_the_catalogue_names_each_program_once() -> None:
    assert len({client.name for client in CLIENTS}) == len(CLIENTS)
    assert len(set(LABELS)) == len(LABELS)
