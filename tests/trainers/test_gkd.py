"""On-policy distillation from local weights, on tiny models: that it learns what it says, stops, goes on and refuses."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from llm_distill.errors import Interrupted, UserError
from llm_distill.models import weights
from llm_distill.plugs import Plug, Spec, bind
from llm_distill.records import Sampling
from llm_distill.trainers import TRAINERS, TrainingJob, on_policy_loop
from llm_distill.trainers import loop as training_loop
from llm_distill.trainers.findings import Linted
from llm_distill.trainers.gkd import gkd
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.on_policy import OnPolicy, Teaching
from llm_distill.trainers.on_policy import learn as learn_from
from llm_distill.trainers.on_policy_checks import difference, teacher_tokenizer
from llm_distill.trainers.on_policy_loop import Rollouts
from tests.conftest import ROOT
from tests.models.conftest import byte_level_tokenizer, fallback_tokenizer, lora, tiny
from tests.trainers.conftest import reviews, sft
from tests.trainers.test_real_student import STUDENT, samples
from tests.trainers.test_sft import curve, learnt

MakeJob = Callable[..., TrainingJob]
HYPER = {"learning_rate": 5e-3, "epochs": 2}


def plug(kind: str, **knobs: Any) -> Plug:
    """A recipe's model, as the house hands it over."""
    return Plug(Spec(kind, knobs), lambda **_: None, knobs)


def learn(job: TrainingJob, *, beta: float = 0.5, temperature: float = 1.0, own: Any = None, **hyper: Any) -> None:
    """GKD without warm-up, with short answers."""
    rollouts = OnPolicy(**{"warm_up_epochs": 0, "max_new_tokens": 6} | (own or {}))
    gkd(job, hyper=Hyperparameters(**{**HYPER, **hyper}), own=rollouts, beta=beta, temperature=temperature)


@pytest.fixture(scope="session")
def tuned(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA with an effect on the student."""
    return lora(student, tmp_path_factory.mktemp("tuned"))


@pytest.fixture(scope="session")
def trained(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that knows what is positive and what is negative."""
    out = tmp_path_factory.mktemp("trained")
    sft(TrainingJob(reviews(20), {"model": str(student), "device": "cpu"}, out, seed=3), epochs=8, learning_rate=1e-2)
    return out


@pytest.fixture
def pair(make_job: MakeJob, student: Path, tuned: Path) -> MakeJob:
    """Jobs whose teacher is the student with the first of these."""

    def make(samples: Any = 20, out: str = "out", **more: Any) -> TrainingJob:
        models = {"teacher": plug("transformers", model=str(student), adapter=str(tuned))}
        return make_job(samples, out, **{"models": models} | more)

    return make


def apart(student: Any, teacher: Any, tokenizer: Any, texts: list[str], beta: float) -> float:
    """The mean generalised JSD over the tokens of answers that the student draws, as the paper has it."""
    total, count = 0.0, 0
    torch.manual_seed(1)
    for text in texts * 4:
        turns = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        drawn = student.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=True, top_k=0)
        with torch.no_grad():
            p, q = (
                m(input_ids=drawn).logits[0, ids.shape[1] - 1 : -1].double().log_softmax(-1) for m in (teacher, student)
            )
        total, count = total + float(jsd(p, q, beta).sum()), count + len(p)
    return total / count


def jsd(p: Any, q: Any, beta: float) -> Any:
    """Equation 1 of arXiv 2306.13649, its ends the two KLs; p the teacher's and q the student's log-probabilities."""
    if beta in (0, 1):
        a, b = (p, q) if beta == 0 else (q, p)
        return (a.exp() * (a - b)).sum(-1)
    m = (beta * p.exp() + (1 - beta) * q.exp()).log()
    return beta * (p.exp() * (p - m)).sum(-1) + (1 - beta) * (q.exp() * (q - m)).sum(-1)


