"""Nights in a row with kills, and an even account at the end; `python -m tests.bench.soak` runs two hundred."""

from __future__ import annotations

from pathlib import Path

from tests.bench.soak import soak
from tests.bench.soak_account import check


def test_a_dozen_nights_with_kills_come_out_even(tmp_path: Path) -> None:
    found = soak(tmp_path, 12, seed=3, kill_share=0.5)
    check(found)
    assert set(found["killed at"]) == {"any moment", "billed, not on disk"}
    assert found["billed, and the answer lost"]
