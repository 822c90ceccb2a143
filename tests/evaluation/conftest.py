"""Tiny models, made once per run; the crash probe's memory is kept out of the user's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ewq_gguf.evaluation.engine import Settings
from ewq_gguf.evaluation.tiny_model import TinyModel, vocabulary, write_tiny_model

LETTERS = "etaoinshrdlucmfwypvbgkqjxz .,ABCDEFGHIJ"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EWQ_GGUF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A tiny model by its parameters; the same parameters give the same file."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def make(**parameters: object) -> Path:
        poison = parameters.pop("poison", None)
        shape = TinyModel(**parameters)  # type: ignore[arg-type]
        key = repr((shape, poison))
        if key not in made:
            path = folder / f"model-{len(made)}.gguf"
            made[key] = write_tiny_model(path, shape, poison=poison)  # type: ignore[arg-type]
        return made[key]

    return make


@pytest.fixture(scope="session")
def model(make_model: Callable[..., Path]) -> Path:
    """float32 weights."""
    return make_model()


@pytest.fixture(scope="session")
def coarse(make_model: Callable[..., Path]) -> Path:
    """The same weights in 4 bits."""
    return make_model(types={"attn": "Q4_0", "ffn": "Q4_0"})


@pytest.fixture(scope="session")
def fine(make_model: Callable[..., Path]) -> Path:
    """The same weights in 8 bits."""
    return make_model(types={"attn": "Q8_0", "ffn": "Q8_0"})


@pytest.fixture(scope="session")
def text() -> str:
    rng = np.random.default_rng(5)
    return "".join(rng.choice(list(LETTERS), 900))


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings(n_ctx=64, n_batch=256, n_threads=1)


@pytest.fixture(scope="session")
def n_vocab() -> int:
    return len(vocabulary()[0])
