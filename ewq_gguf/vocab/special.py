"""Special token ids, add-bos/eos flags, merges and chat templates, from every file that may hold them.

The rules are those of `SpecialVocab` in llama.cpp's gguf-py/gguf/vocab.py, of the version pinned in
third_party/. Chat templates are carried as text and never executed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab.files import (
    MAX_ID,
    as_flag,
    as_mapping,
    as_sequence,
    as_text,
    damaged,
    read_object,
    read_text,
)

DEFAULT_TYPES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
MAX_TEMPLATE_BYTES = 1 << 24

NamedTemplates = tuple[tuple[str, str], ...]
"""Chat templates as (name, text) pairs."""


@dataclass(frozen=True)
class SpecialTokens:
    """What the tokenizer files say beside the tokens themselves.

    `ids` and `add` keep the order in which llama.cpp's converter writes them; `notes` are sentences about
    entries that were ignored.
    """

    ids: dict[str, int] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)
    chat_template: str | NamedTemplates | None = None
    normalizer_lowercase: bool | None = None
    normalizer_strip_accents: bool | None = None
    notes: tuple[str, ...] = ()


def read_special_tokens(
    folder: Path,
    config: Mapping[str, Any],
    *,
    n_vocab: int | None = None,
    types: Sequence[str] = DEFAULT_TYPES,
    tokenizer: dict[str, Any] | None = None,
) -> SpecialTokens:
    """Collect the special tokens of the tokenizer in `folder`.

    `n_vocab` bounds the ids: one at or above it is left out with a note. None takes every id, as the
    converter does for byte-level BPE. `config` is used when the folder holds no config.json. `tokenizer` is
    the content of tokenizer.json when the caller has read it already.

    Raises TokenizerError when a file is damaged.
    """
    reader = _Reader(folder, n_vocab, list(types))
    reader.read_tokenizer_files(tokenizer)
    reader.read_config(config)
    return SpecialTokens(
        reader.ids, reader.add, reader.template, reader.lowercase, reader.strip_accents, tuple(reader.notes)
    )


class _Reader:
    def __init__(self, folder: Path, n_vocab: int | None, types: list[str]) -> None:
        self.folder = folder
        self.n_vocab = n_vocab
        self.types = types
        self.ids: dict[str, int] = {}
        self.add: dict[str, bool] = {}
        self.template: str | NamedTemplates | None = None
        self.lowercase: bool | None = None
        self.strip_accents: bool | None = None
        self.notes: list[str] = []

    def read_tokenizer_files(self, tokenizer: dict[str, Any] | None) -> None:
        file = self.folder / "tokenizer.json"
        if tokenizer is None:
            tokenizer = read_object(file)
        settings_file = self.folder / "tokenizer_config.json"
        settings = read_object(settings_file) or {}
        added: list[Any] = []
        if tokenizer:
            if tokenizer.get("normalizer"):
                self._read_normalizer(as_mapping(tokenizer["normalizer"], file, "normalizer"), file, depth=0)
            if tokenizer.get("added_tokens"):
                added = as_sequence(tokenizer["added_tokens"], file, "added_tokens")
            settings = dict(settings)
            _PostProcessor(self, settings, file).read(tokenizer)
        if not settings:
            return
        self.template = _chat_template(self.folder, settings, settings_file)
        by_content: dict[str, object] = {}
        for entry in added:
            if isinstance(entry, dict) and isinstance(entry.get("content"), str):
                by_content.setdefault(entry["content"], entry.get("id"))
        for kind in self.types:
            flag = settings.get(f"add_{kind}_token")
            if isinstance(flag, bool):
                self.add.setdefault(kind, flag)
            token = settings.get(f"{kind}_token")
            if isinstance(token, dict):
                token = token.get("content")
            if isinstance(token, str):
                self._set(kind, by_content.get(token), file, f"added_tokens id of {token!r:.60}")

    def read_config(self, config: Mapping[str, Any]) -> None:
        file = self.folder / "config.json"
        # The caller's config has text_config merged over the root; the file keeps the root's precedence.
        content: Mapping[str, Any] = read_object(file) or config
        nested = content.get("text_config")
        for kind in self.types:
            key = f"{kind}_token_id"
            value = content.get(key)
            if value is None and isinstance(nested, dict):
                value = nested.get(key)
            if value == -1:
                # Several families write -1 for "there is none".
                self.notes.append(f"{file}: {key} is -1, taken as none")
                continue
            self._set(kind, value, file, key)

    def _set(self, kind: str, value: object, file: Path, place: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            return
        if not 0 <= value <= MAX_ID:
            raise damaged(file, place, f"is {value!r:.24}, not a token id")
        if self.n_vocab is not None and value >= self.n_vocab:
            self.notes.append(f"{file}: {place} is {value}, beyond the {self.n_vocab} tokens, left out")
            return
        self.ids.setdefault(kind, value)

    def _read_normalizer(self, node: Mapping[str, Any], file: Path, depth: int) -> None:
        kind = node.get("type")
        if kind == "Lowercase":
            self.lowercase = True
        elif kind == "StripAccents":
            self.strip_accents = True
        elif kind == "BertNormalizer":
            # strip_accents is null in most files: "as lowercase says", for which GGUF has no value.
            if node.get("lowercase") is not None:
                self.lowercase = as_flag(node["lowercase"], file, "normalizer.lowercase")
            if "strip_accents" in node:
                flag = node["strip_accents"]
                self.strip_accents = None if flag is None else as_flag(flag, file, "normalizer.strip_accents")
        elif kind == "Sequence":
            if depth > 8:
                raise damaged(file, "normalizer", "is nested too deeply")
            for child in as_sequence(node.get("normalizers", []), file, "normalizer.normalizers"):
                self._read_normalizer(as_mapping(child, file, "normalizer"), file, depth + 1)


class _PostProcessor:
    """Reads from tokenizer.json's post_processor which special tokens are put around a text.

    It may complete `settings` (the content of tokenizer_config.json), but never when that file is empty or
    absent.
    """

    def __init__(self, reader: _Reader, settings: dict[str, Any], file: Path) -> None:
        self.reader = reader
        self.settings = settings
        self.known = bool(settings)
        self.file = file
        self.bos = _content(settings.get("bos_token"))
        self.cls = _content(settings.get("cls_token"))
        self.eos = _content(settings.get("eos_token"))
        self.sep = _content(settings.get("sep_token"))

    def read(self, tokenizer: Mapping[str, Any]) -> None:
        if not self.bos and self.cls and self.known:
            self.settings["bos_token"] = self.bos = self.cls
        if not self.eos and self.sep and self.known:
            self.settings["eos_token"] = self.eos = self.sep
        root = tokenizer.get("post_processor")
        if not root:
            return
        root = as_mapping(root, self.file, "post_processor")
        for step in as_sequence(root.get("processors", [root]), self.file, "post_processor.processors"):
            step = as_mapping(step, self.file, "post_processor")
            kind = step.get("type")
            if kind == "ByteLevel":
                self.reader.add.setdefault("bos", False)
                self.reader.add.setdefault("eos", False)
            elif kind == "RobertaProcessing":
                self._roberta(step)
            elif kind == "TemplateProcessing":
                self._template(step)

    def _roberta(self, step: Mapping[str, Any]) -> None:
        for kind in ("bos", "eos", "sep"):
            self.reader.add[kind] = True
        if not self.cls and self.known:
            self.settings["cls_token"] = self.cls = self._pair_text(step, "cls", self.bos)
        if not self.sep and self.known:
            self.settings["sep_token"] = self.sep = self._pair_text(step, "sep", self.eos)

    def _pair_text(self, step: Mapping[str, Any], key: str, default: str | None) -> str | None:
        value = step.get(key)
        if value is None:
            return default
        pair = as_sequence(value, self.file, f"post_processor.{key}")
        if not pair:
            raise damaged(self.file, f"post_processor.{key}", "is empty")
        return as_text(pair[0], self.file, f"post_processor.{key}[0]")

    def _template(self, step: Mapping[str, Any]) -> None:
        single = self._pieces(step, "single")
        pair = self._pieces(step, "pair")
        first = last = None
        if len(single) > 1:
            first = _piece(single[0], "SpecialToken")
            if first:
                self._leading(first)
            last = _piece(single[-1], "SpecialToken")
            if last:
                self._trailing(last)
        if not pair:
            return
        if first and _piece(pair[0], "SpecialToken") == first:
            pair = pair[1:]
        elif not pair:
            return
        if last and pair and _piece(pair[-1], "SpecialToken") == last:
            pair = pair[:-1]
        if len(pair) < 3 or _piece(pair[0], "Sequence") != "A" or _piece(pair[-1], "Sequence") != "B":
            return
        middle = pair[1:-1]
        separators = (self.sep, self.eos)
        entry = _piece(middle[0], "SpecialToken")
        add = bool(entry) and entry in separators and not last
        if len(middle) == 2:
            entry = _piece(middle[1], "SpecialToken")
            add = add or (bool(entry) and entry in separators)
        self.reader.add["sep"] = add
        if add and not self.sep and self.known:
            self.settings["sep_token"] = self.eos

    def _leading(self, token: str) -> None:
        if not self.known:
            self.bos = token
        elif token not in (self.bos, self.cls):
            if not self.bos:
                self.settings["bos_token"] = self.bos = token
            if not self.cls:
                self.settings["cls_token"] = self.cls = token
        self.reader.add["bos"] = token in (self.bos, self.cls)

    def _trailing(self, token: str) -> None:
        if not self.known:
            self.eos = token
        elif token != self.eos:
            # The template's last token becomes EOS; the configured one is kept as end of turn, or of message.
            for spare in ("eot", "eom"):
                if spare not in self.reader.types:
                    self.reader.types.append(spare)
                    self.settings[f"{spare}_token"] = self.eos
                    break
            self.settings["eos_token"] = self.eos = token
        self.reader.add["eos"] = token == self.eos

    def _pieces(self, step: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
        value = step.get(key)
        # A template may be spelled as text ("[CLS] $A"); tokenizers writes it back as a list.
        if value is None or isinstance(value, str):
            return []
        place = f"post_processor.{key}"
        return [as_mapping(piece, self.file, place) for piece in as_sequence(value, self.file, place)]


def _piece(piece: Mapping[str, Any], kind: str) -> str | None:
    value = piece.get(kind)
    name = value.get("id") if isinstance(value, dict) else None
    return name if isinstance(name, str) else None


def _content(token: object) -> str | None:
    # The converter compares a token spelled as an object with a plain string, so that it never matches.
    return token if isinstance(token, str) else None


def _chat_template(
    folder: Path, settings: Mapping[str, Any], settings_file: Path
) -> str | NamedTemplates | None:
    value: object
    if "chat_template" in settings:
        value, file = settings["chat_template"], settings_file
    else:
        value, file = _template_beside(folder)
    if value is None:
        return None
    if isinstance(value, str):
        return as_text(value, file, "chat_template")
    if not isinstance(value, list):
        raise damaged(file, "chat_template", "must be a string or a list of named templates")
    named: list[tuple[str, str]] = []
    for index, item in enumerate(value):
        place = f"chat_template[{index}]"
        entry = as_mapping(item, file, place)
        if entry.get("template") is not None:
            name = as_text(entry.get("name", ""), file, f"{place}.name")
            named.append((name, as_text(entry["template"], file, f"{place}.template")))
    return tuple(named)


def _template_beside(folder: Path) -> tuple[object, Path]:
    file = folder / "chat_template.jinja"
    text = read_text(file, MAX_TEMPLATE_BYTES)
    if text is not None:
        extra = folder / "additional_chat_templates"
        try:
            others = sorted(path for path in extra.glob("*.jinja") if path.is_file())
        except OSError as error:
            raise TokenizerError(f"{extra}: cannot be listed ({error.strerror}); check the folder") from error
        if not others:
            return text, file
        named = [(path.stem, read_text(path, MAX_TEMPLATE_BYTES) or "") for path in others]
        return [{"name": name, "template": content} for name, content in (("default", text), *named)], file
    file = folder / "chat_template.json"
    content = read_object(file)
    return (content.get("chat_template") if content else None), file
