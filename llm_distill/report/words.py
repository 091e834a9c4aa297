"""Numbers and untrusted strings as a reader sees them. Pure; the page's escaping comes after."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

Part = Mapping[str, Any]
LONGEST = 4000  # characters of one string: 20 examples x 5 texts of the worst kind stay under 5 MB; report.json has all
ARMS = {
    "base_zero_shot": "Base, zero-shot",
    "base_few_shot": "Base, few-shot",
    "student": "Student",
    "previous": "Previous student",
    "teacher": "Teacher",
}
#: The parts of an evaluation that ask more than its held-out rows do, as a sentence names them.
PARTS = {
    "judge": "the judge's part",
    "robustness": "robustness",
    "pass_at": "pass@k",
    "general": "general ability",
    "speed": "speed",
}
NAMES = {
    **ARMS,
    "macro_f1": "Macro-F1",
    "token_f1": "Token F1",
    "agreement_with_teacher": "Agrees with teacher",
    "unparsed_rate": "Unparsed",
    "length_ratio": "Length / reference",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
    "embedding": "Embedding similarity",
    "instructions": "Follows instructions",
    "json_equal": "Exact JSON",
    "json_fields": "Field F1",
    "schema_valid": "Fits schema",
    "numeric": "Right number",
    "math": "Right expression",
    "code": "Passes tests",
    "judge": "Score by judge",
    "brier": "Brier score",
    "ece": "Calibration error",
    "auroc": "AUROC",
    "top1_agreement": "Same likeliest label",
    "kl_from_teacher": "KL from teacher",
    "win": "Student wins",
    "loss": "Student loses",
    "seconds_per_answer": "Time per answer",
    "prompt_tokens_per_answer": "Prompt tokens",
    "asked_rows": "Teacher, asked rows",
    "lora_rank": "LoRA rank",
    "recipe_digest": "Recipe digest",
    "git": "Git commit",
    "sha256": "SHA-256",
}

DECIMAL = {"brier", "ece", "auroc", "kl_from_teacher", "length_ratio"}  # shown as they are: no share of anything

# Controls, zero-width and bidirectional marks, line separators, lone surrogates, noncharacters, tag characters. Joiners
# stay (200C, 200D: Persian, emoji).
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufdd0-\ufdef\ufeff\ufff9-\ufffb"
    "\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)


class Said(NamedTuple):
    """A sentence with its tone: `good`, `same` (nothing can be seen) or `look` (before it ships)."""

    tone: str
    text: str


def part(of: Part, key: str) -> Part:
    """A section of the report; empty where it is missing or null."""
    found = of.get(key)
    return found if isinstance(found, Mapping) else {}


def parts(of: Part, key: str) -> list[Part]:
    """The sections in a list of the report; those that are missing or null left out."""
    found = of.get(key)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def visible(text: str) -> str:
    """The text with every character that hides, reorders or breaks text replaced by a mark one can see."""

    def mark(found: re.Match[str]) -> str:
        code = ord(found[0])
        if code < 0x20:
            return chr(0x2400 + code)
        return "\ufffd" if 0xD800 <= code <= 0xDFFF else f"[U+{code:04X}]"

    return HIDDEN.sub(mark, text)


def printed(item: Any) -> Any:
    """What the page prints for any value: clipped and visible, a dash for what is missing."""
    if isinstance(item, Markup):
        return item
    if item is None:
        return "—"
    text = str(item)
    more = f"… ({len(text) - LONGEST:,} more characters in report.json)" if len(text) > LONGEST else ""
    return visible(text[:LONGEST]) + more


def value(of: Part, key: str = "value") -> float | None:
    """A finite number, or None."""
    found = of.get(key)
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


def human(name: object) -> str:
    """A key as a reader says it: `student_vs_teacher` -> "Student vs teacher"."""
    left, versus, right = str(name).partition("_vs_")
    if versus and left not in ARMS:  # models by the names that their user gave them
        return short(f"{left} vs {right}")
    words = NAMES.get(left) or (left[:1].upper() + left[1:]).replace("_", " ")
    return short(f"{words} vs {human(right)[:1].lower()}{human(right)[1:]}" if versus else words)


def short(text: object, longest: int = 60) -> str:
    """A string for a place with little room."""
    shown = str(text)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def percent(share: object, digits: int = 1) -> str:
    """0.873 -> "87.3 %"; a dash for what was not measured."""
    return f"{100 * share:.{digits}f}\u00a0%" if isinstance(share, int | float) and math.isfinite(share) else "—"


def decimal(number: object) -> str:
    """0.8731 -> "0.87"; a dash for what was not measured."""
    return f"{number:.2f}" if isinstance(number, int | float) and math.isfinite(number) else "—"


def points(share: object) -> str:
    """A difference of shares in percentage points, signed: 0.213 -> "+21.3"."""
    if not isinstance(share, int | float) or not math.isfinite(share):
        return "—"
    return f"{100 * share:+.1f}".replace("-", "\u2212").replace("+0.0", "0.0").replace("\u22120.0", "0.0")


def count(number: object) -> str:
    """12345 -> "12,345"."""
    if not isinstance(number, int | float) or not math.isfinite(number):
        return "—"
    return f"{number:,.0f}" if abs(number) >= 100 or float(number).is_integer() else f"{number:,.1f}"


def duration(seconds: object) -> str:
    """0.123 -> "123 ms", 3.21 -> "3.2 s", 492 -> "8 min 12 s"."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return "—"
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f}\u00a0ms"
    if seconds < 59.95:
        return f"{seconds:.1f}\u00a0s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\u00a0h {minutes}\u00a0min" if hours else f"{minutes}\u00a0min {left}\u00a0s"


def usd(cost: object) -> str:
    """Dollars. A price nobody stated is unknown, which is not zero."""
    if not isinstance(cost, int | float) or not math.isfinite(cost):
        return "unknown"
    return f"${cost:,.2f}" if cost == 0 or cost >= 0.01 else f"${cost:.{1 - math.floor(math.log10(abs(cost)))}f}"


def measure(number: object, metric: str) -> str:
    """A metric's value in its own unit, which its name states."""
    if metric.startswith("seconds"):
        return duration(number)
    if "token" in metric and not metric.startswith("token_f1"):
        return count(number)
    if metric in DECIMAL:
        return f"{number:.3f}" if isinstance(number, int | float) and math.isfinite(number) else "—"
    return percent(number)


def interval(of: Part, metric: str = "") -> str:
    """The interval as "82.1 to 89.9", signed where the metric is a difference; nothing where there is none."""
    low, high = value(of, "low"), value(of, "high")
    if low is None or high is None:
        return ""
    if metric == "difference":
        return f"{points(low)} to {points(high)}"
    if metric in DECIMAL:
        return f"{low:.3f} to {high:.3f}"
    return f"{100 * low:.1f} to {100 * high:.1f}"


def marked(preview: str) -> list[tuple[bool, str]]:
    """(is trained, text) in order. Trained tokens stand between ⟦ and ⟧ in the preview."""
    pieces = re.split("⟦(.*?)⟧", preview, flags=re.DOTALL)
    return [(bool(i % 2), piece) for i, piece in enumerate(pieces) if piece]


def flat(of: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as (dotted key, value), in order."""
    if not isinstance(of, Mapping):
        return [(prefix, ", ".join(map(str, of)) if isinstance(of, list | tuple) else of)]
    return [pair for key, v in of.items() for pair in flat(v, f"{prefix}.{key}" if prefix else str(key))]
