"""The rows browser in a real Chromium: searched, filtered and turned by keyboard, with texts of others inert."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_distill.report.html import render
from tests.conftest import ROOT
from tests.report.chromium import EXECUTABLE, Page, chromium
from tests.report.example_report import full
from tests.report.many_rows import browse
from tests.report.test_browser import WIDER
from tests.report.test_rows import CLEAN

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium on PATH: apt-get install chromium"),
]
HELD = "document.querySelectorAll('#rows-filters select')"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("many")
    file = home / "report.html"
    file.write_text(render(full(), browse(home, 2000, 2000)), encoding="utf-8")
    return file


def typed(page: Page, text: str) -> None:
    page.evaluate("(box => { box.value = ''; box.focus() })(document.getElementById('rows-query'))")
    page.send("Input.insertText", text=text)


def pressed(page: Page, key: str, code: int) -> None:
    for kind in ("keyDown", "keyUp"):
        text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
        page.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)


def chosen(page: Page, place: int, option: str) -> Any:
    return page.evaluate(
        f"(s => {{ s.selectedIndex = [...s.options].findIndex(o => o.text === '{option}'); "
        f"s.dispatchEvent(new Event('change')); return s.selectedIndex }})({HELD}[{place}])"
    )


def said(page: Page) -> Any:
    return page.evaluate("document.getElementById('rows-count').textContent")


def quiet(page: Page, file: Path, width: int) -> None:
    assert page.evaluate(WIDER) == []
    assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    assert page.complaints() == []
    assert [url for url in page.requests() if url != "data:,"] == [file.as_uri()]


def looked_through(page: Page, file: Path, word: str) -> None:
    """A run's own report, at phone and desktop width: searched for a word of its rows, filtered, quiet."""
    for width, dark in ((390, True), (1200, False)):
        page.open(file, width, dark=dark)
        whole = int(said(page).split()[0].replace(",", ""))
        typed(page, word)
        found = int(said(page).split()[0].replace(",", ""))
        assert 0 < found < whole
        shown = page.evaluate(
            "[...document.querySelectorAll('#rows-list li')].map(row => row.textContent.toLowerCase())"
        )
        assert all(word in text for text in shown)
        typed(page, "")
        page.evaluate("document.getElementById('rows-query').dispatchEvent(new Event('input'))")
        counts = []
        for verdict in ("Student right", "Student wrong"):
            assert chosen(page, 0, verdict) > 0
            counts.append(int(said(page).split()[0].replace(",", "")))
        assert sum(counts) == whole, "each row is one or the other"
        quiet(page, file, width)
    assert file.stat().st_size < 5_000_000


def test_the_quickstarts_own_report(page: Page) -> None:
    workspace = Path(os.environ.get("LLM_DISTILL_WORKSPACE") or ROOT / "data")
    reports = sorted(
        (workspace / "runs/quickstart").glob("*/report/report.html"), key=lambda path: path.stat().st_mtime
    )
    if not reports:
        pytest.skip("needs `make quickstart`")
    looked_through(page, reports[-1], "love")


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1200, False)], ids=["phone", "desktop"])
def test_two_thousand_rows_are_searched_and_filtered(page: Page, many: Path, width: int, dark: bool) -> None:
    assert many.stat().st_size < 5_000_000
    page.open(many, width, dark=dark)
    assert said(page) == "2,000 of 2,000 rows, 1 to 20 shown"
    typed(page, "HELD 55:")
    assert said(page) == "20 of 2,000 rows", "55, 155, 255 and so on to 1955"
    assert chosen(page, 0, "Student wrong and teacher right") == 1
    assert said(page) == "18 of 2,000 rows", "a fifth is wrong, of 55 + 100 k all; 2 of these the teacher has wrong too"
    assert "Student wrong" in page.evaluate("document.querySelector('#rows-list li').textContent")
    typed(page, "no such words")
    assert said(page) == "0 of 2,000 rows"
    typed(page, "")
    page.evaluate("document.getElementById('rows-query').dispatchEvent(new Event('input'))")
    assert chosen(page, 1, "films") > 0
    assert said(page).startswith("181 of 2,000 rows")
    quiet(page, many, width)
    asked = "for (const text of ['battery', 'the clock', 'positive', 'x'])"
    timed = "(() => { const start = performance.now(); %s; return performance.now() - start })()"
    box = "const box = document.getElementById('rows-query'); "
    search = box + asked + " { box.value = text; box.dispatchEvent(new Event('input')) }"
    read = "const rows = document.getElementById('rows-data').textContent; " + asked
    took, floor = (
        page.evaluate(timed % search),
        page.evaluate(timed % (read + " JSON.parse(rows.normalize('NFKC').toLowerCase())")),
    )
    assert took < 10 * floor, "searching is about as dear as reading the rows"


