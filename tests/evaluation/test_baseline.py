from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from reference import Reference, reference

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.baseline import open_baseline
from ewq_gguf.evaluation.baseline_cache import FORMS, read_header, write_baseline
from ewq_gguf.evaluation.divergence import Divergence, divergence
from ewq_gguf.evaluation.engine import Engine, Settings

CHUNKS = 5


@pytest.fixture(scope="module")
def live(model: Path, coarse: Path, text: str, settings: Settings) -> Divergence:
    return divergence(coarse, model, text, settings=settings, chunks=CHUNKS)[0]


def _cached(
    folder: Path, model: Path, coarse: Path, text: str, settings: Settings, **form: object
) -> Divergence:
    cache = folder / "cache"
    write_baseline(model, text, cache, settings=settings, chunks=CHUNKS, **form)  # type: ignore[arg-type]
    return divergence(coarse, cache, settings=settings)[0]


def test_full_precision_is_the_same_to_the_last_bit(
    model: Path, coarse: Path, text: str, settings: Settings, tmp_path: Path, live: Divergence
) -> None:
    found = _cached(tmp_path, model, coarse, text, settings, form="f32")
    np.testing.assert_array_equal(found.per_token.kld, live.per_token.kld)
    np.testing.assert_array_equal(found.per_token.baseline_nll, live.per_token.baseline_nll)
    assert found.kld_error == 0


def test_sixteen_bits_lose_what_they_say(
    model: Path, coarse: Path, text: str, settings: Settings, tmp_path: Path, live: Divergence
) -> None:
    found = _cached(tmp_path, model, coarse, text, settings, form="u16")
    header = read_header(tmp_path / "cache")
    # Rounding to steps of `range / 65535` adds about step^2 / 24 of divergence.
    assert 1e-12 < header.rounding < 1e-7
    assert found.kld_error == header.rounding
    assert found.mean_kld != live.mean_kld
    assert found.mean_kld == pytest.approx(live.mean_kld, abs=1e-5)
    assert found.top1_agreement == live.top1_agreement
    np.testing.assert_array_equal(found.per_token.baseline_nll, live.per_token.baseline_nll)


def test_top_k_is_a_lower_bound_and_says_by_how_much(
    model: Path, coarse: Path, text: str, settings: Settings, tmp_path: Path, live: Divergence
) -> None:
    errors = []
    for k in (8, 64, 256):
        found = _cached(tmp_path, model, coarse, text, settings, form="topk", top_k=k)
        true_loss = live.per_token.kld - found.per_token.kld
        assert (true_loss > -1e-6).all()
        assert found.kld_error is not None
        # The loss was measured on every 64th row: the same rows here.
        assert found.kld_error == pytest.approx(true_loss[::64].mean(), abs=1e-6)
        errors.append(true_loss.mean())
        np.testing.assert_array_equal(found.per_token.delta_p, live.per_token.delta_p)
        np.testing.assert_array_equal(found.per_token.same_top, live.per_token.same_top)
    assert errors[0] > errors[1] > errors[2] > 0


def test_tail_is_merged_as_one_token(
    model: Path, coarse: Path, text: str, settings: Settings, tmp_path: Path
) -> None:
    found = _cached(tmp_path, model, coarse, text, settings, form="topk", top_k=16)
    p, q = reference(model, text, 64, CHUNKS), reference(coarse, text, 64, CHUNKS)
    order = np.argsort(-p.log_p, axis=1)
    for row in (0, 70, 154):
        kept, rest = order[row, :16], order[row, 16:]
        a, b = np.exp(p.log_p[row]), np.exp(q.log_p[row])
        merged = (a[kept] * np.log(a[kept] / b[kept])).sum()
        merged += a[rest].sum() * np.log(a[rest].sum() / b[rest].sum())
        assert found.per_token.kld[row] == pytest.approx(merged, abs=2e-5)


def test_sizes_and_chunks(model: Path, coarse: Path, text: str, settings: Settings, tmp_path: Path) -> None:
    sizes = {}
    for form in FORMS:
        out = tmp_path / form
        header = write_baseline(model, text, out, form=form, top_k=16, settings=settings, chunks=CHUNKS)
        assert header == read_header(out)
        assert out.stat().st_size == header.n_bytes
        sizes[form] = header.n_bytes
        assert divergence(coarse, out, settings=settings, chunks=2)[0].chunks == 2
    assert sizes["topk"] < sizes["u16"] < sizes["f32"]
    # Other batches than those it was written with.
    small = Settings(n_ctx=512, n_batch=64, n_threads=1)
    found = divergence(coarse, tmp_path / "topk", settings=small)[0]
    assert (found.n_ctx, found.chunks) == (64, CHUNKS)
    assert list(tmp_path.glob("*.part")) == []


