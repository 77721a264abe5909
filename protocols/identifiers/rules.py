"""The rules of each type of identifier, on blocks of cleaned bytes.

A rule gets values that are already upper-case printable ASCII. It writes each row's canonical body and
returns each row's reason. All tests are computed for all rows and applied from the last to the first, so that
the first broken rule, in the order of SPEC.md, is the one that is reported.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from protocols.errors import InputError
from protocols.identifiers.areas import AreaTable
from protocols.identifiers.columns import I64, U8, Mask, Values
from protocols.identifiers.countries import COUNTRIES
from protocols.identifiers.reasons import Reason
from protocols.identifiers.resident import check_characters

U16: TypeAlias = npt.NDArray[np.uint16]
U32: TypeAlias = npt.NDArray[np.uint32]

_ZERO: Final = np.uint8(0x30)
_X: Final = np.uint8(0x58)

# What may stand between the characters of any identifier: white space, and characters without width (soft
# hyphen, joiners, directional marks, word joiner, byte-order mark, Mongolian vowel separator).
_BLANKS: Final = r"\s\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"
BLANKS: Final = re.compile(f"[{_BLANKS}]+")
_PHONE_SEPARATORS: Final = re.compile(rf"[{_BLANKS}().\-\u2010-\u2015\u2212]+")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the rules compare with; `as_of` is the day on which ages are reckoned."""

    as_of: date
    areas: AreaTable

    @property
    def day(self) -> np.uint32:
        """`as_of` as yyyymmdd."""
        return np.uint32(self.as_of.year * 10_000 + self.as_of.month * 100 + self.as_of.day)


@dataclass(frozen=True, slots=True)
class Rule:
    """One type: its tag, the width of its canonical body, what is dropped from a value, and its check."""

    tag: bytes
    body_width: int
    check: Callable[[Values, U8, Limits], U8]  # values, n x body_width to fill, limits -> n reasons
    separators: re.Pattern[str] = field(default=BLANKS)

    @property
    def width(self) -> int:
        """Bytes of the longest key."""
        return len(self.tag) + self.body_width


def rule_for(kind: str) -> Rule:
    """Return the rule of a type name.

    Raises:
        InputError: no such type, or a passport type without a country's code.
    """
    rule = _RULES.get(kind)
    if rule is not None:
        return rule
    prefix, _, country = kind.partition(":")
    if prefix == "passport" and country in COUNTRIES:
        return _passport(country)
    raise InputError(
        "type name is not one of " + ", ".join([*_RULES, "passport:CCC"]),
        code="unknown-type",
        hint="CCC is the issuing state's ISO 3166-1 alpha-3 code in capitals, for example passport:FRA",
    )


def _mark(reasons: U8, mask: Mask, reason: Reason) -> None:
    # Most masks are empty, and looking is several times cheaper than writing through a mask.
    if mask.any():
        reasons[mask] = reason


def _by_length(
    values: Values, body: U8, checks: dict[int, Callable[[U8], tuple[U8, U8]]], otherwise: Reason
) -> U8:
    """Run each length's check on the rows that have it: n x length in, canonical bodies and reasons out."""
    reasons = np.full(len(values), otherwise, dtype=np.uint8)
    if not len(values):
        return reasons
    for length, check in checks.items():
        rows = np.flatnonzero(values.lengths == length)
        if rows.size == len(values):
            canonical, reasons = check(values.matrix(length))
            body[:, : canonical.shape[1]] = canonical
        elif rows.size:
            canonical, reasons[rows] = check(values.select(rows).matrix(length))
            body[rows, : canonical.shape[1]] = canonical
    return reasons


# --- numbers built like a resident ID ------------------------------------------------------------


def _days() -> tuple[Mask, int]:
    """Return flags by month * 100 + day of a leap year, for every uint16, and 29 February's index."""
    flags = np.zeros(1 << 16, dtype=np.bool_)
    for month, days in enumerate((31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31), start=1):
        flags[month * 100 + 1 : month * 100 + days + 1] = True
    return flags, 229


_DAYS, _FEBRUARY_29 = _days()


def _number(digits: U8) -> U16:
    """Return the value of each column of at most four decimal digits."""
    value: U16 = digits[0].astype(np.uint16)
    for row in digits[1:]:
        value *= np.uint16(10)
        value += row
    return value


