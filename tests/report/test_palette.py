"""The page's colours can be read: WCAG 2.2's contrast, level AA, in light and dark (success criteria 1.4.3 and 1.4.11)."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

CSS = files("llm_distill.report").joinpath("page/page.css").read_text(encoding="utf-8")
PALETTES = [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{([^}]*)\}", CSS)]
FULL = 0.42  # of a cell's colour, where its share is the whole row


def channels(colour: str) -> list[float]:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    return [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]


def luminance(of: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in of]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: list[float], other: list[float]) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_as_wcag_has_it() -> None:
    assert contrast(channels("#000"), channels("#ffffff")) == pytest.approx(21)
    assert contrast(channels("#777"), channels("#fff")) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("palette", PALETTES, ids=["light", "dark"])
def test_text_and_marks_stand_out(palette: dict[str, str]) -> None:
    assert len(PALETTES) == 2
    of = {name: channels(colour) for name, colour in palette.items()}
    for ground in ("page", "card", "tint"):
        for text in ("ink", "muted", "accent"):
            assert contrast(of[text], of[ground]) >= 4.5, f"{text} on {ground}"
    assert contrast(of["page"], of["accent"]) >= 4.5, "the link that skips to the results"
    assert contrast(of["page"], of["ink"]) >= 4.5, "the mark of what to look at"
    for colour in ("muted", "accent"):
        fullest = [FULL * c + (1 - FULL) * g for c, g in zip(of[colour], of["card"], strict=True)]
        assert contrast(of["ink"], fullest) >= 4.5, f"a confusion matrix's cell, {colour}"
