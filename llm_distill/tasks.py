"""What is being distilled: how a row becomes questions, and which label an answer states.

`classify` has a closed set of labels; `generate` has free text. A task has three views of a row: the student's (before
and after training), the base student's with worked examples, and the teacher's. A view with several example files asks
once for each; `merging` makes one answer of what comes back.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llm_distill import templates
from llm_distill.logprobs import Logprobs
from llm_distill.plugs import InputFile
from llm_distill.records import Message, Prompt
from llm_distill.seeds import read_rows

_LEADING = re.compile(r"^[\s\W_]+")
_AROUND = re.compile(r"^[\s\W_]+|[\s\W_]+$")
#: Letters of scripts that do not divide words, and of Korean, which hangs endings on them; the inside of a class.
UNDIVIDED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u318f\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNDIVIDED = re.compile(f"[{UNDIVIDED}]")


class View(BaseModel):
    """How one party sees a row: a template, and the files with its worked examples (one question for each file).

    `raw`: the text goes to the model without its chat template, to be continued.
    """

    model_config = ConfigDict(extra="forbid")
    template: InputFile | None = None
    examples: list[InputFile] = []
    raw: bool = False

    def questions(self, prompt: Prompt, labels: Sequence[str], order: int | None = None) -> list[tuple[Message, ...]]:
        """The messages of each question; without a template the row's own messages. order: another one of worked examples."""
        if self.template is None:
            return [prompt.messages]
        files: list[Path | None] = list(self.examples) or [None]
        return [templates.render(self.template, prompt, labels, worked_examples(f, order) if f else ()) for f in files]


_EXAMPLES: dict[Path, list[dict[str, Any]]] = {}


def worked_examples(path: Path, order: int | None = None) -> list[dict[str, Any]]:
    """The rows of a worked-example file, in its order or in another: `prompt` with `label` or `reference`."""
    if path not in _EXAMPLES:
        _EXAMPLES[path] = [
            {"prompt": p.text, "label": p.label, "reference": p.reference, "tags": p.tags} for p in read_rows(path)
        ]
    rows = _EXAMPLES[path]
    return rows if order is None else Random(order).sample(rows, len(rows))


class Task(BaseModel):
    """What the task kinds share."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["classify", "generate"]
    labels: list[Annotated[str, Field(min_length=1)]] = []
    parse: Literal["starts_with", "exact"] = "starts_with"
    template: InputFile | None = None
    few_shot: View | None = None
    teacher: View | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        if self.kind == "generate":
            if self.labels:
                raise ValueError("labels belong to `classify`; a `generate` task has none")
        else:
            self._check_labels()
            self.template = self.template or templates.BUILT_IN / "classify.md"
        if self.few_shot and not self.few_shot.examples:
            raise ValueError("few_shot needs `examples`: a list of files with worked examples")
        for name, view in (("few_shot", self.few_shot), ("teacher", self.teacher)):
            if view and view.examples and not view.template:
                if self.kind == "generate":
                    raise ValueError(
                        f"{name} has examples and no `template` to show them; name one that uses `examples`"
                    )
                view.template = templates.BUILT_IN / "classify_few_shot.md"
            elif view and not view.template:
                view.template = self.template
            if view and view.template and view.examples and "examples" not in templates.check(view.template):
                raise ValueError(f"{name}: {view.template} does not use `examples`, so they would not be shown")
        if self.template:
            templates.check(self.template)
        return self

    def _check_labels(self) -> None:
        said = [label.strip().casefold() for label in self.labels]
        if len(said) < 2 or len(set(said)) < len(said) or not all(said):
            raise ValueError(f"labels must be two or more, different beyond case; found {self.labels}")
        if self.parse == "exact":
            return
        folded = [_fold(label) for label in self.labels]
        for a, b in permutations(range(len(folded)), 2):
            if folded[b].startswith(folded[a]):
                raise ValueError(
                    f"label {self.labels[a]!r} is a prefix of {self.labels[b]!r}, so the start of an answer cannot tell "
                    "them apart; rename one or set `parse: exact`"
                )

    @property
    def student_view(self) -> View:
        """What the student is asked, before and after training."""
        return View.model_construct(template=self.template, examples=[])

    @property
    def teacher_view(self) -> View:
        """What the teacher is asked: its own view, or the student's."""
        return self.teacher or self.student_view

    def prediction(self, text: str) -> str | None:
        """The label an answer states, or None.

        Case, and blank space and punctuation before the label, do not count. `starts_with`: the answer begins with
        the label as a whole word. `exact`: its first line is the label, and nothing else but punctuation where that
        leaves no doubt.
        """
        if self.parse == "starts_with":
            folded = ((label, _fold(label)) for label in self.labels)
            return next((label for label, fold in folded if _begins(_start(text, fold), fold)), None)
        line = text.strip().split("\n")[0].strip().casefold()
        literal = [label for label in self.labels if label.strip().casefold() == line]
        bare = literal or [label for label in self.labels if _bare(label) == _bare(line) != ""]
        return bare[0] if len(bare) == 1 else None


