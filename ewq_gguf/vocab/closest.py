"""Which of llama.cpp's splitting rules gives a tokenizer's ids where the one of its name does not."""

from __future__ import annotations

from dataclasses import dataclass

from ewq_gguf.vocab.pretokenizer import Cuts, Rule, cuts, distances, rule_cuts, rules
from ewq_gguf.vocab.trial import Trial, own_form
from ewq_gguf.vocab.vocabulary import Vocabulary

# A rule that loses something is worth a sentence where it saves ten times as many tokens.
_WORTH = 10
_OFFERED = 2


@dataclass(frozen=True)
class Closest:
    """A rule in place of the tokenizer's.

    Attributes:
        rule: what to take.
        loss: a word that gets the tokenizer's ids under the rule in use and not under this one; "" where nothing of
            the probe and the vocabulary is lost.
        saved: tokens of the vocabulary that llama.cpp finds under this rule and not under the one in use.
    """

    rule: Rule
    loss: str = ""
    saved: tuple[str, ...] = ()


def own_cuts(vocabulary: Vocabulary) -> tuple[Cuts, ...] | None:
    """Where the tokenizer itself cuts the lines of `PROBE`; None where nothing tells."""
    if vocabulary.origin is not None:
        splitter = vocabulary.origin.backend.pre_tokenizer
        return None if splitter is None else cuts(splitter)
    form = own_form(vocabulary)
    return None if form is None else rule_cuts(form)


def closest_rule(vocabulary: Vocabulary, current: Rule, own: tuple[Cuts, ...]) -> Closest | None:
    """The best rule that loses nothing, else one that loses little and saves much; None where `current` is as good.

    `own` is what `own_cuts` says. Raises what the `tokenizers` library raises.
    """
    if own == rule_cuts(current.runs) and not _forgets(current, vocabulary):
        return None
    trial = Trial.of(vocabulary)
    if trial is None:
        return None

    def away(rule: Rule) -> tuple[int, ...]:
        return int(_forgets(rule, vocabulary)), *trial.on_probe(rule)

    now = away(current)
    found = [
        (away(rule), sum(distances(own, rule_cuts(rule.runs))), rule)
        for rule in rules()
        if _fits(rule, vocabulary)
    ]
    better = sorted((entry for entry in found if sum(entry[0]) < sum(now)), key=lambda e: (sum(e[0]), e[1]))
    if not better:
        return None
    # Better here and worse there is no better: prose is not to pay for what code gains.
    lossy = []
    for measured, cut_away, rule in better:
        worse = [line for line, (a, b) in enumerate(zip(measured[1:], now[1:])) if a > b]
        tears = _new_cuts(rule, own, rule_cuts(current.runs))
        if worse:
            lossy.append((len({*worse, *tears}), worse[0], rule))
        elif not tears and (not cut_away or not trial.keeps(current, trial.torn(rule))):
            return Closest(rule)
    lossy.sort(key=lambda entry: entry[0])
    return _offer(trial, current, [(rule, line) for _, line, rule in lossy[:_OFFERED]])


def _new_cuts(rule: Rule, own: tuple[Cuts, ...], current: tuple[Cuts, ...]) -> list[int]:
    """Lines of `PROBE` that the rule cuts where nobody did; that no token is torn there may be the probe's luck."""
    lines = enumerate(zip(rule_cuts(rule.runs), own, current))
    return [line for line, (new, *known) in lines if _starts(new) - set().union(*map(_starts, known))]


def _starts(pieces: Cuts) -> set[int]:
    return {start for start, _ in pieces}


def _offer(trial: Trial, current: Rule, lossy: list[tuple[Rule, int]]) -> Closest | None:
    if not lossy:
        return None
    torn = trial.torn(current)
    left = [set(trial.torn(rule)) for rule, _ in lossy]
    fewest = min(range(len(left)), key=lambda index: len(left[index]))
    if _WORTH * len(left[fewest]) >= len(torn):
        return None
    rule, line = lossy[fewest]
    saved = tuple(text for text in torn if text not in left[fewest])
    return Closest(rule, trial.word(rule, line), saved)


def _fits(rule: Rule, vocabulary: Vocabulary) -> bool:
    if vocabulary.origin is not None:
        return rule.fits(vocabulary.origin)
    return (rule.bos, rule.clean_up, rule.post_processor) == (None, None, None)


def _forgets(rule: Rule, vocabulary: Vocabulary) -> bool:
    tokenizer = vocabulary.origin
    return tokenizer is not None and tokenizer.takes_words_whole and not rule.merges_alike(tokenizer)
