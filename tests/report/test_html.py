"""The page is well-formed, complete, inert and the same every time, whatever the report holds."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from html.parser import HTMLParser
from typing import Any

import pytest

from llm_distill.report import charts, curves, plots, words
from llm_distill.report.html import render, verdict
from tests.report.example_report import full, pair, spent

VOID = {"meta", "link", "br", "input"}
INLINE = {"b", "bdi", "span", "mark", "i"}
HOSTILE = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>]]></title></style></svg><!-- $\\frac{1}{0}$ {{ 7*7 }} & "
    "javascript:alert(3) https://evil.example \x00\x08\x1b[31m \u202egnp.exe\u202c \u2066x\ud800 \U000e0041 \ufeff @1 "
    "⟦⟧"
)
USER_KEYED = (
    "reasons",
    "packages",
    "settings",
    "models",
    "slices",
    "domain",
    "tags",
    "bounds",
    "stages",
    "seconds",
    "shares",
    "outcomes",
    "parameters",
    "priors",
    "served",
    "fingerprints",
    "lost",
    "few",
    "unjudged",
)


class Page(HTMLParser):
    """Every element with its attributes, and the text; refuses a page whose tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute of <{tag}> stands twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in INLINE:
            self.words.append(" ")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag not in INLINE:
            self.words.append(" ")

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for found, attrs in self.elements if found == tag]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def poisoned(item: Any, poison: str, key: str = "") -> Any:
    """The same report with every string replaced, and the keys that a recipe, a model or a data file can set."""
    if isinstance(item, dict):
        return {
            f"{i}{poison}" if key in USER_KEYED else k: poisoned(v, poison, k) for i, (k, v) in enumerate(item.items())
        }
    if isinstance(item, list):
        return [poisoned(v, poison) for v in item]
    return poison if isinstance(item, str) else item


