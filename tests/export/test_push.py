"""Upload of a file and its card to a hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ewq_gguf.cli import cli
from ewq_gguf.errors import CheckpointError
from ewq_gguf.export.placing import ExportError
from ewq_gguf.export.push import push_files
from tests.checkpoint.fake_hub import TOKEN, FakeHub, serving

from .tiny_gguf import write_gguf

pytest.importorskip("huggingface_hub")
# huggingface_hub hands its HTTP library the file in a way that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    # The other way to upload speaks a protocol of its own with another server.
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving(FakeHub()) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        yield found


def test_a_file_and_its_card(hub: FakeHub, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m-Q8_0.gguf")
    done = push_files([path], "me/m-GGUF", "# A card\n", private=True)
    assert done.url == f"{hub.address}/me/m-GGUF"
    assert done.with_card
    repository = hub.repositories["me/m-GGUF"]
    assert repository.private
    assert repository.files == {"m-Q8_0.gguf": path.read_bytes(), "README.md": b"# A card\n"}


def test_a_card_that_is_there_can_be_kept(hub: FakeHub, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    push_files([path], "me/m-GGUF", "first")
    kept = push_files([path], "me/m-GGUF", "second", replace_card=False)
    assert not kept.with_card
    assert hub.repositories["me/m-GGUF"].files["README.md"] == b"first"
    push_files([path], "me/m-GGUF", "third")
    assert hub.repositories["me/m-GGUF"].files["README.md"] == b"third"


def test_convert_and_upload(hub: FakeHub, tmp_path: Path, reference: Path) -> None:
    out = tmp_path / "reference-Q8_0.gguf"
    arguments = ["convert", str(reference), "-o", str(out), "--type", "Q8_0", "--push"]
    refused = CliRunner().invoke(cli, [*arguments, "nobody"])
    assert refused.exit_code == 1
    assert not out.exists()
    done = CliRunner().invoke(cli, [*arguments, "me/reference-GGUF"])
    assert done.exit_code == 0, done.output
    assert f"uploaded to {hub.address}/me/reference-GGUF" in done.stderr.replace("\n", "")
    files = hub.repositories["me/reference-GGUF"].files
    assert files[out.name] == out.read_bytes()
    assert b"hf download me/reference-GGUF reference-Q8_0.gguf" in files["README.md"]
    card = CliRunner().invoke(cli, ["export", "card", str(out), "--push", "me/reference-GGUF"])
    assert card.exit_code == 0, card.output
    assert card.stdout == f"1 file and its card are at {hub.address}/me/reference-GGUF\n"


def test_refusals(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    for name in ("m-GGUF", "me/m@main", "a/b/c", ""):
        with pytest.raises(ExportError, match="no repository"):
            push_files([path], name, "")
    with pytest.raises(CheckpointError, match="may not write to others/m"):
        push_files([path], "others/m", "")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CheckpointError, match="token"):
        push_files([path], "me/m-GGUF", "")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="cannot be reached"):
        push_files([path], "me/m-GGUF", "")
