"""The page in a real Chromium: nothing logged, nothing asked of the network, nothing wider than the window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_distill.report.html import render
from tests.report.chromium import EXECUTABLE, Page, chromium
from tests.report.example_report import full
from tests.report.test_html import HOSTILE, poisoned

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium on PATH: apt-get install chromium"),
]
REPORTS: dict[str, Any] = {
    "full": full(),
    "hostile": poisoned(full(), HOSTILE),
    "unbroken": poisoned(full(), "W" * 100_000),
    "bare": {"name": "bare", "headline": "400 of 420 answers were kept; no student was evaluated in this run."},
}
WIDER = (
    "[...document.body.querySelectorAll('*')].filter(e => !e.closest('.scroll, .skip, .hidden') && "
    "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 200))"
)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("name", "width"), [*((name, width) for name in REPORTS for width in (360, 1200)), ("full", 700), ("full", 900)]
)
def test_shows(page: Page, tmp_path: Path, name: str, width: int, dark: bool) -> None:
    file = tmp_path / "report.html"
    file.write_text(render(REPORTS[name]), encoding="utf-8")
    page.open(file, width, dark=dark)
    assert page.evaluate(WIDER) == []
    assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    assert page.evaluate("document.querySelectorAll('script, img, iframe, [onerror]').length") == 0
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(16, 21, 20)" if dark else "rgb(251, 252, 251)")
    assert page.complaints() == []
    assert [url for url in page.requests() if url != "data:,"] == [file.as_uri()]


def test_long_answers_unfold_and_print(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(render(full()), encoding="utf-8")
    page.open(file, 360)
    folded = page.evaluate("document.documentElement.scrollHeight")
    page.evaluate("document.querySelectorAll('summary').forEach(s => s.click())")
    assert page.evaluate("document.documentElement.scrollHeight") > folded
    page.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
