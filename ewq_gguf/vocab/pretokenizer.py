"""Which of llama.cpp's pre-tokenizers splits text as a given tokenizer does.

Two ways, in this order. The fingerprint: the digest of the token ids of a fixed text, looked up among those
that llama.cpp's converter knows (`get_vocab_base_pre` in conversion/base.py, kept in fingerprints.json). It
depends on every token id, so that a fine-tune easily gets another one. The structure: how the tokenizer's
own pre-tokenizer cuts a text full of hard cases, compared with how llama.cpp's rules do (`llm_tokenizer_bpe`
in src/llama-vocab.cpp, kept in pretokenizers.json); this depends on no id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import resources
from typing import Any

from tokenizers import Regex, pre_tokenizers

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab.hf import HfTokenizer, build_backend, library_errors

_MAX_RELEVANT = 256
_SHOWN = 32

PROBE = (
    "I'm here, I'LL go; they'Ve said 'tis it's HE'S we'd you're don'tcha Ankara'dan y'alld",
    "x = foo.bar(baz_qux)[i]; // comment\n\treturn -1.5e10;\n\n\n}",
    "1 22  333 4444 55555 666666 7777777 12,345.67 ٣٤٥٦٧ Ⅷ½ １２３４ v2.0b1",
    "  two   three    four\t\ttabs \n \n\n   \r\n\r\n end   ",
    "CamelCaseWord HTTPServer iPhone ÀÉÎõü straße ǅ naïve cafe\u0301 re\u0301sume\u0301 o\u0308",
    "Привет, мир! Ελληνικά και κάτι. \u0645\u0631\u062d\u0628\u0627 \u0628\u0643\u0645 \u05e9\u05dc\u05d5\u05dd",
    "你好，世界。这是测试！ひらがなカタカナ漢字 한국어 텍스트 ㄱㄴ ㄅㄆ",
    "हिन्दी में नमस्ते। বাংলা ไทยภาษา ကမ္ဘာ ខ្មែរ",
    "!!! ??? ... ,,, ((( ))) {}[]<> #hashtag @user $100 50% a/b c\\d e|f ~g ^h `code`",
    "http://example.com/path?q=1&r=2#frag a//b /// \n// x/\n",
    "🚀🦙 ✅ 👨\u200d👩\u200d👧 → ± © ™ ≤ ∑",
    "<sentinel:12> IMGIMGABZ ‘quoted’ “double” …ellipsis—dash 、。「」",
    "...\n\n===\r\n---\n *** \n+++ ;\n",
    "word\u00a0nbsp\u3000ideographic\u2003em zero\u200bwidth",
    "déjàVu fooÉtat ёЖик домДом ÑandÚ",
    "ÜBER NAÏVE ZÜRICH AÇÃO ÆRØ",
)
"""Lines on which every two of llama.cpp's splitting rules differ."""


@dataclass(frozen=True)
class Detection:
    """A pre-tokenizer's name, how it was found ("fingerprint" or "structure"), and a sentence where one is
    due."""

    name: str
    how: str
    note: str = ""


@dataclass(frozen=True)
class Rule:
    """One row of pretokenizers.json: a name, the ways tokenizers write its splitting, and what else must hold.

    `llama_cpp` is llama.cpp's own splitting where it only approximates `forms`; `aliases` are its other names
    for the same behaviour.
    """

    name: str
    forms: tuple[tuple[str, ...], ...]
    llama_cpp: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    ignore_merges: bool | None = None
    bos: bool | None = None
    clean_up: bool | None = None
    post_processor: str | None = None

    def fits(self, tokenizer: HfTokenizer) -> bool:
        """Whether the properties that tell rules of equal splitting apart are those of `tokenizer`."""
        clean_up = tokenizer.settings.get("clean_up_tokenization_spaces") is True
        return (
            self.merges_alike(tokenizer)
            and self.bos in (None, tokenizer.bos in tokenizer.vocab)
            and self.clean_up in (None, clean_up)
            and self.post_processor in (None, *_post_processors(tokenizer))
        )

    def merges_alike(self, tokenizer: HfTokenizer) -> bool:
        """Whether a word that is a token is taken whole here as it is in `tokenizer`."""
        return self.ignore_merges in (None, tokenizer.takes_words_whole)

    @property
    def runs(self) -> tuple[str, ...]:
        """The regular expressions that llama.cpp applies."""
        return self.llama_cpp or self.forms[0]


