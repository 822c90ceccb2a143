"""The page in a real browser: asks for nothing, violates nothing, sorts, copies, changes colours."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ewq_gguf.report import write_report
from tests.report.browser import Browser, find_chromium
from tests.report.test_page import everything

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("Chromium is not installed")
    with Browser(program) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_report(everything(folder), folder / "r.html").path


@pytest.fixture(autouse=True)
def _as_at_first(browser: Browser) -> Iterator[None]:
    yield
    browser.look(1280, 900)


def background(browser: Browser) -> str:
    return str(browser.run("getComputedStyle(document.body).backgroundColor"))


def test_only_the_page_itself_is_asked_for(browser: Browser, page: Path) -> None:
    browser.requests.clear()
    browser.look(1280, 900)
    browser.open(page)
    assert browser.run("document.querySelectorAll('section').length") >= 4
    assert browser.requests == [page.as_uri()]
    assert browser.complaints == []


@pytest.fixture
def server(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The page's folder on 127.0.0.1, and what was asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(page.parent))

        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}", asked
        found.shutdown()
        thread.join()


def test_a_server_is_asked_for_the_page_alone(
    browser: Browser, page: Path, server: tuple[str, list[str]]
) -> None:
    address, asked = server
    browser.open(f"{address}/r.html")
    assert asked == ["/r.html"]


def test_the_policy_is_in_force(browser: Browser, page: Path, server: tuple[str, list[str]]) -> None:
    """Were markup to get in after all, it could neither run nor load nor send anything."""
    address, asked = server
    inside = f'<script>window.ran = 1</script><img src="{address}/x.png" onerror="window.ran = 2"><base href="{address}"></main>'
    page.with_name("broken.html").write_text(page.read_text("utf-8").replace("</main>", inside), "utf-8")
    browser.open(f"{address}/broken.html")
    assert browser.run("typeof window.ran") == "undefined"
    assert browser.run(f"fetch('{address}/sent').then(() => 'sent', () => 'refused')") == "refused"
    assert asked == ["/broken.html"]
    assert any("Content Security Policy" in complaint for complaint in browser.complaints)
    browser.complaints.clear()


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_sticks_out(browser: Browser, page: Path, width: int) -> None:
    browser.look(width, 900)
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_headings_sort_by_mouse_and_keyboard(browser: Browser, page: Path) -> None:
    browser.look(1280, 900)
    browser.open(page)
    column = "Array.from(document.querySelector('#measured table').tBodies[0].rows).map(r => r.cells[0].textContent)"
    head = "document.querySelector('#measured table').tHead.rows[0].cells[0]"
    before = browser.run(column)
    browser.run(f"{head}.querySelector('button').click()")
    assert browser.run(column) == sorted(before)
    assert browser.run(f"{head}.getAttribute('aria-sort')") == "ascending"
    browser.run(f"{head}.querySelector('button').focus()")
    browser.press("Enter", 13)
    assert browser.run(column) == sorted(before, reverse=True)
    figures = column.replace("cells[0].textContent", "cells[2].dataset.v")
    browser.run(f"{head.replace('cells[0]', 'cells[2]')}.querySelector('button').click()")
    values = [float(v) for v in browser.run(figures)]
    assert values == sorted(values)


def test_colours_follow_the_system_until_chosen(browser: Browser, page: Path) -> None:
    browser.look(1280, 900, "light")
    browser.open(page)
    light = background(browser)
    browser.look(1280, 900, "dark")
    dark = background(browser)
    assert light == "rgb(255, 255, 255)"
    assert dark == "rgb(20, 23, 26)"
    browser.run("document.getElementById('scheme').click()")
    assert background(browser) == light
    browser.open(page)
    assert background(browser) == light, "the choice is remembered"
    browser.run("document.getElementById('scheme').click()")
    browser.look(1280, 900, "light")
    assert background(browser) == dark
    browser.look(1280, 900, "light", media="print")
    assert background(browser) == light, "paper is white"
    browser.look(1280, 900, "light")
    browser.run("document.getElementById('scheme').click()")


def test_paper_holds_all_of_it(browser: Browser, page: Path) -> None:
    browser.look(794, 1123, "dark", media="print")
    browser.open(page)
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.run("document.documentElement.scrollWidth") <= 794
    hidden = "Array.from(document.querySelectorAll('th')).filter(h => h.checkVisibility() && !h.innerText.trim()).length"
    assert browser.run(hidden) == 0
    assert browser.run("document.querySelectorAll('details.print:not([open])').length") == 0
    wide = "Array.from(document.querySelectorAll('table')).filter(t => t.offsetWidth > 780).length"
    assert browser.run(wide) == 0


def test_a_command_can_be_copied(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.run("document.querySelector('button.copy').hidden") is False
    browser.run("document.querySelector('button.copy').click()")
    told = browser.run(
        "new Promise(r => setTimeout(() => r(document.querySelector('button.copy').textContent), 300))"
    )
    assert told in ("Copied", "Selected")


def test_everything_is_reached_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(60):
        browser.press("Tab", 9)
        reached.add(browser.run("document.activeElement.tagName + '.' + document.activeElement.className"))
    assert {"BUTTON.", "A.", "DIV.scroll", "SUMMARY."} <= reached
