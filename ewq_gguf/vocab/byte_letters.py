"""GPT-2's way to write any bytes as visible characters, which byte-level BPE vocabularies use in GGUF files."""

from __future__ import annotations


def byte_letters() -> list[str]:
    """The visible character that stands for each of the 256 bytes."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = (byte for byte in range(256) if byte not in visible)
    moved = {byte: chr(256 + index) for index, byte in enumerate(hidden)}
    return [moved.get(byte, chr(byte)) for byte in range(256)]
