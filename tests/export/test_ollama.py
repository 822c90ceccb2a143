"""The Modelfile: what stands in it, read back as Ollama reads it, and the program that is called."""

from __future__ import annotations

import os
import stat
import subprocess
from datetime import date
from pathlib import Path

import pytest

from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.evaluation.crash import cache_folder
from ewq_gguf.export.chat_go import render_ollama
from ewq_gguf.export.go_template import parse_go_template
from ewq_gguf.export.ollama import default_name, export_ollama
from ewq_gguf.export.placing import ExportError

from .formats import FORMATS, TALK, TODAY
from .tiny_gguf import write_gguf

CHATML = FORMATS["chatml"]


@pytest.fixture(autouse=True)
def no_ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """(command, value) as Ollama's parser sees them: printable characters only, values quoted or to the line's end."""
    found: list[tuple[str, str]] = []
    rest = text
    while rest := rest.lstrip():
        if rest.startswith("#"):
            rest = rest.partition("\n")[2]
            continue
        command, _, rest = rest.partition(" ")
        if command == "PARAMETER":
            name, _, rest = rest.partition(" ")
            command = f"PARAMETER {name}"
        for quote in ('"""', '"'):
            if rest.startswith(quote):
                value, _, rest = rest[len(quote) :].partition(quote)
                break
        else:
            value, _, rest = rest.partition("\n")
        found.append((command, "".join(c for c in value if c.isprintable() or c == "\n")))
    return found


def test_a_chat_model(tmp_path: Path) -> None:
    keys = {
        "general.sampling.temp": 0.6,
        "general.sampling.top_k": 20,
        "tokenizer.ggml.add_bos_token": False,
    }
    path = write_gguf(tmp_path / "Tiny Chat-Q8_0.gguf", CHATML.jinja, keys=keys)
    done = export_ollama(path)
    assert done.modelfile == tmp_path / "Tiny Chat-Q8_0.Modelfile"
    assert (done.name, done.format, done.conversations) == ("tiny-chat-q8_0", "ChatML", 6)
    assert done.command == ("ollama", "create", "tiny-chat-q8_0", "-f", str(done.modelfile))
    assert not done.created
    assert done.notes == ()
    read = read_modelfile(done.modelfile.read_text(encoding="utf-8"))
    assert read[0] == ("FROM", "./Tiny Chat-Q8_0.gguf")
    template = dict(read)["TEMPLATE"]
    assert render_ollama(parse_go_template(template), TALK) == CHATML.expected
    assert [v for k, v in read if k == "PARAMETER stop"] == ["</s>", "<|im_end|>"]
    assert {k.split()[1]: v for k, v in read if k.startswith("PARAMETER") and "stop" not in k} == {
        "num_ctx": "2048",
        "temperature": "0.6",
        "top_k": "20",
    }


@pytest.mark.parametrize("name", FORMATS)
def test_a_modelfile_keeps_every_template(tmp_path: Path, name: str) -> None:
    """The tokenizer's own first token is left out, everything else arrives."""
    form = FORMATS[name]
    tokens = ("<unk>", form.tokens["bos_token"], form.tokens["eos_token"], "a")
    keys = {"tokenizer.ggml.add_bos_token": bool(form.implied_bos)}
    path = write_gguf(tmp_path / "m.gguf", form.jinja, tokens=tokens, keys=keys)
    done = export_ollama(path, output=tmp_path / "out")
    template = dict(read_modelfile(done.modelfile.read_text(encoding="utf-8")))["TEMPLATE"]
    assert render_ollama(parse_go_template(template), TALK, today=date.fromisoformat(TODAY)) == form.expected
    assert done.format == form.name


def test_where_the_first_token_is_not_implied(tmp_path: Path) -> None:
    form = FORMATS["llama 3"]
    tokens = ("<unk>", form.tokens["bos_token"], form.tokens["eos_token"])
    keys = {"tokenizer.ggml.add_bos_token": False}
    path = write_gguf(tmp_path / "m.gguf", form.jinja, tokens=tokens, keys=keys)
    template = dict(read_modelfile(export_ollama(path).modelfile.read_text()))["TEMPLATE"]
    assert render_ollama(parse_go_template(template), TALK) == "<|begin_of_text|>" + form.expected


def test_a_model_without_a_chat_template(tmp_path: Path) -> None:
    done = export_ollama(write_gguf(tmp_path / "base.gguf"))
    assert "TEMPLATE" not in done.modelfile.read_text()
    assert done.conversations == 0
    assert "no chat template" in done.notes[0]


