"""The reference model with a byte-level tokenizer, which every engine's reader of GGUF tokenizers knows.

The weights are the reference model's own, byte for byte. Its SentencePiece pieces are written as byte-level BPE
with the same ids, so that programs whose readers know no other kind (OpenVINO) or read SentencePiece scores
as a unigram model (candle's) can be compared by their text as well.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from sentencepiece import SentencePieceProcessor

_SPACE = "\u2581"


def byte_level_checkpoint(model: Path, folder: Path) -> Path:
    """Make the checkpoint in `folder` unless it is there; the folder."""
    done = folder / "tokenizer.json"
    if done.is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        if file.suffix in (".json", ".safetensors"):
            shutil.copyfile(file, folder / file.name)
    described = {
        "tokenizer_class": "GPT2TokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": False,
        "add_eos_token": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=1))
    processor = SentencePieceProcessor(str(model / "tokenizer.model"))
    done.write_text(json.dumps(tokenizer_document(processor)), encoding="utf-8")
    return folder


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in byte-level BPE: itself where printable, else from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def tokenizer_document(processor: SentencePieceProcessor) -> dict[str, object]:
    """A tokenizer.json with the same ids as a SentencePiece BPE model with byte fallback.

    A byte whose character is a piece of its own keeps its `<0x..>` spelling, which no text yields.
    """
    letters = byte_alphabet()
    pieces = [processor.id_to_piece(number) for number in range(processor.get_piece_size())]
    spelled: dict[str, int] = {}
    for number, piece in enumerate(pieces):
        if not (processor.is_control(number) or processor.is_unknown(number) or processor.is_byte(number)):
            plain = piece.replace(_SPACE, " ").encode()
            spelled.setdefault("".join(letters[byte] for byte in plain), number)
    vocabulary = dict(spelled)
    for number, piece in enumerate(pieces):
        if processor.is_byte(number) and letters[int(piece[1:-1], 16)] not in vocabulary:
            vocabulary[letters[int(piece[1:-1], 16)]] = number
    taken = set(vocabulary.values())
    vocabulary |= {piece: number for number, piece in enumerate(pieces) if number not in taken}
    merges = [
        f"{word[:cut]} {word[cut:]}"
        for word in sorted(spelled, key=lambda word: spelled[word])
        for cut in range(1, len(word))
        if word[:cut] in vocabulary and word[cut:] in vocabulary
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = [
        number
        for number in range(len(pieces))
        if processor.is_control(number) or processor.is_unknown(number)
    ]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": pieces[number], "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for number in special
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, level],
        },
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": dict(sorted(vocabulary.items(), key=lambda entry: entry[1])), "merges": merges,
        },
    }  # fmt: skip
