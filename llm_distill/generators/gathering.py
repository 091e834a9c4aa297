"""What the generators that have prompts written share: asking, keeping what is new, and an account of the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from llm_distill import templates
from llm_distill.errors import UserError
from llm_distill.generators import Context
from llm_distill.generators.lists import fault, items
from llm_distill.generators.novelty import Novelty, Pool
from llm_distill.records import Message, Prompt, Request, make_prompt

#: Characters of English a token, about, for estimates.
CHARACTERS_PER_TOKEN = 4


class Gathering:
    """The rows that one generator has gathered so far, and why it threw others away.

    A row that is there already (`Prompt.gist`), among those before it too, is thrown away as `known`; one too much like
    another, by `novelty`, as `not new`.
    """

    def __init__(self, context: Context, novelty: Novelty | None = None, beside: Sequence[str] = ()) -> None:
        self.rows: list[Prompt] = []
        self.asked = 0
        self.gone: Counter[str] = Counter()
        self._context = context
        self._gists = {row.gist for row in context.before}
        self._pool = Pool(novelty, [*(row.text for row in context.before), *beside]) if novelty else None

    def ask(self, role: str, requests: Sequence[Request]) -> list[str | None]:
        """The texts of the answers, in the order of the questions; None where there is no whole one."""
        self.asked += len(requests)
        texts: list[str | None] = []
        for entry in self._context.ask(role, requests):
            texts.append(entry.text if entry.status == "ok" else None)
            if entry.status != "ok":
                self.gone[f"{entry.status} answer"] += 1
        return texts

    def ask_lists(self, role: str, requests: Sequence[Request]) -> list[list[str]]:
        """The items of answers that are to be lists (see `lists.items`); none where there is no such answer."""
        found = [None if text is None else items(text) for text in self.ask(role, requests)]
        self.gone["no list"] += sum(listed == [] for listed in found)
        return [listed or [] for listed in found]

    def take(
        self,
        texts: Sequence[tuple[str, Mapping[str, str]]],
        *,
        most: int | None = None,
        wrong: Callable[[str], str | None] = fault,
    ) -> list[Prompt]:
        """Take in what is sound (`wrong` says why not) and new of texts with their tags, up to `most` rows in all."""
        sound = []
        for text, tags in texts:
            if why := wrong(text):
                self.gone[why] += 1
            elif self.unknown(row := make_prompt((Message("user", text.strip()),), tags)):
                sound.append(row)
        new = self._pool.take([row.text for row in sound]) if self._pool else [True] * len(sound)
        self.gone["not new"] += len(sound) - sum(new)
        taken = [row for row, is_new in zip(sound, new, strict=True) if is_new]
        if most is not None:
            taken = taken[: max(0, most - len(self.rows))]
        self.rows += taken
        return taken

    def unknown(self, row: Prompt) -> bool:
        """Whether a row is not there yet, and remember it; thrown away if it is."""
        found = row.gist in self._gists
        self.gone["known"] += found
        self._gists.add(row.gist)
        return not found

    def say(self, name: str, wanted: int | None = None, more: str = "") -> None:
        """One line: rows, questions, and what was thrown away by reason."""
        rows = f"{len(self.rows):,}" if wanted is None else f"{len(self.rows):,} of {wanted:,}"
        thrown = ", ".join(f"{count:,} {why}" for why, count in sorted(self.gone.items(), key=lambda g: -g[1]) if count)
        line = f"{name}: {rows} rows from {self.asked:,} questions{more}"
        self._context.say(f"{line}; thrown away: {thrown}" if thrown else line)


def check_template(path: Path, given: Collection[str], needed: Collection[str]) -> Path:
    """A template that uses only what it is given, and what it cannot do without; else a UserError."""
    used = templates.check_with(path, given)
    if missing := sorted(set(needed) - used):
        raise UserError(f"{path}: the template does not use {missing[0]!r}; it is given {', '.join(given)}.")
    return path


def spread(wanted: int, per_question: int) -> list[int]:
    """How many to ask for in each question, to have `wanted` of them: 20 by 8 is 8, 8, 4."""
    return [min(per_question, wanted - start) for start in range(0, wanted, per_question)]


def prompt_tokens(path: Path, more: int = 0) -> int:
    """About how long a question is: its template, and `more` tokens that are filled in."""
    return path.stat().st_size // CHARACTERS_PER_TOKEN + more
