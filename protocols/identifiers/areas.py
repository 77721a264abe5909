"""Tables of area codes (GB/T 2260) that were ever valid.

An area code is tested against every code that was ever in force, never against those of the birth year: a
number is given at registration, not at birth, and codes change afterwards, so that test rejects most numbers
that are really in use.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from protocols.codes.national import DEMO_DISTRICTS, GBT2260_PROVINCES
from protocols.errors import InputError

_CODE = re.compile(r"[0-9]{6}|[0-9]{4}|[0-9]{2}", re.ASCII)

_ELSEWHERE: Final = ("71", "81", "82")


@dataclass(frozen=True, slots=True, eq=False)
class AreaTable:
    """A frozen set of six-digit area codes. Tables are equal when they list the same codes.

    Build one with `of` or `parse`. The digest of the codes is part of `rule_version`, so that two
    departments with different tables see that they differ.
    """

    listed: npt.NDArray[np.bool_] = field(repr=False)  # 1,000,000 flags, by code
    digest: str  # SHA-256 of the packed flags, hex

    @classmethod
    def of(cls, codes: Iterable[str]) -> Self:
        """Return the table of these codes.

        Args:
            codes: six digits each; four or two digits list every code below that prefecture or province.

        Raises:
            InputError: a code that is not two, four or six ASCII digits, or no code at all.
        """
        listed = np.zeros(1_000_000, dtype=np.bool_)
        for position, code in enumerate(codes):
            if not _CODE.fullmatch(code):
                raise InputError(
                    f"area code number {position + 1} is not two, four or six digits",
                    code="bad-area-table",
                    hint="list GB/T 2260 codes, or prefixes of two or four digits",
                )
            span = 10 ** (6 - len(code))
            first = int(code) * span
            listed[first : first + span] = True
        if not listed.any():
            raise InputError(
                "area table without a code, expected at least one",
                code="bad-area-table",
                hint="an empty table would reject every resident number",
            )
        listed.setflags(write=False)
        return cls(listed, hashlib.sha256(np.packbits(listed).tobytes()).hexdigest())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the table in `text`: a code at the start of each line, then anything after a comma or space.

        Empty lines and lines that start with `#` are skipped. The caller reads the file.

        Raises:
            InputError: a line that does not start with a code, or no code at all.
        """
        lines = (line.strip() for line in text.removeprefix("\ufeff").splitlines())
        return cls.of(re.split(r"[,;\s]", line, maxsplit=1)[0] for line in lines if line and line[0] != "#")

    def provinces(self) -> npt.NDArray[np.bool_]:
        """Return 100 flags: which two-digit province codes have a listed area."""
        flags: npt.NDArray[np.bool_] = np.logical_or.reduce(self.listed.reshape(100, 10_000), axis=1)
        return flags

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AreaTable) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@cache
def province_area_table() -> AreaTable:
    """Return the shipped table: any area of the 31 provinces, regions and municipalities of the mainland.

    It knows provinces only: 46 (Hainan, since 1988) and 50 (Chongqing, since 1997) included, every four-digit
    rest accepted. It finds a wrong province, not a wrong county. A department that wants counties loads the
    full list of codes, past ones included, with `AreaTable.parse`. 71, 81, 82 and 83 are left out on purpose:
    numbers with 810000, 820000 and 830000 are residence permits and have a type of their own.
    """
    return AreaTable.of(code[:2] for code in GBT2260_PROVINCES.titles if not code.startswith(_ELSEWHERE))


@cache
def demo_area_table() -> AreaTable:
    """Return the eleven fictional districts 990101 to 990111. No real number begins with 99 0."""
    return AreaTable.of(DEMO_DISTRICTS)


AREA_TABLES: Final[Mapping[str, Callable[[], AreaTable]]] = {
    "national": province_area_table,
    "demo-city": demo_area_table,
}
"""The area tables that a job may name."""


def area_table(name: object) -> AreaTable:
    """Return the area table that a job names.

    Raises:
        InputError: no such table in this version.
    """
    found = AREA_TABLES.get(name) if isinstance(name, str) else None
    if found is None:
        raise InputError(
            "params.areas names no area table of this version",
            code="bad-params",
            hint="leave it out for the national table; known: " + ", ".join(AREA_TABLES),
        )
    return found()
