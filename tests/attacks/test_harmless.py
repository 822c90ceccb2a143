"""Hostile content that is carried or left out, and does no harm: the conversion goes on as with a sound file."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ewq_gguf.checkpoint.links import refuse_links_out
from ewq_gguf.cli import cli
from ewq_gguf.errors import CheckpointError
from ewq_gguf.pipeline.gguf_source import open_gguf
from tests.attacks import ggufs
from tests.attacks.workshop import Workshop


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    made = Workshop(tmp_path_factory.mktemp("sound"))
    made.gguf()
    return made


def converted(model: Path, out: Path) -> tuple[dict[str, object], str]:
    """The metadata of the file, and what was said on standard error."""
    began = time.process_time()
    result = CliRunner().invoke(
        cli, ["convert", str(model), "-o", str(out), "--type", "f16", "--threads", "1"]
    )
    assert result.exit_code == 0, result.stderr
    assert time.process_time() - began < 2
    return {key: value.value for key, value in open_gguf(out).metadata.items()}, result.stderr


_DOUBLING = "a0: &a0 {k: v}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)
)
_LAUGHING = "a0: &a0 [x, x, x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
CARDS = {
    "keys that double": (_DOUBLING + "license: mit\n", "README.md is left out"),
    "lists that double": (_LAUGHING + "tags: *a39\n", "no text"),
    "a head of two megabytes": ("tags:\n" + "- a\n" * 500_000, "README.md is left out"),
    "nested deeply": ("a: " + "[" * 5000, "README.md is left out"),
    "no YAML": ("a: b: c: {", "README.md is left out"),
    "an object of Python": ("name: !!python/object/apply:os.system ['true']\n", "README.md is left out"),
    "a list": ("- a\n- b\n", "README.md is left out"),
    "a version of a number": ("version: 1.5\nlicense: mit\n", "version is no text"),
    "a licence of an object": ("license: {a: b}\n", "license is no text"),
    "tags of numbers": ("tags: [1, good, null]\n", "tags is no text"),
    "a base model of objects": ("base_model: [{name: {a: b}}]\n", "base_models is no text"),
    "half a surrogate pair": ('name: "\\ud800"\n', "README.md"),
    "a date": ("version: 2020-01-01\n", "version is no text"),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_hostile_model_card_is_left_out(name: str, tmp_path: Path, workshop: Workshop) -> None:
    head, says = CARDS[name]
    model = workshop.checkpoint("llama", tmp_path / "m")
    (model / "README.md").write_text(f"---\n{head}---\nA model.\n", encoding="utf-8")
    metadata, said = converted(model, tmp_path / "m.gguf")
    assert "".join(says.split()) in "".join(said.split())
    assert metadata["general.name"]


def test_what_is_good_in_a_card_is_kept(tmp_path: Path, workshop: Workshop) -> None:
    model = workshop.checkpoint("llama", tmp_path / "m")
    (model / "README.md").write_text(
        "---\nlicense: mit\ntags: [1, good]\nversion: 2\n---\n", encoding="utf-8"
    )
    metadata, _ = converted(model, tmp_path / "m.gguf")
    assert (metadata["general.license"], metadata["general.tags"]) == ("mit", ["good"])
    assert "general.version" not in metadata


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b"\xff", b"[" * 100_000, b'{"a": 1, "a": 2}'])
def test_a_damaged_generation_config_is_left_out(content: bytes, tmp_path: Path, workshop: Workshop) -> None:
    model = workshop.checkpoint("llama", tmp_path / "m")
    (model / "generation_config.json").write_bytes(content)
    _, said = converted(model, tmp_path / "m.gguf")
    assert "leftout" in "".join(said.split())
    assert "generation_config.json" in "".join(said.split())


TEMPLATES = (
    "{% for i in range(999999999) %}{% for j in range(999999999) %}x{% endfor %}{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% include '/etc/passwd' %}",
    "{{ 'x' * 99999999999 }}",
    "{% if",
    "\x1b]0;owned\x07",
)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_template_is_carried_and_never_run(template: str, tmp_path: Path, workshop: Workshop) -> None:
    model = workshop.checkpoint("qwen2", tmp_path / "m")
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    metadata, _ = converted(model, tmp_path / "m.gguf")
    assert metadata["tokenizer.chat_template"] == template
    shown = CliRunner().invoke(cli, ["inspect", str(tmp_path / "m.gguf")])
    assert shown.exit_code == 0
    assert "\x1b" not in shown.stdout + shown.stderr


def test_conversion_has_nothing_to_run_a_template_with(tmp_path: Path, workshop: Workshop) -> None:
    program = (
        "import sys, ewq_gguf; ewq_gguf.convert(sys.argv[1], sys.argv[2], ewq_gguf.Decision(type='f16'));"
        "print('jinja2' in sys.modules, 'pickle' in sys.modules and 'torch' in sys.modules)"
    )
    args = [sys.executable, "-c", program, str(workshop.sound("qwen2")), str(tmp_path / "m.gguf")]
    done = subprocess.run(args, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


_NAME = "[/bold][link=file:///etc]\x1b[2J\r\x9b31m"
_MARKED = ggufs.gguf(
    [*ggufs._LLAMA, ggufs.string(f"general.{_NAME}", _NAME)], [ggufs.tensor(f"blk.0.{_NAME}.weight", [8, 1])], bytes(32)
)  # fmt: skip


def _shown(*args: str) -> Result:
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize(
    "command", [["inspect", "--tensors"], ["plan", "show", "--tensors"], ["analyze", "--tensors"]]
)
def test_names_do_not_command_the_terminal(command: list[str], tmp_path: Path) -> None:
    """Neither control characters nor rich's markup: a name is shown as it is."""
    path = tmp_path / "marked.gguf"
    path.write_bytes(_MARKED)
    shown = _shown(*command, str(path)).stdout
    assert "[/bold][link=file:///etc]" in shown
    assert not {"\x1b", "\r", "\x9b"} & set(shown)


def test_links_that_people_make_are_followed(tmp_path: Path) -> None:
    real, farm = tmp_path / "real", tmp_path / "farm"
    cache = tmp_path / "models--org--name" / "blobs"
    for folder in (real, farm, cache):
        folder.mkdir(parents=True)
    for name in ("config.json", "model-1.safetensors"):
        (real / name).write_bytes(b"{}")
        (farm / name).symlink_to(real / name)
    (cache / "0123abcd").write_bytes(b"{}")
    (farm / "tokenizer.json").symlink_to(cache / "0123abcd")
    (farm / "model.safetensors").symlink_to(real / "model-1.safetensors")
    (farm / "own").write_bytes(b"")
    (farm / "merges.txt").symlink_to("own")
    refuse_links_out(farm)
    (farm / "README.md").symlink_to(real / "config.json")
    with pytest.raises(CheckpointError, match=r"README\.md is a link"):
        refuse_links_out(farm)
