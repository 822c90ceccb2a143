"""Where LM Studio looks, and files that are whole when they have their name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ewq_gguf.export.lmstudio import export_lmstudio, find_models_folder
from ewq_gguf.export.placing import ExportError, place

from .tiny_gguf import write_gguf


def test_the_folder_is_found(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--models-folder"):
        find_models_folder(tmp_path)
    old = tmp_path / ".cache" / "lm-studio"
    old.mkdir(parents=True)
    assert find_models_folder(tmp_path) == old / "models"
    new = tmp_path / ".lmstudio"
    new.mkdir()
    assert find_models_folder(tmp_path) == new / "models"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / ".lmstudio-home-pointer").write_text(f"{elsewhere}\n")
    assert find_models_folder(tmp_path) == elsewhere / "models"
    (elsewhere / "settings.json").write_text(json.dumps({"downloadsFolder": str(tmp_path / "big disk")}))
    assert find_models_folder(tmp_path) == tmp_path / "big disk"


@pytest.mark.parametrize("settings", ["", "{", "[]", '{"downloadsFolder": 3}', '{"downloadsFolder": "a/b"}'])
def test_settings_that_say_nothing(tmp_path: Path, settings: str) -> None:
    home = tmp_path / ".lmstudio"
    home.mkdir()
    (home / "settings.json").write_text(settings)
    (tmp_path / ".lmstudio-home-pointer").write_text("relative/path\n")
    assert find_models_folder(tmp_path) == home / "models"


@pytest.mark.parametrize("link", ["copy", "hard", "symlink"])
def test_placing(tmp_path: Path, link: str) -> None:
    source = write_gguf(tmp_path / "m-Q8_0.gguf", keys={"general.organization": "Some Lab!"})
    done = export_lmstudio(source, link=link, models_folder=tmp_path / "models")
    target = tmp_path / "models" / "Some-Lab" / "m-Q8_0" / "m-Q8_0.gguf"
    assert done.paths == (target,)
    assert target.read_bytes() == source.read_bytes()
    assert target.is_symlink() == (link == "symlink")
    assert target.samefile(source) == (link != "copy")
    assert [p.name for p in target.parent.iterdir()] == [target.name]


def test_names_are_folders(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf")
    done = export_lmstudio(source, publisher="me", model="my model", models_folder=tmp_path / "models")
    assert done.paths[0] == tmp_path / "models" / "me" / "my model" / "m.gguf"
    assert export_lmstudio(source, models_folder=tmp_path / "models").paths[0].parts[-3] == "local"
    for bad in ("..", "a/b", "", "/etc", ".hidden", "a\nb"):
        with pytest.raises(ExportError, match="no folder name"):
            export_lmstudio(source, publisher=bad, models_folder=tmp_path / "models")


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "folder" / "b"
    source.write_text("new")
    target.parent.mkdir()
    target.write_text("old")
    for link in ("copy", "hard", "symlink"):
        with pytest.raises(ExportError, match="--force"):
            place(source, target, link)
        assert target.read_text() == "old"
    place(source, target, "hard", force=True)
    assert target.samefile(source)
    place(source, target, "hard")
    place(source, target, "symlink", force=True)
    assert target.is_symlink()
    place(source, target, "symlink")
    place(source, target, "copy", force=True)
    assert not target.is_symlink()
    assert (target.read_text(), source.read_text()) == ("new", "new")


@pytest.mark.parametrize("link", ["copy", "hard", "symlink"])
def test_a_file_is_never_replaced_by_a_link_to_itself(tmp_path: Path, link: str) -> None:
    source = tmp_path / "a"
    source.write_text("kept")
    place(source, source, link, force=True)
    assert not source.is_symlink()
    assert source.read_text() == "kept"


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a"
    source.write_text("x")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ewq_gguf.export.placing.shutil.copyfile", full)
    with pytest.raises(ExportError, match="No space left"):
        place(source, tmp_path / "out" / "b", "copy")
    monkeypatch.setattr("ewq_gguf.export.placing.os.link", full)
    with pytest.raises(ExportError, match="--link copy"):
        place(source, tmp_path / "out" / "b", "hard")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(ExportError, match="no way"):
        place(source, tmp_path / "b", "teleport")
