"""What every object of a recipe is checked for, beside its types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Plain(BaseModel):
    """Numbers are numbers: neither infinite nor `true`, which pydantic takes for 1."""

    model_config = ConfigDict(allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, found: Any) -> Any:
        for name, of in cls.model_fields.items() if isinstance(found, Mapping) else ():
            given, kinds = found.get(of.alias or name), leaves(of.annotation)
            if isinstance(given, bool) and not (bool in kinds or Any in kinds) and (int in kinds or float in kinds):
                raise ValueError(f"{of.alias or name}: found {str(given).lower()}; write a number")
        return found


def leaves(hint: Any) -> list[Any]:
    """The types that an annotation is made of."""
    return [leaf for inner in get_args(hint) for leaf in leaves(inner)] or [hint]
