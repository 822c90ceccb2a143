"""The page: complete, closed to the network, and deaf to what files try to say."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from ewq_gguf.errors import EwqError
from ewq_gguf.report import write_report
from tests.report.documents import (
    analysis,
    divergence,
    figures,
    model_file,
    plan,
    plan_entry,
    probes,
    record,
    written,
)

EVIL = '</title></style></script><script>alert(1)</script><img src=x onerror="alert(2)">\u202e"\'`&'
VOID = {"meta", "link", "br", "rect", "line", "path"}


class Tree(HTMLParser):
    """Elements in order, with their attributes; complains about what is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every such element."""
        return [attributes for name, attributes in self.elements if name == tag]


def check(page: str) -> Tree:
    """What holds for every page: only its own style and script, no address, no attribute that runs or styles."""
    tree = Tree(page)
    policy = next(m["content"] for m in tree.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "http:" not in policy
    assert "https:" not in policy
    for tag in ("script", "style"):
        contents = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert len(tree.all(tag)) == len(contents) == 1
        digest = base64.b64encode(hashlib.sha256(contents[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    for name, attributes in tree.elements:
        assert name not in ("img", "iframe", "object", "embed", "base", "form", "image", "foreignobject")
        for key, value in attributes.items():
            assert not key.startswith("on")
            assert key != "style"
            if key in ("src", "href", "xlink:href"):
                assert value is not None
                assert value == "data:," or value.startswith("#")
    ids = [a["id"] for _, a in tree.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert all((a["href"] or "")[1:] in ids for a in tree.all("a"))
    return tree


def everything(folder: Path) -> list[Path]:
    """One input of every kind."""
    measured = divergence(figures("a.gguf", 5 << 20, 0.1), figures("b.gguf", 8 << 20, 0.02))
    pair = {"measure": "kld", "first": "a.gguf", "second": "b.gguf", "difference": 0.08, "se": 0.01, "z": 8.0,
            "better": "b.gguf"}  # fmt: skip
    return [
        written(folder / "plan.json", plan()),
        written(folder / "kld.json", {**measured, "pairs": [pair]}),
        written(folder / "entropy.json", analysis()),
        written(folder / "probes.json", probes()),
        written(folder / "tiny" / "results.json", record()).parent,
        written(folder / "allocation-tiny" / "results.json", record(allocation=True)),
    ]


def test_everything_at_once(tmp_path: Path) -> None:
    report = write_report(everything(tmp_path), tmp_path / "r.html")
    page = report.path.read_text(encoding="utf-8")
    tree = check(page)
    text = "".join(tree.text)
    for told in (
        "What was converted", "What it cost", "What the blocks are like", "Make it again", "Q4_K_M",
        "blk.0.attn_q.weight", "Rank correlation", "0.10000 ±\u00a00.00200", "thousandths of a nat",
        "Block entropy", "make allocation-study MODELS=tiny", "Files compared on the same tokens",
    ):  # fmt: skip
        assert told in text, told
    # Every picture says what it shows, and every point and cell what it is.
    pictures = [a for a in tree.all("svg") if a.get("role") == "img"]
    assert len(pictures) >= 7
    assert all(a.get("aria-label") for a in pictures)
    assert len(tree.all("title")) > 30
    assert all(a.get("scope") == "col" for a in tree.all("th"))
    # Whatever scrolls can be reached and moved with the keyboard.
    assert all(a.get("tabindex") == "0" for a in tree.all("div") if a.get("class") == "scroll")


def test_the_same_inputs_give_the_same_page(tmp_path: Path) -> None:
    inputs = everything(tmp_path)
    pages = [write_report(inputs, tmp_path / "r.html").path.read_bytes() for _ in range(2)]
    assert pages[0] == pages[1]
    assert str(tmp_path).encode() not in pages[0]
    assert b"/somewhere" not in pages[0]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    entropies = [{"index": i, "entropy": 1.0 + i, "class": EVIL} for i in range(3)]
    parameters = {EVIL: EVIL, "target": {EVIL: EVIL}, "list": [EVIL], "blocks": entropies}
    tensors = [
        plan_entry(f"blk.0.{EVIL}.weight", "Q8_0", [64, 64], EVIL),
        plan_entry(EVIL, "Q8_0", [64, 64], EVIL),
    ]
    data = {**plan(tensors, EVIL, parameters), "source": {"arch": EVIL, "fingerprint": EVIL}}
    measured = divergence(figures(EVIL, 5 << 20, 0.1), figures(f"2{EVIL}", 6 << 20, 0.2))
    measured |= {"baseline": EVIL, "text": EVIL}
    measured["pairs"] = [{"measure": EVIL, "first": EVIL, "second": EVIL, "difference": 1.0, "better": EVIL}]
    rows = [
        {**figures(EVIL, 5 << 20, 0.1), "model": EVIL, "text": EVIL, "method": EVIL, "preset": EVIL, "key": EVIL,
         "predicted": 0.2},
    ]  # fmt: skip
    probe = [
        {"tensor": t, "type": EVIL, "scale": 1.0, "kld": 0.1, "se": 0.1} for t in (f"blk.1.{EVIL}", EVIL)
    ]
    inputs = [
        written(tmp_path / "plan.json", data),
        written(tmp_path / "kld.json", measured),
        written(tmp_path / "rows.json", rows),
        written(tmp_path / "probe.json", probe),
        written(tmp_path / "<b>&'" / "results.json", record()),
        written(tmp_path / '<img src=x>".json', analysis()),
    ]
    page = write_report(inputs, tmp_path / "r.html", title=EVIL).path.read_text(encoding="utf-8")
    tree = check(page)
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert sum("alert(1)" in text for text in tree.text) > 10


def test_hostile_metadata_of_a_model(tmp_path: Path) -> None:
    keys = ("general.name", "general.license", "tokenizer.ggml.model", "quantize.imatrix.file", "ewq.version")
    hostile = tmp_path / "<i>.gguf"
    model_file(hostile, EVIL, {"target": EVIL, EVIL: [EVIL]}, dict.fromkeys(keys, EVIL))
    tree = check(write_report(hostile, tmp_path / "r.html").path.read_text(encoding="utf-8"))
    assert sum("alert(1)" in text for text in tree.text) >= len(keys)


NASTY = [None, True, -1, 0, 10**400, 1e308, 5e-324, float("nan"), float("-inf"), "", EVIL, "x" * 5000, [], {},
         [[[]]], {"a": {"b": 1}}, [1, "2", None, {}], "blk.0.attn_q.weight", "Q4_K_M"]  # fmt: skip


def spoiled(value: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    """A copy in which one value, somewhere, has become another."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: spoiled(value[key], draw)}
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], spoiled(value[at], draw), *value[at + 1 :]]
    return draw(st.sampled_from(NASTY))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_spoiled_input_is_shown_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    ewq = plan(method="ewq", parameters=analysis())
    kinds = [plan(), ewq, divergence(figures("a.gguf", 5 << 20, 0.1), figures("b.gguf", 8 << 20, 0.02)), analysis(),
             probes(), record(), record(allocation=True)]  # fmt: skip
    document = data.draw(st.sampled_from(kinds))
    for _ in range(data.draw(st.integers(1, 3))):
        document = spoiled(document, data.draw)
    source = written(tmp_path / "spoiled.json", document)
    try:
        page = write_report(source, tmp_path / "r.html").path.read_text("utf-8")
    except EwqError as error:
        told = str(error)
        event("refused")
    else:
        told = ""
        check(page)
    assert "\n" not in told


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = written(tmp_path / "p.json", plan()), tmp_path / "r.html"
    target.write_text("before")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(EwqError, match="No space left"):
        write_report(source, target)
    assert target.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.json", "r.html"]


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    source = written(tmp_path / "p.json", plan())
    with pytest.raises(EwqError, match="is a folder"):
        write_report(source, tmp_path)
    with pytest.raises(EwqError, match="create it first"):
        write_report(source, tmp_path / "none" / "r.html")
    with pytest.raises(EwqError, match="one of the inputs"):
        write_report([source], source)
    assert source.read_text().startswith("{")


def test_one_measurement_is_told_in_large_figures(tmp_path: Path) -> None:
    source = written(tmp_path / "m.json", divergence(figures("a.gguf", 5, 0.0123)))
    text = " ".join(Tree(write_report(source, tmp_path / "r.html").path.read_text("utf-8")).text)
    assert "0.0123 mean KL divergence, nats" in text
    assert "90.00 % same top token" in text


def test_plans_with_predictions_alone_make_a_ladder(tmp_path: Path) -> None:
    names = []
    for i, kind in enumerate(("Q4_K", "Q5_K", "Q6_K")):
        data = plan([plan_entry("blk.0.ffn_up.weight", kind, [256, 256])])
        data["parameters"]["predicted"] = 0.1 / 2**i
        names.append(written(tmp_path / f"{kind}.json", data))
    text = " ".join(Tree(write_report(names, tmp_path / "r.html").path.read_text("utf-8")).text)
    assert "Size against predicted divergence" in text
    assert "Q5_K.json: 0.05 nats predicted" in text