def rule_of(name: str | None) -> Rule | None:
    """The splitting rule behind a pre-tokenizer's name; None when it is not in the table."""
    return next((rule for rule in rules() if name in (rule.name, *rule.aliases)), None)


def detect_pretokenizer(tokenizer: HfTokenizer, fingerprints: Mapping[str, str] | None = None) -> Detection:
    """The llama.cpp pre-tokenizer of `tokenizer`; `fingerprints` (digest -> name) replaces the shipped table.

    Raises TokenizerError naming the nearest known one when neither way finds it.
    """
    table = known_fingerprints() if fingerprints is None else fingerprints
    with library_errors(tokenizer.file):
        name = next((table[digest] for digest in fingerprints_of(tokenizer) if digest in table), None)
        return _by_structure(tokenizer) if name is None else Detection(name, "fingerprint")


@cache
def known_fingerprints() -> Mapping[str, str]:
    """Digest of the check text's token ids -> pre-tokenizer name, as llama.cpp's converter has them."""
    names: dict[str, list[str]] = _data("fingerprints.json")["names"]
    return {digest: name for name, digests in names.items() for digest in digests}


@cache
def rules() -> tuple[Rule, ...]:
    """The splitting rules, in order of preference."""
    return tuple(
        Rule(
            **{
                **row,
                "forms": tuple(tuple(form) for form in row["forms"]),
                "llama_cpp": tuple(row.get("llama_cpp", ())),
                "aliases": tuple(row.get("aliases", ())),
            }
        )
        for row in _data("pretokenizers.json")
    )


def fingerprints_of(tokenizer: HfTokenizer) -> Iterator[str]:
    """Digests to look up, the converter's own first.

    The later ones undo what fine-tunes change: other tokens around the text, and added tokens that occur in
    it.
    """
    text: str = _data("fingerprints.json")["text"]
    seen: set[str] = set()
    for ids in _encodings(tokenizer, text):
        digest = sha256(str(ids).encode()).hexdigest()
        if digest not in seen:
            seen.add(digest)
            yield digest


def _encodings(tokenizer: HfTokenizer, text: str) -> Iterator[list[int]]:
    own = tokenizer.encode(text, add_special_tokens=True)
    yield own
    plain = list(_unwrapped(tokenizer, text))
    around = _around(own, plain[0])
    for ids in plain[1:]:
        yield [*around[0], *ids, *around[1]]
    for ids in plain:
        yield from _wrapped(tokenizer, ids)


def _unwrapped(tokenizer: HfTokenizer, text: str) -> Iterator[list[int]]:
    """Ids of `text` alone: with the added tokens as they are, with none, then with ever more of those that
    matter in the order of their ids, for a fine-tune appends its own."""
    yield tokenizer.encode(text, add_special_tokens=False)
    normalizer = tokenizer.backend.normalizer
    forms = (text, normalizer.normalize_str(text)) if normalizer is not None else (text,)
    relevant = [
        token for _, token in sorted(tokenizer.added.items()) if any(token.content in form for form in forms)
    ]
    if not relevant:
        return
    bare = build_backend({**tokenizer.document, "added_tokens": []}, tokenizer.file)
    for count in range(min(len(relevant), _MAX_RELEVANT)):
        if count:
            bare.add_tokens([relevant[count - 1]])
        tokens = bare.encode(text, add_special_tokens=False).tokens
        if all(token in tokenizer.vocab for token in tokens):
            yield [tokenizer.vocab[token] for token in tokens]


def _around(own: list[int], plain: list[int]) -> tuple[list[int], list[int]]:
    """What stands before and after `plain` in `own`; nothing when `plain` is not in it."""
    extra = len(own) - len(plain)
    for start in range(max(extra, 0) + 1):
        if own[start : start + len(plain)] == plain:
            return own[:start], own[start + len(plain) :]
    return [], []


def _wrapped(tokenizer: HfTokenizer, ids: list[int]) -> Iterator[list[int]]:
    """`ids` with and without the tokens that may stand around a text."""
    names = (tokenizer.bos, tokenizer.eos, *_template_tokens(tokenizer))
    ends = [[tokenizer.vocab[name]] for name in dict.fromkeys(names) if name in tokenizer.vocab]
    for first in ([], *ends):
        for last in ([], *ends):
            yield [*first, *ids, *last]


