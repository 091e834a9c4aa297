"""Several processes learn what one does, by the command that is printed; what they cannot share is refused."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from llm_distill.errors import UserError
from llm_distill.launch import accelerate_config, launch_of, train_run
from llm_distill.store import RunFolder
from llm_distill.trainers import TrainingJob, processes
from llm_distill.trainers.course import Desk, Lesson, stoppable, train
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.packing import units_of
from llm_distill.trainers.rows import Row
from llm_distill.trainers.soft_targets import SoftTargets
from llm_distill.trainers.targets import Targets
from tests.conftest import ROOT, Unwatched
from tests.conftest import Desk as Folder
from tests.models.conftest import byte_level_tokenizer, tiny
from tests.trainers.conftest import reviews
from tests.trainers.test_sft import curve, learnt


def prepared(folder: Path, train: dict[str, Any], **models: Any) -> tuple[Folder, Path, Path]:
    """A recipe with 22 rows of uneven length to learn and a tiny student on the CPU, run up to the filter: its folder too."""
    folder.mkdir(exist_ok=True)
    desk = Folder(folder)
    words = ["good", "bad", "fine and well", "dull"]
    texts = [f"{words[i % 4]} film {i}" + " and so on" * (i * 7 % 5) for i in range(22)]
    desk.seeds([{"prompt": text, "label": "negative" if i % 3 else "positive"} for i, text in enumerate(texts)])
    tiny("llama", folder / "base", byte_level_tokenizer())
    student = {"model": "base", "device": "cpu"} | models.pop("student", {})
    models = {"teacher": {"scripted": {"rules": {"good": "positive"}, "default": "negative"}}} | models
    recipe = desk.recipe(models=models | {"student": {"transformers": student}}, train=train)
    return desk, recipe, Path(desk.here(recipe, last="filter")["run"])


def launched(desk: Folder, run: Path) -> tuple[str, str]:
    """Two processes, by the very config and command that `--print-launch` writes out; what they print on stdout and stderr."""
    config = desk.folder / "accelerate.yaml"
    found = launch_of(RunFolder(run), desk.folder / "data", 2, 1, config)
    assert "use_cpu: true" in found.config
    config.write_text(found.config, encoding="utf-8")
    (command,) = found.commands
    return start(shlex.split(command)[2:], desk.folder)


def start(words: Sequence[str], folder: Path = ROOT) -> tuple[str, str]:
    """`accelerate launch` with these words, to its end; what all of its processes print on stdout and stderr."""
    words = [sys.executable, "-m", "accelerate.commands.launch", *words]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def same(one: Path, other: Path, *, scored: bool = True) -> None:
    """The same files, curves and weights to 1e-4, and the same story of how."""
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
    a, b = curve(one), curve(other)
    assert len(a) == len(b)
    for first, second in zip(a, b, strict=True):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert value == pytest.approx(second[key], abs=1e-4, rel=1e-5), key
    weights = [safetensors.torch.load(learnt(out)) for out in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=1e-4, rtol=1e-3)
    stories = [json.loads((out / "training.json").read_text("utf-8")) for out in (one, other)]
    for story in stories:  # the scale of each part of the loss is that of what the first process reads first
        story["lint"] = [finding for finding in story["lint"] if finding["name"] != "scale"]
        if not scored:
            del story["checks"]["scored"]
    assert stories[0] == stories[1]


def test_two_processes_learn_what_one_does_by_the_printed_command(tmp_path: Path) -> None:
    """22 rows, some with gold that says something else; 4 to a batch, of the last of which the second process has none."""
    knobs = {
        "gold": 0.5,
        "batch_size": 4,
        "gradient_accumulation": 2,
        "epochs": 1,
        "learning_rate": 1e-2,
        "checkpoint_every_s": 0,
    }
    desk, recipe, run = prepared(tmp_path, {"sft": knobs})
    said, shown = launched(desk, run)
    assert said.splitlines() == [f"Trained: {run / 'student'}", f"Run: {run}"], "one process speaks, once"
    assert shown.count("The first row, as it is learnt") == 1
    assert RunFolder(run).stamp("train")["rows_in"] == 22
    assert not train_run(RunFolder(run), tmp_path / "data", Unwatched()), "nothing is left to do"
    assert not desk.here(recipe, last="train")["stages"]["train"]["ran"], "the stamp is whole"
    shutil.copytree(run / "student", tmp_path / "two")
    RunFolder(run).save("train")
    assert train_run(RunFolder(run), tmp_path / "data", Unwatched()), "once more, in this process"
    assert "ce" in curve(tmp_path / "two")[0], "gold weighed in"
    same(tmp_path / "two", run / "student")


def targets(row: Row) -> Targets:
    """A teacher who prefers the text's tokens."""
    own = np.array(row.input_ids[row.prompt_tokens :], np.int32)
    logprobs = np.tile(np.log([[0.7, 0.2]]), (len(own), 1)).astype(np.float32)
    return Targets(np.stack([own, (own + 1) % 300], 1), logprobs, np.ones(len(own), bool))


def press_ctrl_c(step: int, _steps: int, _numbers: dict[str, float]) -> None:
    if step == 1:  # heard at the end of the next
        signal.raise_signal(signal.SIGINT)


def lessons(student: str, out: Path, on_step: Callable[[int, int, dict[str, float]], None] | None = None) -> None:
    """Soft targets, then packed rows: in both the last batch is short, and a process of two has none of its own."""
    for name, packed in (("soft", False), ("packed", True)):
        job = TrainingJob(
            reviews(17), {"model": student, "device": "cpu"}, out / name, 7, on_step=on_step or (lambda *_: None)
        )
        with stoppable():
            desk = Desk(job, Hyperparameters(epochs=1, learning_rate=1e-2, checkpoint_every_s=0, max_length=256))
            rows = desk.rows()
            train(desk, Lesson(rows, None if packed else SoftTargets([targets(row) for row in rows]), packed=packed))


