"""Another of llama.cpp's pre-tokenizers is taken by the token ids it gives, not by where it cuts."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from ewq_gguf.vocab import Vocabulary, faithful, limits, load_bpe, load_vocabulary
from ewq_gguf.vocab.closest import closest_rule, own_cuts
from ewq_gguf.vocab.pretokenizer import PROBE, rule_of, rules
from ewq_gguf.vocab.trial import Trial

from .test_faithful import ids
from .tiny_tokenizers import byte_level_document, write

TEKKEN = next(rule for rule in rules() if rule.name == "tekken").forms[0][0]


def with_token(document: dict[str, Any], left: str, right: str) -> None:
    vocab = document["model"]["vocab"]
    vocab[left + right] = len(vocab)
    document["model"]["merges"].append([left, right])


def test_other_cuts_that_give_the_same_ids_change_nothing(tmp_path: Path) -> None:
    vocabulary = load_bpe(write(tmp_path, tokenizer=byte_level_document()), {}, pre="dbrx")
    own = own_cuts(vocabulary)
    current = rule_of("dbrx")
    assert current is not None
    assert own is not None
    # It keeps up to three digits together, of which no token is made.
    assert closest_rule(vocabulary, current, own) is None
    ours = faithful(vocabulary)
    assert ours.pre == "dbrx"
    assert ours.notes == vocabulary.notes


def test_a_token_over_a_cut_makes_the_difference(tmp_path: Path) -> None:
    document = byte_level_document()
    with_token(document, "2", "2")
    folder = write(tmp_path, tokenizer=document)
    ours = faithful(load_bpe(folder, {}, pre="dbrx"))
    assert ours.pre == "qwen2"
    assert "cuts out '10' where the tokenizer cuts out '1'" in ours.notes[-1]
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ids(tmp_path, ours, ["1 22 333"]) == [original.encode("1 22 333").ids]


def tokenizer_of(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer that the metadata of a tekken.json stands for."""
    names = {token.decode(): number for number, token in enumerate(vocabulary.tokens)}
    merges = [(left, right) for left, right in (merge.split(" ") for merge in vocabulary.merges)]
    found = Tokenizer(models.BPE(vocab=names, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(TEKKEN), behavior="isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    return found


def tekken_folder(path: Path) -> Path:
    """tekken.json with a few words, a token that starts with a Turkish suffix, and words with marks."""
    words = [*["'da", "ने", "कि", "की", "में", "हि", "वि", "ภา", "ษา", "ไท", "बा", "रि", "सी", "नी", "ति"], "'d"]
    # Without these, rules would do that cut hardly anywhere.
    words += ["  ", " f", "});", "...\n\n", "//", "，世界", "漢字"]
    pieces = [bytes([byte]) for byte in range(256)]
    for word in words:
        data = word.encode()
        pieces += [data[:end] for end in range(2, len(data) + 1)]
    pieces = list(dict.fromkeys(pieces))
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
        for rank, piece in enumerate(pieces)
    ]
    config = {
        "pattern": TEKKEN,
        "num_vocab_tokens": len(vocab),
        "default_vocab_size": len(vocab) + 20,
        "default_num_special_tokens": 20,
        "version": "v3",
    }
    return write(path, tekken={"config": config, "vocab": vocab})


def test_a_rule_that_loses_something_is_offered_and_not_taken(tmp_path: Path) -> None:
    folder = tekken_folder(tmp_path)
    converters = load_vocabulary(folder, {})
    ours = faithful(converters)
    assert ours.pre == "tekken"
    (note,) = ours.notes[len(converters.notes) :]
    assert "under llama.cpp's pre-tokenizer tekken" in note
    assert "tokens are never found" in note
    assert '"Ankara\'dan"' in note
    match = re.search(r"--pre-tokenizer (\S+) finds them", note)
    assert match is not None
    named = load_vocabulary(folder, {}, pre=match[1])
    assert faithful(named, keep_pre=True).pre == named.pre
    hindi, turkish = "में की", "Ankara'da"
    before, after = (ids(tmp_path, vocabulary, [hindi, turkish]) for vocabulary in (converters, named))
    own = tokenizer_of(converters)
    wanted = [own.encode(hindi).ids, own.encode(turkish).ids]
    assert [a == b for a, b in zip(before, wanted)] == [False, True]
    assert [a == b for a, b in zip(after, wanted)] == [True, False]


def test_the_limits_are_those_of_the_files_own_pattern(tmp_path: Path) -> None:
    folder = tekken_folder(tmp_path)
    (note,) = limits(load_vocabulary(folder, {}))
    assert "pre-tokenizer tekken only comes close" in note
    (note,) = limits(load_vocabulary(folder, {}, pre="granite-embed-multi-97m"))
    assert "pre-tokenizer granite-embed-multi-97m only comes close" in note


def test_a_rule_that_takes_words_whole_is_tried_so(tmp_path: Path) -> None:
    document = byte_level_document()
    vocab = document["model"]["vocab"]
    # A word of PROBE that no merge makes.
    vocab["foo"] = len(vocab)
    vocabulary = load_bpe(write(tmp_path, tokenizer=document), {}, pre="qwen2")
    trial = Trial.of(vocabulary)
    assert trial is not None
    found = {name: trial.on_probe(rule) for name in ("dbrx", "glm4") if (rule := rule_of(name)) is not None}
    line = next(number for number, text in enumerate(PROBE) if text.startswith("x = foo.bar"))
    assert found["dbrx"][line] == 0
    assert trial.torn(rule_of("dbrx") or rules()[0]) == ()
    assert "foo" in trial.torn(rule_of("glm4") or rules()[0])


@pytest.mark.parametrize("pre", ["tekken", "no such name"])
def test_metadata_alone_tells_nothing(pre: str) -> None:
    vocabulary = Vocabulary("gpt2", pre, [b"a"], [1])
    assert Trial.of(vocabulary) is None
    assert faithful(vocabulary) is vocabulary
