"""Leaving the output matrix or the embedding as the checkpoint has them, whatever a plan says."""

from __future__ import annotations

from dataclasses import replace

from ewq_gguf.allocation.facts import EMBEDDING_NAMES, OUTPUT_NAME
from ewq_gguf.allocation.plan import Plan, raw_type
from ewq_gguf.errors import PlanError
from ewq_gguf.model import EncodedTensor, Model


def kept_plan(model: Model, plan: Plan, *, output: bool = False, embedding: bool = False) -> Plan:
    """The same plan with `output.weight` or the token embeddings in their own type.

    A GGUF source's tensor keeps its very type; one of a checkpoint gets the checkpoint's 16-bit type. As with
    llama-quantize's --leave-output-tensor, an embedding that is also the output counts as an embedding.

    Raises:
        PlanError: the model has no such tensor.
    """
    names: dict[str, str] = {}
    if output:
        if all(t.name != OUTPUT_NAME for t in model.tensors):
            raise PlanError(
                f"the model has no {OUTPUT_NAME}: its embedding is also the output; use --keep-embedding"
            )
        names[OUTPUT_NAME] = "output kept as it is"
    if embedding:
        names |= {t.name: "embedding kept as it is" for t in model.tensors if t.name in EMBEDDING_NAMES}
    if not names:
        return plan
    raw = raw_type(model)
    known = {t.name: t for t in model.tensors}
    tensors = []
    for planned in plan.tensors:
        if planned.name in names:
            tensor = known[planned.name]
            source = tensor.source
            kind = source.encoding if isinstance(source, EncodedTensor) else (tensor.fixed or raw)
            planned = replace(
                planned, type=kind, wanted=kind, reason=names[planned.name], nbytes=tensor.bytes_as(kind)
            )
        tensors.append(planned)
    return replace(plan, parameters={**plan.parameters, "kept": sorted(names)}, tensors=tuple(tensors))
