"""The bias and safety scorers measured on texts of others: `python -m tests.scorers.probe_table` prints docs/scorers.md's table.

Needs `make setup` (ordinary sentences) and `make probes`.
"""

from __future__ import annotations

import csv
import html
import json
import random
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llm_distill.generators.lexicon import abstracted, swapped
from llm_distill.generators.lexicon_file import SHIPPED, read
from llm_distill.records import Answer, Message, make_prompt
from llm_distill.scorers import checksums
from llm_distill.scorers.mentions import mentions
from llm_distill.scorers.personal import KINDS, Kind
from llm_distill.scorers.pii import pii
from llm_distill.scorers.polarity import polarity
from llm_distill.scorers.toxicity import profanity

ROOT = Path(__file__).parents[2]
PROBES, QUICKSTART = ROOT / "data" / "probes" / "cache", ROOT / "data" / "quickstart" / "cache"
READY = (PROBES / "prepared.json").exists() and (QUICKSTART / "prepared.json").exists()
BEGIN, END = "<!-- table of tests/scorers/probe_table.py -->\n", "<!-- end of table -->"


class Line(NamedTuple):
    """One measurement: of so many texts that have what is looked for so many were found; of those without, so many flagged."""

    scorer: str
    probe: str
    found: int
    of: int
    flagged: int
    others: int

    def markdown(self) -> str:
        return f"| {self.scorer} | {self.probe} | {_share(self.found, self.of)} | {_share(self.flagged, self.others)} |"


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({part / whole:.1%})" if whole else "-"


def rows(texts: Sequence[str]) -> list[Answer]:
    return [Answer(make_prompt((Message("user", "p"),)), text, "ok") for text in texts]


def jsonl(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (PROBES / name).read_text(encoding="utf-8").splitlines()]


def ordinary(kind: str, count: int = 1_000) -> list[str]:
    """The first sentences of that kind: amazonReviewSnippets, movieReviewSnippets, nytEditorialSnippets, tweets."""
    with tarfile.open(QUICKSTART / "hutto_ICWSM_2014.tar.gz") as tar:
        member = tar.extractfile(f"hutto_ICWSM_2014/{kind}_GroundTruth.txt")
        assert member is not None
        lines = member.read().decode().splitlines()[:count]
    return [html.unescape(line.split("\t", 2)[2]) for line in lines]


def everyday() -> list[str]:
    """3,000 sentences of product reviews, film reviews and editorials."""
    return [text for kind in ("amazon", "movie") for text in ordinary(f"{kind}ReviewSnippets")] + ordinary(
        "nytEditorialSnippets"
    )


def _hits(scores: Sequence[float], over: float = 0.0) -> int:
    return sum(score > over for score in scores)


def profane() -> Iterator[Line]:
    toxic, plain, tweets = [row["text"] for row in jsonl("toxicity.jsonl")], everyday(), ordinary("tweets")
    stereo = [(row["stereotype"], row["anti-stereotype"]) for row in jsonl("stereoset.jsonl")]
    by: tuple[tuple[Any, float], ...] = (("words", 0.0), ("model", 0.5))
    for how, over in by:

        def count(texts: Sequence[str], how: Any = how, over: float = over) -> int:
            return _hits(profanity(rows(texts), by=how).values, over)

        name = f"profanity by {how}"
        yield Line(name, "toxic prompts; reviews and editorials", count(toxic), len(toxic), count(plain), len(plain))
        yield Line(name, "toxic prompts; tweets, as they are", count(toxic), len(toxic), count(tweets), len(tweets))
        left, right = ([pair[side] for pair in stereo] for side in (0, 1))
        yield Line(
            name, "stereotypes; their opposites (it finds neither)", count(left), len(left), count(right), len(right)
        )


_CROWS = {
    "gender": "gender", "religion": "religion", "nationality": "nationality", "age": "age", "disability": "disability",
    "sexual-orientation": "orientation", "race-color": "ethnicity",
}  # fmt: skip


def mentioned() -> Iterator[Line]:
    with (PROBES / "crows_pairs.csv").open(encoding="utf-8", newline="") as file:
        pairs = list(csv.DictReader(file))
    for kind, attribute in _CROWS.items():
        with_, without = [], []
        for pair in pairs:
            if pair["bias_type"] == kind:
                with_.append(pair["sentence"].replace("[MASK]", pair["mask1"]))
                without.append(" ".join(w for w in re.split(r"\s+", pair["sentence"]) if "[MASK]" not in w))
        found = _hits(mentions(rows(with_), attributes=[attribute]).values)
        other = _hits(mentions(rows(without), attributes=[attribute]).values)
        probe = "CrowS-Pairs; without the word, though others may be there"
        yield Line(f"mentions of {attribute}", probe, found, len(with_), other, len(without))


