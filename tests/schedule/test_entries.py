"""What is printed for other schedulers: read as they read it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from cronsim import CronSim
from ruamel.yaml import YAML

from llm_distill.errors import UserError
from llm_distill.recipe import load
from llm_distill.recipe_schedule import Schedule, moment
from llm_distill.schedule.entries import AGAIN, calendar, crontab, kubernetes, label, systemd
from llm_distill.schedule.ticks import times
from tests.conftest import Desk
from tests.schedule.test_jobs import folder, job

SYSTEMD = shutil.which("systemd-analyze")
LINES = [
    "0 3 * * *", "*/7 * * * *", "5-59/10 2,14 * * *", "30 4 1,15 * *", "0 0 * JAN-MAR SUN", "15 6 * * MON-FRI", "0 3 13 * FRI",
    "0 12 * * 0,7", "0 5 29 2 *", "1/20 */5 */10 * *",
    "0 3 * * 1/2",
]  # fmt: skip


@pytest.mark.skipif(not SYSTEMD, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("line", LINES)
def test_systemd_reads_a_calendar_as_cron_reads_its_line(line: str) -> None:
    after = moment("2026-11-26T10:00:00Z")
    ours = list(islice(times(Schedule(cron=line), after), 8))
    theirs = set[int]()
    for expression in calendar(line):
        command = [
            "systemd-analyze",
            "calendar",
            "--iterations=8",
            "--base-time=2026-11-26 10:00:00 UTC",
            f"{expression} UTC",
        ]
        out = subprocess.run(
            command, capture_output=True, text=True, check=True, env={"TZ": "UTC", "LC_ALL": "C"}
        ).stdout
        found = re.findall(r"(?:Next elapse|Iter[a-z.]* #\d+): \w+ (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC", out)
        assert found, out
        theirs |= {int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) for text in found}
    assert sorted(theirs)[:8] == ours


def test_what_systemd_cannot_say_is_refused() -> None:
    with pytest.raises(UserError, match="systemd has no word for"):
        calendar("0 3 L * *")


@pytest.mark.parametrize("line", ["0 3 L * *", "0 3 * * 5L", "0 3 * * 1#2"])
def test_what_cron_cannot_say_is_looked_for_now_and_then(desk: Desk, line: str) -> None:
    """cron takes none of a file with such a line, and Kubernetes no such CronJob."""
    plan = load(job(desk, schedule=line))
    read = [one for one in crontab([plan], desk.folder, "x").splitlines() if one[0] not in "#S"]
    assert [" ".join(one.split()[:5]) for one in read] == [AGAIN]
    with pytest.raises(UserError, match="Kubernetes has no word for"):
        kubernetes(plan, "i", "c")


@pytest.mark.parametrize(
    ("line", "theirs"), [("0 3 * * 7", "0"), ("0 3 * * 5-7", "0,5,6"), ("0 3 * * sun", "sun"), ("0 3 * * 1-5", "1-5")]
)
def test_a_cron_jobs_weekdays_end_at_6(desk: Desk, line: str, theirs: str) -> None:
    assert kubernetes(load(job(desk, schedule=line)), "i", "c")["spec"]["schedule"] == f"0 3 * * {theirs}"


@pytest.mark.skipif(not SYSTEMD, reason="systemd-analyze is not installed")
def test_systemd_takes_the_units(desk: Desk) -> None:
    job(desk, schedule={"cron": "30 2 * * 1-5", "timezone": "Europe/Berlin"})
    units = desk.folder / "units"
    desk.llm_distill("jobs", "systemd", folder(desk), "--out", units)
    timer = units / "llm-distill-nightly.timer"
    assert "OnCalendar=Mon,Tue,Wed,Thu,Fri *-*-* 02:30:00 Europe/Berlin\n" in timer.read_text()
    done = subprocess.run(["systemd-analyze", "verify", str(timer)], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "llm-distill" in line and "not executable" not in line]
    assert not said, said


def test_a_crontab_calls_jobs_run_at_the_jobs_time_zone(desk: Desk) -> None:
    recipe = job(desk, schedule={"cron": "30 2 * * 1-5", "timezone": "Europe/Berlin"})
    lines = crontab([load(recipe)], Path("/srv/50%"), "/usr/bin/llm-distill").splitlines()
    at = lines.index("CRON_TZ=Europe/Berlin")
    assert "LLM_DISTILL_LEDGER" in " ".join(lines[:at])  # else cron's ticks are of another ledger
    for line in lines[at + 1 : at + 3]:
        *fields, command = line.split(maxsplit=5)
        CronSim(" ".join(fields), datetime(2026, 1, 1))
        assert not re.search(r"(?<!\\)%", command)
        assert shlex.split(command.replace("\\%", "%")) == [
            "/usr/bin/llm-distill", "jobs", "run", str(recipe), "--workspace", "/srv/50%",
        ]  # fmt: skip
    assert lines[at + 1].startswith("30 2 * * 1-5 ")


#: Of batch/v1 as it is published (Kubernetes API reference, CronJobSpec, JobSpec): the fields that are used, and their kinds.
CRON_JOB = {
    "schedule": str, "timeZone": str, "concurrencyPolicy": str, "startingDeadlineSeconds": int,
    "successfulJobsHistoryLimit": int, "failedJobsHistoryLimit": int, "jobTemplate": dict,
}  # fmt: skip


def test_kubernetes_gets_a_cron_job(desk: Desk) -> None:
    job(desk, schedule={"cron": "30 2 * * 1-5", "timezone": "Europe/Berlin"})
    job(desk, "Other_Job.2")
    out = desk.llm_distill("jobs", "kubernetes", folder(desk), "--image", "registry/llm:1", "--secret", "keys")
    documents: list[Any] = list(YAML(typ="safe", pure=True).load_all(out))
    assert len(documents) == 2
    for document in documents:
        assert (document["apiVersion"], document["kind"]) == ("batch/v1", "CronJob")
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?", document["metadata"]["name"])
        spec = document["spec"]
        assert {name: type(value) for name, value in spec.items()}.items() <= CRON_JOB.items()
        pod = spec["jobTemplate"]["spec"]["template"]["spec"]
        assert pod["restartPolicy"] == "OnFailure"
        (container,) = pod["containers"]
        assert container["image"] == "registry/llm:1"
        assert container["args"][:2] == ["jobs", "run"]
        assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
        mounts, volumes = container["volumeMounts"], pod["volumes"]
        assert {mount["name"] for mount in mounts} == {volume["name"] for volume in volumes}
    nightly = next(d["spec"] for d in documents if d["spec"]["timeZone"] == "Europe/Berlin")
    assert (nightly["schedule"], nightly["concurrencyPolicy"]) == ("30 2 * * 1-5", "Forbid")


def test_names_are_such_as_kubernetes_takes() -> None:
    assert label("nightly-2") == "llm-distill-nightly-2"
    assert re.fullmatch(r"llm-distill-a-b-c-[0-9a-f]{8}", label("a.B_c"))
    names = ["a.b", "a_b", "a-b", "A-b", "a--b", "x" * 64, "x" * 63 + "y", "y" * 39 + ".z", "z" * 40, "z" * 40 + "-"]
    found = [label(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?", name) for name in found)


@pytest.mark.parametrize("entry", [crontab, systemd])
def test_a_path_makes_no_lines_of_its_own(desk: Desk, entry: Any) -> None:
    plan = load(job(desk))
    with pytest.raises(UserError, match="holds a line end"):
        entry(plan if entry is systemd else [plan], Path("/srv/a\n* * * * * rm -r b"), "x")


def test_entries_hold_no_secret(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "https://very-secret")
    plan = load(job(desk, notify=[{"webhook": {"url_env": "HOOK"}}]))
    texts = [
        crontab([plan], desk.folder, "x"),
        *systemd(plan, desk.folder, "x").values(),
        json.dumps(kubernetes(plan, "i", "c")),
    ]
    assert "very-secret" not in "\n".join(texts)
