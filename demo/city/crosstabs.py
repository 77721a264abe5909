"""The right answers of scenarios 3, 4 and 9: exact counts, before disclosure control and before noise.

Counted are people, each once per register, by the newest of their rows that have a cell: the generator knows
whose row is whose, so no identifier is read to get them. Beside them stands what is so, whoever knows it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from demo.city.people import People, primary_year
from demo.city.plan import Ints, Plan
from demo.city.profile import SNAPSHOT
from demo.city.registers import Extract

REGISTER: Final = "police/register"
"""Scenario 3's register."""

CHILDREN_LISTS: Final = ("health/births", "police/register", "housing/leases")
"""Scenario 4's lists: newborns, children with a household register here, and children on a lease."""

VILLAGE_LISTS: Final = ("telecom/monthly", "police/population", "housing/leases")
"""Scenario 9's lists."""

COUNTED: Final = frozenset({REGISTER, *CHILDREN_LISTS, *VILLAGE_LISTS})

PRIMARY_YEARS: Final = tuple(str(SNAPSHOT.year + ahead) for ahead in range(1, 7))
"""Years in which those who are 0 to 5 years old enter primary school."""


@dataclass(frozen=True, slots=True)
class Separation:
    """Scenario 3: where people are registered, and where they live (人户分离).

    Args:
        schema, scenario, profile, seed, snapshot: see `Expected`.
        persons: people on the household register; the dead that are still on it, too.
        separated: of these, who live in another street of the city than they are registered in.
        streets: persons per street of registration and street of residence; pairs without any are left out.
    """

    SCHEMA: ClassVar[str] = "minshu-city-separation/1"

    schema: str
    scenario: int
    profile: str
    seed: int
    snapshot: str
    persons: int
    separated: int
    streets: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class SchoolPlaces:
    """Scenario 4: children who will enter primary school, and the places there are (学位).

    Args:
        schema, scenario, profile, seed, snapshot: see `Expected`.
        lists: children that each list counts, by `organisation/table`; no child is in two of them.
        children: children of all lists together per street and year of entry; years without any are left out.
        places: school places per street and stage.
        living: children who do live in each street, per year of entry, on a list or not.
    """

    SCHEMA: ClassVar[str] = "minshu-city-school-places/1"

    schema: str
    scenario: int
    profile: str
    seed: int
    snapshot: str
    lists: Mapping[str, int]
    children: Mapping[str, Mapping[str, int]]
    places: Mapping[str, Mapping[str, int]]
    living: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Villages:
    """Scenario 9: people in urban villages (城中村), as three departments know them.

    Args:
        schema, scenario, profile, seed, snapshot: see `Expected`.
        villages: people per village on each list, by `organisation/table`; every village is there.
        living: people who do live in each village.
    """

    SCHEMA: ClassVar[str] = "minshu-city-villages/1"

    schema: str
    scenario: int
    profile: str
    seed: int
    snapshot: str
    villages: Mapping[str, Mapping[str, int]]
    living: Mapping[str, int]


