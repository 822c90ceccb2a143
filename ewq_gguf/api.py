"""The library's front door: the functions behind the commands.

import ewq_gguf
result = ewq_gguf.convert("path/to/checkpoint", "model.gguf", ewq_gguf.Decision(type="Q8_0"))
print(result.nbytes, result.bpw)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ewq_gguf.allocation.analysis import Analysis, analyze_model
from ewq_gguf.allocation.entropy import DEFAULT_EPSILON
from ewq_gguf.allocation.ewq import BlockEntropy, check_parameters
from ewq_gguf.allocation.fastewq import (
    DEFAULT_FOREST,
    BlockVerdict,
    decide_blocks,
    load_forest,
)
from ewq_gguf.allocation.forest import Forest
from ewq_gguf.allocation.labels import Row, label_rows
from ewq_gguf.allocation.machines import (
    DEFAULT_RESERVE,
    Distribution,
    Machine,
    distribute,
    machines_goal,
)
from ewq_gguf.allocation.plan import Plan
from ewq_gguf.checkpoint.hub import located
from ewq_gguf.decision import Decision, StagedProgress, decide, stage, study
from ewq_gguf.errors import CheckpointError, PlanError, QuantizationError
from ewq_gguf.headers import header_features
from ewq_gguf.model import Model
from ewq_gguf.pipeline.convert import (
    Conversion,
    check_requantizing,
    default_threads,
    file_size,
    write_model,
)
from ewq_gguf.pipeline.importance import Importance, column_weights, load_importance
from ewq_gguf.pipeline.memory import DEFAULT_MEMORY, budget
from ewq_gguf.pipeline.optimize import Studied
from ewq_gguf.pipeline.source import load_model, source_files, source_state
from ewq_gguf.pipeline.split import Split


def analyze(
    model: str | os.PathLike[str],
    *,
    epsilon: float = DEFAULT_EPSILON,
    block_entropy: str = BlockEntropy.WEIGHTED_MEAN.value,
    rank: bool = False,
    threads: int | None = None,
    progress: StagedProgress | None = None,
) -> Analysis:
    """Entropy, variance, kurtosis and extremes of every weight matrix and transformer block.

    Args:
        model: a checkpoint folder, .safetensors or .gguf file, or a model on the Hub (org/name[@revision]).
        block_entropy: how a block's matrices make one entropy; see `allocation.ewq.BlockEntropy`.
        rank: also effective ranks, which takes far longer.
        progress: called with (stage, weights done, weights in all).

    Raises:
        EwqError: the model cannot be read; the subclass says why.

    Example:
        >>> import ewq_gguf
        >>> found = ewq_gguf.analyze("path/to/checkpoint")
        >>> len(found.blocks), min(found.blocks, key=lambda b: b.entropy).index in range(12)
        (12, True)
    """
    loaded = load_model(located(model, progress=progress))
    check_parameters(epsilon=epsilon)
    return analyze_model(
        loaded,
        epsilon=epsilon,
        reading=BlockEntropy(block_entropy),
        rank=rank,
        threads=threads or default_threads(),
        progress=stage(progress, "Analysing"),
    )


def guess(
    model: str | os.PathLike[str], *, forest: str = DEFAULT_FOREST, x: float = 1.0
) -> tuple[Forest, tuple[BlockVerdict, ...]]:
    """FastEWQ's verdict on every block, from config and tensor headers alone: no weight, no tokenizer.

    Args:
        model: a checkpoint folder, .safetensors or .gguf file, or a model on the Hub (org/name[@revision]).
        forest: the classifier: "fast", "fast-train", or a file that `fastewq train` wrote.

    Raises:
        EwqError: the model or the classifier cannot be read; the subclass says why.
    """
    check_parameters(x=x)
    found = load_forest(forest)
    return found, decide_blocks(found, header_features(located(model, headers_only=True)), x=x)


def label(
    model: str | os.PathLike[str],
    name: str,
    *,
    epsilon: float = DEFAULT_EPSILON,
    x: float = 1.0,
    threads: int | None = None,
    progress: StagedProgress | None = None,
) -> list[Row]:
    """FastEWQ's training rows for a model, by full analysis.

    Raises:
        EwqError: the model cannot be read; the subclass says why.
    """
    check_parameters(epsilon=epsilon, x=x)
    loaded = load_model(located(model, progress=progress))
    analysis = analyze_model(
        loaded,
        epsilon=epsilon,
        threads=threads or default_threads(),
        only_blocks=True,
        progress=stage(progress, f"Analysing {name}"),
    )
    return label_rows(name, loaded, analysis, x)


def plan(
    model: str | os.PathLike[str],
    decision: Decision | None = None,
    *,
    threads: int | None = None,
    progress: StagedProgress | None = None,
) -> Plan:
    """Decide a type for every tensor without writing anything.

    Raises:
        EwqError: the model cannot be read or the decision not be honoured; the subclass says why.

    Example:
        >>> import ewq_gguf
        >>> chosen = ewq_gguf.plan("path/to/checkpoint", ewq_gguf.Decision(type="Q4_K_M"))
        >>> chosen.types()["blk.0.attn_q.weight"].name, round(chosen.bpw, 1)
        ('Q4_K', 5.0)
    """
    wish = decision or Decision()
    path = located(model, headers_only=not wish.reads_weights, progress=progress)
    loaded = load_model(path, pre_tokenizer=wish.pre_tokenizer, tokenizer=wish.tokenizer_mode)
    return decide(loaded, wish, threads=threads, progress=progress)


def spread(
    model: str | os.PathLike[str],
    machines: Sequence[Machine],
    decision: Decision | None = None,
    *,
    n_ctx: int = 4096,
    reserve: int = DEFAULT_RESERVE,
    threads: int | None = None,
    progress: StagedProgress | None = None,
) -> tuple[Plan, Distribution]:
    """Which consecutive blocks run on which machine, and the types that make them fit.

    A method demotes blocks until all fits; a plan or a type is laid out as it is.

    Args:
        machines: in the order of execution; the first runs llama.cpp and holds the embedding.
        n_ctx: tokens that the KV cache must hold.
        reserve: bytes of every machine kept for compute buffers.

    Raises:
        EwqError: the model cannot be read, or it does not fit; the subclass says why.
    """
    wish = decision or Decision()
    if wish.wanted.is_set or wish.method == "rd":
        raise PlanError(
            "the machines' memory is the limit here, and blocks are demoted as EWQ does: leave out the size or target "
            "and --method rd, or make a plan first and lay it out with --plan"
        )
    loaded = load_model(located(model, progress=progress))
    goal = machines_goal(loaded, machines, n_ctx=n_ctx, reserve=reserve)
    chosen = decide(loaded, wish, goal=goal, threads=threads, progress=progress)
    found = distribute(loaded, chosen, machines, n_ctx=n_ctx, reserve=reserve)
    if found is None:
        raise PlanError(goal.refusal(chosen, None))
    return chosen, found


def preview(
    model: str | os.PathLike[str],
    decision: Decision | None = None,
    *,
    threads: int | None = None,
    split: Split | None = None,
    checksums: bool = False,
    progress: StagedProgress | None = None,
) -> tuple[Plan, int]:
    """What `convert` with the same arguments would do: the plan, and the exact bytes it would write.

    Raises:
        EwqError: the model cannot be read or the decision not be honoured; the subclass says why.

    Example:
        >>> import ewq_gguf
        >>> chosen, n_bytes = ewq_gguf.preview("path/to/checkpoint", ewq_gguf.Decision(type="Q4_K_M"))
        >>> n_bytes > chosen.data_bytes
        True
    """
    wish = decision or Decision()
    path = located(model, headers_only=not wish.reads_weights, progress=progress)
    loaded = load_model(path, pre_tokenizer=wish.pre_tokenizer, tokenizer=wish.tokenizer_mode)
    importance, studied = _weights_for(loaded, wish, threads, progress)
    chosen = decide(
        loaded,
        wish,
        size_of=lambda plan: file_size(loaded, plan, split=split, importance=importance, checksums=checksums),
        studied=studied,
        threads=threads,
        progress=progress,
    )
    if not wish.allow_requantize:
        check_requantizing(loaded, chosen)
    column_weights(loaded, chosen, importance)
    return chosen, file_size(loaded, chosen, split=split, importance=importance, checksums=checksums)


def convert(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    decision: Decision | None = None,
    *,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    split: Split | None = None,
    checksums: bool = False,
    resume: bool = False,
    progress: StagedProgress | None = None,
    on_plan: Callable[[Plan], None] | None = None,
) -> Conversion:
    """Convert a model to GGUF: decide, quantize while streaming, and give the file its name when it is whole.

    Args:
        model: a checkpoint folder, .safetensors or .gguf file (of a split one, any part), or a model on the Hub
            (org/name[@revision]).
        output: the file to write; an existing one is replaced in one step at the end.
        decision: how types are decided; EWQ with the paper's constants by default.
        threads: quantizing threads; all usable cores by default. The bytes do not depend on it.
        memory: bytes the process may take, about.
        split: several files instead of one, named as llama.cpp names them.
        checksums: store the sha256 of every tensor's bytes in the metadata.
        resume: go on where an earlier run was interrupted; what it wrote is read again and checked.
        progress: called with (stage, done, in all).
        on_plan: told what was decided, before anything is quantized.

    Raises:
        EwqError: the subclass says why; nothing stands under `output`. What is left beside it, if anything,
            the message says (see `pipeline.output`).

    Example:
        >>> import ewq_gguf
        >>> done = ewq_gguf.convert("path/to/checkpoint", "q8.gguf", ewq_gguf.Decision(type="Q8_0"))
        >>> done.path.name, done.nbytes == done.path.stat().st_size, round(done.bpw, 1)
        ('q8.gguf', True, 8.5)
    """
    source, target, wish = located(model, progress=progress), Path(output), decision or Decision()
    budget(memory, threads or default_threads())  # refused before any work
    state = source_state(source)
    loaded = load_model(source, pre_tokenizer=wish.pre_tokenizer, tokenizer=wish.tokenizer_mode)
    _refuse_own_source(source, target)
    if not wish.allow_requantize and wish.plan is None and wish.type is None:
        check_requantizing(loaded)
    importance, studied = _weights_for(loaded, wish, threads, progress)
    chosen = decide(
        loaded,
        wish,
        size_of=lambda plan: file_size(loaded, plan, split=split, importance=importance, checksums=checksums),
        studied=studied,
        threads=threads,
        progress=progress,
    )
    if not wish.allow_requantize:
        check_requantizing(loaded, chosen)
    if on_plan is not None:
        on_plan(chosen)
    return write_model(
        loaded,
        chosen,
        target,
        threads=threads,
        memory=memory,
        importance=importance,
        split=split,
        checksums=checksums,
        resume=resume,
        source_state=state,
        still=lambda: _check_unchanged(source, state),
        progress=stage(progress, "Quantizing"),
        verifying=stage(progress, "Reading again"),
    )


def _weights_for(
    model: Model, wish: Decision, threads: int | None, progress: StagedProgress | None
) -> tuple[Importance | None, Studied | None]:
    """The importance matrix to quantize with: the user's, or the one that a study collects."""
    if wish.plan is None and wish.type is None and wish.chosen_method == "rd":
        studied = study(model, wish, threads=threads, progress=progress)
        return studied.importance, studied
    return (None if wish.imatrix is None else load_importance(wish.imatrix)), None


def _check_unchanged(source: Path, state: str) -> None:
    """What was read first and what was read last must be of one state of the source."""
    if source_state(source) != state:
        raise CheckpointError(
            f"{source} changed while it was being converted; run again when nothing writes to it"
        )


def _refuse_own_source(source: Path, target: Path) -> None:
    if target.exists() and any(target.samefile(file) for file in source_files(source)):
        raise QuantizationError(f"{target} is the source itself; choose another name with -o")
