"""Hostile plans, classifiers and tables, questions, baseline files and journals."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ewq_gguf.evaluation.tiny_model import vocabulary
from tests.attacks.attack import OUT, Attack, conversion, fifo, linked, sparse
from tests.attacks.workshop import Workshop

Content = bytes | Callable[[Path], object]


def _put(path: Path, content: Content) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)


def _encoded(document: object) -> bytes:
    return json.dumps(document).encode()


def _plan(name: str, content: Content, *says: str, command: str = "convert") -> Attack:
    def prepare(folder: Path, workshop: Workshop) -> list[str]:
        path = folder / "plan.json"
        _put(path, content)
        if command == "convert":
            return conversion(workshop.sound("llama"), folder, "--plan", str(path))
        if command == "diff":
            return ["plan", "diff", str(workshop.gguf()), str(path)]
        return ["plan", command, str(path)]

    return Attack(
        "plan", name if command == "convert" else f"{command}: {name}", prepare, ("plan.json", *says)
    )


_HEAD = {
    "format": "ewq-gguf plan",
    "version": 1,
    "source": {"arch": "llama"},
    "method": "x",
    "parameters": {},
}


def _listed(*tensors: object, **head: object) -> bytes:
    return _encoded({**_HEAD, "tensors": list(tensors), **head})


_EMBEDDING = {"name": "token_embd.weight", "type": "F16", "shape": [320, 64]}
_PLANS: tuple[Attack, ...] = (
    _plan("empty file", b"", "not valid JSON"),
    _plan("a list", b"[]", "object"),
    _plan("another JSON document", b"{}", "not a version 1 plan"),
    _plan("another version", _encoded({**_HEAD, "version": 2, "tensors": []}), "not a version 1 plan"),
    _plan("a version of 1e400", b'{"format": "ewq-gguf plan", "version": 1e400}', "not a version 1 plan"),
    _plan("nested deeply", b'{"tensors":' * 100_000, "nested too deeply"),
    _plan("nested as deeply as can be parsed", b'{"format": "ewq-gguf plan", "version": 1, "parameters": ' + b'{"a":' * 900 + b"1" + b"}" * 901, "nested too deeply"),
    _plan("millions of items", b'{"tensors": [' + b"1," * 6_000_000 + b"1]}", "items"),
    _plan("a key twice", b'{"format": "ewq-gguf plan", "format": "x"}', "twice"),
    _plan("no UTF-8", b'{"a": "\xff"}', "UTF-8"),
    _plan("no tensors", _encoded(_HEAD), "tensors"),
    _plan("tensors of an object", _encoded({**_HEAD, "tensors": {"a": "F16"}}), "tensors"),
    _plan("a tensor of a string", _listed("token_embd.weight"), "entry 0"),
    _plan("a tensor without a name", _listed({"type": "F16"}), "entry 0"),
    _plan("a tensor without a type", _listed({"name": "token_embd.weight"}), "entry 0"),
    _plan("a type of a number", _listed({**_EMBEDDING, "type": 1}), "entry 0"),
    _plan("an unknown type", _listed({**_EMBEDDING, "type": "Q99_Z"}), "Q99_Z"),
    _plan("a type of ten megabytes", _listed({**_EMBEDDING, "type": "Q" * 10_000_000}), "QQQ"),
    _plan("a type of control characters", _listed({**_EMBEDDING, "type": "\x1b[2J"}), "x1b"),
    _plan("a type of integers", _listed({**_EMBEDDING, "type": "I8"}), "I8"),
    _plan("a preset for a type", _listed({**_EMBEDDING, "type": "Q4_K_M"}), "preset"),
    _plan("a tensor twice", _listed(_EMBEDDING, _EMBEDDING), "token_embd.weight", "twice"),
    _plan("a tensor that the model does not have", _listed({"name": "blk.9.no.weight", "type": "F16"}), "blk.9.no.weight"),
    _plan("a tensor named like a path", _listed({"name": "../../../etc/passwd", "type": "F16"}), "../../../etc/passwd"),
    _plan("a tensor of a megabyte's name", _listed({"name": "n" * (1 << 20), "type": "F16"}), "does not have"),
    _plan("tensors are missing", _listed(_EMBEDDING), "has no type for tensor"),
    _plan("a pipe", fifo, "not a file"),
    _plan("a folder", lambda path: path.mkdir(), "a folder"),
    _plan("a link to /dev/zero", lambda path: linked(path, "/dev/zero"), "not a file"),
    _plan("a link to itself", lambda path: linked(path, "plan.json"), "plan.json"),
    _plan("a link to nothing", lambda path: linked(path, "nowhere"), "plan.json"),
    _plan("a terabyte", lambda path: sparse(path, 1 << 40), "bytes"),
    _plan("no tensors", _encoded(_HEAD), "tensors", command="show"),
    _plan("no source", _encoded({"format": "ewq-gguf plan", "version": 1, "tensors": []}), "source", command="show"),
    _plan("no shape", _listed({"name": "a", "type": "F16"}), "shape", command="show"),
    _plan("a shape of a number", _listed({"name": "a", "type": "F16", "shape": 64}), "shape", command="show"),
    _plan("a shape below zero", _listed({"name": "a", "type": "F16", "shape": [-1, 64]}), "shape", command="show"),
    _plan("a shape of 1e400", b'{"format": "ewq-gguf plan", "version": 1, "source": {}, "tensors": [{"name": "a", "type": "F16", "shape": [1e400]}]}', "shape", command="show"),
    _plan("a shape of 2^63", _listed({"name": "a", "type": "F16", "shape": [2**63]}), "shape", command="show"),
    _plan("a shape of four hundred dimensions", _listed({"name": "a", "type": "F16", "shape": [2**47] * 400}), "shape", command="show"),
    _plan("rows that do not fit their blocks", _listed({"name": "a", "type": "Q4_K", "shape": [2, 100]}), "Q4_K", command="show"),
    _plan("a name of half a surrogate pair", _listed({"name": "\ud800", "type": "F16", "shape": [2]}), "surrogate", command="show"),
    _plan("a wanted type there is not", _listed({**_EMBEDDING, "wanted": "Q99"}), "Q99", command="show"),
    _plan("no tensors", _encoded(_HEAD), "tensors", command="diff"),
    _plan("an unknown type", _listed({**_EMBEDDING, "type": "Q99_Z"}), "Q99_Z", command="export"),
)  # fmt: skip


def _forest(name: str, content: Content, *says: str) -> Attack:
    """A classifier for FastEWQ."""

    def prepare(folder: Path, workshop: Workshop) -> list[str]:
        path = folder / "forest.json"
        _put(path, content)
        return ["fastewq", "show", str(workshop.sound("llama")), "--forest", str(path)]

    return Attack("classifier", name, prepare, ("forest.json", *says))


_LEAF = {"feature": [0], "threshold": [0.0], "left": [-1], "right": [-1], "leaves": [[1.0, 0.0]]}


def _trees(*trees: object, **head: object) -> bytes:
    return _encoded({"format": "ewq-gguf forest", "version": 1, "features": ["num_parameters"], "trees": list(trees), "digest": "", **head})  # fmt: skip


_FORESTS: tuple[Attack, ...] = (
    _forest("a pickle", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94", "forest.json"),
    _forest("no JSON", b"{", "not valid JSON"),
    _forest("a list", b"[]", "object"),
    _forest("another document", b"{}", "version 1"),
    _forest("no trees", _trees(), "no trees"),
    _forest("a tree of a string", _trees("x"), "tree 0"),
    _forest("a tree of nothing", _trees({}), "tree 0"),
    _forest("a child before its parent", _trees({**_LEAF, "feature": [0, 0], "threshold": [0.0, 0.0], "left": [0, -1], "right": [1, -1]}), "tree 0"),
    _forest("a child that is not there", _trees({**_LEAF, "left": [7], "right": [8], "leaves": []}), "tree 0"),
    _forest("a feature that is not there", _trees({**_LEAF, "feature": [2**40]}), "tree 0"),
    _forest("a threshold of NaN", _trees({**_LEAF, "threshold": [float("nan")]}), "tree 0"),
    _forest("an index of 10^40", _trees({**_LEAF, "feature": [10**40]}), "tree 0"),
    _forest("nodes of nodes", _trees({**_LEAF, "feature": [[0]]}), "tree 0"),
    _forest("another digest", _trees(_LEAF), "digest"),
)  # fmt: skip


def _rows(name: str, content: Content, *says: str) -> Attack:
    """A table of labels for FastEWQ's training."""

    def prepare(folder: Path, workshop: Workshop) -> list[str]:
        path = folder / "rows.csv"
        _put(path, content)
        return ["fastewq", "train", str(path), "-o", str(folder / OUT / "model.gguf")]

    return Attack("table of labels", name, prepare, ("rows.csv", *says))


