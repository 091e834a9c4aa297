"""`jobs deploy`: jobs as deployments at a Prefect server and work pool of one's own.

A pool's workers start a flow run in a temporary folder, or in a container: what is named relative to here is not there. So
folders are made absolute, or asked for as the workers see them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn

from llm_distill.errors import UserError, did_you_mean
from llm_distill.recipe import Plan
from llm_distill.recipe_file import assignment
from llm_distill.schedule.prefect_serve import check_installed, deployment, quiet
from llm_distill.scrub import names_secret, scrubbed

if TYPE_CHECKING:
    from prefect.client.schemas.objects import WorkPool


def deploy(
    plans: Sequence[Plan],
    pool: str,
    workspace: str,
    folder: str | None,
    image: str | None,
    assigned: Sequence[str],
    say: Callable[[str], None],
) -> list[str]:
    """Deploy the jobs to the work pool of a running server (`PREFECT_API_URL`); gives their names there.

    workspace, folder: as the pool's workers see them; where these are processes, by default as they are here. image: of a pool
    that runs containers, with llm-distill[schedule] in it. assigned: job variables of the pool, NAME=VALUE.
    """
    check_installed()
    if not os.environ.get("PREFECT_API_URL"):
        raise UserError(
            "PREFECT_API_URL is not set; export the address of your Prefect server, such as http://host:4200/api."
        )
    variables = dict(assignment(one, "--job-variable", "NAME=VALUE") for one in assigned)
    _no_secrets(variables)
    quiet()
    from prefect.exceptions import PrefectHTTPStatusError

    found = _pool(pool)
    place = _place(found, workspace, folder)
    _check_image(found, image)
    _check_names(found, variables)
    names = []
    for plan in plans:
        recipe = str(plan.path.resolve()) if folder is None else f"{folder.rstrip('/')}/{plan.path.name}"
        try:
            deployment(plan, recipe, place, work_pool_name=pool, job_variables=dict(variables)).apply(image=image)
        except PrefectHTTPStatusError as error:
            raise UserError(f"--pool {pool}: the server does not take {plan.name!r}: {_detail(error)}") from None
        names.append(f"llm-distill/{plan.name}")
    if found.type != "process" and not _mounts(found, variables):
        say(
            f"note: nothing is mounted into the containers of {pool!r}, so recipes have to be in the image, and a workspace ends "
            "with its container; mount a volume (docker: --job-variable 'volumes=[\"/srv/distil:/distil\"]'; kubernetes: in the "
            "pool's base job template)."
        )
    return names


def _no_secrets(variables: Mapping[str, Any]) -> None:
    """UserError for a key written into a job variable, where everybody who sees the server's page would read it: by the name of
    a variable of the containers' environment, or because it is the value of a secret of ours, wherever it stands.
    """
    for name, value in _environment(variables.get("env")):
        if names_secret(name) and not str(value).startswith("{{"):
            _refuse("env", name)
    for variable, value in variables.items():
        if scrubbed(words := json.dumps(value, ensure_ascii=False)) != words:
            _refuse(variable, "a secret of this environment")


def _environment(env: Any) -> Iterator[tuple[str, Any]]:
    """Names and values, as a mapping or as Kubernetes lists them."""
    if isinstance(env, dict):
        yield from env.items()
    for one in env if isinstance(env, list) else ():
        if isinstance(one, dict) and one.get("value") is not None:  # valueFrom names a secret of the cluster
            yield str(one.get("name")), one["value"]
        elif isinstance(one, str):
            yield one.partition("=")[0], one.partition("=")[2]


def _refuse(variable: str, what: str) -> NoReturn:
    raise UserError(
        f"--job-variable {variable}: {what} would be stored on Prefect's server and shown on its page; give it to the workers' "
        "own environment, or name a secret block: {{ prefect.blocks.secret.NAME }}."
    )


def _pool(name: str) -> WorkPool:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    try:
        with get_client(sync_client=True) as client:
            return client.read_work_pool(name)
    except ObjectNotFound:
        raise UserError(
            f"--pool: there is no work pool {name!r}; `prefect work-pool create {name} --type process`."
        ) from None
    except Exception as error:  # noqa: BLE001  the client's own kinds of errors for a server that is away are many
        raise UserError(f"PREFECT_API_URL: the server does not answer ({type(error).__name__}).") from None


def _place(pool: WorkPool, workspace: str, folder: str | None) -> str:
    """The workspace as the workers see it."""
    if pool.type == "process" and folder is None:
        return str(Path(workspace).resolve())
    for option, value in (("--at", folder), ("--workspace", workspace)):
        if value is None or not PurePosixPath(value).is_absolute():
            where = "in a temporary folder" if pool.type == "process" else "in a container"
            raise UserError(
                f"{option}: {'not given' if value is None else f'found {value!r}'}; work pool {pool.name!r} ({pool.type}) runs "
                f"jobs {where}, so name the whole path there, such as --at /distil/jobs --workspace /distil/data."
            )
    return workspace


def _check_image(pool: WorkPool, image: str | None) -> None:
    takes = "image" in pool.base_job_template.get("variables", {}).get("properties", {})
    if takes and image is None:
        raise UserError(
            f"--pool {pool.name}: it is of type {pool.type} and runs containers; name their image with --image."
        )
    if image is not None and not takes:
        raise UserError(f"--image: work pool {pool.name!r} is of type {pool.type} and takes no image; leave it out.")


def _check_names(pool: WorkPool, variables: Mapping[str, Any]) -> None:
    """UserError for a job variable that the pool's template has not: Prefect drops it without a word."""
    known = pool.base_job_template.get("variables", {}).get("properties", {})
    for name in variables:
        if name not in known:
            raise UserError(
                f"--job-variable: work pool {pool.name!r} ({pool.type}) has none named {name!r}.{did_you_mean(name, known)}"
            )


def _mounts(pool: WorkPool, variables: Mapping[str, Any]) -> bool:
    """Whether a pool, or a deployment there, mounts anything."""
    template = pool.base_job_template
    default = template.get("variables", {}).get("properties", {}).get("volumes", {}).get("default")
    written = json.dumps(template.get("job_configuration", {}))
    return bool(variables.get("volumes") or default or "volumeMounts" in written or "mountPoints" in written)


def _detail(error: Any) -> str:
    """What the server has against a deployment, in its own words."""
    try:
        said = error.response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        said = str(error)
    return " ".join(str(said).split())[:500]
