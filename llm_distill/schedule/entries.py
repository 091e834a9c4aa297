"""Entries for schedulers of others: crontab, systemd timers, Kubernetes CronJobs. Each calls `jobs run`, which decides.

So an entry that fires twice, late, or on two machines does no harm, and one that cannot read time zones needs none: beside
the job's own times all look now and then for what was postponed or cut off.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_distill.errors import UserError
from llm_distill.recipe import Plan
from llm_distill.records import content_id
from llm_distill.schedule.night import schedule_of

#: How often it is looked for ticks that were postponed or cut off.
AGAIN = "*/10 * * * *"
#: The longest name of a CronJob.
_LABEL = 52
_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


def _words(program: str, plan: Plan, workspace: Path) -> list[str]:
    """The call. UserError for a path that a crontab or a unit would read as lines of its own."""
    words = [program, "jobs", "run", str(plan.path.resolve()), "--workspace", str(workspace.resolve())]
    if broken := next((word for word in words if "\n" in word or "\r" in word), None):
        raise UserError(f"{broken!r}: no entry of a scheduler can name a path that holds a line end; rename it.")
    return words


def crontab(plans: Sequence[Plan], workspace: Path, program: str) -> str:
    """Lines for `crontab -e`. CRON_TZ is cronie's; a cron that does not know it is set right by the last lines."""
    lines = [
        "# llm-distill jobs. A tick is done once, however often it is called for. cron has nothing of your environment: write",
        "# the keys of providers, and LLM_DISTILL_LEDGER where you use it, as NAME=value above the first job.",
        "SHELL=/bin/sh",
    ]
    for plan in plans:
        schedule = schedule_of(plan)
        call = _escaped(shlex.join(_words(program, plan, workspace)))
        own = [f"CRON_TZ={schedule.timezone}", f"{schedule.cron} {call}"]
        if _beyond_cron(schedule.cron):  # one line that cron cannot read, and it takes none of the file
            own = [f"# {schedule.cron} is more than cron can say: it is looked for now and then."]
        lines += [*own, f"{AGAIN} {call}"]
    return "\n".join(lines) + "\n"


def _escaped(command: str) -> str:
    """A percent sign is cron's line end."""
    return command.replace("%", "\\%")


def systemd(plan: Plan, workspace: Path, program: str) -> dict[str, str]:
    """A service and its timer, by file name."""
    schedule, name = schedule_of(plan), f"llm-distill-{plan.name}"
    call = " ".join(_quoted(word) for word in _words(program, plan, workspace))
    service = (
        f"[Unit]\nDescription=llm-distill job {plan.name}\nWants=network-online.target\nAfter=network-online.target\n\n"
        f"[Service]\nType=oneshot\nExecStart={call}\n"
        "# A tick that fell short is told by exit code 1; it is tried again when the timer next looks.\n"
        "# Keys of providers, and LLM_DISTILL_LEDGER where you use it, one NAME=value a line:\n"
        f"EnvironmentFile=-/etc/llm-distill/{plan.name}.env\n"
        "KillSignal=SIGINT\nTimeoutStopSec=120\n"
    )
    calendars = "".join(f"OnCalendar={line} {schedule.timezone}\n" for line in calendar(schedule.cron))
    timer = (
        f"[Unit]\nDescription=When llm-distill job {plan.name} runs\n\n[Timer]\n{calendars}"
        f"# What was postponed or cut off is looked for now and then.\nOnCalendar=*:0/10\n"
        "Persistent=true\nAccuracySec=1s\n\n[Install]\nWantedBy=timers.target\n"
    )
    return {f"{name}.service": service, f"{name}.timer": timer}


def _quoted(word: str) -> str:
    """A word of ExecStart: percent signs and dollars doubled, in quotes where it needs them (systemd.service(5))."""
    word = word.replace("%", "%%").replace("$", "$$")
    return (
        word if re.fullmatch(r"[\w@%+=:,./$-]+", word) else '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
    )


def calendar(cron: str) -> list[str]:
    """A cron line as OnCalendar expressions (systemd.time(7)); two where day and weekday are alternatives, as cron has it.

    UserError for what they cannot say.
    """
    minute, hour, day, month, weekday = cron.upper().split()
    if field := _beyond_cron(cron):
        raise UserError(f"{cron!r}: systemd has no word for {field}; use `jobs crontab` or another scheduler.")
    time = f"{_part(hour, 0, 23)}:{_part(minute, 0, 59)}:00"
    date = f"*-{_part(_numbered(month, _MONTHS, 1), 1, 12)}-"
    days, weekdays = _part(day, 1, 31), _weekdays(weekday)
    if day.startswith("*") or weekday.startswith("*"):
        return [f"{weekdays} {date}{days} {time}".strip()]
    return [f"{weekdays} {date}* {time}", f"{date}{days} {time}"]


