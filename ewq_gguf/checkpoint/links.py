"""Symbolic links in a checkpoint's folder that lead out of it.

What is read of a checkpoint ends in a file that people publish, a chat template or a model card word by word. A
link to a private file, in a folder that came out of an archive, would take that file along. People do make
folders of links themselves, to exchange a template without copying the weights: those keep the files' names.
"""

from __future__ import annotations

import os
from pathlib import Path

from ewq_gguf.errors import CheckpointError

# What is read of a folder, by this package and by the libraries it calls.
_READ = frozenset({".safetensors", ".json", ".jinja", ".model", ".txt", ".md"})


def refuse_links_out(folder: Path) -> None:
    """Check the links directly in `folder`.

    Followed are links to a file of the same name, links between .safetensors files, and those into the `blobs` of
    the Hub's cache, which keeps a snapshot as such links.

    Raises:
        CheckpointError: another link leads out of the folder; the message names both ends.
    """
    home = Path(os.path.realpath(folder))
    try:
        links = [entry for entry in os.scandir(folder) if entry.is_symlink()]
    except OSError as error:
        raise CheckpointError(f"cannot read {folder}: {error.strerror or error}") from error
    for link in sorted(links, key=lambda entry: entry.name):
        target = Path(os.path.realpath(link.path))
        suffix = Path(link.name).suffix
        known = target.name == link.name or suffix == target.suffix == ".safetensors"
        cached = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
        if known or cached or target.is_relative_to(home):
            continue
        if suffix in _READ or target.is_dir():
            raise CheckpointError(
                f"{link.path} is a link to {target}, which has another name and lies outside of the checkpoint's "
                "folder; put the file itself there"
            )
