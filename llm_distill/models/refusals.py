"""What a provider means when it turns a request down: its statuses, its words, and the wait that it asks for."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

#: Worth another try: time-outs, conflicts, rate limits and the server's own troubles (498: no room, with Groq; 520 to 530:
#: Cloudflare does not reach the server; 529: overloaded).
RETRYABLE = {408, 409, 425, 429, 498, 500, 502, 503, 504, *range(520, 531)}
#: Of these, what says that there are too many requests now.
CROWDED = {429, 498, 503, 529}
#: What a gateway says while the server behind it may still be at work.
PERHAPS_BILLED = {408, 502, 504, 520, 522, 524}
#: Of a prompt that a provider will not have answered: Azure, OpenAI, Alibaba, DeepSeek, OpenRouter.
_FILTERED = re.compile(
    r"content_filter|content_policy_violation|ResponsibleAIPolicyViolation|data_?inspection_?failed|Content Exists Risk|"
    r"(prompt|input|content) (was|has been) flagged",
    re.IGNORECASE,
)
#: What some say with 400 in place of 401, 402 and 404: Gemini of its keys; Anthropic; Mistral, DeepSeek, LiteLLM, OpenRouter.
_KEY = re.compile(r"API key not valid|API key expired|API_KEY_INVALID", re.IGNORECASE)
_CREDIT = re.compile(r"credit balance is too low", re.IGNORECASE)
_MODEL = re.compile(
    r"model_not_found|invalid[ _]model|not a valid model|model not (exist|found)|model .{1,100} does not exist",
    re.IGNORECASE,
)


def bad_key(status: int, words: str) -> bool:
    """Whether nobody is let in with this key."""
    return status == 401 or (status == 400 and bool(_KEY.search(words)))


def no_credit(status: int, words: str) -> bool:
    """Whether the account is empty."""
    return (
        status == 402
        or (status == 429 and "insufficient_quota" in words)
        or (status == 400 and bool(_CREDIT.search(words)))
    )


def no_model(status: int, words: str) -> bool:
    """Whether the model is not there."""
    return status == 404 or (status == 400 and bool(_MODEL.search(words)))


def filtered(status: int, words: str) -> bool:
    """Whether what a request says is refused. Azure bills it, and no other try would do better."""
    return status in (400, 403, 422) and bool(_FILTERED.search(words))


def retry_after_s(retry_after: str | None) -> float | None:
    """Retry-After (RFC 9110, 10.2.3): seconds or a date."""
    if not retry_after:
        return None
    try:
        return float(retry_after)
    except ValueError:
        try:
            return (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
