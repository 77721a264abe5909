"""Why hashing identifiers protects nobody: a plain SHA-256 list of resident IDs, read back at once."""

import hashlib
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from protocols.identifiers import resident_id_check_digits

CITY_CANDIDATES = 11 * 120 * 366 * 1000
"""Possible resident IDs of one city: 11 districts, 120 birth years, 366 days, 1000 sequence numbers."""


@dataclass(frozen=True, slots=True)
class Cracked:
    """What came of it."""

    hashes: int
    found: int
    candidates: int
    seconds: float

    @property
    def city_minutes(self) -> float:
        """Extrapolated minutes for every candidate of a whole city on one core at the measured pace."""
        return CITY_CANDIDATES / (self.candidates / self.seconds) / 60


def candidates(area: str, year: int) -> list[bytes]:
    """Return every resident ID of one area and birth year (GB 11643), check digit included."""
    first = date(year, 1, 1)
    days = [first + timedelta(days=n) for n in range((date(year + 1, 1, 1) - first).days)]
    bodies = [f"{area}{day:%Y%m%d}{seq:03d}" for day in days for seq in range(1000)]
    digits = np.frombuffer("".join(bodies).encode("ascii"), dtype=np.uint8).reshape(-1, 17)
    checks = resident_id_check_digits(digits)
    return [body.encode() + bytes((check,)) for body, check in zip(bodies, checks.tolist(), strict=True)]


def crack(hashes: Collection[bytes], area: str, year: int) -> Cracked:
    """Try every resident ID of `area` and `year` against a list of SHA-256 digests."""
    started = time.perf_counter()
    wanted = frozenset(hashes)
    guesses = candidates(area, year)
    sha256 = hashlib.sha256
    found = sum(1 for guess in guesses if sha256(guess).digest() in wanted)
    return Cracked(len(wanted), found, len(guesses), time.perf_counter() - started)
