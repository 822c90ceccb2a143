"""Every parser of outside bytes, with seeds to start from.

A target takes bytes and a folder to put them in. Whatever comes out other than success or an `EwqError` is a
finding, and so is what takes too long or too much memory.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

_SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        run: parse some bytes; files go into the folder, which is the same at every call.
        seeds: bytes that are accepted, or nearly.
        words: pieces worth inserting.
    """

    name: str
    run: Callable[[bytes, Path], None]
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...] = ()


_JSON_WORDS = (
    b"null", b"true", b"-1", b"1e400", b"NaN", b"9223372036854775808", b'""', b"[]", b"{}", b'"\\ud800"', b'"\\u0000"',
)  # fmt: skip


def _file(name: str, parse: Callable[[Path], Any]) -> Callable[[bytes, Path], None]:
    def run(data: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(data)
        parse(path)

    return run


def _in_folder(name: str, made: str, parse: Callable[[Path], Any]) -> Callable[[bytes, Path], None]:
    """A file of a tiny checkpoint is replaced."""

    def run(data: bytes, folder: Path) -> None:
        home = folder / made
        if not home.is_dir():
            shutil.copytree(_built(made), home)
        before = home / f"{name}.kept"
        if not before.exists() and (home / name).exists():
            (home / name).rename(before)
        (home / name).write_bytes(data)
        parse(home)

    return run


@cache
def _scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="ewq-fuzz-seeds-"))


@cache
def _built(tokenizer: str) -> Path:
    """A tiny checkpoint with this kind of tokenizer."""
    from dataclasses import replace

    from tests.tiny.build import build
    from tests.tiny.established import MISTRAL

    folder = build(replace(MISTRAL, name=tokenizer, tokenizer=tokenizer), _scratch() / tokenizer)
    if tokenizer == "tekken":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    return folder


def _seed(tokenizer: str, name: str) -> Callable[[], list[bytes]]:
    return lambda: [(_built(tokenizer) / name).read_bytes()]


def _vocabulary(home: Path) -> None:
    from ewq_gguf.vocab import load_vocabulary

    config = json.loads((_built("bpe") / "config.json").read_bytes())
    load_vocabulary(home, config)


def _described(home: Path) -> None:
    from ewq_gguf.pipeline.general import general_metadata

    general_metadata(home, {}, ())


def _shard(path: Path) -> None:
    from ewq_gguf.checkpoint.reading import SourceFiles
    from ewq_gguf.checkpoint.safetensors import FileTensor, read_shard

    shard, files = read_shard(path), SourceFiles()
    for entry in shard.entries[:8]:
        tensor = FileTensor(shard, entry, files)
        tensor.rows(0, min(tensor.n_rows, 4))


def _shard_seeds() -> list[bytes]:
    from tests.tiny.weights import Stored, write_safetensors

    path = _scratch() / "seed.safetensors"
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    write_safetensors(path, {"a": Stored("F32", values), "b": Stored("BF16", np.arange(4, dtype="<u2"))})
    return [path.read_bytes(), b"\x02\0\0\0\0\0\0\0{}"]


def _config_seeds() -> list[bytes]:
    from tests.tiny.cases import CASES

    return [json.dumps(case.config).encode() for case in CASES]


def _config(data: bytes, folder: Path) -> None:
    import gguf

    from ewq_gguf.arch import family_for
    from ewq_gguf.checkpoint import open_checkpoint

    home = folder / "config"
    if not home.is_dir():
        shutil.copytree(_built("bpe"), home)
    (home / "config.json").write_bytes(data)
    checkpoint = open_checkpoint(home)
    family = family_for(checkpoint.config)(checkpoint.config, checkpoint.tensors)
    family.add_metadata(gguf.GGUFWriter(None, family.arch))
    tuple(family.tensors())


def _index_seeds() -> list[bytes]:
    from ewq_gguf.checkpoint.safetensors import read_shard

    entries = read_shard(_built("spm") / _SINGLE).entries
    whole = {"metadata": {"total_size": 1}, "weight_map": {e.name: _SINGLE for e in entries}}
    return [json.dumps(whole).encode(), b'{"weight_map": {"a": "../x.safetensors"}}']


def _open(home: Path) -> None:
    from ewq_gguf.checkpoint import open_checkpoint

    open_checkpoint(home)