def loaded(student: Path, adapter: Path | None = None) -> Any:
    with training_loop.quiet():
        return weights.load_model(str(student), adapter=str(adapter) if adapter else None, device="cpu")


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_twenty_steps_bring_the_student_nearer(make_job: MakeJob, student: Path, trained: Path, beta: float) -> None:
    steps: list[tuple[int, int]] = []
    said: list[str] = []
    models = {"teacher": plug("transformers", model=str(student), adapter=str(trained))}
    job = make_job(40, models=models, on_step=lambda step, of, _: steps.append((step, of)), say=said.append)
    learn(job, beta=beta, epochs=4, learning_rate=1e-2, own={"lam": 1.0, "max_new_tokens": 8})
    assert steps == [(i, 20) for i in range(1, 21)]
    held_out = [
        f"Positive or negative? the {what}. Label:" for what in ("phone was good", "phone was bad", "day was good")
    ]
    tokenizer, teacher = byte_level_tokenizer(), loaded(student, trained)
    before = apart(loaded(student), teacher, tokenizer, held_out, beta)
    after = apart(loaded(student, job.out), teacher, tokenizer, held_out, beta)
    assert after < before / 2
    tensors = safetensors.torch.load(learnt(job.out))
    assert all(t.abs().max() > 0 for name, t in tensors.items() if "lora_B" in name), "gradients reach every adapter"
    story = json.loads((job.out / "training.json").read_text("utf-8"))
    assert story["answers"]["share"] == 1
    assert story["teacher"] == weights.identity(str(student), adapter=str(trained))
    assert not [p for p in job.out.iterdir() if p.is_dir()], "nothing is left behind"
    assert "<|im_start|>assistant\n\u27e6" in said[0]
    assert any("were cut at max_new_tokens = 8" in line for line in said)