def test_the_text_is_checked_if_given(
    model: Path, coarse: Path, text: str, settings: Settings, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    write_baseline(model, text, cache, settings=settings, chunks=CHUNKS)
    assert divergence(coarse, cache, text, settings=settings)[0].chunks == CHUNKS
    with pytest.raises(EvaluationError, match="different tokens"):
        divergence(coarse, cache, text[::-1], settings=settings)


def test_a_cache_of_another_vocabulary(
    model: Path, make_model: Callable[..., Path], text: str, settings: Settings, tmp_path: Path
) -> None:
    write_baseline(model, text, tmp_path / "cache", settings=settings, chunks=1)
    with pytest.raises(EvaluationError, match="has 368 tokens"):
        divergence(make_model(extra_tokens=8), tmp_path / "cache", settings=settings)


def test_nothing_is_left_behind(
    make_model: Callable[..., Path], model: Path, text: str, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(EvaluationError, match="yields nan"):
        write_baseline(make_model(poison=float("nan")), text, tmp_path / "cache", settings=settings)
    with pytest.raises(EvaluationError, match="form 'f8'"):
        write_baseline(model, text, tmp_path / "cache", form="f8", settings=settings)
    with pytest.raises(EvaluationError, match="top_k 360"):
        write_baseline(model, text, tmp_path / "cache", form="topk", top_k=360, settings=settings)
    with pytest.raises(EvaluationError, match="cannot be written"):
        write_baseline(model, text, tmp_path / "no" / "cache", settings=settings, chunks=1)
    assert list(tmp_path.iterdir()) == []


def test_damaged_caches(model: Path, coarse: Path, text: str, settings: Settings, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    write_baseline(model, text, cache, settings=settings, chunks=1)
    whole = cache.read_bytes()
    length = struct.unpack_from("<I", whole, 8)[0]

    def rewritten(**changes: object) -> bytes:
        header = json.loads(whole[12 : 12 + length])
        header.update(changes)
        body = json.dumps(header).encode()
        return (whole[:8] + struct.pack("<I", len(body)) + body).ljust(4096, b"\0") + whole[4096:]

    damaged = {
        "truncated": whole[:-100],
        r"announced": rewritten(chunks=3),
        "no usable baseline cache": rewritten(form="f64"),
        r"sizes": rewritten(n_vocab=-4),
        r"unexpected keyword": rewritten(surprise=1),
        "version 2": rewritten(version=2),
        "Expecting": whole[:12] + b"?" + whole[13:],
    }
    for words, content in damaged.items():
        cache.write_bytes(content)
        with pytest.raises(EvaluationError, match=words):
            divergence(coarse, cache, settings=settings)


def test_what_is_no_baseline(model: Path, text: str, tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"hello world")
    with pytest.raises(EvaluationError, match="no GGUF, no baseline cache"):
        open_baseline(junk, text)
    with pytest.raises(EvaluationError, match="give the text"):
        open_baseline(model, None)
    with pytest.raises(EvaluationError, match="cannot be read"):
        open_baseline(tmp_path / "none", text)


def _write_llama_file(path: Path, tokens: np.ndarray, log_p: np.ndarray) -> None:
    """What llama-perplexity writes: 16-bit steps over at most 16 nats below the largest logit."""
    n_vocab = log_p.shape[1]
    parts = [b"_logits_", struct.pack("<Iii", tokens.shape[1], n_vocab, tokens.shape[0]), tokens.tobytes()]
    for row in log_p:
        low = np.float32(max(row.min(), row.max() - 16))
        step = np.float32((row.max() - low) / 65535)
        codes = np.clip(np.rint((row - low) / step), 0, 65535).astype("<u2")
        parts += [struct.pack("<ff", step, low), codes.tobytes(), bytes(2 * (n_vocab % 2))]
    path.write_bytes(b"".join(parts))


@pytest.fixture
def llama_file(model: Path, text: str, tmp_path: Path) -> tuple[Path, Reference]:
    plain = reference(model, text, 64, CHUNKS)
    with Engine(model, n_ctx=64, n_threads=1) as engine:
        tokens = engine.tokenize(text)[: 64 * CHUNKS].reshape(CHUNKS, 64)
    _write_llama_file(tmp_path / "base.bin", tokens, plain.log_p)
    return tmp_path / "base.bin", plain


def test_llama_cpp_file_follows_its_rule(
    coarse: Path, text: str, settings: Settings, llama_file: tuple[Path, Reference]
) -> None:
    path, p = llama_file
    (found,) = divergence(coarse, path, settings=settings)
    q = reference(coarse, text, 64, CHUNKS)
    kept = p.log_p > -16
    assert not kept.all()
    kld = np.where(kept, np.exp(p.log_p) * (p.log_p - q.log_p), 0).sum(axis=1)
    # Half a step of the codes, 16 / 65535 / 2, in each logarithm.
    np.testing.assert_allclose(found.per_token.kld, kld, atol=2e-4)
    assert found.kld_error is None
    cut = np.minimum(p.nll, 16 - p.log_p.max(axis=1))
    np.testing.assert_allclose(found.per_token.baseline_nll, cut, atol=2e-4)
    assert found.top1_agreement == (p.log_p.argmax(axis=1) == q.log_p.argmax(axis=1)).mean()


def test_damaged_llama_cpp_files(
    coarse: Path, settings: Settings, llama_file: tuple[Path, Reference]
) -> None:
    path, _ = llama_file
    whole = path.read_bytes()
    damaged = {
        "truncated: 5 contexts": whole[:-10],
        "ends inside its header": whole[:15],
        "impossible header": whole[:12] + struct.pack("<i", -5) + whole[16:],
        "has 360 tokens, its baseline": whole[:12] + struct.pack("<i", 100) + whole[16:],
    }
    for words, content in damaged.items():
        path.write_bytes(content)
        with pytest.raises(EvaluationError, match=words):
            divergence(coarse, path, settings=settings)