def _date_reasons(year: U16, month_day: U16, as_of: np.uint32) -> U8:
    """Test dates: a day of the calendar, not after `as_of`, at most 120 completed years before it.

    yyyymmdd numbers differ by 10,000 for each completed year, so 121 birthdays are 1,210,000.
    """
    reasons = np.zeros(len(year), dtype=np.uint8)
    birth = year.astype(np.uint32)
    birth *= np.uint32(10_000)
    birth += month_day
    _mark(reasons, birth + np.uint32(1_210_000) <= as_of, Reason.OVER_120)
    _mark(reasons, birth > as_of, Reason.FUTURE_DATE)
    _mark(reasons, ~_DAYS[month_day] | (year == 0), Reason.BAD_DATE)
    leap_days = np.flatnonzero(month_day == _FEBRUARY_29)
    if leap_days.size:
        of = year[leap_days]
        common = (of % 4 != 0) | ((of % 100 == 0) & (of % 400 != 0))
        reasons[leap_days[common]] = Reason.BAD_DATE
    return reasons


def _citizen_number(numbers: U8, limits: Limits, place_reasons: Callable[[U8], U8]) -> tuple[U8, U8]:
    """Test n x 18 numbers of GB 11643's layout; the first six digits are judged by `place_reasons`.

    Args:
        numbers: n x 18 ASCII.
        limits: day and areas.
        place_reasons: from at least 6 x n digits to n reasons.

    Returns:
        The numbers as they came, and their reasons.
    """
    columns = np.ascontiguousarray(numbers.T)
    digits = columns - _ZERO
    reasons = place_reasons(digits)
    dates = _date_reasons(_number(digits[6:10]), _number(digits[10:14]), limits.day)
    np.copyto(reasons, dates, where=dates != 0)
    _mark(reasons, check_characters(digits) != columns[17], Reason.BAD_CHECK_DIGIT)
    strange = np.maximum.reduce(digits[:17], axis=0) > 9
    strange |= (digits[17] > 9) & (columns[17] != _X)
    _mark(reasons, strange, Reason.BAD_CHARACTER)
    return numbers, reasons


def _area(digits: U8) -> U32:
    """Return the area code of each column of digits; anything where they are no digits."""
    area = _number(digits[:3]).astype(np.uint32)
    area *= np.uint32(1000)
    area += _number(digits[3:6])
    return np.minimum(area, np.uint32(999_999))


_PERMIT_AREAS: Final = (810_000, 820_000, 830_000)


def _of_permit(area: U32) -> Mask:
    hong_kong, macao, taiwan = _PERMIT_AREAS
    permit: Mask = (area == hong_kong) | (area == macao) | (area == taiwan)
    return permit


def _resident_check(values: Values, body: U8, limits: Limits) -> U8:
    """GB 11643: eighteen characters, or the fifteen digits issued until 1999."""

    def places(digits: U8) -> U8:
        area = _area(digits)
        reasons = np.zeros(area.size, dtype=np.uint8)
        unlisted = ~limits.areas.listed[area]
        _mark(reasons, unlisted, Reason.UNKNOWN_AREA)
        _mark(reasons, _of_permit(area), Reason.OTHER_TYPE)
        return reasons

    def eighteen(numbers: U8) -> tuple[U8, U8]:
        return _citizen_number(numbers, limits, places)

    def fifteen(numbers: U8) -> tuple[U8, U8]:
        return eighteen(_lengthen(numbers))

    return _by_length(values, body, {18: eighteen, 15: fifteen}, Reason.BAD_LENGTH)


def _lengthen(numbers: U8) -> U8:
    """Return n x 18 from n x 15: the century, which is 18 for sequence numbers 996 to 999, and the check."""
    long = np.empty((len(numbers), 18), dtype=np.uint8)
    long[:, :6] = numbers[:, :6]
    long[:, 6] = ord("1")
    centenarian = (numbers[:, 12] == ord("9")) & (numbers[:, 13] == ord("9")) & (numbers[:, 14] >= ord("6"))
    long[:, 7] = np.where(centenarian, np.uint8(ord("8")), np.uint8(ord("9")))
    long[:, 8:17] = numbers[:, 6:]
    long[:, 17] = check_characters(np.ascontiguousarray(long.T) - _ZERO)
    return long


def _permit_check(values: Values, body: U8, limits: Limits) -> U8:
    """Residence permits of Hong Kong, Macao and Taiwan residents, issued since 2018: eighteen characters."""

    def places(digits: U8) -> U8:
        return np.where(_of_permit(_area(digits)), Reason.ACCEPTED, Reason.OTHER_TYPE).astype(np.uint8)

    return _by_length(
        values, body, {18: lambda numbers: _citizen_number(numbers, limits, places)}, Reason.BAD_LENGTH
    )


