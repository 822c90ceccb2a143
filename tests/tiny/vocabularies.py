"""Tiny tokenizers written by hand: SentencePiece, byte-level BPE, and BPE with byte fallback."""

from __future__ import annotations

import json
import struct
from pathlib import Path

SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE = "qwen2"
_SPACE = "\u2581"
_PAIRS = ("th", "he", "in", "er", "an", "re", "on", "at", "en", "nd", "ti", "es", "or", "te", "of")
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | bytes | float) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    return _varint(number << 3) + _varint(value)


def write_sentencepiece(folder: Path, specials: tuple[str, ...] = ("<unk>", "<s>", "</s>")) -> int:
    """A BPE model with byte fallback in tokenizer.model; the number of its pieces."""
    pieces = [(text, 0.0, _UNKNOWN if text == "<unk>" else _CONTROL) for text in specials]
    pieces += [(f"<0x{i:02X}>", 0.0, _BYTE) for i in range(256)]
    texts = [*_PAIRS, f"{_SPACE}th", f"{_SPACE}the", _SPACE, *"etaoinshrdlu"]
    pieces += [(text, -float(rank), _NORMAL) for rank, text in enumerate(texts)]
    data = b"".join(
        _field(1, _field(1, text.encode()) + _field(2, score) + _field(3, kind))
        for text, score, kind in pieces
    )
    ids = {name: specials.index(name) for name in specials}
    trainer = _field(3, 2) + _field(35, 1) + _field(40, ids["<unk>"])
    trainer += _field(41, ids.get("<s>", ids.get("<bos>", 0))) + _field(
        42, ids.get("</s>", ids.get("<eos>", 0))
    )
    data += _field(2, trainer) + _field(
        3, _field(1, b"identity") + _field(3, 1) + _field(4, 0) + _field(5, 1)
    )
    (folder / "tokenizer.model").write_bytes(data)
    return len(pieces)


def write_phi(folder: Path) -> int:
    """Phi-3's way: SentencePiece, and added tokens in tokenizer_config.json and tokenizer.json."""
    n = write_sentencepiece(folder)
    chat = [
        _added(n, "<|endoftext|>"),
        _added(n + 1, "<|assistant|>"),
        _added(n + 2, "<|user|>", special=False),
    ]
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "added_tokens_decoder": {str(n): {k: v for k, v in chat[0].items() if k != "id"}},
        "eos_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": chat}), encoding="utf-8")
    return n + len(chat)


def _byte_letters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, by byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def _added(token_id: int, text: str, special: bool = True) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": text, "special": special, **flags}


