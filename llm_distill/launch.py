"""`llm-distill train RUN`: a run's train stage by itself, in one process or in all that `accelerate launch` starts.

In every one of them the same command runs. They share each batch, so that what is learnt is what one process would learn;
the first of them prints, writes and stamps.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_distill import pipeline, store
from llm_distill.errors import UserError
from llm_distill.ledger import Ledger
from llm_distill.lint_run import bound
from llm_distill.models import weights
from llm_distill.plugs import Plug
from llm_distill.recipe import Plan
from llm_distill.stages import Run, Watch, train_student
from llm_distill.trainers import SHARED, processes
from llm_distill.trainers.hyper import Hyperparameters

#: Gigabytes of weights, and of what training them keeps, that leave a 24 GB GPU room for activations. More is cut up.
_WHOLE_GB = 12
#: Bytes of a parameter: in bfloat16 or float32 under LoRA; in float32 with its gradient and Adam's two moments.
_HALF, _SINGLE, _TRAINED = 2, 4, 16


class _Unwatched:
    def begin(self, run: str) -> None: ...

    def stage(self, name: str, state: str) -> None: ...

    def rows(self, done: int, total: int, numbers: Mapping[str, Any]) -> None: ...

    def say(self, line: str) -> None: ...


def train_run(folder: store.RunFolder, workspace: Path, watch: Watch, ledger_url: str | None = None) -> bool:
    """Bring a run's train stage up to date, in every process that was launched; False where nothing was to do."""
    plan, trainer = bound(folder, workspace)
    if processes.count() > 1:
        _check_shared(plan, trainer, processes.count())
    on_cpu = weights.pick_device(plan.models["student"].knobs.get("device", "auto")).type == "cpu"
    first = processes.first()
    ledger = Ledger(ledger_url or workspace / "ledger.sqlite")
    job = Run(plan, folder, ledger, watch if first else _Unwatched(), may_ask=first)
    try:
        with folder.lock() if first else nullcontext(), processes.joined(on_cpu=on_cpu):
            for stage in ("prompts", "answers", "filter"):
                if not pipeline.holds(job, stage):
                    raise UserError(
                        f"{folder.path}: its {stage} stage is not up to date; run the recipe with `--until filter`."
                    )
            # All of them look before the first one changes anything.
            if not processes.agreed(not pipeline.holds(job, "train"))[0]:
                return False
            pipeline.STAGES["train"].gate(job)
            if first:
                pipeline.do(job, "train")
            else:
                train_student(job)
    finally:
        job.make_room()
        ledger.close()
    return True


def _check_shared(plan: Plan, trainer: Plug, world: int) -> Hyperparameters:
    """The trainer's hyperparameters; UserError where so many processes cannot train together."""
    hyper, device = trainer.knobs.get("hyper"), plan.models["student"].knobs.get("device", "auto")
    if trainer.spec.name not in SHARED or not isinstance(hyper, Hyperparameters):
        raise UserError(
            f"{trainer.spec.where}: it trains in one process, as `llm-distill run` does; several can share "
            f"{' and '.join(SHARED)}. Launch one, or name one of these in the recipe."
        )
    if device not in ("auto", "cuda", "cpu"):
        raise UserError(
            f"models.student.device is {device}, which {world} processes cannot share; set it to cuda, cpu or auto."
        )
    single = [name for name in ("validation_share", "load_in") if getattr(hyper, name)]
    if single and world > 1:
        raise UserError(f"{trainer.spec.where}.{single[0]}: it is for one process, and there are {world}; remove it.")
    if hyper.batch_size % world:
        raise UserError(
            f"{trainer.spec.where}.batch_size is {hyper.batch_size}, what all processes read together, which {world} cannot "
            f"share evenly; set it to a multiple of {world}."
        )
    return hyper


@dataclass(frozen=True)
class Launch:
    """How to train a run in several processes. spread: what each GPU holds, and why; config: accelerate's, as YAML; commands:
    one for each machine.
    """

    spread: str
    config: str
    commands: tuple[str, ...]


def launch_of(folder: store.RunFolder, workspace: Path, gpus: int, nodes: int, config: Path) -> Launch:
    """The commands and the config, which is to lie at `config`. UserError where this run cannot be trained so."""
    plan, trainer = bound(folder, workspace)
    world = gpus * nodes
    hyper = _check_shared(plan, trainer, world)
    on_cpu = plan.models["student"].knobs.get("device") == "cpu"
    large = None if on_cpu or world == 1 else _too_large(plan, hyper)
    words = ["accelerate", "launch", "--config_file", str(config)]
    more = ["-m", "llm_distill.cli", "train", str(folder.path.resolve()), "--workspace", str(workspace.resolve())]
    commands = []
    for node in range(nodes):
        place = ["--machine_rank", str(node), "--main_process_ip", "FIRST_MACHINE"] if nodes > 1 else []
        commands.append(shlex.join([*words, *place, *more]))
    spread = large or f"each {'process' if on_cpu else 'GPU'} holds the whole student"
    return Launch(spread, accelerate_config(world, nodes, sharded=large is not None, on_cpu=on_cpu), tuple(commands))


def _too_large(plan: Plan, hyper: Hyperparameters) -> str | None:
    """Why one GPU should not hold the student by itself, from its config alone; None where it may."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    knobs = plan.models["student"].knobs
    place = weights.prepare(knobs["model"], knobs.get("sha256"), knobs.get("revision"))
    config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    parameters = sum(p.numel() for p in model.parameters())
    frozen = _SINGLE if hyper.dtype == "float32" else _HALF
    gigabytes = parameters * (frozen if hyper.lora_rank else _TRAINED) / 1e9
    if gigabytes <= _WHOLE_GB:
        return None
    what = "weights" if hyper.lora_rank else "weights, gradients and optimizer"
    return (
        f"the student is cut up between GPUs (FSDP): with {parameters / 1e9:.1f} billion parameters its {what} would take "
        f"{gigabytes:.0f} GB on each"
    )


def accelerate_config(world: int, nodes: int, *, sharded: bool, on_cpu: bool) -> str:
    """Accelerate's config. Precision is the recipe's to say, so it says none."""
    lines = {
        "compute_environment": "LOCAL_MACHINE",
        # MULTI_CPU would be launched by mpirun; with use_cpu this is as well several processes on CPUs, over gloo.
        "distributed_type": "FSDP" if sharded else "MULTI_GPU" if world > 1 else "'NO'",
        "use_cpu": str(on_cpu).lower(),
        "mixed_precision": "'no'",
        "num_machines": nodes,
        "num_processes": world,
        "machine_rank": 0,
        "main_process_port": 29500 if nodes > 1 else 0,  # any that is free
        "rdzv_backend": "static",
        "same_network": "true",
        "dynamo_backend": "'no'",
    }
    text = "".join(f"{key}: {value}\n" for key, value in lines.items())
    if not sharded:
        return text
    inner = {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": "true",
        "fsdp_state_dict_type": "FULL_STATE_DICT",  # what is published is whole
        "fsdp_cpu_ram_efficient_loading": "false",  # every process reads the weights, straight to its GPU
        "fsdp_offload_params": "false",
        "fsdp_activation_checkpointing": "false",  # train's own knob is what says so
    }
    return text + "fsdp_config:\n" + "".join(f"  {key}: {value}\n" for key, value in inner.items())
