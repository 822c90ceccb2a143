"""Blocks over machines: consecutive, within memory, and where llama.cpp puts them when told so."""

from __future__ import annotations

import itertools
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from ewq_gguf.allocation.ewq import ClassTypes
from ewq_gguf.allocation.machines import Machine, cache_bytes, distribute, parse_machine
from ewq_gguf.allocation.methods import class_plan
from ewq_gguf.api import spread
from ewq_gguf.cli import cli
from ewq_gguf.decision import Decision
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml import GGMLType
from ewq_gguf.model import block_of
from ewq_gguf.pipeline.source import load_model

REFERENCE = load_model(Path(__file__).parents[2] / "benchmarks" / "reference-10m")


def placed(il: int, n_layer: int, n_gpu_layers: int, split: list[int]) -> int:
    """Which device layer `il` goes to (n_layer is the output); 0 is the main machine's CPU, 1.. the RPC devices.

    llama.cpp's src/llama-model.cpp with its float32 arithmetic.
    """
    start = max(n_layer + 1 - n_gpu_layers, 0)
    active = min(n_gpu_layers, n_layer + 1)
    if il < start or il - start >= active:
        return 0
    ends = np.cumsum(np.array(split, dtype=np.float32), dtype=np.float32)
    ends = ends / ends[-1]
    at = np.float32(il - start) / np.float32(active)
    return 1 + int(np.searchsorted(ends, at, side="right"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12_000_000), min_size=1, max_size=5), st.sampled_from([64, 512, 4096]))
def test_shares_fit_and_llama_cpp_places_them_so(memories: list[int], n_ctx: int) -> None:
    model = REFERENCE
    plan = class_plan(model, {}, ClassTypes(), embedding=GGMLType.Q8_0)
    machines = [Machine(f"m{i}:50052", m) for i, m in enumerate(memories)]
    found = distribute(model, plan, machines, n_ctx=n_ctx, reserve=1000)
    by_block = [sum(t.nbytes for t in plan.tensors if block_of(t.name) == b) for b in range(12)]
    embedding, norm = (
        next(t.nbytes for t in plan.tensors if t.name == n)
        for n in ("token_embd.weight", "output_norm.weight")
    )
    cache = cache_bytes({k: v.value for k, v in model.metadata.items()}, 0, n_ctx)
    loads = [w + cache for w in by_block]

    def works(cuts: tuple[int, ...]) -> bool:
        ends = [0, *cuts, 13]
        for i, memory in enumerate(memories):
            held = sum(loads[ends[i] : min(ends[i + 1], 12)])
            held += embedding if i == 0 else 0
            if ends[i] <= 12 < ends[i + 1]:
                held += norm + (0 if i == 0 else embedding)
            if held > memory - 1000 and not (held == 0 and i > 0):
                return False
        return True

    possible = any(
        works(cuts) for cuts in itertools.combinations_with_replacement(range(14), len(memories) - 1)
    )
    assert (found is not None) == possible
    if found is None:
        return
    at = 0
    for i, share in enumerate(found.shares):
        assert share.first == min(at, 12)
        assert share.cache == cache * (share.stop - share.first)
        extra = (embedding if i == 0 else 0) + (norm + (embedding if i else 0) if share.output else 0)
        assert share.weights == sum(by_block[share.first : share.stop]) + extra
        assert share.layers == 0 or share.weights + share.cache <= share.machine.memory - 1000
        at += share.layers
    assert at == 13
    words = shlex.split(found.commands(Path("m.gguf"), n_ctx)[-1], comments=True)
    used = [i for i, s in enumerate(found.shares) if i > 0 and s.layers]
    layers = int(words[words.index("-ngl") + 1])
    split = [int(n) for n in words[words.index("--tensor-split") + 1].split(",")] if used else [1]
    for i, share in enumerate(found.shares):
        for il in [*range(share.first, share.stop), *([12] if share.output else [])]:
            assert placed(il, 12, layers, split) == (0 if i == 0 else 1 + used.index(i))


def test_blocks_are_demoted_until_the_machines_hold_them(reference: Path) -> None:
    machines = [parse_machine("local=6MiB"), parse_machine("10.0.0.2:6000=4MiB"), parse_machine("c=4MiB")]
    plan, found = spread(reference, machines, Decision(embedding="Q8_0"), n_ctx=512, reserve=0)
    classes = [b["class"] for b in plan.parameters["blocks"]]
    assert set(classes) == {"8-bit", "4-bit"}
    assert [s.layers for s in found.shares] == [4, 4, 5]
    lines = found.commands(Path("m.gguf"), 512)
    assert lines[0].startswith("ggml-rpc-server -H 10.0.0.2 -p 6000")
    assert "--rpc 10.0.0.2:6000,c:50052 --device RPC0,RPC1 -ngl 9 --tensor-split 4,5" in lines[2]
    everything, alone = spread(reference, [parse_machine("big=1GiB")], n_ctx=512, reserve=0)
    assert {b["class"] for b in everything.parameters["blocks"]} == {"raw"}
    assert alone.commands(Path("m.gguf"), 512)[0].startswith("llama-cli -m m.gguf -c 512 -ngl 0")


def test_what_does_not_fit_is_told(reference: Path) -> None:
    with pytest.raises(PlanError, match=r"every block at 1\.58-bit it needs"):
        spread(reference, [parse_machine("local=3MiB")], n_ctx=512, reserve=0)
    with pytest.raises(PlanError, match="does not fit: it needs"):
        spread(reference, [parse_machine("local=3MiB")], Decision(type="Q8_0"), n_ctx=512, reserve=0)
    with pytest.raises(PlanError, match="at least one machine"):
        spread(reference, [], n_ctx=512)


@pytest.mark.parametrize("text", ["host", "=4GiB", "host=", "host=lots", "a b=4GiB", "host:x=4GiB", "host:70000=4GiB", "a,b=1GiB"])  # fmt: skip
def test_machines_that_are_none(text: str) -> None:
    with pytest.raises(PlanError):
        parse_machine(text)


def test_caches() -> None:
    metadata = {
        "general.architecture": "x",
        "x.embedding_length": 64,
        "x.attention.head_count": 4,
        "x.attention.head_count_kv": [2, 0, 1],
    }
    assert [cache_bytes(metadata, b, 10) for b in range(3)] == [2 * 32 * 2 * 10, 0, 32 * 2 * 10]
    assert cache_bytes({**metadata, "x.attention.key_length": 8}, 0, 1) == 2 * (8 + 16) * 2
    assert cache_bytes({"general.architecture": "mamba"}, 0, 100) == 0


def test_command(reference: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    arguments = [
        "machines",
        str(reference),
        "--machine",
        "local=6MiB",
        "--machine",
        "b=8MiB",
        "--reserve",
        "0",
    ]
    done = CliRunner().invoke(cli, [*arguments, "--n-ctx", "256", "--json", "-o", str(plan)])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert sum(m["stop"] - m["first"] for m in told["machines"]) == 12
    assert json.loads(plan.read_text())["parameters"]["limit"] == 14 << 20
    assert "output" in CliRunner().invoke(cli, [*arguments, "--n-ctx", "256"]).stdout