def test_full_report_says_it_all() -> None:
    page = Page(render(full()))
    for said in (
        "98.5 % of its teacher's accuracy",
        "of the teacher's accuracy kept 98.5 %",
        "points gained +22.6",
        "Base, zero-shot",
        "No difference can be seen, which does not prove that there is none; 300 rows would mostly show one of 4.1 points or "
        "more, and 2,851 the one seen.",
        "\u22121.3 \u22123.7 to +1.0 BCa \u22123.7 to +1.0 5 9 0.390",
        "12 held-out rows have no gold answer",
        "Calibration error",
        "0.112 0.080 to 0.150",
        "0.031 0.000 to 0.052 by chance 0.044",
        "71.2 % 69.0 % 61.0 to 76.0 150",
        "Not measured: KL from teacher of “Base, zero-shot”, “Base, few-shot” and “Student” (nothing to hold it against).",
        "Student vs teacher: worse on domain amazon, with Holm's correction over 2 slices.",
        "\u22121.4 \u22124.0 to \u22121.0 0.002",
        "The student is better.",
        "Furthest behind the teacher on domain amazon: 84.3 % against 85.7 %, 100 rows.",
        "2 truncated, 1 failed",
        "Teacher confidence min 0.7 383 21",
        "timeout after 3 attempts 1",
        "under the terms of its models, set out below: Gemma Terms of Use, Apache-2.0.",
        "Gemma's terms treat a student trained on its outputs as a model derivative",
        "8 min 1 s",
        "9f" * 32,
        "positive<|im_end|>",
        "14 prompts nearly equalled held-out rows and were set aside unasked.",
        "counterfactual variant 100 % 9 variant 0 12 %, variant 1 12 %, variant 2 12 %, variant 3 12 %, variant 4 12 %, "
        "variant 5 12 %, 3 more",
        "Most of all, teacher_confidence of those with domain = tweets: +11.0 points (+4.0 to +19.0).",
        "Teacher confidence drops more of: domain = tweets 104 14 13.5 %",
        "Teacher, asked rows: label changes with gender alone in 15.0 % (5.0 to 25.0) of groups.",
        "gender female Teacher, asked rows Label 40 5 12.5 % 2.5 to 22.5 negative 13, positive 27",
        "Under typos (slips of the keyboard) the student flips on 12.0 % (8.4 to 15.6) of rows, base, few-shot 20.0 %; it keeps "
        "96.6 % (93.0 to 100.0) of its accuracy.",
        "and does as the injection says on 38.0 % (34.4 to 41.6).",
        "Typos slips of the keyboard Student 198 87.0 % 84.0 % 96.6 % 93.0 to 100.0 0.900 12.0 % 8.4 to 15.6",
        "Bias after training, against base, few-shot: amplified. Gap in recall of positive, by gender, +12.0 points (+6.0 to "
        "+18.0); gap in recall of positive, gender female, +12.0 points (+6.0 to +18.0).",
        "Bias after training, against teacher: nothing was seen to rise. Of 4 measures 4 were kept (within 5 %) and 0 reduced.",
        "gender female gap in recall of positive 14.0 % 2.0 % +12.0 +6.0 to +18.0 amplified 14.0 % 0.0",
        "gender all together groups that flip: label 10.0 % 4.0 % +6.0 0.0 to +12.0 not told apart would show 9.0 or more",
        "Too few rows to measure: recall of positive by religion (9).",
        "Paraphrase: 10 lost: no text between the marks.",
        "General ability: no loss can be seen (50.0 % before training, 45.0 % after: \u22125.0 points, \u221210.0 to +0.4; 160",
        "Llm distill common knowledge: \u221215.0 points after training, several tasks allowed for.",
        "house_style exact_match 100 31.0 % 21.0 to 41.0",
        "Reviewers would keep 94.0 % (86.0 to 100.0) of the rows that filters keep.",
        "Teacher confidence 21 21 61.9 % 41.9 to 81.9 54.0 %",
        "Ablation, without length: no measurable gain (+0.3 points, \u22122.0 to +2.0).",
        "Without refusal trained on 383 395 12 12 91.0 %",
        "Harmful: the student is better without it.",
        "It took no row: the student is that of the full run.",
        "Student 3.90 3.79 to 4.01 297 0 3 it is not one JSON object, when asked twice",
        "Student vs teacher 41.0 % 36.0 to 46.0 52.0 % 46.0 to 58.0 88 70 142",
        "wins 41.0 % (36.0 to 46.0; 88 wins, 70 ties, 142 losses), at equal length 52.0 % (46.0 to 58.0). It prefers the other.",
        "the judge prefers longer answers, whoever wrote them",
        "31.0 % (26.0 to 36.0) of verdicts change with the order of the answers, mostly to the one shown first; they count as",
        "The judge still owes 3 verdicts; run again to ask for them. cannot reach localhost, port 8000",
        "both are of the family 'qwen'",
        "10 of 60 lines by people are about rows that are not held out.",
        "The judge against people, ratings: kappa 0.67 (0.55 to 0.79), the same in 58.0 % of 40; agreement is substantial.",
        "preferences: kappa 0.31 (0.11 to 0.51), the same in 50.0 % of 10; agreement is poor, so do not rest on its verdicts.",
        "The student loses against teacher",
        "The second answer gives a ground.",
    ):
        assert said in page.text.replace("\u00a0", " "), said
    assert "Not part of this run" not in page.text
    assert len(page.all("article")) == 21
    assert len(page.all("svg")) == 13
    assert len(page.all("mark")) == 1


def test_accessible() -> None:
    page = Page(render(full()))
    assert page.all("html") == [{"lang": "en"}]
    for landmark in ("header", "nav", "main", "footer", "h1", "title"):
        assert len([attrs for attrs in page.all(landmark) if "id" not in attrs or landmark == "main"]) == 1, landmark
    assert all("scope" in th for th in page.all("th"))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    pointed = [str(a["href"])[1:] for tag in ("a", "use") for a in page.all(tag)]
    pointed += [name for _, attrs in page.elements for name in (attrs.get("aria-labelledby") or "").split()]
    pointed += [str(attrs["clip-path"])[5:-1] for _, attrs in page.elements if "clip-path" in attrs]
    assert set(pointed) <= set(ids)
    assert all(svg["role"] == "img" and svg["aria-labelledby"] for svg in page.all("svg"))
    assert all(div.get("aria-label") for div in page.all("div") if div.get("role") == "region")


