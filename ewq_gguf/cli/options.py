"""Options that several commands share: how types are decided, threads, JSON."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ewq_gguf.allocation.entropy import DEFAULT_EPSILON
from ewq_gguf.allocation.ewq import BlockEntropy, Precision, Variant
from ewq_gguf.allocation.fastewq import DEFAULT_FOREST
from ewq_gguf.allocation.parsing import parse_size, parse_type
from ewq_gguf.allocation.pins import parse_pin
from ewq_gguf.allocation.scores import DamageModel
from ewq_gguf.allocation.targets import Target
from ewq_gguf.decision import METHODS, Decision
from ewq_gguf.pipeline.optimize import DEFAULT_TEXT, Study
from ewq_gguf.vocab import TokenizerMode

# Options of EWQ and FastEWQ that carry the name of their field in `Decision`.
_BLOCKWISE = (
    "epsilon",
    "x",
    "block_entropy",
    "variant",
    "classes",
    "raw",
    "eight_bit",
    "four_bit",
    "ternary",
    "size",
    "lowest",
    "forest",
    "embedding",
)
# Those that hold for every method.
_ANY_METHOD = (
    "pure",
    "keep_output",
    "keep_embedding",
    "imatrix",
    "allow_requantize",
    "pre_tokenizer",
    "tokenizer",
)


def parse_size_option(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Callback of options that take a size: bytes."""
    return None if value is None else parse_size(value)


F = TypeVar("F", bound=Callable[..., Any])

model_argument = click.argument("model", type=click.Path(path_type=Path))
threads_option = click.option(
    "--threads", type=click.IntRange(1, 1024), default=None, help="Threads; all usable cores by default."
)
json_option = click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")