@pytest.mark.parametrize(("beta", "temperature"), [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (0.3, 2.0)])
def test_the_loss_is_what_the_paper_says(
    pair: MakeJob, student: Path, tuned: Path, beta: float, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[list[list[int]]] = []
    job = pair(5)
    sampled = watch(monkeypatch, answered)
    learn(job, beta=beta, temperature=temperature, epochs=1, batch_size=5, own={"lam": 1.0})
    teacher, own = loaded(student, tuned), loaded(student)
    total, count = torch.zeros(()), 0
    for prompt, answer in zip(sampled[0], answered[0], strict=True):
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            logits = [m(input_ids=ids).logits[0, len(prompt) - 1 : -1] for m in (teacher, own)]
        p, q = ((one / temperature).log_softmax(-1) for one in logits)
        total, count = total + jsd(p, q, beta).sum() * temperature**2, count + len(answer)
    assert curve(job.out)[0]["loss"] == pytest.approx(float(total / count), rel=1e-4)
    assert curve(job.out)[0]["trained_tokens"] == count


def watch(monkeypatch: pytest.MonkeyPatch, answered: list[list[list[int]]]) -> list[list[list[int]]]:
    """Note what is sampled, step by step; gives the prompts."""
    from trl import DistillationTrainer

    prompts: list[list[list[int]]] = []
    plain = DistillationTrainer._generate_single_turn

    def noted(self: Any, prompt_ids: list[list[int]], *more: Any, **kwargs: Any) -> Any:
        found = plain(self, prompt_ids, *more, **kwargs)
        prompts.append(prompt_ids)
        answered.append(found)
        return found

    monkeypatch.setattr(DistillationTrainer, "_generate_single_turn", noted)
    return prompts


def test_small_batches_add_up_to_the_large_one(pair: MakeJob) -> None:
    own = {"lam": 0.01}  # texts of uneven length, the same in both
    learn(pair(8, out="large"), epochs=1, batch_size=8, own=own)
    learn(pair(8, out="small"), epochs=1, batch_size=2, gradient_accumulation=4, own=own)
    (large,), (small,) = curve(pair(out="large").out), curve(pair(out="small").out)
    assert small["trained_tokens"] == large["trained_tokens"]
    assert small["loss"] == pytest.approx(large["loss"], rel=1e-5)
    assert small["grad_norm"] == pytest.approx(large["grad_norm"], rel=1e-4)


def test_a_share_of_the_steps_is_the_students_own(pair: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    answered: list[list[list[int]]] = []
    watch(monkeypatch, answered)
    job = pair(20)
    learn(job, own={"lam": 0.4})
    lines = curve(job.out)
    assert [line["on_policy"] for line in lines] == [0, 0, 1, 0, 1]
    assert len(answered) == 2
    for share in (0.25, 0.5, 0.7, 1.0):
        plan = Rollouts(share, 1.0, 8, [0], 7)
        assert sum(plan.due(step) for step in range(100)) == round(100 * share)


def test_a_warm_up_comes_first(pair: MakeJob) -> None:
    job = pair(20)
    learn(job, own={"warm_up_epochs": 1.0})
    lines = curve(job.out)
    expected = [*[(0, i) for i in (1, 2, 3)], *[(1, i) for i in (1, 2, 3, 4, 5)]]
    assert [(line["round"], line["step"]) for line in lines] == expected
    sft(pair(20, "sft"), learning_rate=5e-3, epochs=1)
    plain = [line["loss"] for line in curve(pair(20, "sft").out)]
    assert [line["loss"] for line in lines[:3]] == plain
    assert learnt(job.out) != learnt(pair(20, "sft").out)
    assert not (job.out / "warm_up").exists()


def test_the_makers_settings_do_not_change_the_answers(
    make_job: MakeJob, student: Path, tuned: Path, tmp_path: Path
) -> None:
    odd = tiny("llama", tmp_path / "odd_model", byte_level_tokenizer())
    file = odd / "generation_config.json"
    settings = json.loads(file.read_text("utf-8"))
    odd_ones = {
        "temperature": 0.01, "top_k": 1, "top_p": 0.1, "do_sample": True, "max_length": 30, "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1, "min_new_tokens": 6, "suppress_tokens": list(range(5, 200)), "num_beams": 2,
    }  # fmt: skip
    file.write_text(json.dumps(settings | odd_ones), encoding="utf-8")
    models = {"teacher": plug("transformers", model=str(student), adapter=str(tuned))}
    learn(make_job(20, "plain", models=models), own={"lam": 1.0})
    learn(make_job(20, "odd", model=odd, models=models), own={"lam": 1.0})
    assert curve(make_job(20, "plain").out) == curve(make_job(20, "odd").out)
    assert json.loads(file.read_text("utf-8")) == settings | odd_ones


def test_without_lora_the_makers_settings_are_kept(make_job: MakeJob, student: Path, tuned: Path) -> None:
    models = {"teacher": plug("transformers", model=str(student), adapter=str(tuned))}
    job = make_job(8, models=models)
    learn(job, lora_rank=None, learning_rate=1e-3, own={"warm_up_epochs": 1.0})
    own, theirs = (json.loads((p / "generation_config.json").read_text("utf-8")) for p in (job.out, student))
    for name in ("eos_token_id", "bos_token_id"):
        assert own.get(name) == theirs.get(name)
    weights.load_model(str(job.out), device="cpu")


def test_equal_runs_are_equal_bytes(pair: MakeJob) -> None:
    for out in ("a", "b"):
        learn(pair(out=out), lora_dropout=0.1, own={"warm_up_epochs": 0.5})
    assert curve(pair(out="a").out) == curve(pair(out="b").out)
    assert learnt(pair(out="a").out) == learnt(pair(out="b").out)


KILLED = """
import os, signal, sys
from pathlib import Path
from llm_distill.trainers import TrainingJob
from tests.trainers.conftest import reviews
from tests.trainers.test_gkd import learn, plug
import torch
torch.set_num_threads(1)
def on_step(step, _of, numbers):
    if step == 4 and numbers.get("round") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
student, tuned, out = sys.argv[1:]
models = {"teacher": plug("transformers", model=student, adapter=tuned)}
job = TrainingJob(reviews(20), {"model": student, "device": "cpu"}, Path(out), seed=7, on_step=on_step, models=models)
learn(job, lora_dropout=0.1, gradient_accumulation=2, batch_size=4, checkpoint_every_s=0, own={"warm_up_epochs": 0.5})
"""


def test_a_killed_run_goes_on_where_it_was(pair: MakeJob, student: Path, tuned: Path) -> None:
    knobs: dict[str, Any] = {"lora_dropout": 0.1, "gradient_accumulation": 2, "batch_size": 4}
    knobs["own"] = {"warm_up_epochs": 0.5}
    learn(pair(out="whole"), **knobs)
    broken = pair(out="broken")
    command = [sys.executable, "-c", KILLED, str(student), str(tuned), str(broken.out)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, env=os.environ)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert not (broken.out / "adapter_model.safetensors").exists()
    seen: list[int] = []
    learn(pair(out="broken", on_step=lambda step, *_: seen.append(step)), **knobs)
    assert seen == [4, 5], "neither the warm-up nor the first steps are done again"
    assert curve(broken.out) == curve(pair(out="whole").out)
    assert learnt(broken.out) == learnt(pair(out="whole").out)


@pytest.mark.parametrize("warm", [0.0, 1.0])
def test_ctrl_c_saves_and_the_next_call_goes_on(pair: MakeJob, warm: float) -> None:
    def press(step: int, _of: int, numbers: dict[str, float]) -> None:
        if step == 2 and numbers.get("round") == 1:
            signal.raise_signal(signal.SIGINT)

    own = {"warm_up_epochs": warm}
    with pytest.raises(Interrupted, match="stopped after step 3 of 5; the same command goes on"):
        learn(pair(on_step=press), own=own)
    seen: list[int] = []
    learn(pair(on_step=lambda step, *_: seen.append(step)), own=own)
    assert seen == [4, 5]
    learn(pair(out="whole"), own=own)
    assert curve(pair().out) == curve(pair(out="whole").out)
    assert learnt(pair().out) == learnt(pair(out="whole").out)


def test_nothing_reaches_out_or_prints(pair: MakeJob, reached: list[object], capfd: pytest.CaptureFixture[str]) -> None:
    learn(pair(), checkpoint_every_s=0)
    assert reached == []
    assert capfd.readouterr() == ("", "")


def test_a_loss_that_is_no_number_stops_the_run(pair: MakeJob) -> None:
    job = pair()
    with pytest.raises(UserError, match=r"train: the (loss|gradient norm) became (nan|inf) at step [2-5]. Lower learn"):
        learn(job, learning_rate=1e30, warmup_ratio=0, own={"lam": 0.01})
    assert not (job.out / "adapter_model.safetensors").exists()


class Wrong:
    """A teacher who has no number for one row."""

    parts: Sequence[str] = ()

    def __init__(self, bad: int) -> None:
        self.bad, self.read = bad, list[tuple[int, list[int]]]()

    def loss(
        self, logits: Any, places: Sequence[int], completions: Sequence[Sequence[int]]
    ) -> tuple[Any, dict[str, float]]:
        self.read = [(place, list(answer)) for place, answer in zip(places, completions, strict=True)]
        return logits.sum() * (math.nan if self.bad in places else 0.0) + (logits**2).mean(), {}


@pytest.mark.parametrize(("bad", "lam"), [(3, 1.0), (8, 1.0), (5, 0.01), (10, 0.01)])
def test_the_rows_of_a_loss_that_is_no_number_are_those_that_were_read(make_job: MakeJob, bad: int, lam: float) -> None:
    """Whatever batch of a step TRL has shuffled them into, and with the student's own answers where it answered."""
    job, teacher = make_job(12), Wrong(bad)
    with pytest.raises(UserError) as error:
        learn_from(
            job, Hyperparameters(batch_size=2, gradient_accumulation=3, epochs=1),
            OnPolicy(lam=lam, warm_up_epochs=0, max_new_tokens=6), Teaching("wrong", lambda _desk: teacher), {"beta": 0.5},
        )  # fmt: skip
    lines = [line.strip() for line in str(error.value).splitlines() if line.startswith("  row ")]
    assert [line.partition(":")[0] for line in lines] == [
        f"row {job.samples[place].row_id}" for place, _ in teacher.read
    ]
    tokenizer = byte_level_tokenizer()
    assert all(f"⟦{tokenizer.decode(answer)}⟧" in str(error.value) for _, answer in teacher.read)


def test_teachers_that_cannot_teach_are_refused_first(make_job: MakeJob, student: Path, tmp_path: Path) -> None:
    def refused(models: dict[str, Plug], match: str) -> None:
        job = make_job(20, models=models)
        with pytest.raises(UserError, match=match):
            learn(job, own={"warm_up_epochs": 1.0})
        assert not (job.out / "metrics.jsonl").exists()
        assert not (job.out / "warm_up").exists(), "before anything is trained"

    other = tiny("gemma3_text", tmp_path / "other", fallback_tokenizer(), sliding_window=12)
    refused({}, r"train.gkd.teacher: no model 'teacher'; there are none")
    refused(
        {"teacher": plug("openai_api", model="gpt")}, r"the teacher's weights, but teacher is openai_api: use logit_kd"
    )
    refused(
        {"teacher": plug("transformers", model=str(other))}, r"another vocabulary .* of [\d,]+ tokens differ .*gold"
    )
    refused({"teacher": plug("transformers", model=str(student))}, r"has the student's own weights")


def test_vocabularies_are_compared_by_tokens_not_sizes() -> None:
    plain, moved, more = (byte_level_tokenizer() for _ in range(3))
    assert difference(plain, byte_level_tokenizer()) is None
    moved.add_tokens(["<one>", "<two>"])
    more.add_tokens(["<two>", "<one>"])
    assert len(moved) == len(more)
    assert "2 of" in str(difference(moved, more))
    assert "tokens and the teacher's" in str(difference(plain, more))


@pytest.mark.parametrize(("rows", "fine"), [(64, True), (-3, False)])
def test_padding_of_the_teachers_head_is_no_vocabulary(
    make_job: MakeJob, tmp_path: Path, rows: int, fine: bool
) -> None:
    tokenizer = byte_level_tokenizer()
    wide = len(tokenizer) + 8
    own = tiny("llama", tmp_path / "own", tokenizer, vocab_size=wide)
    teacher = tiny("llama", tmp_path / "teacher", tokenizer, vocab_size=wide + rows, num_hidden_layers=1)
    job = make_job(8, model=own, models={"teacher": plug("transformers", model=str(teacher))})
    assert difference(tokenizer, teacher_tokenizer(job.models["teacher"])) is None
    if fine:
        learn(job)
    else:
        with pytest.raises(UserError, match=r"of 3 the teacher says nothing"):
            learn(job, own={"warm_up_epochs": 1.0})
        assert not (job.out / "warm_up").exists(), "before anything is trained"


def test_answers_must_fit(pair: MakeJob) -> None:
    job = pair()
    with pytest.raises(UserError, match=r"max_new_tokens = 512 an answer may end beyond max_length = 300"):
        learn(job, max_length=300, own={"max_new_tokens": None, "warm_up_epochs": 1.0})
    assert not (job.out / "warm_up").exists(), "before anything is trained"
    job = pair(8, sampling=Sampling(max_tokens=3))
    learn(job, own={"max_new_tokens": None, "lam": 1.0})
    assert max(line["answer_tokens"] for line in curve(job.out)) <= 3, "as the teacher was allowed"
    with pytest.raises(UserError, match="no CUDA device"):
        learn(pair(), own={"use_vllm": True})


def test_a_look_at_the_rows_trains_nothing(pair: MakeJob) -> None:
    for warm in (0.0, 1.0):
        job = pair(8, out=f"look{warm}", only_lint=True)
        with pytest.raises(Linted):
            learn(job, own={"warm_up_epochs": warm})
        assert not (job.out / "adapter_model.safetensors").exists()


def test_every_step_is_a_whole_batch() -> None:
    assert on_policy_loop.whole_batches([3, 1, 2], 4) == [3, 1, 2, 3]
    assert on_policy_loop.whole_batches([3, 1], 6) == [3, 1] * 3
    assert on_policy_loop.whole_batches([3, 1], 2) == [3, 1]


def test_its_knobs_are_checked_with_the_recipe(tmp_path: Path) -> None:
    def read(roles: list[str], **knobs: Any) -> Plug:
        reading: Any = {"folder": tmp_path, "files": set(), "roles": roles}
        return bind("trainer", Spec("gkd", knobs, "train.gkd"), TRAINERS, reading)

    found = read(["teacher", "student"], lam=0.25, epochs=1)
    assert found.knobs["own"].lam == 0.25
    assert found.roles == ("teacher",)
    with pytest.raises(UserError, match=r"train.gkd.teacher: no model 'teacher'"):
        read(["big"])
    for wrong in ({"lam": 0}, {"beta": 2}, {"temperature": 0}, {"max_new_tokens": 0}, {"lamda": 1}):
        with pytest.raises(UserError, match=f"train.gkd.*{next(iter(wrong))}"):
            read(["teacher"], **wrong)


@pytest.mark.weights
@pytest.mark.skipif(not STUDENT.is_file(), reason="needs `make setup`'s assets")
def test_smollm2_draws_near_to_a_tuned_copy_in_twenty_steps(tmp_path: Path) -> None:
    rows, knobs = samples(24), {"model": str(STUDENT), "device": "cpu"}
    tuned = tmp_path / "tuned"
    sft(TrainingJob(rows[:20], knobs, tuned, 7), epochs=2)
    models = {"teacher": plug("transformers", model=str(STUDENT), adapter=str(tuned))}
    job = TrainingJob(rows[:20], knobs, tmp_path / "out", 7, models=models)
    learn(job, epochs=2, batch_size=2, learning_rate=5e-4, own={"lam": 1.0, "max_new_tokens": 4})
    assert len(curve(job.out)) == 20
    tokenizer, teacher = weights.load_tokenizer(str(STUDENT)), loaded(STUDENT, tuned)
    held_out = [row.messages[0].content for row in rows[20:]]
    before = apart(loaded(STUDENT), teacher, tokenizer, held_out, 0.5)
    after = apart(loaded(STUDENT, job.out), teacher, tokenizer, held_out, 0.5)
    assert after < before / 2
