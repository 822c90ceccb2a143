"""Statistics of every weight matrix of a model, and of its transformer blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ewq_gguf.allocation.entropy import DEFAULT_EPSILON, WeightStatistics, statistics
from ewq_gguf.allocation.ewq import BlockStatistics, block_statistics
from ewq_gguf.model import Model, ModelTensor

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TensorStatistics:
    """A tensor's matrices; a stack of experts has one entry per expert, in order."""

    name: str
    block: int | None
    shape: tuple[int, ...]
    matrices: tuple[WeightStatistics, ...]


@dataclass(frozen=True)
class Analysis:
    """What reading every weight once told.

    Attributes:
        epsilon: the constant inside the entropy's logarithm.
        blocks: one entry per transformer block that holds weight matrices, in order.
        tensors: every matrix or stack of matrices, in the order of the file.
    """

    epsilon: float
    blocks: tuple[BlockStatistics, ...]
    tensors: tuple[TensorStatistics, ...]


def is_weight_matrix(tensor: ModelTensor) -> bool:
    """2-d and above, and a weight: what the paper's block entropy counts (norms and biases do not)."""
    return len(tensor.shape) >= 2 and tensor.name.endswith(".weight")


def matrix_ranges(tensor: ModelTensor) -> list[tuple[int, int]]:
    """Row ranges of the tensor's matrices: one for a matrix, one per expert for a stack."""
    rows = tensor.shape[-2]
    return [(i * rows, (i + 1) * rows) for i in range(math.prod(tensor.shape[:-2]))]


def analyze_model(
    model: Model,
    *,
    epsilon: float = DEFAULT_EPSILON,
    threads: int = 1,
    only_blocks: bool = False,
    progress: Progress | None = None,
) -> Analysis:
    """Read every weight matrix once and take its statistics; the result does not depend on `threads`.

    Args:
        only_blocks: leave out embedding and output, which EWQ does not classify.
        progress: called with (weights done, weights in all).

    Raises:
        CheckpointError: a weight is NaN or infinite.
    """
    chosen = [t for t in model.tensors if is_weight_matrix(t) and not (only_blocks and t.block is None)]
    total, done = sum(t.n_elements for t in chosen), 0

    def measure(job: tuple[ModelTensor, int, int]) -> WeightStatistics:
        tensor, start, stop = job
        return statistics(tensor.source, start, stop, epsilon=epsilon, name=tensor.name)

    jobs = [(t, start, stop) for t in chosen for start, stop in matrix_ranges(t)]
    found: dict[str, list[WeightStatistics]] = {t.name: [] for t in chosen}
    with ThreadPoolExecutor(max(1, threads)) as pool:
        futures = [pool.submit(measure, job) for job in jobs]
        try:
            for (tensor, _, _), future in zip(jobs, futures):
                result = future.result()
                found[tensor.name].append(result)
                done += result.n
                if progress is not None:
                    progress(done, total)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    tensors = tuple(TensorStatistics(t.name, t.block, t.shape, tuple(found[t.name])) for t in chosen)
    by_block: dict[int, list[WeightStatistics]] = {}
    for entry in tensors:
        if entry.block is not None:
            by_block.setdefault(entry.block, []).extend(entry.matrices)
    blocks = tuple(block_statistics(index, by_block[index]) for index in sorted(by_block))
    return Analysis(epsilon, blocks, tensors)
