"""README.md and DATA_CARD.md of an exported student, derived from what happened in its run.

Whatever a person, a server or a model wrote is escaped; paths of this machine, addresses of endpoints and texts of rows are
left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_distill import store
from llm_distill.export.licence import Standing
from llm_distill.export.student import Student, shown
from llm_distill.report.build import build
from llm_distill.report.markdown import front_matter, interval, plain, table
from llm_distill.report.words import ARMS

_METRICS = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "exact_match": "Exact match",
    "token_f1": "Token F1",
    "agreement_with_teacher": "Agrees with teacher",
    "unparsed_rate": "Unparsed",
}
_MAY = {
    "yes": "The terms on record allow passing it on, under the duties below.",
    "no": "**Not to be passed on:** the terms below forbid it.",
    "unknown": "**Not settled:** nothing on record says that it may be passed on. Find out before it leaves the house.",
}
_USE = {
    "adapter": 'Load the base named above with transformers, and this folder with PEFT: `PeftModel.from_pretrained(base, ".")`. '
    "`base.json` holds the digest of the weights it was trained on; on others it is another model.",
    "merged": 'Load this folder with transformers: `AutoModelForCausalLM.from_pretrained(".")`.',
    "gguf": "Load the .gguf with llama.cpp (`llama-server -m FILE.gguf`) or what is built on it.",
    "vllm": "Start `./serve.sh` (vLLM must be installed): an OpenAI-compatible endpoint on this machine's loopback, port 8000 "
    "or `$PORT`. Further arguments go to vLLM.",
}


def write(student: Student, record: Mapping[str, Any], standing: Standing, folder: Path) -> None:
    """Write both cards into an export's folder."""
    report = build(student.run)
    evaluated = was_evaluated(student)
    (folder / "README.md").write_text(model_card(student, record, standing, report, evaluated), encoding="utf-8")
    (folder / "DATA_CARD.md").write_text(data_card(student, standing, report), encoding="utf-8")


def was_evaluated(student: Student) -> bool:
    """Whether the numbers of the run are of this very student: its answers lie under ids of its weights."""
    path, held_out = student.run.file("eval/student.parquet"), student.run.file("held_out.parquet")
    if not path.exists() or not student.run.file("eval/comparison.json").exists():
        return False
    answers = {answer.prompt.row_id: answer for answer in store.read_answers(path)}
    identity = student.model().identity
    run = f"{student.plan.name}/{student.plan.account}"
    salt = f"{identity}#{run}" if student.plan.answers.fresh else identity
    prompts = store.read_prompts(held_out)
    return bool(prompts) and all(
        prompt.row_id in answers and student.request(prompt).key(salt) in answers[prompt.row_id].requests
        for prompt in prompts
    )


def model_card(
    student: Student, record: Mapping[str, Any], standing: Standing, report: Mapping[str, Any], evaluated: bool
) -> str:
    """The model card: front matter for the hub, then use, terms, numbers with intervals, training, and what is not known."""
    name, base = student.plan.name, student.base
    on_hub = base.count("/") == 1
    head = {
        "license": standing.licence,
        "license_name": standing.name,
        "base_model": base if on_hub else None,
        "base_model_relation": ("adapter" if record["to"] == "adapter" else "finetune") if on_hub else None,
        "library_name": {"adapter": "peft", "gguf": "gguf"}.get(record["to"], "transformers"),
        "pipeline_tag": "text-generation",
        "datasets": _datasets(student),
        "tags": [
            "distillation",
            "llm-distill",
            *(["not-for-publication"] if standing.may_be_published == "no" else []),
        ],
    }
    policy = student.plan.policy
    use = policy.intended_use if policy and policy.intended_use else "Not stated in the recipe."
    parts = [
        front_matter(head) + f"\n# {plain(name)}",
        f"A small model distilled from {_taught_by(report)} on the base {plain(base)}, exported as "
        f"{plain(_form(record))} by llm-distill {plain(record['llm_distill'])}.",
        f"**Meant for:** {plain(use)}",
        f"## How to use it\n\n{_USE[record['to']]}\n\n{_asked(student)}",
        f"## Terms\n\n{_terms(standing)}",
        f"## What it can do\n\n{_numbers(report, evaluated)}",
        f"## What was exported\n\n{_exported(record)}",
        f"## How it was trained\n\n{_training(student, report)}",
        "## The data\n\nSee [DATA_CARD.md](DATA_CARD.md).",
        f"## Limits and what was not measured\n\n{_limits(report, evaluated)}",
    ]
    return "\n\n".join(parts) + "\n"


