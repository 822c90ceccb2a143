"""`ewq-gguf chat`: the model's own template, one answer or many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import ewq_gguf
from ewq_gguf.cli import cli
from ewq_gguf.errors import EvaluationError
from ewq_gguf.talk import Conversation

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def talker(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference model with a chat template."""
    folder = tmp_path_factory.mktemp("talker")
    for file in reference.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return ewq_gguf.convert(folder, folder / "talker.gguf", ewq_gguf.Decision(type="Q8_0")).path


def test_the_template_makes_the_prompt(talker: Path) -> None:
    with Conversation(talker, "Be brief.") as conversation:
        answer = "".join(conversation.say("Hello", tokens=4))
        assert answer
        assert [m.role for m in conversation.messages] == ["system", "user", "assistant"]
        assert conversation.messages[-1].content == answer
        # The beginning-of-text token is the tokenizer's to add, not the template's.
        assert conversation.prompt() == (
            f"[system] Be brief.\n[user] Hello\n[assistant] {answer}\n[assistant]"
        )


def test_one_message_one_answer(talker: Path) -> None:
    ran = CliRunner().invoke(cli, ["-q", "chat", str(talker), "-m", "Hello", "--tokens", "5"])
    assert ran.exit_code == 0, ran.output
    with Conversation(talker) as conversation:
        assert ran.stdout == "".join(conversation.say("Hello", tokens=5)) + "\n"


def test_lines_of_a_pipe_are_a_conversation(talker: Path) -> None:
    ran = CliRunner().invoke(cli, ["-q", "chat", str(talker), "--tokens", "3"], input="Hello\n\nAnd then?\n")
    assert ran.exit_code == 0, ran.output
    with Conversation(talker) as conversation:
        expected = ["".join(conversation.say(text, tokens=3)) + "\n" for text in ("Hello", "And then?")]
    assert ran.stdout == "".join(expected)


def test_without_a_template_there_is_a_sentence(reference: Path, tmp_path: Path) -> None:
    plain = ewq_gguf.convert(reference, tmp_path / "plain.gguf", ewq_gguf.Decision(type="Q8_0")).path
    with pytest.raises(EvaluationError, match="has no chat template"):
        Conversation(plain)


def test_a_long_conversation_meets_the_context(talker: Path) -> None:
    with Conversation(talker) as conversation, pytest.raises(EvaluationError, match="begin a new one"):
        list(conversation.say("word " * 5000, tokens=1))
