"""EleutherAI's lm-evaluation-harness, run on a model of ours: `measure` gives its score for every row of every task.

The harness makes the prompts, reads the answers and scores them. What it wants to know of the model comes from where all else
does: an answer is asked for through the run's own door, and so lies in the ledger; how likely a text is, is read by the
harness's own HFLM off the weights that we loaded. Imported only where it is used: it takes seconds, and needs `lm_eval`.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import datasets
from lm_eval.api import task as api_task
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks._yaml_loader import load_yaml
from tqdm import tqdm

from llm_distill.errors import UserError
from llm_distill.evals.general import Row
from llm_distill.evals.general_tasks import TaskFile
from llm_distill.records import Entry, Message, Request, Sampling

if TYPE_CHECKING:
    from llm_distill.models.decoding import Engine

#: What `generation_kwargs` may say; a model of ours has no beams and no penalties.
_KWARGS = {"until", "do_sample", "temperature", "top_p", "max_gen_toks"}
_FEW_SHOT_SEED = 1234  # the harness's own, so that its command line draws the same examples
_MAX_TOKENS = 256  # likewise


class Chat(str):
    """A conversation: as text, what the model's template makes of it; and its turns."""

    __slots__ = ("turns",)
    turns: tuple[Message, ...]


class Served(LM):  # type: ignore[misc]
    """A model of ours as the harness sees one. ask: its answers; reader: its weights, where they are at hand.

    `failed`: why rows, by task and place, got no answer.
    """

    def __init__(self, ask: Callable[[Sequence[Request]], list[Entry]], tokenizer: Any, engine: Engine | None) -> None:
        super().__init__()
        self._ask, self._tokenizer, self._engine = ask, tokenizer, engine
        self.failed: dict[tuple[str, int], str] = {}

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """How likely each continuation is after its context, in nats, and whether it is what greedy decoding gives."""
        engine = self._engine
        assert engine is not None, "the recipe's check lets no such task through"
        # HFLM may give the tokenizer a token for padding; ours stays as it is.
        reader = HFLM(engine.model, tokenizer=copy.deepcopy(engine.tokenizer), batch_size=engine.batch_size)
        plain = [replace(one, arguments=(str(one.args[0]), one.args[1])) for one in requests]
        found: list[tuple[float, bool]] = reader.loglikelihood(plain, disable_tqdm=True)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Perplexities have no score for each row: no task that asks for them is let through."""
        raise NotImplementedError

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """What the model goes on with; nothing where it failed, which `failed` notes."""
        drawn: Counter[Request] = Counter()
        questions = []
        for one in requests:
            question = _question(*one.args)
            number = drawn[question] if question.sampling.temperature else 0
            drawn[question] += 1
            questions.append(Request(question.messages, question.sampling, number, question.raw))
        entries = self._ask(questions)
        for one, entry in zip(requests, entries, strict=True):
            if entry.status == "failed":
                self.failed[one.task_name, one.doc_id] = entry.reason or "no answer"
        return ["" if entry.status == "failed" else entry.text for entry in entries]

    @property
    def tokenizer_name(self) -> str:
        """What the harness files prepared prompts under, which it is never told to keep."""
        return ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> Chat:
        """The conversation through the model's own template."""
        if not add_generation_prompt:
            raise UserError(
                "evaluate.general.chat: a task begins the answer (gen_prefix), which no served model goes on with."
            )
        if self._tokenizer is None or self._tokenizer.chat_template is None:
            raise UserError("evaluate.general.chat: models.student has no chat template at hand; remove `chat`.")
        chat = Chat(self._tokenizer.apply_chat_template(chat_history, tokenize=False, add_generation_prompt=True))
        chat.turns = tuple(Message(turn["role"], turn["content"]) for turn in chat_history)  # type: ignore[arg-type]
        return chat


def _question(context: str, kwargs: Mapping[str, Any]) -> Request:
    """A request of the harness's as one of ours: text to go on with, or a conversation."""
    how = normalize_gen_kwargs(dict(kwargs), _MAX_TOKENS)
    if strange := sorted(how.keys() - _KWARGS):
        raise UserError(
            f"evaluate.general: generation_kwargs.{strange[0]} is no knob here; allowed: {', '.join(sorted(_KWARGS))}."
        )
    stop = tuple(text for text in how["until"] if text)
    sampling = Sampling(
        how["temperature"] if how["do_sample"] else 0.0, how.get("top_p", 1.0), how["max_gen_toks"], stop
    )
    if isinstance(context, Chat):
        return Request(context.turns, sampling)
    return Request((Message("user", context),), sampling, raw=True)


