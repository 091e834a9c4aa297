"""Check digits of numbers that people and accounts have: cheap proof that a row of digits is more than that."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

#: How long an account number of each country is (ISO 13616 registry).
IBAN_LENGTH = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB PL", 29: "BR EG PS QA UA",
        30: "JO KW MU", 31: "MT SC", 32: "LC",
    }.items()
    for country in countries.split()
}  # fmt: skip


def luhn(digits: str) -> bool:
    """Payment cards and many national numbers (ISO/IEC 7812)."""
    doubled = [int(d) * (2 if i % 2 else 1) for i, d in enumerate(reversed(digits))]
    return sum(n - 9 if n > 9 else n for n in doubled) % 10 == 0


def iban(text: str) -> bool:
    """An account number without its spaces (ISO 13616): the country's length, and 1 modulo 97."""
    if IBAN_LENGTH.get(text[:2]) != len(text):
        return False
    return int("".join(str(int(sign, 36)) for sign in text[4:] + text[:4])) % 97 == 1


def weighted(digits: str, weights: Sequence[int], modulus: int) -> int:
    """The sum of digits times weights, modulo."""
    return sum(int(d) * w for d, w in zip(digits, weights, strict=False)) % modulus


def us_ssn(text: str) -> bool:
    """United States, no check digit: areas, groups and serials that are never issued."""
    area, group, serial = text[:3], text[3:5], text[5:]
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def gb_nino(text: str) -> bool:
    """United Kingdom, no check digit: prefixes that are never issued."""
    return text[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def es_dni(text: str) -> bool:
    """Spain, citizens (8 digits) and foreigners (X, Y or Z and 7 digits): a letter modulo 23."""
    number = int(text[:-1].translate(str.maketrans("XYZ", "012")))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23] == text[-1]


def it_codice_fiscale(text: str) -> bool:
    """Italy: 15 signs and a check letter."""
    odd = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
    values = [int(sign) if sign.isdigit() else ord(sign) - 65 for sign in text[:15]]
    total = sum(odd[value] if place % 2 == 0 else value for place, value in enumerate(values))
    return chr(65 + total % 26) == text[15]


def fr_nir(text: str) -> bool:
    """France: 97 minus the number modulo 97; Corsica's 2A and 2B count as 19 and 18."""
    number = text[:13].replace("2A", "19").replace("2B", "18")
    return 97 - int(number) % 97 == int(text[13:])


def br_cpf(text: str) -> bool:
    """Brazil: two check digits modulo 11."""
    digits = [10 * weighted(text, range(length + 1, 1, -1), 11) % 11 % 10 for length in (9, 10)]
    return len(set(text)) > 1 and text[9:] == "".join(map(str, digits))


def ch_ahv(text: str) -> bool:
    """Switzerland: EAN-13."""
    return weighted(text, (1, 3) * 6 + (1,), 10) == 0


def se_personnummer(text: str) -> bool:
    """Sweden: a date and Luhn."""
    return a_day(text[2:4], text[4:6]) and luhn(text)


def de_steuer_id(text: str) -> bool:
    """Germany: ISO 7064, mod 11,10."""
    product = 10
    for digit in text[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(text[10])


def nl_bsn(text: str) -> bool:
    """The Netherlands: the eleven test."""
    return weighted(text, (9, 8, 7, 6, 5, 4, 3, 2, -1), 11) == 0 and len(set(text)) > 1


def pl_pesel(text: str) -> bool:
    """Poland: a date, its century in the month, and a check digit."""
    month = str(int(text[2:4]) % 20)
    return a_day(month, text[4:6]) and weighted(text, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), 10) == 0


def in_aadhaar(text: str) -> bool:
    """India: Verhoeff's scheme over the dihedral group D5."""
    check = 0
    for place, digit in enumerate(reversed(text)):
        check = _dihedral(check, _permuted(int(digit), place))
    return check == 0


def _dihedral(a: int, b: int) -> int:
    if a < 5:
        return (a + b) % 5 + (5 if b >= 5 else 0)
    return (a - b) % 5 + (0 if b >= 5 else 5)


def _permuted(digit: int, times: int) -> int:
    for _ in range(times % 8):
        digit = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[digit]
    return digit


def a_day(month: str, day: str) -> bool:
    """Whether a year can have that day."""
    try:
        date(2000, int(month), int(day))
    except ValueError:
        return False
    return True
