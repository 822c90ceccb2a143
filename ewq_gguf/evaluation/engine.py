"""One GGUF file, loaded in llama.cpp and ready to be asked for logits.

Thin on purpose: tokens in, a float32 view on llama.cpp's own logits buffer out, no copy between.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.gguf_check import check_gguf
from ewq_gguf.evaluation.native import cache_type, default_threads, forget_log, last_log_lines, llama
from ewq_gguf.evaluation.token_ids import LlamaVocabulary

I32Array = npt.NDArray[np.int32]
F32Array = npt.NDArray[np.float32]

_LOAD_MODE_MMAP = 1
_MAX_SEQUENCES = 256
"""LLAMA_MAX_SEQ in llama.cpp's src/llama-cparams.h."""
_TRIAL_TOKENS = 16
# llama.cpp takes these for decoders, and stops the process when they are run as such.
_ENCODERS = frozenset(
    {
        "bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "nomic-bert",
        "nomic-bert-moe", "t5encoder",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How a file is run; one value serves every file that is compared.

    Attributes:
        n_ctx: tokens per context.
        n_batch: tokens per call of llama.cpp; n_batch // n_ctx contexts share a call (as in
            llama-perplexity).
        n_threads: threads, None for the number of physical cores.
        cache_type_k: type of the K cache, e.g. `q8_0`; None for llama.cpp's default, f16.
        cache_type_v: type of the V cache.
        use_extra_bufts: let llama.cpp repack weights (faster on some CPUs, fatal on some with AMX).
    """

    n_ctx: int = 512
    n_batch: int = 2048
    n_threads: int | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    use_extra_bufts: bool = False

    def engine(self, path: Path) -> Engine:
        """Load `path` with these settings."""
        return Engine(
            path,
            n_ctx=self.n_ctx,
            n_batch=self.n_batch,
            n_threads=self.n_threads,
            cache_type_k=self.cache_type_k,
            cache_type_v=self.cache_type_v,
            use_extra_bufts=self.use_extra_bufts,
        )

    def with_context(self, n_ctx: int) -> Settings:
        """The same settings for another context length."""
        return replace(self, n_ctx=n_ctx)


class Engine:
    """A loaded model with one llama.cpp context; use as a context manager.

    Attributes:
        path: the file.
        n_vocab: size of the vocabulary.
        n_seq: sequences that fit side by side, each of up to `n_ctx` tokens.
        n_ctx, n_batch, n_threads: as given or chosen.
        cells: tokens the KV cache holds in all.
        bos: id of the token that starts a text, or None where the model wants none.
        shares_prefix: whether one token may belong to several sequences (needs `kv_unified`, no recurrent
            model).
    """

    def __init__(
        self,
        path: Path | str,
        *,
        n_ctx: int = 512,
        n_batch: int = 2048,
        n_threads: int | None = None,
        cache_type_k: str | None = None,
        cache_type_v: str | None = None,
        use_extra_bufts: bool = False,
        n_seq: int | None = None,
        kv_unified: bool = False,
        cells: int | None = None,
        eval_callback: Any = None,
        probe: bool = True,
    ) -> None:
        """Check the file, then load it.

        Args:
            n_seq: sequences side by side, by default n_batch // n_ctx (at least one).
            kv_unified: one KV cache for all sequences, so that they can share a prefix.
            cells: tokens the KV cache holds in all, by default n_seq * n_ctx.
            eval_callback: a ctypes `ggml_backend_sched_eval_callback`; must be kept alive by the caller.
            probe: ask `crash.engine_is_safe` before a quantized file is loaded.

        Raises:
            EvaluationError: the file is missing, damaged or refused by llama.cpp; the machine's llama.cpp is
                known to crash; an option has no meaning.
        """
        self.path = Path(path)
        self._model: Any = None
        self._context: Any = None
        if n_ctx < 2 or n_batch < 1 or (n_threads is not None and n_threads < 1):
            raise EvaluationError(
                f"n_ctx {n_ctx}, n_batch {n_batch} and {n_threads} threads cannot be used; "
                "a context needs at least 2 tokens, a batch and the threads at least 1"
            )
        type_k, type_v = cache_type(cache_type_k), cache_type(cache_type_v)
        self.summary = check_gguf(self.path)
        if probe and self.summary.quantized:
            from ewq_gguf.evaluation.crash import require_safe_engine

            require_safe_engine(self.path, use_extra_bufts=use_extra_bufts)
        self._llama = llama()
        self.n_ctx = n_ctx
        self.n_seq = min(n_seq if n_seq is not None else max(1, n_batch // n_ctx), _MAX_SEQUENCES)
        self.cells = cells if cells is not None else self.n_seq * n_ctx
        self.n_batch = min(n_batch, self.cells)
        self.n_threads = n_threads or default_threads()
        self._types = (type_k, type_v)
        self._unified = kv_unified
        self._eval_callback = eval_callback
        forget_log()
        try:
            self._load(use_extra_bufts)
            self._open_context()
        except BaseException:
            self.close()
            raise

    def _load(self, use_extra_bufts: bool) -> None:
        lib = self._llama
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        params.load_mode = _LOAD_MODE_MMAP
        params.use_extra_bufts = use_extra_bufts
        self._model = lib.llama_model_load_from_file(str(self.path).encode(), params)
        if not self._model:
            raise EvaluationError(f"llama.cpp cannot load {self.path}: {last_log_lines()}")
        if self.summary.architecture in _ENCODERS:
            raise EvaluationError(
                f"{self.path} makes vectors of texts ({self.summary.architecture}) and predicts none, so that it cannot be "
                "measured; choose its types by --type or by a method that only reads the weights"
            )
        if lib.llama_model_has_encoder(self._model) or not lib.llama_model_has_decoder(self._model):
            raise EvaluationError(
                f"{self.path} is no plain decoder ({self.summary.architecture}); only those can be measured"
            )
        self._vocabulary = LlamaVocabulary(
            lib, lib.llama_model_get_vocab(self._model), self.path, self.summary
        )
        self.n_vocab = self._vocabulary.n_tokens
        if self.n_vocab < 1:
            raise EvaluationError(f"{self.path} holds no vocabulary; convert the model with its tokenizer")
        self.bos = self._vocabulary.bos
        self.recurrent = bool(
            lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model)
        )

    def reopen(self, *, cells: int) -> None:
        """A new, empty context on the loaded model, with room for `cells` tokens in all."""
        self._llama.llama_free(self._context)
        self._context = None
        self.cells = cells
        self._open_context()

    def _open_context(self) -> None:
        lib = self._llama
        params = lib.llama_context_default_params()
        # llama.cpp aborts the process if a batch cannot hold its trial graphs of 16 tokens per sequence.
        trial = _TRIAL_TOKENS * self.n_seq
        params.n_ctx = max(self.cells, trial)
        params.n_batch = max(self.n_batch, trial)
        params.n_ubatch = min(params.n_batch, 512)
        params.n_seq_max = self.n_seq
        # 0: as many as the batch holds; the default is one logits row per sequence.
        params.n_outputs_max = 0
        params.n_outputs_max_per_seq = 0
        params.n_threads = self.n_threads
        params.n_threads_batch = self.n_threads
        params.kv_unified = self._unified
        type_k, type_v = self._types
        if type_k is not None:
            params.type_k = type_k
        if type_v is not None:
            params.type_v = type_v
        if self._eval_callback is not None:
            params.cb_eval = self._eval_callback
        self.shares_prefix = self._unified and not self.recurrent
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise EvaluationError(f"llama.cpp cannot open a context for {self.path}: {last_log_lines()}")
        self._memory = lib.llama_get_memory(self._context)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the model; views on its logits die with it. May be called twice."""
        if self._context:
            self._llama.llama_free(self._context)
            self._context = None
        if self._model:
            self._llama.llama_model_free(self._model)
            self._model = None

    def tokenize(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False
    ) -> I32Array:
        """Token ids of a text; see `LlamaVocabulary.ids`."""
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        return self._vocabulary.ids(data, add_special=add_special, parse_special=parse_special)

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; control tokens are empty."""
        return self._vocabulary.piece(token)

    def ends_generation(self, token: int) -> bool:
        """Whether the token ends a text (EOS, end of turn)."""
        return self._vocabulary.ends_generation(token)

    def clear(self) -> None:
        """Forget all sequences; the next token starts at position 0."""
        if self._memory:
            self._llama.llama_memory_clear(self._memory, True)

    def decode(
        self,
        tokens: I32Array,
        positions: I32Array,
        sequences: I32Array | Sequence[Sequence[int]],
        outputs: npt.NDArray[np.bool_],
    ) -> F32Array:
        """Run one batch.

        Args:
            tokens: int32 (n,), at most `n_batch`.
            positions: int32 (n,), place of each token in its sequence.
            sequences: int32 (n,), the sequence of each token; or, for shared prefixes, a list of sequences
                per token.
            outputs: bool (n,), which tokens' logits are wanted.

        Returns:
            float32 (outputs.sum(), n_vocab), in batch order: a view on llama.cpp's buffer, valid until the
            next call.

        Raises:
            EvaluationError: llama.cpp refuses the batch (no room in the KV cache, invalid token) or fails.
        """
        n = len(tokens)
        if n > self.n_batch:
            raise EvaluationError(f"a batch of {n} tokens exceeds n_batch {self.n_batch}")
        # Each of these arrays must outlive the call: the batch holds bare addresses.
        ids = np.ascontiguousarray(tokens, dtype=np.int32)
        places = np.ascontiguousarray(positions, dtype=np.int32)
        wanted = np.ascontiguousarray(outputs, dtype=np.int8)
        if isinstance(sequences, np.ndarray):
            members: I32Array = np.ascontiguousarray(sequences, dtype=np.int32)
            counts: I32Array = np.ones(n, dtype=np.int32)
        else:
            members = np.array([s for row in sequences for s in row], dtype=np.int32)
            counts = np.array([len(row) for row in sequences], dtype=np.int32)
        starts = np.cumsum(counts, dtype=np.uint64) - counts.astype(np.uint64)
        addresses = np.uint64(members.ctypes.data) + starts * np.uint64(4)

        lib = self._llama
        batch = lib.llama_batch()
        batch.n_tokens = n
        batch.token = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.embd = None
        batch.pos = places.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.n_seq_id = counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.seq_id = addresses.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))
        batch.logits = wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        forget_log()
        code = int(lib.llama_decode(self._context, batch))
        if code == 1:
            raise EvaluationError(
                f"the KV cache of {self.path} has no room for {n} more tokens; use a larger context"
            )
        if code != 0:
            raise EvaluationError(f"llama.cpp fails to run {self.path} (code {code}): {last_log_lines()}")
        rows = int(wanted.astype(bool).sum())
        if rows == 0:
            return np.empty((0, self.n_vocab), dtype=np.float32)
        logits = lib.llama_get_logits(self._context)
        if not logits:
            raise EvaluationError(f"llama.cpp gave no logits for {self.path}: {last_log_lines()}")
        return np.ctypeslib.as_array(logits, shape=(rows, self.n_vocab))
