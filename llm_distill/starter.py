"""The recipe that `llm-distill new` writes. It runs as it stands, offline, so that one can change a line at a time."""

from __future__ import annotations

from pathlib import Path

from llm_distill.errors import UserError
from llm_distill.recipe_keys import checked_name

_RECIPE = """\
# {name}: check it with `llm-distill check`, run it with `llm-distill run`. It runs as it is, with a scripted teacher.
name: "{name}"
seed: 7                        # of training and intervals; the split is by a hash of each row

task:
  classify:                    # or `generate`, for free text
    labels: [positive, negative]

models:
  # A teacher without a key, for trying things out. A real one:
  #   teacher: {{openai_api: {{model: gpt-4.1-mini-2025-04-14, api_key_env: OPENAI_API_KEY, terms: openai}}}}
  teacher: {{scripted: {{rules: {{"(?i)good|love|great": positive, no more: hard to say}}, default: negative}}}}
  # student: {{transformers: {{model: HuggingFaceTB/SmolLM2-1.7B-Instruct}}}}    # what will be trained

prompts:
  - seeds: {{file: {name}.seeds.jsonl}}    # one JSON object a line: prompt, optionally label and tags

held_out: {{share: 0.3}}         # never asked for training; needs `label` to be scored

answers:
  max_tokens: 8
  top_logprobs: 5              # the teacher's probabilities; `confidence` reads them
  # budget_usd: 5              # never exceeded; of a model without a list price it needs prices_usd

filter:                        # in this order; dropped rows keep their reason
  - empty
  - unparsed
  - exact_duplicate
  - leakage                    # rows that resemble held-out ones
  - confidence: {{min: 0.6}}

# train: {{sft: {{epochs: 2}}}}    # needs models.student
evaluate: {{}}
"""

_SEEDS = """\
{"prompt": "I love how quiet this fan is.", "label": "positive"}
{"prompt": "A great book, read in one night.", "label": "positive"}
{"prompt": "Good value and quick delivery.", "label": "positive"}
{"prompt": "The best coffee in town, and a good view.", "label": "positive"}
{"prompt": "We had a great evening there.", "label": "positive"}
{"prompt": "It broke after two days.", "label": "negative"}
{"prompt": "The soup was cold and the waiter rude.", "label": "negative"}
{"prompt": "Never again with this airline.", "label": "negative"}
{"prompt": "The plot makes no sense at all.", "label": "negative"}
{"prompt": "Too loud, too small, too expensive.", "label": "negative"}
{"prompt": "I would buy this good lamp again.", "label": "positive"}
{"prompt": "Great staff, and the room was spotless.", "label": "positive"}
{"prompt": "They lost my parcel twice.", "label": "negative"}
{"prompt": "The zip was torn when it came.", "label": "negative"}
{"prompt": "I love the colour.", "label": "positive"}
{"prompt": "It does what it says, no more.", "label": "negative"}
{"prompt": "We waited an hour for the bill.", "label": "negative"}
{"prompt": "A good start, and then it drags.", "label": "negative"}
"""


def write_starter(name: str, folder: Path) -> list[Path]:
    """Write `<name>.yaml` and `<name>.seeds.jsonl`; never over a file that is there."""
    try:
        checked_name(name)
    except ValueError as error:
        raise UserError(f"new: {error}.") from None
    files = {folder / f"{name}.yaml": _RECIPE.format(name=name), folder / f"{name}.seeds.jsonl": _SEEDS}
    for path in files:
        if path.exists():
            raise UserError(f"new: {path} exists; choose another name or remove it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"new: {folder} is no folder; choose another with --folder.") from None
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return list(files)
