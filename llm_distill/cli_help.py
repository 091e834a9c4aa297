"""What `--help` says beside the options: which commands belong together, examples, exit codes; and how it is set."""

from __future__ import annotations

import inspect
import re
import shlex
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Every command, in the order and under the headings of `llm-distill --help`.
PANELS = {
    "Begin": ("new", "check", "run", "fetch", "doctor"),
    "Look": ("runs", "show", "report", "trend"),
    "Choose rows": ("refilter", "review", "ablate", "attach"),
    "Train": ("lint", "train", "sweep"),
    "Judge": ("gate", "compare", "measure", "eval"),
    "Use the student": ("export", "serve"),
    "Every night": ("jobs", "data"),
    "Answer for it": ("why", "forget", "costs"),
}
_PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names}

#: At least one for each command, as one would type it.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "": ("new tone", "check jobs/tone.yaml", "run jobs/tone.yaml"),
    "run": (
        "run jobs/tone.yaml",
        "run jobs/tone.yaml --until filter -s prompts.seeds.limit=8",
        "run jobs/tone.yaml --from train",
    ),
    "check": ("check jobs/tone.yaml", "check jobs/tone.yaml -s answers.samples=3 --json"),
    "fetch": ("fetch jobs/quickstart.yaml",),
    "new": ("new tone", "new tone --folder recipes"),
    "doctor": ("doctor",),
    "runs": ("runs", "runs --workspace /data/llm --json"),
    "show": (
        "show tone kept --limit 5",
        "show tone dropped --where \"dropped_by == 'confidence'\"",
        "show tone eval/student --json",
        "show tone logprobs --limit 1",
    ),
    "report": ("report tone",),
    "trend": ("trend tone", "trend tone --html trend.html"),
    "refilter": ("refilter tone -s filter.confidence.min=0.8",),
    "review": ("review tone --out sheet.csv --rows 50", "review tone --read sheet.csv"),
    "ablate": ("ablate jobs/tone.yaml", "ablate jobs/tone.yaml --only confidence --seeds 3"),
    "attach": ("attach tone --model reader --top-logprobs 20",),
    "lint": ("lint tone",),
    "train": ("train tone", "train tone --print-launch --gpus 4"),
    "sweep": ("sweep jobs/tone.yaml -s sweep.trials=12",),
    "gate": ("gate tone", "gate tone --ship --json"),
    "compare": ("compare tone tone-small",),
    "measure": ("measure tone --rows 30 --arm student --arm teacher",),
    "eval": ("eval --data rows.jsonl --labels yes,no --model run:tone --model openai_api:gpt-4.1-mini",),
    "export": ("export tone --to merged", "export tone --to gguf --quant q8_0 --out tone-q8"),
    "serve": ("serve tone --port 8000",),
    "jobs": ("jobs", "jobs check", "jobs run"),
    "jobs check": ("jobs check --jobs recipes",),
    "jobs run": ("jobs run", "jobs run nightly --wait", "jobs run nightly --tick 2026-11-27T03:00Z"),
    "jobs crontab": ("jobs crontab nightly",),
    "jobs systemd": ("jobs systemd --out units",),
    "jobs kubernetes": ("jobs kubernetes --image registry.example.org/llm-distill:1 --secret keys",),
    "jobs serve": ("jobs serve --port 4200",),
    "jobs deploy": ("jobs deploy --pool nights",),
    "data": ("data list", "data show tone --limit 3", "data diff tone@v41 tone"),
    "data list": ("data list",),
    "data show": ("data show tone", "data show tone@v3 --split held_out --limit 3"),
    "data diff": ("data diff tone@v41 tone",),
    "data push": ("data push tone hf://datasets/ORG/NAME", "data push tone@v41 s3://bucket/sets/tone"),
    "why": ("why 3f9a1c",),
    "forget": ("forget --row 3f9a1c --dry-run", "forget --where \"`tags.customer` == 'acme'\" --everywhere"),
    "costs": ("costs", "costs --by stage --since 2026-11-01"),
}
#: What exit code 1 means, where that can be said in a few words.
_SHORT = {
    "run": "a budget reached, too many rows failed, or every row dropped",
    "gate": "the student may not ship",
    "lint": "an error, which training would stop at",
    "eval": "rows without an answer; the same command asks for them again",
    "jobs run": "a tick fell short or is postponed",
}


def epilog(path: str) -> str:
    """Examples and exit codes of a command, named as it is typed behind `llm-distill`."""
    lines = [f"  llm-distill {one}" for one in EXAMPLES[path]]
    short = _SHORT.get(path, "something fell short")
    codes = f"Exit codes: 0 done; 1 {short}; 2 a mistake in what was given; 130 interrupted."
    return _safe("\n".join([f"Example{'s' if len(lines) > 1 else ''}:", *lines]) + f"\n\n{codes}")


def examples() -> Iterable[list[str]]:
    """Every example, as arguments."""
    return [shlex.split(one) for several in EXAMPLES.values() for one in several]


def _safe(text: str) -> str:
    """`llm-distill[extra]` is an extra, and no markup."""
    return re.sub(r"\[(?=[a-z/])", r"\\[", text)


def _flowing(text: str | None) -> str | None:
    """A docstring whose paragraphs fill the terminal, however they are broken in the source."""
    if text is None:
        return None
    return _safe("\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n")))


def _plain(params: list[Any]) -> list[Any]:
    """A flag takes no value, so no type stands behind its name."""
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params


class Command(TyperCommand):
    """A command, set like all of them."""

    def __init__(self, *args: Any, **keys: Any) -> None:
        super().__init__(*args, **keys | {"help": _flowing(keys.get("help"))})

    def get_params(self, ctx: Any) -> list[Any]:
        """Its parameters."""
        return _plain(super().get_params(ctx))


class Group(TyperGroup):
    """A command that has commands: in their panels, with their examples."""

    def __init__(self, *args: Any, **keys: Any) -> None:
        super().__init__(*args, **keys | {"help": _flowing(keys.get("help"))})

    def get_params(self, ctx: Any) -> list[Any]:
        """Its parameters."""
        return _plain(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in the order of the panels."""
        order = {name: i for i, name in enumerate(_PANEL_OF)}
        return sorted(super().list_commands(ctx), key=lambda name: order.get(name, -1) if ctx.parent is None else 0)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of them."""
        command = super().get_command(ctx, cmd_name)
        path = " ".join([*_names(ctx), cmd_name])
        if command is not None and path in EXAMPLES:
            command.epilog = epilog(path)
            command.rich_help_panel = _PANEL_OF.get(path)  # type: ignore[attr-defined]
        return command


def _names(ctx: Any) -> list[str]:
    """The commands above, the program aside."""
    return [] if ctx.parent is None else [*_names(ctx.parent), ctx.info_name]