_COLUMNS = b"model,block,num_parameters,num_blocks,exec_index,entropy,label\n"
_ROWS: tuple[Attack, ...] = (
    _rows("empty file", b"", "column"),
    _rows("no UTF-8", b"\xff\xfe", "rows.csv"),
    _rows("other columns", b"a,b\n1,2\n", "column"),
    _rows("columns alone", _COLUMNS, "no rows"),
    _rows("too few values", _COLUMNS + b"m,1\n", "line 2"),
    _rows("a word for a number", _COLUMNS + b"m,x,1,1,1,1.0,raw\n", "line 2"),
    _rows("an unknown label", _COLUMNS + b"m,1,1,1,1,1.0,no-such\n", "line 2"),
    _rows("an entropy of NaN", _COLUMNS + b"m,1,1,1,1,nan,raw\n", "line 2"),
    _rows("parameters below zero", _COLUMNS + b"m,1,-1,1,1,1.0,raw\n", "line 2"),
    _rows("a number of 10,000 digits", _COLUMNS + b"m,1," + b"9" * 10_000 + b",1,1,1.0,raw\n", "line 2"),
    _rows("a field of a megabyte", _COLUMNS + b'"' + b"m" * (1 << 20) + b'",1,1,1,1,1.0,raw\n', "rows.csv"),
    _rows("a pipe", fifo, "not a file"),
    _rows("a link to /dev/zero", lambda path: linked(path, "/dev/zero"), "not a file"),
)  # fmt: skip


