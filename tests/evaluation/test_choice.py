from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.choice import ChoiceResult, answer_questions
from ewq_gguf.evaluation.engine import Engine, Settings
from ewq_gguf.evaluation.flips import compare_answers
from ewq_gguf.evaluation.questions import Question, load_questions

SHARED_MMLU = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "mmlu"
WORDS = ["the", "of", "and", "to", "in", "is", "that", "for", "water", "light", "house", "small"]


def _questions(n: int, seed: int = 0) -> list[Question]:
    """Random questions with two to five answers of one to six words; some start differently, as in WinoGrande."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        count = int(rng.integers(2, 6))
        before = " ".join(rng.choice(WORDS, rng.integers(1, 25)))
        answers = [" " + " ".join(rng.choice(WORDS, rng.integers(1, 7))) for _ in range(count)]
        if rng.random() < 0.3:
            choices = [(before + answer, " and" + answers[0]) for answer in answers]
        else:
            choices = [(before, answer) for answer in answers]
        out.append(Question(tuple(choices), int(rng.integers(count)), f"group {count}"))
    return out


def _plain(path: Path, questions: Sequence[Question]) -> list[list[tuple[float, int, int]]]:
    """(log-likelihood, tokens, bytes) of each answer, from one decode and one full log-softmax each."""
    out = []
    with Engine(path, n_ctx=4096, n_batch=4096, n_seq=1, n_threads=1) as engine:
        for question in questions:
            answers = []
            for before, ending in question.choices:
                whole = engine.tokenize(before + ending)
                start = len(engine.tokenize(before))
                engine.clear()
                n = len(whole)
                logits = engine.decode(
                    whole,
                    np.arange(n, dtype=np.int32),
                    np.zeros(n, dtype=np.int32),
                    np.ones(n, dtype=np.bool_),
                )
                log_p = log_softmax(logits.astype(np.float64), axis=1)
                total = sum(log_p[at - 1, whole[at]] for at in range(start, n))
                answers.append((float(total), n - start, len(ending.strip().encode())))
            out.append(answers)
    return out


@pytest.mark.parametrize("normalize", ["bytes", "tokens", "none"])
def test_equals_the_plain_computation(model: Path, normalize: str) -> None:
    questions = _questions(40)
    found = answer_questions(model, questions, normalize=normalize, settings=Settings(n_threads=1))
    for number, answers in enumerate(_plain(model, questions)):
        sums = [total for total, _, _ in answers]
        np.testing.assert_allclose(found.log_likelihoods[number, : len(sums)], sums, atol=0.05)
        assert np.isnan(found.log_likelihoods[number, len(sums) :]).all()
        divisors = {"bytes": [b for *_, b in answers], "tokens": [t for _, t, _ in answers]}
        scores = np.array(sums) / np.array(divisors.get(normalize, [1] * len(sums)))
        best = np.sort(scores)
        if best[-1] - best[-2] > 0.05:
            assert found.picks[number] == scores.argmax()
        assert found.correct[number] == (found.picks[number] == questions[number].answer)
    assert found.accuracy == found.correct.mean()
    p = found.accuracy
    assert found.accuracy_se == pytest.approx(np.sqrt(p * (1 - p) / 39))
    assert sum(asked for _, asked in found.groups.values()) == 40
    assert sum(right for right, _ in found.groups.values()) == found.correct.sum()


def test_batches_do_not_matter(model: Path) -> None:
    questions = _questions(30, seed=1)
    seen: list[tuple[int, int]] = []
    wide = answer_questions(model, questions, settings=Settings(n_threads=1))
    narrow = answer_questions(
        model,
        questions,
        settings=Settings(n_batch=24, n_threads=1),
        progress=lambda a, b: seen.append((a, b)),
    )
    np.testing.assert_allclose(narrow.log_likelihoods, wide.log_likelihoods, atol=0.05)
    assert len(seen) > 10
    assert seen[-1] == (30, 30)


def test_one_file_against_itself_never_flips(coarse: Path) -> None:
    questions = _questions(20, seed=2)
    one, other = (answer_questions(coarse, questions, settings=Settings(n_threads=1)) for _ in range(2))
    flips = compare_answers(one, other)
    assert (flips.agreement, flips.lost, flips.gained, flips.p_value) == (1, 0, 0, 1)


def test_json_and_errors(model: Path, make_model: Callable[..., Path]) -> None:
    questions = _questions(3)
    found = answer_questions(model, questions, settings=Settings(n_threads=1))
    fields = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert fields["questions"] == 3
    assert set(fields) == {
        "file", "bytes", "accuracy", "accuracy_se", "questions", "normalize", "groups",
    }  # fmt: skip
    with pytest.raises(EvaluationError, match="no question"):
        answer_questions(model, [])
    with pytest.raises(EvaluationError, match="cannot normalize"):
        answer_questions(model, questions, normalize="letters")
    with pytest.raises(EvaluationError, match="yields NaN at question 0"):
        answer_questions(make_model(poison=float("nan")), questions, settings=Settings(n_threads=1))
    fewer = answer_questions(model, questions[:2], settings=Settings(n_threads=1))
    with pytest.raises(EvaluationError, match="answered 3 and 2 questions"):
        compare_answers(found, fewer)


def _result(picks: np.ndarray, right: np.ndarray, name: str) -> ChoiceResult:
    correct = picks == right
    return ChoiceResult(
        Path(name), 1, float(correct.mean()), 0.0, len(picks), {}, "none", picks, correct, np.zeros((1, 1))
    )


def test_flips_and_their_test() -> None:
    rng = np.random.default_rng(0)
    right = rng.integers(0, 4, 400).astype(np.int32)
    base = np.where(rng.random(400) < 0.7, right, (right + 1) % 4).astype(np.int32)
    other = base.copy()
    other[np.flatnonzero(base == right)[:30]] = (right[np.flatnonzero(base == right)[:30]] + 2) % 4
    wrong = np.flatnonzero(base != right)
    other[wrong[:10]] = right[wrong[:10]]
    other[wrong[10:15]] = (right[wrong[10:15]] + 3) % 4
    flips = compare_answers(_result(base, right, "base"), _result(other, right, "other"))
    assert (flips.lost, flips.gained) == (30, 10)
    assert flips.agreement == 1 - 45 / 400
    assert flips.p_value == pytest.approx(stats.binomtest(10, 40).pvalue)
    change = (other == right).astype(float) - (base == right)
    assert flips.difference == pytest.approx(change.mean())
    assert flips.difference_se == pytest.approx(stats.sem(change))
    assert "loses accuracy" in flips.sentence
    back = compare_answers(_result(other, right, "other"), _result(base, right, "base"))
    assert "gains accuracy" in back.sentence
    few = base.copy()
    few[np.flatnonzero(base == right)[:3]] = (right[np.flatnonzero(base == right)[:3]] + 2) % 4
    assert "cannot be told" in compare_answers(_result(base, right, "a"), _result(few, right, "b")).sentence


def test_many_flips() -> None:
    rng = np.random.default_rng(1)
    right = np.zeros(5000, dtype=np.int32)
    base = rng.integers(0, 2, 5000).astype(np.int32)
    other = rng.integers(0, 2, 5000).astype(np.int32)
    flips = compare_answers(_result(base, right, "a"), _result(other, right, "b"))
    exact = stats.binomtest(flips.lost, flips.lost + flips.gained).pvalue
    assert flips.lost + flips.gained > 1000
    assert flips.p_value == pytest.approx(exact, rel=0.01)


def _write_mmlu(path: Path, n: int) -> Path:
    rng = np.random.default_rng(4)
    rows = []
    for _ in range(n):
        texts = [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(5)]
        rows.append(",".join([*texts, "ABCD"[rng.integers(4)]]))
    path.write_text("\n".join(rows))
    return path


@pytest.mark.parametrize("shots", [0, 5])
def test_mmlu_letters_equal_raw_logits(coarse: Path, tmp_path: Path, shots: int) -> None:
    """The letter with the largest logit after `Answer:`, read off one context by hand."""
    source = _write_mmlu(tmp_path / "made_up_test.csv", 25)
    assert _clear_letters(coarse, load_questions(source, shots=shots)) > 12


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_MMLU.is_dir(), reason="no MMLU beside the repository")
def test_real_mmlu_letters_equal_raw_logits(coarse: Path) -> None:
    questions = load_questions(SHARED_MMLU / "clinical_knowledge_test.csv", limit=100)
    assert len(questions) == 100
    assert _clear_letters(coarse, questions) > 50


def _clear_letters(path: Path, questions: Sequence[Question]) -> int:
    """Compares every question; how many have one letter clearly before the others."""
    found = answer_questions(path, questions, settings=Settings(n_threads=1))
    clear = 0
    with Engine(path, n_ctx=8192, n_batch=8192, n_seq=1, n_threads=1) as engine:
        letters = [int(engine.tokenize(f"x {letter}")[-1]) for letter in "ABCD"]
        for number, question in enumerate(questions):
            tokens = engine.tokenize(question.choices[0][0])
            wanted = np.zeros(len(tokens), dtype=np.bool_)
            wanted[-1] = True
            engine.clear()
            zeros = np.zeros(len(tokens), dtype=np.int32)
            logits = engine.decode(tokens, np.arange(len(tokens), dtype=np.int32), zeros, wanted)
            by_hand = logits[0, letters].astype(np.float64)
            gaps = found.log_likelihoods[number, :4]
            np.testing.assert_allclose(gaps - gaps[0], by_hand - by_hand[0], atol=0.05)
            best = np.sort(by_hand)
            if best[-1] - best[-2] > 0.05:
                clear += 1
                assert found.picks[number] == by_hand.argmax()
    return clear


def test_models_that_cannot_share_a_prefix(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recurrent models run every answer as a sequence of its own."""
    questions = _questions(12, seed=3)
    shared = answer_questions(model, questions, settings=Settings(n_threads=1))
    original = Engine._open_context

    def without(self: Engine) -> None:
        original(self)
        self.shares_prefix = False

    monkeypatch.setattr(Engine, "_open_context", without)
    alone = answer_questions(model, questions, settings=Settings(n_threads=1))
    np.testing.assert_allclose(alone.log_likelihoods, shared.log_likelihoods, atol=0.05)
