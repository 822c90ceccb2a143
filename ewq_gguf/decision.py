"""What the user wishes about types, and the plan that comes of it for an opened model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ewq_gguf.allocation.blockwise import BlockwiseOptions, class_types, ewq_decision, fastewq_decision
from ewq_gguf.allocation.budget import Goal, SizeOf, file_goal
from ewq_gguf.allocation.clients import check_readable, readable_pool
from ewq_gguf.allocation.entropy import DEFAULT_EPSILON
from ewq_gguf.allocation.ewq import BlockEntropy, Precision, Variant
from ewq_gguf.allocation.facts import quantizable
from ewq_gguf.allocation.fastewq import (
    DEFAULT_FOREST,
)
from ewq_gguf.allocation.kept import kept_plan
from ewq_gguf.allocation.methods import pinned_plan, preset_plan, uniform_plan
from ewq_gguf.allocation.parsing import parse_type
from ewq_gguf.allocation.pins import Pin
from ewq_gguf.allocation.plan import Plan, facts_of, raw_type
from ewq_gguf.allocation.presets import PRESETS
from ewq_gguf.allocation.targets import Target, file_budget
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.model import Model
from ewq_gguf.pipeline.convert import (
    default_threads,
    file_size,
)
from ewq_gguf.pipeline.optimize import Studied, Study, study_model
from ewq_gguf.pipeline.plan_file import fitted_plan
from ewq_gguf.pipeline.rd_plan import rd_plan, tried
from ewq_gguf.pipeline.refine import refined_plan
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


def stage(progress: StagedProgress | None, name: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(name, done, total)


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
        if decision.study.try_out and studied.record is not None:
            plan = tried(
                model, studied, decision.wanted, plan,
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
            progress=stage(progress, "Analysing"),
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
