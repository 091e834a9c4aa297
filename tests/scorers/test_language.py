"""Languages: what is written in each, what is not, what is too short, and the library's own numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llm_distill.errors import UserError
from llm_distill.plugs import Reading, Spec, bind
from llm_distill.scorers import SCORERS
from llm_distill.scorers.language import LANGUAGES, _encoded, _identifier, language, probabilities
from tests.bench.planted import real_sentences
from tests.scorers.rows import answer

# ruff: noqa: RUF001  the languages are what is tested
SENTENCES = {
    "en": "The museum is closed on Mondays, but the garden behind it is open to everyone.",
    "de": "Das Museum ist montags geschlossen, aber der Garten dahinter steht allen offen.",
    "fr": "Le musée est fermé le lundi, mais le jardin derrière est ouvert à tous.",
    "es": "El museo cierra los lunes, pero el jardín de atrás está abierto para todos.",
    "it": "Il museo è chiuso il lunedì, ma il giardino dietro è aperto a tutti.",
    "pt": "O museu fecha às segundas-feiras, mas o jardim dos fundos está aberto a todos.",
    "nl": "Het museum is op maandag gesloten, maar de tuin erachter is voor iedereen open.",
    "pl": "Muzeum jest w poniedziałki nieczynne, ale ogród za nim jest otwarty dla wszystkich.",
    "ru": "По понедельникам музей закрыт, но сад за ним открыт для всех.",
    "uk": "У понеділок музей зачинений, але сад за ним відкритий для всіх.",
    "tr": "Müze pazartesi günleri kapalıdır ama arkasındaki bahçe herkese açıktır.",
    "sv": "Museet är stängt på måndagar, men trädgården bakom är öppen för alla.",
    "fi": "Museo on maanantaisin suljettu, mutta sen takana oleva puutarha on avoinna kaikille.",
    "vi": "Bảo tàng đóng cửa vào thứ Hai, nhưng khu vườn phía sau mở cửa cho mọi người.",
    "zh": "博物馆星期一不开门，但是后面的花园对所有人开放。",
    "ja": "博物館は月曜日に休館しますが、裏の庭は誰でも入れます。",
    "ko": "박물관은 월요일에 문을 닫지만 뒤편 정원은 누구에게나 열려 있습니다.",
    "ar": "المتحف مغلق يوم الاثنين، لكن الحديقة خلفه مفتوحة للجميع.",
    "hi": "संग्रहालय सोमवार को बंद रहता है, लेकिन उसके पीछे का बगीचा सबके लिए खुला है।",
    "el": "Το μουσείο είναι κλειστό τη Δευτέρα, αλλά ο κήπος πίσω είναι ανοιχτός σε όλους.",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence_is_in_its_language_and_in_no_other(code: str) -> None:
    rows = [answer(text) for text in SENTENCES.values()]
    scored = language(rows, only=[code])
    assert [found for found, value in zip(SENTENCES, scored.values, strict=True) if value > 0.5] == [code]
    assert scored.why == list(SENTENCES)


def test_several_languages_are_one_wish() -> None:
    rows = [answer(SENTENCES[code]) for code in ("de", "en", "fr")]
    assert [round(value) for value in language(rows, only=["de", "en"]).values] == [1, 1, 0]


def test_what_is_short_or_no_text_is_not_measured() -> None:
    scored = language([answer("positive"), answer(""), answer("42"), answer("  \n ")], only=["en"])
    assert all(math.isnan(value) for value in scored.values)
    assert scored.why[0] == "under 20 bytes"
    assert language([], only=["en"]).values == []
    odd = language([answer("\ud800" * 30), answer("\U0001f600" * 30), answer("1234567890 " * 5)], only=["en"])
    assert max(odd.values) < 0.5


def test_prompts_can_be_read_and_a_drift_at_the_end_is_seen() -> None:
    row = answer(SENTENCES["de"], prompt=SENTENCES["en"])
    assert language([row], only=["en"], of="prompt").values[0] > 0.9
    assert language([row], only=["en"]).values[0] < 0.1
    drifted = answer(f"{SENTENCES['en']} " * 6 + f"{SENTENCES['zh']} " * 12)
    assert (
        language([drifted], only=["en"]).values[0]
        < 0.5
        < language([answer(SENTENCES["en"] * 18)], only=["en"]).values[0]
    )


def test_the_numbers_are_the_librarys() -> None:
    texts = [*SENTENCES.values(), *real_sentences()[:200], "", "SHOUTING IN ENGLISH ALL DAY", "x" * 1000]
    encoded = [_encoded(text) for text in texts]
    ours, identifier = probabilities(encoded), _identifier()
    for row, text in zip(ours, encoded, strict=True):
        theirs = dict(identifier.rank(text))
        mine: dict[str, float] = dict.fromkeys(theirs, 0.0)
        for label, value in zip(identifier.nb_classes, row.tolist(), strict=True):
            mine[label] += value
        np.testing.assert_allclose([mine[label] for label in theirs], list(theirs.values()), atol=1e-4)
    assert set(identifier.labels) == LANGUAGES


def test_real_sentences_are_english() -> None:
    values = np.array(language([answer(text) for text in real_sentences()], only=["en"]).values)
    assert np.nanmean(values > 0.5) > 0.9


def test_an_unknown_language_is_found_at_check(monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    reading = Reading(folder=Path(), files=set(), roles=())
    with pytest.raises(UserError, match=r"no language 'english'\..* Allowed: ace, af"):
        bind("scorer", Spec("language", {"only": ["english"]}, "filter.language"), SCORERS, reading)
    with pytest.raises(UserError, match="only: required and missing"):
        bind("scorer", Spec("language", {}, "filter.language"), SCORERS, reading)
    monkeypatch.setattr("llm_distill.scorers.language.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"py3langid is not installed: pip install 'llm-distill\[filter\]'"):
        bind("scorer", Spec("language", {"only": ["en"]}, "filter.language"), SCORERS, reading)
