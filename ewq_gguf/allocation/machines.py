"""Which consecutive blocks go to which machine (EWQ's distribution, arXiv 2503.04704), as llama.cpp's RPC runs it.

The first machine is the one that runs llama.cpp: it holds the token embedding, everything that belongs to no
block, and the first blocks; the others serve their memory over the network and take the following blocks in
turn. The output matrix behaves as one more block after the last. A block needs its weights and its share of
the KV cache. Sources: llama.cpp (pinned) src/llama-model.cpp (load_tensors: n_gpu_layers, tensor_split, the
input stays with the CPU), src/llama.cpp (RPC devices come first), tools/rpc/README.md.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ewq_gguf.allocation.budget import Goal, lowered
from ewq_gguf.allocation.ewq import Precision
from ewq_gguf.allocation.facts import OUTPUT_NAME
from ewq_gguf.allocation.parsing import parse_size
from ewq_gguf.allocation.plan import Plan
from ewq_gguf.errors import PlanError
from ewq_gguf.model import Model, block_of

DEFAULT_PORT = 50052
DEFAULT_RESERVE = 512 << 20
_EMBEDDING = "token_embd.weight"
_CACHE_BYTES = 2  # F16, llama.cpp's default type of K and V


@dataclass(frozen=True)
class Machine:
    """A machine: `host:port` of its RPC server (a mere label for the first), and bytes it can give."""

    address: str
    memory: int

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0]

    @property
    def port(self) -> str:
        return self.address.rpartition(":")[2]


@dataclass(frozen=True)
class Share:
    """What a machine holds: blocks first..stop, whether the output too, and the bytes that takes.

    Attributes:
        weights: bytes of tensors.
        cache: bytes of the KV cache of its blocks.
    """

    machine: Machine
    first: int
    stop: int
    output: bool
    weights: int
    cache: int

    @property
    def layers(self) -> int:
        """Blocks, the output counting as one, as llama.cpp counts them."""
        return self.stop - self.first + self.output


def parse_machine(text: str) -> Machine:
    """`HOST=SIZE` or `HOST:PORT=SIZE`, such as `192.168.1.7:50052=24GiB`.

    Raises:
        PlanError: not of that form, or not a size.
    """
    address, sign, size = text.rpartition("=")
    host, colon, port = address.rpartition(":")
    if not colon:
        host, port = address, str(DEFAULT_PORT)
    if not sign or not host or any(c in host for c in ", \t") or not port.isdigit() or int(port) > 65535:
        raise PlanError(f"machine {text!r}: write HOST=SIZE or HOST:PORT=SIZE, as in 192.168.1.7:50052=24GiB")
    return Machine(f"{host}:{port}", parse_size(size))


def cache_bytes(metadata: Mapping[str, Any], block: int, n_ctx: int) -> int:
    """KV cache of one block for `n_ctx` tokens in F16; 0 for a block without attention.

    Compressed and sliding-window caches take less than this; the estimate is on the safe side.
    """
    arch = metadata.get("general.architecture")

    def number(key: str, default: int) -> int:
        value = metadata.get(f"{arch}.{key}", default)
        if isinstance(value, (list, tuple)):
            value = value[block] if block < len(value) else default
        return int(value)

    heads = number("attention.head_count", 0)
    if heads == 0:
        return 0
    width = number("embedding_length", 0) // heads
    per_head = number("attention.key_length", width) + number("attention.value_length", width)
    return n_ctx * number("attention.head_count_kv", heads) * per_head * _CACHE_BYTES


@dataclass(frozen=True)
class Distribution:
    """Shares of the machines in their order; a machine may have none. The blocks are consecutive."""

    shares: tuple[Share, ...]

    def commands(self, model: Path, n_ctx: int) -> list[str]:
        """llama.cpp's command lines: one RPC server for each remote machine, and the one that runs the model."""
        head, *others = self.shares
        used = [s for s in others if s.layers]
        lines = [
            f"ggml-rpc-server -H {s.machine.host} -p {s.machine.port}    # on {s.machine.host}" for s in used
        ]
        run = ["llama-cli", "-m", str(model), "-c", str(n_ctx)]
        if used:
            run += [
                "--rpc", ",".join(s.machine.address for s in used),
                # Local accelerators would otherwise take a part that nobody planned.
                "--device", ",".join(f"RPC{i}" for i in range(len(used))),
                "-ngl", str(sum(s.layers for s in used)),
                "--tensor-split", ",".join(str(s.layers) for s in used),
            ]  # fmt: skip
        else:
            run += ["-ngl", "0"]
        return [*lines, f"{shlex.join(run)}    # on {head.machine.host}"]


