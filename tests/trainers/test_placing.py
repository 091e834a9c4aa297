"""A teacher's distribution at each token that a student learns: by ids, by bytes and by labels (PITFALLS 12, 13, 14)."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_distill.logprob_writer import writing
from llm_distill.models import weights
from llm_distill.models.transformers_local import TransformersModel
from llm_distill.models.vocabulary import Vocabulary
from llm_distill.records import Message, Request, Sample, Sampling
from llm_distill.trainers.alignment import teach
from llm_distill.trainers.heard import hear
from llm_distill.trainers.placing import Told, Why, by_bytes, by_ids
from llm_distill.trainers.rows import Row, make_rows
from llm_distill.trainers.student_tokens import StudentTokens, bridge, same_vocabulary
from tests.models.conftest import blank_before, byte_level_tokenizer, fallback_tokenizer
from tests.trainers.told import Case, Said, known, sample

CACHE = Path(__file__).parents[2] / "data" / "quickstart" / "cache"
FILES = {"smollm": CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma": CACHE / "gemma-3-270m-q4_k_m.gguf"}
TINY = {"byte_level": byte_level_tokenizer, "fallback": fallback_tokenizer}
REAL = [
    pytest.param(name, marks=[pytest.mark.weights, pytest.mark.skipif(not file.is_file(), reason="needs prepare.py")])
    for name, file in FILES.items()
]
KINDS = [*TINY, *REAL]
PIECES = [
    "the film", " was good", "bad", " 2024", "201", "7", "日本語", "の", "😀", "👩‍👩‍👧", " Ça", "é", "\n\n", "  ", "\t",
    "வணக்கம்", " Київ", "'t", "un", "believ", "able", " ", "!", "\x00", "</s>", "<0x41>", "e\u0301",
]  # fmt: skip
PARTS = st.one_of(st.sampled_from(PIECES), st.text("aé日😀1 \n", max_size=4))
TEXTS = st.lists(PARTS, min_size=1, max_size=7).map("".join).filter(bool)


@functools.cache
def tokenizer(kind: str) -> Any:
    return TINY[kind]() if kind in TINY else weights.load_tokenizer(str(FILES[kind]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("told")


def masses(draw: st.DrawFn, tokens: Sequence[Any]) -> dict[Any, float]:
    """A distribution over tokens and something unlisted."""
    parts = draw(st.lists(st.integers(1, 50), min_size=len(tokens), max_size=len(tokens)))
    whole = sum(parts) + draw(st.integers(0, 30))
    return {token: part / whole for token, part in zip(tokens, parts, strict=True)}


@st.composite
def spoken(draw: st.DrawFn) -> tuple[str, Said]:
    """A text, cut anywhere into a teacher's tokens, with alternatives that share bytes with it, are cut anywhere, or are any."""
    text = draw(TEXTS)
    data = text.encode()
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=8)) & set(range(1, len(data))))
    tokens = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    tops, begin = [], 0
    for token in [*tokens, b""]:
        rest, grown = data[begin:], [token + piece.encode() for piece in PIECES]
        pieces = [rest[:size] for size in range(1, len(rest) + 1)]
        any_ = st.one_of(st.sampled_from([*pieces, *grown, *map(str.encode, PIECES)]), st.binary(max_size=3))
        tops.append(masses(draw, list(dict.fromkeys([token, *draw(st.lists(any_, max_size=4))]))))
        begin += len(token)
    whole = draw(st.booleans())  # whether the teacher shows its end
    return text, Said([*tokens, b""], tops) if whole else Said(tokens, tops[:-1])


def spans(tokens: Sequence[bytes]) -> list[tuple[int, int]]:
    ends = np.cumsum([len(token) for token in tokens]).tolist()
    return list(zip([0, *ends], ends, strict=False))