def data_card(student: Student, standing: Standing, report: Mapping[str, Any]) -> str:
    """The data card: who was asked what under which terms, what was dropped and why, what was held out."""
    funnel, cost = report["funnel"], report["cost"]["total_usd"]
    made = (report.get("prompts") or {}).get("made", [])
    held_out = len(store.read_prompts(student.run.file("held_out.parquet")))
    kept = store.read_answers(student.run.lessons)
    served = Counter((shown(a.model), a.role, a.terms) for a in kept)
    parts = [
        front_matter(
            {"license": standing.licence, "license_name": standing.name, "tags": ["distillation", "llm-distill"]}
        )
        + f"\n# The data of {plain(student.plan.name)}",
        "Questions, answered by teachers, filtered, and learnt by the student. The texts are not in this folder.",
        "## Prompts\n\n"
        + (table(["From", "Rows"], [(g["generator"], f"{g['rows']:,}") for g in made]) if made else "—"),
        f"{funnel['asked']:,} were asked; {held_out:,} were held out for evaluation{_apart(student)}.",
        "## Answers\n\n"
        + table(
            ["Model, as served", "Role", "Terms", "Rows kept"],
            [
                (model or "not said", role, terms or "nobody named any", f"{n:,}")
                for (model, role, terms), n in served.most_common()
            ],
        ),
        "What became of the rows: "
        + ", ".join(f"{plain(status)} {n:,}" for status, n in sorted(funnel["status"].items()))
        + ".",
        f"They cost {'an unknown amount' if cost is None else f'${cost:,.4f}'}, evaluation included.",
        "## Filters\n\n"
        + (
            table(
                ["Filter", "Bounds", "Rows in", "Dropped", "Left"],
                [
                    (
                        f["name"],
                        _bounds(f.get("bounds")),
                        f"{f['rows_in']:,}",
                        f"{f['dropped']:,}",
                        f"{f['rows_out']:,}",
                    )
                    for f in funnel["filters"]
                ],
            )
            if funnel["filters"]
            else "None."
        ),
        f"{funnel['kept']:,} rows were kept."
        + (f" Reviewers dropped {funnel['dropped_by_review']:,}." if funnel["dropped_by_review"] else ""),
        *([f"## Labels of the rows kept\n\n{_labels(kept)}"] if report["task"]["labels"] else []),
        f"## Terms\n\n{_terms(standing)}",
        "## Limits\n\nNobody has read every answer: they say what the teachers say, errors and leanings included. Filters "
        "measure what they measure, and nothing else was removed."
        + ("" if report.get("flips") else " Whether answers change with the person in a text was not measured."),
    ]
    return "\n\n".join(parts) + "\n"


def _apart(student: Student) -> str:
    held_out = student.plan.held_out
    if held_out is None:
        return ""
    return ", from a file of their own" if held_out.file else ", by a hash of their content"


def _datasets(student: Student) -> list[str]:
    """Hub data sets among the prompts, by name."""
    named = (generator.knobs.get("dataset") for generator in student.plan.generators)
    return [name for name in named if isinstance(name, str) and name.count("/") == 1 and not Path(name).exists()]


def _taught_by(report: Mapping[str, Any]) -> str:
    teachers = report["arms"]["teacher"]["model"] if "teacher" in report.get("arms", {}) else None
    return plain(", ".join(map(shown, teachers.split(", "))) if teachers else "its teachers")


def _form(record: Mapping[str, Any]) -> str:
    return " ".join(str(part) for part in (record["to"], record["quant"], record.get("dtype")) if part)


def _asked(student: Student) -> str:
    task, sampling = student.plan.task, student.plan.drawn
    said = f"It was measured at temperature {sampling.temperature:g} with at most {sampling.max_tokens} tokens"
    said += f", stopping at {', '.join(map(plain, map(repr, sampling.stop)))}." if sampling.stop else "."
    if task.template:
        said += f" Every row went through the prompt template {plain(task.template.name)}; ask it the same way."
    return said + (f" It answers with one of: {', '.join(map(plain, task.labels))}." if task.labels else "")


