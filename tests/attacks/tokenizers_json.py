"""Hostile tokenizer.json, tokenizer_config.json, vocab.json with merges.txt, and chat templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.attacks.attack import (
    Attack,
    Change,
    changed,
    conversion,
    fifo,
    literal,
    placed,
    raw,
    sparse,
    without,
)
from tests.attacks.workshop import Workshop
from tests.tiny.vocabularies import write_bpe

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
_BASE = "qwen2"


def _json(name: str, change: Change, *says: str) -> Attack:
    return changed("tokenizer.json", name, FILE, change, *says, base=_BASE)


def _bytes(name: str, content: bytes, *says: str) -> Attack:
    return raw("tokenizer.json", name, FILE, content, *says, base=_BASE)


def _settings(name: str, change: Change, *says: str) -> Attack:
    return changed("tokenizer_config.json", name, SETTINGS, change, *says, base=_BASE)


def _token(text: str, value: object) -> Change:
    return placed("model", "vocab", text, value=value)


def _merge(merge: object) -> Change:
    """A merge more, at the end."""

    def change(document: dict[str, Any]) -> dict[str, Any]:
        document["model"]["merges"].append(merge)
        return document

    return change


def _spelled(old: str, new: str) -> Change:
    """A change to the text of a document."""
    return lambda document: json.dumps(document).replace(old, new, 1)


def _added(**fields: object) -> Change:
    entry = {"id": 274, "content": "<x>", "special": False, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False}  # fmt: skip
    entry.update(fields)

    def change(document: dict[str, Any]) -> dict[str, Any]:
        document["added_tokens"].append(entry)
        return document

    return change


def _cyclic(document: dict[str, Any]) -> dict[str, Any]:
    """Each of two merges makes what the other one needs."""
    model = document["model"]
    for text in ("aa", "aaa"):
        model["vocab"].setdefault(text, len(model["vocab"]) + 1)
    model["merges"] += [["aaa", ""], ["aa", "a"], ["", "aaa"]]
    return document


def _deep(depth: int) -> bytes:
    return b'{"model": ' * depth + b"1" + b"}" * depth


def _ten_million(document: dict[str, Any]) -> str:
    """A vocabulary that has its last id at ten million."""
    return _spelled('"vocab": {', '"vocab": {"zz": 9999999, ')(document)  # type: ignore[no-any-return]


def _nested_normalizers(document: dict[str, Any]) -> dict[str, Any]:
    for _ in range(20):
        document["normalizer"] = {
            "type": "Sequence",
            "normalizers": [document["normalizer"] or {"type": "NFC"}],
        }
    return document


_TOKENIZER: tuple[Attack, ...] = (
    _bytes("empty file", b"", "not JSON"),
    _bytes("a list", b"[1, 2]", "must be an object"),
    _bytes("null", b"null", "must be an object"),
    _bytes("no UTF-8", b"\xff\xfe{}", "not valid UTF-8"),
    _bytes("lists nested deeply", b"[" * 100_000, "not JSON"),
    _bytes("objects nested deeply", b'{"a":' * 100_000, "not JSON"),
    _bytes("nested as deeply as can be parsed", _deep(900), FILE),
    _bytes("a number of 10,000 digits", b'{"a": ' + b"9" * 10_000 + b"}", "not JSON"),
    _bytes("millions of items", b'{"model": [' + b"[]," * 9_000_000 + b"[]]}", "items"),
    _bytes("cut off", b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0', "not JSON"),
    _json("no model", without("model"), "model must be an object"),
    _json("model of a list", placed("model", value=[]), "model must be an object"),
    _json("an unknown kind of model", placed("model", "type", value="Oracle"), "cannot read it"),
    _json("kind of model of a number", placed("model", "type", value=7), "model.type"),
    _json("no vocabulary", placed("model", "vocab", value=None), "model.vocab"),
    _json("an empty vocabulary", placed("model", "vocab", value={}), "holds no tokens"),
    _json("a vocabulary of a string", placed("model", "vocab", value="abc"), "model.vocab"),
    _json("an id below zero", _token("zz", -1), "is -1"),
    _json("an id twice", _token("zz", 5), "has id 5"),
    _json("an id of a string", _token("zz", "5"), "must be a token id"),
    _json("an id of a fraction", _token("zz", 5.5), "must be a token id"),
    _json("an id of null", _token("zz", None), "must be a token id"),
    _json("an id of true", _token("zz", True), "must be a token id"),
    _json("an id after a gap of 2^31", _token("zz", 2**31), "2147483648"),
    _json("an id of 2^63", _token("zz", 2**63), "not a token id"),
    _json("an id of a hundred digits", _token("zz", 10**100), "not a token id"),
    _json("an id of NaN", _spelled('"vocab": {', '"vocab": {"zz": NaN, '), "must be a token id"),
    _json("an id of 1e400", _spelled('"vocab": {', '"vocab": {"zz": 1e400, '), "must be a token id"),
    _json("a vocabulary of ten million", _ten_million, "9999999"),
    _json("an id that the model has no row for", _token("zz", 4000), "vocab_size"),
    _json("a token of half a surrogate pair", _token("\ud800", 300), "surrogate"),
    _json("a token of 100,000 bytes", _token("x" * 100_000, 300), "bytes long"),
    _json("merges of an object", placed("model", "merges", value={"a": "b"}), "model.merges"),
    _json("a merge of one part", _merge(["a"]), "merges"),
    _json("a merge of three parts", _merge(["a", "b", "c"]), "merges"),
    _json("a merge of numbers", _merge([1, 2]), "merges"),
    _json("a merge without a space", _merge("ab"), "merges"),
    _json("a merge of nothing", _merge(["", ""]), "merges"),
    _json("a merge with nothing", _merge(["a", ""]), "merges"),
    _json("merges that make each other", _cyclic, "merges"),
    _json("a merge twice", _merge("t h"), "merges"),
    _json("a merge of tokens there are not", _merge(["\u4e00", "\u4e01"]), "cannot read it"),
    _json("a merge that makes no token", _merge(["q", "z"]), "cannot read it"),
    _json("a merge of half a surrogate pair", _merge(["\ud800", "a"]), "merges"),
    _json("added tokens of an object", placed("added_tokens", value={"a": 1}), "added_tokens"),
    _json("an added token of a number", placed("added_tokens", value=[3]), "added_tokens[0]"),
    _json("an added token without content", _added(content=None), "added_tokens[1].content"),
    _json("an added token of half a surrogate pair", _added(content="\ud800"), "surrogate"),
    _json("an added token of a megabyte", _added(content="x" * (1 << 20)), "bytes long"),
    _json("an added token below zero", _added(id=-1), "is -1"),
    _json("an added token after a gap of 2^31", _added(id=2**31), "2147483648"),
    _json("an added token of the same id", _added(id=273), "is 273"),
    _json("an added token that is special as a word", _added(special="yes"), "special"),
    _json("a normalizer of a number", placed("normalizer", value=3), "normalizer"),
    _json("an unknown normalizer", placed("normalizer", value={"type": "Nonsense"}), "cannot read it"),
    _json("normalizers nested deeply", _nested_normalizers, "normalizer is nested too deeply"),
    _json("a normalizer that runs a bad expression", placed("normalizer", value={"type": "Replace", "pattern": {"Regex": "("}, "content": ""}), "cannot read it"),
    _json("a pre-tokenizer of a list", placed("pre_tokenizer", value=[]), "pre_tokenizer"),
    _json("a pre-tokenizer that runs a bad expression", placed("pre_tokenizer", value={"type": "Split", "pattern": {"Regex": "(?<"}, "behavior": "Isolated", "invert": False}), "cannot read it"),
    _json("a pre-tokenizer that never ends", placed("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex", value=r"(\w+\s*)+$"), FILE),
    _json("a pre-tokenizer that takes everything", placed("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex", value="(?:(?:[^x]*)*)*x"), "--pre-tokenizer"),
    _json("no pre-tokenizer", placed("pre_tokenizer", value=None), "--pre-tokenizer"),
    _json("a decoder of a string", placed("decoder", value="x"), "decoder"),
    _json("a post-processor of a list", placed("post_processor", value=[1]), "post_processor"),
    _json("a template that names a token there is not", placed("post_processor", value={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<no>", "type_id": 0}}], "pair": [], "special_tokens": {}}), "<no>"),
)  # fmt: skip


def _sparse(folder: Path, workshop: Workshop) -> list[str]:
    model = workshop.checkpoint(_BASE, folder / "m")
    sparse(model / FILE, 1 << 32, (0, b"{"))
    return conversion(model, folder)


def _no_tokenizer(folder: Path, workshop: Workshop) -> list[str]:
    model = workshop.checkpoint(_BASE, folder / "m")
    (model / FILE).unlink()
    return conversion(model, folder)


def _pipe(folder: Path, workshop: Workshop) -> list[str]:
    model = workshop.checkpoint(_BASE, folder / "m")
    fifo(model / FILE)
    return conversion(model, folder)


_CONFIG: tuple[Attack, ...] = (
    raw("tokenizer_config.json", "no JSON", SETTINGS, b"{", "not JSON", base=_BASE),
    raw("tokenizer_config.json", "a list", SETTINGS, b"[]", "must be an object", base=_BASE),
    raw("tokenizer_config.json", "nested deeply", SETTINGS, b"[" * 100_000, "not JSON", base=_BASE),
    _settings("tokens by id in a list", placed("added_tokens_decoder", value=[1]), "added_tokens_decoder"),
    _settings("an id that is no number", placed("added_tokens_decoder", value={"x": {"content": "y"}}), "added_tokens_decoder"),
    _settings("an id below zero", placed("added_tokens_decoder", value={"-1": {"content": "y"}}), "added_tokens_decoder"),
    _settings("an id after a gap of 2^31", placed("added_tokens_decoder", value={"2147483648": {"content": "y"}}), "added_tokens_decoder"),
    _settings("an id of Arabic digits", placed("added_tokens_decoder", value={"\u0661": {"content": "y"}}), "added_tokens_decoder"),
    _settings("a token of a string", placed("added_tokens_decoder", value={"7": "x"}), "added_tokens_decoder"),
    _settings("a token without content", placed("added_tokens_decoder", value={"7": {}}), "content"),
    _settings("a token that strips as a number", placed("added_tokens_decoder", value={"7": {"content": "x", "lstrip": 3}}), "lstrip"),
    _settings("BOS of half a surrogate pair", placed("bos_token", value="\ud83d"), "surrogate"),
    _settings("BOS of a megabyte", placed("bos_token", value="x" * (1 << 20)), "bytes long"),
    changed("tokenizer_config.json", "prefix space as a word", SETTINGS, placed("add_prefix_space", value="no"), "add_prefix_space"),
    _settings("BOS of a number in an object", placed("bos_token", value={"content": 5}), "bos_token"),
)  # fmt: skip


def _old(name: str, vocab: object, merges: bytes, *says: str) -> Attack:
    """vocab.json and merges.txt in place of tokenizer.json; `vocab` None leaves the sound one."""

    def prepare(folder: Path, workshop: Workshop) -> list[str]:
        model = workshop.checkpoint(_BASE, folder / "m")
        write_bpe(model)
        sound = json.loads((model / FILE).read_text(encoding="utf-8"))["model"]
        (model / FILE).unlink()
        content = sound["vocab"] if vocab is None else vocab
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        (model / "vocab.json").write_bytes(text)
        (model / "merges.txt").write_bytes(merges)
        return conversion(model, folder)

    return Attack("vocab.json and merges.txt", name, prepare, says)


_OLD: tuple[Attack, ...] = (
    _old("a vocabulary of a list", [], b"#version\n", "vocab.json", "must be an object"),
    _old("an empty vocabulary", {}, b"#version\n", "vocab.json", "holds no tokens"),
    _old("no JSON", b"{", b"#version\n", "vocab.json", "not JSON"),
    _old("an id below zero", {"a": -1}, b"#version\n", "vocab.json", "is -1"),
    _old("an id twice", {"a": 7, "b": 7}, b"#version\n", "vocab.json", "has id 7"),
    _old("an id after a gap of 2^31", {"a": 2**31}, b"#version\n", "vocab.json", "2147483648"),
    _old("an id of a string", {"a": "0"}, b"#version\n", "vocab.json", "must be a token id"),
    _old("a token of half a surrogate pair", {"\ud800": 0}, b"#version\n", "vocab.json", "surrogate"),
    _old("merges that are no UTF-8", None, b"#version\nt \xff\n", "merges.txt", "byte 11"),
    _old("merges of tokens there are not", None, b"#version\nx\xc3\xbf yy\n", "vocab.json", "cannot read it"),
    _old("a merge twice", None, b"#version\nt h\nh e\nt h\n", "merges"),
    _old("merges beyond all bounds", None, b"a\n" * 8_400_000, "merges.txt", "more than"),
    Attack("vocab.json and merges.txt", "no tokenizer at all", _no_tokenizer, ("merges.txt", "vocab.json")),
    Attack("tokenizer.json", "a pipe in its place", _pipe, ("tokenizer.json", "vocab.json")),
    Attack("tokenizer.json", "four gigabytes of zeros", _sparse, (FILE, "bytes")),
)  # fmt: skip


def _template(name: str, change: Change, *says: str) -> Attack:
    return changed("chat template", name, SETTINGS, change, *says, base=_BASE)


def _jinja(name: str, content: bytes, *says: str) -> Attack:
    return raw("chat template", name, "chat_template.jinja", content, *says, base=_BASE)


_BOMB = "{% for i in range(999999999) %}{% for j in range(999999999) %}x{% endfor %}{% endfor %}"
_CHAT: tuple[Attack, ...] = (
    _template("a number", placed("chat_template", value=5), "chat_template"),
    _template("an object", placed("chat_template", value={"default": "x"}), "chat_template"),
    _template("true", placed("chat_template", value=True), "chat_template"),
    _template("NaN", literal("chat_template", "NaN"), "chat_template"),
    _template("a list of strings", placed("chat_template", value=["x"]), "chat_template[0]"),
    _template("a list of numbers", placed("chat_template", value=[1]), "chat_template[0]"),
    _template("a name of a number", placed("chat_template", value=[{"name": 1, "template": "x"}]), "name"),
    _template("a template of a list", placed("chat_template", value=[{"name": "a", "template": []}]), "template"),
    _template("half a surrogate pair", placed("chat_template", value="\ud800"), "surrogate"),
    _template("half a surrogate pair in a named one", placed("chat_template", value=[{"name": "default", "template": "\udfff"}]), "surrogate"),
    _template("half a surrogate pair behind a bomb", placed("chat_template", value=_BOMB + "\ud800"), "surrogate"),
    _jinja("no UTF-8", b"{{ \xff }}", "not valid UTF-8"),
    _jinja("UTF-16", "{{ messages }}".encode("utf-16"), "not valid UTF-8"),
    _jinja("seventeen megabytes", b"x" * (17 << 20), "more than"),
    raw("chat template", "chat_template.json that is no JSON", "chat_template.json", b"{{ messages }}", "not JSON", base=_BASE),
    raw("chat template", "chat_template.json of a list", "chat_template.json", b"[]", "must be an object", base=_BASE),
    raw("chat template", "chat_template.json with a number", "chat_template.json", b'{"chat_template": 1}', "chat_template", base=_BASE),
)  # fmt: skip

ATTACKS = (*_TOKENIZER, *_CONFIG, *_OLD, *_CHAT)
