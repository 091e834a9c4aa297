"""Personal data and secrets in prompts and answers: drop the row, or take them out of the prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from pydantic import AfterValidator, Field, ValidationInfo

from llm_distill.errors import did_you_mean
from llm_distill.records import Answer, Message, Prompt, content_id
from llm_distill.scorers import Scored
from llm_distill.scorers.parts import Part
from llm_distill.scorers.personal import KINDS, Finding, Kind, personal, phonenumbers, redacted


def _countries(regions: list[str], info: ValidationInfo) -> list[str]:
    if "phone" in info.data.get("kinds", ()):
        known = phonenumbers().SUPPORTED_REGIONS  # what is not installed is said now
        for region in regions:
            if region not in known:
                raise ValueError(f"no country {region!r}.{did_you_mean(region, known)}")
    return regions


#: Countries by their two letters.
Regions = Annotated[list[str], AfterValidator(_countries)]


def pii(
    answers: Sequence[Answer],
    *,
    kinds: Annotated[list[Kind], Field(min_length=1)] = list(KINDS),  # noqa: B006 - never changed
    of: Part = "both",
    do: Literal["drop", "redact_prompt"] = "drop",
    regions: Regions = ["US"],  # noqa: B006 - never changed
) -> Scored:
    """How many pieces of personal data, or secrets, a row has; `why` names their kinds, never the data.

    kinds: email; phone (valid numbers, by Google's rules: with + everywhere, without in `regions`); card (Luhn, and a
    network's digits); iban (length and modulo 97); ip (public addresses); national_id (US, GB, ES, IT, FR, BR, CH, SE; DE,
    NL, PL, CA and IN where the text says what it is: those checks let one number in ten pass); secret (keys and tokens of
    AWS, GitHub, GitLab, OpenAI, Anthropic, Slack, Google, Stripe, Hugging Face, npm, PyPI, private keys, JSON Web Tokens,
    passwords in addresses and beside their name; random enough to be real). Names, places and dates are not found, nor is
    anything spelt out.

    do: `drop` counts what stands in the prompt, the answer or `both`, for a bound. `redact_prompt` puts [EMAIL] and the like
    into the prompt that the student is trained on, and counts the answer alone, which is never edited.
    """
    scores, why, prompts = [], [], []
    for answer in answers:
        in_prompt = [personal(m.content, kinds, regions) for m in answer.prompt.messages] if of != "answer" else []
        in_answer = personal(answer.text, kinds, regions) if of != "prompt" else []
        redacts = do == "redact_prompt"
        scores.append(float(len(in_answer) + (0 if redacts else sum(map(len, in_prompt)))))
        why.append(_words([one for turn in in_prompt for one in turn], in_answer))
        prompts.append(_cleaned(answer.prompt, in_prompt) if redacts and any(in_prompt) else None)
    return Scored(scores, why, prompts if any(prompts) else ())


def _words(in_prompt: Sequence[Finding], in_answer: Sequence[Finding]) -> str | None:
    said = []
    for place, found in (("prompt", in_prompt), ("answer", in_answer)):
        counts = Counter(one.kind for one in found)
        said += [f"{kind} in the {place}" + (f" ({n})" if n > 1 else "") for kind, n in sorted(counts.items())]
    return ", ".join(said) or None


def _cleaned(prompt: Prompt, found: Sequence[Sequence[Finding]]) -> Prompt:
    """The prompt without what was found, as the same row."""
    messages = tuple(Message(m.role, redacted(m.content, some)) for m, some in zip(prompt.messages, found, strict=True))
    return msgspec.structs.replace(prompt, messages=messages, prompt_id=content_id(messages))