def write_bpe(folder: Path, added: tuple[str, ...] = ("<|endoftext|>",)) -> int:
    """A byte-level BPE tokenizer.json that splits as Qwen2's does; the number of its tokens."""
    letters = _byte_letters()
    space = letters[ord(" ")]
    merges = [(a, b) for a, b in _PAIRS] + [(space, "th"), (f"{space}th", "e")]
    texts = [*letters, *("".join(pair) for pair in merges)]
    tokens = [_added(len(texts) + i, text) for i, text in enumerate(added)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    document = {
        "version": "1.0",
        "added_tokens": tokens,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(texts)},
            "merges": [" ".join(pair) for pair in merges],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": added[0], "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(texts) + len(added)


def write_fallback_bpe(folder: Path, specials: tuple[str, ...]) -> int:
    """A tokenizer.json of SentencePiece's kind (spaces as U+2581, bytes as <0x..>); the number of its tokens."""
    texts = [*specials, *(f"<0x{i:02X}>" for i in range(256)), _SPACE, *"etaoinshrdlufg"]
    merges = [(a, b) for a, b in _PAIRS] + [(_SPACE, "th"), (f"{_SPACE}th", "e")]
    texts += ["".join(pair) for pair in merges]
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    document = {
        "version": "1.0",
        "added_tokens": [_added(i, text) for i, text in enumerate(specials)],
        "normalizer": spaces,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(texts)},
            "merges": [" ".join(pair) for pair in merges],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(texts)


def write_plamo(folder: Path) -> int:
    """PLaMo's tokenizer.jsonl; the number of its tokens."""
    rows: list[list[object]] = [["<|plamo:unk|>", 0.0, "UNKNOWN"], ["<|plamo:bos|>", 0.0, "CONTROL"]]
    rows += [
        ["<|plamo:eos|>", 0.0, "CONTROL"],
        ["<|plamo:pad|>", 0.0, "CONTROL"],
        ["<|plamo:op|>", 0.0, "NORMAL"],
    ]
    rows += [[f"<0x{i:02X}>", 0.0, "BYTE"] for i in range(256)]
    rows += [[text, -float(rank), "NORMAL"] for rank, text in enumerate((*_PAIRS, *"etaoinshrdlu "), 1)]
    lines = (json.dumps([*row, None], ensure_ascii=False) + "\n" for row in rows)
    (folder / "tokenizer.jsonl").write_text("".join(lines), encoding="utf-8")
    settings = {f"{kind}_token": f"<|plamo:{kind}|>" for kind in ("bos", "eos", "unk", "pad")}
    settings = {"tokenizer_class": "PlamoTokenizer", "chat_template": "{{ messages }}", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(rows)


def write_wordpiece(folder: Path) -> int:
    """A lower-casing WordPiece tokenizer.json; the number of its tokens."""
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    letters = "etaoinshrdlu"
    texts = [
        *special,
        *letters,
        *(f"##{c}" for c in letters),
        *_PAIRS,
        *(f"##{pair}" for pair in _PAIRS),
        ".",
    ]
    around = [{"SpecialToken": {"id": text, "type_id": 0}} for text in ("[CLS]", "[SEP]")]
    single = [around[0], {"Sequence": {"id": "A", "type_id": 0}}, around[1]]
    document = {
        "version": "1.0",
        "added_tokens": [_added(i, text) for i, text in enumerate(special)],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [
                *single,
                {"Sequence": {"id": "B", "type_id": 1}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 1}},
            ],
            "special_tokens": {
                text: {"id": text, "ids": [texts.index(text)], "tokens": [text]}
                for text in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {text: i for i, text in enumerate(texts)},
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    names = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    settings |= {f"{name}_token": text for name, text in names.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(texts)


def write_rwkv(folder: Path) -> int:
    """RWKV's vocabulary of bytes, an empty line at its place, and pairs; the number of its tokens, id 0 included."""
    texts: list[bytes] = [bytes([i]) for i in range(256)]
    texts += [
        b"\t\t",
        b"\t\n",
        b"\n\t",
        b"\r\n",
        b"\n\n",
        *(pair.encode() for pair in _PAIRS),
        b"it's",
    ]
    lines = []
    for i, token in enumerate(texts, 1):
        literal = repr(token.decode()) if token.isascii() else repr(token)
        lines.append(f"{i} {literal} {len(token)}\n")
    (folder / "rwkv_vocab_v20230424.txt").write_text("".join(lines), encoding="utf-8")
    return len(texts) + 1


def write_unigram(folder: Path) -> int:
    """XLM-RoBERTa's sentencepiece.bpe.model; the number of its pieces."""
    pieces = [("<unk>", 0.0, _UNKNOWN), ("<s>", 0.0, _CONTROL), ("</s>", 0.0, _CONTROL)]
    texts = [_SPACE, *"etaoinshrdlu.", *_PAIRS, f"{_SPACE}th", f"{_SPACE}the", f"{_SPACE}and"]
    pieces += [(text, -1.0 - rank / 8, _NORMAL) for rank, text in enumerate(texts)]
    data = b"".join(
        _field(1, _field(1, text.encode()) + _field(2, score) + _field(3, kind))
        for text, score, kind in pieces
    )
    data += _field(2, _field(3, 1) + _field(40, 0) + _field(41, 1) + _field(42, 2))
    data += _field(3, _field(1, b"identity") + _field(3, 1) + _field(4, 1) + _field(5, 1))
    (folder / "sentencepiece.bpe.model").write_bytes(data)
    settings = {"tokenizer_class": "XLMRobertaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(pieces)
