"""What a chat template does, learned from what it writes: probe conversations with marks for contents.

Nothing is read from the template's text. Each message of a probe is a word that occurs nowhere else, so the text
between two words is what the format puts between two turns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

from ewq_gguf.export.chat_sandbox import Message, Rendering, render_chat

_SYSTEM, _EFFORT = "Xsystemx7", "Xeffortx7"
_USERS, _ANSWERS = ("Xaskx7", "Xbidx7", "Xcallx7"), ("Xreplyx7", "Xsayx7", "Xtellx7")
# What every template is compared on after the fit; contents that a careless escape would change.
_TALK = (
    "You are a careful assistant.\nAnswer in \"one\" sentence; {{ braces }} and 'quotes' stay.",
    "Wie heißt die Hauptstadt von Österreich? <b>&amp;</b>",
    "Wien.\n\n- Vienna\n- Bécs \\ \u7dad\u4e5f\u7d0d",
    "And of\tFrance?",
    "Paris.",
    "Thank you! 100 % %d {% raw %}",
)
CHECK_DAY = date(2031, 7, 4)
# The two names under which published templates know the switch.
_YES, _NO = ({"enable_thinking": on, "thinking": on} for on in (True, False))


@dataclass(frozen=True)
class Pieces:
    """What a format writes between contents.

    Attributes:
        head: before the first user's words where there is no system message.
        system: before and after the system's words, up to the user's; None where the format knows no system.
        system_last: the system's words stand in the last user turn instead of the first.
        user_prefix: before a user's words, after an earlier answer.
        user_suffix: after a user's words.
        answer_prefix: before an answer that was given.
        answer_suffix: after it.
        generation: before the answer that is to come.
        thinking: in its place where the user wants thinking, and where not; None where it makes no difference.
        effort: where the format has levels of thinking, what is before the level at the very start of the
            text, and the default level.
    """

    head: str
    system: tuple[str, str] | None
    system_last: bool
    user_prefix: str
    user_suffix: str
    answer_prefix: str
    answer_suffix: str
    generation: str
    thinking: tuple[str, str] | None = None
    effort: tuple[str, str] | None = None


@dataclass(frozen=True)
class Check:
    """A conversation and the text that the model's own template gives for it on `CHECK_DAY`."""

    messages: tuple[Message, ...]
    switches: Mapping[str, object]
    expected: str


@dataclass(frozen=True)
class Observation:
    """Pieces of the format, None where it has no such form, and the conversations to check a copy against."""

    pieces: Pieces | None
    checks: tuple[Check, ...]


def observe(template: str, tokens: Mapping[str, str], *, implied_bos: str = "") -> Observation:
    """Learn a Jinja chat template's format.

    Args:
        tokens: `bos_token`, `eos_token` and the like.
        implied_bos: what the tokenizer puts in front by itself, and is therefore taken off.

    Raises:
        ChatTemplateError: the template cannot be rendered in bounds.
    """
    probes = {
        "u": _turns(1), "su": _turns(1, system=True), "uau": _turns(3), "uauau": _turns(5),
        "suauau": _turns(5, system=True), "u|": _turns(1, generate=False), "ua|": _turns(2, generate=False),
        "u-": _turns(1, switches=_NO), "su-": _turns(1, system=True, switches=_NO),
        "u!": _turns(1, switches=_YES), "su!": _turns(1, system=True, switches=_YES),
        "u+": _turns(1, switches={"reasoning_effort": _EFFORT}),
    }  # fmt: skip
    wishes = [*probes.values(), *_talks()]
    texts = [
        None if t is None else t.removeprefix(implied_bos) for t in render_chat(template, wishes, tokens)
    ]
    pieces = _fit(dict(zip(probes, texts)))
    checks = tuple(
        Check(wish.messages, wish.switches, text)
        for wish, text in zip(wishes[len(probes) :], texts[len(probes) :])
        if text is not None
    )
    if pieces is None or pieces.thinking is None:
        checks = tuple(c for c in checks if not c.switches)
    return Observation(pieces, checks)


def _turns(
    n: int, *, system: bool = False, generate: bool = True, switches: Mapping[str, object] | None = None
) -> Rendering:
    spoken = [
        Message("user", _USERS[i // 2]) if i % 2 == 0 else Message("assistant", _ANSWERS[i // 2])
        for i in range(n)
    ]
    return Rendering(
        (*([Message("system", _SYSTEM)] if system else []), *spoken), generate, dict(switches or {})
    )


def _talks() -> list[Rendering]:
    system, *turns = _TALK
    spoken = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns))
    wishes = []
    for switches in ({}, _YES, _NO):
        for n in (1, 3, 5):
            for front in ((), (Message("system", system),)):
                wishes.append(Rendering((*front, *spoken[:n]), True, switches, CHECK_DAY))
    return wishes