def label_probs(logprobs: Logprobs, labels: Sequence[str], *, exact: bool = False) -> tuple[float, ...]:
    """The probability of each label, (len(labels),), read off the alternatives along the sampled path.

    At each position every alternative that leaves exactly one label possible gives that label its mass; the walk
    goes on while the sampled token leaves several possible, and an `exact` label that the whole path spells gets what
    is left of it. What is missing to 1 went to answers that are no label.
    """
    folded = tuple(_fold(label) for label in labels)
    probs = [0.0] * len(labels)
    path, prefix = 0.0, b""
    table, top, top_logprobs = logprobs.table, logprobs.top.tolist(), logprobs.top_logprobs.tolist()
    for i, (chosen, logprob) in enumerate(zip(logprobs.chosen.tolist(), logprobs.logprobs.tolist(), strict=True)):
        alternatives = dict(zip(top[i], top_logprobs[i], strict=True)) | {chosen: logprob}
        alternatives.pop(-1, None)  # padding
        for alternative, mass in alternatives.items():
            fits = _possible(prefix + table[alternative], folded, exact)
            if len(fits) == 1:
                probs[fits[0]] += math.exp(path + mass)
        prefix, path = prefix + table[chosen], path + logprob
        if len(_possible(prefix, folded, exact)) <= 1:
            break
    else:
        spelt = prefix.decode("utf-8", "ignore")
        whole = [i for i, label in enumerate(folded) if exact and _start(spelt, label).rstrip() == label]
        if whole:
            probs[whole[0]] += math.exp(path)
    return tuple(min(p, 1.0) for p in probs)


@lru_cache(maxsize=1 << 16)
def _possible(spelt: bytes, folded: tuple[str, ...], exact: bool) -> tuple[int, ...]:
    """Which labels an answer that begins with these bytes may still state."""
    text = spelt.decode("utf-8", "ignore")
    found = [(label, _start(text, label)) for label in folded]
    if exact:
        found = [(label, start.rstrip("\n")) for label, start in found]
    return tuple(
        i for i, (label, start) in enumerate(found) if label.startswith(start) or (not exact and _begins(start, label))
    )


def _start(text: str, label: str) -> str:
    """What of a text is held against a folded label: from the first word on, for a label of signs alone from the first sign."""
    signs = not _LEADING.sub("", label)
    return (text.lstrip() if signs else _LEADING.sub("", text)).casefold()


def _begins(text: str, label: str) -> bool:
    """Whether a text begins with a label as a whole word, where the scripts of both divide words."""
    if not text.startswith(label):
        return False
    following = text[len(label) : len(label) + 1]
    return not ((following.isalnum() or following == "_") and _divided(label[-1]) and _divided(following))


def _divided(sign: str) -> bool:
    """Whether a word goes on where this stands beside another of its kind."""
    return sign.isascii() or (unicodedata.category(sign)[0] in "LMN" and not _UNDIVIDED.match(sign))


def _fold(label: str) -> str:
    """As a label is compared at an answer's start; one of signs alone stays what it is."""
    return _LEADING.sub("", label).strip().casefold() or label.strip().casefold()


def _bare(text: str) -> str:
    """Without signs and blank space at both ends."""
    return _AROUND.sub("", text).casefold()
