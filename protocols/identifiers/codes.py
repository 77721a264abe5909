"""Codes of sex (GB/T 2261.1) and marital status (GB/T 2261.2), and the words that registers use for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from protocols.codes.national import GBT2261_1, GBT2261_2
from protocols.identifiers.names import normalise_name


@dataclass(frozen=True, slots=True)
class Coded:
    """A code of the national standard; `note` says what the code alone would lose."""

    code: str
    note: str = ""


SEX: Final[Mapping[str, str]] = GBT2261_1.titles
"""GB/T 2261.1-2003, code to title."""

MARITAL: Final[Mapping[str, str]] = GBT2261_2.titles
"""GB/T 2261.2-2003, code to title."""

DE_FACTO_NOTE: Final = "de-facto-marriage"

_SEX_WORDS: Final[Mapping[str, str]] = {
    "未知": "0",
    "不详": "0",
    "男": "1",
    "M": "1",
    "女": "2",
    "F": "2",
    "未说明": "9",
} | {title: code for code, title in SEX.items()}

# 事实婚姻 is no registered marriage, so it must not count as 20; the standard has no code of its own for it.
_MARITAL_WORDS: Final[Mapping[str, Coded]] = {
    "有配偶": Coded("20"),
    "初婚有配偶": Coded("21"),
    "再婚有配偶": Coded("22"),
    "复婚有配偶": Coded("23"),
    "丧偶未再婚": Coded("30"),
    "离异": Coded("40"),
    "离婚未再婚": Coded("40"),
    "未说明": Coded("90"),
    "事实婚姻": Coded("90", DE_FACTO_NOTE),
} | {title: Coded(code) for code, title in MARITAL.items()}


def sex_code(value: str) -> str | None:
    """Return the GB/T 2261.1 code of a code or word, None where it is neither."""
    text = normalise_name(value).upper()
    return text if text in SEX else _SEX_WORDS.get(text)


def marital_code(value: str) -> Coded | None:
    """Return the GB/T 2261.2 code of a code or word, None where it is neither; 事实婚姻 is 90 with a note."""
    text = normalise_name(value)
    return Coded(text) if text in MARITAL else _MARITAL_WORDS.get(text)
