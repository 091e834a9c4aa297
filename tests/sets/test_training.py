"""A student of a data set: taught by all of its nights, judged on all that any of them held out."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Desk
from tests.finished import LORA, STUDENT, TEACHER
from tests.models.conftest import byte_level_tokenizer, tiny
from tests.sets.nights import held_out, night, rows, shelf, taught


def test_a_student_learns_the_whole_set_and_forgetting_names_it(desk: Desk) -> None:
    tiny("llama", desk.folder / "base", byte_level_tokenizer(), tie_word_embeddings=True)
    keys = {
        "models": {"teacher": TEACHER, "student": {"transformers": STUDENT}},
        "held_out": {"share": 0.3},
        "train": {"sft": LORA | {"epochs": 1}},
        "evaluate": {"resamples": 100},
    }
    night(desk, rows(range(14)), **keys, data_set={"name": "tone", "train_on": "new"})
    first = taught(desk)
    run = Path(night(desk, rows(range(10, 24)), **keys, data_set={"name": "tone", "train_on": "all"})["run"])
    learnt = [answer["row_id"] for answer in desk.rows({"run": run}, "set")]
    assert learnt == [row["row_id"] for row in shelf(desk).rows(2, "taught")]
    assert len(learnt) > len(first)
    assert json.loads((run / "student" / "training.json").read_text())["checks"]["rows"] == len(learnt)
    assert [row["messages"][-1]["content"] for row in desk.rows({"run": run}, "eval/student")] == held_out(desk)
    row_id = next(row["row_id"] for row in shelf(desk).rows(1, "taught"))
    found = json.loads(desk.llm_distill("forget", "--row", row_id, "--dry-run", "--json"))
    assert len(found["students"]) == 2
    assert f"{run.name}/student was trained on it" in desk.llm_distill("why", row_id)
