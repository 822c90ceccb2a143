"""The result runs: it loads in llama-cpp-python, generates, tokenizes as the original, and measures as it should."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

import ewq_gguf
from ewq_gguf.evaluation.divergence import divergence
from ewq_gguf.evaluation.engine import Engine
from ewq_gguf.evaluation.generate import generate
from ewq_gguf.evaluation.perplexity import perplexity

STRINGS = (
    "Hello, world!",
    " leading space",
    "trailing space ",
    "two  spaces,   three",
    "line\nbreak\n\nand a blank line",
    "tab\tand\r\nwindows",
    "0 1 12 123 1234567890 3.14159",
    "naïve café über straße",
    "Привет, мир",
    "日本語のテキスト",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "emoji 🙂🚀👩‍👩‍👧‍👦 🇩🇪",
    "a\u200bzero width\u00a0and nbsp",
    "combining e\u0301 and precomposed é",
    "<s> </s> <unk> <0x41> are text here",
    "def f(x):\n    return x ** 2  # code",
    "https://example.org/a?b=c&d=%20e",
    "ALLCAPSWITHOUTSPACES" * 3,
    "∑∫√ mathematical ≤ symbols ∞",
    "x",
    "¿Qué? ¡Sí! «quoted» “curly” ‘single’ — dash…",
)


@pytest.fixture(scope="module")
def files(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("runs")
    made = {"bf16": folder / "bf16.gguf", "ewq": folder / "ewq.gguf"}
    ewq_gguf.convert(reference, made["bf16"], ewq_gguf.Decision(type="bf16"))
    ewq_gguf.convert(reference, made["ewq"])
    return made


def test_tokens_equal_sentencepiece(files: dict[str, Path], reference: Path) -> None:
    original = sentencepiece.SentencePieceProcessor()
    original.LoadFromFile(str(reference / "tokenizer.model"))
    with Engine(files["ewq"], n_ctx=64) as engine:
        for text in STRINGS:
            assert engine.tokenize(text, add_special=False).tolist() == original.EncodeAsIds(text), text


def test_llama_cpp_python_loads_and_generates(files: dict[str, Path]) -> None:
    from llama_cpp import Llama

    llama = Llama(str(files["ewq"]), n_ctx=128, n_threads=1, verbose=False)
    try:
        said = llama("The history of the", max_tokens=12, temperature=0.0)["choices"][0]["text"]
    finally:
        llama.close()
    assert len(said.strip()) >= 8
    assert "".join(generate(files["ewq"], "The history of the", 12)).strip().startswith(said.strip()[:20])


def test_perplexity_is_llama_perplexity_s(files: dict[str, Path], reference: Path) -> None:
    text = reference.parent / "data" / "evaluation.txt"
    measured = perplexity(files["bf16"], text, chunks=20)
    # llama-perplexity of the pinned llama.cpp, -c 512 --chunks 20, bf16: 26.7351
    assert measured.ppl == pytest.approx(26.7351, rel=1e-3)
    assert measured.tokens == 5100


def test_divergence_from_itself_is_zero(files: dict[str, Path], reference: Path) -> None:
    text = reference.parent / "data" / "evaluation.txt"
    (own,) = divergence(files["bf16"], files["bf16"], text, chunks=4)
    assert abs(own.mean_kld) < 1e-6
    assert own.top1_agreement == 1.0
    (other,) = divergence(files["ewq"], files["bf16"], text, chunks=4)
    assert 1e-4 < other.mean_kld < 0.05
    assert np.isfinite(other.mean_kld_se)
