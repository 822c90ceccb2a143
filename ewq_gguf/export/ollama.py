"""Hand a GGUF file to Ollama: a Modelfile whose TEMPLATE was compared with the model's own chat template.

Source of the Modelfile's syntax: docs/modelfile.md and parser/parser.go of Ollama.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ewq_gguf.export.chat_go import OllamaTemplate, ollama_template
from ewq_gguf.export.chat_model import ChatModel, read_chat_model
from ewq_gguf.export.chat_names import format_name
from ewq_gguf.export.chat_observe import observe
from ewq_gguf.export.chat_sandbox import ChatTemplateError
from ewq_gguf.export.placing import ExportError

# The KV cache of a full context can be larger than the model; Ollama's own default is 4096.
DEFAULT_CONTEXT = 8192
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*(?:/[a-z0-9][a-z0-9._-]*)?(?::[a-z0-9][a-z0-9._-]*)?", re.IGNORECASE)


@dataclass(frozen=True)
class OllamaExport:
    """What was written.

    Attributes:
        modelfile: where the Modelfile lies.
        name: the model's name in Ollama.
        format: the name of the chat format, where it has one and a TEMPLATE was written.
        conversations: how many conversations the TEMPLATE was compared on; 0 without a TEMPLATE.
        notes: what the user should know, a sentence each.
        command: what makes the model in Ollama.
        created: whether that was run.
    """

    modelfile: Path
    name: str
    format: str | None
    conversations: int
    notes: tuple[str, ...]
    command: tuple[str, ...]
    created: bool


def export_ollama(
    gguf: str | os.PathLike[str],
    *,
    name: str | None = None,
    output: str | os.PathLike[str] | None = None,
    n_ctx: int | None = None,
    create: bool | None = None,
    force: bool = False,
) -> OllamaExport:
    """Write a Modelfile for a GGUF file and, where Ollama is installed, make the model in it.

    The model's chat template is rendered on probe conversations, in a sandbox and a process of its own; what it
    does is written in Go's template language, executed, and kept only if every conversation comes out equal.

    Args:
        name: the model's name in Ollama; made of the file's name by default.
        output: the folder for the Modelfile; by default it lies beside the GGUF file and carries its name.
        n_ctx: tokens of context; by default the model's own, at most `DEFAULT_CONTEXT`.
        create: run `ollama create`; by default if the program is there.
        force: replace a Modelfile that says something else.

    Raises:
        ExportError: a name that Ollama does not take, a file in the way, or `ollama create` failed.
        CheckpointError, UnsupportedModelError: see `read_chat_model`.
    """
    path = Path(gguf)
    model = read_chat_model(path)
    name = _checked_name(name) if name is not None else default_name(path)
    template, notes = chat_template(model)
    folder = path.parent if output is None else Path(output)
    target = folder / (f"{path.stem}.Modelfile" if output is None else "Modelfile")
    text = modelfile(model, template, _source(path, folder), n_ctx=n_ctx)
    _write(target, text, force)
    program = shutil.which("ollama")
    command = ("ollama", "create", name, "-f", str(target))
    if create and program is None:
        raise ExportError("there is no program `ollama` on the PATH; install it, or leave out --create")
    wanted = program is not None if create is None else create
    if wanted:
        _run((str(program), *command[1:]))
    return OllamaExport(
        target,
        name,
        None if template is None else format_name(template.pieces),
        0 if template is None else template.conversations,
        tuple(notes),
        command,
        wanted,
    )


def chat_template(model: ChatModel) -> tuple[OllamaTemplate | None, list[str]]:
    """The TEMPLATE for a model, and what is to be said about it."""
    if model.template is None:
        return None, [f"{model.path.name} has no chat template: Ollama will hand it the bare prompt"]
    try:
        seen = observe(model.template, model.tokens, implied_bos=model.implied_bos)
    except ChatTemplateError as error:
        return None, [f"no TEMPLATE was written: {error}"]
    found = ollama_template(seen)
    if found is None:
        return None, [
            "no TEMPLATE was written, because the chat format cannot be said in Ollama's terms; Ollama then goes "
            "by the chat template in the file"
        ]
    if found.pieces.system is None:
        return found, [
            "the chat format has no place for a system message: it goes before the user's first words"
        ]
    return found, []


def modelfile(
    model: ChatModel, template: OllamaTemplate | None, source: str, *, n_ctx: int | None = None
) -> str:
    """The text of a Modelfile.

    Args:
        source: the GGUF file as FROM names it: an absolute path, or one from the Modelfile's folder.

    Raises:
        ExportError: a name that a Modelfile cannot hold.
    """
    if not source.isprintable():
        raise ExportError(f"{source!r} has characters that a Modelfile cannot hold; rename the file")
    lines = [f"FROM {source}"]
    if template is not None:
        known = format_name(template.pieces) or "the model's own"
        lines += [
            f"# Format: {known}; equal to the chat template in the file on {template.conversations} conversations.",
            f'TEMPLATE """{template.text}"""',
        ]
    stops = list(model.stops)
    if template is not None:
        closing = _first_special(template.pieces.answer_suffix, model.special)
        stops += [closing] if closing and closing not in stops else []
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops if stop.isprintable() and stop.strip()]
    tokens = n_ctx or min(model.n_ctx or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    lines.append(f"PARAMETER num_ctx {tokens}")
    lines += [f"PARAMETER {key} {value:.6g}" for key, value in model.sampling.items()]
    return "\n".join(lines) + "\n"


def default_name(path: Path) -> str:
    """The name that a file's model gets: "SmolLM2 135M-Q4_K_M.gguf" -> "smollm2-135m-q4_k_m"."""
    return re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._") or "model"


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ExportError(f"{name!r:.80} is no name for a model in Ollama; take letters, digits, and . _ - :")
    return name


def _source(path: Path, folder: Path) -> str:
    """FROM is read from the Modelfile's folder; files side by side can then be moved together."""
    path, folder = path.resolve(), folder.resolve()
    return f"./{path.name}" if path.parent == folder else str(path)


def _first_special(text: str, special: frozenset[str]) -> str | None:
    return next((t for t in sorted(special, key=len, reverse=True) if t and text.startswith(t)), None)


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text else f'"{text}"'


def _write(target: Path, text: str, force: bool) -> None:
    try:
        if target.is_file() and not force and target.read_text(encoding="utf-8", errors="replace") != text:
            raise ExportError(
                f"{target} exists and says something else; use --force to replace it, or --output DIR"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(target)
    except OSError as error:
        raise ExportError(f"cannot write {target}: {error.strerror or error}") from error


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise ExportError(f"cannot run {command[0]}: {error.strerror or error}") from error
    if done.returncode:
        raise ExportError(
            f"`ollama create` ended with exit code {done.returncode}; what it said is above (is Ollama running?)"
        )
