"""Upload GGUF files with their model card to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ewq_gguf.checkpoint.hub import endpoint, hub_library, parse_hub_id
from ewq_gguf.checkpoint.hub_errors import HubId, explained
from ewq_gguf.export.placing import ExportError

CARD_NAME = "README.md"


@dataclass(frozen=True)
class Pushed:
    """Where the files are now, and whether the card went with them."""

    url: str
    commit: str
    with_card: bool


def check_repository(repository: str) -> HubId:
    """A name under which files can be uploaded, checked before any work.

    Raises:
        ExportError: not org/name.
        CheckpointError: huggingface_hub is not installed.
    """
    model = parse_hub_id(repository)
    if model is None or model.revision is not None:
        raise ExportError(f"{repository!r:.80} is no repository on the Hub; give org/name")
    hub_library(model)
    return model


def push_files(
    paths: Sequence[Path],
    repository: str,
    card: str,
    *,
    private: bool = False,
    replace_card: bool = True,
    bars: bool = False,
) -> Pushed:
    """Make the repository if there is none, and upload the files and the card in one commit.

    Args:
        paths: GGUF files; they keep their names.
        repository: "org/name-GGUF".
        card: the text of README.md.
        private: a repository that is made anew is private.
        replace_card: False keeps a card that is there already.
        bars: let huggingface_hub draw its progress bars on stderr.

    Raises:
        ExportError: a name that the Hub does not have.
        CheckpointError: no huggingface_hub, no token that may write there, or no connection.
    """
    model = check_repository(repository)
    hub = hub_library(model)
    if not bars:
        hub.utils.disable_progress_bars()
    with explained(model, writing=True):
        api = hub.HfApi(endpoint=endpoint())
        api.create_repo(model.repository, exist_ok=True, private=private)
        known = {s.rfilename for s in api.model_info(model.repository).siblings or ()}
        with_card = replace_card or CARD_NAME not in known
        operations = [hub.CommitOperationAdd(path.name, str(path)) for path in paths]
        if with_card:
            operations.append(hub.CommitOperationAdd(CARD_NAME, card.encode()))
        names = ", ".join(path.name for path in paths)
        done = api.create_commit(model.repository, operations, commit_message=f"Add {names} with ewq-gguf")
    return Pushed(
        f"{(endpoint() or 'https://huggingface.co').rstrip('/')}/{repository}", str(done.oid), with_card
    )
