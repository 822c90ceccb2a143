"""Which types other programs read: the table's rules, and what `compat` makes of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ewq_gguf.allocation.clients import (
    Client,
    ClientTable,
    Reading,
    check_readable,
    load_clients,
    readable_pool,
)
from ewq_gguf.allocation.distortion import FULL_POOL, PLAIN_POOL, choosable
from ewq_gguf.allocation.plan import Plan, PlannedTensor
from ewq_gguf.allocation.scores import ScoreTable
from ewq_gguf.allocation.solver import Option
from ewq_gguf.allocation.targets import Target
from ewq_gguf.api import plan
from ewq_gguf.decision import Decision, decide
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.pipeline.optimize import Studied, Study
from ewq_gguf.pipeline.source import load_model

T = GGMLType


def _row(client: str, kind: str, same: bool | None, **more: object) -> Reading:
    return Reading(client, kind, same is not None, same, **more)  # type: ignore[arg-type]


@pytest.fixture
def table() -> ClientTable:
    clients = {
        "llama": Client("llama", "1", True),
        "other": Client("other", "2", False),
        "parser": Client("parser", "3", False),
    }
    rows = [
        _row("llama", kind, True, agreeing=24)
        for kind in ("F32", "F16", "Q8_0", "Q6_K", "Q4_K", "Q5_0", "IQ4_XS", "IQ4_NL")
    ]
    rows += [
        _row("other", "F32", True, agreeing=24),
        _row("other", "F16", True, agreeing=24),
        _row("other", "Q8_0", False, agreeing=8, tie=0.5),
        _row("other", "Q6_K", False, agreeing=1, tie=0.05),
        _row("other", "Q4_K", False, agreeing=7, tie=0.5),
        _row("other", "Q5_0", None, note="unsupported"),
        _row("other", "IQ4_XS", True, agreeing=24),
        _row("other", "mixed", True, agreeing=24),
        _row("parser", "Q8_0", True),
        _row("parser", "Q4_K", False, note="differs"),
    ]
    return ClientTable(clients, tuple(rows), near_tie=0.1, first_tokens=8)


def _plan(*kinds: GGMLType) -> Plan:
    tensors = tuple(
        PlannedTensor(f"blk.{i}.ffn_up.weight", (2, 256), kind, kind, "", kind.row_bytes(512))
        for i, kind in enumerate(kinds)
    )
    return Plan("uniform", {}, "llama", "0", tensors)


def test_what_counts_as_read(table: ClientTable) -> None:
    assert table.types_read_by(["other"]) == {T.F32, T.F16, T.Q8_0, T.Q6_K, T.IQ4_XS}


def test_the_first_tokens_excuse_no_build_of_llama_cpp(table: ClientTable) -> None:
    row = _row("llama", "Q2_K", False, agreeing=20, tie=0.5)
    assert not table.reads(row)
    assert table.reads(replace(row, client="other"))
    assert table.reads(replace(row, tie=0.01))


def test_several_programs_share_what_each_reads(table: ClientTable) -> None:
    assert table.types_read_by(["llama", "other"]) == {T.F32, T.F16, T.Q8_0, T.Q6_K, T.IQ4_XS}
    assert table.types_read_by(["all"]) == {T.Q8_0}
    assert table.refusing(["all"], T.Q4_K) == ("other", "parser")


@pytest.mark.parametrize("names", [["ollama"], [""], []])
def test_an_unknown_program_is_named_with_those_there_are(table: ClientTable, names: list[str]) -> None:
    with pytest.raises(PlanError, match=r"not in the table.*llama, other, parser"):
        table.types_read_by(names)


def test_a_pool_keeps_what_is_read(table: ClientTable) -> None:
    assert readable_pool(["other"], PLAIN_POOL, (256,), table) == (T.Q6_K, T.Q8_0)


def test_a_type_whose_stand_in_is_not_read_drops_out(table: ClientTable) -> None:
    pool = (T.IQ4_XS, T.Q6_K, T.Q8_0)
    assert readable_pool(["other"], pool, (256,), table) == pool
    # Rows of 288 take IQ4_NL in place of IQ4_XS, Q8_0 in place of Q6_K.
    assert readable_pool(["other"], pool, (256, 288), table) == (T.Q6_K, T.Q8_0)


def test_an_empty_pool_names_what_the_programs_share(table: ClientTable) -> None:
    with pytest.raises(PlanError, match=r"no type of the pool.*llama, other.*Q8_0"):
        readable_pool(["llama", "other"], (T.Q4_K, T.Q2_K), (), table)


def test_a_plan_with_an_unread_type_is_refused_by_name(table: ClientTable) -> None:
    check_readable(_plan(T.Q8_0, T.F16, T.I32), ["other"], table)
    with pytest.raises(PlanError, match=r"blk\.1\.ffn_up\.weight would be Q4_K, which other, parser does"):
        check_readable(_plan(T.Q8_0, T.Q4_K), ["other", "parser"], table)


def test_the_vectors_that_every_file_has_are_no_obstacle(table: ClientTable) -> None:
    unread = replace(table, readings=tuple(r for r in table.readings if r.type != "F32"))
    norm = PlannedTensor("output_norm.weight", (256,), T.F32, T.F32, "", 1024)
    check_readable(replace(_plan(T.Q8_0), tensors=(norm,)), ["other"], unread)
    with pytest.raises(PlanError, match="F32"):
        check_readable(_plan(T.F32), ["other"], unread)


def test_a_table_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clients.json"
    with pytest.raises(PlanError, match="make clients"):
        load_clients(path)
    path.write_text(json.dumps({"clients": [], "readings": [{"client": "x"}]}))
    with pytest.raises(PlanError, match="make clients"):
        load_clients(path)


def test_the_committed_table_is_whole() -> None:
    table = load_clients()
    reference = table.types_read_by(["llama-cpp-python"])
    assert set(FULL_POOL) | {T.F32, T.F16, T.BF16} <= reference
    assert {row.client for row in table.readings} == set(table.clients)
    assert len({(row.client, row.type) for row in table.readings}) == len(table.readings)


def test_every_build_of_llama_cpp_reads_what_the_allocator_chooses_from() -> None:
    table = load_clients()
    builds = [client.name for client in table.clients.values() if client.llama_cpp]
    assert readable_pool(builds, FULL_POOL, (256,)) == FULL_POOL


def test_rate_distortion_stays_within_what_is_read(reference: Path) -> None:
    model = load_model(reference)
    pool = (T.Q2_K, T.Q3_K, T.Q4_K, T.Q8_0)
    options = {
        t.name: {kind: Option(kind.name, t.bytes_as(kind), t.n_elements * 2**-kind.bpw) for kind in pool}
        for t in choosable(model)
    }
    lengths = {t.name: t.row_length for t in choosable(model)}
    table = ScoreTable("mse", "made up", options, lengths, fixed_bytes=0)
    studied = Studied(Study(damage="mse"), pool, table, None, ())
    free = Decision(method="rd", target=Target(bpw=4.0))
    kinds = {tensor.type for tensor in decide(model, free, studied=studied).tensors}
    assert kinds - load_clients().types_read_by(["openvino-genai"]) - {T.F32}
    bound = replace(free, compat=("openvino-genai",))
    with pytest.raises(PlanError):  # Q4_K alone takes more than is allowed
        decide(model, bound, studied=studied)
    chosen = decide(model, replace(bound, target=Target(bpw=5.5)), studied=studied)
    assert {tensor.type for tensor in chosen.tensors} == {T.F32, T.Q4_K, T.Q8_0}


def test_compat_lets_a_readable_plan_through_and_stops_another(reference: Path) -> None:
    fine = plan(reference, Decision(type="Q8_0", compat=("all",)))
    assert {tensor.type for tensor in fine.tensors} == {T.Q8_0, T.F32}
    table = load_clients()
    unread = next(
        (name, row.type)
        for row in table.readings
        if (name := row.client) != "llama-cpp-python" and row.type in T.__members__ and not table.reads(row)
        and T[row.type] in (T.Q2_K, T.IQ4_XS, T.IQ3_S, T.TQ1_0, T.TQ2_0, T.Q5_K, T.Q3_K)
    )  # fmt: skip
    with pytest.raises(PlanError, match=f"which {unread[0]} does not read"):
        plan(reference, Decision(type=unread[1], pure=True, compat=(unread[0],)))