class Crosstabs:
    """Counts what scenarios 3, 4 and 9 ask, block by block."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        streets, years, villages = len(plan.street_codes), len(PRIMARY_YEARS), len(plan.village_codes)
        shapes = {
            "separation": (streets, streets),
            "children": (len(CHILDREN_LISTS), streets, years),
            "living children": (streets, years),
            "villages": (len(VILLAGE_LISTS), villages),
            "living villagers": (villages,),
        }
        self.counts: dict[str, Ints] = {name: np.zeros(s, dtype=np.int64) for name, s in shapes.items()}

    def count(self, people: People, counted: Mapping[str, Extract]) -> None:
        """Count one block."""
        streets, villages = self._plan.street_codes, self._plan.village_codes
        register = counted[REGISTER]
        _count_people(
            self.counts["separation"],
            register,
            _index(register.rows["register_street"], streets),
            _index(register.rows["residence_street"], streets),
        )
        for part, name in zip(self.counts["children"], CHILDREN_LISTS, strict=True):
            rows = counted[name].rows
            place = rows["residence_street" if name == REGISTER else "street"]
            year = _index(rows["primary_year"], PRIMARY_YEARS)
            year[_index(rows["authoritative"], ("yes",)) < 0] = -1
            _count_people(part, counted[name], _index(place, streets), year)
        for part, name in zip(self.counts["villages"], VILLAGE_LISTS, strict=True):
            _count_people(part, counted[name], _index(counted[name].rows["village"], villages))
        here = np.flatnonzero(people.living)
        year = primary_year(people.age[here]) - int(PRIMARY_YEARS[0])
        year = np.where((year >= 0) & (year < len(PRIMARY_YEARS)), year, -1)
        _count(self.counts["living children"], people.street[here], year)
        _count(self.counts["living villagers"], people.village(here, people.street[here]))

    def add(self, other: "Crosstabs") -> None:
        """Take in another block's counts."""
        for name, counts in other.counts.items():
            self.counts[name] += counts

    def separation(self, seed: int) -> Separation:
        """Return the right answer of scenario 3."""
        matrix, profile = self.counts["separation"], self._plan.profile.name
        streets = _nested(self._plan.street_codes, self._plan.street_codes, matrix)
        persons = int(matrix.sum())
        return Separation(
            Separation.SCHEMA, 3, profile, seed, SNAPSHOT.isoformat(),
            persons, persons - int(np.trace(matrix)), streets,
        )  # fmt: skip

    def school_places(self, seed: int, places: pa.Table) -> SchoolPlaces:
        """Return the right answer of scenario 4; `places` is the register of that name."""
        streets, profile = self._plan.street_codes, self._plan.profile.name
        by_stage: dict[str, dict[str, int]] = {street: {} for street in streets}
        for row in places.to_pylist():
            by_stage[row["street"]][row["stage"]] = row["places"]
        children = self.counts["children"]
        sums = children.sum(axis=(1, 2)).tolist()
        return SchoolPlaces(
            SchoolPlaces.SCHEMA, 4, profile, seed, SNAPSHOT.isoformat(),
            dict(zip(CHILDREN_LISTS, sums, strict=True)),
            _nested(streets, PRIMARY_YEARS, children.sum(axis=0)),
            by_stage,
            _nested(streets, PRIMARY_YEARS, self.counts["living children"]),
        )  # fmt: skip

    def villages(self, seed: int) -> Villages:
        """Return the right answer of scenario 9."""
        codes, profile = self._plan.village_codes, self._plan.profile.name
        by_village = dict(zip(codes, self.counts["villages"].T.tolist(), strict=True))
        return Villages(
            Villages.SCHEMA, 9, profile, seed, SNAPSHOT.isoformat(),
            {code: dict(zip(VILLAGE_LISTS, counts, strict=True)) for code, counts in by_village.items()},
            dict(zip(codes, self.counts["living villagers"].tolist(), strict=True)),
        )  # fmt: skip


def _index(column: pa.ChunkedArray, values: tuple[str, ...]) -> Ints:
    """Return where each coded text stands among `values`, -1 for null and for what is not there."""
    codes = column.combine_chunks()
    found = pc.index_in(codes.dictionary, value_set=pa.array(values)).take(codes.indices)
    index: Ints = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    return index


def _count_people(into: Ints, register: Extract, *axes: Ints) -> None:
    """Add one for each person at the cell of the row that counts."""
    rows = register.counting(np.logical_and.reduce([axis >= 0 for axis in axes]))
    _count(into, *(axis[rows] for axis in axes))


def _count(into: Ints, *axes: Ints) -> None:
    """Add one for each entry at the cell that `axes` name; entries with a -1 have none."""
    inside = np.logical_and.reduce([axis >= 0 for axis in axes])
    np.add.at(into, tuple(axis[inside] for axis in axes), 1)


def _nested(rows: tuple[str, ...], columns: tuple[str, ...], table: Ints) -> dict[str, dict[str, int]]:
    """Return the cells above zero by row and column; every row is there."""
    return {
        row: {columns[at]: int(counts[at]) for at in np.flatnonzero(counts)}
        for row, counts in zip(rows, table, strict=True)
    }