@pytest.mark.parametrize("background", ["page", "card", "tint"])
@pytest.mark.parametrize("text", ["ink", "muted", "accent"])
def test_contrast(text: str, background: str) -> None:
    schemes = re.findall(r":root \{([^}]*)\}", render(full()))
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#\w+)", scheme))
        light, dark = sorted((luminance(colours[text]), luminance(colours[background])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2.2 AA


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_no_network() -> None:
    html = render(full())
    assert "http" not in html.replace('http-equiv="Content-Security-Policy"', "")
    assert "default-src 'none'" in html
    assert "url(" not in html.replace("url(#", "")
    assert "@import" not in html


def test_hostile_strings_stay_text() -> None:
    clean, html = Page(render(full())), render(poisoned(full(), HOSTILE))
    page = Page(html)
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in clean.elements} | {"details", "summary"}
    for tag, attrs in page.elements:
        for name, text in attrs.items():
            assert not name.startswith("on"), (tag, name)
            assert name in ("aria-label", "content") or not re.search("script|evil", text or ""), (tag, name)
    assert page.text.count("alert(1)") > 50
    assert "\\frac{1}{0}" in page.text
    assert "{{ 7*7 }}" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]", html)
    assert "[U+202E]gnp.exe" in page.text
    assert "\u2400" in page.text
    html.encode("utf-8")


@pytest.mark.parametrize("poison", ["<" * 100_000, "&\u202e" * 50_000, "'\x00" * 50_000, "😀" * 100_000])
def test_long_strings_are_clipped(poison: str) -> None:
    html = render(poisoned(full(), poison))
    assert len(html.encode()) < 5_000_000
    assert "more characters in report.json" in Page(html).text


def test_many_labels_and_groups() -> None:
    report = full()
    labels = [f"intent {i}" for i in range(200)]
    counts = [[(i * j) % 3 for j in range(201)] for i in range(200)]
    for arm in report["arms"].values():
        arm["confusion"] = {"rows": labels, "columns": [*labels, None], "counts": counts}
        arm["slices"]["user"] = {
            f"u{i}": {"n": 3, "accuracy": {"value": 0.5, "low": 0.1, "high": 0.9}} for i in range(5000)
        }
    report["training"]["loss"] = [{"step": i, "loss": 1 / (i + 1)} for i in range(100_000)]
    html = render(report)
    assert len(html) < 1_000_000
    assert "4,960 more in report.json" in Page(html).text


def test_same_report_same_bytes() -> None:
    assert render(full()) == render(deepcopy(full()))


@pytest.mark.parametrize("report", [{"name": "n", "headline": "h"}, {}, dict.fromkeys(full())])
def test_empty(report: dict[str, Any]) -> None:
    page = Page(render(report))
    assert "Not part of this run: arms compared, slices, confusion" in page.text
    assert page.all("section") == []


def blanked(item: Any, key: str) -> Any:
    if isinstance(item, dict):
        return {k: None if k == key else blanked(v, key) for k, v in item.items()}
    return [blanked(v, key) for v in item] if isinstance(item, list) else item


def without(item: Any, key: str) -> Any:
    if isinstance(item, dict):
        return {k: without(v, key) for k, v in item.items() if k != key}
    return [without(v, key) for v in item] if isinstance(item, list) else item


def keys(item: Any, key: str = "") -> Iterator[str]:
    """The keys that the report's shape sets, at any depth."""
    if isinstance(item, dict):
        yield from () if key in USER_KEYED else item
        for k, v in item.items():
            yield from keys(v, k)
    for v in item if isinstance(item, list) else ():
        yield from keys(v)


@pytest.fixture(scope="module")
def drawn_once() -> Iterator[None]:
    """Equal charts are drawn once: they take most of a page's half second, and a part that is missing changes few."""

    def once(draw: Callable[..., str]) -> Callable[..., str]:
        known: dict[str, str] = {}

        def drawn(*args: Any, **how: Any) -> str:
            if (key := repr((args, how))) not in known:
                known[key] = draw(*args, **how)
            return known[key]

        return drawn

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "forest", once(charts.forest))
        patch.setattr(plots, "lines", once(curves.lines))
        yield


@pytest.mark.usefixtures("drawn_once")
@pytest.mark.parametrize("key", sorted(set(keys(full()))))
def test_any_part_may_be_null_or_missing(key: str) -> None:
    absent = blanked if len(key) % 2 else without  # half of the keys each
    Page(render(absent(full(), key)))


