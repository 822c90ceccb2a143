"""Options that several commands share: how types are decided, threads, JSON."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ewq_gguf.allocation.entropy import DEFAULT_EPSILON
from ewq_gguf.allocation.pins import parse_pin
from ewq_gguf.api import METHODS, Decision

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
        click.option("--method", type=click.Choice(METHODS), default="ewq", show_default=True,
                     help="How types are chosen when neither --type nor --plan is given."),
        click.option("--plan", "plan_path", type=click.Path(path_type=Path), help="Replay a plan file."),
        click.option("--tensor-type", "pins", multiple=True, metavar="PATTERN=TYPE",
                     help="Pin tensors whose name matches, e.g. ffn_down=q6_k; repeatable, first match wins."),
        click.option("--epsilon", type=float, default=DEFAULT_EPSILON, show_default=True,
                     help="EWQ: the constant inside the entropy's logarithm."),
        click.option("--x", type=float, default=1.0, show_default=True, help="EWQ: T = mu - X sigma."),
        click.option("--eight-bit", default="Q8_0", show_default=True, metavar="TYPE", help="EWQ: the 8-bit class."),
        click.option("--four-bit", default="Q4_K", show_default=True, metavar="TYPE", help="EWQ: the 4-bit class."),
        click.option("--embedding", default="raw", show_default=True, metavar="TYPE",
                     help="EWQ: embedding and output; raw as in the paper, or a type."),
    ]  # fmt: skip

    @functools.wraps(function)
    def wrapped(
        *args: Any,
        type_name: str | None,
        method: str,
        plan_path: Path | None,
        pins: tuple[str, ...],
        epsilon: float,
        x: float,
        eight_bit: str,
        four_bit: str,
        embedding: str,
        **rest: Any,
    ) -> Any:
        decision = Decision(
            plan=plan_path,
            type=type_name,
            method=method,
            epsilon=epsilon,
            x=x,
            eight_bit=eight_bit,
            four_bit=four_bit,
            embedding=embedding,
            pins=tuple(parse_pin(pin) for pin in pins),
        )
        return function(*args, decision=decision, **rest)

    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]
