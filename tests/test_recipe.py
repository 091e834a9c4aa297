"""A wrong recipe: one line that says what was found, what is allowed and the repair; exit code 2; nothing spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_distill.errors import UserError
from llm_distill.recipe import load
from tests.conftest import Desk

SEEDS = [{"prompt": "good thing", "label": "positive"}, {"prompt": "bad thing", "label": "negative"}]
STUDENT = {"transformers": {"model": "org/name"}}
TEACHER = {"scripted": {"default": "positive"}}


@pytest.fixture
def seeded(desk: Desk) -> Desk:
    desk.seeds(SEEDS)
    desk.seeds([{"prompt": "held", "label": "positive"}], "held.jsonl")
    (desk.folder / "broken.md").write_text("{{ promt }}", encoding="utf-8")
    (desk.folder / "syntax.md").write_text("{% if %}", encoding="utf-8")
    return desk


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"nmae": 1}, "no key 'nmae'. Did you mean 'name'?"),
    ({"name": "../up"}, "it names a folder"),
    ({"seed": "x"}, "seed: "),
    ({"models": {"student": STUDENT}}, "models.teacher: required and missing"),
    ({"models": {"teacher": {"scriptd": {}}}}, "models.teacher.scriptd: no model 'scriptd'. Did you mean 'scripted'?"),
    ({"models": {"teacher": {"scripted": {"defualt": "x"}}}}, "no key 'defualt'. Did you mean 'default'?"),
    ({"models": {"teacher": {"a": {}, "b": {}}}}, "one name each"),
    ({"models": {"teacher": {"nosuch.module:thing": {}}}}, "Is it installed"),
    ({"models": {"teacher": TEACHER, "student": {"transformers": {"model": "./nowhere"}}}}, "no such model folder"),
    ({"models": {"teacher": TEACHER, "student": {"transformers": {"model": "x.gguf"}}}}, "no such model folder"),
    ({"prompts": []}, "prompts: "),
    ({"prompts": [{"seeds": {"file": "none.jsonl"}}]}, "prompts[0].seeds.file: no such file"),
    ({"prompts": [{"seeds": {}}]}, "prompts[0].seeds.file: required and missing"),
    ({"answers": {"temperature": -1}}, "answers.temperature"),
    ({"answers": {"budget": 3}}, "answers: no key 'budget'. Did you mean 'budget_usd'?"),
    ({"answers": {"top_logprobs": True}}, "answers: top_logprobs: found true; write a number"),
    ({"answers": {"budget_usd": True}}, "answers: budget_usd: found true; write a number"),
    ({"answers": {"budget_usd": {}}}, "answers.budget_usd"),
    ({"answers": {"temperature": float("inf")}}, "answers.temperature: Input should be a finite number; found inf"),
    ({"answers": {"stop": [""]}}, "answers.stop.0: String should have at least 1 character"),
    ({"seed": True}, "seed: found true; write a number"),
    ({"prompts": [{"seeds": {"file": "seeds.jsonl", "limit": True}}]}, "prompts[0].seeds: limit: found true"),
    (
        {"train": {"sft": {"epochs": float("inf")}}, "models": {"teacher": TEACHER, "student": STUDENT}},
        "train.sft.epochs: Input should be a finite number",
    ),
    (
        {"prompts": [{"seeds": {"file": "Say what it is. " * 30}}]},
        "write the name of a file; found 'Say what it is. Say",
    ),
    ({"prompts": [{"seeds": {"file": "~nobody-here/seeds.jsonl"}}]}, "write the name of a file; found '~nobody-here"),
    ({"models": {"teacher": {"openai_api": {"model": ""}}}}, "models.teacher.openai_api.model: String should have"),
    (
        {"models": {"teacher": TEACHER, "student": {"transformers": {"model": "m" * 300}}}},
        "write a model's folder or hub id",
    ),
    ({"task": {"classify": {"kind": "generate"}}}, "task.classify.kind: classify is the task's kind; remove it"),
    ({"filter": [{"length": {"min": float("nan")}}]}, "filter[0].length.min: found nan; write a number"),
    ({"filter": [{"length": {"max": float("inf")}}]}, "filter[0].length.max: found inf; write a number"),
    ({"answers": {"json_schema": {}}}, "no key 'json_schema'. Did you mean 'schema'?"),
    ({"filter": ["lenght"]}, "no scorer 'lenght'. Did you mean 'length'?"),
    ({"filter": ["length"]}, "give it `min`, `max` or both"),
    ({"filter": [{"length": {"min": 9, "max": 1}}]}, "every row would be dropped"),
    ({"filter": [{"length": {"min": "a"}}]}, "filter[0].length.min: found 'a'; write a number"),
    ({"filter": [{"length": {"min": 1, "unit": "miles"}}]}, "filter[0].length.unit"),
    ({"filter": [{"confidence": {"min": 0.5}}]}, "add `top_logprobs: 20` to answers"),
    ({"task": "generate", "filter": ["unparsed"]}, "it reads labels"),
    ({"task": {"classify": {"labels": ["a"]}}}, "two or more"),
    ({"task": {"classify": {"labels": ["yes", "Yes"]}}}, "different beyond case"),
    ({"task": {"classify": {"labels": ["transfer", "transfer money"]}}}, "set `parse: exact`"),
    ({"task": {"classify": {"labels": ["a", "b"], "template": "broken.md"}}}, "Did you mean 'prompt'?"),
    ({"task": {"classify": {"labels": ["a", "b"], "template": "syntax.md"}}}, "not a Jinja2 template"),
    ({"task": {"classify": {"labels": ["a", "b"], "few_shot": {}}}}, "few_shot needs `examples`"),
    ({"task": {"sort": {}}}, "task"),
    ({"train": "sft"}, "there is no models.student"),
    ({"train": {"sft": {"epochz": 1}}, "models": {"teacher": TEACHER, "student": STUDENT}}, "Did you mean 'epochs'?"),
    ({"train": "sft", "models": {"teacher": TEACHER, "student": TEACHER}}, "cannot be trained here"),
    (
        {"train": {"sft": {"turns": "all"}}, "models": {"teacher": TEACHER, "student": STUDENT}},
        "through classify.md, whose turns nobody answered; use `turns: last`",
    ),
    (
        {"train": {"sft": {"gold": 0.5, "reasoning": "on"}}, "models": {"teacher": TEACHER, "student": STUDENT}},
        "train.sft.gold: gold texts come without reasoning",
    ),
    (
        {
            "task": "generate",
            "train": {"sft": {"turns": "all", "reasoning": "on"}},
            "models": {"teacher": TEACHER, "student": STUDENT},
        },
        "train.sft.turns: earlier turns come without reasoning",
    ),
    (
        {
            "train": {"sft": {"reasoning": "on"}},
            "answers": {"reasoning": "none"},
            "models": {"teacher": TEACHER, "student": STUDENT},
        },
        "`answers: {reasoning: none}` parts none; remove one of them",
    ),
    (
        {"train": {"sft": {"gold": 1.5}}, "models": {"teacher": TEACHER, "student": STUDENT}},
        "train.sft.gold: Input should be less than or equal to 1",
    ),
    ({"evaluate": {}}, "there is no held_out"),
    ({"held_out": {}}, "either `file: rows.jsonl` or `share: 0.1`"),
    ({"held_out": {"share": 2}}, "held_out.share"),
    ({"schedule": "every day"}, "not a cron line"),
    ({"answers": {"budget_usd": 1}, "models": {"teacher": {"openai_api": {"model": "m"}}}}, "add `prices_usd:"),
    (
        {"models": {"teacher": {"openai_api": {"model": "m", "prices_usd": {"prompt": -1, "completion": 1}}}}},
        "prices_usd.prompt",
    ),
]


@pytest.mark.parametrize(("keys", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_mistake_is_named(seeded: Desk, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        load(seeded.recipe(**keys))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


BAD_ROWS = [
    ("{", ":2: malformed row"),
    ('{"prompt": 3}', ":2: malformed row"),
    ('{"prompt": "a", "messages": []}', ":2: a row has either"),
    ("{}", ":2: a row has either"),
    ('{"prompt": "  "}', ":2: the last message must be a user turn"),
    ('{"messages": [{"role": "assistant", "content": "x"}]}', ":2: the last message must be a user turn"),
    ('{"messages": [{"role": "boss", "content": "x"}]}', ":2: malformed row"),
    ('{"prompt": "a", "lable": "x"}', ":2: malformed row"),
    ('{"prompt": "\\ud800"}', ":2: malformed row"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS, ids=[row for row, _ in BAD_ROWS])
def test_a_malformed_row_is_named_by_file_and_line(seeded: Desk, row: str, message: str) -> None:
    seeded.seeds([SEEDS[0], row])
    said = seeded.llm_distill("run", seeded.recipe(), code=2)
    assert "seeds.jsonl" + message in said
    assert not list(seeded.folder.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("task", "knobs", "row", "message"),
    [
        ("generate", {"turns": "all"}, {}, "no row has one; use `turns: last`, or seeds with `messages`"),
        (
            "generate",
            {"gold": 0.5},
            {"label": "positive"},
            "none of 1 rows has gold: `label` of a classify task, `refe",
        ),
        ("classify", {"gold": 0.5}, {"reference": "positive"}, "found 0.5, and none of 1 rows has gold"),
        ("classify", {"gold": 1}, {"label": "Positive"}, "which the task does not have. Did you mean 'positive'?"),
    ],
)
def test_rows_without_what_training_wants_stop_everything(
    desk: Desk, task: str, knobs: dict[str, Any], row: dict[str, Any], message: str
) -> None:
    desk.seeds([{"prompt": "good thing"} | row])
    (desk.folder / "student").mkdir()
    (desk.folder / "student/config.json").write_text("{}", encoding="utf-8")  # nobody gets as far as loading it
    models = {"teacher": TEACHER, "student": {"transformers": {"model": "./student"}}}
    kind = {"classify": {"labels": ["positive", "negative"]}} if task == "classify" else task
    recipe = desk.recipe(task=kind, models=models, train={"sft": knobs})
    assert message in desk.llm_distill("check", recipe, code=2)
    with pytest.raises(UserError) as error:
        desk.here(recipe)
    assert message in str(error.value)
    assert not list(desk.folder.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "job.yaml:2: not valid YAML"),
        ("name: [\n", "not valid YAML"),
        ("- a\n", "a recipe is a mapping"),
        ("name: " + "[" * 3000 + "\n", "nested too deeply"),
        ("a: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_a_broken_file_is_named_by_line(desk: Desk, text: str, message: str) -> None:
    path = desk.folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    assert message in desk.llm_distill("check", path, code=2)


def test_a_missing_recipe_and_an_empty_seed_file(desk: Desk) -> None:
    assert "no recipe" in desk.llm_distill("run", "none.yaml", code=2)
    desk.seeds([])
    assert "holds no rows" in desk.llm_distill("check", desk.recipe(), code=2)


def test_a_held_out_row_among_the_prompts_stops_everything(desk: Desk) -> None:
    desk.seeds(SEEDS)
    desk.seeds([{"prompt": "Good  THING", "label": "positive"}], "held.jsonl")
    said = desk.llm_distill("run", desk.recipe(held_out={"file": "held.jsonl"}), code=2)
    assert "1 of 1 rows are also prompts" in said


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.epochs=7", ("train", "sft", "epochs"), 7),
        ("answers.max_tokens=3", ("answers", "max_tokens"), 3),
        ("models.student.model=org/other", ("models", "student", "transformers", "model"), "org/other"),
        ("filter.length.max=9", ("filter", 1, "length", "max"), 9),
        ("filter.empty.max=1", ("filter", 0, "empty", "max"), 1),
        ("held_out={share: 0.2}", ("held_out",), {"share": 0.2}),
    ],
)
def test_an_override_reaches_its_knob(seeded: Desk, override: str, path: tuple[Any, ...], value: object) -> None:
    recipe = seeded.recipe(
        models={"teacher": TEACHER, "student": STUDENT}, train="sft", filter=["empty", {"length": {"max": 5}}]
    )
    here: Any = load(recipe, [override]).raw
    for step in path:
        here = here[step]
    assert here == value


@pytest.mark.parametrize(
    "override", ["answers.max_tokns=3", "name", "filter.nosuch.max=3", "seed.deep.er=3", "seed=[1"]
)
def test_a_wrong_override_is_named(seeded: Desk, override: str) -> None:
    with pytest.raises(UserError):
        load(seeded.recipe(filter=["empty"]), [override])


def test_the_digest_follows_words_and_files(seeded: Desk, tmp_path: Path) -> None:
    recipe = seeded.recipe()
    before = load(recipe).digest
    assert load(recipe).digest == before
    assert load(recipe, ["seed=3"]).digest != before
    seeded.seeds([*SEEDS, {"prompt": "more"}])
    assert load(recipe).digest != before


def test_yaml_words_stay_words(seeded: Desk) -> None:
    path = seeded.folder / "words.yaml"
    path.write_text(
        "name: words\ntask: {classify: {labels: [yes, no]}}\nmodels: {teacher: {scripted: {default: no}}}\n"
        "prompts: [{seeds: {file: seeds.jsonl}}]\n",
        encoding="utf-8",
    )
    assert load(path).task.labels == ["yes", "no"]  # YAML 1.1 would read two booleans


def test_a_pasted_key_is_refused_and_never_shown(seeded: Desk) -> None:
    recipe = seeded.recipe(models={"teacher": {"openai_api": {"model": "m", "api_key_env": "sk-very-secret"}}})
    message = seeded.llm_distill("check", recipe, code=2)
    assert "not the name of an environment variable" in message
    assert "sk-very-secret" not in message


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"models": {"teacher": {"openai_api": {"model": "m", "base_url": "localhost:8000"}}}}, "base_url"),
        ({"models": {"teacher": {"openai_api": {"model": "m", "base_url": "http://me:pw@host/v1"}}}}, "user or password"),
        ({"models": {"teacher": {"openai_api": {"model": "m", "concurrency": 0}}}}, "concurrency"),
        ({"models": {"teacher": {"scripted": {"rules": {"(": "x"}}}}}, "not a regular expression"),
        ({"prompts": [{"seeds": {"file": "seeds.jsonl", "limit": 0}}]}, "limit"),
        ({"task": {"classify": {"labels": ["positive", "negative"], "few_shot": {"examples": ["held.jsonl"]}}},
          "held_out": {"file": "held.jsonl"}}, "worked examples"),
        ({"task": {"generate": {"teacher": {"examples": ["held.jsonl"]}}}}, "no `template` to show them"),
        ({"models": {"teacher": {":x": {}}}}, "cannot load"),
    ],
)  # fmt: skip
def test_check_finds_what_only_making_it_shows(seeded: Desk, keys: dict[str, Any], message: str) -> None:
    said = seeded.llm_distill("check", seeded.recipe(**keys), code=2)
    assert message in said
    assert "pw" not in said


def test_a_recipe_that_holds_itself_is_refused(desk: Desk) -> None:
    path = desk.folder / "job.yaml"
    path.write_text("name: x\nprompts: &p [*p]\n", encoding="utf-8")
    assert "holds itself" in desk.llm_distill("check", path, code=2)


def test_a_row_without_the_tag_that_a_template_names_is_found_first(desk: Desk) -> None:
    desk.seeds([{"prompt": "a", "tags": {"kind": "x"}}] * 30 + [{"prompt": "b"}])
    (desk.folder / "t.md").write_text("{{ tags.kind }}: {{ prompt }}", encoding="utf-8")
    recipe = desk.recipe(task={"classify": {"labels": ["positive", "negative"], "template": "t.md"}})
    assert "cannot be filled in for row" in desk.llm_distill("check", recipe, code=2)


def test_an_override_is_as_plain_as_the_file(desk: Desk) -> None:
    desk.seeds(['{"prompt": "x"}'])
    terms = "{name: ours, url: https://x.example, read: 2026-11-01, allows: {train: yes}}"
    desk.llm_distill("check", desk.recipe(), "-s", f"models.teacher.terms={terms}")
    recipe = desk.recipe(filter=[{"length": 3}])
    assert "has no keys" in desk.llm_distill("check", recipe, "-s", "filter.length.min=1", code=2)


@pytest.mark.parametrize("template", ["{{ prompt + 1 }}", "{{ 1 / 0 }}", "{% include 'x.md' %}"])
def test_a_template_that_cannot_be_filled_in_is_one_line(desk: Desk, template: str) -> None:
    desk.seeds(['{"prompt": "x"}'])
    (desk.folder / "t.md").write_text(template)
    task = {"classify": {"labels": ["positive", "negative"], "template": "t.md"}}
    assert "t.md" in desk.llm_distill("check", desk.recipe(task=task), code=2)