def _terms(standing: Standing) -> str:
    name = f" ({plain(standing.name)})" if standing.name else ""
    lines = [
        f"Licence: {plain(standing.licence)}{name}, because {plain(standing.why)}.",
        "",
        _MAY[standing.may_be_published],
    ]
    sources = [
        f"- {plain(who)} under {plain(terms) if terms else 'terms that nobody named'}"
        for who, terms in standing.sources
    ]
    for title, found in (("Learnt from", sources), ("Duties", [f"- {plain(d, 600)}" for d in standing.duties])):
        lines += ["", f"{title}:", "", *found] if found else []
    lines += (
        ["", "What the terms forbid or leave open:", "", *(f"- {plain(n, 900)}" for n in standing.notes)]
        if standing.notes
        else []
    )
    return "\n".join(lines)


def _numbers(report: Mapping[str, Any], evaluated: bool) -> str:
    if not evaluated:
        return "This student was not evaluated in its run."
    arms = {name: numbers for name, numbers in report["arms"].items() if name in ARMS}
    present = [m for m in _METRICS if any((arm.get(m) or {}).get("value") is not None for arm in arms.values())]
    rows = [(ARMS[name], f"{arm['n']:,}", *(interval(arm.get(m)) for m in present)) for name, arm in arms.items()]
    said = [plain(report["headline"], 1000), "", table(["", "Rows", *(_METRICS[m] for m in present)], rows)]
    return "\n".join([*said, "", "Held-out rows, the same for all; 95 % intervals in brackets."])


def _exported(record: Mapping[str, Any]) -> str:
    of = record["agreement"]
    rows = "held-out rows" if of["rows"] == "held_out" else "rows that it was trained on (none were held out)"
    said = [
        f"The exported model was asked {of['n']} {rows}, as was the student in its run, both without chance. 95 % intervals."
    ]
    if record["to"] == "gguf":
        said.append(
            "The file was read back into float32 for it; llama.cpp also rounds between the layers, which was not measured."
        )
    numbers = [("Same answer", interval(of["same_answer"])), ("Same first token", interval(of["same_first_token"]))]
    if of["same_label"]:
        numbers.append(("Same label", interval(of["same_label"])))
    if of["logprob_difference"] is not None:
        numbers.append(("Mean difference of log-probabilities (nats)", f"{of['logprob_difference']:.4g}"))
    return "\n".join([*said, "", table(["", ""], numbers)])


def _training(student: Student, report: Mapping[str, Any]) -> str:
    """What training wrote of itself; a trainer that leaves something out has no line for it."""
    training = report["training"]
    checks, settings = training.get("checks") or {}, training.get("settings") or {}
    trained, every = training.get("trained_parameters"), training.get("parameters")
    rows = [
        ("Trainer", training["trainer"]),
        ("Rows", checks.get("rows")),
        ("Trained tokens", checks.get("trained_tokens")),
        ("Steps", training.get("steps")),
        ("Seed", training.get("seed")),
        ("Trained parameters", f"{trained:,} of {every:,}" if trained and every else None),
        ("Base weights", training.get("base")),
        *((key, value) for key, value in settings.items() if not isinstance(value, str) or "/" not in value),
        *((f"Version of {name}", version) for name, version in (training.get("versions") or {}).items()),
        ("Recipe digest", student.plan.digest),
    ]
    return table(["Setting", "Value"], [(name, value) for name, value in rows if value is not None])


def _labels(kept: list[Any]) -> str:
    counted = Counter(a.prediction for a in kept if a.prediction is not None)
    return table(["Label", "Rows"], [(label, f"{n:,}") for label, n in counted.most_common()])


def _bounds(bounds: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in (bounds or {}).items() if value is not None) or "—"


def _limits(report: Mapping[str, Any], evaluated: bool) -> str:
    lines = [
        "It imitates its teachers on rows like those it was trained on; elsewhere it may have lost what its base could do."
    ]
    if evaluated:
        lines.append(
            "The intervals speak of the held-out rows. If those are unlike what it will be asked, so is the verdict."
        )
    if report.get("open_terms"):
        lines.append("Terms leave uses open; see above.")
    own = report.get("arms", {}).get("student", {}) if evaluated else {}
    flips = [of for of in report.get("flips", ()) if own and of["who"] == "student" and of["rate"]]
    missing = {
        "an evaluation of this student": evaluated,
        "whether answers change with the person in a text": bool(flips),
        "what a person thinks of the rows": bool(report.get("review")),
        "what each filter was worth": bool(report.get("ablation")),
        "how calibrated its probabilities are": (own.get("ece") or {}).get("value") is not None,
        "general ability outside its task": evaluated and bool(report.get("general")),
    }
    lines.append("Not measured: " + "; ".join(what for what, known in missing.items() if not known) + ".")
    return "\n".join(f"- {line}" for line in lines)
