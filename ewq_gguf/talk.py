"""Talking with a converted model by its own chat template, to see that it answers as it should."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import TracebackType

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.engine import Engine, Settings
from ewq_gguf.evaluation.generate import generate_tokens
from ewq_gguf.export.chat_model import read_chat_model
from ewq_gguf.export.chat_sandbox import Message, Rendering, render_chat

# Long enough for a talk, short enough for a small machine.
_DEFAULT_CONTEXT = 4096


class Conversation:
    """A loaded model and what was said so far; use as a context manager.

    Args:
        path: a GGUF file with a chat template.
        system: instructions that stand before everything, or None.
        settings: threads and KV cache types; its context is used where it is longer than 4096.

    Raises:
        EvaluationError: the file has no chat template or cannot be loaded.
        ChatTemplateError: the template does not come to an end.
        CheckpointError: the file is damaged.
    """

    def __init__(self, path: Path, system: str | None = None, *, settings: Settings | None = None) -> None:
        self._model = read_chat_model(path)
        if self._model.template is None:
            raise EvaluationError(
                f"{path} has no chat template, so it is not made for talking; continue a text with `generate`"
            )
        settings = settings or Settings()
        wanted = max(settings.n_ctx, _DEFAULT_CONTEXT)
        n_ctx = min(wanted, self._model.n_ctx or wanted)
        self._engine: Engine = replace(settings, n_ctx=n_ctx, n_batch=min(settings.n_batch, n_ctx)).engine(
            path
        )
        self.messages: list[Message] = [] if system is None else [Message("system", system)]

    def prompt(self) -> str:
        """The text that the model sees before it answers.

        Raises:
            EvaluationError: the template refuses the conversation.
        """
        assert self._model.template is not None
        wish = Rendering(tuple(self.messages), generate=True, today=date.today())
        [text] = render_chat(self._model.template, [wish], self._model.tokens)
        if text is None:
            raise EvaluationError(
                f"the chat template of {self._model.path} refuses this conversation; leave out the system message"
            )
        # The tokenizer puts it in front by itself.
        return text.removeprefix(self._model.implied_bos) if self._model.implied_bos else text

    def say(self, text: str, tokens: int = 256) -> Iterator[str]:
        """What the model answers, piece by piece, always taking the likeliest token.

        Args:
            tokens: at most.

        Raises:
            EvaluationError: the conversation is longer than the context, or the model yields NaN.
        """
        self.messages.append(Message("user", text))
        prompt = self._engine.tokenize(self.prompt(), parse_special=True)
        room = self._engine.n_ctx - len(prompt)
        if room < 1:
            raise EvaluationError(
                f"the conversation has {len(prompt)} tokens and the context {self._engine.n_ctx}; begin a new one"
            )
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        said = ""
        for token in generate_tokens(self._engine, prompt, min(tokens, room)):
            piece = decoder.decode(self._engine.piece(token))
            said += piece
            if piece:
                yield piece
        self.messages.append(Message("assistant", said))

    def close(self) -> None:
        """Free the model."""
        self._engine.close()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
