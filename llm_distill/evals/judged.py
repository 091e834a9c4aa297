"""What a judge said of the arms' answers, by row: every answer by the rubric, the student's beside its teacher's and its base's.

The rules, the same for every arm: an answer that failed has the lowest score and loses, without anybody being asked; equal
answers tie. A verdict that is none is the judge's fault: the row counts for no arm, and how many there are is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_distill.evals.measures import Measure
from llm_distill.evals.people import Opinion
from llm_distill.records import Answer, Prompt
from llm_distill.scorers.verdicts import Item, Verdict

if TYPE_CHECKING:
    from llm_distill.recipe_judge import Judge

_TIE = Verdict(0.5, "both answers are the same")


@dataclass(frozen=True)
class Judged:
    """What a judge said. answers: by arm and row_id. rivals: the arm behind each name in `pairwise`. scores: by (row_id, text);
    pairs: by (row_id, the student's text, the other's). opinions: people's, each with its row. stopped: why asking ended early;
    passes: what of that may have changed later (see `FellShort`).
    """

    how: Judge
    answers: Mapping[str, Mapping[str, Answer]]
    rivals: Mapping[str, str]
    opinions: Sequence[tuple[Opinion, Prompt]]
    scores: Mapping[tuple[str, str], Verdict]
    pairs: Mapping[tuple[str, str, str], Verdict]
    stopped: str | None = None
    passes: str | None = None

    def score(self, answer: Answer) -> Verdict:
        """What an answer is worth on the judge's scale: a failed one the least."""
        if answer.status == "failed":
            return Verdict(float(self.how.scale[0]), "no answer came")
        return self.scores[answer.prompt.row_id, answer.text]

    def pair(self, student: Answer, other: Answer) -> Verdict:
        """The student's answer against another: 1 where it wins. An answer that failed loses, equal ones tie."""
        lost = student.status == "failed", other.status == "failed"
        if any(lost):
            return Verdict(0.5 if all(lost) else float(lost[1]), "no answer came")
        return self.between(student.prompt.row_id, student.text, other.text)

    def between(self, row_id: str, text: str, other: str) -> Verdict:
        """The same of two texts."""
        return _TIE if text == other else self.pairs[row_id, text, other]

    def rated(self, one: Opinion, row_id: str) -> Verdict | None:
        """The score of the answer that a person rated: of the text that was shown, or of this run's own."""
        if one.answer is not None:
            return self.scores[row_id, one.answer]
        answer = self.answers.get(one.arm, {}).get(row_id)
        return None if answer is None else self.score(answer)

    def compared(self, one: Opinion, row_id: str) -> Verdict | None:
        """The verdict on the two answers that a person compared, likewise."""
        if one.answers is not None:
            return self.between(row_id, one.answers["student"], one.answers[one.rival])
        student, other = (self.answers.get(arm, {}).get(row_id) for arm in ("student", self.rivals[one.rival]))
        return None if student is None or other is None else self.pair(student, other)

    @property
    def measures(self) -> dict[str, Measure]:
        """The score as a metric in [0, 1], on the rows on which every arm has one: none gains by being judged seldom."""
        if not self.how.scores:
            return {}
        low, high = self.how.scale
        whole = self.whole_rows

        def measure(answers: Sequence[Answer]) -> tuple[dict[str, float], dict[str, int]]:
            rows = [a for a in answers if a.prompt.row_id in whole]
            values = {a.prompt.row_id: self.score(a).value for a in rows}
            known = {row: (value - low) / (high - low) for row, value in values.items() if value is not None}
            lost = len(answers) - len(rows)
            return known, {"the judge gave no verdict on some arm's answer": lost} if lost else {}

        return {"judge": measure}

    @property
    def whole_rows(self) -> set[str]:
        """The rows on which every arm has a score."""
        arms = [{row for row, a in of.items() if self.score(a).value is not None} for of in self.answers.values()]
        return set.intersection(*arms) if arms else set()

    @property
    def owed(self) -> int:
        """Verdicts that a later run asks for."""
        return sum(of.owed for of in (*self.scores.values(), *self.pairs.values()))

    def to_score(self) -> Iterator[Item]:
        """Every text that needs a score, once."""
        texts = {
            (a.prompt.row_id, a.text): a.prompt
            for of in self.answers.values()
            for a in of.values()
            if a.status != "failed"
        }
        for one, prompt in self.opinions:
            if one.rating is not None and one.answer is not None:
                texts.setdefault((prompt.row_id, one.answer), prompt)
        for (_, text), prompt in texts.items():
            yield Item(prompt, text, prompt.reference)

    def to_compare(self) -> Iterator[Item]:
        """Every two texts that need a verdict, once."""
        student = self.answers.get("student", {})
        both = [
            (a, b) for arm in self.rivals.values() for row, b in self.answers[arm].items() if (a := student.get(row))
        ]
        texts = {(a.prompt.row_id, a.text, b.text): a.prompt for a, b in both if "failed" not in (a.status, b.status)}
        for one, prompt in self.opinions:
            if one.answers is not None:
                texts.setdefault((prompt.row_id, one.answers["student"], one.answers[one.rival]), prompt)
        for (_, text, other), prompt in texts.items():
            if text != other:
                yield Item(prompt, text, other)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every verdict as a line of a table: the row, whose answer, against whose, what was said and why."""
        for arm, of in self.answers.items() if self.how.scores else ():
            for row_id, answer in of.items():
                yield _line(row_id, arm, None, self.score(answer))
        for arm in self.rivals.values():
            for row_id, other in self.answers[arm].items():
                yield _line(row_id, "student", arm, self.pair(self.answers["student"][row_id], other))


def _line(row_id: str, arm: str, against: str | None, of: Verdict) -> dict[str, Any]:
    said = {"value": of.value, "reason": of.reason or None, "fault": of.fault, "changed": of.changed}
    return {"row_id": row_id, "arm": arm, "against": against, **said}