def _split(text: str | None, marks: Sequence[str]) -> list[str] | None:
    """The pieces around the marks, None where they do not stand there once each and in order."""
    if text is None or any(text.count(mark) != 1 for mark in marks):
        return None
    found = re.split("|".join(map(re.escape, marks)), text)
    return found if re.findall("|".join(map(re.escape, marks)), text) == list(marks) else None


def _fit(texts: Mapping[str, str | None]) -> Pieces | None:
    u1, u2, u3 = _USERS
    a1, a2, _ = _ANSWERS
    long, short = _split(texts["uauau"], (u1, a1, u2, a2, u3)), _split(texts["u"], (u1,))
    if long is None or short is None:
        return None
    head, answering, asking, answering_again, asking_again, ending = long
    if (answering, asking, [head, ending]) != (answering_again, asking_again, short):
        return None
    user_suffix, answer_prefix, generation = _user_end(texts["u|"], u1, answering, ending)
    answer_suffix = _answer_end(texts["ua|"], a1, asking)
    system, system_last = _system(texts, ending)
    pieces = Pieces(
        head,
        system,
        system_last,
        asking[len(answer_suffix) :],
        user_suffix,
        answer_prefix,
        answer_suffix,
        generation,
    )
    return _with_effort(_with_thinking(pieces, texts), texts["u+"])


def _user_end(closed: str | None, mark: str, answering: str, ending: str) -> tuple[str, str, str]:
    """What follows a user's words, and what then comes before a given answer and before a new one."""
    found = _split(closed, (mark,))
    end = found[1] if found is not None else ""
    if found is None or not (answering.startswith(end) and ending.startswith(end)):
        end = _common_prefix(answering, ending)
    return end, answering[len(end) :], ending[len(end) :]


def _answer_end(closed: str | None, mark: str, asking: str) -> str:
    """The part of what stands between an answer and the next question that closes the answer."""
    found = None if closed is None or closed.count(mark) != 1 else closed.split(mark)[1]
    if found is not None and asking.startswith(found):
        return found
    # Some formats end a conversation with another token than a turn.
    token = re.match(r"<[^<>\s]+>\s*", asking)
    return token[0] if token else ""


def _system(texts: Mapping[str, str | None], ending: str) -> tuple[tuple[str, str] | None, bool]:
    u1, u2, u3 = _USERS
    a1, a2, _ = _ANSWERS
    short = _split(texts["su"], (_SYSTEM, u1))
    if short is None or short[2] != ending:
        return None, False
    first = _split(texts["suauau"], (_SYSTEM, u1, a1, u2, a2, u3))
    if first is not None and first[:2] == short[:2]:
        return (short[0], short[1]), False
    last = _split(texts["suauau"], (u1, a1, u2, a2, _SYSTEM, u3))
    if last is not None and last[5] == short[1]:
        return (short[0], short[1]), True
    return None, False


def _with_thinking(pieces: Pieces, texts: Mapping[str, str | None]) -> Pieces:
    """With what the switch for thinking changes, where that is the opening of the answer only."""
    user = _USERS[0] + pieces.user_suffix
    fronts = {"u": pieces.head + user}
    if pieces.system is not None:
        fronts["su"] = f"{pieces.system[0]}{_SYSTEM}{pieces.system[1]}{user}"
    openings: dict[str, set[str | None]] = {"!": set(), "-": set()}
    for key, front in fronts.items():
        for switch, found in openings.items():
            text = texts[key + switch]
            found.add(text[len(front) :] if text is not None and text.startswith(front) else None)
    on, off = (next(iter(found)) if len(found) == 1 else None for found in openings.values())
    if on is None or off is None or on == off:
        return pieces
    return replace(pieces, thinking=(on, off))


def _with_effort(pieces: Pieces, text: str | None) -> Pieces:
    """With the default level of thinking cut out of the beginning, where the format names it there."""
    if text is None or text.count(_EFFORT) != 1 or pieces.system is None:
        return pieces
    before, after = text.split(_EFFORT)
    tail = after.split(_USERS[0])[0]
    if _USERS[0] in before or not pieces.head.startswith(before) or not pieces.head.endswith(tail):
        return pieces
    level = pieces.head[len(before) : len(pieces.head) - len(tail)]
    if not level or not pieces.system[0].startswith(before + level):
        return pieces
    return replace(pieces, effort=(before, level))


def _common_prefix(a: str, b: str) -> str:
    n = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return a[:n]
