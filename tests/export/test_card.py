"""The model card: what a file says of itself, and nothing that it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ewq_gguf import Decision, convert
from ewq_gguf.errors import CheckpointError
from ewq_gguf.export.card import export_card, write_card
from ewq_gguf.export.placing import ExportError

from .tiny_gguf import write_gguf

FACTS = {
    "general.source.repo_url": "https://huggingface.co/org/tiny",
    "general.license": "apache-2.0",
    "general.license.link": "https://example.org/licence",
    "general.languages": ["en", "de"],
    "general.tags": ["text-generation", "chat: yes"],
}


@pytest.fixture(scope="module")
def converted(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("card") / "reference-Q4_K_M.gguf"
    convert(reference, path, Decision(type="Q4_K_M"))
    return path


def front(text: str) -> dict[str, object]:
    _, head, _ = text.split("---\n", 2)
    found: dict[str, object] = yaml.safe_load(head)
    return found


def test_front_matter(tmp_path: Path) -> None:
    card = export_card(write_gguf(tmp_path / "m.gguf", keys=FACTS))
    assert card.base_model == "org/tiny"
    assert front(card.text) == {
        "base_model": "org/tiny",
        "base_model_relation": "quantized",
        "license": "apache-2.0",
        "license_link": "https://example.org/licence",
        "language": ["en", "de"],
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "quantized", "ewq-gguf", "chat: yes"],
    }


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    card = export_card(write_gguf(tmp_path / "m.gguf"))
    assert card.base_model is None
    assert set(front(card.text)) == {"library_name", "pipeline_tag", "tags"}
    assert "does not say how it was made" in card.text
    assert "Measured" not in card.text
    named = export_card(tmp_path / "m.gguf", base_model="org/other")
    assert front(named.text)["base_model"] == "org/other"


def test_a_converted_file(converted: Path) -> None:
    text = export_card(converted, repository="me/reference-GGUF").text
    assert "llama-quantize's preset Q4_K_M" in text
    assert f"| bytes | {converted.stat().st_size:,} |" in text
    assert "| Q4_K | " in text
    assert "ewq-gguf convert path/to/original -o again.gguf --plan reference-Q4_K_M.gguf\n" in text
    assert "hf download me/reference-GGUF reference-Q4_K_M.gguf" in text


def test_the_commands_make_the_same_weights(converted: Path, reference: Path, tmp_path: Path) -> None:
    again = convert(reference, tmp_path / "again.gguf", Decision(plan=converted))
    assert again.path.read_bytes()[-6_000_000:] == converted.read_bytes()[-6_000_000:]


def test_figures_come_from_a_measurement(converted: Path, tmp_path: Path) -> None:
    entry = {
        "file": f"some/folder/{converted.name}",
        "ppl": 21.5,
        "ppl_se": 0.25,
        "tokens": 5100,
        "mean_kld": 0.0617,
        "mean_kld_se": 0.001,
        "top1_agreement": 0.91,
    }
    told = tmp_path / "kld.json"
    told.write_text(json.dumps({"baseline": "x/base.gguf", "text": "y/text.txt", "files": [entry]}))
    text = export_card(converted, measurements=told).text
    assert "| mean KL divergence, nats | 0.061700 | 0.001000 |" in text
    assert "| perplexity | 21.5000 | 0.2500 |" in text
    assert "baseline `base.gguf`, text `text.txt`, 5,100 tokens" in text
    told.write_text(json.dumps({"files": [{**entry, "file": "another.gguf"}]}))
    with pytest.raises(ExportError, match="no figures of"):
        export_card(converted, measurements=told)
    told.write_text(json.dumps({"files": [{"file": converted.name}]}))
    with pytest.raises(ExportError, match="no figures"):
        export_card(converted, measurements=told)
    told.write_text("{")
    with pytest.raises(CheckpointError):
        export_card(converted, measurements=told)


def test_metadata_cannot_write_the_card(tmp_path: Path) -> None:
    keys = {
        "general.name": "x\n---\n# Evil <script> [a](b) `c`",
        "general.license": 'mit"\nevil: yes',
        "general.source.repo_url": "https://huggingface.co/../../evil x",
    }
    card = export_card(write_gguf(tmp_path / "m.gguf", keys=keys))
    assert front(card.text)["license"] == 'mit"\nevil: yes'
    assert "evil" not in front(card.text)
    assert "<script>" not in card.text
    assert card.base_model is None


def test_writing(tmp_path: Path) -> None:
    card = export_card(write_gguf(tmp_path / "m.gguf"))
    target = tmp_path / "out" / "README.md"
    write_card(card, target)
    write_card(card, target)
    target.write_text("mine")
    with pytest.raises(ExportError, match="--force"):
        write_card(card, target)
    write_card(card, target, force=True)
    assert target.read_text(encoding="utf-8") == card.text
    assert [p.name for p in target.parent.iterdir()] == ["README.md"]