def swaps() -> Iterator[Line]:
    gender = read(SHIPPED).attributes["gender"]
    right = pairs = 0
    for row in jsonl("winobias.jsonl"):
        forms = set(re.findall(r"\b(he|she|his|him|her|hers)\b", row["options"]))
        wanted = forms - {"her"}
        if "her" in forms and len(wanted) == 1:
            text = row["text"].replace("[MASK]", "\0").replace("[", "").replace("]", "")
            her, found = text.replace("\0", "her"), text.index("\0")
            terms = [one for one in gender.find(her) or () if one.start == found]
            pairs += 1
            right += swapped(her, terms, {"female": "male", "male": "female"}) == text.replace("\0", wanted.pop())
    yield Line("counterfactual, her to his or him", "WinoBias, as its answers have it", right, pairs, 0, 0)
    with (PROBES / "crows_pairs.csv").open(encoding="utf-8", newline="") as file:
        lines = [row for row in csv.DictReader(file) if row["bias_type"] in _CROWS]
    same = known = 0
    for line in lines:
        attribute = read(SHIPPED).attributes[_CROWS[line["bias_type"]]]
        texts = [line["sentence"].replace("[MASK]", line[mask].rstrip(".")) for mask in ("mask1", "mask2")]
        both = [attribute.find(text) for text in texts]
        if both[0] and both[1] and both[0][0].variant != both[1][0].variant:
            known += 1
            roles = dict.fromkeys(attribute.variants, "*")
            shapes = [abstracted(text, terms or (), roles) for text, terms in zip(texts, both, strict=True)]
            same += shapes[0] == shapes[1]
    yield Line("counterfactual, pairs of one group", "CrowS-Pairs with a known word on both sides", same, known, 0, 0)


def swap_words() -> Iterator[Line]:
    text = (PROBES / "swap_words.txt").read_text(encoding="utf-8")
    lists = [
        re.findall(r'"([^"]+)"', text[text.index(f"\n{name}: List") :].split("]", 2)[1])
        for name in ("FEMALE_WORDS", "MALE_WORDS")
    ]
    gender = read(SHIPPED).attributes["gender"]
    for name, words in zip(("female", "male"), lists, strict=True):
        found = [gender.find(f"the {word} of") for word in words]
        right = sum(bool(terms) and terms[0].variant == name for terms in found if terms is not None)
        yield Line(f"mentions, {name} words", "langfair's list", right, len(words), 0, 0)


def _card(drawn: random.Random) -> str:
    start, length = drawn.choice((("4", 16), ("51", 16), ("37", 15), ("6011", 16)))
    digits = start + "".join(str(drawn.randrange(10)) for _ in range(length - len(start) - 1))
    whole = next(digits + str(last) for last in range(10) if checksums.luhn(digits + str(last)))
    sign = drawn.choice(("", " ", "-"))
    return sign.join(whole[i : i + 4] for i in range(0, length, 4))


def _iban(drawn: random.Random) -> str:
    country = drawn.choice(("DE", "ES", "AT", "PL", "SE"))
    account = "".join(str(drawn.randrange(10)) for _ in range(checksums.IBAN_LENGTH[country] - 4))
    check = 98 - int("".join(str(int(sign, 36)) for sign in f"{account}{country}00")) % 97
    whole = f"{country}{check:02}{account}"
    return whole if drawn.random() < 0.5 else " ".join(whole[i : i + 4] for i in range(0, len(whole), 4))


def _phone(drawn: random.Random) -> str:
    import phonenumbers as library

    abroad = drawn.random() < 0.5
    region = drawn.choice(("GB", "DE", "FR", "IN", "BR", "JP", "AU")) if abroad else "US"
    example = library.example_number_for_type(
        region, library.PhoneNumberType.FIXED_LINE_OR_MOBILE if region == "US" else 1
    )
    assert example is not None
    for _ in range(200):
        digits = str(example.national_number)
        number = library.PhoneNumber(example.country_code, int(digits[:-4] + f"{drawn.randrange(10_000):04}"))
        if library.is_valid_number(number):
            break
    shape = library.PhoneNumberFormat.INTERNATIONAL if abroad else library.PhoneNumberFormat.NATIONAL
    return str(library.format_number(number, shape))


def _email(drawn: random.Random) -> str:
    return f"{drawn.choice(('anna', 'j.smith', 'li_wei'))}@{drawn.choice(('gmail.com', 'mail.co.uk', 'uni-ulm.de'))}"


def _time(drawn: random.Random) -> str:
    day = f"{drawn.randrange(1990, 2027)}-{drawn.randrange(1, 13):02}-{drawn.randrange(1, 29):02}"
    return f"{day} {drawn.randrange(24)}:{drawn.randrange(60):02}"


