"""Statistics of every weight matrix of a model, and of its transformer blocks."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from ewq_gguf.allocation.entropy import (
    DEFAULT_EPSILON,
    Distribution,
    Part,
    WeightStatistics,
    entropy_of_all,
    from_distribution,
    merge,
)
from ewq_gguf.allocation.ewq import BlockEntropy, BlockStatistics, block_statistics
from ewq_gguf.allocation.rank import effective_rank
from ewq_gguf.allocation.workers import Workers, workers
from ewq_gguf.model import Model, ModelTensor

Progress = Callable[[int, int], None]
_Matrix = tuple[ModelTensor, Part]
_Submitted = tuple[list[_Matrix], "Future[list[tuple[WeightStatistics, Distribution | None]]]"]
# Weights handed out at once, about a tenth of a second's work, so that progress shows.
_LONGEST = 100_000_000


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
        reading: how a block's entropy was formed.
    """

    epsilon: float
    blocks: tuple[BlockStatistics, ...]
    tensors: tuple[TensorStatistics, ...]
    reading: BlockEntropy = BlockEntropy.WEIGHTED_MEAN


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
    reading: BlockEntropy = BlockEntropy.WEIGHTED_MEAN,
    threads: int = 1,
    only_blocks: bool = False,
    rank: bool = False,
    progress: Progress | None = None,
) -> Analysis:
    """Read every weight matrix and take its statistics; the result does not depend on `threads`.

    Args:
        reading: how a block's matrices make one entropy. The flattened one reads a block once more where its
            values cannot be counted.
        only_blocks: leave out embedding and output, which EWQ does not classify.
        rank: also the effective rank of every matrix, which reads it again and takes far longer.
        progress: called with (weights done, weights in all).

    Raises:
        CheckpointError: a weight is NaN or infinite.
    """
    chosen = [t for t in model.tensors if is_weight_matrix(t) and not (only_blocks and t.block is None)]
    total, done = sum(t.n_elements for t in chosen), 0
    flattened = reading is BlockEntropy.FLATTENED

    def job(parts: Sequence[Part]) -> list[tuple[WeightStatistics, Distribution | None]]:
        measured = remote.measure(parts, epsilon, counts=flattened)
        if rank:
            ranks = [effective_rank(part.tensor, part.start, part.stop) for part in parts]
            measured = [(replace(found, rank=r), counted) for (found, counted), r in zip(measured, ranks)]
        return measured if flattened else [(found, None) for found, _ in measured]

    parts = [(t, Part(t.source, start, stop, t.name)) for t in chosen for start, stop in matrix_ranges(t)]
    found: dict[str, list[WeightStatistics]] = {t.name: [] for t in chosen}
    blocks: dict[int, _Block] = {}
    with workers(threads, total) as remote, _pool(remote, threads, rank) as pool:
        # Submitted some at a time, so that finished value counts do not pile up.
        ahead = 4 * max(1, threads, remote.places)
        futures: deque[_Submitted] = deque()
        waiting = iter(_shares(parts, threads))
        try:
            while True:
                while len(futures) < ahead and (share := next(waiting, None)) is not None:
                    futures.append((share, pool.submit(job, [part for _, part in share])))
                if not futures:
                    break
                share, future = futures.popleft()
                for (tensor, part), (result, distribution) in zip(share, future.result()):
                    found[tensor.name].append(result)
                    if tensor.block is not None:
                        blocks.setdefault(tensor.block, _Block()).add(part, result, distribution)
                    done += result.n
                    if progress is not None:
                        progress(done, total)
        except BaseException:
            for _, future in futures:
                future.cancel()
            raise
        indices = sorted(blocks)
        whole: list[float | None] = [None] * len(indices)
        if flattened:
            whole = list(pool.map(lambda i: blocks[i].entropy(epsilon), indices))
    tensors = tuple(TensorStatistics(t.name, t.block, t.shape, tuple(found[t.name])) for t in chosen)
    return Analysis(
        epsilon,
        tuple(
            block_statistics(i, blocks[i].matrices, reading=reading, flattened=h)
            for i, h in zip(indices, whole)
        ),
        tensors,
        reading,
    )


def _shares(parts: list[_Matrix], threads: int) -> Iterator[list[_Matrix]]:
    """Runs of parts: long ones first, of which few are handed out, single ones at the end, which end together."""
    rest = sum(_weights(part) for _, part in parts)
    share: list[_Matrix] = []
    size = 0
    for tensor, part in parts:
        share.append((tensor, part))
        size += _weights(part)
        if size * 8 * max(1, threads) >= min(rest, _LONGEST * 8 * threads):
            yield share
            rest -= size
            share, size = [], 0
    if share:
        yield share


def _weights(part: Part) -> int:
    return (part.stop - part.start) * part.tensor.row_length


def _pool(remote: Workers, threads: int, rank: bool) -> ThreadPoolExecutor:
    # A thread that only waits for a worker costs nothing; the rank is worked out in these threads.
    return ThreadPoolExecutor(max(1, threads) if rank else max(1, threads, remote.places))


class _Block:
    """What is known of a block while its matrices come in."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.matrices: list[WeightStatistics] = []
        self._counted: Distribution | None = None
        self._countable = True

    def add(self, part: Part, found: WeightStatistics, distribution: Distribution | None) -> None:
        self.parts.append(part)
        self.matrices.append(found)
        if distribution is None:
            self._countable, self._counted = False, None
        elif self._countable:
            self._counted = merge(self._counted, distribution)

    def entropy(self, epsilon: float) -> float:
        """Under one softmax over the whole block."""
        if self._counted is not None:
            return from_distribution(self._counted, epsilon).entropy
        return entropy_of_all(self.parts, epsilon)
