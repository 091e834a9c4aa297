"""Answers with the teacher's reasoning before them, as the student is to write both.

The student's chat template says how, where it writes reasoning at all; else it is a block between `<think>` and `</think>`.
Either way `reasoning.separate` must find both parts again in what the student generates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from llm_distill.errors import UserError
from llm_distill.reasoning import separate
from llm_distill.records import Message, Sample
from llm_distill.trainers.rows import render, special_tokens

_OPEN, _CLOSE = "<think>\n", "\n</think>\n\n"
_THOUGHT, _ANSWER = "a thought 7", "an answer 3"


@dataclass(frozen=True)
class Form:
    """What stands before, and between, reasoning and answer. `opened`: the prompt itself has begun the block, so that an
    answer without reasoning must close it.
    """

    before: str
    between: str
    opened: bool

    def written(self, reasoning: str | None, answer: str) -> str:
        """An answer with its reasoning."""
        if reasoning is None:
            return self.between + answer if self.opened else answer
        return self.before + reasoning + self.between + answer


def form_of(tokenizer: Any) -> Form:
    """How a student writes reasoning; UserError where it could not be told apart from its answer."""
    asked = render(tokenizer, (Message("user", "a question 5"),))
    if asked.rstrip().endswith("</think>"):
        raise UserError(
            "train.sft.reasoning: the student's chat template closes the reasoning before the answer begins; use "
            "`reasoning: off`, or a student that is asked to reason."
        )
    opened = asked.rstrip().endswith("<think>")
    shown = _shown(tokenizer, asked)
    own = shown is not None and _THOUGHT in shown and _ANSWER in shown
    before, between = "" if opened else _OPEN, _CLOSE
    if own and shown is not None:
        before, _, rest = shown.partition(_THOUGHT)
        between = rest.partition(_ANSWER)[0]
    if separate(f"{before}{_THOUGHT}{between}{_ANSWER}") != (_THOUGHT, _ANSWER):
        raise UserError(
            f"train.sft.reasoning: the student's chat template writes reasoning between {before!r} and {between!r}, which "
            "evaluation cannot tell from the answer (it knows <think> and </think>); use `reasoning: off`."
        )
    lost = [token for token in special_tokens(tokenizer) if token in before + between]
    if lost:
        raise UserError(
            f"train.sft.reasoning: {lost[0]} is a special token of the student's, which is no part of the text that it is read "
            "to write, so reasoning could not be told from the answer; use `reasoning: off`."
        )
    return Form(before, between, opened)


def _shown(tokenizer: Any, asked: str) -> str | None:
    """What the template writes behind the prompt for an answer with reasoning; None where it does not go on from there."""
    if not tokenizer.chat_template:
        return None
    turns = [
        {"role": "user", "content": "a question 5"},
        {"role": "assistant", "content": _ANSWER, "reasoning_content": _THOUGHT},
    ]
    whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    return whole.removeprefix(asked) if whole.startswith(asked) else None


def reasoned(samples: Sequence[Sample], tokenizer: Any, stop: Sequence[str]) -> tuple[list[Sample], dict[str, int]]:
    """Samples whose completions hold the teacher's reasoning too, and how many `with` and `without` it there are.

    One that could not be taken apart again, for its reasoning holds the closing tag, counts among those without; so does
    blank reasoning. `stop` are the texts at which evaluation cuts an answer. UserError where there is no reasoning at all.
    """
    form, made, found = form_of(tokenizer), [], 0
    for sample in samples:
        thought = ((sample.answer and sample.answer.reasoning) or "").strip() or None
        whole = form.written(thought, sample.completion)
        parts = separate(whole)
        if thought is not None and (parts[0] != thought or parts[1].strip() != sample.completion.strip()):
            thought, whole = None, form.written(None, sample.completion)
        found += thought is not None
        cut = next((s for s in stop if s in whole.removesuffix(sample.completion)), None)
        if cut is not None:
            raise UserError(
                f"train.sft.reasoning: answers.stop has {cut!r}, which occurs in the reasoning (first: row {sample.row_id}), "
                "so evaluation would cut the student before its answer; remove it, or use `reasoning: off`."
            )
        made.append(msgspec.structs.replace(sample, completion=whole))
    if samples and not found:
        raise UserError(
            f"train.sft.reasoning: none of {len(samples)} answers has reasoning; name a teacher that shows its own (raise "
            "answers.max_tokens to leave it room), or use `reasoning: off`."
        )
    return made, {"with": found, "without": len(samples) - found}
