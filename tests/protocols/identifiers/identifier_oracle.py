"""The rules of SPEC.md once more: one value at a time, with strings, dates and no numpy.

Nothing here is taken from the package but the two frozen tables of codes that a caller hands over.
"""

import re
import unicodedata
from datetime import date

_WITHOUT_WIDTH = {0xAD, 0x34F, 0x61C, 0x180E, 0xFEFF} | {
    point
    for first, last in ((0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F))
    for point in range(first, last + 1)
}
_DASHES = set("().-\u2010\u2011\u2012\u2013\u2014\u2015\u2212")


def oracle(value, kind, as_of, codes, countries):
    """Return (key, "accepted") or (None, reason) for str, bytes or None."""
    if value is None:
        return None, "null"
    raw = value.encode() if isinstance(value, str) else value
    if len(raw) > 256:
        return None, "bad-length"
    try:
        text = unicodedata.normalize("NFKC", raw.decode())
    except UnicodeDecodeError:
        return None, "not-utf8"
    text = "".join(c for c in text if not c.isspace() and ord(c) not in _WITHOUT_WIDTH)
    if kind == "phone":
        text = "".join(c for c in text if c not in _DASHES)
    text = "".join(c.upper() if c.isascii() else c for c in text)
    if not text:
        return None, "empty"
    prefix, _, country = kind.partition(":")
    if kind == "resident-id":
        return _resident(text, as_of, codes)
    if kind == "hmt-permit":
        return _permit(text, as_of)
    if kind == "foreign-permanent-resident":
        return _foreign(text, as_of, codes, countries)
    if prefix == "passport":
        return _passport(text, country)
    if kind == "uscc":
        return _organisation(text)
    assert kind == "phone"
    return _phone(text)


def mod_11_2(body):
    """ISO 7064's pure recursive form, which needs no weights."""
    product = 0
    for digit in body:
        product = (product + int(digit)) * 2 % 11
    return "0123456789X"[(12 - product) % 11]


def _day_fault(year, month, day, as_of):
    try:
        born = date(year, month, day)
    except ValueError:
        return "bad-date"
    if born > as_of:
        return "future-date"
    had_birthday = (as_of.month, as_of.day) >= (born.month, born.day)
    age = as_of.year - born.year - (0 if had_birthday else 1)
    return "over-120" if age > 120 else None


def _eighteen_fault(text, as_of):
    if not re.fullmatch(r"[0-9]{17}[0-9X]", text):
        return "bad-character"
    if mod_11_2(text[:17]) != text[17]:
        return "bad-check-digit"
    return _day_fault(int(text[6:10]), int(text[10:12]), int(text[12:14]), as_of)


def _listed(area, codes):
    return any(area.startswith(code) for code in codes)


def _resident(text, as_of, codes):
    if len(text) == 15:
        if not re.fullmatch(r"[0-9]{15}", text):
            return None, "bad-character"
        body = text[:6] + ("18" if text[12:] in ("996", "997", "998", "999") else "19") + text[6:]
        text = body + mod_11_2(body)
    if len(text) != 18:
        return None, "bad-length"
    fault = _eighteen_fault(text, as_of)
    if fault:
        return None, fault
    if text[:6] in ("810000", "820000", "830000"):
        return None, "other-type"
    if not _listed(text[:6], codes):
        return None, "unknown-area"
    return f"RIC:{text}", "accepted"


def _permit(text, as_of):
    if len(text) != 18:
        return None, "bad-length"
    fault = _eighteen_fault(text, as_of)
    if fault:
        return None, fault
    if text[:6] not in ("810000", "820000", "830000"):
        return None, "other-type"
    return f"HMT:{text}", "accepted"


def _foreign(text, as_of, codes, countries):
    provinces = {code[:2] for code in codes}
    if len(text) == 18:
        fault = _eighteen_fault(text, as_of)
        if fault:
            return None, fault
        if text[0] != "9":
            return None, "other-type"
        return (f"FPR:{text}", "accepted") if text[1:3] in provinces else (None, "unknown-area")
    if len(text) != 15:
        return None, "bad-length"
    if not re.fullmatch(r"[A-Z]{3}[0-9]{12}", text):
        return None, "bad-character"
    if sum(int(c, 36) * (7, 3, 1)[i % 3] for i, c in enumerate(text[:14])) % 10 != int(text[14]):
        return None, "bad-check-digit"
    faults = [
        _day_fault(century + int(text[7:9]), int(text[9:11]), int(text[11:13]), as_of)
        for century in (1900, 2000)
    ]
    if None not in faults:
        return None, faults[1]
    if text[:3] not in countries:
        return None, "unknown-country"
    return (f"FPR:{text}", "accepted") if text[3:5] in provinces else (None, "unknown-area")


def _passport(text, country):
    if not 5 <= len(text) <= 9:
        return None, "bad-length"
    if not re.fullmatch(r"[0-9A-Z]*", text):
        return None, "bad-character"
    if len(set(text)) == 1 or not re.search(r"[0-9]", text):
        return None, "placeholder"
    return f"PP:{country}:{text}", "accepted"


def _organisation(text):
    alphabet = "0123456789ABCDEFGHJKLMNPQRTUWXY"
    if len(text) != 18:
        return None, "bad-length"
    if not re.fullmatch(rf"[{alphabet}]{{2}}[0-9]{{6}}[{alphabet}]{{10}}", text):
        return None, "bad-character"
    if sum(alphabet.index(c) * 3**i for i, c in enumerate(text[:17])) % 31 != -alphabet.index(text[17]) % 31:
        return None, "bad-check-digit"
    if len(set(text)) == 1:
        return None, "placeholder"
    return f"USCC:{text}", "accepted"


def _phone(text):
    chinese = abroad = False
    number = text
    if text.startswith("+"):
        abroad, number = True, text[1:]
    elif text.startswith("00"):
        abroad, number = True, text[2:]
    elif text.startswith("0"):
        chinese, number = True, text[1:]
    elif text.startswith("861") and len(text) == 13:
        abroad = True
    elif text.startswith("1") and len(text) == 11:
        chinese = True
    if abroad and number.startswith("86"):
        chinese, abroad, number = True, False, number[2:].removeprefix("0")
    if not ((10 <= len(number) <= 11) if chinese else (7 <= len(number) <= 15)):
        return None, "bad-length"
    if not re.fullmatch(r"[0-9]*", number):
        return None, "bad-character"
    if not (chinese or abroad) or number.startswith("0"):
        return None, "no-country-code"
    if len(set(number)) == 1:
        return None, "placeholder"
    return f"TEL:+{'86' if chinese else ''}{number}", "accepted"
