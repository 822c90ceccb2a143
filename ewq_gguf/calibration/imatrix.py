"""The importance matrix: per weight tensor and input column, the sum over tokens of the squared activation.

It supplies E[x_j^2] in D(t, q) ~ g_t * sum_ij E[x_j^2] (w_ij - q_ij)^2, and is what ggml's quantizers take as
column weights. Collection (`collect_imatrix`) follows llama-imatrix (tools/imatrix/imatrix.cpp); files are in
`imatrix_file.py`.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ewq_gguf.calibration.native import Node, NodeReader
from ewq_gguf.errors import CheckpointError, EvaluationError
from ewq_gguf.evaluation.contexts import cut_contexts
from ewq_gguf.evaluation.engine import Engine
from ewq_gguf.ggml import find_library

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]

# llama-imatrix looks at no smaller products; single tokens would otherwise count as often as contexts.
_MIN_BATCH = 16


@dataclass(frozen=True)
class Entry:
    """What one weight tensor saw.

    Attributes:
        in_sum2: float32 (matrices, columns), sum over tokens of x^2; one row per expert, one in all if dense.
        counts: int64 (matrices,), tokens that entered each sum.
    """

    in_sum2: F32Array
    counts: I64Array


@dataclass(frozen=True)
class ImportanceMatrix:
    """Entries by weight name, and where they come from.

    Attributes:
        entries: weight name ("blk.0.ffn_down.weight") -> what it saw.
        datasets: names of the calibration texts.
        chunk_count: contexts run.
        chunk_size: tokens per context; 0 if the file does not say (legacy format).
    """

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_size: int = 0

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def weights(self, name: str, columns: int | None = None) -> F32Array:
        """Column weights as llama-quantize takes them: sums divided by counts, in float32.

        Experts that saw no token weigh all columns 1 (load_imatrix in tools/quantize/quantize.cpp).

        Args:
            name: the weight.
            columns: its row length. Needed for dense 3-d weights, whose file entry is one long row.

        Returns:
            float32 (matrices, columns).

        Raises:
            CheckpointError: no such entry, or its length is no multiple of `columns`.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise CheckpointError(
                f"the importance matrix has no entry for {name}; collect it again for this model"
            )
        counts = entry.counts.astype(np.float32)[:, None]
        seen = counts > 0
        mean = np.where(seen, entry.in_sum2 / np.where(seen, counts, np.float32(1)), np.float32(1))
        columns = mean.shape[1] if columns is None else columns
        if columns < 1 or mean.size % columns:
            raise CheckpointError(
                f"the importance matrix has {mean.size} values for {name}, whose rows have {columns} "
                f"weights: it was made from another model"
            )
        return np.ascontiguousarray(mean.reshape(-1, columns), dtype=np.float32)

    def fingerprint(self) -> str:
        """A sha256 of names, sums and counts, in hexadecimal."""
        digest = hashlib.sha256()
        for name, entry in sorted(self.entries.items()):
            digest.update(name.encode() + b"\0")
            digest.update(entry.in_sum2.astype("<f4").tobytes())
            digest.update(entry.counts.astype("<i8").tobytes())
        return digest.hexdigest()

    def without(self, *names: str) -> ImportanceMatrix:
        """The same matrix without some entries."""
        kept = {name: entry for name, entry in self.entries.items() if name not in names}
        return ImportanceMatrix(kept, self.datasets, self.chunk_count, self.chunk_size)


@dataclass
class _Sums:
    values: F32Array
    counts: I64Array