def _beyond_cron(cron: str) -> str | None:
    """The field with the last day of a month, its last working day or its second Monday (L, LW, 1#2), which only we read."""
    _minute, _hour, day, _month, weekday = cron.upper().split()
    return next((field for field in (day, weekday) if re.search(r"L|#", field)), None)


def _numbered(field: str, names: Sequence[str], first: int) -> str:
    for number, name in enumerate(names, first):
        field = field.replace(name.upper(), str(number))
    return field


def _part(field: str, low: int, high: int) -> str:
    """One field: its values, listed where it is not all of them."""
    return "*" if field == "*" else ",".join(f"{n:02}" for n in sorted(_values(field, low, high)))


def _values(field: str, low: int, high: int) -> set[int]:
    found = set[int]()
    for part in field.split(","):
        span, _, step = part.partition("/")
        if span == "*":
            first, last = low, high
        else:
            begin, _, end = span.partition("-")
            first = int(begin)
            last = int(end) if end else (high if step else first)
        found |= set(range(first, last + 1, int(step or 1)))
    return found


def _weekdays(field: str) -> str:
    if field == "*":
        return ""
    return ",".join(_WEEKDAYS[day] for day in _days(field))


def _days(field: str) -> list[int]:
    """The days of a field of weekdays; Sunday, which may be 7 there, is 0."""
    return sorted({day % 7 for day in _values(_numbered(field, _WEEKDAYS, 0), 0, 6 if field.startswith("*") else 7)})


def _kubernetes_cron(cron: str) -> str:
    """A cron line for a CronJob, whose weekdays are 0 to 6. UserError for what it cannot say."""
    if field := _beyond_cron(cron):
        raise UserError(f"{cron!r}: Kubernetes has no word for {field}; use `jobs crontab` or another scheduler.")
    *others, weekday = cron.split()
    return " ".join([*others, ",".join(map(str, _days(weekday.upper()))) if "7" in weekday else weekday])


def kubernetes(plan: Plan, image: str, claim: str, secret: str | None = None) -> dict[str, Any]:
    """A CronJob (batch/v1): the recipe's folder and the workspace on a volume claim, keys from a secret.

    `Forbid` and the lease in the ledger say the same; `--wait` keeps the pod until its tick is settled, postponed or not, and a
    pod that dies is started again and goes on with the same run.
    """
    schedule = schedule_of(plan)
    container: dict[str, Any] = {
        "name": "llm-distill",
        "image": image,
        "command": ["llm-distill"],
        "args": ["jobs", "run", f"/distil/jobs/{plan.path.name}", "--workspace", "/distil/data", "--wait"],
        "volumeMounts": [{"name": "work", "mountPath": "/distil"}],
        "securityContext": {"allowPrivilegeEscalation": False},
    }
    if secret:
        container["envFrom"] = [{"secretRef": {"name": secret}}]
    pod = {
        "restartPolicy": "OnFailure",
        "containers": [container],
        "volumes": [{"name": "work", "persistentVolumeClaim": {"claimName": claim}}],
        "terminationGracePeriodSeconds": 120,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": label(plan.name), "labels": {"app.kubernetes.io/name": "llm-distill"}},
        "spec": {
            "schedule": _kubernetes_cron(schedule.cron),
            "timeZone": "Etc/UTC" if schedule.timezone == "UTC" else schedule.timezone,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": 3600,
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 3,
            "jobTemplate": {"spec": {"backoffLimit": 6, "template": {"spec": pod}}},
        },
    }


def label(name: str) -> str:
    """A recipe's name as Kubernetes takes it for a CronJob: DNS label, 52 characters (RFC 1123; 11 more are the pod's). One that
    had to be changed ends in a hash of the name: `a.b` and `a_b` are two jobs.
    """
    given = f"llm-distill-{name}"
    fit = re.sub(r"[^a-z0-9]+", "-", given.casefold()).strip("-")
    if fit == given and len(fit) <= _LABEL:
        return fit
    return f"{fit[: _LABEL - 9].rstrip('-')}-{content_id(['label', name])[:8]}"


def as_yaml(value: Mapping[str, Any]) -> str:
    """JSON, which is YAML: nothing in it can be read as something else."""
    return json.dumps(value, indent=2) + "\n"
