from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.engine import Engine, Settings
from ewq_gguf.evaluation.generate import generate, generate_tokens


def test_each_token_is_the_likeliest(model: Path) -> None:
    with Engine(model, n_ctx=64, n_batch=64, n_threads=1) as engine:
        prompt = engine.tokenize("the water")
        tokens = list(generate_tokens(engine, prompt, 12))
        assert 0 < len(tokens) <= 12
        engine.clear()
        whole = np.concatenate([prompt, np.array(tokens, dtype=np.int32)])
        logits = engine.decode(
            whole,
            np.arange(len(whole), dtype=np.int32),
            np.zeros(len(whole), dtype=np.int32),
            np.ones(len(whole), dtype=np.bool_),
        )
        assert logits[len(prompt) - 1 : -1].argmax(axis=1).tolist() == tokens


def test_text_is_whole_characters_and_repeatable(model: Path) -> None:
    settings = Settings(n_threads=1)
    pieces = list(generate(model, "the light", 40, settings=settings))
    assert "".join(pieces) == "".join(generate(model, "the light", 40, settings=settings))
    assert all(pieces)
    assert "".join(pieces).encode("utf-8").decode("utf-8")


def test_long_prompts_go_in_pieces(model: Path) -> None:
    prompt = "the water of the house " * 10
    with Engine(model, n_ctx=512, n_batch=512, n_seq=1, n_threads=1) as engine:
        whole = list(generate_tokens(engine, engine.tokenize(prompt), 4))
    with Engine(model, n_ctx=512, n_batch=16, n_seq=1, n_threads=1) as engine:
        assert engine.n_batch == 16
        assert next(generate_tokens(engine, engine.tokenize(prompt), 4)) == whole[0]


def test_errors(model: Path, make_model: Callable[..., Path]) -> None:
    with Engine(model, n_ctx=16, n_batch=16, n_threads=1) as engine:
        with pytest.raises(EvaluationError, match="exceed the context of 16"):
            list(generate_tokens(engine, engine.tokenize("the"), 16))
        with pytest.raises(EvaluationError, match="give a prompt"):
            list(generate_tokens(engine, np.empty(0, dtype=np.int32), 4))
    with pytest.raises(EvaluationError, match="NaN"):
        list(generate(make_model(poison=float("nan")), "the", 2))
