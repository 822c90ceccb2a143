"""The library's front door: the functions behind the commands.

import ewq_gguf
result = ewq_gguf.convert("path/to/checkpoint", "model.gguf", ewq_gguf.Decision(type="Q8_0"))
print(result.nbytes, result.bpw)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ewq_gguf.allocation.analysis import Analysis, analyze_model
from ewq_gguf.allocation.blockwise import BlockwiseOptions, class_types, ewq_decision, fastewq_decision
from ewq_gguf.allocation.budget import Goal, SizeOf, file_goal
from ewq_gguf.allocation.clients import check_readable, readable_pool
from ewq_gguf.allocation.entropy import DEFAULT_EPSILON
from ewq_gguf.allocation.ewq import BlockEntropy, Precision, Variant, check_parameters
from ewq_gguf.allocation.facts import quantizable
from ewq_gguf.allocation.fastewq import (
    DEFAULT_FOREST,
    BlockVerdict,
    decide_blocks,
    load_forest,
)
from ewq_gguf.allocation.forest import Forest
from ewq_gguf.allocation.kept import kept_plan
from ewq_gguf.allocation.labels import Row, label_rows
from ewq_gguf.allocation.machines import (
    DEFAULT_RESERVE,
    Distribution,
    Machine,
    distribute,
    machines_goal,
)
from ewq_gguf.allocation.methods import pinned_plan, preset_plan, uniform_plan
from ewq_gguf.allocation.parsing import parse_type
from ewq_gguf.allocation.pins import Pin
from ewq_gguf.allocation.plan import Plan, facts_of, raw_type
from ewq_gguf.allocation.presets import PRESETS
from ewq_gguf.allocation.targets import Target, file_budget
from ewq_gguf.checkpoint.hub import located
from ewq_gguf.errors import CheckpointError, PlanError, QuantizationError
from ewq_gguf.ggml.types import GGMLType
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
from ewq_gguf.pipeline.optimize import Studied, Study, rd_plan, study_model
from ewq_gguf.pipeline.plan_file import fitted_plan
from ewq_gguf.pipeline.refine import refined_plan
from ewq_gguf.pipeline.source import load_model, source_files, source_state
from ewq_gguf.pipeline.split import Split
from ewq_gguf.vocab import TokenizerMode

StagedProgress = Callable[[str, int, int], None]
METHODS = ("rd", "ewq", "fastewq")


# Presets that deviate nowhere from their one type, and that the converter writes as well.
_PLAIN = ("F32", "F16", "BF16", "Q8_0")


@dataclass(frozen=True)
class Decision:
    """How types are decided; the first of `plan`, `type` and `method` that is set counts.

    Attributes:
        plan: a plan file to replay, or a GGUF file whose types to take.
        type: one tensor type for all (`bf16`, `Q8_0`, `Q4_K`) or a llama-quantize preset (`Q4_K_M`, `IQ4_XS`).
        pure: a name that is both means the type, everywhere, as for llama-quantize --pure.
        method: "rd" (rate-distortion, measured), "ewq" or "fastewq"; None takes EWQ where `variant` or `classes`
            is given, else rd where a target or size is, and EWQ otherwise.
        epsilon, x: EWQ's constants (arXiv 2503.04704).
        block_entropy: how a block's matrices make one entropy; see `allocation.ewq.BlockEntropy`.
        variant: what the classes do to the blocks; see `allocation.ewq.Variant`.
        raw, eight_bit, four_bit, ternary: the types behind EWQ's classes; "raw" is the checkpoint's own.
        classes: three types in their place, for high, middle and low entropy: "Q8_0,Q6_K,Q4_K".
        embedding: type of embedding and output under EWQ, or "raw" as in the paper.
        size: bytes that the file may have at most, header included.
        target: other ways to say how large the file or its damage may be.
        study: how rate-distortion allocation measures the model.
        lowest: the class below which no block goes for a size.
        forest: FastEWQ's classifier: "fast", "fast-train", or a file that `fastewq train` wrote.
        pins: PATTERN=TYPE overrides, the first match wins.
        keep_output, keep_embedding: leave `output.weight` or the token embeddings in their own type.
        imatrix: an importance matrix, GGUF or legacy; presets choose other types with one.
        allow_requantize: a GGUF source may be quantized already.
        pre_tokenizer: llama.cpp's name of the pre-tokenizer, where it is not recognised by itself.
        tokenizer: "faithful" for the tokenizer's own token ids, "converter" for the metadata of llama.cpp's
            converter; see `vocab.faithful`.
        compat: programs that must read every type in the file, as measured (`allocation.clients`); "all" for
            every one measured.
    """

    plan: Path | None = None
    type: str | None = None
    pure: bool = False
    method: str | None = None
    epsilon: float = DEFAULT_EPSILON
    x: float = 1.0
    block_entropy: str = BlockEntropy.WEIGHTED_MEAN.value
    variant: str | None = None
    raw: str = "raw"
    eight_bit: str = "Q8_0"
    four_bit: str = "Q4_K"
    ternary: str = "TQ1_0"
    classes: str | None = None
    embedding: str = "raw"
    size: int | None = None
    target: Target = field(default_factory=Target)
    study: Study = field(default_factory=Study)
    lowest: str = Precision.TERNARY.value
    forest: str = DEFAULT_FOREST
    pins: tuple[Pin, ...] = ()
    keep_output: bool = False
    keep_embedding: bool = False
    imatrix: Path | None = None
    allow_requantize: bool = False
    pre_tokenizer: str | None = None
    tokenizer: str = TokenizerMode.FAITHFUL.value
    compat: tuple[str, ...] = ()

    @property
    def reads_weights(self) -> bool:
        """Whether deciding looks at weights, and not at their names and shapes alone."""
        return self.plan is None and self.type is None and self.chosen_method != "fastewq"

    @property
    def chosen_method(self) -> str:
        """The method that decides where neither plan nor type is given."""
        if self.method is None and (self.variant is not None or self.classes is not None):
            return "ewq"
        return self.method or ("rd" if self.wanted.is_set else "ewq")

    @property
    def wanted(self) -> Target:
        """The target, with `size` as one way to give it.

        Raises:
            PlanError: both are given.
        """
        if self.size is None:
            return self.target
        if self.target.is_set:
            raise PlanError("a size and another target exclude each other; give one")
        return Target(size=self.size)

    @property
    def tokenizer_mode(self) -> TokenizerMode:
        """`tokenizer`, checked.

        Raises:
            PlanError: there is no such way.
        """
        try:
            return TokenizerMode(self.tokenizer)
        except ValueError as error:
            names = " or ".join(mode.value for mode in TokenizerMode)
            raise PlanError(f"tokenizer is {self.tokenizer!r:.40}; give {names}") from error


def _stage(progress: StagedProgress | None, name: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(name, done, total)


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
        progress=_stage(progress, "Analysing"),
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
        progress=_stage(progress, f"Analysing {name}"),
    )
    return label_rows(name, loaded, analysis, x)


def decide(
    model: Model,
    decision: Decision,
    *,
    goal: Goal | None = None,
    size_of: SizeOf | None = None,
    studied: Studied | None = None,
    threads: int | None = None,
    progress: StagedProgress | None = None,
) -> Plan:
    """The plan for an opened model; one that the programs of `decision.compat` read.

    Args:
        goal: what the plan must fit into, in place of a size.
        size_of: exact bytes of a plan's file where more goes into it than the plan (an importance matrix's
            keys, checksums, splits).
        studied: what a study of the model found, where there is one already.

    Raises:
        PlanError: a type, preset, pattern or constant that cannot be honoured.
        CheckpointError: a weight is not finite.
    """
    chosen = _decide(
        model, decision, goal=goal, size_of=size_of, studied=studied, threads=threads, progress=progress
    )
    if decision.compat:
        check_readable(chosen, decision.compat)
    return chosen


def _decide(
    model: Model,
    decision: Decision,
    *,
    goal: Goal | None,
    size_of: SizeOf | None,
    studied: Studied | None,
    threads: int | None,
    progress: StagedProgress | None,
) -> Plan:
    if decision.wanted.is_set and (decision.plan is not None or decision.type is not None):
        raise PlanError("a size or target leaves the types to a method; give it without a plan or a type")
    if decision.plan is not None:
        plan = fitted_plan(decision.plan, model)
    elif decision.type is not None:
        wanted = _single_type(decision.type, decision.pure)
        if wanted is None:
            return _kept(
                model,
                preset_plan(
                    model, decision.type, has_imatrix=decision.imatrix is not None, pins=decision.pins
                ),
                decision,
            )
        plan = uniform_plan(model, wanted)
    elif decision.chosen_method == "rd":
        pins = pinned_types(model, decision)
        studied = studied or study(model, decision, threads=threads, progress=progress)
        pool = studied.pool
        if decision.compat:
            pool = readable_pool(decision.compat, pool, studied.table.row_lengths.values())
        plan = rd_plan(model, studied, decision.wanted, pins=pins, pool=pool, size_of=size_of)
        if decision.study.rounds:
            plan, _ = refined_plan(
                model, studied, decision.wanted, plan, decision.study.rounds,
                pins=pins, pool=pool, size_of=size_of, threads=threads, progress=progress,
            )  # fmt: skip
        return plan
    elif decision.chosen_method == "ewq":
        return ewq_decision(
            model,
            blockwise_options(decision),
            goal=goal or _size_goal(model, decision, size_of),
            adjust=lambda plan: _adjusted(model, plan, decision),
            threads=threads or default_threads(),
            progress=_stage(progress, "Analysing"),
        )
    elif decision.chosen_method == "fastewq":
        return fastewq_decision(
            model,
            blockwise_options(decision),
            goal=goal or _size_goal(model, decision, size_of),
            adjust=lambda plan: _adjusted(model, plan, decision),
        )
    else:
        raise PlanError(f"there is no method {decision.chosen_method!r}; choose one of {', '.join(METHODS)}")
    return _adjusted(model, plan, decision)


def _size_goal(model: Model, decision: Decision, size_of: SizeOf | None) -> Goal | None:
    target, exact = decision.wanted, size_of or (lambda plan: file_size(model, plan))
    if not target.is_set:
        return None
    if target.max_kld is not None:
        raise PlanError("--max-kld needs measured damage, which --method rd has")
    if target.size is not None:
        return file_goal(target.size, exact)
    if target.like is not None:
        return file_goal(exact(preset_plan(model, target.like, has_imatrix=True)), exact)
    raw = uniform_plan(model, raw_type(model))
    overhead = exact(raw) - raw.data_bytes
    plain = {key: value.value for key, value in model.metadata.items()}
    budgeted = file_budget(target, plain, model.n_parameters, overhead)
    return None if budgeted is None else file_goal(budgeted + overhead, exact)


def study(
    model: Model, decision: Decision, *, threads: int | None = None, progress: StagedProgress | None = None
) -> Studied:
    """Measure what rate-distortion allocation needs to know of an opened model; cached, for any target.

    Raises:
        EwqError: llama.cpp cannot run the model, or the text or importance matrix is unusable.
    """
    wish = decision.study
    if decision.imatrix is not None:
        wish = replace(wish, imatrix=decision.imatrix)
    return study_model(
        model, wish, extra=pinned_types(model, decision).values(), threads=threads, progress=progress
    )


def pinned_types(model: Model, decision: Decision) -> dict[str, GGMLType]:
    """Tensors whose type the user has fixed: pins, and those kept in their own type.

    Raises:
        PlanError: a pattern matches nothing that may be changed.
    """
    baseline = uniform_plan(model, raw_type(model))
    before, after = baseline.types(), _adjusted(model, baseline, replace(decision, size=None)).types()
    pinned = {name: kind for name, kind in after.items() if kind is not before[name]}
    facts, tensors = facts_of(model)
    for name, keep in (
        ("output.weight", decision.keep_output),
        ("token_embd.weight", decision.keep_embedding),
    ):
        if keep and name in tensors and quantizable(tensors[name], facts):
            pinned[name] = before[name]
    return pinned


def _adjusted(model: Model, plan: Plan, decision: Decision) -> Plan:
    """A method's plan with the user's pins and kept tensors."""
    return _kept(model, pinned_plan(model, plan, decision.pins) if decision.pins else plan, decision)


def _kept(model: Model, plan: Plan, decision: Decision) -> Plan:
    return kept_plan(model, plan, output=decision.keep_output, embedding=decision.keep_embedding)


def blockwise_options(decision: Decision) -> BlockwiseOptions:
    """What a decision tells EWQ and FastEWQ, with names looked up.

    Raises:
        PlanError: a type, variant, class or constant that there is not.
    """
    try:
        reading = BlockEntropy(decision.block_entropy)
        variant = None if decision.variant is None else Variant(decision.variant)
        lowest = Precision(decision.lowest)
    except ValueError as error:
        raise PlanError(f"{error}; see `convert --help`") from error
    return BlockwiseOptions(
        epsilon=decision.epsilon,
        x=decision.x,
        reading=reading,
        variant=variant,
        types=class_types(
            decision.classes, decision.raw, decision.eight_bit, decision.four_bit, decision.ternary
        ),
        embedding=None if decision.embedding == "raw" else parse_type(decision.embedding),
        lowest=lowest,
        forest=decision.forest,
    )


def _single_type(text: str, pure: bool) -> GGMLType | None:
    """The tensor type of that name, or None where it names a preset.

    Raises:
        PlanError: it names neither.
    """
    name = text.strip().upper()
    if name in PRESETS and not pure and name not in _PLAIN:
        return None
    return parse_type(text)


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
        progress=_stage(progress, "Quantizing"),
        verifying=_stage(progress, "Reading again"),
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