def _questions(name: str, file: str, content: Content, *says: str) -> Attack:
    def prepare(folder: Path, workshop: Workshop) -> list[str]:
        path = folder / file
        _put(path, content)
        return ["evaluate", "choice", str(workshop.runnable()), "--questions", str(path), "--n-ctx", "64", "--threads", "1"]  # fmt: skip

    return Attack("questions", name, prepare, (file, *says))


def _line(name: str, entry: object, *says: str) -> Attack:
    data = entry if isinstance(entry, bytes) else _encoded(entry)
    return _questions(name, "q.jsonl", b"\n" + data + b"\n", "line 2", *says)


_QUESTIONS: tuple[Attack, ...] = (
    _questions("empty file", "q.jsonl", b"", "no question"),
    _questions("an ending of its own", "q.exe", b"MZ", "neither"),
    _questions("no UTF-8", "q.jsonl", b"\xff\xfe", "UTF-8"),
    _line("no JSON", b"{", "no question"),
    _line("a number", 7, "no question"),
    _line("null", None, "no question"),
    _line("a list", [1, "a"], "no question"),
    _line("nested deeply", b"[" * 100_000, "no question"),
    _line("an unknown form", {"a": 1}, "no question"),
    _line("an answer of 1e400", b'{"prompt": "a", "choices": ["b", "c"], "answer": 1e400}', "no question"),
    _line("an answer of NaN", b'{"prompt": "a", "choices": ["b", "c"], "answer": NaN}', "no question"),
    _line("an answer below zero", {"prompt": "a", "choices": ["b", "c"], "answer": -1}, "answer -1"),
    _line("an answer that is not there", {"prompt": "a", "choices": ["b", "c"], "answer": 2}, "answer 2"),
    _line("an answer of 10,000 digits", b'{"prompt": "a", "choices": ["b", "c"], "answer": "' + b"9" * 10_000 + b'"}', "no question"),
    _line("one choice", {"prompt": "a", "choices": ["b"], "answer": 0}, "two or more"),
    _line("no choices", {"prompt": "a", "choices": [], "answer": 0}, "two or more"),
    _line("an empty choice", {"prompt": "a", "choices": ["b", ""], "answer": 0}, "non-empty"),
    _line("choices of numbers", {"prompt": "a", "choices": [1, 2], "answer": 0}, "no question"),
    _line("choices of a number", {"prompt": "a", "choices": 5, "answer": 0}, "no question"),
    _line("a prompt of a list", {"prompt": ["a"], "choices": ["b", "c"], "answer": 0}, "no question"),
    _line("a prompt of half a surrogate pair", b'{"prompt": "\\ud800", "choices": ["b", "c"], "answer": 0}', "no question"),
    _line("endings of null", {"ctx": "a", "endings": [None, None], "label": 0}, "no question"),
    _line("a context of a number", {"ctx": 5, "endings": ["a", "b"], "label": 0}, "no question"),
    _line("a label of an object", {"ctx": "a", "endings": ["a", "b"], "label": {}}, "no question"),
    _line("a sentence without a gap", {"sentence": "a", "option1": "b", "option2": "c", "answer": "1"}, "no question"),
    _line("choices without labels", {"question": "a", "choices": {"text": ["b", "c"]}, "answerKey": "A"}, "no question"),
    _line("an answer that no label has", {"question": "a", "choices": {"text": ["b", "c"], "label": ["A", "B"]}, "answerKey": "Z"}, "no question"),
    _questions("a row of two columns", "s_test.csv", b"a,b\n", "row 1"),
    _questions("an answer that is no letter", "s_test.csv", b"q,a,b,c,d,E\n", "row 1"),
    _questions("a quote without end", "s_test.csv", b'"q,a,b,c,d,A\n', "s_test.csv"),
    _questions("a field of a megabyte", "s_test.csv", b"q" * (1 << 20) + b",a,b,c,d,A\n", "s_test.csv"),
    _questions("an empty folder", "folder", lambda path: path.mkdir(), "no .csv"),
    _questions("a pipe", "q.jsonl", fifo, "not a file"),
    _questions("a link to /dev/zero", "q.jsonl", lambda path: linked(path, "/dev/zero"), "not a file"),
    _questions("a link to itself", "q.jsonl", lambda path: linked(path, "q.jsonl"), "q.jsonl"),
)  # fmt: skip


