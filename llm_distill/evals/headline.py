"""The comparison in one sentence that claims no more than the numbers do.

A difference is called one only where its interval leaves out zero and its exact test falls below 5 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_distill.evals.metrics import AGREEMENT
from llm_distill.evals.statistics import FEWEST

FEW = 30  # below this many rows the sentence warns
SELF = {"base_few_shot": "its own few-shot self", "base_zero_shot": "its own zero-shot self"}
WORDS = {
    "accuracy": "accuracy",
    "token_f1": "token F1",
    "exact_match": "exact match",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
    "embedding": "embedding similarity",
    "instructions": "instruction following",
    "json_equal": "exact JSON",
    "json_fields": "field F1",
    "schema_valid": "schema validity",
    "numeric": "numeric accuracy",
    "math": "mathematical accuracy",
    "code": "pass rate",
    "judge": "score by the judge",
    AGREEMENT: "agreement with its teacher",
}
MANY = (("its teacher's", "its teachers'"), ("its teacher gets", "its teachers get"), ("its teacher ", "its teachers "))
Numbers = Mapping[str, Any]


def headline(numbers: Numbers) -> str:
    """One sentence about the result of `compare` (or a report.json); undefined numbers are None in it."""
    sentence = _said(numbers)
    for one, several in MANY if numbers.get("teachers", 1) > 1 else ():
        sentence = sentence.replace(one, several)
    return sentence


def _said(numbers: Numbers) -> str:
    metric, n, arms, paired = numbers["metric"], numbers["paired_rows"], numbers["arms"], numbers["paired"]
    if metric is None:
        return "Nothing can be said: no held-out row has a gold answer, and there is no teacher to agree with."
    if not arms.get("student", {"n": 0})["n"]:
        scored = [f"{arm.replace('_', ' ')} {interval(of[metric])}" for arm, of in arms.items() if of[metric]["n"]]
        return f"No student was evaluated; {said(metric)} on the held-out rows: {', '.join(scored) or 'none'}."
    if not n or not arms["student"][metric]["n"]:
        return f"Nothing can be said of the student: the arms share no held-out row on which to score {said(metric)}."
    if n < FEWEST:
        scored = [
            f"{arm.replace('_', ' ')} {percent(of[metric]['value'])}" for arm, of in arms.items() if of[metric]["n"]
        ]
        rows = "1 held-out row" if n == 1 else f"{n} held-out rows"
        return f"Nothing can be concluded from {rows}; for the record, {said(metric)}: {', '.join(scored)}."
    if silent(numbers, "student"):
        rows = arms["student"]["n"]
        return f"The student failed on every one of its {rows} held-out rows, so nothing is known of what it can do."
    clauses = [opening(numbers)]
    base = numbers["gap_closed"]["from"]
    if base and silent(numbers, base):
        clauses.append(f"{SELF[base]} failed on every row")
    elif base:
        clauses.append(against_base(paired[f"student_vs_{base}"], SELF[base]))
        if "student_vs_teacher" in paired:
            clauses.append(of_the_gap(numbers["gap_closed"]))
    sentence = clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])}, and {clauses[-1]}"
    return f"{sentence}, on {n} held-out rows{caution(paired, n)}."


def said(metric: str) -> str:
    """A metric as a sentence names it; one of the recipe's own by its name."""
    return WORDS.get(metric, metric)


def opening(numbers: Numbers) -> str:
    """What the student can do, as a share of its teacher where there is one."""
    metric, kept, student = numbers["metric"], numbers["kept_share"], numbers["arms"]["student"]
    if kept["value"] is not None:
        both = f"{percent(kept['student'])} against {percent(kept['teacher'])}"
        teacher = numbers["paired"]["student_vs_teacher"]
        if clear(teacher) and teacher["difference"] > 0:
            lead = f"{points(teacher['difference'])} points ({points(teacher['low'])} to {points(teacher['high'])})"
            return f"The student's {said(metric)} is {lead} above its teacher's ({both})"
        return f"The student keeps {interval(kept)} of its teacher's {said(metric)} ({both})"
    if metric == AGREEMENT:
        chosen = numbers.get("without_gold", student["n"]) < student["n"]  # by the recipe: there is gold
        begin = "The" if chosen else "Without gold answers: the"
        return f"{begin} student's {said(metric)} is {interval(student[metric])}"
    nothing = ", where its teacher gets nothing right" if "student_vs_teacher" in numbers["paired"] else ""
    if nothing and silent(numbers, "teacher"):
        nothing = ", where its teacher failed on every row"
    return f"The student's {said(metric)} is {interval(student[metric])}{nothing}"


def silent(numbers: Numbers, arm: str) -> bool:
    """Whether an arm failed on every row: then its score says nothing of it."""
    of = numbers["arms"].get(arm, {})
    return bool(of.get("n")) and (of.get("status") or {}).get("failed") == of["n"]


def against_base(pair: Numbers, whom: str) -> str:
    """Above, below, or no difference to be seen."""
    value, low, high = pair["difference"], pair["low"], pair["high"]
    if not clear(pair):
        return f"shows no clear difference from {whom} ({points(value)} points, {points(low)} to {points(high)})"
    if value > 0:
        return f"is {points(value)} points ({points(low)} to {points(high)}) above {whom}"
    return f"is {points(-value)} points ({points(-high)} to {points(-low)}) BELOW {whom}"


def of_the_gap(gap: Numbers) -> str:
    """The share of the gap closed, or why there is none."""
    if gap["value"] is None:
        return str(gap["reason"])
    if gap["value"] <= 0:
        return f"closes none of the gap ({percent(gap['value'])}, {points(gap['low'])} to {points(gap['high'])} %)"
    return f"closes {interval(gap)} of the gap"


def caution(paired: Mapping[str, Numbers], n: int) -> str:
    """What this many rows cannot show."""
    unseen = [pair["smallest_visible"] for pair in paired.values() if not clear(pair) and pair["smallest_visible"]]
    if n < FEW:
        about = f" (about {points(max(unseen))} points or more)" if unseen else ""
        return f"; so few rows can show only large differences{about}"
    return ""


def clear(pair: Numbers) -> bool:
    """Whether a paired difference may be called one."""
    return bool(pair["p"] < 0.05 and (pair["low"] > 0 or pair["high"] < 0))


def percent(share: float) -> str:
    """A share in percent with one decimal."""
    return f"{points(share)} %"


def points(share: float) -> str:
    """A share or a difference of shares times 100 with one decimal, never -0.0."""
    return f"{round(100 * share, 1) + 0.0:.1f}"


def interval(of: Numbers) -> str:
    """A share with its interval: 86.7 % (82.4 to 90.1 %)."""
    if of["low"] is None or of["high"] is None:
        return f"{percent(of['value'])} (too few rows for an interval)"
    return f"{percent(of['value'])} ({points(of['low'])} to {points(of['high'])} %)"
