from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from llm_distill.errors import UserError
from llm_distill.models import gguf, hub, weights
from tests.models.conftest import TEMPLATE, byte_level_tokenizer, lora, tiny


def write_gguf(path: Path, *, pre: str = "smollm", eot: int | None = 0) -> Path:
    """A tiny Llama of random numbers, as llama.cpp writes it."""
    import numpy as np
    from gguf import GGUFWriter

    tokenizer = byte_level_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    pieces = sorted(state["vocab"], key=state["vocab"].__getitem__)
    out = GGUFWriter(path, "llama")
    out.add_name("tiny")
    out.add_context_length(256)
    out.add_embedding_length(32)
    out.add_block_count(2)
    out.add_feed_forward_length(64)
    out.add_head_count(4)
    out.add_head_count_kv(2)
    out.add_rope_dimension_count(8)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(len(pieces))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list(pieces)
    out.add_token_types([3] * 3 + [1] * (len(pieces) - 3))
    out.add_token_merges([" ".join(pair) for pair in state["merges"]])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_pad_token_id(2)
    if eot is not None:
        out.add_eot_token_id(eot)
    out.add_add_bos_token(False)
    out.add_chat_template(TEMPLATE)
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (len(pieces), 32), "output_norm": (32,)}
    for block in range(2):
        names = {"attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32)}
        names |= {"attn_output": (32, 32), "ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
        shapes |= {f"blk.{block}.{name}": shape for name, shape in names.items()}
    for name, shape in shapes.items():
        out.add_tensor(f"{name}.weight", rng.normal(0, 0.3, shape).astype(np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_gguf_becomes_a_folder_that_says_the_same(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    file = write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 77}')  # of another model in the same folder
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "other", "eos_token": "good"}')
    place = Path(weights.prepare(str(file), sha256(file).upper()))
    assert place.parent == tmp_path / "cache" / "weights"
    assert (place / "model.safetensors").is_file()
    model, tokenizer = weights.load_model(str(file)), weights.load_tokenizer(str(file))
    ids = torch.tensor([tokenizer("the film was good")["input_ids"]])
    packed = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    assert torch.equal(model(ids).logits, packed(ids).logits)
    assert model.generation_config.eos_token_id == [2, 0]
    assert tokenizer.chat_template == TEMPLATE
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer("a<|im_end|>")["input_ids"][-1] == 2


@pytest.mark.parametrize(("pre", "pieces"), [("smollm", ["a", "ĠĠ", "2", "0"]), ("gpt-2", ["a", "Ġ", "Ġ", "2", "0"])])
def test_a_vocabulary_with_single_digits_is_read_as_one(tmp_path: Path, pre: str, pieces: list[str]) -> None:
    """A run of spaces before a number: one token where digits are split off first, two where they are not."""
    tokenizer = weights.load_tokenizer(str(write_gguf(tmp_path / "tiny.gguf", pre=pre)))
    found = tokenizer.tokenize("a  20")
    assert "".join(found) == "aĠĠ20"
    assert (tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  20")[1][0] == "ĠĠ") == (pieces[1] == "ĠĠ")


def test_a_gguf_is_converted_once_whoever_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Saved:
        def save_pretrained(self, folder: Path, **_: Any) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text("{}")

    reads: list[Path] = []

    def read(path: Path) -> tuple[Saved, Saved]:
        reads.append(path)
        return Saved(), Saved()

    monkeypatch.setattr(gguf, "read", read)
    stale = tmp_path / f"digest-{gguf.CONVERSION}.part"  # a killed process left this
    stale.mkdir()
    (stale / "torn").touch()
    found: list[Path] = []
    here = [
        threading.Thread(target=lambda: found.append(gguf.converted(Path("x"), "digest", tmp_path))) for _ in "abcd"
    ]
    for thread in here:
        thread.start()
    for thread in here:
        thread.join()
    assert len(reads) == 1
    assert len(set(found)) == 1
    assert [path.name for path in found[0].iterdir()] == ["config.json"]
    assert not stale.exists()


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def save_pretrained(self, folder: Path, **_: Any) -> None:
            folder.mkdir(parents=True)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf, "read", lambda _path: (Full(), Full()))
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(UserError, match="No space left on device"):
        weights.prepare(str(file))
    assert not [path for path in (tmp_path / "cache" / "weights").iterdir() if path.is_dir()]


def torn(folder: Path) -> str:
    (folder / "torn.gguf").write_bytes(write_gguf(folder / "whole.gguf").read_bytes()[:3000])
    return str(folder / "torn.gguf")


def other(folder: Path) -> str:
    (folder / "other.gguf").write_bytes(b"not a model" * 100)
    return str(folder / "other.gguf")


def adapter_alone(folder: Path) -> str:
    (folder / "adapter_config.json").write_text("{}")
    return str(folder)


@pytest.mark.parametrize(
    ("reference", "pins", "message"),
    [
        (lambda d: str(d / "none.gguf"), {}, "no such folder or file"),
        (lambda d: str(d / "none"), {}, "no such folder or file"),
        (str, {}, "found no config.json there; name a folder that save_pretrained wrote"),
        (adapter_alone, {}, "this is an adapter: name its base as `model`"),
        (str, {"sha256": "0" * 64}, "`sha256` goes with a .gguf file"),
        (lambda d: str(write_gguf(d / "a.gguf")), {"revision": "main"}, "`revision` goes with a hub id"),
        (
            lambda d: str(write_gguf(d / "a.gguf")),
            {"sha256": "0" * 64},
            f"sha256 is [0-9a-f]{{64}}, expected {'0' * 64}",
        ),
        (torn, {}, "torn.gguf: cannot be loaded"),
        (other, {}, "other.gguf: cannot be loaded"),
    ],
)
def test_a_wrong_reference_is_one_line(
    tmp_path: Path, reference: Callable[[Path], str], pins: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    with pytest.raises(UserError, match=message) as caught:
        weights.prepare(reference(folder), **pins)
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "answers", lambda _endpoint: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for load in (weights.load_model, weights.load_tokenizer):
        with pytest.raises(UserError, match=r"nobody/nothing: not downloaded yet, and .* is out of reach") as caught:
            load("nobody/nothing")
        assert "\n" not in str(caught.value)


def test_what_was_downloaded_earlier_needs_no_hub(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "answers", lambda _endpoint: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copytree(llama, repository / "snapshots" / "abc")
    assert weights.load_tokenizer("org/name").chat_template == TEMPLATE
    assert weights.load_model("org/name", None, "main").config.hidden_size == 32
    with pytest.raises(UserError, match="not downloaded yet"):
        weights.prepare("org/name", revision="other")


def test_weights_that_do_not_fit_their_config(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "wide")
    config = json.loads((llama / "config.json").read_text())
    (tmp_path / "wide" / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    with pytest.raises(UserError, match="wide: cannot be loaded"):
        weights.load_model(str(tmp_path / "wide"))


def test_pickled_weights_are_not_read(llama: Path, tmp_path: Path) -> None:
    import torch

    folder = tmp_path / "pickled"
    shutil.copytree(llama, folder)
    (folder / "model.safetensors").unlink()
    torch.save(weights.load_model(str(llama)).state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled: cannot be loaded"):
        weights.load_model(str(folder))


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"device: 'tpu' is not on this machine; write .*cpu or auto"):
        weights.pick_device("tpu")


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    file = tmp_path / "a.gguf"
    file.write_bytes(b"one")
    before = file.stat()
    first = weights.fingerprint(str(file))
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
        assert weights.fingerprint(str(file)) == first
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same mtime
    assert weights.fingerprint(str(file)) == hashlib.sha256(b"two").hexdigest() != first


def test_identity_changes_with_everything_that_matters(llama: Path, tmp_path: Path) -> None:
    seen = {weights.identity(str(llama)), weights.identity("org/name"), weights.identity("org/name", None, "abc123")}
    for name in ("config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"):
        folder = tmp_path / name
        shutil.copytree(llama, folder)
        (folder / "README.md").write_text("does not matter")
        assert weights.identity(str(folder)) in seen
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
        seen.add(weights.identity(str(folder)))
    assert len(seen) == 7


@pytest.fixture
def adapter(llama: Path, tmp_path: Path) -> Path:
    """A LoRA with an effect, trained (so to speak) on `llama`."""
    return lora(llama, tmp_path / "adapter")


def test_an_adapter_is_put_on_its_base(llama: Path, adapter: Path) -> None:
    import torch

    weights.sign_adapter(str(adapter), str(llama))
    ids = torch.tensor([[5, 6, 7]])
    bare, adapted = weights.load_model(str(llama)), weights.load_model(str(llama), adapter=str(adapter))
    assert not torch.allclose(bare(ids).logits, adapted(ids).logits)
    assert torch.allclose(adapted(ids).logits, adapted.merge_and_unload()(ids).logits, atol=1e-5)
    assert not adapted.training


def test_an_adapter_counts_by_its_content(llama: Path, adapter: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(adapter, moved)
    settings = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "/elsewhere"}))
    with_it = weights.identity(str(llama), adapter=str(adapter))
    assert weights.identity(str(llama), adapter=str(moved)) == with_it != weights.identity(str(llama))
    (moved / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 99}))
    assert weights.identity(str(llama), adapter=str(moved)) != with_it


def test_an_adapter_of_other_weights_is_refused(llama: Path, adapter: Path, tmp_path: Path) -> None:
    others: dict[str, dict[str, Any]] = {"llama": {"num_hidden_layers": 1}, "mistral": {"hidden_size": 64}, "gpt2": {}}
    for kind, more in others.items():
        base = tiny(kind, tmp_path / kind, byte_level_tokenizer(), **more)
        with pytest.raises(UserError, match="was not trained on these weights"):
            weights.load_model(str(base), adapter=str(adapter))
    cousin = tiny("llama", tmp_path / "cousin", byte_level_tokenizer(), tie_word_embeddings=True)
    assert weights.load_model(str(cousin), adapter=str(adapter))  # nothing tells these two apart ...
    weights.sign_adapter(str(adapter), str(llama))
    with pytest.raises(UserError, match=r"was trained on llama\d+ \(\w+\), found \w+; name that base as `model`"):
        weights.load_model(str(cousin), adapter=str(adapter))  # ... but the note of its trainer


def test_a_folder_that_is_no_adapter(llama: Path, adapter: Path) -> None:
    with pytest.raises(UserError, match=r"found no adapter_config.json there"):
        weights.identity(str(llama), adapter=str(llama))
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"found no adapter_model.safetensors there"):
        weights.load_model(str(llama), adapter=str(adapter))


def test_a_tokenizer_comes_from_the_hub_without_weights(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a teacher behind a server, whose weights may not fit this machine."""
    fetched: list[str] = []

    def downloaded(_name: str, _revision: str | None, patterns: Sequence[str]) -> str:
        fetched.extend(patterns)
        return str(llama)

    monkeypatch.setattr(hub, "downloaded", downloaded)
    assert weights.load_tokenizer("org/large").chat_template
    assert not any(fnmatch("model-00001-of-00030.safetensors", pattern) for pattern in fetched)
    assert any(fnmatch("tokenizer.json", pattern) for pattern in fetched)
    weights.load_model("org/large", device="cpu")
    for name in ("model-00001-of-00030.safetensors", "preprocessor_config.json", "processor_config.json"):
        assert any(fnmatch(name, pattern) for pattern in fetched)


def test_what_the_hub_does_not_show_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    class Hidden(RepositoryNotFoundError):
        def __init__(self) -> None:
            OSError.__init__(self, "401 Client Error.\n\nRepository Not Found")

    def refuse(*_: object, **_more: object) -> str:
        raise Hidden

    monkeypatch.setattr(hub, "answers", lambda _endpoint: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=r"org/hidden: .* shows no such model or revision; .*`hf auth login`"):
        weights.load_tokenizer("org/hidden")
