"""The quality scorers measured on texts of others: `python -m tests.scorers.quality_table` prints docs/scorers.md's second table.

Needs `make setup` (ordinary sentences) and `make probes`.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import math as maths
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from llm_distill.records import Answer
from llm_distill.scorers import Context, Scored
from llm_distill.scorers.code import code
from llm_distill.scorers.duplicates import near_duplicate, semantic_duplicate
from llm_distill.scorers.form import format as form
from llm_distill.scorers.language import LANGUAGES, language
from llm_distill.scorers.overlap import leakage
from llm_distill.scorers.phrases import identity, refusal
from llm_distill.scorers.text import repetition
from llm_distill.scorers.verifiers import json_equal, math, numeric
from llm_distill.tasks import Task
from tests.scorers.loops import CIRCLES, LOOPS
from tests.scorers.probe_table import PROBES, Line, everyday, jsonl, ordinary
from tests.scorers.rows import answer

BEGIN, END = "<!-- table of tests/scorers/quality_table.py -->\n", "<!-- end of second table -->"
CONTEXT = Context(Task(kind="generate"))


def _line(scorer: str, probe: str, with_: Sequence[bool], without: Sequence[bool]) -> Line:
    """What was dropped of texts that should be, and of those that should not."""
    return Line(scorer, probe, sum(with_), len(with_), sum(without), len(without))


def _over(scored: Scored | Sequence[float], bound: float = 0.0) -> list[bool]:
    values = scored.values if isinstance(scored, Scored) else scored
    return [value > bound for value in values]


def _under(scored: Scored, bound: float) -> list[bool]:
    """Without those that cannot be measured."""
    return [value < bound for value in scored.values if not maths.isnan(value)]


def said(texts: Sequence[str]) -> list[Answer]:
    return [answer(text) for text in texts]


def asked(texts: Sequence[str]) -> list[Answer]:
    return [answer("x", prompt=text) for text in texts]


def due(texts: Sequence[str], references: Sequence[str]) -> list[Answer]:
    return [answer(text, reference) for text, reference in zip(texts, references, strict=True)]


def turned(values: Sequence[str]) -> list[str]:
    """Each place has the next one's."""
    return [*values[1:], values[0]]


def replies(name: str) -> dict[str, bool]:
    """Each reply of PyRIT's files once, and whether people said yes of it; without those of which they said both, by question."""
    text = (PROBES / name).read_bytes().decode("utf-8")
    heads = (
        r"^(?:# .*\n)*(?=(?:harm_category,)?objective,assistant_response,)"  # a file's remarks, and what follows them
    )
    found: dict[str, set[bool]] = {}
    for file in re.split(heads, text, flags=re.MULTILINE)[1:]:
        for row in csv.DictReader(io.StringIO(file, newline="")):
            found.setdefault(row["assistant_response"].strip(), set()).add(float(row["human_score"]) == 1)
    return {text: verdicts.pop() for text, verdicts in found.items() if len(verdicts) == 1}


def done() -> list[str]:
    """Replies that did what was asked, whatever it was; not the few files of several replies, which are numbered."""
    return [text for text, yes in replies("replies.csv").items() if yes and not text.startswith("1-")]


def money() -> list[str]:
    return [row["answer"] for row in jsonl("fiqa.jsonl")]


