"""The measures computed the plain way: one context at a time, whole matrices, scipy's log-softmax."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from ewq_gguf.evaluation.engine import Engine


@dataclass(frozen=True)
class Reference:
    log_p: np.ndarray
    """float64 (rows, n_vocab)"""
    targets: np.ndarray

    @property
    def nll(self) -> np.ndarray:
        return -self.log_p[np.arange(len(self.targets)), self.targets]


def reference(path: Path, text: str, n_ctx: int, chunks: int) -> Reference:
    rows, targets = [], []
    with Engine(path, n_ctx=n_ctx, n_batch=n_ctx, n_threads=1) as engine:
        tokens = engine.tokenize(text)
        for chunk in range(chunks):
            part = tokens[chunk * n_ctx : (chunk + 1) * n_ctx].copy()
            follow = part[n_ctx // 2 + 1 :].copy()
            part[0] = engine.bos
            engine.clear()
            logits = engine.decode(
                part,
                np.arange(n_ctx, dtype=np.int32),
                np.zeros(n_ctx, dtype=np.int32),
                np.ones(n_ctx, dtype=np.bool_),
            )
            rows.append(log_softmax(logits[n_ctx // 2 : -1].astype(np.float64), axis=1))
            targets.append(follow)
    return Reference(np.concatenate(rows), np.concatenate(targets))