def _baseline(kind: str, name: str, content: Content, *says: str) -> Attack:
    def prepare(folder: Path, workshop: Workshop) -> list[str]:
        path = folder / "base.bin"
        _put(path, content)
        return ["evaluate", "divergence", str(workshop.runnable()), "--baseline", str(path), "--threads", "1"]

    return Attack(kind, name, prepare, ("base.bin", *says))


_CACHE: Mapping[str, Any] = {
    "form": "f32", "n_ctx": 8, "n_vocab": 400, "chunks": 1, "bos": 1, "top_k": 0, "sample_every": 0,
    "rounding": 0.0, "tail": 0.0, "model": "m.gguf", "model_bytes": 1, "cache_type_k": None, "cache_type_v": None,
    "version": 1,
}  # fmt: skip


def _cache(data: bytes = b"", **values: object) -> bytes:
    text = _encoded({**_CACHE, **values})
    return (b"EWQLOGIT" + struct.pack("<I", len(text)) + text).ljust(4096, b"\0") + data


_CACHES: tuple[Attack, ...] = tuple(
    _baseline("baseline cache", name, content, *says)
    for name, content, *says in (
        ("magic alone", b"EWQLOGIT", "no usable baseline cache"),
        ("a header longer than its place", b"EWQLOGIT" + struct.pack("<I", 2**32 - 1), "no usable baseline cache"),
        ("a header that is no JSON", b"EWQLOGIT" + struct.pack("<I", 2) + b"{{".ljust(4084), "no usable baseline cache"),
        ("a header nested deeply", b"EWQLOGIT" + struct.pack("<I", 4000) + b"[" * 4084, "no usable baseline cache"),
        ("a header of a list", (b"EWQLOGIT" + struct.pack("<I", 2) + b"[]").ljust(4096), "no usable baseline cache"),
        ("an unknown field", _cache(x=1), "no usable baseline cache"),
        ("another version", _cache(version=9), "version 9"),
        ("an unknown form", _cache(form="x"), "form x"),
        ("a form of a list", _cache(form=["f32"]), "no usable baseline cache"),
        ("a context below zero", _cache(n_ctx=-8), "sizes"),
        ("a context of a fraction", _cache(n_ctx=8.5), "sizes"),
        ("a context of true", _cache(n_ctx=True), "sizes"),
        ("a context of 2^40", _cache(n_ctx=2**40), "sizes"),
        ("a vocabulary of zero", _cache(n_vocab=0), "sizes"),
        ("a vocabulary of 2^31", _cache(n_vocab=2**31), "base.bin"),
        ("a vocabulary of a string", _cache(n_vocab="x"), "sizes"),
        ("contexts without end", _cache(chunks=2**31), "sizes"),
        ("more contexts than there are", _cache(chunks=2**26), "truncated"),
        ("a BOS of a string", _cache(bytes(8192), bos="x"), "base.bin"),
        ("a BOS of 2^40", _cache(bytes(8192), bos=2**40), "base.bin"),
        ("a k of a fraction", _cache(form="topk", top_k=1.5, sample_every=1), "top_k"),
        ("a k below zero", _cache(form="topk", top_k=-1, sample_every=1), "top_k"),
        ("samples of a string", _cache(sample_every="x"), "base.bin"),
        ("samples below zero", _cache(sample_every=-1), "base.bin"),
        ("an error of NaN", _cache(rounding=float("nan")), "no numbers"),
        ("an error of a string", _cache(rounding="x"), "no usable baseline cache"),
        ("cut off", _cache(bytes(64)), "truncated"),
        ("longer than it says", _cache(bytes(1 << 16)), "announced"),
        ("a terabyte that is not there", _cache(chunks=10**6, n_vocab=10**6), "truncated"),
    )
)  # fmt: skip


