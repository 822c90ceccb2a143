"""Special tokens, flags and chat templates, by the rules of SpecialVocab in llama.cpp's gguf-py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab import SpecialTokens, Vocabulary, read_special_tokens

from .tiny_tokenizers import added, write


def special_piece(token: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": 0}}


def text_piece(name: str) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": 0}}


def template(single: list[dict[str, Any]], pair: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": single, "pair": pair or [], "special_tokens": {}}


BOS, EOS, SEP, TEXT_A, TEXT_B = (
    *map(special_piece, ("<s>", "</s>", "<sep>")),
    *map(text_piece, "AB"),
)
TOKENS = [added(1, "<s>"), added(2, "</s>"), added(3, "<sep>"), added(4, "<end>")]
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


def read(
    folder: Path,
    *,
    settings: dict[str, Any] | None = None,
    post: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    n_vocab: int | None = None,
    **document: Any,
) -> SpecialTokens:
    write(folder, tokenizer={"added_tokens": TOKENS, "post_processor": post, "model": {}, **document})
    if settings is not None:
        write(folder, tokenizer_config=settings)
    return read_special_tokens(folder, config or {}, n_vocab=n_vocab)


def test_ids_come_by_name_from_the_added_tokens(tmp_path: Path) -> None:
    names = {
        "eos_token": "</s>",
        "bos_token": {"content": "<s>"},
        "pad_token": "<missing>",
        "sep_token": None,
    }
    assert read(tmp_path, settings=names).ids == {"bos": 1, "eos": 2}


def test_config_fills_in_but_does_not_override(tmp_path: Path) -> None:
    config = {"bos_token_id": 9, "eos_token_id": [2, 4], "pad_token_id": 0, "unk_token_id": None}
    assert read(tmp_path, settings=NAMES, config=config).ids == {"bos": 1, "eos": 2, "pad": 0}


def test_the_root_of_config_json_comes_before_text_config(tmp_path: Path) -> None:
    write(tmp_path, config={"eos_token_id": 3, "text_config": {"eos_token_id": 4, "pad_token_id": 1}})
    merged = {"eos_token_id": 4, "pad_token_id": 1}
    assert read_special_tokens(tmp_path, merged).ids == {"eos": 3, "pad": 1}


def test_minus_one_means_none(tmp_path: Path) -> None:
    special = read(tmp_path, config={"pad_token_id": -1, "bos_token_id": 1})
    assert special.ids == {"bos": 1}
    assert "-1" in special.notes[0]


def test_cls_and_sep_stand_in_for_bos_and_eos(tmp_path: Path) -> None:
    settings = {"cls_token": "<s>", "sep_token": "<sep>"}
    assert read(tmp_path, settings=settings).ids == {"bos": 1, "eos": 3, "sep": 3, "cls": 1}


@pytest.mark.parametrize(
    ("post", "settings", "expected"),
    [
        ({"type": "ByteLevel"}, NAMES, {"bos": False, "eos": False}),
        ({"type": "RobertaProcessing"}, NAMES, {"bos": True, "eos": True, "sep": True}),
        (template([BOS, TEXT_A]), NAMES, {"bos": True}),
        (template([BOS, TEXT_A, EOS]), NAMES, {"bos": True, "eos": True}),
        (template([TEXT_A]), NAMES, {}),
        (template([SEP, TEXT_A]), NAMES, {"bos": True}),
        (template([SEP, TEXT_A]), {**NAMES, "cls_token": "<end>"}, {"bos": False}),
        (template([BOS, TEXT_A], [BOS, TEXT_A, EOS, TEXT_B]), NAMES, {"bos": True, "sep": True}),
        (template([BOS, TEXT_A, EOS], [BOS, TEXT_A, EOS, TEXT_B, EOS]), NAMES, {"bos": True, "eos": True, "sep": False}),
        (template([BOS, TEXT_A, EOS], [BOS, TEXT_A, EOS, EOS, TEXT_B, EOS]), NAMES, {"bos": True, "eos": True, "sep": True}),
        (template([BOS, TEXT_A], [BOS, TEXT_A, BOS, TEXT_B]), NAMES, {"bos": True, "sep": False}),
        (
            {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template([BOS, TEXT_A])]},
            NAMES,
            {"bos": True, "eos": False},
        ),
        (template([BOS, TEXT_A]), None, {"bos": True}),
        (None, {**NAMES, "add_bos_token": True, "add_eos_token": False, "add_sep_token": 1}, {"bos": True, "eos": False}),
        (template([BOS, TEXT_A]), {**NAMES, "add_bos_token": False}, {"bos": True}),
    ],
)  # fmt: skip
def test_what_stands_around_a_text(
    tmp_path: Path, post: dict[str, Any] | None, settings: dict[str, Any] | None, expected: dict[str, bool]
) -> None:
    assert read(tmp_path, settings=settings, post=post).add == expected


def test_a_templates_last_token_becomes_eos_and_the_old_one_eot(tmp_path: Path) -> None:
    special = read(tmp_path, settings=NAMES, post=template([BOS, TEXT_A, special_piece("<end>")]))
    assert special.ids == {"bos": 1, "eos": 4, "eot": 2}
    assert special.add == {"bos": True, "eos": True}


@pytest.mark.parametrize(
    ("normalizer", "expected"),
    [
        (None, (None, None)),
        ({"type": "Lowercase"}, (True, None)),
        ({"type": "StripAccents"}, (None, True)),
        ({"type": "BertNormalizer", "lowercase": False, "strip_accents": None}, (False, None)),
        ({"type": "BertNormalizer", "lowercase": True, "strip_accents": True}, (True, True)),
        (
            {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}, {"type": "StripAccents"}]},
            (True, True),
        ),
    ],
)  # fmt: skip
def test_normalizer_flags(
    tmp_path: Path, normalizer: dict[str, Any] | None, expected: tuple[bool | None, bool | None]
) -> None:
    special = read(tmp_path, settings=NAMES, normalizer=normalizer)
    assert (special.normalizer_lowercase, special.normalizer_strip_accents) == expected


class TestChatTemplate:
    def test_of_the_tokenizer_config_comes_first(self, tmp_path: Path) -> None:
        (tmp_path / "chat_template.jinja").write_text("beside", encoding="utf-8")
        assert read(tmp_path, settings={"chat_template": "{{ inside }}"}).chat_template == "{{ inside }}"

    def test_beside_as_jinja(self, tmp_path: Path) -> None:
        (tmp_path / "chat_template.jinja").write_text("{{ bos }}\nö", encoding="utf-8")
        assert read(tmp_path, settings=NAMES).chat_template == "{{ bos }}\nö"

    def test_beside_as_json(self, tmp_path: Path) -> None:
        write(tmp_path, chat_template={"chat_template": "{{ x }}"})
        assert read(tmp_path, settings=NAMES).chat_template == "{{ x }}"

    def test_additional_ones(self, tmp_path: Path) -> None:
        (tmp_path / "chat_template.jinja").write_text("main", encoding="utf-8")
        extra = tmp_path / "additional_chat_templates"
        extra.mkdir()
        for name in ("tool_use", "rag"):
            (extra / f"{name}.jinja").write_text(name, encoding="utf-8")
        expected = (("default", "main"), ("rag", "rag"), ("tool_use", "tool_use"))
        assert read(tmp_path, settings=NAMES).chat_template == expected

    def test_named_ones_become_keys(self, tmp_path: Path) -> None:
        templates = [
            {"name": "default", "template": "A"},
            {"name": "tool use", "template": "B"},
            {"name": "nothing", "template": None},
        ]
        special = read(tmp_path, settings={**NAMES, "chat_template": templates})
        writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
        Vocabulary("gpt2", "qwen2", [b"a"], [1]).with_special(special).add_to(writer)
        found = {key: value.value for key, value in writer.kv_data[0].items() if "chat" in key}
        assert found == {
            "tokenizer.chat_template.tool_use": "B",
            "tokenizer.chat_templates": ["tool_use"],
            "tokenizer.chat_template": "A",
        }
        writer.close()

    def test_is_never_run(self, tmp_path: Path) -> None:
        bomb = "{{ ''.__class__.__mro__ }}{% for i in range(10**9) %}{% endfor %}"
        assert read(tmp_path, settings={"chat_template": bomb}).chat_template == bomb

    @pytest.mark.parametrize("value", [7, {"a": 1}, [1], [{"name": 1, "template": "x"}], [{"template": 3}]])
    def test_of_a_wrong_type_is_refused(self, tmp_path: Path, value: object) -> None:
        with pytest.raises(TokenizerError, match="chat_template"):
            read(tmp_path, settings={"chat_template": value})


def test_keys_order_and_types(tmp_path: Path) -> None:
    vocabulary = Vocabulary(
        model="llama",
        pre="default",
        tokens=[b"a", b"\xff"],
        types=[1, 6],
        scores=[0.0, -1.0],
        merges=["a b"],
        special_ids={"bos": 0, "fsep": 7, "eot": 1},
        add_special={"bos": True, "sep": False, "mask": True},
        chat_template="{{ x }}",
        add_space_prefix=False,
        normalizer_lowercase=True,
    )
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    vocabulary.add_to(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    fields = gguf.GGUFReader(path).fields
    kind = gguf.GGUFValueType
    found = [(key, tuple(field.types)) for key, field in fields.items() if key.startswith("tokenizer.")]
    assert found == [
        ("tokenizer.ggml.add_space_prefix", (kind.BOOL,)),
        ("tokenizer.ggml.model", (kind.STRING,)),
        ("tokenizer.ggml.pre", (kind.STRING,)),
        ("tokenizer.ggml.tokens", (kind.ARRAY, kind.STRING)),
        ("tokenizer.ggml.scores", (kind.ARRAY, kind.FLOAT32)),
        ("tokenizer.ggml.token_type", (kind.ARRAY, kind.INT32)),
        ("tokenizer.ggml.merges", (kind.ARRAY, kind.STRING)),
        ("tokenizer.ggml.bos_token_id", (kind.UINT32,)),
        ("tokenizer.ggml.eot_token_id", (kind.UINT32,)),
        ("tokenizer.ggml.add_bos_token", (kind.BOOL,)),
        ("tokenizer.ggml.add_sep_token", (kind.BOOL,)),
        ("tokenizer.chat_template", (kind.STRING,)),
        ("tokenizer.ggml.normalizer.lowercase", (kind.BOOL,)),
    ]
    assert bytes(fields["tokenizer.ggml.tokens"].parts[fields["tokenizer.ggml.tokens"].data[1]]) == b"\xff"


def test_flags_and_ids_survive_json_numbers(tmp_path: Path) -> None:
    special = read(
        tmp_path, config=json.loads('{"bos_token_id": 1.0, "eos_token_id": true, "unk_token_id": 3}')
    )
    assert special.ids == {"unk": 3}
