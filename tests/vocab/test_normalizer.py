"""The normalizer of a tokenizer.json: when it is kept, and that it runs as the library runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, normalizers

from ewq_gguf.vocab import faithful, limits, load_bpe
from ewq_gguf.vocab.normalizer import NORMALIZER_KEY, normalized, unicode_forms

from .gguf_vocab import write_vocab_only
from .test_faithful import MERGED
from .tiny_tokenizers import byte_fallback_document, byte_level_document, write
from .varied import varied_texts


def sequence(*names: str) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [{"type": name} for name in names]}


@pytest.mark.parametrize(
    ("normalizer", "steps"),
    [
        (None, ()),
        ({"type": "NFC"}, ("NFC",)),
        (sequence("NFD", "NFKC"), ("NFD", "NFKC")),
        (sequence("NFC", "Lowercase"), ()),
        (sequence("NFC", "Sequence"), ()),
        (sequence(*["NFC"] * 9), ()),
        ({"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}, ()),
    ],
)
def test_only_unicode_forms_are_kept(normalizer: dict[str, Any] | None, steps: tuple[str, ...]) -> None:
    assert unicode_forms({"normalizer": normalizer}) == steps


@pytest.mark.parametrize("name", ["NFC", "NFD", "NFKC", "NFKD"])
def test_it_is_what_the_library_does(name: str) -> None:
    form = getattr(normalizers, name)()
    # The last two differ in newer Unicode than the library's.
    texts = [*varied_texts(), "\u32ff \ua7f2", "e\u0323\u0898\u0301"]
    assert [normalized(text, [name]) for text in texts] == [form.normalize_str(text) for text in texts]
    # A mark after a line feed, where a long text is cut.
    long = ("x" * 1023 + "e\u0301\n\u0301") * 3200
    assert len(long) > 3 << 20
    assert normalized(long, [name]) == form.normalize_str(long)


def test_the_order_of_steps() -> None:
    assert normalized("e\u0301\ufb01", ["NFKD", "NFC"]) == "\u00e9fi"
    assert normalized("\u00e9\ufb01", ["NFC", "NFD"]) == "e\u0301\ufb01"


def test_faithful_writes_it_and_the_converter_does_not(tmp_path: Path) -> None:
    document = {**byte_level_document(), "normalizer": sequence("NFC")}
    folder = write(tmp_path / "nfc", tokenizer=document)
    converters = load_bpe(folder, {})
    found = {}
    for name, vocabulary in {
        "c": converters,
        "f": faithful(converters),
        "k": faithful(converters, keep_pre=True),
    }.items():
        write_vocab_only(tmp_path / name, vocabulary)
        field = gguf.GGUFReader(tmp_path / name).get_field(NORMALIZER_KEY)
        found[name] = None if field is None else field.contents()
    assert found == {"c": None, "f": ["NFC"], "k": ["NFC"]}
    (note,) = limits(faithful(converters))
    assert "does not run its NFC normalizer" in note
    assert "ewq-gguf's own commands normalize it" in note
    (note,) = limits(converters)
    assert "own commands" not in note


def test_a_chain_with_more_is_not_kept_and_stays_a_limit(tmp_path: Path) -> None:
    folder = write(tmp_path, tokenizer={**byte_level_document(), "normalizer": sequence("NFC", "Lowercase")})
    vocabulary = faithful(load_bpe(folder, {}))
    assert vocabulary.normalizer == ()
    assert [("own commands" in note) for note in limits(vocabulary)] == [False, False]


def test_a_tokenizer_of_sentencepieces_kind_keeps_none(tmp_path: Path) -> None:
    from ewq_gguf.vocab import load_llama_hf

    document = {**byte_fallback_document(MERGED), "normalizer": {"type": "NFC"}}
    folder = write(tmp_path, tokenizer=document)
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).normalizer is not None
    assert faithful(load_llama_hf(folder, {"bos_token_id": 1, "eos_token_id": 2})).normalizer == ()
