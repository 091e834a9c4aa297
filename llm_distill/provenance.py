"""What a run is made of: models, versions, commit. Written before its first stage, printed in its report."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version

from llm_distill import __version__, store
from llm_distill.recipe import Plan
from llm_distill.recipe_checks import price_source
from llm_distill.stages import Run
from llm_distill.trainers import on_policy_checks, sft_checks

#: What provenance names, where it is installed.
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "aiohttp", "numpy", "pyarrow")


def describe(job: Run, roles: Sequence[str]) -> None:
    """Write what this run is asked to be and with what it is done, and find what would stop it later.

    Every model of `roles` is made, which loads nothing, so that a missing key stops us before the first cent.
    """
    plan, folder = job.plan, job.folder
    models = {role: {"plug": plug.spec.name, **plug.spec.knobs} for role, plug in plan.models.items()}
    made = {role: job.model(role) for role in plan.models}  # also to find a secret before the recipe is copied
    for role in (role for role in roles if role in models):
        model = made[role]
        model.preflight()
        models[role]["identity"] = model.identity
        models[role]["counting"] = model.count.how
    if "student" in roles:
        on_policy_checks.check_weights(plan)
        sft_checks.check_weights(plan)
    for role, plug in plan.models.items():
        models[role] |= {"terms": plug.knobs.get("terms"), "prices": price_source(plug)}
    if plan.path.resolve() != folder.file("recipe.yaml").resolve():
        shutil.copyfile(plan.path, folder.file("recipe.yaml"))
    store.write_json(folder.file("recipe.resolved.json"), plan.raw)
    folder.record |= {
        "started": folder.record.get("started") or datetime.now(UTC).isoformat(timespec="milliseconds"),
        "recipe": plan.name,
        "recipe_file": str(plan.path.resolve()),
        "digest": plan.digest,
        "account": plan.account,
        "seed": plan.seed,
        "tick": plan.tick,
        "versions": {"llm_distill": __version__, "python": python_version()} | _versions(),
        "models": models,
        "prompts_terms": [name for name in plan.prompt_terms if name],
        "terms": {name: plan.terms[name].model_dump() for name in _named(plan)},
        "git": _git(plan.path.resolve().parent),
    }
    folder.save()


def _named(plan: Plan) -> list[str]:
    """The records that the recipe's models and prompts name."""
    stated = (*plan.prompt_terms, *(plug.knobs.get("terms") for plug in plan.models.values()))
    names = {name for terms in stated if terms for name in terms.split("+")}  # several: of a student's teachers
    return sorted(plan.terms.keys() & names)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git(folder: Path) -> str | None:
    """The commit that the recipe stands in, if it stands in one."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S607
    except OSError:
        return None
    return done.stdout.strip() or None
