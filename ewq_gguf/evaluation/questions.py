"""Multiple-choice questions from files: MMLU's CSV, and JSON lines in the manner of HellaSwag, ARC, PIQA,
WinoGrande.

Prompts are worded as the benchmarks' own code words them (hendrycks/test `evaluate.py`; the tasks of
lm-evaluation-harness), so that figures can be compared with published ones.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ewq_gguf.checkpoint.regular import regular_stat
from ewq_gguf.errors import EvaluationError

LETTERS = "ABCD"
_MMLU_COLUMNS = 6
_MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        choices: (text before, answer text) of each choice; the answer's likelihood after the text before
            counts.
        answer: index of the right one.
        group: subject or file, for figures by group.
    """

    choices: tuple[tuple[str, str], ...]
    answer: int
    group: str


def load_questions(
    paths: Sequence[Path] | Path, *, shots: int = 0, limit: int | None = None
) -> list[Question]:
    """Read question files; a folder stands for all `*_test.csv`, else all `*.csv` and `*.jsonl`, in it.

    Args:
        shots: solved examples before each MMLU question. They come from SUBJECT_dev.csv beside the test file;
            where there is none, from the first rows of the test file, which are then not asked.
        limit: questions per file at most, from its beginning.

    Raises:
        EvaluationError: a file cannot be read, a row is no question, or nothing is left to ask.
    """
    if shots < 0:
        raise EvaluationError(f"{shots} examples before a question make no sense; use 0 or more")
    files: list[Path] = []
    for path in [paths] if isinstance(paths, Path) else paths:
        files += _files_of(path)
    questions: list[Question] = []
    for file in files:
        if file.suffix == ".csv":
            asked = _mmlu(file, shots)
        elif file.suffix in (".jsonl", ".json", ".ndjson"):
            if shots:
                raise EvaluationError(
                    f"{file}: examples can be put before MMLU questions only; use --shots 0"
                )
            asked = list(_json_lines(file))
        else:
            raise EvaluationError(f"{file} is neither .csv (MMLU) nor .jsonl; rename or convert it")
        questions += asked[:limit]
    if not questions:
        raise EvaluationError(
            f"no question was found in {', '.join(str(file) for file in files) or 'nothing'}"
        )
    return questions


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*_test.csv")) or sorted([*path.glob("*.csv"), *path.glob("*.jsonl")])
    if not found:
        raise EvaluationError(f"{path} holds no .csv and no .jsonl file with questions")
    return found


def _read(path: Path) -> str:
    try:
        size = regular_stat(path).st_size
        if size > _MAX_BYTES:
            raise EvaluationError(f"the questions {path} have {size:,} bytes; split the file")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise EvaluationError(f"the questions {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not UTF-8 text (byte {error.start}); convert it") from None


def _mmlu(path: Path, shots: int) -> list[Question]:
    subject = re.sub(r"_(test|val|dev)$", "", path.stem)
    rows = _mmlu_rows(path)
    examples: list[list[str]] = []
    if shots:
        beside = [path.with_name(f"{subject}_dev.csv"), path.parent.parent / "dev" / f"{subject}_dev.csv"]
        source = next((file for file in beside if file.is_file() and file != path), None)
        if source is not None:
            examples = _mmlu_rows(source)[:shots]
        else:
            examples, rows = rows[:shots], rows[shots:]
        if len(examples) < shots:
            raise EvaluationError(f"{source or path} has {len(examples)} examples, {shots} are wanted")
    head = (
        f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    )
    head += "".join(f"{_mmlu_prompt(row)} {row[5].strip().upper()}\n\n" for row in examples)
    return [
        Question(
            tuple((head + _mmlu_prompt(row), f" {letter}") for letter in LETTERS),
            LETTERS.index(row[5].strip().upper()),
            subject,
        )
        for row in rows
    ]


