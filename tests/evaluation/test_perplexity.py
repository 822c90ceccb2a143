from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from reference import reference

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.contexts import Contexts, read_text
from ewq_gguf.evaluation.engine import Settings
from ewq_gguf.evaluation.perplexity import perplexity


def test_equals_the_plain_computation(model: Path, text: str, settings: Settings) -> None:
    found = perplexity(model, text, settings=settings, chunks=5)
    plain = reference(model, text, 64, 5)
    assert found.tokens == 5 * 31 == len(plain.nll)
    np.testing.assert_allclose(found.nll, plain.nll, atol=1e-5)
    assert found.ppl == pytest.approx(np.exp(plain.nll.mean()), rel=1e-5)
    error = np.exp(plain.nll.mean()) * plain.nll.std() / np.sqrt(len(plain.nll) - 1)
    assert found.ppl_se == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize(("n_batch", "n_threads"), [(64, 1), (128, 2), (512, 2), (16, 1), (20, 1), (100, 2)])
def test_batches_and_threads_do_not_matter(model: Path, text: str, n_batch: int, n_threads: int) -> None:
    whole = perplexity(model, text, settings=Settings(n_ctx=64, n_batch=256, n_threads=1), chunks=6)
    other = perplexity(
        model, text, settings=Settings(n_ctx=64, n_batch=n_batch, n_threads=n_threads), chunks=6
    )
    # llama.cpp's attention rounds to float16 in another order when a context comes in pieces.
    np.testing.assert_allclose(other.nll, whole.nll, atol=2e-5 if n_batch >= 64 else 0.02)
    assert other.tokens == whole.tokens


def test_chunks_and_progress(model: Path, text: str, settings: Settings) -> None:
    seen: list[tuple[int, int]] = []
    everything = perplexity(model, text, settings=settings, progress=lambda a, b: seen.append((a, b)))
    assert seen[0] == (0, everything.chunks)
    assert seen[-1] == (everything.chunks, everything.chunks)
    assert [a for a, _ in seen] == sorted(a for a, _ in seen)
    some = perplexity(model, text, settings=settings, chunks=3)
    np.testing.assert_allclose(some.nll, everything.nll[: some.tokens], atol=1e-5)
    assert perplexity(model, text, settings=settings, chunks=10_000).chunks == everything.chunks


def test_json_has_stable_names(model: Path, text: str, settings: Settings) -> None:
    found = perplexity(model, text, settings=settings, chunks=2)
    fields = json.loads(json.dumps(found.as_json()))
    assert list(fields) == ["file", "bytes", "ppl", "ppl_se", "tokens", "chunks", "n_ctx", "seconds"]
    assert fields["ppl"] == found.ppl
    assert fields["bytes"] == model.stat().st_size


def test_a_text_file_loses_its_last_newline_only(model: Path, tmp_path: Path, settings: Settings) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(b"\n a\xff\n\n")
    assert read_text(file) == b"\n a\xff\n"
    assert read_text("a\n") == b"a\n"
    file.write_text("the water " * 60)
    from_file = perplexity(model, file, settings=settings, chunks=2)
    from_string = perplexity(model, "the water " * 60, settings=settings, chunks=2)
    np.testing.assert_array_equal(from_file.nll, from_string.nll)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_is_named(make_model: Callable[..., Path], text: str, settings: Settings, poison: float) -> None:
    broken = make_model(poison=poison)
    with pytest.raises(EvaluationError, match=r"yields (nan|inf) at token 32 of context 0"):
        perplexity(broken, text, settings=settings, chunks=2)


def test_unusable_texts(model: Path, tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(EvaluationError, match="less than one context of 64"):
        perplexity(model, "the water", settings=settings)
    with pytest.raises(EvaluationError, match="cannot be read: No such file"):
        perplexity(model, tmp_path / "none.txt", settings=settings)
    with pytest.raises(EvaluationError, match="at least one"):
        perplexity(model, "the water", settings=settings, chunks=0)
    with pytest.raises(EvaluationError, match="at least 4 tokens"):
        perplexity(model, "the water", settings=dataclasses.replace(settings, n_ctx=2))


@pytest.mark.parametrize(("n_ctx", "n_batch", "n_seq"), [(8, 32, 4), (8, 3, 1), (9, 4, 1), (5, 11, 2)])
def test_steps_cover_every_token_once(n_ctx: int, n_batch: int, n_seq: int) -> None:
    tokens = np.arange(7 * n_ctx, dtype=np.int32).reshape(7, n_ctx) + 10
    contexts = Contexts(tokens, bos=1)
    expected = tokens.copy()
    expected[:, 0] = 1
    seen = np.zeros_like(tokens)
    targets: list[int] = []
    chunk = -1
    for step in contexts.steps(n_seq, n_batch):
        assert len(step.tokens) <= max(n_batch, n_ctx)
        assert step.start == len(targets)
        if step.fresh:
            first = chunk + 1
        for token, place, sequence, wanted in zip(step.tokens, step.positions, step.sequences, step.outputs):
            chunk = first + int(sequence)
            assert token == expected[chunk, place]
            assert wanted == (n_ctx // 2 <= place < n_ctx - 1)
            seen[chunk, place] += 1
        targets += step.targets.tolist()
    assert (seen == 1).all()
    assert targets == contexts.targets().tolist()
    assert len(targets) == contexts.rows