TOGETHER = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.trainers.test_launch import fsdp_on_cpus, lessons, press_ctrl_c
from llm_distill.errors import Interrupted
from llm_distill.trainers import processes
student, out = sys.argv[1], Path(sys.argv[2])
fsdp_on_cpus()
with processes.joined(on_cpu=False):
    asked = out / "asked"
    out.mkdir(exist_ok=True)
    processes.in_turn(lambda: asked.write_text((asked.read_text() if asked.exists() else "") + str(processes.rank())))()
    assert processes.summed({"a": processes.rank(), "b": 1.0}) == {"a": 1.0, "b": 2.0}
    assert processes.agreed(processes.rank() == 1, False) == [True, False]
    try:
        lessons(student, out, press_ctrl_c)  # in the first process alone, where steps are told
    except Interrupted as stop:
        assert "after step 2 of 3" in str(stop)
        lessons(student, out)
    else:
        raise AssertionError("all of them should have stopped")
"""


def fsdp_on_cpus() -> None:
    """Accelerate would do it on GPUs alone. Without shared beginnings, which are a matter of CPUs."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    from llm_distill.trainers import head

    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    head._SHORT = 10**9


def test_two_processes_learn_with_a_part_of_the_student_each(student: Path, tmp_path: Path) -> None:
    """FSDP: soft targets and packed rows, stopped after two steps and gone on with."""
    script, config, two = tmp_path / "together.py", tmp_path / "accelerate.yaml", tmp_path / "two"
    script.write_text(TOGETHER, encoding="utf-8")
    config.write_text(accelerate_config(2, 1, sharded=True, on_cpu=False), encoding="utf-8")
    start(["--config_file", str(config), str(script), str(student), str(two)])
    assert (two / "asked").read_text() == "01", "the first asks before the second"
    lessons(str(student), tmp_path / "one")
    for name in ("soft", "packed"):
        same(two / name, tmp_path / "one" / name, scored=False)
    assert {"ce", "kd"} < curve(two / "soft")[0].keys()


def test_how_to_launch_is_printed_as_accelerate_reads_it(tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from transformers import AutoConfig

    desk, _, run = prepared(tmp_path, {"sft": {"batch_size": 8}}, student={"device": "auto"})
    lines = desk.llm_distill("train", run, "--workspace", "data", "--print-launch", "--gpus", "2", "--nodes", "2")
    commands = [line for line in lines.splitlines() if line.startswith("accelerate launch --config_file ")]
    assert [f"--machine_rank {node} " in line for node, line in enumerate(commands)] == [True, True]
    file = run / "accelerate.yaml"
    read = load_config_from_file(str(file))
    assert (read.num_processes, read.num_machines, read.mixed_precision, read.use_cpu) == (4, 2, "no", False)
    assert str(read.distributed_type).endswith("MULTI_GPU")
    AutoConfig.for_model("llama", vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
                         num_attention_heads=32, num_key_value_heads=8).save_pretrained(tmp_path / "base")  # fmt: skip
    found = launch_of(RunFolder(run), tmp_path / "data", 4, 1, tmp_path / "8b.yaml")
    assert found.spread == (
        "the student is cut up between GPUs (FSDP): with 8.0 billion parameters its weights would take 16 GB on each"
    )
    (tmp_path / "8b.yaml").write_text(found.config, encoding="utf-8")
    read = load_config_from_file(str(tmp_path / "8b.yaml"))
    assert str(read.distributed_type).endswith("FSDP")
    assert (read.fsdp_config["fsdp_version"], read.fsdp_config["fsdp_state_dict_type"]) == (2, "FULL_STATE_DICT")
    with pytest.raises(UserError, match=r"train.sft.batch_size is 8, what all processes read together, which 3 cannot"):
        launch_of(RunFolder(run), tmp_path / "data", 3, 1, file)


def test_what_several_processes_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, run = prepared(tmp_path / "early", {"sft": {"validation_share": 0.2}})
    with pytest.raises(
        UserError, match=r"train.sft.validation_share: it is for one process, and there are 2; remove it"
    ):
        launch_of(RunFolder(run), tmp_path / "early" / "data", 2, 1, tmp_path / "accelerate.yaml")
    desk, recipe, run = prepared(tmp_path, {"dpo": {}})
    refusal = r"train.dpo: it trains in one process, as `llm-distill run` does; several can share logit_kd and sft"
    with pytest.raises(UserError, match=refusal):
        launch_of(RunFolder(run), tmp_path / "data", 2, 1, tmp_path / "accelerate.yaml")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=refusal):
        train_run(RunFolder(run), tmp_path / "data", Unwatched())
    with pytest.raises(
        UserError, match=r"2 processes were launched, and a recipe runs in one; launch `llm-distill train"
    ):
        desk.here(recipe)


def test_a_batch_is_dealt_out_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    rows = [Row(f"r{i}", [1] * (5 + i), 2) for i in range(3)]
    units, reads = processes.evened(units_of(rows), [2, 0, 1, 2, 0], 4)
    assert list(reads) == [2, 0, 1, 2, 0, 3, 3, 3]
    assert (units[3].input_ids, units[3].trained_tokens, units[3].places) == ([1] * 5, 0, ())
    dealt = []
    for number in ("0", "1"):
        monkeypatch.setenv("RANK", number)
        dealt.append(list(processes.own(reads, 4)))
    assert dealt == [[2, 0], [1, 2]]
    with pytest.raises(
        UserError, match="batch_size is 5, which 2 processes cannot share evenly; set it to a multiple of 2"
    ):
        processes.share(5)