def test_scattered_nulls() -> None:
    def scattered(item: Any, dice: random.Random) -> Any:
        if dice.random() < 0.15:
            return None
        if isinstance(item, dict):
            return {k: scattered(v, dice) for k, v in item.items()}
        return [scattered(v, dice) or v for v in item] if isinstance(item, list) else item

    for seed in range(30):
        Page(render(scattered(full(), random.Random(seed)) or {}))


def test_generate_arms() -> None:
    report = full()
    for arm in report["arms"].values():
        arm |= {"exact_match": arm.pop("accuracy"), "token_f1": arm.pop("macro_f1"), "confusion": None, "slices": None}
    report |= {"task": {"kind": "generate"}, "metric": "token_f1", "examples_versus": "teacher"}
    report["examples"] = [
        {
            "kind": "win",
            "row_id": "1",
            "text": "2 + 2?",
            "label": None,
            "reference": "four",
            "answers": {"student": {"text": "4", "prediction": None}},
        }
    ]
    text = Page(render(report)).text
    for said in ("Exact match", "Token F1", "student's token f1", "Reference four", "Student wins", "against: teacher"):
        assert said in text, said
    assert "no label" not in text


def test_tags_that_tell_each_row_apart_are_not_listed() -> None:
    ids = {f"id {i}": 1 / 50 for i in range(50)}
    report = full()
    report["prompts"]["made"][0]["tags"]["id"] = {"rows": 1.0, "values": 260, "shares": ids}
    text = Page(render(report)).text
    assert "seeds id 100 % 260 each row another" in text
    assert "id 7" not in text


def test_an_ablation_of_other_rows_says_so() -> None:
    report = full()
    report["ablation"] |= {"stale": True, "complete": False, "stopped": "the budget is spent"}
    for row in report["ablation"]["arms"][2:]:
        for key in ("score", "change", "verdict", "seconds", "cost_usd"):
            del row[key]
    text = Page(render(report)).text
    for said in ("run ablate again", "stopped before its end", "Stopped. the budget is spent"):
        assert said in text, said


def test_how_far_the_teacher_is_right_is_shown_before_training() -> None:
    page = Page(render(full()))
    for shown in (
        "told by labelled rows",
        "Method: batch+temperature, temperature 0.28",
        "The teacher as it is 600 69.6\xa0% 92.8\xa0% 0.232 0.111 0.40",
        "Calibrated 600 90.7\xa0% 91.0\xa0% 0.018 0.066 0.23",
        "Its labels alone — — 92.8\xa0% — 0.072 —",
        "12 of 383 rows have another label so",
        "teacher.positive 53.3\xa0%",
        "score is better than that of the teacher's labels by +0.0021 (-0.0021 to +0.0065): no gain that these rows show.",
        "gkd passed over: the student's own answers take a GPU",
        "logit_kd taken: calibrated, it is 90.7% sure",
        "The teacher is 69.6\xa0% sure and 92.8\xa0% right (calibration error 0.232, 600 rows; batch+temperature: 0.018).",
    ):
        assert " ".join(shown.split()) in page.text, shown
    bare = full()
    bare["training"] |= {"calibration": None, "rungs": None}
    assert 'id="calibration"' not in render(bare)
    nothing = {"by": None, "method": "none", "why": "nothing vouches", "before": None, "after": None, "hard": None}
    bare["training"]["calibration"] = nothing
    assert "Method: none. nothing vouches" in Page(render(bare)).text


def test_a_sweep_is_shown_best_first() -> None:
    report = full()
    report["sweep"] |= {"stale": True, "complete": False, "stopped": "the budget is spent"}
    text = Page(render(report)).text
    for said in (
        "Trial Learning rate LoRA rank Student Against own Time In words 1 0.000812 32 86.0 %",
        "own settings null 16 82.0 %",
        "2 0.1 8 — 12.5 s Cannot be trained: train: the loss became nan at step 3.",
        "-s train.sft.lora_rank=32",
        "no measurable gain over the recipe's own (+4.0 points, \u22122.0 to +10.0)",
        "run sweep again",
        "Stopped. the budget is spent",
    ):
        assert said in text, said
    assert 'id="sweep"' not in render(full() | {"sweep": None})