def _gguf_seeds() -> list[bytes]:
    import gguf

    path = _scratch() / "seed.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_array("some.texts", ["a", "b"])
    writer.add_bool("some.flag", True)
    writer.add_float64("some.float", 0.5)
    writer.add_tensor("token_embd.weight", np.ones((2, 32), np.float32))
    writer.add_tensor(
        "blk.0.attn_q.weight", np.zeros((1, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [path.read_bytes()]


def _gguf(path: Path) -> None:
    from ewq_gguf.pipeline.source import load_model

    for tensor in load_model(path).tensors[:8]:
        tensor.source.rows(0, min(tensor.n_rows, 4))


def _gguf_check(path: Path) -> None:
    from ewq_gguf.evaluation.gguf_check import check_gguf

    check_gguf(path)


def _plan_of_gguf(path: Path) -> None:
    from ewq_gguf.pipeline.plan_file import read_plan

    read_plan(path)


def _imatrix(path: Path) -> None:
    from ewq_gguf.calibration.imatrix_file import load_imatrix

    load_imatrix(path)


def _imatrix_seeds() -> list[bytes]:
    from ewq_gguf.calibration.imatrix import Entry, ImportanceMatrix
    from ewq_gguf.calibration.imatrix_file import save_imatrix

    path = _scratch() / "seed.imatrix"
    entry = Entry(np.ones((1, 4), np.float32), np.array([3], np.int64))
    save_imatrix(ImportanceMatrix({"blk.0.attn_q.weight": entry}, ("t",), 1, 512), path)
    number = lambda n: n.to_bytes(4, "little")  # noqa: E731
    legacy = number(1) + number(1) + b"a" + number(2) + number(2) + np.ones(2, "<f4").tobytes()
    return [path.read_bytes(), legacy, legacy + number(3) + number(1) + b"t"]


def _plan_seeds() -> list[bytes]:
    tensors = [{"name": "output.weight", "type": "Q6_K", "wanted": "Q6_K", "shape": [4, 256], "reason": "x"}]
    source = {"arch": "llama", "fingerprint": "0"}
    plan = {"format": "ewq-gguf plan", "version": 1, "method": "ewq", "parameters": {}, "source": source}
    return [json.dumps({**plan, "tensors": tensors}).encode()]


def _text(*parsers: Callable[[str], Any]) -> Callable[[bytes, Path], None]:
    """All parsers of short texts see the same one; an error of one does not hide the next."""
    from ewq_gguf.errors import EwqError

    def run(data: bytes, folder: Path) -> None:
        text = data.decode("utf-8", "surrogateescape")
        for parse in parsers:
            try:
                parse(text)
            except EwqError:
                continue

    return run


def _texts(data: bytes, folder: Path) -> None:
    from ewq_gguf.allocation.ewq import parse_classes
    from ewq_gguf.allocation.machines import parse_machine
    from ewq_gguf.allocation.parsing import parse_size, parse_type
    from ewq_gguf.allocation.pins import parse_pin
    from ewq_gguf.pipeline.split import parse_split_size

    def pin(text: str) -> None:
        parse_pin(text).matches("blk.0.ffn_down.weight")

    _text(parse_size, parse_split_size, parse_type, parse_classes, parse_machine, pin)(data, folder)


def _questions(name: str) -> Callable[[bytes, Path], None]:
    def parse(path: Path) -> None:
        from ewq_gguf.evaluation.questions import load_questions

        load_questions(path)

    return _file(name, parse)


def _question_seeds() -> list[bytes]:
    lines: list[dict[str, Any]] = [
        {"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "1"},
        {"goal": "g", "sol1": "a", "sol2": "b", "label": 0},
        {"ctx": "c", "endings": ["a", "b", "c", "d"], "label": "2", "activity_label": "z"},
        {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
        {"prompt": "p", "choices": ["a", "b"], "answer": 1},
    ]
    return ["\n".join(map(json.dumps, lines)).encode(), *(json.dumps(line).encode() for line in lines)]


def _baseline(path: Path) -> None:
    from ewq_gguf.evaluation.baseline import open_baseline

    with open_baseline(path, None) as found:
        assert found.contexts.tokens.ndim == 2


def _baseline_seeds() -> list[bytes]:
    from ewq_gguf.evaluation.baseline_cache import CacheHeader

    found = []
    for form, k, every in (("f32", 0, 0), ("u16", 0, 0), ("topk", 2, 2)):
        header = CacheHeader(form, 8, 5, 1, 1, k, every, 0.0, 0.0, "m", 1, None, None)
        found.append(header.encode().ljust(header.n_bytes, b"\0"))
    llama = b"_logits_" + b"".join(n.to_bytes(4, "little") for n in (8, 6, 1))
    return [*found, llama + bytes(4 * 8 + 3 * (8 + 12))]


def _journal(data: bytes, folder: Path) -> None:
    from ewq_gguf.pipeline.journal import Journal, journal_path

    journal_path(folder / "m.gguf").write_bytes(data)
    Journal(folder / "m.gguf").close(keep=False)


def _measurements(data: bytes, folder: Path) -> None:
    from ewq_gguf.calibration.journal import Journal

    made = Journal(folder / "measurements", "fuzz", {"a": 1}).path
    assert made is not None
    head = made.read_bytes().split(b"\n")[0]
    made.write_bytes(data if data[:1] == b"#" else head + b"\n" + data)
    try:
        Journal(folder / "measurements", "fuzz", {"a": 1})
    finally:
        made.unlink()


def _forest(path: Path) -> None:
    from ewq_gguf.allocation.forest import read_forest

    read_forest(path).predict_proba([[1.0, 2.0, 3.0]])


def _forest_seeds() -> list[bytes]:
    from ewq_gguf.allocation.forest import LEAF, Forest, Tree

    children = np.array([[1, LEAF, LEAF], [2, LEAF, LEAF]])
    tree = Tree(
        np.zeros(3, np.int64), np.array([0.5, 0.0, 0.0]), *children, np.array([[0, 0], [1, 0], [0.25, 0.75]])
    )
    forest = Forest("seed", ("a", "b", "c"), (tree, tree), {})
    return [forest.to_json().encode()]


def _template(data: bytes, folder: Path) -> None:
    from ewq_gguf.export.chat_sandbox import Message, Rendering, render_chat

    wish = Rendering((Message("user", "Hello"),))
    render_chat(
        data.decode("utf-8", "replace"), [wish], {"bos_token": "<s>", "eos_token": "</s>"}, timeout=5.0
    )


def _tekken_seeds() -> list[bytes]:
    pieces = [*(bytes([i]) for i in range(256)), b"th", b"the"]
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
        for rank, piece in enumerate(pieces)
    ]
    special = [
        {"rank": r, "token_str": t, "is_control": True} for r, t in enumerate(("<unk>", "<s>", "</s>"))
    ]
    config = {
        "pattern": r"\p{L}+|\p{N}|\s+",
        "num_vocab_tokens": len(vocab),
        "default_vocab_size": len(vocab) + len(special),
        "default_num_special_tokens": len(special),
        "version": "v7",
    }
    return [json.dumps({"config": config, "vocab": vocab, "special_tokens": special}).encode()]


TARGETS: tuple[Target, ...] = (
    Target("safetensors", _file("a.safetensors", _shard), _shard_seeds, (b"F32", b"BF16", b'"data_offsets"', *_JSON_WORDS)),
    Target("shard index", _in_folder("model.safetensors.index.json", "spm", _open), _index_seeds, _JSON_WORDS),
    Target("config.json", _config, _config_seeds, _JSON_WORDS),
    Target("tokenizer.json", _in_folder("tokenizer.json", "bpe", _vocabulary), _seed("bpe", "tokenizer.json"), _JSON_WORDS),
    Target("tokenizer.json fallback", _in_folder("tokenizer.json", "gemma4", _vocabulary), _seed("gemma4", "tokenizer.json"), _JSON_WORDS),
    Target("tokenizer_config.json", _in_folder("tokenizer_config.json", "spm", _vocabulary), _seed("bpe", "tokenizer_config.json"), _JSON_WORDS),
    Target("tokenizer.model", _in_folder("tokenizer.model", "spm", _vocabulary), _seed("spm", "tokenizer.model")),
    Target("tekken.json", _in_folder("tekken.json", "tekken", _vocabulary), _tekken_seeds, _JSON_WORDS),
    Target("README.md", _in_folder("README.md", "spm", _described), lambda: [b"---\nlicense: mit\ntags:\n- a\nbase_model: a/b\n---\nx"], (b"&a", b"*a", b"!!python/object", b"<<: *a")),
    Target("generation_config.json", _in_folder("generation_config.json", "spm", _described), lambda: [b'{"temperature": 0.5, "top_k": 3, "repetition_penalty": 1.1}'], _JSON_WORDS),
    Target("gguf", _file("a.gguf", _gguf), _gguf_seeds),
    Target("gguf before llama.cpp", _file("b.gguf", _gguf_check), _gguf_seeds),
    Target("plan of a gguf", _file("c.gguf", _plan_of_gguf), _gguf_seeds),
    Target("imatrix", _file("a.imatrix", _imatrix), _imatrix_seeds),
    Target("plan", _file("plan.json", _plan_of_gguf), _plan_seeds, (b"Q4_K", b"IQ1_S", *_JSON_WORDS)),
    Target("sizes, types, patterns", _texts, lambda: [b"4.2GiB", b"q4_k", b"ffn_down=q6_k", b"gpu:24GiB", b"Q8_0,Q6_K,Q4_K", b"(a|b)+=q8_0"], (b"GiB", b"=", b"q8_0", b"(?", b"*", b":")),
    Target("questions jsonl", _questions("q.jsonl"), _question_seeds, _JSON_WORDS),
    Target("questions csv", _questions("q_test.csv"), lambda: [b'"Who, me?",a,b,c,d,B\n', b"q,A,B,C,D,answer\nx,a,b,c,d,D\n"], (b'"', b",", b"\n")),
    Target("baseline", _file("baseline", _baseline), _baseline_seeds),
    Target("journal", _journal, lambda: [b'{"format": "ewq-gguf journal", "facts": {}, "files": ["m.gguf.part"]}\n{"tensor": "a", "checksum": "crc32:0"}\n{"complete": true}\n'], _JSON_WORDS),
    Target("measurements", _measurements, lambda: [b'{"key": "a", "value": {"x": 1}}\n', b"#\n"], _JSON_WORDS),
    Target("forest", _file("forest.json", _forest), _forest_seeds, _JSON_WORDS),
    Target("chat template", _template, lambda: [b"{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"], (b"{{", b"}}", b"{%", b"%}", b"range(10**9)", b".__class__", b"|join", b"raise_exception('x')")),
)  # fmt: skip
BY_NAME = {target.name: target for target in TARGETS}