# --- foreign permanent residents ------------------------------------------------------------

_LETTER_A: Final = np.uint8(0x41)
_COUNTRY_FLAGS: Final = np.zeros(26**3, dtype=np.bool_)
for _code in COUNTRIES:
    _a, _b, _c = (ord(letter) - 0x41 for letter in _code)
    _COUNTRY_FLAGS[(_a * 26 + _b) * 26 + _c] = True


def _foreign_resident_check(values: Values, body: U8, limits: Limits) -> U8:
    """Permanent residence cards: eighteen characters since December 2023, fifteen before."""
    provinces = limits.areas.provinces()

    def province_reasons(tens: U8, units: U8) -> U8:
        code = np.minimum(tens.astype(np.uint16) * np.uint16(10) + units, np.uint16(99))
        return np.where(provinces[code], Reason.ACCEPTED, Reason.UNKNOWN_AREA).astype(np.uint8)

    def places(digits: U8) -> U8:
        # 9, province of first issue, ISO 3166-1 numeric code of the nationality (not tested).
        reasons = province_reasons(digits[1], digits[2])
        _mark(reasons, digits[0] != 9, Reason.OTHER_TYPE)
        return reasons

    def fifteen(numbers: U8) -> tuple[U8, U8]:
        # Nationality (3 letters), place of issue (4), birth (yymmdd), sequence, check by ICAO 9303's 7-3-1.
        columns = np.ascontiguousarray(numbers.T)
        letters = columns[:3] - _LETTER_A
        digits = columns[3:] - _ZERO
        country = (letters[0].astype(np.uint32) * 26 + letters[1]) * 26 + letters[2]
        reasons = province_reasons(digits[0], digits[1])
        _mark(
            reasons,
            ~_COUNTRY_FLAGS[np.minimum(country, np.uint32(26**3 - 1))],
            Reason.UNKNOWN_COUNTRY,
        )
        short_year, month_day = _number(digits[4:6]), _number(digits[6:10])
        # The card does not tell the century: either may be the right one.
        dates = _date_reasons(short_year + np.uint16(1900), month_day, limits.day)
        later = _date_reasons(short_year + np.uint16(2000), month_day, limits.day)
        dates = np.where(dates == 0, dates, later)
        np.copyto(reasons, dates, where=dates != 0)
        weights = np.array([7, 3, 1] * 5, dtype=np.uint32)[:14, np.newaxis]
        worth = np.concatenate([letters + np.uint8(10), digits[:11]]).astype(np.uint32)
        _mark(reasons, (worth * weights).sum(axis=0) % 10 != digits[11], Reason.BAD_CHECK_DIGIT)
        _mark(reasons, (letters.max(axis=0) > 25) | (digits.max(axis=0) > 9), Reason.BAD_CHARACTER)
        return numbers, reasons

    return _by_length(
        values,
        body,
        {18: lambda numbers: _citizen_number(numbers, limits, places), 15: fifteen},
        Reason.BAD_LENGTH,
    )


# --- passports, organisations, phones ------------------------------------------------------------


def _is_digit(characters: U8) -> Mask:
    return characters - _ZERO <= 9


def _all(flags: Mask) -> Mask:
    """Return whether all flags of each row of n x length are set."""
    every: Mask = np.logical_and.reduce(flags, axis=1)
    return every


def _one_character(characters: U8) -> Mask:
    """Return whether each row of n x length is one character throughout."""
    return _all(characters == characters[:, :1])


def _passport_number(numbers: U8) -> tuple[U8, U8]:
    digit = _is_digit(numbers)
    letter = numbers - _LETTER_A <= 25
    reasons = np.zeros(len(numbers), dtype=np.uint8)
    _mark(reasons, _one_character(numbers) | _all(letter), Reason.PLACEHOLDER)
    _mark(reasons, ~_all(digit | letter), Reason.BAD_CHARACTER)
    return numbers, reasons


def _passport_check(values: Values, body: U8, _limits: Limits) -> U8:
    """Five to nine letters and digits (ICAO Doc 9303 part 4: nine at most); no check digit is printed."""
    return _by_length(values, body, dict.fromkeys(range(5, 10), _passport_number), Reason.BAD_LENGTH)


@cache
def _passport(country: str) -> Rule:
    return Rule(f"PP:{country}:".encode("ascii"), 9, _passport_check)


_USCC_ALPHABET: Final = b"0123456789ABCDEFGHJKLMNPQRTUWXY"
_USCC_WORTH: Final = np.full(256, 255, dtype=np.uint8)
_USCC_WORTH[np.frombuffer(_USCC_ALPHABET, dtype=np.uint8)] = np.arange(31)
_USCC_WEIGHTS: Final = np.array([pow(3, place, 31) for place in range(17)] + [1], dtype=np.uint32)


