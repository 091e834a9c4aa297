"""Prompts about the leaves of a tree of topics that a model grows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import ceil
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from llm_distill.generators import AtMost, Context
from llm_distill.generators.gathering import Gathering, check_template, prompt_tokens, spread
from llm_distill.generators.lists import fault, words
from llm_distill.generators.novelty import ROUGE_L, Novelty
from llm_distill.plugs import InputFile, Role
from llm_distill.records import Prompt, Request, Sampling
from llm_distill.templates import BUILT_IN, render_with

#: A topic is a name; what is longer explains it as well.
_NAME_WORDS = 10
#: Words that make no topic another one.
_SMALL = frozenset(
    ("a", "an", "and", "for", "in", "of", "on", "the", "to", "und", "der", "die", "das", "de", "la", "et")
)
_GIVEN = ("topic", "path", "count")


def _topics(topics: list[str]) -> list[str]:
    for topic in topics:
        if not words(topic):
            raise ValueError(f"found {topic!r}; a topic has some letters")
    if len({_key(topic) for topic in topics}) < len(topics):
        raise ValueError(f"two of these are the same topic: {', '.join(topics)}")
    return topics


def topic_tree(
    context: Context,
    *,
    topics: Annotated[list[str], Field(min_length=1), AfterValidator(_topics)],
    depth: Annotated[int, Field(ge=0, le=6)] = 2,  # two levels of five: 25 leaves a topic
    width: Annotated[int, Field(ge=1, le=100)] = 5,
    per_leaf: Annotated[int, Field(ge=1)] = 8,
    rows: Annotated[int, Field(ge=1)] | None = None,
    per_question: Annotated[int, Field(ge=1, le=64)] = 8,  # longer lists repeat themselves
    model: Role = "teacher",
    novelty: Novelty | None = ROUGE_L,
    max_words: Annotated[int, Field(ge=1)] = 150,  # self-instruct's
    temperature: Annotated[float, Field(ge=0)] = 1.0,  # equal questions are asked again for more, and are to differ
    max_tokens: Annotated[
        int, Field(ge=1)
    ] = 2048,  # 8 prompts of 150 words are about 1,600; a list that is cut is lost
    template: Annotated[
        InputFile, AfterValidator(partial(check_template, given=_GIVEN, needed=("topic", "count")))
    ] = BUILT_IN / "topic_tree.md",
    leaf_template: Annotated[
        InputFile, AfterValidator(partial(check_template, given=(*_GIVEN, "labels"), needed=("topic", "count")))
    ] = BUILT_IN / "topic_tree_leaf.md",
) -> Iterator[Prompt]:
    """Prompts for every leaf: `topics` divided into `width` subtopics, these again, to `depth` levels; then `per_leaf` each.

    Each level is asked for in one round. A name that stands anywhere in the tree already, but for case, order, plural and
    small words, is left out; so is one of more than ten words. A topic whose division brings nothing is a leaf itself. A
    leaf is asked for `per_question` prompts at a time, as often as that takes; `rows` bounds them all, taken evenly. A
    prompt is thrown away that has more than `max_words`, is unfinished or not new. Tags: `topic`, the path, such as
    `physics/optics/lenses` (a slash in a name becomes a dash there). The idea: Li et al. 2024 (GLAN), arXiv 2402.13064.
    """
    gathering = Gathering(context, novelty)
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
    level: list[tuple[str, ...]] = [(" ".join(topic.split()),) for topic in topics]
    leaves: list[tuple[str, ...]] = []
    seen = {_key(path[-1]) for path in level}
    for _ in range(depth):
        asked = [Request(_question(template, path, count=width), sampling) for path in level]
        below: list[tuple[str, ...]] = []
        for path, names in zip(level, gathering.ask_lists(model, asked), strict=True):
            children = _children(names, width, seen, gathering)
            below += [(*path, name) for name in children]
            leaves += [] if children else [path]
        level = below
    leaves += level
    if rows is not None:
        per_leaf = min(per_leaf, ceil(rows / len(leaves)))
    plan = [(path, number, count) for path in leaves for number, count in enumerate(spread(per_leaf, per_question))]
    requests = [
        Request(_question(leaf_template, path, count=count, labels=context.task.labels), sampling, sample=number)
        for path, number, count in plan
    ]
    found = [
        (text, {"topic": "/".join(name.replace("/", "-") for name in path)})
        for (path, _, count), listed in zip(plan, gathering.ask_lists(model, requests), strict=True)
        for text in listed[:count]
    ]
    gathering.take(found, wrong=partial(fault, most=max_words))
    gathering.rows = _evenly(gathering.rows, rows)
    gathering.say("topic_tree", rows, f" about {len(leaves):,} topics")
    yield from gathering.rows


def at_most(
    _before: int,
    *,
    topics: list[str],
    depth: int,
    width: int,
    per_leaf: int,
    per_question: int,
    rows: int | None,
    **knobs: Any,
) -> AtMost:
    """What it may come to."""
    nodes = [len(topics) * width**level for level in range(depth + 1)]
    made, asked = nodes[-1] * per_leaf, nodes[-1] * len(spread(per_leaf, per_question))
    if rows is not None:  # fewer leaves are asked for more each: together for one more question a leaf than they fill
        asked = min(asked, nodes[-1] + (rows - 1) // per_question)
    files = [Path(knobs["template"]), Path(knobs["leaf_template"])]
    questions = sum(nodes[:-1]) + asked
    size = max(prompt_tokens(file, 20) for file in files)  # a path, about
    return AtMost(made if rows is None else min(made, rows), questions, size, knobs["max_tokens"])


def _question(template: Path, path: tuple[str, ...], **more: Any) -> Any:
    return render_with(template, {"topic": path[-1], "path": list(path), **more}, f"topic {'/'.join(path)}")


def _children(names: list[str], width: int, seen: set[str], gathering: Gathering) -> list[str]:
    """The first `width` names that are new to the tree."""
    children: list[str] = []
    for text in names:
        name = " ".join(text.strip().rstrip(".").split())
        why = fault(name, most=_NAME_WORDS)
        if why is None:
            why = "twice" if _key(name) in seen else "over `width`" if len(children) == width else None
        if why:
            gathering.gone[f"topic {why}"] += 1
            continue
        seen.add(_key(name))
        children.append(name)
    return children


def _key(topic: str) -> str:
    """The same for names that differ in case, order, plural or small words alone."""
    found = sorted({_singular(word) for word in words(topic) if word not in _SMALL})
    return " ".join(found) or topic.casefold()


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3 else word


def _evenly(rows: list[Prompt], most: int | None) -> list[Prompt]:
    """At most so many rows, in their order: the first of each topic before the second of any."""
    if most is None or len(rows) <= most:
        return rows
    nth: dict[str, int] = {}
    ranks = []
    for place, row in enumerate(rows):
        topic = row.tags["topic"]
        nth[topic] = nth.get(topic, -1) + 1
        ranks.append((nth[topic], place))
    return [rows[place] for place in sorted(place for _, place in sorted(ranks)[:most])]
