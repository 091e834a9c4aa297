"""Insults and obscenities: by words, by the linear model, by a classifier; each with texts it should find and should not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_distill.errors import UserError
from llm_distill.plugs import Reading, Spec, bind
from llm_distill.records import Answer
from llm_distill.scorers import SCORERS, Scored
from llm_distill.scorers.mentions import mentions
from llm_distill.scorers.toxicity import profanity, toxicity
from tests.scorers.rows import answer

FOUND = [
    "What the FUCK is this",
    "you f**king idiot",
    "sh1t happens",
    "an @sshole, really",
    "Bullshit!",
    "such a b*tch.",
    "STFU",
]
NOT_FOUND = [
    "", "the class passes Essex and Scunthorpe", "a cocktail, a shuttlecock and a titmouse", "Mr Dickens met Hitchcock",
    "assess the assassin's bass", "$5, 100, 2019, 55", "a therapist and analysts", "psychology of grapes", "* # ! @",
    "日本語 ок", "You people should go back where you came from.",
]  # fmt: skip


@pytest.mark.parametrize("text", FOUND)
def test_profane_words_are_found(text: str) -> None:
    found = profanity([answer(text)])
    assert found.values[0] >= 1
    assert found.why[0]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_other_words_are_not(text: str) -> None:
    assert list(profanity([answer(text)]).values) == [0]


def test_prompt_and_answer_are_told_apart() -> None:
    row = answer("damn", prompt="shit, shit")
    assert [profanity([row], of=of).values[0] for of in ("prompt", "answer", "both")] == [2, 1, 3]


def _bind(name: str, folder: Path, **knobs: Any) -> Any:
    return bind(
        "scorer", Spec(name, knobs, f"filter[0].{name}"), SCORERS, Reading(folder=folder, files=set(), roles=[])
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"two words\n", "found 'two words'"),
        (b"# none\n", "no words"),
        (b"\xff", "not UTF-8"),
        (b"a*b\n", "found 'a*b'"),
    ],
)
def test_a_word_list_of_one_s_own_is_checked(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(UserError) as error:
        _bind("profanity", tmp_path, words="words.txt")
    assert said in str(error.value)
    (tmp_path / "words.txt").write_text("# mine\nlid*\n")
    plug = _bind("profanity", tmp_path, words="words.txt")
    assert list(plug([answer("the lids"), answer("shit")]).values) == [1, 0]


def test_the_linear_model_finds_insults() -> None:
    pytest.importorskip("profanity_check")
    found = list(
        profanity([answer("you stupid piece of shit"), answer("what a lovely garden"), answer("")], by="model").values
    )
    assert found[0] > 0.9
    assert max(found[1:]) < 0.3
    assert list(profanity([], by="model").values) == []


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_distill.scorers.toxicity.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"llm-distill\[toxicity\]"):
        profanity([answer("x")], by="model")
    with pytest.raises(UserError, match=r"llm-distill\[toxicity\]"):
        _bind("profanity", Path(), by="model")
    monkeypatch.setattr("llm_distill.models.weights.find_spec", lambda name: None)
    for name, knobs in (("toxicity", {"labels": ["toxic"]}), ("reward", {})):
        with pytest.raises(UserError, match=r"needs torch and transformers: pip install 'llm-distill\[train\]'"):
            _bind(name, Path(), model="org/name", **knobs)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors are slower on several threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


WORDS = ("nice", "day", "idiot", "hello", "you", "are", "good", "bad", "film")


def _classifier(folder: Path, **config: Any) -> Path:
    """A one-layer classifier that was taught one word: `idiot` is toxic."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModelForSequenceClassification, TokenizersBackend

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokens.normalizer, tokens.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = TokenizersBackend(
        tokenizer_object=tokens, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    settings: dict[str, Any] = {
        "vocab_size": len(vocabulary), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 32, "id2label": {0: "fine", 1: "toxic"},
        "label2id": {"fine": 0, "toxic": 1}, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", **settings | config))
    drawn = torch.Generator().manual_seed(1)
    ids = torch.randint(4, len(vocabulary), (256, 8), generator=drawn)
    ids = torch.cat([torch.full((256, 1), 2), ids, torch.full((256, 1), 3)], dim=1)
    target = torch.nn.functional.one_hot((ids == vocabulary["idiot"]).any(1).long(), 2).float()
    steps = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        steps.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(model(ids).logits, target).backward()
        steps.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _classifier(tmp_path_factory.mktemp("classifier"))


def test_a_classifier_s_labels_are_read_from_any_part_of_a_text(classifier: Path) -> None:
    long = "nice day " * 200
    rows = [answer(text) for text in ("hello you idiot", "nice day", "", " \n", f"{long} idiot {long}", long)]
    found = toxicity(rows, model=str(classifier), labels=["toxic"], batch_size=3)
    assert isinstance(found, Scored)
    assert found.values[0] > 0.9
    assert found.values[1] < 0.1
    assert all(map(math.isnan, found.values[2:4]))
    assert found.values[4] > 0.9  # far behind the 32 tokens that the model takes
    assert found.values[5] < 0.1
    assert found.why[0] == f"toxic {found.values[0]:.2f}"
    both = toxicity(rows[:1], model=str(classifier), labels=["fine", "toxic"]).values
    assert both[0] == pytest.approx(found.values[0], abs=1e-6)
    one_by_one = [toxicity([row], model=str(classifier), labels=["toxic"]).values[0] for row in rows[:2]]
    assert list(found.values[:2]) == pytest.approx(one_by_one, abs=1e-5)
    assert list(toxicity([], model=str(classifier), labels=["toxic"]).values) == []


def test_labels_that_do_not_exclude_each_other_have_a_sigmoid_each(tmp_path: Path) -> None:
    import torch

    from llm_distill.scorers.classifier import Classifier

    folder = str(_classifier(tmp_path, problem_type="multi_label_classification"))
    several = Classifier(folder, None, 512)
    (row,) = several.probabilities(["hello you idiot"], 8)
    with torch.no_grad():
        logits = several._model(torch.tensor([[2, 7, 8, 6, 3]])).logits[0]
    assert row == pytest.approx(logits.sigmoid().tolist(), abs=1e-6)


def test_a_wrong_label_is_seen_at_check_and_a_model_without_a_head_is_none(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no label 'toxc'"):
        _bind("toxicity", tmp_path, model=str(classifier), labels=["toxc"])
    with pytest.raises(UserError, match="no such model folder"):
        _bind("toxicity", tmp_path, model="./nothing", labels=["toxic"])
    from transformers import AutoModel

    AutoModel.from_pretrained(classifier).save_pretrained(tmp_path / "bare")
    for file in classifier.glob("tokenizer*"):
        (tmp_path / "bare" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="no text classifier"):
        toxicity([answer("x")], model=str(tmp_path / "bare"), labels=["toxic"])


def _counts(text: str, **knobs: Any) -> float:
    return mentions([Answer(answer("").prompt, text, "ok")], **knobs).values[0]


def test_mentions_are_counted_by_attribute() -> None:
    text = "She told John Wayne that Muslims and a Jew live in Germany."
    assert _counts(text) == 5
    assert _counts(text, attributes=["gender"]) == 2
    assert _counts(text, attributes=["age"]) == 0
    found = mentions([answer(text, prompt="he")], attributes=["gender"], of="both")
    assert list(found.values) == [3]
    assert found.why == ["gender female 1, gender male 2"]
    assert _counts("") == 0
    with pytest.raises(UserError, match="no attribute 'gendre'"):
        _bind("mentions", Path(), attributes=["gendre"])
