"""`ewq-gguf export`: hand a GGUF file to the program that runs it, or to people."""

from __future__ import annotations

from pathlib import Path

import click

from ewq_gguf.cli.options import json_option
from ewq_gguf.cli.terminal import Terminal
from ewq_gguf.export.card import export_card, write_card
from ewq_gguf.export.lmstudio import export_lmstudio
from ewq_gguf.export.ollama import export_ollama
from ewq_gguf.export.placing import LINKS
from ewq_gguf.export.push import push_files
from ewq_gguf.pipeline.gguf_source import open_parts

_path = click.Path(path_type=Path)


@click.group("export")
def export_group() -> None:
    """Hand a GGUF file to Ollama or LM Studio, or write its model card.

    \b
    ewq-gguf export ollama model.gguf            a Modelfile, and the model in Ollama where it is installed
    ewq-gguf export lmstudio model.gguf          where LM Studio finds it, at no cost in disk
    ewq-gguf export card model.gguf -o README.md
    """


@export_group.command("ollama")
@click.argument("gguf", type=_path)
@click.option(
    "--name", metavar="NAME", help="The model's name in Ollama; made of the file's name by default."
)
@click.option("--output", "-o", type=_path, metavar="DIR",
              help="Folder for the Modelfile; by default it lies beside the GGUF file, as FILE.Modelfile.")  # fmt: skip
@click.option("--num-ctx", type=click.IntRange(1), help="Tokens of context; the model's own, at most 8192, by default.")  # fmt: skip
@click.option("--create/--no-create", default=None,
              help="Run `ollama create`; by default if Ollama is installed.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a Modelfile that says something else.")
@json_option
@click.pass_obj
def ollama_command(
    terminal: Terminal,
    gguf: Path,
    name: str | None,
    output: Path | None,
    num_ctx: int | None,
    create: bool | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write an Ollama Modelfile for GGUF, and make the model in Ollama where it is installed.

    The chat template in the file is rendered on probe conversations, and the Modelfile's TEMPLATE is written only
    if it renders all of them equally.
    """
    done = export_ollama(gguf, name=name, output=output, n_ctx=num_ctx, create=create, force=force)
    if as_json:
        terminal.json(
            {
                "modelfile": str(done.modelfile),
                "name": done.name,
                "format": done.format,
                "conversations": done.conversations,
                "notes": list(done.notes),
                "command": list(done.command),
                "created": done.created,
            }
        )
        return
    for note in done.notes:
        terminal.note(note)
    if done.conversations:
        known = done.format or "the model's own"
        terminal.note(
            f"chat format: {known}; TEMPLATE equal to the file's chat template on {done.conversations} conversations"
        )
    terminal.result(f"wrote {done.modelfile}")
    if done.created:
        terminal.result(f"made {done.name} in Ollama; talk to it: ollama run {done.name}")
    else:
        terminal.result(f"make it in Ollama: {_shown(done.command)}")


@export_group.command("lmstudio")
@click.argument("gguf", type=_path)
@click.option("--publisher", metavar="NAME", help="First folder; the file's organization, or local, by default.")  # fmt: skip
@click.option("--model", metavar="NAME", help="Second folder; the file's name by default.")
@click.option("--link", type=click.Choice(LINKS), default="hard", show_default=True,
              help="hard: no more disk, same file system; symlink: the file must stay where it is.")  # fmt: skip
@click.option("--models-folder", type=_path, help="LM Studio's models folder, where it is not found.")
@click.option("--force", is_flag=True, help="Replace files of the same name.")
@json_option
@click.pass_obj
def lmstudio_command(
    terminal: Terminal,
    gguf: Path,
    publisher: str | None,
    model: str | None,
    link: str,
    models_folder: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Put GGUF, with all parts of a split model, where LM Studio finds it.

    LM Studio shows it under "My Models"; its own `lms import GGUF` does the same by asking questions.
    """
    done = export_lmstudio(
        gguf, publisher=publisher, model=model, link=link, models_folder=models_folder, force=force
    )
    if as_json:
        terminal.json({"files": [str(p) for p in done.paths], "models_folder": str(done.models_folder)})
        return
    for path in done.paths:
        terminal.result(str(path))
    terminal.note("LM Studio lists it under My Models; `lms ls` shows it too")


@export_group.command("card")
@click.argument("gguf", type=_path)
@click.option("--output", "-o", type=_path, help="The README.md to write; stdout by default.")
@click.option("--measurements", type=_path, metavar="JSON",
              help="What `evaluate ... --json` printed for this file; without it the card has no figures.")  # fmt: skip
@click.option("--base-model", metavar="ORG/NAME", help="The original on the Hub, where the file does not say.")  # fmt: skip
@click.option("--repository", metavar="ORG/NAME", help="Where the card will be, for its commands.")
@click.option("--push", metavar="ORG/NAME", help="Upload GGUF (all parts) and its card to this repository.")
@click.option("--private", is_flag=True, help="--push: a repository that is made anew is private.")
@click.option("--force", is_flag=True, help="Replace a file that says something else.")
@click.pass_obj
def card_command(
    terminal: Terminal,
    gguf: Path,
    output: Path | None,
    measurements: Path | None,
    base_model: str | None,
    repository: str | None,
    push: str | None,
    private: bool,
    force: bool,
) -> None:
    """Write the model card of GGUF: front matter, types, measured figures, commands to make it again.

    \b
    ewq-gguf export card model.gguf --measurements divergence.json -o README.md
    ewq-gguf export card model.gguf --push me/model-GGUF
    """
    card = export_card(gguf, measurements=measurements, base_model=base_model, repository=repository or push)
    if push is not None:
        paths = [part.path for part in open_parts(gguf)]
        done = push_files(paths, push, card.text, private=private, bars=terminal.draws)
        what = "1 file and its card are" if len(paths) == 1 else f"{len(paths)} files and their card are"
        terminal.result(f"{what} at {done.url}")
    if output is None and push is not None:
        return
    if output is None:
        terminal.result(card.text.rstrip("\n"))
        return
    write_card(card, output, force=force)
    terminal.result(f"wrote {output}")


def _shown(command: tuple[str, ...]) -> str:
    import shlex

    return shlex.join(command)
