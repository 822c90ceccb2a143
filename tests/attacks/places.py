"""Hostile places: links, pipes and folders where files belong, and what an earlier run left beside the output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.attacks.attack import OUT, Attack, conversion, fifo, linked, sparse
from tests.attacks.workshop import Workshop

SHARD = "model.safetensors"


def _in_checkpoint(
    name: str, file: str, put: Callable[[Path], object], *says: str, base: str = "llama"
) -> Attack:
    """A sound checkpoint in which something else stands in the place of `file`."""

    def prepare(folder: Path, workshop: Workshop) -> list[str]:
        model = workshop.checkpoint(base, folder / "m")
        (folder / "secret").write_text('{"secret": "of the user"}', encoding="utf-8")
        path = model / file
        if path.is_file():
            path.unlink()
        put(path)
        return conversion(model, folder)

    return Attack("links and pipes", name, prepare, says)


def _link(to: str) -> Callable[[Path], object]:
    return lambda path: linked(path, to)


def _folder_of_templates(folder: Path, workshop: Workshop) -> list[str]:
    model = workshop.checkpoint("llama", folder / "m")
    (folder / "private").mkdir()
    (folder / "private" / "key.jinja").write_text("secret", encoding="utf-8")
    (model / "chat_template.jinja").write_text("x", encoding="utf-8")
    linked(model / "additional_chat_templates", folder / "private")
    return conversion(model, folder)


def _named(name: str, make: Callable[[Path], object], *says: str, to: str = "m") -> Attack:
    """A MODEL that is no model."""

    def prepare(folder: Path, workshop: Workshop) -> list[str]:
        make(folder / to)
        return conversion(folder / to, folder)

    return Attack("links and pipes", f"MODEL: {name}", prepare, says)


def _too_long(folder: Path, workshop: Workshop) -> list[str]:
    return conversion(folder / ("x" * 5000), folder)


def _zero_byte(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_bytes(b"{}")


_LINKS: tuple[Attack, ...] = (
    _in_checkpoint("config.json is a link to /dev/zero", "config.json", _link("/dev/zero"), "config.json"),
    _in_checkpoint("config.json is a link to itself", "config.json", _link("config.json"), "config.json"),
    _in_checkpoint("config.json is a pipe", "config.json", fifo, "config.json"),
    _in_checkpoint("config.json is a folder", "config.json", lambda path: path.mkdir(), "config.json"),
    _in_checkpoint("config.json is a link out of the folder", "config.json", _link("../secret"), "config.json", "outside"),
    _in_checkpoint("config.json is a link to a system file", "config.json", _link("/etc/passwd"), "config.json", "outside"),
    _in_checkpoint("config.json of a terabyte", "config.json", lambda path: sparse(path, 1 << 40), "config.json"),
    _in_checkpoint("the shard is a link to /dev/zero", SHARD, _link("/dev/zero"), "model"),
    _in_checkpoint("the shard is a link to itself", SHARD, _link(SHARD), "model"),
    _in_checkpoint("the shard is a pipe", SHARD, fifo, "model*.safetensors"),
    _in_checkpoint("the shard is a folder", SHARD, lambda path: path.mkdir(), "model*.safetensors"),
    _in_checkpoint("the shard is a link to a system file", SHARD, _link("/etc/passwd"), SHARD, "outside"),
    _in_checkpoint("the chat template is a link out of the folder", "chat_template.jinja", _link("../secret"), "chat_template.jinja", "outside"),
    _in_checkpoint("the chat template is a link to a system file", "chat_template.jinja", _link("/etc/passwd"), "chat_template.jinja", "outside"),
    _in_checkpoint("the tokenizer is a link out of the folder", "tokenizer.model", _link("../secret"), "tokenizer.model", "outside"),
    _in_checkpoint("tokenizer_config.json is a link out of the folder", "tokenizer_config.json", _link("../secret"), "tokenizer_config.json", "outside"),
    _in_checkpoint("the model card is a link out of the folder", "README.md", _link("../secret"), "README.md", "outside"),
    _in_checkpoint("generation_config.json is a link out of the folder", "generation_config.json", _link("../secret"), "generation_config.json", "outside"),
    _in_checkpoint("added_tokens.json is a link through two folders", "added_tokens.json", _link("../m/../secret"), "added_tokens.json", "outside"),
    Attack("links and pipes", "a folder of templates elsewhere", _folder_of_templates, ("additional_chat_templates", "outside")),
    _named("nothing there", lambda path: None, "does not exist"),
    _named("a pipe", fifo, "m"),
    _named("a link to itself", _link("m"), "m"),
    _named("a link to /dev/zero", _link("/dev/zero"), "m"),
    _named("/dev/zero by a name that says GGUF", _link("/dev/zero"), "m.gguf", to="m.gguf"),
    _named("a pipe by a name that says GGUF", fifo, "m.gguf", to="m.gguf"),
    _named("an empty folder", lambda path: path.mkdir(), "config.json"),
    _named("a folder of nothing but a config", _zero_byte, "model*.safetensors"),
    _named("a text", lambda path: path.write_text("hello"), "neither a folder"),
    _named("a pickle", lambda path: path.write_bytes(b"\x80\x02}q\x00."), "neither a folder", to="pytorch_model.bin"),
    Attack("links and pipes", "MODEL: a name too long for any disk", _too_long, ("xxx", "too long")),
)  # fmt: skip


def _journal(name: str, put: Callable[[Path], object], *says: str, resume: bool = True) -> Attack:
    """Something hostile in the place of the journal of the output."""

    def prepare(folder: Path, workshop: Workshop) -> list[str]:
        put(folder / OUT / "model.gguf.part.journal")
        return conversion(workshop.sound("llama"), folder, *(["--resume"] if resume else []))

    return Attack("journal beside the output", name, prepare, ("model.gguf.part", *says))


def _lines(*lines: object) -> Callable[[Path], object]:
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)

    def put(path: Path) -> None:
        path.write_text(text, encoding="utf-8")
        # Kept by a run that refuses: the part file that it belongs to.
        path.with_suffix("").write_bytes(b"GGUF")

    return put


def _of(**facts: object) -> dict[str, object]:
    return {"format": "ewq-gguf journal", "facts": facts, "files": ["model.gguf.part"]}


_RECORD = {"tensor": "token_embd.weight", "checksum": "crc32:00000000"}
_JOURNALS: tuple[Attack, ...] = (
    _journal("of another source", _lines(_of(source="x"), _RECORD), "another"),
    _journal("of another plan", _lines(_of(plan=5), _RECORD), "another"),
    _journal("of facts without end", _lines(_of(**{str(i): i for i in range(10_000)}), _RECORD), "another"),
    _journal("a folder", lambda path: path.mkdir(), "journal"),
    _journal("a folder, without --resume", lambda path: path.mkdir(), "journal", resume=False),
    _journal("a pipe", fifo, "journal"),
    _journal("a pipe, without --resume", fifo, "journal", resume=False),
    _journal("a link to a file of the user's", lambda path: linked(path, _precious(path)), "journal"),
    _journal("a link to a file of the user's, without --resume", lambda path: linked(path, _precious(path)), "journal", resume=False),
    _journal("a link to /dev/zero", _link("/dev/zero"), "journal"),
    _journal("a link to itself", _link("model.gguf.part.journal"), "journal"),
    _journal("a terabyte", lambda path: sparse(path, 1 << 40), "journal"),
)  # fmt: skip


def _precious(journal: Path) -> Path:
    path = journal.parent / "precious.txt"
    path.write_text("must not be written to", encoding="utf-8")
    return path


ATTACKS: tuple[Attack, ...] = (*_LINKS, *_JOURNALS)
