"""People's decisions: out on a sheet, back with all that spreadsheets do to one, and honoured by every run of the recipe."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill import review, review_sheet, store
from llm_distill.errors import UserError
from llm_distill.review import Decision, agreement
from tests.conftest import Desk

EVIL = '=HYPERLINK("http://evil.example","x"); -1+1\n- item\n@SUM(A1)\x00\u202e'


@pytest.fixture
def run(desk: Desk) -> store.RunFolder:
    desk.seeds([{"prompt": f"{'long' if i % 2 else 'short'} {'evil ' * (i % 10 == 1)}number {i}"} for i in range(40)])
    teacher = {"scripted": {"rules": {"evil": EVIL, "long": "a long answer, long enough"}, "default": "short"}}
    recipe = desk.recipe(task="generate", models={"teacher": teacher}, filter=["empty", {"length": {"min": 10}}])
    return store.RunFolder(Path(desk.here(recipe)["run"]))


def again(desk: Desk, *overrides: str) -> store.RunFolder:
    return store.RunFolder(Path(desk.here(desk.folder / "job.yaml", *overrides)["run"]))


def drawn(run: store.RunFolder, rows: int = 20, by: review_sheet.By = "both", where: str | None = None) -> Any:
    return review_sheet.draw(run, rows, by, where)


def sheet(run: store.RunFolder, path: Path, decide: Callable[[dict[str, str]], str], delimiter: str = ",") -> Path:
    """A sheet that went out and was filled in by a spreadsheet."""
    review_sheet.write(drawn(run, 40), path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["decision"] = decide(row)
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_sheet_has_kept_rows_and_those_of_each_filter(run: store.RunFolder) -> None:
    rows = drawn(run)
    assert len(rows) == 20
    assert sorted({row["dropped_by"] for row in rows}) == ["", "length"]
    assert sum(row["dropped_by"] == "length" for row in rows) == 10
    assert {(row["decision"], row["note"], row["reviewer"]) for row in rows} == {("", "", "")}
    assert rows == drawn(run)
    assert [row["dropped_by"] for row in rows] != sorted(row["dropped_by"] for row in rows)
    assert len(drawn(run, 1000)) == 40
    assert {row["dropped_by"] for row in drawn(run, by="kept")} == {""}
    some = drawn(run, by="dropped", where="`score.length` < 10 and text == 'short'")
    assert {row["drawn"] for row in some} == {"by a query"}


def test_formulas_are_disarmed(run: store.RunFolder, tmp_path: Path) -> None:
    review_sheet.write(drawn(run, 40), tmp_path / "sheet.csv")
    raw = (tmp_path / "sheet.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf")
    with (tmp_path / "sheet.csv").open(encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not any(cell[:1] in "=+-@\t\r" for cell in cells if cell and not cell.replace(".", "").isdigit())
    (evil, *_) = (cell for cell in cells if "HYPERLINK" in cell)
    assert evil == "'" + '=HYPERLINK("http://evil.example","x"); \'-1+1\n- item\n\'@SUM(A1)␀[U+202E]'


@given(st.text())
def test_escaping_is_undone(cell: str) -> None:
    assert review_sheet.unescaped(review_sheet.escaped(cell)) == cell
    assert not review_sheet.escaped(cell).startswith(("=", "+", "-", "@", "\t", "\r", "＝"))  # noqa: RUF001


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 50), max_size=6), st.integers(0, 200))
def test_shares_are_as_equal_as_they_can_be(sizes: dict[str, int], total: int) -> None:
    counts = review_sheet._fill(sizes, total)
    assert sum(counts.values()) == min(total, sum(sizes.values()))
    assert all(counts[name] <= sizes[name] for name in sizes)
    open_ = [counts[name] for name in sizes if counts[name] < sizes[name]]
    assert max(counts.values(), default=0) <= min(open_, default=10**9) + 1


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_decisions_come_back(run: store.RunFolder, tmp_path: Path, delimiter: str) -> None:
    path = sheet(run, tmp_path / "s.csv", lambda row: "KEEP " if "1" in row["prompt"] else "", delimiter)
    decisions = review_sheet.read(path, run)
    answers = store.read_answers(run.file("answers.parquet"))
    assert {d.key for d in decisions} == {review.key(a) for a in answers if "1" in a.prompt.text}
    assert {(d.decision, d.random) for d in decisions} == {("keep", True)}
    assert review.remember(run, decisions) == {"new": len(decisions), "changed": 0, "unchanged": 0}
    assert review.remember(run, decisions)["unchanged"] == len(decisions)
    other = [Decision(decisions[0].key, "drop", "=on second thoughts")]
    assert review.remember(run, other) == {"new": 0, "changed": 1, "unchanged": 0}
    assert review.decisions(run)[decisions[0].key].note == "=on second thoughts"
    assert len(drawn(run, 100)) == 40 - len(decisions)  # what is decided is not asked again


def test_jsonl_comes_back(run: store.RunFolder, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    review_sheet.write(drawn(run, 40, where="text.str.contains('HYPER')", by="kept"), path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows[0]["answer"] == EVIL  # no spreadsheet, no formula
    rows[0]["decision"], rows[0]["note"] = "drop", "'=1"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert review_sheet.read(path, run) == [
        Decision(rows[0]["id"].removeprefix("row-"), "drop", "'=1", "", random=False)
    ]


def edited(line: int, old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        lines = text.split("\r\n")
        assert old in lines[line], lines[line]
        lines[line] = lines[line].replace(old, new, 1)
        return "\r\n".join(lines)

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (edited(1, "keep", "maybe"), r"s.csv:2: decision 'maybe'; write keep or drop"),
        (edited(2, "row-", "row-0"), r"s.csv:3: no row 'row-0"),
        (edited(1, "keep,", ",nice"), r"s.csv:2: a note and no decision"),
        (edited(0, "decision", "decided"), r"s.csv:2: no column 'decision'"),
        (edited(0, "note", "id"), r"s.csv:1: a column stands twice"),
        (edited(1, "by chance", "by me"), r"s.csv:2: drawn 'by me'"),
        (lambda text: text[:-40].rstrip("\r\n,.0123456789"), r"s.csv:\d+: \d+ cells, but the header has \d+"),
        (lambda text: text.replace("keep", ""), "no row has a decision"),
        (
            lambda text: text + text.split("\r\n")[1].replace("keep", "drop") + "\r\n",
            r"is decided twice, as keep in .*s.csv:2",
        ),
        (lambda text: text + '"row-', r"s.csv:\d+: malformed row"),
        (lambda _text: "", "no row has a decision"),
    ],
)
def test_a_sheet_that_is_not_as_it_went_out(
    run: store.RunFolder, tmp_path: Path, edit: Callable[[str], str], said: str
) -> None:
    path = sheet(run, tmp_path / "s.csv", lambda row: "keep")
    lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if "evil" not in line]
    text = "\r\n".join(line for line in lines if line.startswith(("id", "row-")) or not line)
    path.write_bytes(edit(text).encode("utf-8-sig"))
    with pytest.raises(UserError, match=said):
        review_sheet.read(path, run)


def test_other_faults_are_named(run: store.RunFolder, tmp_path: Path) -> None:
    rows = drawn(run)
    with pytest.raises(UserError, match=r"a \.csv or a \.jsonl file"):
        review_sheet.write(rows, tmp_path / "s.xlsx")
    review_sheet.write(rows, tmp_path / "s.csv")
    with pytest.raises(UserError, match="there already and may hold decisions"):
        review_sheet.write(rows, tmp_path / "s.csv")
    with pytest.raises(UserError, match="no row is left to judge"):
        review_sheet.write([], tmp_path / "other.csv")
    (tmp_path / "latin.csv").write_bytes("id,decision,drawn\r\nrow-1,keep,\xe9\r\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.csv:2: not UTF-8 text"):
        review_sheet.read(tmp_path / "latin.csv", run)
    (tmp_path / "s.jsonl").write_text('{"id": 3, "decision": "keep", "drawn": "by chance"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"s.jsonl:1: id is 3; write text"):
        review_sheet.read(tmp_path / "s.jsonl", run)
    review.place(run).parent.mkdir()
    review.place(run).write_text('{"key": "x", "decision": "perhaps"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"job.jsonl:1: not a decision"):
        review.decisions(run)


def test_decisions_are_honoured_and_survive(desk: Desk, run: store.RunFolder) -> None:
    answers = {a.prompt.text: a for a in store.read_answers(run.file("answers.parquet"))}
    saved, gone = answers["short number 2"], answers["long number 3"]
    review.remember(run, [Decision(review.key(saved), "keep"), Decision(review.key(gone), "drop", "dull")])
    for new in (again(desk), again(desk, "filter.length.min=11"), again(desk, "seed=3")):
        kept = {row["row_id"]: row for row in store.read_table(new.file("kept.parquet"))}
        dropped = {row["row_id"]: row for row in store.read_table(new.file("dropped.parquet"))}
        assert kept[saved.prompt.row_id]["filtered_by"] == "length"
        assert kept[saved.prompt.row_id]["review"] == "keep"
        assert dropped[gone.prompt.row_id]["dropped_by"] == "review"
        assert dropped[gone.prompt.row_id]["filtered_by"] is None
        assert len(kept) == 20
        noted = new.stamp("filter")["review"]
        assert (noted["decided"], noted["dropped"], noted["kept"]["rows"]) == (2, 1, 20)
        assert review.own_verdicts(new)[saved.prompt.row_id] == "length"
        report = json.loads(new.file("report/report.json").read_text(encoding="utf-8"))
        assert report["review"]["kept"]["clean"]["value"] == 0.0  # of the rows kept one was judged, and found bad
        assert report["funnel"]["dropped_by_review"] == 1
        assert "Review by people 39 1" in " ".join(_text(new.file("report/report.html")).split())
    assert not any(stage["ran"] for stage in desk.here(desk.folder / "job.yaml", "seed=3")["stages"].values())
    review.remember(run, [Decision(review.key(gone), "keep")])
    assert desk.here(desk.folder / "job.yaml", "seed=3")["stages"]["filter"]["ran"]


def _text(page: Path) -> str:
    from tests.report.test_html import Page

    return Page(page.read_text(encoding="utf-8")).text


def test_a_row_without_a_label_cannot_be_kept(desk: Desk) -> None:
    desk.seeds([{"prompt": f"good {i}"} for i in range(3)] + [{"prompt": "odd"}])
    teacher = {"scripted": {"rules": {"odd": "no idea"}, "default": "positive"}}
    recipe = desk.recipe(models={"teacher": teacher}, filter=["unparsed"])
    run = store.RunFolder(Path(desk.here(recipe)["run"]))
    assert len(drawn(run)) == 4  # without training an answer that names no label is a filter's to drop
    assert next(row for row in drawn(run) if row["dropped_by"])["dropped_by"] == "unparsed"


def test_agreement_weighs_rows_by_what_they_stand_for() -> None:
    # 100 rows are kept, of which 10 were judged, 2 of them bad; `a` drops 10, all judged, 5 bad; `b` drops 20, 10 judged, 8 bad.
    verdicts: dict[str, str | None] = {f"k{i}": None for i in range(100)}
    verdicts |= {f"a{i}": "a" for i in range(10)} | {f"b{i}": "b" for i in range(20)}
    bad = {f"k{i}" for i in range(2)} | {f"a{i}" for i in range(5)} | {f"b{i}" for i in range(8)}
    judged = [f"{name}{i}" for name in "kab" for i in range(10)]
    said = {row: Decision(row, "drop" if row in bad else "keep") for row in judged}
    said["k50"] = Decision("k50", "drop", random=False)  # chosen by a query, so it stands for no other
    found = agreement(verdicts, said, ["a", "b"])
    a, b = found["filters"]
    assert a["precision"] == [0.5, 0.2366, 0.7634]  # Wilson at 5 of 10
    assert b["precision"][0] == 0.8
    # Bad rows: 20 kept, 5 of `a`, 16 of `b`.
    assert a["recall"][0] == round(5 / 41, 4)
    assert b["recall"][0] == round(16 / 36, 4)
    assert b["recall"][1] < 0.2
    assert b["recall"][2] > 0.7
    assert found["together"]["recall"][0] == round(21 / 41, 4)
    assert found["together"]["precision"][0] == round(21 / 30, 4)
    assert found["kept"]["clean"] == [0.8, 0.4902, 0.9433]
    assert (found["decided"], found["by_chance"]) == (31, 30)


def test_rows_stand_for_those_they_were_drawn_from_whatever_filters_say_since() -> None:
    # The filter `a` kept 900 rows, all of them good, and dropped 100, all bad; ten of each side were judged. It then takes
    # half of what it took: of the 950 rows kept 900 are good.
    said = {f"k{i}": Decision(f"k{i}", "keep", stands_for=90.0) for i in range(10)}
    said |= {f"a{i}": Decision(f"a{i}", "drop", stands_for=10.0) for i in range(10)}
    verdicts: dict[str, str | None] = {f"k{i}": None for i in range(900)}
    verdicts |= {f"a{i}": "a" if i % 2 else None for i in range(100)}
    found = agreement(verdicts, said, ["a"])
    assert found["kept"]["clean"][0] == round(900 / 950, 4)
    assert (found["filters"][0]["precision"][0], found["filters"][0]["recall"][0]) == (1.0, 0.5)


def test_a_sheet_says_what_each_row_stands_for(run: store.RunFolder, tmp_path: Path) -> None:
    rows = drawn(run, 10)
    sides = Counter(row["dropped_by"] for row in rows)
    whole = Counter(row["dropped_by"] for row in drawn(run, 1000))
    for row in rows:
        assert float(row["stands_for"].split()[0]) == pytest.approx(whole[row["dropped_by"]] / sides[row["dropped_by"]])
    path = tmp_path / "s.csv"
    left_open = next(row["id"] for row in rows if row["dropped_by"] == "")
    for row in rows:
        row["decision"] = "" if row["id"] == left_open else "keep"
    review_sheet.write(rows, path)
    total = sum(d.stands_for or 0 for d in review_sheet.read(path, run))
    assert total == pytest.approx(sum(whole.values()))


def test_agreement_claims_nothing_of_what_nobody_judged() -> None:
    verdicts: dict[str, str | None] = {"k": None, "a": "a"}
    found = agreement(verdicts, {"a": Decision("a", "drop")}, ["a"])
    assert found["filters"][0]["precision"] == [1.0, 0.2065, 1.0]
    assert found["filters"][0]["recall"] is None  # of the rows kept nobody knows how many are bad
    assert found["kept"]["clean"] is None
    assert agreement({}, {}, [])["together"] == {"precision": None, "recall": None}
    assert "not known yet" in "\n".join(review.agreement_lines(found))


def test_on_the_command_line(desk: Desk, run: store.RunFolder) -> None:
    assert "wrote s.csv: 10 rows, 5 kept and 5 dropped" in desk.llm_distill(
        "review", "job", "--out", "s.csv", "--rows", "10"
    )
    path = desk.folder / "s.csv"
    path.write_bytes(path.read_bytes().replace(b'"","","","by chance"', b'"drop","","me","by chance"'))
    out = desk.llm_distill("review", "job", "--read", "s.csv")
    assert "10 new decisions" in out
    assert "length                       20       5  100 % (57 to 100)" in out
    assert "of the 20 rows kept, right: 0 % (0 to 43) (5 judged)" in out
    assert "write --out SHEET" in desk.llm_distill("review", "job", code=2)
