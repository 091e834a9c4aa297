"""Part of the evaluate stage: general ability, of the base student and of the trained one (`evaluate: {general: ...}`)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec

from llm_distill import store
from llm_distill.evals.general import Row, held_against_base
from llm_distill.models import Model
from llm_distill.records import Entry, Request, content_id

if TYPE_CHECKING:
    from llm_distill.evaluating import Evaluation
    from llm_distill.recipe_general import General

#: Who is held against whom.
BASE, STUDENT = "base_zero_shot", "student"


def general(seen: Evaluation, how: General) -> dict[str, Any]:
    """`general` of report.json; the rows are kept in eval/general/, an arm each."""
    plan = seen.run.plan
    assert plan.evaluate is not None
    rows = {arm: _measured(seen, arm, how) for arm in (BASE, STUDENT)}
    numbers = held_against_base(rows[BASE], rows[STUDENT], seed=plan.seed, resamples=plan.evaluate.resamples)
    settings = {"limit": how.limit, "few_shot": how.few_shot, "chat": how.chat}
    return {"harness": f"lm_eval {version('lm_eval')}", "shipped": how.shipped, "settings": settings} | numbers


def _measured(seen: Evaluation, arm: str, how: General) -> dict[str, list[Row]]:
    """An arm's score for every row of every task. What was measured of the same model and files before is not measured again:
    answers are found in the ledger, likelihoods beside the evaluation.
    """
    from llm_distill.evals.harness import Served, measure

    run, model = seen.run, seen.panels[arm].models["student"]
    files = [store.digest(file) for task in how.found for file in task.files]
    names = [task.name for task in how.found]
    key = content_id([model.identity, names, files, how.limit, how.few_shot, how.chat, version("lm_eval")])
    path = run.folder.file(f"eval/general/{arm}.json")
    if path.exists():
        kept = msgspec.json.decode(path.read_bytes())
        if kept["key"] == key:
            return msgspec.convert(kept["tasks"], dict[str, list[Row]])
    run.watch.say(f"evaluate: general ability, {arm.replace('_', ' ')}: {', '.join(names)}")
    engine = None
    if any(not task.asked for task in how.found):
        run.make_room(model)
        engine = model.engine()  # type: ignore[attr-defined]  # the recipe's check has seen to it
    served = Served(lambda questions: _asked(seen, model, questions), model.tokenizer() if how.chat else None, engine)
    found = measure(how.found, served, limit=how.limit, few_shot=how.few_shot, chat=how.chat)
    if served.failed:
        seen.ask.owed += len(served.failed)  # a later run asks again
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_json(path, {"key": None if served.failed else key, "tasks": msgspec.to_builtins(found)})
    return found


def _asked(seen: Evaluation, model: Model, questions: Sequence[Request]) -> list[Entry]:
    return seen.ask.of(model, "student", questions)