def _credit_code(numbers: U8) -> tuple[U8, U8]:
    worth = _USCC_WORTH[numbers]
    reasons = np.zeros(len(numbers), dtype=np.uint8)
    _mark(reasons, _one_character(numbers), Reason.PLACEHOLDER)
    _mark(reasons, worth.astype(np.uint32) @ _USCC_WEIGHTS % 31 != 0, Reason.BAD_CHECK_DIGIT)
    strange = (worth.max(axis=1) == 255) | (worth[:, 2:8].max(axis=1) > 9)
    _mark(reasons, strange, Reason.BAD_CHARACTER)
    return numbers, reasons


def _credit_code_check(values: Values, body: U8, _limits: Limits) -> U8:
    """GB 32100: authority, category, six digits of area, nine of organisation code, check mod 31."""
    return _by_length(values, body, {18: _credit_code}, Reason.BAD_LENGTH)


# Characters looked at: the longest prefix, "+860", and fifteen digits fit; what is longer is refused unread.
_PHONE_INPUT: Final = 24


def _phone_check(values: Values, body: U8, _limits: Limits) -> U8:
    """E.164: `+`, country code, number; fifteen digits at most. Chinese numbers may come in national form."""
    text = values.padded(_PHONE_INPUT)
    lengths = values.lengths
    plus = text[:, 0] == ord("+")
    zero = text[:, 0] == ord("0")
    double_zero = zero & (text[:, 1] == ord("0"))
    china = (text[:, 0] == ord("8")) & (text[:, 1] == ord("6")) & (text[:, 2] == ord("1")) & (lengths == 13)
    international = plus | double_zero | china
    mobile = (text[:, 0] == ord("1")) & (lengths == 11)
    national = mobile | (zero & ~double_zero)
    # (1) Drop the prefix: "+", "00", or the trunk zero of a number in national form.
    skip = plus.astype(np.int64) + 2 * double_zero + (zero & ~double_zero)
    start, count = values.starts + skip, np.maximum(lengths - skip, 0)
    # (2) "+86 0755…" is a common misspelling: no Chinese number starts with the trunk zero abroad.
    digits = Values(values.data, start, count).padded(_PHONE_INPUT)
    to_china = international & (digits[:, 0] == ord("8")) & (digits[:, 1] == ord("6"))
    trunk = to_china & (digits[:, 2] == ord("0"))
    # (3) The significant number, without 86 where it is Chinese.
    drop = 2 * to_china.astype(np.int64) + trunk
    chinese = to_china | national
    significant = Values(values.data, start + drop, np.maximum(count - drop, 0))
    digits = significant.padded(_PHONE_INPUT)
    total = significant.lengths + 2 * chinese

    reasons = np.zeros(len(values), dtype=np.uint8)
    inside = np.arange(_PHONE_INPUT) < significant.lengths[:, np.newaxis]
    same = _all((digits == digits[:, :1]) | ~inside)
    _mark(reasons, same, Reason.PLACEHOLDER)
    _mark(reasons, ~(chinese | international) | (digits[:, 0] == ord("0")), Reason.NO_COUNTRY_CODE)
    _mark(reasons, ~_all(_is_digit(digits) | ~inside), Reason.BAD_CHARACTER)
    short = np.where(chinese, significant.lengths < 10, total < 7)
    long = np.where(chinese, significant.lengths > 11, total > 15)
    _mark(reasons, short | long, Reason.BAD_LENGTH)

    body[:, 0] = ord("+")
    _write_digits(body, np.flatnonzero(~chinese), b"", digits)
    _write_digits(body, np.flatnonzero(chinese), b"86", digits)
    return reasons


def _write_digits(body: U8, rows: I64, prefix: bytes, digits: U8) -> None:
    at = 1 + len(prefix)
    body[rows, 1:at] = np.frombuffer(prefix, dtype=np.uint8)
    body[rows, at:] = digits[rows, : body.shape[1] - at]


_RULES: Final = {
    "resident-id": Rule(b"RIC:", 18, _resident_check),
    "hmt-permit": Rule(b"HMT:", 18, _permit_check),
    "foreign-permanent-resident": Rule(b"FPR:", 18, _foreign_resident_check),
    "uscc": Rule(b"USCC:", 18, _credit_code_check),
    "phone": Rule(b"TEL:", 16, _phone_check, _PHONE_SEPARATORS),
}