def test_tables_and_pages_are_turned_by_keyboard(page: Page, many: Path) -> None:
    page.open(many, 1200)
    page.evaluate("document.getElementById('rows-after').focus()")
    pressed(page, "Enter", 13)
    assert said(page) == "2,000 of 2,000 rows, 21 to 40 shown"
    assert page.evaluate("document.activeElement.id") == "rows-list", "reading goes on at the new rows"
    assert page.evaluate("document.getElementById('rows-page').textContent") == "Page 2 of 100"
    page.evaluate(
        "(s => { s.selectedIndex = 1; s.dispatchEvent(new Event('change')) })(document.getElementById('rows-table'))"
    )
    assert said(page) == "2,000 of 2,000 rows, 1 to 20 shown"
    assert chosen(page, 0, "Dropped by sure") == 3
    assert said(page) == "286 of 2,000 rows, 1 to 20 shown"
    assert "sure score0.61: too unsure" in page.evaluate("document.querySelector('#rows-list li').textContent")
    controls = "[...document.querySelectorAll('#rows input, #rows select, #rows button')]"
    assert page.evaluate(f"{controls}.filter(e => !e.labels?.length && !e.textContent).length") == 0, "each has a name"
    assert page.evaluate("document.getElementById('rows-count').getAttribute('aria-live')") == "polite"
    quiet(page, many, 1200)


@pytest.mark.parametrize(
    "text", [f"{CLEAN}</script><script>alert(1)</script>", "W" * 5000], ids=["hostile", "unbroken"]
)
def test_texts_of_others_are_inert(page: Page, tmp_path: Path, text: str) -> None:
    file = tmp_path / "report.html"
    file.write_text(render({"name": "n", "headline": "h"}, browse(tmp_path, 30, 30, text)), encoding="utf-8")
    page.open(file, 360)
    assert said(page) == "30 of 30 rows, 1 to 20 shown"
    assert page.evaluate("document.querySelectorAll('script').length") == 2
    assert page.evaluate("document.querySelectorAll('img, iframe, style ~ script, [onerror], [src]').length") == 0
    assert text[:30].replace("\x00", "") in page.evaluate("document.querySelector('#rows-list bdi').textContent")
    quiet(page, file, 360)


def test_tags_of_any_name_are_filters_and_characters_stay_whole(page: Page, tmp_path: Path) -> None:
    data = browse(tmp_path, 9, 0, "a" + "\U0001f600" * 400)
    rows = data["tables"]["held_out"]["rows"]
    for place, row in enumerate(rows):
        row["tags"] = {"domain": "films"} if place % 3 else {"constructor": f"kind {place % 2}"}
    file = tmp_path / "report.html"
    file.write_text(render({"name": "n", "headline": "h"}, data), encoding="utf-8")
    page.open(file, 390)
    options = page.evaluate(f"[...{HELD}].map(s => [...s.options].map(o => o.text))")
    assert options[1:] == [["all", "kind 0", "kind 1"]]
    assert chosen(page, 1, "kind 0") == 1
    assert said(page) == "2 of 9 rows"
    halves = (
        "[...document.querySelectorAll('#rows-list bdi')].map(e => e.textContent).filter(t => !t.isWellFormed()).length"
    )
    assert page.evaluate(halves) == 0
    quiet(page, file, 390)


@pytest.mark.parametrize(
    "word", ["strasse", "STRAßE", "ΟΔΟΣ", "οδος", "οδοσ", "\uff26ULL", "ﬁsh", "e\u0301te\u0301", "ÉTÉ"]
)
def test_a_word_is_found_in_any_case_and_form(page: Page, tmp_path: Path, word: str) -> None:
    text = "Straße, οδοσήμανση, full, fish, \u00e9t\u00e9"
    file = tmp_path / "report.html"
    file.write_text(render({"name": "n", "headline": "h"}, browse(tmp_path, 3, 0, text)), encoding="utf-8")
    page.open(file, 390)
    typed(page, word)
    assert said(page) == "3 of 3 rows"
    typed(page, f"{word}x")
    assert said(page) == "0 of 3 rows"


def test_nothing_but_its_own_script_may_run(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    html = render({"name": "n", "headline": "h"}, browse(tmp_path, 3, 3))
    file.write_text(html.replace("</body>", "<script>document.title = 'taken'</script></body>"), encoding="utf-8")
    page.open(file, 360)
    assert page.evaluate("document.title") != "taken"
    assert any("Content Security Policy" in line for line in page.complaints())


def test_without_scripts_the_page_says_where_the_rows_are(page: Page, many: Path) -> None:
    page.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(many, 390)
        shown = page.send("Runtime.evaluate", expression="document.querySelector('#rows').innerText")["result"]["value"]
    finally:
        page.send("Emulation.setScriptExecutionDisabled", value=False)
    assert "llm-distill show RUN kept" in shown
    assert "Search" not in shown.split("To search them")[1]