def _address(drawn: random.Random) -> str:
    return f"{drawn.randrange(1, 9_999)} Oak Avenue, Apt {drawn.randrange(400)}, Dayton, OH {drawn.randrange(10_000, 99_951)}"


_VALUES: dict[str, Callable[[random.Random], str]] = {
    "credit_card_number": _card,
    "iban": _iban,
    "phone_number": _phone,
    "email": _email,
    "ip_address": lambda d: f"{d.choice((8, 52, 91, 185))}.{d.randrange(256)}.{d.randrange(256)}.{d.randrange(1, 255)}",
    "ssn": lambda d: f"{d.randrange(1, 666):03}-{d.randrange(1, 100):02}-{d.randrange(1, 10_000):04}",
    "building_number": lambda d: str(d.randrange(1, 9_999)),
    "zipcode": lambda d: f"{d.randrange(501, 99_951):05}",
    "postcode": lambda d: f"{d.randrange(501, 99_951):05}",
    "age": lambda d: str(d.randrange(1, 99)),
    "year": lambda d: str(d.randrange(1900, 2027)),
    "date_time": _time,
    "date_of_birth": lambda d: f"{d.randrange(1, 13)}/{d.randrange(1, 29)}/{d.randrange(1930, 2010)}",
    "us_driver_license": lambda d: f"D{d.randrange(10**6, 10**7)}",
    "url": lambda d: f"https://www.{d.choice(('shop', 'news', 'club'))}.org/{d.randrange(10**4, 10**9)}",
    "address": _address,
    "secondary_address": lambda d: f"Suite {d.randrange(1, 900)}",
}
_KIND_OF: dict[str, Kind] = {
    "credit_card_number": "card", "iban": "iban", "phone_number": "phone", "email": "email", "ip_address": "ip",
    "ssn": "national_id",
}  # fmt: skip
_PLACE = re.compile(r"\{\{(\w+)\}\}")


def _name(drawn: random.Random) -> str:
    return drawn.choice(("Maria Lopez", "Dayton", "Acme"))


def filled(times: int = 5) -> list[tuple[str, set[Kind]]]:
    """The templates with made-up values, and the kinds of personal data in each; what is no number is a name."""
    drawn, made = random.Random(7), []
    lines = (PROBES / "pii_templates.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        for _ in range(times):
            names = set(_PLACE.findall(line))
            text = _PLACE.sub(lambda place: _VALUES.get(place[1], _name)(drawn), line)
            made.append((text.replace("\\n", "\n"), {_KIND_OF[name] for name in names & _KIND_OF.keys()}))
    return made


def personal() -> Iterator[Line]:
    made, plain = filled(), [*everyday(), *ordinary("tweets")]
    for kind in KINDS:
        scores = pii(rows([text for text, _ in made]), kinds=[kind], of="answer").values
        with_ = [score for score, (_, kinds) in zip(scores, made, strict=True) if kind in kinds]
        without = [score for score, (_, kinds) in zip(scores, made, strict=True) if kind not in kinds]
        more = pii(rows(plain), kinds=[kind], of="answer").values
        others = _hits(without) + _hits(more)
        if with_:
            yield Line(f"pii, {kind}", "Presidio's templates with made-up values; the others, reviews, editorials, tweets",
                       _hits(with_), len(with_), others, len(without) + len(more))  # fmt: skip
        else:
            yield Line(f"pii, {kind}", "none there; Presidio's templates, reviews, editorials, tweets",
                       0, 0, others, len(without) + len(more))  # fmt: skip


def sentiment() -> Iterator[Line]:
    lines = [json.loads(line) for line in (QUICKSTART / "dev.jsonl").read_text(encoding="utf-8").splitlines()]
    said = {label: [polarity(x["prompt"]) for x in lines if x["label"] == label] for label in ("positive", "negative")}
    yield Line("sentiment above 0", "sentences that twenty people rated; positive, negative",
               _hits(said["positive"]), len(said["positive"]), _hits(said["negative"]), len(said["negative"]))  # fmt: skip
    yield Line("sentiment below 0", "the same; negative, positive",
               _hits([-x for x in said["negative"]]), len(said["negative"]),
               _hits([-x for x in said["positive"]]), len(said["positive"]))  # fmt: skip


def table() -> str:
    head = "| scorer | texts with it; without it | found | flagged without it |\n|---|---|---|---|\n"
    lines = [line for part in (profane, personal, mentioned, swap_words, swaps, sentiment) for line in part()]
    return head + "".join(line.markdown() + "\n" for line in lines)


if __name__ == "__main__":
    print(table(), end="")
