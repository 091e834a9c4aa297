"""`evaluate.general` of a recipe: its tasks of general ability, whether they fit the recipe, and what they ask."""

from __future__ import annotations

from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, PrivateAttr

from llm_distill.errors import UserError
from llm_distill.evals.general_tasks import TaskFile, find_tasks
from llm_distill.plugs import Reading
from llm_distill.recipe_keys import Strict

if TYPE_CHECKING:
    from llm_distill.prices import Prices
    from llm_distill.recipe import Plan

#: Bytes of English a token, about.
_BYTES_PER_TOKEN = 4.0


class General(Strict):
    """General ability, measured by EleutherAI's lm-evaluation-harness on local task files, of the student and its untrained self.

    tasks: task files, or names of tasks in the folder `include` and of the shipped ones; by default all of that folder, or all
    that ship. limit: rows of each task, from its first one. few_shot: worked examples, where the task does not say. chat: through
    the student's chat template, which is not the harness's default.
    """

    tasks: list[str] = Field([])
    include: Path | None = None
    limit: int | None = Field(None, ge=1)
    few_shot: int | None = Field(None, ge=0)
    chat: bool = False
    _found: tuple[TaskFile, ...] = PrivateAttr(())

    def model_post_init(self, context: Any) -> None:
        """Find the tasks, and note every file that decides a score."""
        if find_spec("lm_eval") is None:
            raise ValueError("lm-evaluation-harness is not installed: pip install 'llm-distill[general]'")
        reading = cast(Reading, context)
        include = None if self.include is None else (reading["folder"] / self.include.expanduser()).resolve()
        if include is not None and not include.is_dir():
            raise ValueError(f"include: no such folder: {include}")
        self._found = find_tasks(self.tasks, include, reading["folder"])
        reading["files"].update(file for task in self._found for file in task.files)

    @property
    def found(self) -> tuple[TaskFile, ...]:
        """The tasks, read as far as a check needs them."""
        return self._found

    @property
    def shipped(self) -> bool:
        """Whether the tasks are the small ones that come with the package."""
        return not self.tasks and self.include is None


def check_recipe(plan: Plan) -> None:
    """UserError for tasks of general ability that the student cannot be measured on."""
    how, ship = plan.evaluate.general if plan.evaluate else None, plan.ship
    if how is None:
        if ship and ship.max_general_loss is not None:
            raise UserError(
                "ship.max_general_loss: general ability is not measured; add `general: {}` to evaluate for the small tasks that "
                "ship, or name larger ones."
            )
        return
    if plan.trainer is None:
        raise UserError(
            "evaluate.general: it holds the trained student against its base, and the recipe has no `train`; remove it."
        )
    read, student = [task.name for task in how.found if not task.asked], plan.models["student"]
    if read and not hasattr(student.function, "engine"):
        asked = [task.name for task in how.found if task.asked]
        raise UserError(
            f"evaluate.general: {', '.join(read)}: how likely an answer is, is read off weights in this process, and "
            f"models.student is {student.spec.name}; use transformers, or tasks of output_type generate_until"
            f"{f', for example `tasks: [{asked[0]}]`' if asked else ''}."
        )


def asking(plan: Plan, prices: Prices | None) -> list[dict[str, Any]]:
    """What the student is asked, before and after training, as an entry of `estimate`; reading its weights is no question."""
    how = plan.evaluate.general if plan.evaluate else None
    asked = [task for task in how.found if task.asked] if how else []
    if how is None or not asked:
        return []
    entry: dict[str, Any] = {"plug": "general", "roles": ["student"]}
    rows = [task.rows if how.limit is None else min(task.rows or how.limit, how.limit) for task in asked]
    if None in rows:
        unknown = ("requests", "prompt_tokens", "completion_tokens_at_most", "cost_usd_at_most")
        return [entry | dict.fromkeys(unknown)]
    both = [2 * (n or 0) for n in rows]
    given = round(sum(n * task.prompt_bytes for n, task in zip(both, asked, strict=True)) / _BYTES_PER_TOKEN)
    most = max(task.max_tokens for task in asked)
    usd = None if prices is None else sum(both) * prices.at_most_usd(ceil(given / max(1, sum(both))), most)
    made = sum(n * task.max_tokens for n, task in zip(both, asked, strict=True))
    return [
        entry
        | {"requests": sum(both), "prompt_tokens": given, "completion_tokens_at_most": made, "cost_usd_at_most": usd}
    ]
