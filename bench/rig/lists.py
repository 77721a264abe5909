"""Two lists of distinct resident IDs, half of each in common, as CSV files of one column in random order."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.identifiers import resident_id_check_digits

COLUMN: Final = "resident_id"
MAX_PERSONS: Final = 11 * 20_000 * 1000

_DISTRICTS: Final = 990101 + np.arange(11)  # the fictional ones, which exist in `demo_area_table`
_BLOCK: Final = 1 << 18
_FIRST_DAY: Final = np.datetime64("1950-01-01")


@dataclass(frozen=True, slots=True)
class Lists:
    """The two files, and how many persons are on both."""

    receiver: Path
    sender: Path
    common: int


def write_lists(folder: Path, size: int, *, seed: int = 1) -> Lists:
    """Write two lists of `size` persons each.

    Raises:
        ValueError: an odd size, or more persons than there are numbers.
    """
    if size % 2 or size * 3 // 2 > MAX_PERSONS:
        raise ValueError(f"{size} persons a list")
    half = size // 2
    made = Lists(folder / f"receiver-{size}.csv", folder / f"sender-{size}.csv", half)
    rng = np.random.Generator(np.random.Philox(seed))
    for path, first in ((made.receiver, 0), (made.sender, half)):
        persons = rng.permutation(np.arange(first, first + size))
        with path.open("wb") as file:
            file.write(COLUMN.encode() + b"\n")
            for start in range(0, size, _BLOCK):
                file.write(id_lines(persons[start : start + _BLOCK]))
    return made


def id_lines(persons: npt.NDArray[np.int64]) -> bytes:
    """Return the IDs of these persons, a line each: person p has the p-th number of a fixed order."""
    rest, sequence = np.divmod(persons, 1000)
    rest, district = np.divmod(rest, len(_DISTRICTS))
    days = _FIRST_DAY + rest.astype("timedelta64[D]")
    months = days.astype("datetime64[M]")
    years = days.astype("datetime64[Y]").astype(np.int64) + 1970
    month = months.astype(np.int64) % 12 + 1
    day = (days - months).astype(np.int64) + 1
    body = _DISTRICTS[district] * 10**11 + years * 10**7 + month * 10**5 + day * 10**3 + sequence
    digits = (body[:, None] // 10 ** np.arange(16, -1, -1) % 10 + ord("0")).astype(np.uint8)
    ends = np.full((len(persons), 1), ord("\n"), dtype=np.uint8)
    return np.column_stack((digits, resident_id_check_digits(digits), ends)).tobytes()