def by_definition(
    case: Case, told: Told, spelt: dict[int, bytes], row: Row
) -> list[tuple[dict[int, float], float] | None]:
    """At each position: the mass of each token of the student, and the undefined mass. Slow, and without stop strings."""
    chosen = [told.ids[c] for c in told.chosen]
    teacher = spans([spelt[int(number)] for number in chosen])
    logprobs = [float(told.logprobs[c]) for c in told.chosen]
    ended = teacher[-1][0] == teacher[-1][1]
    trained = row.input_ids[row.prompt_tokens :]
    made: list[tuple[dict[int, float], float] | None] = []
    own = spans([*map(case.student.vocabulary.token, trained[:-1]), b""])
    for token, (begin, end) in zip(trained, own, strict=True):
        last = token == trained[-1] and begin == len(told.text)
        here = [i for i, (a, b) in enumerate(teacher) if a == begin and (a < b or last)]
        if not here:
            made.append(None)
            continue
        (at,) = here
        until = next(i for i, (_, b) in enumerate(teacher) if i >= at and b >= end)
        found, undefined = {token: math.exp(sum(logprobs[at : until + 1]))}, 0.0
        undefined += math.exp(logprobs[at]) - found[token]
        for place in range(told.offsets[at], told.offsets[at + 1]):
            if place == told.chosen[at]:
                continue
            alternative, mass = spelt[int(told.ids[place])], math.exp(float(told.logprobs[place]))
            ids = case.student.ids(alternative)
            if not alternative:
                ids = (trained[-1],) if ended else None
            if ids is None:
                undefined += mass
            else:
                found[ids[0]] = found.get(ids[0], 0.0) + mass
        made.append((found, undefined))
    return made


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spoken())
def test_by_bytes_is_its_definition(kind: str, folder: Path, drawn: tuple[str, Said]) -> None:
    text, said = drawn
    case = Case(folder, tokenizer(kind), said, sample(text))
    heard = case.heard()
    _, told = heard.told["r"]
    placed, row = case.placed(), case.row()
    assert len(placed.why) == row.trained_tokens
    expected = by_definition(case, told, dict(heard.spellings[None].tokens), row)
    assert [bool(d) for d in placed.targets.defined] == [e is not None for e in expected]
    assert (placed.targets.defined == (placed.why == Why.DEFINED)).all()
    vocabulary, data = case.student.vocabulary, text.encode()
    begins = [a for a, _ in spans([*map(vocabulary.token, row.input_ids[row.prompt_tokens : -1]), b""])]
    for i, one in enumerate(expected):
        ids, logprobs = placed.targets.ids[i].tolist(), placed.targets.logprobs[i].tolist()
        found = {number: math.exp(p) for number, p in zip(ids, logprobs, strict=True) if number >= 0}
        assert all((number < 0) == (p == -math.inf) for number, p in zip(ids, logprobs, strict=True))
        if one is None:
            assert not found
            continue
        mapped, undefined = one
        assert found.keys() == mapped.keys()
        assert len(found) == sum(number >= 0 for number in ids), "a token once"
        for number, mass in found.items():
            assert math.log(mass) == pytest.approx(math.log(mapped[number]), rel=1e-3, abs=1e-3)  # as float16 has it
        assert placed.undefined[i] == pytest.approx(undefined, abs=1e-5)
        # Nothing is lost: what is mapped and undefined is what the teacher listed at the token that begins there.
        at = told.begins.tolist().index(begins[i], told.after if begins[i] == len(data) else 0)
        there = slice(told.offsets[at], told.offsets[at + 1])
        listed = np.exp(told.logprobs[there].astype(float)).sum()
        assert sum(found.values()) + placed.undefined[i] == pytest.approx(listed, abs=2e-3)
        # Each token is the beginning of something that the teacher listed, or the text's own.
        tops = [heard.spellings[None].tokens[int(number)] for number in told.ids[there]]
        for number in found:
            own = vocabulary.token(number)
            end = number == row.input_ids[-1]
            assert end or data[begins[i] :].startswith(own) or any(top.startswith(own) for top in tops)