def distribute(
    model: Model, plan: Plan, machines: Sequence[Machine], *, n_ctx: int, reserve: int = DEFAULT_RESERVE
) -> Distribution | None:
    """Lay a plan's blocks out over machines, each filled in turn, or None where they do not fit.

    Filling every machine as far as it goes fits whenever any split into consecutive runs does. A machine
    smaller than the reserve holds nothing.

    Args:
        n_ctx: tokens that the KV cache must hold.
        reserve: bytes of every machine kept for llama.cpp's compute buffers.
    """
    before, items, twice = _loads(model, plan, n_ctx)
    blocks = len(items) - 1
    shares = []
    at = 0
    for i, machine in enumerate(machines):
        room = machine.memory - reserve
        first, weights, cache = at, before if i == 0 else 0, 0
        if weights > room and i == 0:
            return None
        while at < len(items):
            # Where the embedding lies already it serves as the output too.
            more = items[at][0] - (twice if i == 0 and at == blocks else 0)
            if weights + more + cache + items[at][1] > room:
                break
            weights, cache, at = weights + more, cache + items[at][1], at + 1
        shares.append(
            Share(machine, min(first, blocks), min(at, blocks), first <= blocks < at, weights, cache)
        )
    return Distribution(tuple(shares)) if at == len(items) else None


def machines_goal(
    model: Model, machines: Sequence[Machine], *, n_ctx: int, reserve: int = DEFAULT_RESERVE
) -> Goal:
    """A plan that can be laid out over the machines.

    Raises:
        PlanError: no machine was given.
    """
    if not machines:
        raise PlanError("name at least one machine, the one that runs llama.cpp first")
    limit = sum(max(0, m.memory - reserve) for m in machines)

    def refusal(smallest: Plan, lowest: Precision | None) -> str:
        before, items, _ = _loads(model, smallest, n_ctx)
        return (
            f"the model does not fit: {lowered(lowest)}it needs "
            f"{before + sum(map(sum, items)):,} bytes with a cache of {n_ctx} tokens, {before:,} of them on the first "
            f"machine and up to {max(map(sum, items)):,} in one piece; the machines give {limit:,} after a reserve of "
            f"{reserve:,} each. Add a machine, or use a shorter --n-ctx, a smaller --reserve or --embedding"
        )

    return Goal(
        limit,
        lambda plan: distribute(model, plan, machines, n_ctx=n_ctx, reserve=reserve) is not None,
        refusal,
    )


def _loads(model: Model, plan: Plan, n_ctx: int) -> tuple[int, list[tuple[int, int]], int]:
    """Bytes for the first machine; (weights, cache) of each block and of the output; how much of the output is
    the embedding once more, which a model with tied embeddings loads where the output is computed."""
    metadata = {key: value.value for key, value in model.metadata.items()}
    blocks = [[0, cache_bytes(metadata, i, n_ctx)] for i in range(model.n_blocks)]
    before = output = embedding = 0
    for t in plan.tensors:
        block = block_of(t.name)
        if block is not None:
            blocks[block][0] += t.nbytes
        elif t.name.startswith("output"):
            output += t.nbytes
        else:
            before += t.nbytes
            embedding += t.nbytes if t.name == _EMBEDDING else 0
    twice = embedding if all(t.name != OUTPUT_NAME for t in plan.tensors) else 0
    return before, [*((w, c) for w, c in blocks), (output + twice, 0)], twice
