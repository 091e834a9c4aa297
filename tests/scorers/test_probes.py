"""docs/scorers.md says what is measured: its tables are made again from the probes, and must be the same."""

from __future__ import annotations

import shutil
from functools import lru_cache

import pytest

from tests.scorers import probe_table, quality_table
from tests.scorers.probe_table import ROOT, Line

pytestmark = [
    pytest.mark.probes,
    pytest.mark.skipif(not probe_table.READY, reason="needs `make setup` and `make probes`"),
]


def written(begin: str, end: str) -> str:
    text = (ROOT / "docs" / "scorers.md").read_text(encoding="utf-8")
    return text.split(begin)[1].split(end)[0]


@lru_cache(maxsize=1)
def quality() -> list[Line]:
    for package in ("py3langid", "wordllama", "math_verify"):
        pytest.importorskip(package)
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed (Debian: bubblewrap)")
    return quality_table.lines()


def test_the_table_in_the_docs_is_what_is_measured() -> None:
    pytest.importorskip("profanity_check")
    assert written(probe_table.BEGIN, probe_table.END) == probe_table.table()


def test_what_is_promised_of_each_scorer_holds() -> None:
    lines = [*probe_table.personal(), *probe_table.swaps(), *probe_table.mentioned()]
    for line in lines:
        if line.scorer.startswith("pii"):
            assert line.found >= 0.98 * line.of, line
            assert line.flagged <= 0.001 * line.others, line
        elif line.scorer.startswith("counterfactual"):
            assert line.found >= 0.9 * line.of, line
        elif line.scorer != "mentions of gender":  # where the sentence names others too
            assert line.flagged <= 0.03 * line.others, line


@pytest.mark.timeout(300)
def test_the_table_of_quality_in_the_docs_is_what_is_measured() -> None:
    found = quality()
    assert written(quality_table.BEGIN, quality_table.END) == quality_table.HEAD + "".join(
        line.markdown() + "\n" for line in found
    )


#: The share of what should be dropped that is, at least, and of what should not, at most.
PROMISED = {
    "refusal": (0.3, 0.02),
    "identity": (0, 0.001),
    "repetition by loops": (0.8, 0.06),
    "repetition by compression": (0.8, 0.1),
    "language, only: [en]": (0.99, 0.01),
    "language, only its own": (0.99, 0.05),
    "format, parses: python": (0.85, 0),
    "format, parses: json": (0.95, 0),
    "json_equal": (1, 0),
    "near_duplicate": (0, 0.01),
    "semantic_duplicate": (0, 0.06),
    "leakage by words": (0.98, 0.01),
    "leakage by embedding": (0.9, 0.01),
    "numeric": (0.99, 0),
    "math": (0.94, 0.01),
    "code": (0.97, 0),
}


@pytest.mark.timeout(300)
def test_what_is_promised_of_each_quality_scorer_holds() -> None:
    assert {line.scorer for line in quality()} == PROMISED.keys()
    for line in quality():
        least, most = PROMISED[line.scorer]
        assert line.found >= least * line.of, line
        assert line.flagged <= most * line.others, line