def decision_options(function: F) -> F:
    """Add the options that decide types; the command receives them as one `decision`."""
    options = [
        click.option("--type", "type_name", metavar="TYPE", help="One type (bf16, Q8_0) or preset (Q4_K_M) for all."),
        click.option("--pure", is_flag=True,
                     help="--type: the one type everywhere, where a preset has the same name (Q2_K, IQ4_XS, ...)."),
        click.option("--method", type=click.Choice(METHODS),
                     help="How types are chosen: rd (measured) where a size or target is given, else ewq."),
        click.option("--plan", "plan_path", type=click.Path(path_type=Path), help="Replay a plan file, or take the types of a GGUF file."),
        click.option("--tensor-type", "pins", multiple=True, metavar="PATTERN=TYPE",
                     help="Pin tensors whose name matches, e.g. ffn_down=q6_k; repeatable, first match wins."),
        click.option("--keep-output", is_flag=True, help="Leave output.weight in its own type."),
        click.option("--keep-embedding", is_flag=True, help="Leave the token embeddings in their own type."),
        click.option("--imatrix", type=click.Path(path_type=Path), metavar="FILE",
                     help="Importance matrix, GGUF or legacy: weights the columns, as llama-quantize does."),
        click.option("--allow-requantize", is_flag=True, help="MODEL may be a GGUF that is quantized already."),
        click.option("--pre-tokenizer", metavar="NAME",
                     help="llama.cpp's name of the pre-tokenizer, where it is not recognised."),
        click.option("--tokenizer", type=click.Choice([m.value for m in TokenizerMode]),
                     default=TokenizerMode.FAITHFUL.value, show_default=True,
                     help="faithful: llama.cpp gives the token ids of the model's own tokenizer; "
                          "converter: the metadata of llama.cpp's converter, byte for byte, also where it gives others."),
        click.option("--epsilon", type=float, default=DEFAULT_EPSILON, show_default=True,
                     help="EWQ: the constant inside the entropy's logarithm."),
        click.option("--x", type=float, default=1.0, show_default=True, help="EWQ: T = mu - X sigma."),
        click.option("--block-entropy", type=click.Choice([r.value for r in BlockEntropy]),
                     default=BlockEntropy.WEIGHTED_MEAN.value, show_default=True,
                     help="EWQ: how a block's matrices make one entropy."),
        click.option("--variant", type=click.Choice([v.value for v in Variant]),
                     help="EWQ: what the classes do to the blocks; 4bit-8bit-mixed unless --size is given."),
        click.option("--classes", metavar="HIGH,MIDDLE,LOW",
                     help="EWQ: types for high, middle and low entropy, e.g. Q8_0,Q6_K,Q4_K."),
        click.option("--raw", default="raw", show_default=True, metavar="TYPE",
                     help="EWQ: the unquantized class; raw is the checkpoint's 16-bit type."),
        click.option("--eight-bit", default="Q8_0", show_default=True, metavar="TYPE", help="EWQ: the 8-bit class."),
        click.option("--four-bit", default="Q4_K", show_default=True, metavar="TYPE", help="EWQ: the 4-bit class."),
        click.option("--ternary", default="TQ1_0", show_default=True, metavar="TYPE",
                     help="EWQ: the 1.58-bit class, which only --size uses."),
        click.option("--size", callback=parse_size_option, metavar="SIZE",
                     help="The file has at most this size, e.g. 4.2GiB."),
        click.option("--bpw", type=float, help="Bits per weight at most."),
        click.option("--like", metavar="PRESET", help="The bytes that this preset would take, e.g. Q4_K_M."),
        click.option("--max-kld", type=float, help="rd: the smallest file with at most this divergence, in nats."),
        click.option("--vram", callback=parse_size_option, metavar="SIZE",
                     help="Weights, KV cache and work buffers fit into this much memory."),
        click.option("--context", type=click.IntRange(1), default=8192, show_default=True,
                     help="--vram: tokens of context."),
        click.option("--cache-type", default="F16", show_default=True, metavar="TYPE",
                     help="--vram: type of the KV cache."),
        click.option("--text", "study_text", type=click.Path(path_type=Path), metavar="FILE",
                     help="rd: calibration text; a short built-in one by default."),
        click.option("--damage", type=click.Choice(["probe", "imatrix", "mse"]), default="probe", show_default=True,
                     help="rd: what counts as damage: measured divergence, weighted error, or plain error."),
        click.option("--pool", metavar="TYPES", help="rd: types to choose from, e.g. Q4_K,Q5_K,Q6_K."),
        click.option("--compat", metavar="NAMES",
                     help="Only types that these programs read (see benchmarks/CLIENTS.md), comma-separated, or all."),
        click.option("--probe-chunks", type=click.IntRange(1), default=2, show_default=True,
                     help="rd: contexts of 512 tokens per probed tensor."),
        click.option("--blocks", type=click.IntRange(1), help="rd: probe only so many blocks, evenly spread."),
        click.option("--rounds", type=click.IntRange(0), default=0, show_default=True,
                     help="rd: further rounds of probes around the plan; a plan that measures worse is dropped."),
        click.option("--try-out/--no-try-out", default=True, show_default=True,
                     help="rd: measure the plan on the calibration text before its file is made."),
        click.option("--lowest", type=click.Choice([p.value for p in Precision]), default="1.58-bit",
                     show_default=True, help="EWQ: the class below which no block goes for --size."),
        click.option("--forest", default=DEFAULT_FOREST, show_default=True, metavar="NAME|FILE",
                     help="FastEWQ: the classifier: fast, fast-train, or a file of `fastewq train`."),
        click.option("--embedding", default="raw", show_default=True, metavar="TYPE",
                     help="EWQ: embedding and output; raw as in the paper, or a type."),
    ]  # fmt: skip

    @functools.wraps(function)
    def wrapped(
        *args: Any,
        type_name: str | None,
        method: str | None,
        plan_path: Path | None,
        pins: tuple[str, ...],
        bpw: float | None,
        like: str | None,
        max_kld: float | None,
        vram: int | None,
        context: int,
        cache_type: str,
        study_text: Path | None,
        damage: DamageModel,
        pool: str | None,
        compat: str | None,
        probe_chunks: int,
        blocks: int | None,
        rounds: int,
        try_out: bool,
        **rest: Any,
    ) -> Any:
        target = Target(
            bpw=bpw, like=like, max_kld=max_kld, vram=vram, context=context, cache_type=parse_type(cache_type)
        )
        study = Study(
            damage=damage,
            text=study_text or DEFAULT_TEXT,
            use_imatrix=damage != "mse",
            pool=None if pool is None else tuple(parse_type(name) for name in pool.split(",")),
            chunks=probe_chunks,
            blocks=blocks,
            rounds=rounds,
            try_out=try_out,
        )
        decision = Decision(
            target=target,
            study=study,
            plan=plan_path,
            type=type_name,
            method=method,
            **{name: rest.pop(name) for name in (*_BLOCKWISE, *_ANY_METHOD)},
            pins=tuple(parse_pin(pin) for pin in pins),
            compat=() if compat is None else tuple(compat.split(",")),
        )
        return function(*args, decision=decision, **rest)

    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]