_VOCABULARY = len(vocabulary()[0])
_ROWS_OF_NOTHING = bytes(3 * (8 + 2 * (_VOCABULARY + _VOCABULARY % 2)))


def _logits(n_ctx: int, n_vocab: int, chunks: int, data: bytes = b"") -> bytes:
    return b"_logits_" + struct.pack("<Iii", n_ctx, n_vocab, chunks) + data


_LLAMA: tuple[Attack, ...] = tuple(
    _baseline("llama.cpp's logits", name, content, *says)
    for name, content, *says in (
        ("magic alone", b"_logits_", "truncated"),
        ("a header cut off", b"_logits_" + bytes(8), "truncated"),
        ("zeros", _logits(0, 0, 0), "impossible header"),
        ("a context of 2^32-1", _logits(2**32 - 1, 400, 1), "impossible header"),
        ("a vocabulary below zero", _logits(8, -1, 1), "impossible header"),
        ("a vocabulary of 2^31-1", _logits(8, 2**31 - 1, 1), "impossible header"),
        ("contexts below zero", _logits(8, 400, -1), "impossible header"),
        ("contexts without end", _logits(8, 400, 2**31 - 1), "truncated"),
        ("cut off", _logits(8, 400, 1, bytes(100)), "truncated"),
        ("a token beyond the vocabulary", _logits(8, _VOCABULARY, 1, struct.pack("<8i", *[2**30] * 8) + _ROWS_OF_NOTHING), "token"),
        ("a token below zero", _logits(8, _VOCABULARY, 1, struct.pack("<8i", *[-5] * 8) + _ROWS_OF_NOTHING), "token"),
        ("another vocabulary than the model's", _logits(8, 7, 1, bytes(8 * 4 + 3 * 24)), "tokens"),
        ("neither", b"this is no baseline of any kind", "no GGUF"),
        ("empty file", b"", "no GGUF"),
        ("a pipe", fifo, "not a file"),
        ("a folder", lambda path: path.mkdir(), "a folder"),
        ("a link to /dev/zero", lambda path: linked(path, "/dev/zero"), "not a file"),
    )
)  # fmt: skip

ATTACKS: tuple[Attack, ...] = (*_PLANS, *_FORESTS, *_ROWS, *_QUESTIONS, *_CACHES, *_LLAMA)