@dataclass
class _Collector:
    """The state behind the evaluation callback.

    Attributes:
        reader: how graph nodes are read.
        output: take the output projection too; a tied one appears under the embedding's name.
        failure: what went wrong inside the callback, where nothing can be raised.
    """

    reader: NodeReader
    output: bool
    sums: dict[str, _Sums] = field(default_factory=dict)
    failure: Exception | None = None

    def __call__(self, address: int, ask: bool, _user: Any) -> bool:
        if self.failure is not None:
            return not ask
        try:
            node = self.reader.node(address)
            if ask:
                return self._wanted(node)
            self._take(node)
        except Exception as error:
            self.failure = error
        return True

    def _wanted(self, node: Node) -> bool:
        if node.op not in ("MUL_MAT", "MUL_MAT_ID"):
            return False
        weight = _plain_name(self.reader.node(node.sources[0]).name)
        if node.op == "MUL_MAT_ID":
            return True
        activations = self.reader.node(node.sources[1])
        if activations.ne[1] < _MIN_BATCH or activations.type != "f32":
            return False
        return weight.startswith("blk.") or (self.output and weight in ("output.weight", "token_embd.weight"))

    def _take(self, node: Node) -> None:
        weight = self.reader.node(node.sources[0])
        activations = self.reader.node(node.sources[1])
        name = _plain_name(weight.name)
        x = self.reader.read(activations, np.float32)
        if node.op == "MUL_MAT_ID":
            self._take_routed(
                name, weight.ne[2], x, self.reader.read(self.reader.node(node.sources[2]), np.int32)
            )
        else:
            self._take_dense(name, weight.ne[2], weight.ne[3], x)
        if not np.isfinite(self.sums[name].values).all():
            raise EvaluationError(
                f"the activations entering {name} are not finite; the model cannot be calibrated"
            )

    def _take_routed(self, name: str, n_experts: int, x: npt.NDArray[Any], ids: npt.NDArray[Any]) -> None:
        """x: (1, tokens, slots or 1, columns); ids: (1, 1, tokens, experts used)."""
        sums = self._entry(name, n_experts, x.shape[3], n_experts)
        chosen = ids[0, 0]
        slots = x.shape[2]
        if (
            x.shape[0] != 1
            or chosen.shape[0] != x.shape[1]
            or (chosen < 0).any()
            or (chosen >= n_experts).any()
        ):
            raise EvaluationError(
                f"the routing of {name} has an unexpected form; the model cannot be calibrated"
            )
        for used in range(chosen.shape[1]):
            rows = x[0, :, used % slots]
            for expert in np.unique(chosen[:, used]):
                mine = rows[chosen[:, used] == expert]
                _accumulate(sums.values[expert], mine)
                sums.counts[expert] += len(mine)

    def _take_dense(self, name: str, n2: int, n3: int, x: npt.NDArray[Any]) -> None:
        """x: (i3, i2, rows, columns); weights with outer dimensions keep one sum per matrix but one count."""
        sums = self._entry(name, n2 * n3, x.shape[3], 1)
        for i3 in range(x.shape[0]):
            for i2 in range(x.shape[1]):
                matrix = (i3 % n3) * n2 + i2 % n2
                _accumulate(sums.values[matrix], x[i3, i2])
        sums.counts += x.shape[0] * x.shape[1] * x.shape[2] // (n2 * n3)

    def _entry(self, name: str, matrices: int, columns: int, n_counts: int) -> _Sums:
        found = self.sums.get(name)
        if found is None:
            found = _Sums(np.zeros((matrices, columns), dtype=np.float32), np.zeros(n_counts, dtype=np.int64))
            self.sums[name] = found
        if found.values.shape != (matrices, columns):
            raise EvaluationError(f"{name} is used with inputs of two shapes; the model cannot be calibrated")
        return found


def _accumulate(sums: F32Array, rows: npt.NDArray[Any]) -> None:
    """Add squared rows to `sums`, in place, one after another in float32.

    That is llama-imatrix's own order of additions, so that its file comes out bit for bit; numpy reduces the
    outer axis of a row-major array row by row.
    """
    squares = np.square(rows, order="C")
    squares[0] += sums
    sums[:] = np.add.reduce(squares, axis=0)


def _plain_name(name: str) -> str:
    """A weight's name without the scheduler's decoration: "CUDA0#output.weight#0" -> "output.weight"."""
    parts = name.split("#")
    return parts[1] if len(parts) > 1 else name


def collect_imatrix(
    model: Path,
    text: Path | str,
    *,
    n_ctx: int = 512,
    chunks: int | None = None,
    n_batch: int = 2048,
    output: bool = False,
    n_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportanceMatrix:
    """Run a text through a model and sum the squared inputs of every weight (llama-imatrix's defaults).

    Args:
        model: a GGUF file that llama.cpp can run.
        text: a file, or the text itself.
        n_ctx: tokens per context.
        chunks: contexts at most; None for all the text has.
        n_batch: tokens per call; n_batch // n_ctx contexts share one. Logits take n_batch * n_vocab * 4 B.
        output: also collect the output projection, under "output.weight", or "token_embd.weight" if it is
            tied (llama-imatrix has no entry for a tied one).
        n_threads: None for all cores.
        progress: called with (contexts done, contexts in all).

    Raises:
        EvaluationError: the model or text cannot be used, the activations are not finite, or the installed
            library's structures cannot be read.
    """
    collector = _Collector(NodeReader(find_library("ggml-base")), output)
    # ctypes keeps no reference to a callback: it must live until the engine is closed.
    callback = _callback_type()(collector)
    with Engine(model, n_ctx=n_ctx, n_batch=n_batch, n_threads=n_threads, eval_callback=callback) as engine:
        contexts = cut_contexts(engine, text, chunks)
        for step in contexts.steps(engine.n_seq, engine.n_batch):
            if step.fresh:
                engine.clear()
            # Every logit is wanted: llama.cpp skips the last block's work for the others.
            wanted = np.ones(len(step.tokens), dtype=bool)
            engine.decode(step.tokens, step.positions, step.sequences, wanted)
            if collector.failure is not None:
                raise collector.failure
            if progress is not None:
                progress(step.chunks_done, contexts.chunks)
    if not collector.sums:
        raise EvaluationError(
            f"no matrix product of {model} could be watched: no importance matrix was collected"
        )
    entries = {
        name: Entry(
            sums.values.reshape(len(sums.counts), -1),
            sums.counts,
        )
        for name, sums in sorted(collector.sums.items())
    }
    source = text.name if isinstance(text, Path) else "text"
    return ImportanceMatrix(entries, (source,), contexts.chunks, n_ctx)


def _callback_type() -> Any:
    return ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
