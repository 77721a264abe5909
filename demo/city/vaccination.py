"""The right answers of scenario 6: people of each kind, vaccinated and not, on each list and on joined lists.

Every feature is a band or a code, so a table of counts holds all that a model can learn from: `cells` of a
question are the vaccinated and the others for each combination that occurs. What a model makes of them is
reckoned from the cells, by the recipe that the job names, when the scenario is played.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt

from demo.city.people import People
from demo.city.plan import Ints, Plan
from demo.city.profile import SNAPSHOT
from demo.city.registers import DISTRICT_LISTS, Extract
from demo.city.uptake import WIDTHS, bands, uptake

RESIDENTS: Final = "police/residents"
IMMUNISATION: Final = "health/immunisation"
ENROLLED: Final = "medical-insurance/enrolled"

JOINED_LISTS: Final = (RESIDENTS, IMMUNISATION, ENROLLED)
COUNTED_VACCINATION: Final = frozenset({*DISTRICT_LISTS, *JOINED_LISTS})

JOINED: Final = "joined"
"""The question about those who are on all of JOINED_LISTS; the others are named after their list."""

_QUESTIONS: Final = (*DISTRICT_LISTS, IMMUNISATION, JOINED)
_SHAPE: Final = (*WIDTHS.values(), 2)
_SIZE: Final = int(np.prod(_SHAPE))


@dataclass(frozen=True, slots=True)
class Cells:
    """Of so many people, who is vaccinated.

    Args:
        persons: how many.
        vaccinated: of these.
        cells: by one digit for each of WIDTHS, people who are not vaccinated, and who are.
    """

    persons: int
    vaccinated: int
    cells: Mapping[str, tuple[int, int]]

    @property
    def people(self) -> tuple[Ints, Ints]:
        """Everybody's codes, n x 7 in the order of WIDTHS, and n labels, 1 for vaccinated."""
        codes = np.array([[int(digit) for digit in code] for code in self.cells], dtype=np.int64)
        counts = np.array(list(self.cells.values()), dtype=np.int64)
        labels = np.repeat(np.tile([0, 1], len(codes)), counts.ravel())
        return np.repeat(codes, counts.sum(axis=1), axis=0), labels


@dataclass(frozen=True, slots=True)
class Vaccination:
    """Scenario 6: a model of who is vaccinated against influenza (接种率模型).

    Args:
        schema, scenario, profile, seed, snapshot: see `Expected`.
        lists: people on each list, by `organisation/table`.
        questions: by name of the list, or JOINED.
    """

    SCHEMA: ClassVar[str] = "minshu-city-vaccination/1"
    FILE: ClassVar[str] = "scenario-6"

    schema: str
    scenario: int
    profile: str
    seed: int
    snapshot: str
    lists: Mapping[str, int]
    questions: Mapping[str, Cells]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the record whose plain form this is."""
        questions = {
            name: Cells(
                each["persons"],
                each["vaccinated"],
                {code: (others, vaccinated) for code, (others, vaccinated) in each["cells"].items()},
            )
            for name, each in ((name, value["questions"][name]) for name in _QUESTIONS)
        }
        return cls(**{**value, "questions": questions})


class VaccinationTally:
    """Counts what scenario 6 asks, block by block."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.lists = dict.fromkeys(sorted(COUNTED_VACCINATION), 0)
        self.cells: dict[str, Ints] = {name: np.zeros(_SIZE, dtype=np.int64) for name in _QUESTIONS}

    def count(self, people: People, counted: Mapping[str, Extract]) -> None:
        """Count one block."""
        found = uptake(people)
        codes = np.column_stack([bands(people, found), found.vaccinated.astype(np.int64)])
        cell = np.ravel_multi_index(tuple(codes.T), _SHAPE)
        on = {name: _listed(counted[name], len(cell)) for name in self.lists}
        for name, persons in on.items():
            self.lists[name] += int(persons.sum())
        on[JOINED] = np.logical_and.reduce([on[name] for name in JOINED_LISTS])
        for name, counts in self.cells.items():
            counts[:] += np.bincount(cell[on[name]], minlength=_SIZE)

    def add(self, other: "VaccinationTally") -> None:
        """Take in another block's counts."""
        for name, persons in other.lists.items():
            self.lists[name] += persons
        for name, cells in other.cells.items():
            self.cells[name] += cells

    def answer(self, seed: int) -> Vaccination:
        """Return the right answer."""
        return Vaccination(
            Vaccination.SCHEMA, 6, self._plan.profile.name, seed, SNAPSHOT.isoformat(),
            dict(self.lists), {name: _cells(cells) for name, cells in self.cells.items()},
        )  # fmt: skip


def _listed(extract: Extract, persons: int) -> npt.NDArray[np.bool_]:
    """Return who of a block's people is on a list."""
    found = np.zeros(persons, dtype=np.bool_)
    found[extract.who[extract.who >= 0]] = True
    return found


def _cells(counts: Ints) -> Cells:
    pairs = counts.reshape(-1, 2)
    there = np.flatnonzero(pairs.sum(axis=1))
    codes = np.column_stack(np.unravel_index(there, _SHAPE[:-1])).tolist()
    return Cells(
        int(counts.sum()),
        int(pairs[:, 1].sum()),
        {
            "".join(map(str, code)): (others, vaccinated)
            for code, (others, vaccinated) in zip(codes, pairs[there].tolist(), strict=True)
        },
    )
