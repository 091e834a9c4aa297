"""Some rows with every arm's answer side by side, for a reader to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llm_distill.evals.metrics import prediction
from llm_distill.records import Answer

if TYPE_CHECKING:
    from llm_distill.evals.pairs import Shared

QUOTAS = {"win": 7, "loss": 7, "both_wrong": 3, "both_right": 3}  # of twenty examples, where there are that many


def examples(arms: Mapping[str, Sequence[Answer]], shared: Shared, versus: str | None) -> list[dict[str, Any]]:
    """Up to twenty rows side by side: the student's wins and losses against `versus`, then rows that both have alike.

    Widest margins first, then by row_id, which is a content hash and so as good as random. Equal scores of one half or
    more are `both_right`.
    """
    if versus is None or not shared.has("student", versus):
        return []
    found: dict[str, list[tuple[float, str]]] = {kind: [] for kind in QUOTAS}
    for row, student, other in zip(shared.rows, shared.scores["student"], shared.scores[versus], strict=True):
        margin = float(student - other)
        kind = ("win" if margin > 0 else "loss") if margin else ("both_right" if student >= 0.5 else "both_wrong")
        found[kind].append((-abs(margin), row))
    taken = {kind: min(quota, len(found[kind])) for kind, quota in QUOTAS.items()}
    for kind, candidates in found.items():
        taken[kind] += min(sum(QUOTAS.values()) - sum(taken.values()), len(candidates) - taken[kind])
    wanted = {row: kind for kind, rows in found.items() for _, row in sorted(rows)[: taken[kind]]}
    answers = {arm: {a.prompt.row_id: a for a in rows if a.prompt.row_id in wanted} for arm, rows in arms.items()}

    def side_by_side(row: str, kind: str) -> dict[str, Any]:
        prompt = answers["student"][row].prompt
        return {
            "kind": kind,
            "row_id": row,
            "text": prompt.text,
            "label": prompt.label,
            "reference": prompt.reference,
            "tags": dict(sorted(prompt.tags.items())),
            "answers": {
                arm: {"text": of[row].text, "prediction": prediction(of[row])}
                for arm, of in answers.items()
                if row in of
            },
        }

    return [side_by_side(row, kind) for row, kind in wanted.items()]
