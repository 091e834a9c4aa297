"""docs/scorers.md says what is measured: its table is made again from the probes, and must be the same."""

from __future__ import annotations

import pytest

from tests.scorers import probe_table
from tests.scorers.probe_table import BEGIN, END, ROOT

pytestmark = [
    pytest.mark.probes,
    pytest.mark.skipif(not probe_table.READY, reason="needs `make setup` and `make probes`"),
]


def test_the_table_in_the_docs_is_what_is_measured() -> None:
    pytest.importorskip("profanity_check")
    text = (ROOT / "docs" / "scorers.md").read_text(encoding="utf-8")
    assert text.split(BEGIN)[1].split(END)[0] == probe_table.table()


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
