"""The rows of a page: all there are or a fair draw of them, within its room, and in a block that no browser runs."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from llm_distill.report.html import render
from llm_distill.report.rows import MOST, ROOM, block
from tests.conftest import Desk
from tests.report.many_rows import browse
from tests.report.test_html import HOSTILE, Page

CLEAN = HOSTILE.replace("\ud800", "")  # which no table can hold
BARE = {"name": "bare", "headline": "Nothing yet."}


def rows_of(html: str) -> Any:
    return json.loads(re.search(r'<script type="application/json" id="rows-data">(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]


def test_rows_say_who_was_right_and_what_became_of_them(tmp_path: Path) -> None:
    tables = browse(tmp_path, 30, 40)["tables"]
    row = tables["held_out"]["rows"][0]
    assert row["text"].startswith("Held out 0: I bought this")
    assert (row["gold"], row["tags"]) == ("negative", {"domain": "films"})
    assert row["arms"]["student"] == {"label": "positive", "text": "It is positive.", "score": 0.0}
    assert [r["arms"]["student"]["score"] for r in tables["held_out"]["rows"][:6]] == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    assert Counter(r.get("dropped_by") for r in tables["asked"]["rows"]) == {None: 34, "sure": 6}
    dropped = next(r for r in tables["asked"]["rows"] if r.get("dropped_by"))
    assert (dropped["scores"], dropped["why"]) == ({"sure": 0.61}, {"sure": "too unsure"})
    assert (tables["asked"]["of"], tables["asked"]["said"]) == (40, "34 kept, 6 dropped")


def test_of_more_rows_a_fair_draw_is_there_and_the_page_says_so(tmp_path: Path) -> None:
    data = browse(tmp_path, 2600, 14_000)
    held_out, asked = (data["tables"][name]["rows"] for name in ("held_out", "asked"))
    assert len(held_out) == len(asked) == MOST
    assert Counter("dropped_by" in row for row in asked) == {False: MOST // 2, True: MOST // 2}, (
        "rare rows keep their room"
    )
    number = [int(row["text"].split()[2][:-1]) for row in held_out]
    assert number == sorted(number), "in the table's order"
    assert abs(sum(number) / MOST - 1300) < 60, "from the whole table"
    assert browse(tmp_path, 2600, 14_000) == data, "the same every time"
    html = render(BARE, data)
    assert "Here are 2,000 of 2,600, drawn by chance: held-out rows" in Page(html).text
    assert "2,000 of 14,000, drawn by chance: rows that were asked (12,000 kept, 2,000 dropped)" in Page(html).text
    assert len(html.encode()) < 5_000_000


@pytest.mark.parametrize("text", ["<" * 9000, "\U0001f600 long" * 2000])
def test_texts_are_cut_to_the_room_there_is(tmp_path: Path, text: str) -> None:
    data = browse(tmp_path, 1400, 1400, text)
    html = render(BARE, data)
    assert len(html.encode()) < 5_000_000
    assert len(block(data)["json"].encode()) <= ROOM
    assert len(data["tables"]["held_out"]["rows"]) > 300
    assert "more characters)" in data["tables"]["held_out"]["rows"][0]["text"]
    asked = data["tables"]["asked"]["rows"]
    assert 0.1 < sum("dropped_by" in row for row in asked) / len(asked) < 0.19, "of the 1,400 a seventh was dropped"


def test_what_models_wrote_cannot_leave_its_block(tmp_path: Path) -> None:
    html = render(BARE, browse(tmp_path, 9, 9, f"{CLEAN}</script><!--<script>\u2028\u2029&lt;"))
    data = rows_of(html)
    assert "</script><!--<script>" in data["tables"]["held_out"]["rows"][0]["text"]
    inside = re.search(r'id="rows-data">(.*?)</script>', html, re.DOTALL)
    assert inside is not None
    assert not re.search("[<>&\u2028\u2029\u202e\x00-\x1f]", inside[1])
    page = Page(html)
    assert [attrs.get("id") for attrs in page.all("script")] == ["rows-data", None]
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    script = html.split("<script>")[1].split("</script>")[0]
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}';" in policy
    assert "innerHTML" not in script
    assert "script-src" not in render(BARE)


def test_a_run_without_a_student_shows_what_was_asked(desk: Desk) -> None:
    desk.seeds([{"prompt": f"{i} is good", "label": "positive"} for i in range(9)])
    run = Path(desk.here(desk.recipe(filter=["empty"]))["run"])
    data = rows_of((run / "report/report.html").read_text(encoding="utf-8"))
    assert list(data["tables"]) == ["asked"]
    assert data["tables"]["asked"]["rows"][0]["teacher"] == {"label": "positive"}


def test_a_row_that_a_filter_could_not_measure_says_so(desk: Desk) -> None:
    desk.seeds([{"prompt": "what is 2+2", "reference": "4"}, {"prompt": "and 3+2"}])
    models = {"teacher": {"scripted": {"default": "it is 4"}}}
    recipe = desk.recipe(task="generate", models=models, filter=[{"numeric": {"min": 0.5, "unmeasured": "keep"}}])
    html = (Path(desk.here(recipe)["run"]) / "report/report.html").read_text(encoding="utf-8")
    assert "NaN" not in html.split('id="rows-data">')[1].split("</script>")[0], "no browser reads that as JSON"
    scores = {row["text"]: row["scores"]["numeric"] for row in rows_of(html)["tables"]["asked"]["rows"]}
    assert scores == {"what is 2+2": 1.0, "and 3+2": "not measured"}


def test_texts_are_scored_as_the_verdict_was(tmp_path: Path) -> None:
    data = browse(tmp_path, 6, 0, metric="token_f1", kind="generate")
    assert data["graded"] is False, "no row has a reference, so none has a score"
    assert "score" not in data["tables"]["held_out"]["rows"][0]["arms"]["student"]