def measure(
    tasks: Sequence[TaskFile], model: Served, *, limit: int | None, few_shot: int | None, chat: bool
) -> dict[str, list[Row]]:
    """The score of each row of each task, by the first metric that the task names. UserError for a task that cannot be made, or
    whose metric is no mean of rows.
    """
    with _quietly(), TemporaryDirectory(prefix="general-") as cache:
        built = {task.name: _built(task, few_shot, Path(cache)) for task in tasks}
        found = evaluate(
            model, {"tasks": built}, limit=limit, bootstrap_iters=0, apply_chat_template=chat, fewshot_as_multiturn=chat
        )
    return {task.name: _rows(task, built[task.name], found, model) for task in tasks}


def _built(task: TaskFile, few_shot: int | None, cache: Path) -> ConfigurableTask:
    """A task as the harness's command line makes it, with its data where they are."""
    try:
        config = load_yaml(task.path)
        for key in ("tag", "group", "task_list"):
            config.pop(key, None)
        data = {split: [str(file) for file in files] for split, files in task.data.items()}
        more = {"data_files": data, "cache_dir": str(cache)}
        built = ConfigurableTask(config=config | {"dataset_kwargs": config["dataset_kwargs"] | more})
        said = built.get_config("num_fewshot")
        if few_shot is not None and said != 0:  # a task that says 0 means it
            built.set_config(key="num_fewshot", value=few_shot)
        elif said is None:
            built.set_config(key="num_fewshot", value=0)
        built.set_fewshot_seed(seed=_FEW_SHOT_SEED)
        first = next(iter(built.eval_docs))
        built.doc_to_text(first), built.doc_to_target(first)
    except Exception as error:  # a task file may hold any template, and Python besides
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"evaluate.general: {task.path}: no task can be made of it: {why}") from error
    return built


def _rows(task: TaskFile, built: ConfigurableTask, found: Mapping[str, Any], model: Served) -> list[Row]:
    """What the harness logged of a task, and whether its score is what its rows come to."""
    metric, samples = next(iter(built.aggregation())), found["samples"][task.name]
    first = samples[0]["filter"]
    samples = sorted((one for one in samples if one["filter"] == first), key=lambda one: one["doc_id"])
    scores = [one.get(metric) for one in samples]
    where = f"evaluate.general: {task.path}: its first metric, {metric},"
    if not built.higher_is_better().get(metric, True):
        raise UserError(f"{where} is better the lower it is; name one first that is not.")
    if not all(isinstance(score, int | float) and 0 <= score <= 1 for score in scores):
        raise UserError(
            f"{where} gives no number from 0 to 1 for each row; name acc, exact_match or another one first."
        )
    whole = float(found["results"][task.name][f"{metric},{first}"])
    if abs(sum(scores) / len(scores) - whole) > 1e-9:
        raise UserError(f"{where} is no mean of rows; name acc, exact_match or another one first.")
    rows = []
    for one, score in zip(samples, scores, strict=True):
        failed = model.failed.get((task.name, one["doc_id"]))
        rows.append(Row(one["doc_id"], metric, 0.0 if failed else float(score), str(one["target"]), _said(one), failed))
    return rows


def _said(sample: Mapping[str, Any]) -> str:
    """What the model answered: its text as the task's filter leaves it, or which choice it finds the likeliest."""
    answers = sample["filtered_resps"]
    if isinstance(answers[0], tuple | list):
        likelihoods = [float(one[0]) for one in answers]
        return str(likelihoods.index(max(likelihoods))) if len(likelihoods) > 1 else f"{likelihoods[0]:.6g}"
    return str(answers[0])


@contextmanager
def _quietly() -> Iterator[None]:
    """No bars and no log lines of others' on the terminal, and nobody told that a file was read."""
    logger, bars = logging.getLogger("lm_eval"), datasets.is_progress_bar_enabled()
    before = logger.level
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with (
            patch.object(api_task, "tqdm", partial(tqdm, disable=True)),
            patch.object(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False),
        ):
            yield
    finally:
        logger.setLevel(before)
        if bars:
            datasets.enable_progress_bars()