def _template_tokens(tokenizer: HfTokenizer) -> list[str]:
    names: list[str] = []
    for step in _steps(tokenizer.document.get("post_processor"), "processors"):
        single = step.get("single")
        for piece in single if isinstance(single, list) else []:
            special = piece.get("SpecialToken") if isinstance(piece, dict) else None
            if isinstance(special, dict) and isinstance(special.get("id"), str):
                names.append(special["id"])
    return names[:8]


def _by_structure(tokenizer: HfTokenizer) -> Detection:
    model = tokenizer.document["model"]
    splitter = tokenizer.backend.pre_tokenizer
    if model.get("byte_fallback") is True and _marks_spaces(tokenizer):
        return Detection(
            "gemma4", "structure", f"{tokenizer.file}: pre-tokenizer gemma4, by its byte fallback"
        )
    if splitter is None:
        raise TokenizerError(
            f"{tokenizer.file}: does not split text before merging, which llama.cpp's byte-level BPE needs; "
            "name the nearest of its pre-tokenizers with --pre-tokenizer NAME"
        )
    own = cuts(splitter)
    nearest: tuple[int, str, tuple[Cuts, ...]] | None = None
    for rule in rules():
        if not rule.fits(tokenizer):
            continue
        for form in rule.forms:
            theirs = rule_cuts(form)
            away = sum(distances(own, theirs))
            if not away:
                note = f"{tokenizer.file}: pre-tokenizer {rule.name}, by how it splits text"
                return Detection(rule.name, "structure", note)
            if nearest is None or away < nearest[0]:
                nearest = (away, rule.name, theirs)
    assert nearest is not None
    _, name, closest = nearest
    mine, other = first_difference(own, closest)
    raise TokenizerError(
        f"{tokenizer.file}: splits text as no pre-tokenizer of llama.cpp does; the nearest is {name}, "
        f"which cuts out {other!r} where this one cuts out {mine!r}; take it with --pre-tokenizer {name}, "
        "or name another with --pre-tokenizer NAME"
    )


Cuts = tuple[tuple[int, int], ...]


def cuts(splitter: Any) -> tuple[Cuts, ...]:
    """Where a pre-tokenizer of the `tokenizers` library cuts the lines of `PROBE`."""
    return tuple(
        tuple((start, stop) for _, (start, stop) in splitter.pre_tokenize_str(text) if stop > start)
        for text in PROBE
    )


@cache
def rule_cuts(form: tuple[str, ...]) -> tuple[Cuts, ...]:
    """Where regular expressions, applied one after the other, cut the lines of `PROBE`."""
    return cuts(pre_tokenizers.Sequence(splits(form)))


def splits(form: Iterable[str]) -> list[Any]:
    """Regular expressions as steps of the `tokenizers` library."""
    return [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in form]


def distances(own: tuple[Cuts, ...], theirs: tuple[Cuts, ...]) -> tuple[int, ...]:
    """For every line of `PROBE`, how many pieces only one of the two cuts out."""
    return tuple(len(set(a) ^ set(b)) for a, b in zip(own, theirs))


def first_difference(own: tuple[Cuts, ...], theirs: tuple[Cuts, ...]) -> tuple[str, str]:
    """The first two pieces of `PROBE` that differ; texts of at most a line, equal when nothing differs."""
    for text, mine, other in zip(PROBE, own, theirs):
        for a, b in zip(mine, other):
            if a != b:
                return text[slice(*a)][:_SHOWN], text[slice(*b)][:_SHOWN]
    return "", "more"


def _steps(node: object, key: str) -> list[dict[str, Any]]:
    if not isinstance(node, dict):
        return []
    inner = node.get(key)
    found = inner if isinstance(inner, list) else [node]
    return [step for step in found if isinstance(step, dict)]


def _marks_spaces(tokenizer: HfTokenizer) -> bool:
    """Whether text is only rewritten from spaces to U+2581, as llama.cpp's gemma4 rule does."""
    normalizers = _steps(tokenizer.document.get("normalizer"), "normalizers")
    splits = _steps(tokenizer.document.get("pre_tokenizer"), "pretokenizers")
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    return normalizers == [spaces] and all(
        step.get("type") == "Split" and step.get("pattern") == {"String": " "} for step in splits
    )


def _post_processors(tokenizer: HfTokenizer) -> list[str]:
    steps = _steps(tokenizer.document.get("post_processor"), "processors")
    return [str(step.get("type")) for step in steps]


@cache
def _data(name: str) -> Any:
    return json.loads(resources.files("ewq_gguf.vocab").joinpath(name).read_text(encoding="utf-8"))