def _mmlu_rows(path: Path) -> list[list[str]]:
    rows = []
    try:
        for number, row in enumerate(csv.reader(_read(path).splitlines(keepends=True), strict=True), 1):
            if not row:
                continue
            if number == 1 and row[-1].strip().lower() == "answer":
                continue
            if len(row) != _MMLU_COLUMNS or row[5].strip().upper() not in ("A", "B", "C", "D"):
                raise EvaluationError(
                    f"{path}, row {number}: six columns are expected (question, A, B, C, D, answer letter)"
                )
            rows.append(row)
    except csv.Error as error:
        raise EvaluationError(f"{path} is no CSV: {error}") from None
    return rows


def _mmlu_prompt(row: list[str]) -> str:
    lines = [row[0], *(f"{letter}. {row[at]}" for at, letter in enumerate(LETTERS, 1)), "Answer:"]
    return "\n".join(lines)


def _json_lines(path: Path) -> Iterator[Question]:
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            choices, answer = _recognize(entry)
            for text in (part for choice in choices for part in choice):
                # Half of a surrogate pair has no bytes that could be tokenized.
                text.encode()
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise EvaluationError(
                f"{path}, line {number} is no question of a known form ({type(error).__name__}: {error}); "
                "see ewq_gguf.evaluation.questions for the forms"
            ) from None
        if len(choices) < 2 or not 0 <= answer < len(choices) or not all(end for _, end in choices):
            raise EvaluationError(
                f"{path}, line {number}: answer {answer} of {len(choices)} choices; two or more non-empty "
                "choices and the index of the right one are needed"
            )
        yield Question(tuple(choices), answer, path.stem)


_Choices = tuple[list[tuple[str, str]], int]


def _recognize(entry: dict[str, Any]) -> _Choices:
    """Pick the form by the fields that only it has."""
    forms: tuple[tuple[tuple[str, ...], Callable[[dict[str, Any]], _Choices]], ...] = (
        (("sentence", "option1", "option2"), _winogrande),
        (("goal", "sol1", "sol2"), _piqa),
        (("endings",), _hellaswag),
        (("question", "choices"), _arc),
        (("prompt", "choices"), _plain),
    )
    for fields, form in forms:
        if all(name in entry for name in fields):
            return form(entry)
    raise ValueError(f"fields {sorted(entry)[:8]}")


def _winogrande(entry: dict[str, Any]) -> _Choices:
    before, after = entry["sentence"].split("_", 1)
    answer = int(entry["answer"]) - 1
    # Partial evaluation: the same ending after each name.
    return [(before + entry[name].strip(), after) for name in ("option1", "option2")], answer


def _piqa(entry: dict[str, Any]) -> _Choices:
    prompt = f"Question: {entry['goal']}\nAnswer:"
    return [(prompt, " " + entry[name].strip()) for name in ("sol1", "sol2")], int(entry["label"])


def _hellaswag(entry: dict[str, Any]) -> _Choices:
    context = entry.get("ctx")
    if context is None:
        context = f"{entry['ctx_a']} {entry['ctx_b'].capitalize()}"
    label = entry.get("activity_label")
    prompt = _clean(f"{label}: {context}" if label else context)
    return [(prompt, " " + _clean(ending)) for ending in entry["endings"]], int(entry["label"])


def _clean(text: str) -> str:
    """HellaSwag's texts carry WikiHow markup."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ").strip()


def _arc(entry: dict[str, Any]) -> _Choices:
    question, choices = entry["question"], entry["choices"]
    if isinstance(question, dict):
        question, choices = question["stem"], question["choices"]
    if isinstance(choices, dict):
        texts, labels = list(choices["text"]), [str(label) for label in choices["label"]]
    elif choices and isinstance(choices[0], dict):
        texts, labels = [c["text"] for c in choices], [str(c["label"]) for c in choices]
    else:
        texts, labels = list(choices), [str(at) for at in range(len(choices))]
    key = entry["answerKey"] if "answerKey" in entry else entry["answer"]
    prompt = f"Question: {question}\nAnswer:"
    return [(prompt, " " + text.strip()) for text in texts], labels.index(str(key))


def _plain(entry: dict[str, Any]) -> _Choices:
    """Texts taken as they stand: {"prompt": ..., "choices": [...], "answer": index}."""
    return [(entry["prompt"], choice) for choice in entry["choices"]], int(entry["answer"])