def programs() -> list[dict[str, Any]]:
    with gzip.open(PROBES / "human_eval.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def whole_programs() -> list[str]:
    return [row["prompt"] + row["canonical_solution"] for row in programs()]


def phrases() -> Iterator[Line]:
    first = replies("refusals_1.csv")
    second = {text: yes for text, yes in replies("refusals_2.csv").items() if text not in first}
    for name, probe in (
        ("replies that people called refusals, looked at while the list was written", first),
        ("more such replies, one of them looked at", second),
    ):
        with_, without = (
            _over(refusal(said([text for text, yes in probe.items() if yes is kind]), CONTEXT))
            for kind in (True, False)
        )
        yield _line("refusal", f"{name}; replies that they did not", with_, without)
    for where, texts in (
        ("replies that did what was asked", done()),
        ("reviews, editorials, tweets, answers about money", [*everyday(), *ordinary("tweets"), *money()]),
    ):
        yield _line("refusal", f"none there; {where}", [], _over(refusal(said(texts), CONTEXT)))
        yield _line("identity", f"none there; {where}", [], _over(identity(said(texts))))


def loops() -> Iterator[Line]:
    with_ = said([*LOOPS.values(), *CIRCLES.values()])
    kinds = (
        ("replies that did what was asked", done()),
        ("answers about money", money()),
        ("programs of HumanEval", whole_programs()),
    )
    bounds: tuple[tuple[Any, float], ...] = (("loops", 0.3), ("compression", 2.4))
    for by, bound in bounds:
        for where, texts in kinds:
            yield _line(f"repetition by {by}", f"what a small model wrote in circles; {where}",
                        _over(repetition(with_, by=by), bound), _over(repetition(said(texts), by=by), bound))  # fmt: skip


_FIELD = re.compile(r'^(msgid|msgstr) ((?:"(?:[^"\\]|\\.)*"\n?)+)', re.MULTILINE)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


def messages() -> tuple[list[str], dict[str, list[str]]]:
    """Django's English messages of 40 characters or more without a place to fill, and their translations by language."""
    english: dict[str, None] = {}
    found: dict[str, dict[str, None]] = {}
    tongue = ""
    for block in re.split(r"\n\s*\n", (PROBES / "messages.po").read_text(encoding="utf-8")):
        if head := re.search(r"^\"Language: (\w+)\\n\"", block, re.MULTILINE):
            tongue = {"nb": "no"}.get(head[1], head[1].partition("_")[0])
            continue
        part = {name: "".join(_QUOTED.findall(text)) for name, text in _FIELD.findall(block)}
        source, text = part.get("msgid", ""), part.get("msgstr", "")
        if "fuzzy" in block or "msgid_plural" in block or source == text or re.search(r"[%{<]", source + text):
            continue
        if len(source) >= 40:
            english[source] = None
        if len(text) >= 40:
            found.setdefault(tongue, {})[text] = None
    return list(english), {name: list(texts) for name, texts in sorted(found.items())}


def languages() -> Iterator[Line]:
    english, found = messages()
    assert found.keys() <= LANGUAGES
    others = [text for texts in found.values() for text in texts]
    yield _line("language, only: [en]", f"Django's messages in {len(found)} languages; in English",
                _under(language(said(others), only=["en"]), 0.5), _under(language(said(english), only=["en"]), 0.5))  # fmt: skip
    pairs = zip(found, turned(list(found)), strict=True)
    foreign = [dropped for one, next_ in pairs for dropped in _under(language(said(found[next_]), only=[one]), 0.5)]
    own = [dropped for one in found for dropped in _under(language(said(found[one]), only=[one]), 0.5)]
    yield _line("language, only its own", "each language's messages by the filter of another; by its own", foreign, own)


def forms() -> Iterator[Line]:
    whole = whole_programs()
    kept = _over(form(said(whole), parses="python"))
    for name, texts in (
        ("sentences of reviews and editorials", everyday()),
        ("the same programs, cut after two thirds", [text[: 2 * len(text) // 3] for text in whole]),
    ):
        dropped = _over(form(said(texts), parses="python"))
        yield _line("format, parses: python", f"{name}; programs of HumanEval", dropped, kept)
    tree = ast.parse((PROBES / "not_json.py").read_text(encoding="utf-8"))
    almost = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "JSONDOCS"
    )
    lines = (PROBES / "drug_swap.jsonl").read_text(encoding="utf-8").splitlines()
    yield _line("format, parses: json", "simplejson's texts that are none; lines of a JSONL file",
                _over(form(said(almost), parses="json")), _over(form(said(lines), parses="json")))  # fmt: skip
    again = [json.dumps(dict(reversed(json.loads(line).items())), indent=1) for line in lines]
    yield _line("json_equal", "the next line; the same line, its keys in another order and indented",
                _under(json_equal(due(again, turned(lines))), 1), _under(json_equal(due(again, lines)), 1))  # fmt: skip


def duplicates() -> Iterator[Line]:
    rows, news = jsonl("drug_swap.jsonl"), jsonl("summaries.jsonl")
    both = asked([row[name] for name in ("original_question", "perturbed_question") for row in rows])
    scorers: tuple[tuple[str, Any, float], ...] = (
        ("near_duplicate", near_duplicate, 0.8),
        ("semantic_duplicate", semantic_duplicate, 0.95),
    )
    for name, scorer, bound in scorers:
        context = replace(CONTEXT, max=bound)
        dropped = _over(scorer(both, context), bound)
        yield _line(name, "exam questions with the brand names of their drugs; the questions",
                    dropped[len(rows) :], dropped[: len(rows)])  # fmt: skip
        right, wrong = (
            [_over(scorer(asked([row["article_sent"], row[end]]), context), bound)[1] for row in news]
            for end in ("correct_sent", "incorrect_sent")
        )
        yield _line(name, "a sentence of news beside a right summary of it; beside a wrong one", right, wrong)


def leaks() -> Iterator[Line]:
    rows = jsonl("drug_swap.jsonl")
    context = replace(CONTEXT, held_out=[row.prompt for row in asked([row["original_question"] for row in rows])])
    with_ = asked([row["perturbed_question"] for row in rows])
    without = asked([row["question"] for row in jsonl("medqa.jsonl")])
    bounds: tuple[tuple[Any, float], ...] = (("words", 0.5), ("embedding", 0.9))
    for by, bound in bounds:
        yield _line(f"leakage by {by}", "held-out exam questions with other names of drugs; other exam questions",
                    _over(leakage(with_, context, by=by), bound), _over(leakage(without, context, by=by), bound))  # fmt: skip


def figures() -> Iterator[Line]:
    """The problem has numbers of its own; the answer's is the last."""
    rows = [row for row in jsonl("asdiv.jsonl") if re.search(r"\d", row["answer"])]
    texts = [f"{row['passage']} {row['question']}\n{row['answer']}" for row in rows]
    own = [row["answer"] for row in rows]
    digits = [re.findall(r"\d+", text) for text in own]
    other = [
        next(own[k] for k in (*range(place + 1, len(own)), *range(place)) if digits[k] != digits[place])
        for place in range(len(own))
    ]
    yield _line("numeric", "word problems with another's answer as the reference; with their own",
                _under(numeric(due(texts, other)), 1), _under(numeric(due(texts, own)), 1))  # fmt: skip


def equal_maths() -> list[tuple[str, str, bool]]:
    """(reference, answer, whether they are equal) of math-verify's own tests, those that need no setting of theirs."""
    found = []
    for node in ast.walk(ast.parse((PROBES / "equal_maths.py").read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not ast.unparse(node.func).endswith("parametrize"):
            continue
        try:
            names, cases = (ast.literal_eval(part) for part in node.args)
        except ValueError:  # one case is computed
            continue
        if re.fullmatch(r"gold, ?pred, ?(?:expected|result)", names):
            found += [(gold, text, bool(equal)) for gold, text, equal in cases]
    return found


def mathematics() -> Iterator[Line]:
    cases = equal_maths()
    differ, same = (
        _under(math([answer(text, gold) for gold, text, equal in cases if equal is kind]), 1) for kind in (False, True)
    )
    yield _line("math", "math-verify's own pairs that differ; that are equal", differ, same)


_OTHER_WAY: dict[type[ast.AST], Callable[[], Any]] = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
}  # fmt: skip


def mutant(program: str) -> str | None:
    """The program with its first comparison, sum or difference turned round; None where it has none."""
    tree = ast.parse(program)
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and type(node.ops[0]) in _OTHER_WAY:
            node.ops[0] = _OTHER_WAY[type(node.ops[0])]()
        elif isinstance(node, ast.BinOp) and type(node.op) in _OTHER_WAY:
            node.op = _OTHER_WAY[type(node.op)]()
        else:
            continue
        return ast.unparse(tree)
    return None


def tested() -> Iterator[Line]:
    tests = [f"{row['test']}\ncheck({row['entry_point']})" for row in programs()]
    changed = [(mutant(text), test) for text, test in zip(whole_programs(), tests, strict=True)]
    wrong = [answer(f"```python\n{text}\n```", test) for text, test in changed if text is not None]
    right = [answer(f"```python\n{text}\n```", test) for text, test in zip(whole_programs(), tests, strict=True)]
    yield _line("code", "programs of HumanEval with one operator turned round; as they are",
                _under(code(wrong), 1), _under(code(right), 1))  # fmt: skip


PARTS = (phrases, loops, languages, forms, duplicates, leaks, figures, mathematics, tested)


HEAD = "| scorer | texts it should drop; it should keep | dropped | dropped wrongly |\n|---|---|---|---|\n"


def lines() -> list[Line]:
    return [line for part in PARTS for line in part()]


if __name__ == "__main__":
    print(HEAD + "".join(line.markdown() + "\n" for line in lines()), end="")
