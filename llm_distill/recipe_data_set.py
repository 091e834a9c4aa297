"""The key `data_set` of a recipe: which data set its runs grow, and when a row counts as new to it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from llm_distill.embeddings import STATIC, Embedder
from llm_distill.recipe_keys import Strict, checked_name


class Semantic(Strict):
    """Rows that say the same as an earlier one: their cosine is above `max`. by: what turns texts into vectors."""

    max: float = Field(0.95, gt=0, lt=1)
    by: Embedder = STATIC


class DataSet(Strict):
    """A data set that every run of a recipe adds to.

    near: a row whose word 3-grams are alike to those of an earlier one by so much (Jaccard) is not new; null: only equal
    ones are not. semantic: as well one that says the same, by an embedding. train_on: what a student learns, all rows of the
    set or those that this run added.
    """

    name: str
    near: float | None = Field(0.8, gt=0, le=1)
    semantic: Semantic | None = None
    train_on: Literal["all", "new"] = "all"

    @field_validator("name")
    @classmethod
    def _a_folder_name(cls, name: str) -> str:
        return checked_name(name)


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


#: `data_set: NAME`, or with its settings.
NamedSet = Annotated[DataSet, BeforeValidator(_named)]
