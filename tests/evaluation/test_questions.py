from __future__ import annotations

import json
from pathlib import Path

import pytest

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.questions import Question, load_questions

ROWS = [
    'What is small?,"a house, red",light,water,the sea,B',
    "Where is water?,in the house,in the sea,on the moon,nowhere,b",
    '"Two ""lines""\nof text",1,2,3,4,D',
]


@pytest.fixture
def mmlu(tmp_path: Path) -> Path:
    path = tmp_path / "test" / "high_school_physics_test.csv"
    path.parent.mkdir()
    path.write_text("\n".join(ROWS) + "\n")
    return path


def test_mmlu_prompt(mmlu: Path) -> None:
    questions = load_questions(mmlu)
    assert [q.answer for q in questions] == [1, 1, 3]
    assert questions[0].group == "high_school_physics"
    before, ending = questions[0].choices[2]
    assert ending == " C"
    assert before == (
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        "What is small?\nA. a house, red\nB. light\nC. water\nD. the sea\nAnswer:"
    )
    assert 'Two "lines"\nof text\nA. 1' in questions[2].choices[0][0]
    assert len(load_questions(mmlu, limit=2)) == 2


def test_examples_come_from_the_development_file(mmlu: Path) -> None:
    dev = mmlu.parent.parent / "dev" / "high_school_physics_dev.csv"
    dev.parent.mkdir()
    dev.write_text("Is it?,yes,no,maybe,never,C\nWhy?,1,2,3,4,A\n")
    questions = load_questions(mmlu, shots=1)
    assert len(questions) == 3
    assert "\n\nIs it?\nA. yes\nB. no\nC. maybe\nD. never\nAnswer: C\n\nWhat" in questions[0].choices[0][0]
    assert "Why?" not in questions[0].choices[0][0]
    with pytest.raises(EvaluationError, match="has 2 examples, 3 are wanted"):
        load_questions(mmlu, shots=3)


def test_without_one_the_first_rows_are_examples_and_not_asked(mmlu: Path) -> None:
    questions = load_questions(mmlu, shots=2)
    assert len(questions) == 1
    before = questions[0].choices[0][0]
    assert before.count("Answer: B\n\n") == 2
    assert before.endswith("D. 4\nAnswer:")


FORMS = [
    (
        {"activity_label": "Sailing", "ctx": "A man [step] stands [title] He", "endings": ["sails  on.", "eats."], "label": "0"},
        (("Sailing: A man stands. He", " sails on."), ("Sailing: A man stands. He", " eats.")),
        0,
    ),
    (
        {"ctx_a": "One.", "ctx_b": "the dog", "endings": ["barks", "flies"], "label": 1},
        (("One. The dog", " barks"), ("One. The dog", " flies")),
        1,
    ),
    (
        {"question": "Q?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        (("Question: Q?\nAnswer:", " x"), ("Question: Q?\nAnswer:", " y")),
        1,
    ),
    (
        {
            "question": {"stem": "Q?", "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}]},
            "choices": None,
            "answerKey": "A",
        },
        (("Question: Q?\nAnswer:", " x"), ("Question: Q?\nAnswer:", " y")),
        0,
    ),
    (
        {"question": "Q?", "choices": ["x", "y", "z"], "answer": 2},
        (("Question: Q?\nAnswer:", " x"), ("Question: Q?\nAnswer:", " y"), ("Question: Q?\nAnswer:", " z")),
        2,
    ),
    (
        {"goal": "Open it", "sol1": "push ", "sol2": "wait", "label": 0},
        (("Question: Open it\nAnswer:", " push"), ("Question: Open it\nAnswer:", " wait")),
        0,
    ),
    (
        {"sentence": "He thanked _ for it.", "option1": "Ann", "option2": "Bob", "answer": "2"},
        (("He thanked Ann", " for it."), ("He thanked Bob", " for it.")),
        1,
    ),
    ({"prompt": "1+1=", "choices": ["2", "3"], "answer": 0}, (("1+1=", "2"), ("1+1=", "3")), 0),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "choices", "answer"), FORMS)
def test_json_forms(
    tmp_path: Path, entry: dict[str, object], choices: tuple[tuple[str, str], ...], answer: int
) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(json.dumps(entry) + "\n\n")
    assert load_questions(path) == [Question(choices, answer, "some")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a_test.csv", "q,1,2,3,4,E\n", "row 1: six columns"),
        ("a_test.csv", "q,1,2,3,4,A\nq,1,2\n", "row 2: six columns"),
        ("a_test.csv", 'q,"1,2,3,4,A\n', "no CSV"),
        ("a_test.csv", "", "no question was found"),
        ("a_test.csv", b"\xff\xfe", "not UTF-8"),
        ("a.jsonl", "{", "line 1 is no question of a known form"),
        ("a.jsonl", "[1]", "line 1 is no question"),
        ("a.jsonl", '\n{"x": 1}', r"line 2 .* fields \['x'\]"),
        ("a.jsonl", '{"goal": "g", "sol1": "a", "sol2": "b", "label": 5}', "answer 5 of 2 choices"),
        ("a.jsonl", '{"prompt": "g", "choices": ["a", ""], "answer": 0}', "non-empty"),
        ("a.jsonl", '{"question": "g", "choices": ["a", "b"], "answer": "x"}', "ValueError"),
        ("a.txt", "x", "neither .csv"),
    ],
)
def test_what_is_no_question(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(EvaluationError, match=words):
        load_questions(path)


def test_folders(mmlu: Path, tmp_path: Path) -> None:
    assert len(load_questions(mmlu.parent)) == 3
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(EvaluationError, match=r"holds no .csv"):
        load_questions(empty)
    with pytest.raises(EvaluationError, match="cannot be read"):
        load_questions(tmp_path / "none.csv")
    other = tmp_path / "x.jsonl"
    other.write_text(json.dumps(FORMS[0][0]))
    with pytest.raises(EvaluationError, match="MMLU questions only"):
        load_questions(other, shots=1)
    with pytest.raises(EvaluationError, match="no sense"):
        load_questions(mmlu, shots=-1)
