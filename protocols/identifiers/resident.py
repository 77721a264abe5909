"""Resident identity numbers, GB 11643-1999: six digits of area, eight of birth, three of sequence, a check.

The check character is ISO 7064 MOD 11-2: the weighted sum of all eighteen, X counting ten, is 1 mod 11.
"""

from datetime import date
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.errors import InputError

WEIGHTS: Final = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
"""Weight of each of the first seventeen digits: 2^(17-i) mod 11, i from 0."""

CHECK_CHARACTERS: Final = b"10X98765432"
"""Check character by the weighted sum of the seventeen digits, mod 11."""

# One look-up instead of a division; indexed by every uint16, so that a sum over bytes that are no digits
# (refused for its characters elsewhere) stays inside the table.
_CHECK_BY_SUM: Final = np.frombuffer(CHECK_CHARACTERS, dtype=np.uint8)[np.arange(1 << 16) % 11]


def check_characters(digits: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the check character, as ASCII code, of each column of `digits`.

    Args:
        digits: at least 17 x n, values 0 to 9, one number per column; rows past the seventeenth are ignored.
    """
    sums = np.zeros(digits.shape[1], dtype=np.uint16)
    term = np.empty_like(sums)
    for row, weight in enumerate(WEIGHTS):
        np.multiply(digits[row], np.uint16(weight), out=term)
        sums += term
    return _CHECK_BY_SUM[sums]


def resident_id_check_digits(bodies: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the check character of each body, as ASCII code: `0`..`9` or `X`.

    Args:
        bodies: n x 17, ASCII digits (0x30..0x39).

    Returns:
        n ASCII codes.

    Raises:
        InputError: another shape or dtype, or a byte that is not an ASCII digit.
    """
    if bodies.dtype != np.uint8 or bodies.ndim != 2 or bodies.shape[1] != len(WEIGHTS):
        raise InputError(
            f"bodies of dtype {bodies.dtype} and shape {bodies.shape}, expected uint8 and (n, 17)",
            code="bad-shape",
            hint="give one row of seventeen ASCII digits per number",
        )
    digits = np.ascontiguousarray(bodies.T) - np.uint8(0x30)
    if digits.size and digits.max() > 9:
        raise InputError(
            "a body holds a byte that is not an ASCII digit",
            code="bad-character",
            hint="give the digits as ASCII codes 0x30 to 0x39, not as values 0 to 9",
        )
    return check_characters(digits)


def check_digit(body: str) -> str:
    """Return the check character, `0`..`9` or `X`, of seventeen ASCII digits.

    Raises:
        InputError: not seventeen ASCII digits.
    """
    _require_digits("body", body, len(WEIGHTS))
    total = sum(weight * int(digit) for weight, digit in zip(WEIGHTS, body, strict=True))
    return chr(CHECK_CHARACTERS[total % 11])


def resident_id(area: str, birth: date, sequence: int) -> str:
    """Return the eighteen-character number of an area, a birth date and a sequence number.

    Args:
        area: six ASCII digits, GB/T 2260.
        birth: date of birth.
        sequence: 0 to 999; odd for men, even for women.

    Raises:
        InputError: the area is not six digits or the sequence does not fit three.
    """
    _require_digits("area", area, 6)
    if not 0 <= sequence <= 999:
        raise InputError(
            "sequence number does not fit three digits, expected 0 to 999",
            code="bad-sequence",
            hint="odd numbers are for men, even ones for women",
        )
    body = f"{area}{birth.isoformat().replace('-', '')}{sequence:03d}"
    return body + check_digit(body)


def _require_digits(what: str, text: str, length: int) -> None:
    if len(text) != length:
        raise InputError(
            f"{what} of {len(text)} characters, expected {length}",
            code="bad-length",
            hint=f"give exactly {length} ASCII digits",
        )
    if not (text.isascii() and text.isdigit()):
        raise InputError(
            f"{what} holds a character that is not an ASCII digit",
            code="bad-character",
            hint=f"give exactly {length} ASCII digits",
        )
