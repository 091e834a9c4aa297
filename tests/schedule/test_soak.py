"""Nights in a row with kills, and an even account at the end; `python -m tests.bench.soak` runs two hundred."""

from __future__ import annotations

from pathlib import Path

from tests.bench.soak import check, soak


def test_twenty_nights_with_kills_come_out_even(tmp_path: Path) -> None:
    found = soak(tmp_path, 20, seed=3, kill_share=0.3)
    check(found)
    assert found["kills"]