@pytest.mark.parametrize(
    "jinja", ["{{ messages | length }}", "{% broken", "{{ raise_exception('no') }}", "x" * 500_000]
)
def test_a_format_that_cannot_be_said(tmp_path: Path, jinja: str) -> None:
    done = export_ollama(write_gguf(tmp_path / "m.gguf", jinja))
    assert "TEMPLATE" not in done.modelfile.read_text()
    assert done.notes[0].startswith("no TEMPLATE was written")


def test_context(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    assert "PARAMETER num_ctx 512\n" in export_ollama(path, n_ctx=512).modelfile.read_text()
    long = write_gguf(tmp_path / "long.gguf", keys={"llama.rope.dimension_count": 8})
    assert "PARAMETER num_ctx 2048\n" in export_ollama(long).modelfile.read_text()


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", CHATML.jinja)
    first = export_ollama(path).modelfile
    assert export_ollama(path).modelfile == first
    first.write_text("FROM mine\n")
    with pytest.raises(ExportError, match="--force"):
        export_ollama(path)
    assert first.read_text() == "FROM mine\n"
    export_ollama(path, force=True)
    assert first.read_text().startswith("FROM ./m.gguf\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.Modelfile", "m.gguf"]


def test_from_another_folder(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    done = export_ollama(path, output=tmp_path / "deep" / "folder", name="Me/model:q8")
    assert done.modelfile == tmp_path / "deep" / "folder" / "Modelfile"
    assert done.modelfile.read_text().startswith(f"FROM {path.resolve()}\n")
    assert done.name == "Me/model:q8"


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b/c", "-x", "ü", "a:"])
def test_names_that_ollama_does_not_take(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match="no name"):
        export_ollama(write_gguf(tmp_path / "m.gguf"), name=name)


def test_default_names() -> None:
    assert default_name(Path("SmolLM2 135M-Q4_K_M.gguf")) == "smollm2-135m-q4_k_m"
    assert default_name(Path("-.gguf")) == "model"


def test_a_split_model_is_to_be_merged(tmp_path: Path) -> None:
    for i in range(2):
        keys = {"split.no": i, "split.count": 2, "split.tensors.count": 2}
        write_gguf(tmp_path / f"m-0000{i + 1}-of-00002.gguf", keys=keys, tensor=f"t{i}.weight")
    with pytest.raises(UnsupportedModelError, match="ewq-gguf merge"):
        export_ollama(tmp_path / "m-00001-of-00002.gguf")


def _program(tmp_path: Path, script: str) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "ollama"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands in for Ollama")
def test_ollama_is_run(tmp_path: Path) -> None:
    _program(tmp_path, f'echo "$@" > {tmp_path}/called')
    path = write_gguf(tmp_path / "m.gguf")
    done = export_ollama(path, name="mine")
    assert done.created
    assert (tmp_path / "called").read_text() == f"create mine -f {tmp_path}/m.Modelfile\n"
    (tmp_path / "called").unlink()
    assert not export_ollama(path, create=False).created
    assert not (tmp_path / "called").exists()


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands in for Ollama")
def test_ollama_fails(tmp_path: Path) -> None:
    _program(tmp_path, "exit 3")
    with pytest.raises(ExportError, match="exit code 3"):
        export_ollama(write_gguf(tmp_path / "m.gguf"))


def test_ollama_is_wanted_and_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no program"):
        export_ollama(write_gguf(tmp_path / "m.gguf"), create=True)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["Q4_K_M", "Q8_0", "Q5_K_M", "Q3_K_S", "bf16", "Q6_K", "IQ4_XS"])
def test_the_check_that_ollama_does_on_import(reference: Path, tmp_path: Path, kind: str) -> None:
    """Ollama loads what it imports with `llama-quantize IN OUT COPY`."""
    from ewq_gguf import Decision, convert

    programs = sorted(cache_folder().glob("llama.cpp-*/bin/llama-quantize"))
    if not programs:
        pytest.skip("llama-quantize is not built; `make tools` builds it")
    done = convert(reference, tmp_path / "in.gguf", Decision(type=kind))
    out = tmp_path / "out.gguf"
    ran = subprocess.run(
        [str(programs[-1]), str(done.path), str(out), "COPY"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    from ewq_gguf.pipeline.gguf_source import open_gguf

    ours, copy = open_gguf(done.path), open_gguf(out)
    assert {e.name: (e.type, e.shape) for e in ours.entries} == {
        e.name: (e.type, e.shape) for e in copy.entries
    }
