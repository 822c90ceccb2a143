from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.engine import Engine


def _ids(n: int) -> np.ndarray:
    return (np.arange(n, dtype=np.int32) * 7) % 250 + 3


def _run(engine: Engine, tokens: np.ndarray, sequences: object = None) -> np.ndarray:
    n = len(tokens)
    places = np.arange(n, dtype=np.int32)
    where = np.zeros(n, dtype=np.int32) if sequences is None else sequences
    engine.clear()
    return engine.decode(tokens, places, where, np.ones(n, dtype=np.bool_)).copy()  # type: ignore[arg-type]


def test_attributes_and_tokenizing(model: Path, n_vocab: int) -> None:
    with Engine(model, n_ctx=64, n_batch=256, n_threads=1) as engine:
        assert engine.n_vocab == n_vocab
        assert engine.n_seq == 4
        assert engine.bos == 1
        tokens = engine.tokenize("the water")
        assert tokens[0] == 1
        assert tokens.dtype == np.int32
        assert b"".join(engine.piece(int(t)) for t in tokens[1:]) == b" the water"
        assert len(engine.tokenize("the water", add_special=False)) == len(tokens) - 1
        # Control tokens in a text are text.
        assert 2 not in engine.tokenize("</s>")
        assert 2 in engine.tokenize("</s>", parse_special=True)
        assert b"".join(engine.piece(int(t)) for t in engine.tokenize("\u00fc\n")[1:]) == b" \xc3\xbc\n"
        assert engine.ends_generation(2)
        assert not engine.ends_generation(5)


def test_logits_are_a_view_and_causal(model: Path, n_vocab: int) -> None:
    with Engine(model, n_ctx=64, n_batch=64, n_threads=1) as engine:
        tokens = _ids(12)
        engine.clear()
        places = np.arange(12, dtype=np.int32)
        wanted = np.zeros(12, dtype=np.bool_)
        wanted[[3, 11]] = True
        logits = engine.decode(tokens, places, np.zeros(12, dtype=np.int32), wanted)
        assert logits.shape == (2, n_vocab)
        assert logits.dtype == np.float32
        assert not logits.flags.owndata
        picked = logits.copy()
        all_rows = _run(engine, tokens)
        np.testing.assert_allclose(picked, all_rows[[3, 11]], atol=1e-5)
        np.testing.assert_allclose(_run(engine, tokens[:4])[3], all_rows[3], atol=1e-5)


def test_sequences_in_one_batch_do_not_see_one_another(model: Path) -> None:
    with Engine(model, n_ctx=32, n_batch=64, n_threads=1) as engine:
        a, b = _ids(10), _ids(10)[::-1].copy()
        alone = [_run(engine, a), _run(engine, b)]
        engine.clear()
        both = engine.decode(
            np.concatenate([a, b]),
            np.tile(np.arange(10, dtype=np.int32), 2),
            np.repeat(np.arange(2, dtype=np.int32), 10),
            np.ones(20, dtype=np.bool_),
        )
        np.testing.assert_allclose(both, np.concatenate(alone), atol=1e-4)


def test_shared_prefix_gives_the_same_logits(model: Path) -> None:
    prefix, ends = _ids(8), [_ids(20)[12:15], _ids(20)[15:18]]
    with Engine(model, n_ctx=32, n_batch=64, n_seq=2, kv_unified=True, n_threads=1) as engine:
        assert engine.shares_prefix
        alone = [_run(engine, np.concatenate([prefix, end]))[8:] for end in ends]
        engine.clear()
        tokens = np.concatenate([prefix, *ends])
        places = np.array([*range(8), 8, 9, 10, 8, 9, 10], dtype=np.int32)
        members = [[0, 1]] * 8 + [[0]] * 3 + [[1]] * 3
        wanted = np.array([False] * 8 + [True] * 6)
        shared = engine.decode(tokens, places, members, wanted)
        np.testing.assert_allclose(shared, np.concatenate(alone), atol=1e-4)


def test_a_quantized_cache_changes_the_logits_a_little(make_model: Callable[..., Path]) -> None:
    path = make_model(n_head=2, n_head_kv=1)
    logits = []
    for cache in (None, "f16", "q8_0", "q4_0"):
        with Engine(
            path, n_ctx=64, n_batch=64, n_threads=1, cache_type_k=cache, cache_type_v=cache
        ) as engine:
            logits.append(_run(engine, _ids(40)))
    plain, named, eight, four = logits
    np.testing.assert_array_equal(plain, named)
    assert 0 < np.abs(eight - plain).mean() < np.abs(four - plain).mean()


def test_a_cache_type_that_does_not_fit_is_explained(model: Path) -> None:
    with pytest.raises(EvaluationError, match=r"cannot open a context.*type"):
        Engine(model, n_ctx=64, cache_type_k="q8_0")


def test_errors_are_sentences(model: Path, tmp_path: Path, make_model: Callable[..., Path]) -> None:
    with pytest.raises(EvaluationError, match="does not exist"):
        Engine(tmp_path / "no.gguf")
    with pytest.raises(EvaluationError, match="one of f32, f16"):
        Engine(model, cache_type_k="q2_k")
    with pytest.raises(EvaluationError, match="at least 2 tokens"):
        Engine(model, n_ctx=0)
    with Engine(model, n_ctx=32, n_batch=32, n_threads=1) as engine:
        with pytest.raises(EvaluationError, match="exceeds n_batch 32"):
            _run(engine, _ids(33))
        with pytest.raises(EvaluationError, match="fails to run"):
            _run(engine, np.array([1, 1 << 20], dtype=np.int32))
    engine.close()


def test_a_sound_file_that_llama_cpp_refuses_is_explained(model: Path, tmp_path: Path) -> None:
    data = model.read_bytes().replace(b"blk.0.ffn_down.weight", b"blk.0.ffn_dawn.weight")
    path = tmp_path / "renamed.gguf"
    path.write_bytes(data)
    with pytest.raises(EvaluationError, match=r"cannot load .*ffn_down"):
        Engine(path)


def test_reasons_are_heard_after_somebody_else_listened(model: Path, tmp_path: Path) -> None:
    """llama.cpp has one listener for a process; a program around this package may put in its own."""
    import llama_cpp

    with Engine(model, n_ctx=64, n_threads=1) as engine:
        assert engine.n_ctx == 64
    deaf = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(deaf, ctypes.c_void_p(0))
    path = tmp_path / "renamed.gguf"
    path.write_bytes(model.read_bytes().replace(b"blk.0.ffn_down.weight", b"blk.0.ffn_dawn.weight"))
    with pytest.raises(EvaluationError, match=r"cannot load .*ffn_down"):
        Engine(path)


def test_llama_cpp_writes_nothing_to_the_terminal(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Engine(model, n_ctx=64, n_threads=1) as engine:
        _run(engine, _ids(4))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
