"""Reasoning apart from the answer: which text is which, and which tokens are the answer's.

Some servers hand over a model's reasoning in a field of its own. Others leave it in the text, between `<think>` and
`</think>`, as DeepSeek-R1 and Qwen3 write it; where the chat template itself has opened the block, only the closing tag
comes back.
"""

from __future__ import annotations

import re

from llm_distill.logprobs import Logprobs

_OPEN, _CLOSE = "<think>", "</think>"
#: A closing tag that has a line for itself, as the models write it; a sentence about the tag does not.
_ALONE = re.compile(rf"^[^\S\n]*{_CLOSE}[^\S\n]*$", re.MULTILINE)
#: What stands between the closing tag and the answer: blank lines, or blank space on the same line. Indentation stays.
_GAP = re.compile(r"(?:[^\S\n]*\n)+|[^\S\n]*")


def separate(text: str) -> tuple[str | None, str]:
    """(reasoning, answer) of a text as the model wrote it; the reasoning is None where the text holds none.

    A text that begins with `<think>`, blank space aside, is reasoning up to the first `</think>`, and all of it is
    where none follows. In any other text a `</think>` counts only on a line of its own and without a `<think>` before
    it: prose that mentions the tags, and code that shows both, are answers.
    """
    opened = text.lstrip()
    if opened.startswith(_OPEN):
        reasoning, closed, rest = opened.removeprefix(_OPEN).partition(_CLOSE)
    else:
        found = _ALONE.search(text) if _CLOSE in text else None
        if found is None or _OPEN in text[: found.start()]:
            return None, text
        reasoning, closed, rest = text[: found.start()], _CLOSE, text[found.end() :]
    gap = _GAP.match(rest)
    answer = rest[gap.end() :] if closed and gap else ""
    return reasoning.strip() or None, answer


def answer_part(logprobs: Logprobs, answer: str) -> Logprobs | None:
    """The logprobs of an answer's tokens, from the one that holds its first byte on; None where the answer is not there.

    The answer is looked for from the end, for what goes before it may be reasoning that the text does not show.
    """
    start = b"".join(logprobs.tokens).rfind(answer.encode())
    if start < 0:
        return None
    first = upto = 0
    for token in logprobs.tokens:
        upto += len(token)
        if upto > start:
            break
        first += 1
    return logprobs.after(first)
