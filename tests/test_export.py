"""Students that leave their run: what is written, that it answers as before, and what becomes of it when something fails."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from llm_distill import store
from llm_distill.errors import FellShort, UserError
from llm_distill.export import agreement, gguf_file, merged, road
from llm_distill.export.gguf_types import kinds
from llm_distill.export.student import Student, find
from llm_distill.models import weights
from llm_distill.models.transformers_local import TransformersModel
from llm_distill.trainers.rows import stop_ids
from tests.conftest import ROOT, Desk
from tests.finished import STUDENT, TEACHER, copied, made
from tests.models.conftest import byte_level_tokenizer, fallback_tokenizer, lora, tiny

CACHE = ROOT / "data" / "quickstart" / "cache"
SMOLLM = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA = CACHE / "gemma-3-270m-q4_k_m.gguf"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, request: Any) -> None:
    if not request.node.get_closest_marker("weights"):
        monkeypatch.setenv("LLM_DISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "weights"))


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> store.RunFolder:
    """A finished run; exports go elsewhere."""
    return store.RunFolder(made(tmp_path_factory.getbasetemp(), "lora"))


@pytest.fixture
def whole(tmp_path_factory: pytest.TempPathFactory) -> store.RunFolder:
    return store.RunFolder(made(tmp_path_factory.getbasetemp(), "whole"))


def logits(model: Any, tokenizer: Any) -> Any:
    """(tokens, vocabulary) float32 of a text with a chat turn."""
    import torch

    ids = tokenizer("<|im_start|>user\nitem 7 is good<|im_end|>\n<|im_start|>assistant\n").input_ids
    with torch.no_grad():
        return model.float()(torch.tensor([ids])).logits[0]


def original(run: store.RunFolder) -> Any:
    """The student as it stands in its run."""
    student = find(run)
    adapter = {"adapter": str(student.folder)} if student.is_adapter else {}
    where = student.where if student.is_adapter else (str(student.folder), None, None)
    model = weights.load_model(*where, device="cpu", **adapter)
    return (model.merge_and_unload() if adapter else model), weights.load_tokenizer(*where)


def test_the_student_of_these_tests_has_learnt_its_task(run: store.RunFolder, whole: store.RunFolder) -> None:
    for folder in (run, whole):
        arms = json.loads(folder.file("eval/comparison.json").read_text())["arms"]
        assert arms["student"]["accuracy"]["value"] > 0.9 > arms["base_zero_shot"]["accuracy"]["value"]


@pytest.mark.parametrize("form", ["adapter", "merged", "vllm", "gguf"])
def test_every_form_answers_like_the_student_in_its_run(run: store.RunFolder, tmp_path: Path, form: Any) -> None:
    found = road.export(run, form, tmp_path / "out")
    assert found["agreement"]["n"] >= 10
    assert found["agreement"]["rows"] == "held_out"
    for measure in ("same_answer", "same_first_token", "same_label"):
        assert found["agreement"][measure]["value"] == 1
        assert 0.6 < found["agreement"][measure]["low"] < 1
    assert found["agreement"]["logprob_difference"] < (1e-2 if form == "gguf" else 1e-5)
    assert found["agreement"]["differing"] == []
    written = json.loads((tmp_path / "out" / "export.json").read_text())
    assert written["agreement"] == found["agreement"]
    assert {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()} == {
        *written["files"], "README.md", "DATA_CARD.md", "export.json",
    }  # fmt: skip
    assert all(store.digest(tmp_path / "out" / name) == made for name, made in written["files"].items())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_merged_weights_are_the_base_with_its_adapter(run: store.RunFolder, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    road.export(run, "merged", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    own, own_tokenizer = original(run)
    assert torch.allclose(logits(model, tokenizer), logits(own, own_tokenizer), atol=1e-5)
    base = weights.load_model(*find(run).where, device="cpu")
    assert not torch.allclose(logits(base, tokenizer), logits(own, own_tokenizer), atol=0.1)
    assert tokenizer.chat_template == own_tokenizer.chat_template
    assert not list((tmp_path / "out").glob("adapter*"))
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_merged_weights_are_rounded_once_and_say_to_what(run: store.RunFolder, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    full = load_file(road.export(run, "merged", tmp_path / "full")["out"] + "/model.safetensors")
    found = road.export(run, "merged", tmp_path / "half", numbers="bfloat16")
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert found["dtype"] == json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert full.keys() == half.keys()
    assert all(torch.equal(half[name], full[name].to(torch.bfloat16)) for name in full)


def test_generation_ends_where_training_ended(run: store.RunFolder, tmp_path: Path) -> None:
    """A base whose own EOS is not the end of a turn: the merged folder names both, and the trained one first."""
    base = tmp_path / "base"
    tokenizer = byte_level_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    tiny("llama", base, tokenizer, eos_token_id=[0, 2])
    settings = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(settings | {"temperature": 0.6, "do_sample": True}))
    adapter = lora(base, tmp_path / "adapter")
    other = dataclasses.replace(find(run), folder=adapter, knobs={"model": str(base)})
    told = merged.write_merged(other, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [2, 0]
    assert told["end_token_id"] == 2
    assert not written.keys() & {"temperature", "do_sample"}
    model, read = weights.load_model(str(tmp_path / "out"), device="cpu"), weights.load_tokenizer(str(tmp_path / "out"))
    assert stop_ids(model, read) == {0, 2}


def test_an_adapter_names_its_base_and_no_path_of_this_machine(run: store.RunFolder, tmp_path: Path) -> None:
    road.export(run, "adapter", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    note = json.loads((tmp_path / "out" / "base.json").read_text())
    assert note["digest"] == weights.fingerprint(find(run).where[0])
    model = TransformersModel(model=find(run).where[0], adapter=str(tmp_path / "out"), device="cpu")
    assert model.identity == find(run).model().identity  # it is the same adapter
    other = tiny("llama", tmp_path / "other", byte_level_tokenizer(), initializer_range=0.2)
    with pytest.raises(UserError, match="was trained on base"):
        TransformersModel(model=str(other), adapter=str(tmp_path / "out"), device="cpu").engine()


def test_a_student_trained_whole_is_copied(whole: store.RunFolder, tmp_path: Path) -> None:
    found = road.export(whole, "merged", tmp_path / "out")
    assert found["agreement"]["same_answer"]["value"] == 1
    own, copy = (p / "model.safetensors" for p in (whole.file("student"), tmp_path / "out"))
    assert own.read_bytes() == copy.read_bytes()
    assert not (tmp_path / "out" / "training.json").exists()
    assert road.export(whole, "gguf", tmp_path / "file")["agreement"]["same_answer"]["value"] == 1
    with pytest.raises(UserError, match="trained whole"):
        road.export(whole, "adapter", tmp_path / "adapter")
    with pytest.raises(UserError, match="copied as it is"):
        road.export(whole, "merged", tmp_path / "half", numbers="bfloat16")


def test_nothing_of_an_export_says_where_it_was_made(run: store.RunFolder, tmp_path: Path) -> None:
    here = [str(tmp_path), str(run.path.parents[3]), os.environ["LLM_DISTILL_CACHE"]]
    for form in ("adapter", "merged", "vllm", "gguf"):
        out = Path(road.export(run, form, tmp_path / form)["out"])
        for file in out.rglob("*"):
            if file.is_file():
                assert not [place for place in here if place.encode() in file.read_bytes()], file


@pytest.mark.parametrize("kind", ["run", "whole"])
def test_vllm_finds_how_pictures_would_be_read(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 3 from 4B on is of a family that reads some, and vLLM does not start without."""
    run = request.getfixturevalue(kind)
    base = shutil.copytree(find(run).where[0], tmp_path / "base")
    (base / "preprocessor_config.json").write_text("{}")
    monkeypatch.setattr(Student, "where", property(lambda _self: (str(base), None, None)))
    road.export(run, "vllm", tmp_path / "out")
    assert (tmp_path / "out" / "preprocessor_config.json").read_text() == "{}"