@functools.cache
def reachable(kind: str) -> list[int]:
    """Tokens that their own bytes are tokenised as."""
    student = known(tokenizer(kind))
    some = range(len(tokenizer(kind))) if kind in TINY else range(0, len(tokenizer(kind)), 97)
    found = [number for number in some if number not in student.vocabulary.special]
    student.learn([student.vocabulary.token(number) for number in found])
    return [number for number in found if student.ids(student.vocabulary.token(number)) == (number,)]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_with_one_tokenizer_bytes_say_what_ids_say(kind: str, folder: Path, data: st.DataObject) -> None:
    own, text = tokenizer(kind), data.draw(TEXTS)
    end, student = own.eos_token_id, known(own)
    (row,) = make_rows([sample(text)], own, {end}, 100_000)
    ids = row.input_ids[row.prompt_tokens :]
    stop = data.draw(st.sampled_from([(), ("\n\n",), ("  ", "good")]))
    if any(cut in text for cut in stop):
        stop = ()
    others = st.lists(st.sampled_from([*reachable(kind), end]), max_size=5)
    drawn = st.composite(lambda draw: [masses(draw, list(dict.fromkeys([i, *draw(others)]))) for i in ids])
    tops = data.draw(drawn())
    case = Case(folder, own, Said(ids, tops), sample(text), stop, student.vocabulary)
    other, same = case.placed(), case.placed(ids=True)
    assert same.targets.defined.all()
    for a, b in zip(vars(other.targets).values(), vars(same.targets).values(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(other.undefined, same.undefined)
    if not stop:  # what the teacher said is what the student learns, number for number
        for i, top in enumerate(tops):
            listed = same.targets.ids[i][same.targets.ids[i] >= 0].tolist()
            assert set(listed) == set(top)
            mass = dict(zip(listed, np.exp(same.targets.logprobs[i]).tolist(), strict=False))
            assert mass == {number: pytest.approx(p, rel=5e-3) for number, p in top.items()}


def test_the_ids_that_were_sampled_are_learnt_and_not_those_of_the_text(folder: Path) -> None:
    own = byte_level_tokenizer()
    v = known(own).vocabulary
    number = {v.token(i): i for i in range(len(own))}
    said = [number[b"t"], number[b"he"], number[b" film"], 2]
    tops = [{i: 0.5, 2: 0.25} if i != 2 else {2: 0.5} for i in said]
    case = Case(folder, own, Said(said, tops), sample("the film"), vocabulary=v)
    heard = case.heard()
    ids = heard.sampled(case.student, {"model"})
    assert ids == {"r": said[:-1]}
    assert case.row().input_ids[-3:-1] == [number[b"the"], number[b" film"]]
    expected = [{v.token(i): 0.5, b"END": 0.25} for i in said[:-1]]
    assert case.shown(ids=True) == [*expected, {b"END": 0.5}]
    _, told = heard.told["r"]
    over = bridge(set(told.ids.tolist()), heard.spellings["model"], case.student, 2, (), same=True)
    with pytest.raises(ValueError, match="row r is not made of the ids"):
        by_ids(case.row(), told, over, most_undefined=1)


CASES: dict[str, tuple[Said, str, Sequence[str], list[dict[bytes, float] | None]]] = {
    "the digits of a number": (
        Said([b"201", b""], [{b"201": 0.5, b"202": 0.25, b"7": 0.125}, {b"": 1.0}]),
        "201", (), [{b"2": 0.75, b"7": 0.125}, None, None, {b"END": 1.0}],
    ),
    "a token that several spell": (
        Said([b"t", b"h", b"e"], [{b"t": 0.5, b"a": 0.25}, {b"h": 0.5}, {b"e": 0.5, b"o": 0.5}]),
        "the", (), [{b"a": 0.25, b"the": 0.125}, None],
    ),
    "a token that is spelt and more": (
        Said([b"t", b"he bad"], [{b"t": 0.5, b"a": 0.25}, {b"he bad": 0.5}]),
        "the bad", (), [{b"the": 0.25, b"a": 0.25}, None, None],
    ),
    "pieces of a character": (
        Said([b"\xf0\x9f", b"\x98\x80"], [{b"\xf0\x9f": 0.5, b"\xf0": 0.25, b"\xff\xff": 0.125}, {b"\x98\x80": 1.0}]),
        "😀", (), [{b"\xf0": 0.75, b"\xff": 0.125}, None, {b"\x98": 1.0}, None, None],
    ),
    "cut at a stop string of its own": (
        Said([b"good", b"\n"], [{b"good": 0.5, b"bad\n": 0.25, b"\n": 0.125}, {b"\n": 0.5, b"\n\n": 0.25, b" bad": 0.125}]),
        "good", ("\n",), [{b"good": 0.5, b"bad": 0.25, b"END": 0.125}, {b"END": 0.75, b" bad": 0.125}],
    ),
    "cut within a token": (
        Said([b"good!\n\n"], [{b"good!\n\n": 0.5, b"good": 0.25, b"\n": 0.125}]),
        "good!", ("\n",), [{b"good": 0.75, b"END": 0.125}, None, None],
    ),
    "a stop string of two tokens": (
        # `!` and a line break may be the stop's first half, so only `!` of it is sure; a line break by itself is nothing yet.
        Said([b"good", b"\n", b"Q:"], [{b"good": 0.5, b"!\n": 0.25, b"\n": 0.125}, {b"\n": 0.5, b"!": 0.25}, {b"Q:": 0.5}]),
        "good", ("\nQ:",), [{b"good": 0.5, b"!": 0.25}, {b"END": 0.25, b"!": 0.25}],
    ),
    "a stop string that was begun and not ended": (
        # The line break counts once what follows shows that it stays, and `Q:` behind it would have cut it off.
        Said([b"good", b"\n", b"bad", b""], [{b"good": 0.5}, {b"\n": 0.5}, {b"bad": 0.5, b"Q:": 0.25, b"Q": 0.125}, {b"": 1.0}]),
        "good\nbad", ("\nQ:",), [{b"good": 0.5}, {b"\n": 0.25}, {b"bad": 0.5}, {b"END": 1.0}],
    ),
    "blank space that was taken off": (
        Said([b" good", b" \n", b""], [{b" good": 0.5, b"good": 0.25, b" ": 0.125}, {b" \n": 0.5, b"": 0.25}, {b"": 0.5}]),
        "good", (), [{b"good": 0.75}, {b"END": 0.5}],
    ),
    "a hosted model, which shows no end": (
        Said([b"the", b" bad"], [{b"the": 0.5}, {b" bad": 0.5, b" good": 0.25}]),
        "the bad", (), [{b"the": 0.5}, {b" bad": 0.5, b" good": 0.25}, None],
    ),
    "blank space at the end is no end": (
        Said([b"the", b" "], [{b"the": 0.5}, {b" ": 0.5}]), "the", (), [{b"the": 0.5}, None],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_becomes_of(case: str, folder: Path) -> None:
    said, text, stop, expected = CASES[case]
    assert Case(folder, tokenizer("fallback"), said, sample(text), stop).shown() == expected


def test_an_alternative_is_read_up_to_the_stop_string_in_it(folder: Path) -> None:
    """Within what would be one token of the student."""
    own = tokenizer("byte_level")
    student = known(own)
    assert len(student.ids(b" film") or ()) == 1
    said = Said([b" good", b"m"], [{b" good": 0.5, b" film": 0.25}, {b"m": 1.0}])
    first = student.vocabulary.token((student.ids(b" fil") or ())[0])
    assert Case(folder, own, said, sample(" good"), ("m",)).shown() == [{b" good": 0.5, first: 0.25}, {b"END": 1.0}]


def test_bytes_as_the_tokens_of_a_student() -> None:
    byte_level, fallback = (known(tokenizer(kind)) for kind in TINY)
    number = {fallback.vocabulary.token(i): i for i in range(len(tokenizer("fallback")))}
    assert byte_level.spell(byte_level.ids(b"<|im_end|>") or ()) == b"<|im_end|>"
    assert not {0, 1, 2} & {*(byte_level.ids(b"<|im_end|>") or ())}, "text, and no end"
    assert fallback.ids("▁".encode()) is None, "which reads it as a blank"
    assert [byte_level.vocabulary.token(i) for i in byte_level.ids(b" good\xf0\x9f film") or ()][:1] == [b" good"]
    assert fallback.ids(b"\xf0a") == (number[b"\xf0"], tokenizer("fallback").convert_tokens_to_ids("a"))
    assert byte_level.ids(b"") == ()


def test_a_student_that_puts_a_blank_before_any_text() -> None:
    own = blank_before()
    student = StudentTokens(own)
    assert own("good", add_special_tokens=False)["input_ids"] == [own.convert_tokens_to_ids("▁good")]
    assert student.ids(b"good") == (own.convert_tokens_to_ids("good"),)


@pytest.mark.parametrize("ahead", [b"", b" "])
def test_that_blank_is_none_of_the_text(ahead: bytes, folder: Path) -> None:
    """What the teacher might have said in place of the first token stands behind the same blank."""
    tops = [{ahead + b"good": 0.5, b" bad": 0.25, b"the": 0.125}, {b" bad": 0.5, b" good": 0.25}, {b"": 0.5}]
    case = Case(folder, blank_before(), Said([ahead + b"good", b" bad", b""], tops), sample("good bad"))
    assert case.shown() == [
        {b" good": 0.5, b" bad": 0.25, b" the": 0.125}, {b" bad": 0.5, b" good": 0.25}, {b"END": 0.5}
    ]  # fmt: skip
    heard = case.heard()
    _, alignment = teach([case.row()], heard, case.student, (), most_undefined=1)
    assert alignment.by_bytes == 1, alignment.without
    # With the teacher's own ids, those that it said stay as they are.
    own, v = blank_before(), Vocabulary.of(blank_before())
    good, bad, the, end = (own.convert_tokens_to_ids(token) for token in ("▁good", "▁bad", "▁the", "<eos>"))
    said = Said([good, bad, end], [{good: 0.5, bad: 0.25, the: 0.125}, {bad: 0.5}, {end: 0.5}])
    case = Case(folder, own, said, sample("good bad"), (), v)
    assert case.heard().sampled(case.student, {"model"}) == {"r": [good, bad]}
    assert case.shown(ids=True) == [{b" good": 0.5, b" bad": 0.25, b" the": 0.125}, {b" bad": 0.5}, {b"END": 0.5}]
    # The blank may be a token by itself, and then what follows it begins no text.
    apart = Case(folder, blank_before(), Said([ahead + b"2", b""], [{ahead + b"2": 0.5}, {b"": 0.5}]), sample("2"))
    assert apart.shown() == [None, None, {b"END": 0.5}]


def test_special_tokens_are_ends_or_nothing(folder: Path) -> None:
    """Ids of a teacher with an EOS, and two more special tokens, each of which may be a stop string."""
    teacher, student = byte_level_tokenizer(), fallback_tokenizer()
    v = Vocabulary.of(teacher)
    good = next(i for i in range(len(teacher)) if v.token(i) == b" good")
    tops = [{good: 0.5, 2: 0.25, 0: 0.125, 1: 0.0625}, {2: 0.5, 0: 0.25, good: 0.125}]
    for stop, ends in (((), 0.25), (("<|im_start|>",), 0.312), (("<|endoftext|>",), 0.375)):
        case = Case(folder, student, Said([good, 2], tops), sample(" good"), stop, v)
        assert case.shown()[0] == {b" good": 0.5, b"END": ends}
    case = Case(folder, student, Said([good, 2], tops), sample(" good"), (), v)
    assert case.placed().undefined[0] == pytest.approx(0.1875, abs=1e-3)


def test_a_truncated_answer_has_no_end(folder: Path) -> None:
    said = Said([b"the", b""], [{b"the": 0.5}, {b"": 0.5}])
    assert Case(folder, tokenizer("byte_level"), said, sample("the")).shown()[-1] == {b"END": 0.5}
    assert Case(folder, tokenizer("byte_level"), said, sample("the", status="truncated")).shown()[-1] is None


def test_a_special_token_within_the_text_hides_what_is_asked_there(folder: Path) -> None:
    teacher = byte_level_tokenizer()
    v = Vocabulary.of(teacher)
    number = {v.token(i): i for i in range(len(teacher))}
    said = [number[b"the"], 1, number[b" film"], 2]
    case = Case(folder, fallback_tokenizer(), Said(said, [{i: 0.5} for i in said]), sample("the film"), (), v)
    assert case.shown()[0] == {b"the": 0.5}
    assert case.shown()[1] is None
    same = Case(folder, teacher, Said(said, [{i: 0.5} for i in said]), sample("the film"), (), v)
    assert same.heard().sampled(same.student, {"model"}) == {"r": said[:-1]}
    assert same.shown(ids=True) == [{v.token(i): 0.5} for i in said[:-1]] + [{b"END": 0.5}]


@pytest.mark.parametrize(("most", "defined"), [(0.36, True), (0.33, False), (0.0, False), (1.0, True)])
def test_too_much_undefined_mass_masks(most: float, defined: bool, folder: Path) -> None:
    said = Said([b"t", b"he"], [{b"t": 0.5}, {b"he": 0.3}])  # 0.15 is spelt, 0.35 went elsewhere
    placed = Case(folder, tokenizer("byte_level"), said, sample("the"), most_undefined=most).placed()
    assert placed.targets.defined.tolist() == [defined, False]
    assert placed.why.tolist() == [Why.DEFINED if defined else Why.VAGUE, Why.NO_END]
    assert (placed.targets.ids[0] >= 0).any() == defined
    assert placed.undefined[0] == pytest.approx(0.35, abs=1e-3)


class Longer(Row):
    """A row of which earlier turns are learnt too, in front of the answer."""

    @property
    def trained_tokens(self) -> int:
        return super().trained_tokens + 5


def test_what_is_learnt_before_the_answer_has_no_target(folder: Path) -> None:
    case = Case(folder, tokenizer("byte_level"), Said([b"the"], [{b"the": 0.5}]), sample("the"))
    ((_, told),) = case.heard().told.values()
    row, plain = case.row(), case.placed()
    over = bridge(set(told.ids.tolist()), case.heard().spellings[None], case.student, row.input_ids[-1], (), same=False)
    placed = by_bytes(Longer(row.row_id, row.input_ids, row.prompt_tokens), told, over, most_undefined=1)
    assert placed is not None
    assert placed.why.tolist() == [Why.NO_ROW] * 5 + plain.why.tolist()
    assert placed.undefined.tolist() == [0] * 5 + plain.undefined.tolist()
    assert placed.targets.defined.tolist() == [False] * 5 + plain.targets.defined.tolist()
    np.testing.assert_array_equal(placed.targets.ids[5:], plain.targets.ids)
    assert (placed.targets.ids[:5] == -1).all()
    assert np.isneginf(placed.targets.logprobs[:5]).all()


@pytest.mark.parametrize("stop", [(), ("\n",), (" b",), (" ba", "ad\n")])
def test_by_ids_says_what_the_model_itself_would(stop: Sequence[str], student: Path, folder: Path) -> None:
    """The whole way: a model answers, its logprobs are stored, and a student that is the same model is shown them. Without
    stop strings each target is then the student's own distribution.
    """
    import torch

    sampling = Sampling(temperature=1.0, max_tokens=4, stop=tuple(stop), top_logprobs=50, seed=3)
    asked = [Request((Message("user", f"the film was {i} days"),), sampling, i) for i in range(80)]
    model = TransformersModel(model=str(student), device="cpu")

    async def answers() -> list[Any]:
        found = await asyncio.gather(*(model.complete(request) for request in asked))
        await model.close()
        return found

    own = weights.load_tokenizer(str(student))
    tokens, network = StudentTokens(own), weights.load_model(str(student), device="cpu")
    path, samples = folder / "logprobs.parquet", []
    with writing(path) as add:
        for i, (request, answer) in enumerate(zip(asked, asyncio.run(answers()), strict=True)):
            if answer.text and "\ufffd" not in answer.text:
                kept = sample(answer.text, f"r{i}", status=answer.status)
                samples.append(Sample(f"r{i}", request.messages, answer.text, answer=kept.answer))
                add(f"r{i}", f"r{i}/0", "model", answer.logprobs.pack(), None)
    assert len(samples) >= 4
    heard = hear(path, samples, stop, {"model": tokens.vocabulary})
    assert not heard.without
    rows = make_rows(samples, own, {2}, 10_000, heard.sampled(tokens, {"model"}))
    checked = 0
    for row in rows:
        _, told = heard.told[row.row_id]
        over = bridge(set(told.ids.tolist()), heard.spellings["model"], tokens, 2, stop, same=True)
        targets = by_ids(row, told, over, most_undefined=1).targets
        with torch.no_grad():
            logits = network(torch.tensor([row.input_ids])).logits[0, row.prompt_tokens - 1 : -1]
        truth = logits.log_softmax(-1).numpy()
        assert targets.defined[:-1].all() or stop
        for i in np.flatnonzero(targets.defined).tolist() if not stop else ():
            ids = targets.ids[i][targets.ids[i] >= 0]
            np.testing.assert_allclose(targets.logprobs[i][: len(ids)], truth[i][ids], atol=0.02)
            checked += 1
        assert (np.exp(targets.logprobs.astype(float)).sum(-1) <= 1 + 1e-3).all()
    assert checked or stop


def test_vocabularies_are_compared_by_their_tokens() -> None:
    byte_level, fallback = (Vocabulary.of(tokenizer(kind)) for kind in TINY)
    same = same_vocabulary(byte_level, Vocabulary.of(byte_level_tokenizer()))
    assert same.same
    assert str(same) == "teacher and student share a vocabulary (363 tokens)"
    other = same_vocabulary(byte_level, fallback)
    assert not other.same
    assert other.differ > 300
    assert "different vocabularies" in str(other)
    assert not same_vocabulary(fallback, byte_level).same

    def made(pieces: Sequence[str], special: set[int], added: dict[int, str] | None = None) -> Vocabulary:
        return Vocabulary(dict(enumerate(pieces)).get, added or {}, special, ["ByteLevel"])

    pieces = ["a", "b", "c", "Ġd"]
    assert same_vocabulary(made(pieces, set()), made([*pieces, "e"], set())).same, "what the student has more"
    lacks = same_vocabulary(made([*pieces, "e"], set()), made(pieces, set()))
    assert (lacks.same, lacks.differ, lacks.example) == (False, 1, (4, b"e", b""))
    moved = same_vocabulary(made(pieces, set()), made(["a", "c", "b", "Ġd"], set()))
    assert (moved.differ, moved.example) == (2, (1, b"b", b"c"))
    renamed = same_vocabulary(made(["<s>", *pieces], {0}), made(["<bos>", *pieces], {0}))
    assert (renamed.same, renamed.special) == (True, 1)
    assert "1 special ones under other names" in str(renamed)
    assert not same_vocabulary(made(["a", *pieces], {0}), made(["a", *pieces], set())).same, "special to one alone"
    far = same_vocabulary(made(pieces, {5000}, {5000: "<end>"}), made(pieces, set(), {5000: "text"}))
    assert far.example == (5000, b"<end>", b"text")
    assert not same_vocabulary(made([], set()), made(pieces, set())).same, "nothing known"