def test_unknown_cost_is_never_zero() -> None:
    report = full() | {"cost": {"total_usd": 0.0, "stages": {"answers": spent(1, 1, 0, 5, 5), "evaluate student": {}}}}
    text = Page(render(report)).text
    assert "834" not in text
    assert "unknown" in text
    assert "$0.00" in text
    assert "unknown" in Page(render(full())).text
    assert "$0.00" not in Page(render(full())).text


def test_filters_that_saw_only_whole_answers() -> None:
    report = full()
    report["funnel"]["filters"] = report["funnel"]["filters"][1:]
    assert "Answered 2 truncated, 1 failed 417 3" in Page(render(report)).text


def test_what_a_reviewer_must_look_at() -> None:
    report = full()
    student = report["arms"]["student"]
    student |= {
        "n": 299,
        "status": {"ok": 297, "failed": 2},
        "unparsed_rate": {"value": 0.0067, "low": 0, "high": 0.02},
    }
    report["gap_closed"] = {"value": None, "low": None, "high": None, "reason": "no gap can be seen"}
    text = Page(render(report)).text.replace("\u00a0", " ")
    assert "Student: not every row has a whole answer (2 failed)." in text
    report["arms"]["student"]["accuracy"] |= {"n": 287}
    assert "287 rows" in Page(render(report)).text, "fewer than the arm has"
    assert "0.7 % of the student's answers name no label." in text
    texts = Page(render(report | {"task": {"kind": "generate", "labels": []}})).text.replace("\u00a0", " ")
    assert "0.7 % of the student's answers have no text." in texts
    assert "not measured on equally many rows" in text
    assert "not stated, no gap can be seen." in text


@pytest.mark.parametrize(
    ("given", "tone", "text"),
    [
        (pair(0.1, 0.05, 0.15, 0.001, 40, 10), "good", "The student is better."),
        (pair(-0.1, -0.15, -0.05, 0.001, 10, 40), "look", "The student is worse."),
        (pair(0.1, 0.0, 0.2, 0.2, 4, 2), "same", "No difference can be seen"),
        (pair(0.1, 0.01, 0.2, 0.07, 4, 2), "same", "Borderline"),
        ({"difference": 0.1}, "look", "nothing can be said"),
        (
            pair(0.0, -0.1, 0.1, 1.0, 3, 3) | {"smallest_visible": 0.041},
            "same",
            "300 rows would mostly show one of 4.1 points or more",
        ),
    ],
)
def test_verdict(given: dict[str, Any], tone: str, text: str) -> None:
    said = verdict("student_vs_teacher", given, {})
    assert said.tone == tone
    assert text in said.text


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (words.percent(0.8731), "87.3\u00a0%"),
        (words.percent(None), "—"),
        (words.percent(float("nan")), "—"),
        (words.points(0.213), "+21.3"),
        (words.points(-0.213), "\u221221.3"),
        (words.points(-0.0001), "0.0"),
        (words.duration(0.0312), "31\u00a0ms"),
        (words.duration(59.97), "1\u00a0min 0\u00a0s"),
        (words.duration(3725), "1\u00a0h 2\u00a0min"),
        (words.usd(None), "unknown"),
        (words.usd(0), "$0.00"),
        (words.usd(0.00042), "$0.00042"),
        (words.usd(1234.5), "$1,234.50"),
        (words.count(1234), "1,234"),
        (words.count(74.2), "74.2"),
        (words.human("student_vs_base_few_shot"), "Student vs base, few-shot"),
        (words.human("near_duplicate"), "Near duplicate"),
        (words.visible("a\u202eb\x07\ud800\n\tc"), "a[U+202E]b\u2407\ufffd\n\tc"),
        (words.visible("👩\u200d💻 \u0645\u06cc\u200c\u062e"), "👩\u200d💻 \u0645\u06cc\u200c\u062e"),
        (words.marked("a⟦b\n⟧c⟦d"), [(False, "a"), (True, "b\n"), (False, "c⟦d")]),
        (words.flat({"a": {"b": 1}, "c": [1, 2]}), [("a.b", 1), ("c", "1, 2")]),
    ],
)
def test_words(shown: object, expected: object) -> None:
    assert shown == expected