def test_a_vllm_folder_serves_on_loopback_alone(run: store.RunFolder, tmp_path: Path) -> None:
    road.export(run, "vllm", tmp_path / "out")
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "vllm"
    fake.write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    fake.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PORT": "8123"}
    said = subprocess.run(
        [tmp_path / "out" / "serve.sh", "--seed", "a b"], env=env, capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines() == [
        "serve", str(tmp_path / "out"), "--host", "127.0.0.1", "--port", "8123", "--served-model-name", "job",
        "--generation-config", "vllm", "--seed", "a b",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_is_read_back_as_the_model_it_was(tmp_path: Path, kind: str, tied: bool) -> None:
    """With biases (qwen2) and norms (qwen3) that are not at their initial values, and more rows than tokens."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = byte_level_tokenizer()
    if kind == "qwen2":
        from tokenizers import Regex, pre_tokenizers

        from llm_distill.export.gguf_vocabulary import _SPLITS

        split = next(pattern for pattern, name in _SPLITS.items() if name == "qwen2")
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
    more = {"vocab_size": len(tokenizer) + 5, "tie_word_embeddings": tied}
    folder = tiny(kind, tmp_path / "model", tokenizer, **(more | {"head_dim": 128} if kind == "qwen3" else more))
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.rand_like(parameter))
    model.generation_config.eos_token_id = [2, 0]
    model.save_pretrained(folder)
    assert AutoConfig.from_pretrained(folder).tie_word_embeddings == tied
    gguf_file.write(folder, tmp_path / "m.gguf", "f16", "m")
    read, again = (
        weights.load_model(str(tmp_path / "m.gguf"), device="cpu"),
        weights.load_tokenizer(str(tmp_path / "m.gguf")),
    )
    expected = {
        name: tensor.half().float() if tensor.dim() > 1 else tensor for name, tensor in model.state_dict().items()
    }
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read.state_dict().items())
    model.load_state_dict(expected)
    assert torch.allclose(logits(read, again), logits(model, tokenizer), atol=1e-4)
    assert again.chat_template == tokenizer.chat_template
    assert stop_ids(read, again) == {0, 2}
    for text in ("item 2024 is good", "  Ça va 日本\n\n", "<|im_start|>user\nx<|im_end|>"):
        assert again(text).input_ids == tokenizer(text).input_ids


def test_q8_0_and_q4_k_m_lose_what_they_should(tmp_path: Path) -> None:
    """Rows of 256 get K-quants. The errors are those of 8 and of about 4.5 bits; a wrong layout of blocks has others."""
    import torch

    folder = tiny("llama", tmp_path / "m", byte_level_tokenizer(), hidden_size=256, intermediate_size=512, head_dim=64)
    model = weights.load_model(str(folder), device="cpu")
    for quant, most, types in (("q8_0", 0.01, {"Q8_0"}), ("q4_k_m", 0.08, {"Q4_K", "Q6_K"})):
        counted = gguf_file.write(folder, tmp_path / f"{quant}.gguf", quant, "m")
        assert counted.keys() - {"F32"} == types
        read = weights.load_model(str(tmp_path / f"{quant}.gguf"), device="cpu").state_dict()
        for name, tensor in model.state_dict().items():
            error = float((read[name] - tensor).norm() / tensor.norm())
            assert error < most if tensor.dim() > 1 else torch.equal(read[name], tensor), name
            assert tensor.dim() == 1 or error > most / 20, name


def test_what_llama_cpp_knows_and_this_does_not_names_its_tool(tmp_path: Path) -> None:
    gemma = tiny("gemma3_text", tmp_path / "gemma", fallback_tokenizer(), sliding_window=12)
    scaled = tiny(
        "llama", tmp_path / "scaled", byte_level_tokenizer(),
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    )  # fmt: skip
    biased = tiny("llama", tmp_path / "biased", byte_level_tokenizer(), attention_bias=True)
    spm = tiny("llama", tmp_path / "spm", fallback_tokenizer())
    for folder, why in ((gemma, "gemma3_text"), (scaled, "linear"), (biased, "bias"), (spm, "byte fallback")):
        with pytest.raises(UserError, match=why) as error:
            gguf_file.write(folder, tmp_path / "m.gguf", "f16", "m")
        assert "convert_hf_to_gguf.py" in str(error.value)


def test_without_its_quantiser_q4_k_m_names_the_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_distill.export.gguf_types.find_spec", lambda _name: None)
    with pytest.raises(UserError, match="llama-quantize"):
        kinds("q4_k_m", {"token_embd.weight": (4, 256)}, 1)
    assert kinds("q8_0", {"token_embd.weight": (4, 256)}, 1).of == {"token_embd.weight": "Q8_0"}


def test_an_export_that_answers_otherwise_is_not_published(
    run: store.RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of another model under the right names: the check must see it, and leave nothing."""
    import torch

    real = merged.write_merged

    def broken(student: Any, out: Path, numbers: str = "auto") -> dict[str, Any]:
        from safetensors.torch import load_file, save_file

        told = real(student, out, numbers)
        torch.manual_seed(1)
        tensors = {k: torch.randn_like(v) * v.std() for k, v in load_file(out / "model.safetensors").items()}
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        return told

    monkeypatch.setattr(road, "write_merged", broken)
    with pytest.raises(FellShort, match=r"begins another answer for \d+ of \d+ rows.*fault of the export"):
        road.export(run, "merged", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_export_with_another_tokenizer_is_not_published(
    run: store.RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = merged.write_merged

    def broken(student: Any, out: Path, numbers: str = "auto") -> dict[str, Any]:
        told = real(student, out, numbers)
        read = json.loads((out / "tokenizer.json").read_text())
        read["model"]["merges"] = read["model"]["merges"][:20]
        (out / "tokenizer.json").write_text(json.dumps(read))
        return told

    monkeypatch.setattr(road, "write_merged", broken)
    with pytest.raises(UserError, match="as other tokens than the student's own"):
        road.export(run, "merged", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_differing_rows_are_counted_and_told(run: store.RunFolder, tmp_path: Path) -> None:
    """Against the untrained base, whose answers are others; two rows are made equal by hand."""
    student = find(run)
    said = agreement.original(student)
    with pytest.raises(FellShort):
        agreement.compare(student, said, student.model(adapter=None), lossless=False)
    changed = [
        msgspec.structs.replace(a, text=a.text + "!") if i < 3 else a for i, a in enumerate(said.answers)
    ]  # the original's own words, as if they had ended otherwise
    found = agreement.compare(student, dataclasses.replace(said, answers=changed), student.model(), lossless=True)
    n = len(said.answers)
    assert found["same_answer"]["value"] == pytest.approx((n - 3) / n)
    assert found["same_first_token"]["value"] == 1
    assert [row["row_id"] for row in found["differing"]] == [p.row_id for p in said.prompts[:3]]
    assert found["differing"][0]["original"] == found["differing"][0]["exported"] + "!"


def test_an_earlier_export_is_replaced_and_nothing_else(
    run: store.RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    road.export(run, "adapter", out)
    (out / "stale.txt").write_text("of the first export")
    road.export(run, "merged", out)
    assert (out / "config.json").exists()
    assert not (out / "stale.txt").exists()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="something else is there"):
        road.export(run, "adapter", theirs)
    assert (theirs / "thesis.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="--out"):
            road.export(run, "adapter", place)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match=r"--out \.: .*name a folder"):
        road.export(run, "adapter", Path())


@pytest.mark.parametrize("number", [errno.ENOSPC, None])
def test_a_full_disk_leaves_the_earlier_export_alone(
    run: store.RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    """As the system says it, and as numpy does, whose error has no number."""
    out = tmp_path / "out"
    before = road.export(run, "adapter", out)
    full = OSError(number, "No space left on device") if number else OSError("4096 requested and 12 written")

    def fail(*_: Any) -> None:
        raise full

    monkeypatch.setattr(gguf_file, "write", fail)
    with pytest.raises(OSError, match="No space left") as error:
        road.export(run, "gguf", out)
    assert error.value.errno == errno.ENOSPC
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert road.read(out)["files"] == before["files"]


def test_safetensors_full_disk_is_an_oserror(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    with pytest.raises(OSError, match="No space left") as error, merged.full_disk_is_an_oserror(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(SafetensorError), merged.full_disk_is_an_oserror(tmp_path):
        raise SafetensorError("Error while deserializing header")


def test_a_student_that_was_touched_or_never_trained_is_refused(tmp_path_factory: Any, tmp_path: Path) -> None:
    run = copied(tmp_path_factory.getbasetemp(), "lora", tmp_path / "copy")
    (run / "student" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="--from train"):
        road.export(store.RunFolder(run), "merged", tmp_path / "out")
    record = json.loads((run / "run.json").read_text())
    del record["stages"]["train"]
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="no trained student"):
        road.export(store.RunFolder(run), "merged", tmp_path / "out")


def test_the_command_line_prints_and_keeps_the_agreement(tmp_path_factory: Any, tmp_path: Path) -> None:
    run = copied(tmp_path_factory.getbasetemp(), "lora", tmp_path)
    desk = Desk(tmp_path)
    said = desk.llm_distill("export", "job", "--to", "gguf", "--quant", "q8_0")
    assert "the same answer as the student in its run, on" in said
    assert "(see README.md)" in said
    assert (run / "exports" / "gguf-q8_0" / "job-q8_0.gguf").is_file()
    assert (run / "exports" / "gguf-q8_0" / "job-q8_0.gguf").stat().st_size < 200_000
    assert "--quant" in desk.llm_distill("export", "job", "--to", "merged", "--quant", "q8_0", code=2)
    assert "Did you mean 'merged'" in desk.llm_distill("export", "job", "--to", "merge", code=2)


def test_a_student_of_another_recipes_student_names_it_as_its_base(tmp_path_factory: Any, tmp_path: Path) -> None:
    copied(tmp_path_factory.getbasetemp(), "whole", tmp_path)
    desk = Desk(tmp_path)
    models = {"teacher": TEACHER, "student": {"transformers": STUDENT | {"model": "run:job"}}}
    run = store.RunFolder(Path(desk.here(desk.recipe("next", models=models, train={"sft": {"epochs": 1}}))["run"]))
    found = road.export(run, "adapter", tmp_path / "out")
    assert found["agreement"]["same_answer"]["value"] == 1
    assert found["agreement"]["rows"] == "prompts"  # it held none out, and says so
    assert "none were held out" in (tmp_path / "out" / "README.md").read_text("utf-8")
    assert json.loads((tmp_path / "out" / "base.json").read_text())["reference"] == "run:job"
    assert found["licence"] == "apache-2.0"


@pytest.mark.weights
@pytest.mark.timeout(600)
def test_a_real_student_leaves_as_a_file_that_llama_cpp_runs(desk: Desk) -> None:
    """Trained, exported with 16 and 8 bits, read back, and run by llama.cpp itself: the same tokens in, the same answers out."""
    if not SMOLLM.exists():
        pytest.skip("needs `make setup`")
    rows = [json.loads(line) for line in (CACHE / "prompts.jsonl").read_text("utf-8").splitlines()[:14]]
    desk.seeds(rows)
    student = {"model": str(SMOLLM), "device": "cpu", "terms": "apache-2.0"}
    teacher = {"rules": {"e. ": "positive"}, "default": "negative"}
    recipe = desk.recipe(
        models={"teacher": {"scripted": teacher}, "student": {"transformers": student}},
        held_out={"share": 0.4}, train={"sft": {"epochs": 1}}, answers={"max_tokens": 12},
    )  # fmt: skip
    run = store.RunFolder(Path(desk.here(recipe)["run"]))
    small = road.export(run, "gguf", desk.folder / "q8_0", quant="q8_0")
    large = road.export(run, "gguf", desk.folder / "f16")
    for found, least in ((small, 0.7), (large, 1)):
        assert found["agreement"]["same_answer"]["value"] >= least
        assert found["agreement"]["same_first_token"]["value"] >= 0.9
    assert 0 < large["agreement"]["logprob_difference"] < small["agreement"]["logprob_difference"] < 0.1
    pytest.importorskip("xllamacpp")
    said = agreement.original(find(run))
    turns = [[{"role": m.role, "content": m.content} for m in request.messages] for request in said.requests]
    done = subprocess.run(
        [sys.executable, "-c", LLAMA_CPP, str(desk.folder / "f16" / "job-f16.gguf")],
        input=json.dumps(turns), capture_output=True, text=True, check=True,
    )  # fmt: skip
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert [answer["tokens"] for answer in theirs] == [len(ids) for ids in said.ids]
    assert [answer["text"] for answer in theirs] == [answer.text for answer in said.answers]
    first = [float(answer.logprobs.logprobs[0]) for answer in said.answers if answer.logprobs]
    np.testing.assert_allclose([answer["logprob"] for answer in theirs], first, atol=0.02)


#: In a process of its own: it is another's native code.
LLAMA_CPP = """
import json, sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.verbosity = sys.argv[1], 2048, 1, False, -1
server, found = xllamacpp.Server(params), []
for turns in json.load(sys.stdin):
    body = {"messages": turns, "temperature": 0, "max_tokens": 12, "logprobs": True, "top_logprobs": 1}
    answer = server.handle_chat_completions(body)
    choice = answer["choices"][0]
    first = choice["logprobs"]["content"][0]["logprob"]
    found.append({"text": choice["message"]["content"], "tokens": answer["usage"]["prompt_tokens"], "logprob": first})
print(json.dumps(found))
"""


@pytest.mark.weights
@pytest.mark.timeout(300)
def test_files_are_as_llama_cpp_writes_them(tmp_path: Path) -> None:
    """The real student's own file and the real teacher's were written by llama.cpp: the same header, tensors and types."""
    if not SMOLLM.exists():
        pytest.skip("needs `make setup`")
    import gguf
    from gguf.quants import dequantize

    gguf_file.write(Path(weights.prepare(str(SMOLLM))), tmp_path / "f16.gguf", "f16", "smollm")
    theirs, ours = gguf.GGUFReader(SMOLLM), gguf.GGUFReader(tmp_path / "f16.gguf")
    said = {key for key in theirs.fields if not key.startswith(("GGUF.", "general."))}
    more = {"llama.attention.key_length", "llama.attention.value_length"}  # as later versions of it write them
    assert {key for key in ours.fields if not key.startswith(("GGUF.", "general."))} == said | more
    for key in said:
        assert ours.fields[key].contents() == theirs.fields[key].contents(), key
    values = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in ours.tensors}
    for tensor in theirs.tensors:
        np.testing.assert_allclose(
            values.pop(tensor.name), dequantize(tensor.data, tensor.tensor_type), atol=1e-4, rtol=1e-3
        )
    assert not values
    teacher = gguf.GGUFReader(GEMMA)
    shapes = {t.name: tuple(int(d) for d in reversed(t.shape)) for t in teacher.tensors}
    assert kinds("q4_k_m", shapes, 18).of == {t.name: t.tensor_type.name for t in teacher.tensors}
