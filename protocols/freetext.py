"""What people write in their own words: what of it leaves a department, and what a terminal shows."""

import re
import unicodedata
from typing import Final

# Controls, line separators, direction marks, invisible and tag characters: people approve what they read.
UNREADABLE: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)
"""A character that a terminal or an editor shows as something else, or not at all."""

_LONG_NUMBER: Final = re.compile(r"\d{11}")


def could_identify(text: str) -> bool:
    """Whether a text holds eleven digits in a row, in any script: a mobile number has as many, an id more."""
    return _LONG_NUMBER.search(text) is not None


def printable(text: str) -> str:
    r"""Return a line of text for a terminal: what is unreadable in it is spelled out, such as `\x1b`."""
    return UNREADABLE.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


def folded(text: str) -> str:
    """Return a text as it is looked for: without blanks, in one width and one case (Unicode NFKC)."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
