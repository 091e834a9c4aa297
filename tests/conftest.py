"""What every test may use: a folder with seeds and recipes, the command line, and endpoints on loopback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from tests.mock_api import MockApi, serving
from tests.postgres import programs, running

ROOT = Path(__file__).parent.parent
_NUMBERS = count()
#: How the names of variables begin that Python and Prefect read once, when they start.
_READ_ONCE = ("PYTHON", "PREFECT")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without PostgreSQL its tests are skipped, and say so. Files with real weights come first: begun last, the longest of them
    would keep one process at work alone.
    """
    for item in items:
        if item.get_closest_marker("postgres") and not programs():
            item.add_marker(pytest.mark.skip(reason="PostgreSQL is not installed (Debian: postgresql)"))
    long = {item.path for item in items if item.get_closest_marker("weights")}
    items.sort(key=lambda item: item.path not in long)


def runs(pid: int) -> bool:
    """Whether a process runs: a zombie does not, nor one that ends while it is looked at."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Unwatched:
    """A Watch who does not look."""

    def begin(self, run: str) -> None: ...

    def stage(self, name: str, state: str) -> None: ...

    def rows(self, done: int, total: int, numbers: Mapping[str, Any]) -> None: ...

    def say(self, line: str) -> None: ...


@dataclass(frozen=True)
class Desk:
    """A folder of one's own: write seeds and recipes into it, run commands in it."""

    folder: Path

    def seeds(self, rows: Sequence[Mapping[str, Any] | str], name: str = "seeds.jsonl") -> Path:
        path = self.folder / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return path

    def recipe(self, name: str = "job", **keys: Any) -> Path:
        """A recipe: a scripted teacher and `seeds.jsonl`, with keys replaced (None removes one)."""
        recipe: dict[str, Any] = {
            "name": name,
            "task": {"classify": {"labels": ["positive", "negative"]}},
            "models": {"teacher": {"scripted": {"rules": {"good": "positive"}, "default": "negative"}}},
            "prompts": [{"seeds": {"file": "seeds.jsonl"}}],
            "answers": {"max_tokens": 8},
        }
        recipe = {key: value for key, value in (recipe | keys).items() if value is not None}
        path = self.folder / f"{name}.yaml"
        with path.open("w", encoding="utf-8") as file:
            YAML(typ="safe", pure=True).dump(recipe, file)
        return path

    def command(self, *arguments: str | Path, **env: str) -> subprocess.Popen[str]:
        """Start the command line in the folder."""
        return subprocess.Popen(
            [sys.executable, "-m", "llm_distill.cli", *map(str, arguments)],
            cwd=self.folder,
            env=os.environ | {"COLUMNS": "200"} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def llm_distill(self, *arguments: str | Path, code: int = 0, **env: str) -> str:
        """Run a command to its end, insist on its exit code, give stdout (code 0) or the last line of stderr."""
        out, err = self._main(*arguments, code=code, **env)
        return out if code == 0 else err.strip().splitlines()[-1]

    def typed(self, *arguments: str | Path, code: int = 0, **env: str) -> str:
        """The same: all that it prints, stdout before stderr."""
        return "".join(self._main(*arguments, code=code, **env))

    def run(self, recipe: Path, *arguments: str, code: int = 0, **env: str) -> dict[str, Any]:
        """`run --json`: the summary."""
        out, _ = self._main("run", recipe, "--json", *arguments, code=code, **env)
        return json.loads(out.splitlines()[-1])  # type: ignore[no-any-return]

    def _main(self, *arguments: str | Path, code: int, **env: str) -> tuple[str, str]:
        """Stdout and stderr of a command: in this process, where a start takes no time, unless it would heed `env` no more."""
        if any(name.startswith(_READ_ONCE) for name in env):
            process = self.command(*arguments, **env)
            said = process.communicate(timeout=240)
            assert process.returncode == code, f"{arguments}: exit {process.returncode}\n{said[0]}\n{said[1]}"
            return said
        from llm_distill import cli, cli_runs

        out, err = io.StringIO(), io.StringIO()
        with contextlib.ExitStack() as here:
            here.enter_context(contextlib.chdir(self.folder))
            here.enter_context(contextlib.redirect_stdout(out))
            here.enter_context(contextlib.redirect_stderr(err))
            patch = here.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(sys, "argv", ["llm-distill", *map(str, arguments)])
            patch.setitem(cli_runs.LOG, "json", False)
            for name, value in ({"COLUMNS": "200"} | env).items():
                patch.setenv(name, value)
            ended = here.enter_context(pytest.raises(SystemExit))
            cli.main()
        found = ended.value.code or 0
        assert found == code, f"{arguments}: exit {found}\n{out.getvalue()}\n{err.getvalue()}"
        return out.getvalue(), err.getvalue()

    def here(self, recipe: Path, *overrides: str, **options: Any) -> dict[str, Any]:
        """The same in this process, with `-s` overrides and `pipeline.run`'s options: quicker, and errors are raised."""
        from llm_distill import pipeline
        from llm_distill.recipe import load

        return pipeline.run(load(recipe, overrides), self.folder / "data", Unwatched(), **options)

    def rows(self, summary: Mapping[str, Any], table: str) -> list[dict[str, Any]]:
        """A table of a run."""
        import pyarrow.parquet as pq

        return pq.read_table(self.folder / summary["run"] / f"{table}.parquet").to_pylist()  # type: ignore[no-any-return]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server, with {} for the database."""
    with running() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | str:
    """A new ledger of either kind; commands started in the test use it too."""
    if request.param == "sqlite":
        return tmp_path / "ledger.sqlite"
    import sqlalchemy as sa

    server, name = request.getfixturevalue("postgres"), f"ledger{next(_NUMBERS)}"
    engine = sa.create_engine(server.format("postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as db:
        db.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    url: str = server.format(name)
    monkeypatch.setenv("LLM_DISTILL_LEDGER", url)
    return url


@pytest.fixture
def api() -> Iterator[MockApi]:
    with serving() as running:
        yield running
