"""How many people of which kind: every count of the city, before a single person is drawn.

Nothing here is random and nothing depends on the seed. The residents fall into *strata* (cohort, age class,
lists they are on), whose sizes come from integer arithmetic, so the right answers are exact by construction.
A stratum falls into *cells* (sex, area of the id, year of birth), and a cell's members are spread over the
blocks; (cell, number within the cell) is what makes an id unique without any block knowing another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from demo.city.profile import (
    AGE_BANDS,
    AREA_CODES,
    BIRTHS_PER_100K,
    CONFIRMED_PER_10K_FLAGGED,
    DEATHS_PER_100K,
    DISTRICT_SHARES,
    FLAGGED_PER_10K_FLOATING,
    MALE_PER_10K,
    NO_HEALTH_RECORD_PER_MILLE,
    POLICE_PER_MILLE,
    REGISTER_PER_MILLE,
    SEPARATED_PER_10K,
    SOURCE_PER_MILLE,
    SOURCES,
    UNTRUE_SHARES,
    Profile,
)

Ints = npt.NDArray[np.int64]

HR, HEALTH, EDU, HOUSING = (1 << bit for bit in range(len(SOURCES)))


class Cohort(IntEnum):
    """Why somebody is, or is not, on the police's list."""

    REGISTERED = 0
    """Household register, one id."""
    DOUBLE = 1
    """Household register; the sources carry a second, cancelled id of the same person (duplicate)."""
    FLOATING = 2
    """Floating, registered with the police."""
    MISTYPED = 3
    """Floating, registered; the sources carry a mistyped or alternative id."""
    UNREGISTERED = 4
    """Lives here, known to two sources or more, unknown to the police: what the cross-check is for."""
    LAG = 5
    """Registered after the police's extract was taken."""
    UNSEEN = 6
    """Lives here, unknown to the police, known to one source at most."""
    DEPARTED = 7
    """Left the city and the police's list; two sources or more still carry the record."""
    GONE = 8
    """Left the city; one source at most still carries the record."""
    UNCANCELLED = 9
    """Died last year and is still on the register."""
    DEAD = 10
    """Died last year."""


LIVING: Final = frozenset(
    {
        Cohort.REGISTERED,
        Cohort.DOUBLE,
        Cohort.FLOATING,
        Cohort.MISTYPED,
        Cohort.UNREGISTERED,
        Cohort.LAG,
        Cohort.UNSEEN,
    }
)
LISTED: Final = frozenset(
    {Cohort.REGISTERED, Cohort.DOUBLE, Cohort.FLOATING, Cohort.MISTYPED, Cohort.UNCANCELLED}
)
HOUSEHOLD: Final = frozenset({Cohort.REGISTERED, Cohort.DOUBLE, Cohort.UNCANCELLED, Cohort.DEAD})
SECOND_ID: Final = frozenset({Cohort.DOUBLE, Cohort.MISTYPED})
FLAGGED: Final = {
    Cohort.UNREGISTERED: "true",
    Cohort.DEPARTED: "departed",
    Cohort.MISTYPED: "typo-or-alternative-id",
    Cohort.LAG: "lag",
    Cohort.DOUBLE: "duplicate",
}
"""Cohorts whose key is in two sources or more and not on the police's list, and what each turns out to be."""

AGE_CLASSES: Final = ((0, 0), (1, 2), (3, 14), (15, 22), (23, 59), (60, 100))
"""First and last age of each class, in years."""

_INFANT, _TODDLER, _CHILD, _YOUTH, _ADULT, _OLD = range(len(AGE_CLASSES))

# Age structure of each cohort over AGE_CLASSES; assumed. REGISTERED takes what the published bands leave.
_FLOATING_AGES: Final = (8, 14, 90, 150, 690, 48)
_FLAGGED_AGES: Final = (10, 20, 110, 120, 660, 80)
_DEAD_AGES: Final = (1, 1, 2, 2, 24, 70)

# Lists of a flagged key, by age class: pattern -> weight; assumed. Each has two lists or more.
_FLAGGED_LISTS: Final[tuple[Mapping[int, int], ...]] = (
    {HEALTH | HOUSING: 1},
    {HEALTH | HOUSING: 1},
    {EDU | HEALTH: 65, EDU | HOUSING: 20, EDU | HEALTH | HOUSING: 15},
    {EDU | HOUSING: 30, EDU | HEALTH: 30, HR | HOUSING: 25, HR | HEALTH: 15},
    {HR | HOUSING: 40, HR | HEALTH: 25, HEALTH | HOUSING: 20, HR | HEALTH | HOUSING: 15},
    {HEALTH | HOUSING: 80, HR | HEALTH: 10, HR | HEALTH | HOUSING: 10},
)

# Lists of somebody unknown to the police and not flagged, by age class; assumed. One list at most.
_UNSEEN_LISTS: Final[tuple[Mapping[int, int], ...]] = (
    {0: 70, HEALTH: 30},
    {0: 70, HEALTH: 30},
    {0: 60, EDU: 20, HEALTH: 20},
    {0: 60, EDU: 10, HR: 10, HEALTH: 10, HOUSING: 10},
    {0: 60, HR: 18, HEALTH: 10, HOUSING: 12},
    {0: 70, HEALTH: 25, HOUSING: 5},
)

# Share on each list, per cent, of (registered, floating) people on the police's list, by age class; assumed.
# None: takes what the list's total leaves.
_LISTED_SHARES: Final[Mapping[int, tuple[tuple[int | None, int | None], ...]]] = {
    HR: ((0, 0), (0, 0), (0, 0), (25, 30), (None, None), (5, 5)),
    HEALTH: ((85, 70), (85, 70), (55, 45), (25, 20), (None, None), (None, None)),
    EDU: ((0, 0), (0, 0), (90, 90), (None, None), (0, 0), (0, 0)),
    HOUSING: ((4, 15), (4, 15), (5, 20), (5, 35), (15, None), (3, 15)),
}

SLOTS: Final = 211
"""Sequence numbers of people per (area, birth date, sex); a prime, so an affine map permutes them."""

_GOLDEN: Final = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Plan:
    """Every count of one profile.

    Args:
        profile: the size.
        cohort, age_class, lists, count: one entry per stratum; `lists` is a bit pattern over SOURCES.
        cell_stratum, cell_male, cell_area, cell_age, cell_count, cell_start: one entry per cell; `cell_start`
            is the number of its first member within (sex, area, year of birth).
        blocks: number of blocks.
        sizes: people per (block, stratum).
        street_codes: nine digits each: the area code and the street's number.
        street_district: index of each street's district in AREA_CODES.
        streets: living residents per (block, street).
        village_codes: the street's code, V and the village's number; as long as the national codes are,
            but no run of digits that could be somebody's number.
        village_ends: running sum of the villages' sizes (assumed), of all streets together.
        street_villages: where each street's villages begin and end on the scale of `village_ends`.
        separated: registered residents living elsewhere in the city, per block.
    """

    profile: Profile
    cohort: Ints
    age_class: Ints
    lists: Ints
    count: Ints
    cell_stratum: Ints
    cell_male: npt.NDArray[np.bool_]
    cell_area: Ints
    cell_age: Ints
    cell_count: Ints
    cell_start: Ints
    blocks: int
    sizes: Ints
    street_codes: tuple[str, ...]
    street_district: Ints
    streets: Ints
    village_codes: tuple[str, ...]
    village_ends: Ints
    street_villages: Ints
    separated: Ints

    def people(self, cohorts: frozenset[Cohort]) -> int:
        """Return how many people the cohorts hold together."""
        return int(self.count[np.isin(self.cohort, list(cohorts))].sum())

    def members(self, block: int) -> tuple[Ints, Ints]:
        """Return (number of the first member, number of members) of each cell in `block`."""
        phase = _phases(len(self.cell_count), self.blocks)
        low = (self.cell_count * block + phase) // self.blocks
        high = (self.cell_count * (block + 1) + phase) // self.blocks
        return self.cell_start + low, high - low


def largest_remainder(total: int, weights: Sequence[int]) -> list[int]:
    """Return integers in proportion to `weights` that sum to `total` (Hamilton's method)."""
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def split(sizes: Ints, totals: Ints) -> Ints:
    """Return a len(sizes) x len(totals) table with exactly these row and column sums.

    Rows are proportional to `totals` to within one person per boundary. Both sums are the same number.

    Raises:
        ValueError: a row is too small for that many columns.
    """
    ends = np.concatenate(([0], np.cumsum(sizes)))
    bounds = np.concatenate(([0], np.cumsum(totals)))
    whole = max(int(ends[-1]), 1)
    table: Ints = np.diff(np.diff(ends[:, None] * bounds[None, :] // whole, axis=0), axis=1)
    if table.size and table.min() < 0:
        raise ValueError("a row is smaller than one person per column")
    return table


@cache
def make_plan(profile: Profile) -> Plan:
    """Return the plan of `profile`."""
    strata = _strata(profile)
    cohort = np.array([stratum[0] for stratum in strata], dtype=np.int64)
    age_class = np.array([stratum[1] for stratum in strata], dtype=np.int64)
    lists = np.array([stratum[2] for stratum in strata], dtype=np.int64)
    count = np.array([stratum[3] for stratum in strata], dtype=np.int64)
    cells = _cells(cohort, age_class, count)
    blocks = -(-profile.population // profile.block)

    phase = _phases(len(cells[0]), blocks)
    sizes = np.zeros((blocks, len(count)), dtype=np.int64)
    low = phase // blocks
    for block in range(blocks):
        high = (cells[4] * (block + 1) + phase) // blocks
        sizes[block] = np.bincount(cells[0], weights=high - low, minlength=len(count)).astype(np.int64)
        low = high

    codes, district, per_street = _streets(profile)
    villages, village_ends, street_villages = _villages(profile, codes, per_street)
    living = np.isin(cohort, list(LIVING))
    registered = np.isin(cohort, [Cohort.REGISTERED, Cohort.DOUBLE])
    at_home = profile.population * REGISTER_PER_MILLE // 1000
    separated = profile.population * SEPARATED_PER_10K // 10_000
    return Plan(
        profile,
        cohort,
        age_class,
        lists,
        count,
        *cells,
        blocks=blocks,
        sizes=sizes,
        street_codes=codes,
        street_district=district,
        streets=split(sizes[:, living].sum(axis=1), per_street),
        village_codes=villages,
        village_ends=village_ends,
        street_villages=street_villages,
        separated=split(sizes[:, registered].sum(axis=1), np.array([separated, at_home - separated]))[:, 0],
    )


def _strata(profile: Profile) -> list[tuple[Cohort, int, int, int]]:
    """Return (cohort, age class, lists, count) of every stratum, living cohorts first."""
    population = profile.population
    floating = population - population * REGISTER_PER_MILLE // 1000
    flagged = FLAGGED_PER_10K_FLOATING * floating // 10_000
    confirmed = CONFIRMED_PER_10K_FLAGGED * flagged // 10_000
    departed, mistyped, lag, double = largest_remainder(flagged - confirmed, UNTRUE_SHARES)
    deaths = DEATHS_PER_100K * population // 100_000
    uncancelled = deaths * profile.uncancelled_per_mille // 1000
    listed_floating = population * POLICE_PER_MILLE // 1000 - (population - floating) - uncancelled
    unseen = floating - listed_floating - confirmed - lag

    ages: dict[Cohort, list[int]] = {
        Cohort.DOUBLE: largest_remainder(double, _FLAGGED_AGES),
        Cohort.FLOATING: largest_remainder(listed_floating - mistyped, _FLOATING_AGES),
        Cohort.MISTYPED: largest_remainder(mistyped, _FLAGGED_AGES),
        Cohort.UNREGISTERED: largest_remainder(confirmed, _FLAGGED_AGES),
        Cohort.LAG: largest_remainder(lag, _FLAGGED_AGES),
        Cohort.UNSEEN: largest_remainder(unseen, _FLOATING_AGES),
        Cohort.DEPARTED: largest_remainder(departed, _FLAGGED_AGES),
        Cohort.GONE: largest_remainder(population * 5 // 1000, _FLOATING_AGES),
        Cohort.UNCANCELLED: largest_remainder(uncancelled, _DEAD_AGES),
        Cohort.DEAD: largest_remainder(deaths - uncancelled, _DEAD_AGES),
    }
    young, middle, old = largest_remainder(population, AGE_BANDS)
    infants = BIRTHS_PER_100K * population // 100_000
    toddlers = young * 2 // 15
    youths = middle * 16 // 100
    residents = [infants, toddlers, young - infants - toddlers, youths, middle - youths, old]
    ages[Cohort.REGISTERED] = [
        total - sum(ages[cohort][index] for cohort in LIVING - {Cohort.REGISTERED})
        for index, total in enumerate(residents)
    ]

    strata: list[tuple[Cohort, int, int, int]] = []
    for cohort in Cohort:
        if cohort in FLAGGED or cohort in (Cohort.UNSEEN, Cohort.GONE):
            table = _FLAGGED_LISTS if cohort in FLAGGED else _UNSEEN_LISTS
            for index, total in enumerate(ages[cohort]):
                parts = largest_remainder(total, list(table[index].values()))
                strata += [(cohort, index, lists, n) for lists, n in zip(table[index], parts, strict=True)]
        elif cohort in (Cohort.UNCANCELLED, Cohort.DEAD):
            strata += [(cohort, index, 0, total) for index, total in enumerate(ages[cohort])]
    strata += _listed(profile, ages, strata)
    strata.sort(key=lambda stratum: (stratum[0] not in LIVING, stratum[:3]))
    return [stratum for stratum in strata if stratum[3]]


def _listed(
    profile: Profile, ages: Mapping[Cohort, Sequence[int]], others: Sequence[tuple[Cohort, int, int, int]]
) -> list[tuple[Cohort, int, int, int]]:
    """Return the strata of the people on the police's list, so that every source's total is met exactly."""
    groups = [
        (cohort, index)
        for cohort in (Cohort.REGISTERED, Cohort.FLOATING)
        for index in range(len(AGE_CLASSES))
    ]
    on_list: dict[int, dict[tuple[Cohort, int], int]] = {}
    for source, per_mille in zip(
        _LISTED_SHARES, (SOURCE_PER_MILLE[_bit(s)] for s in _LISTED_SHARES), strict=True
    ):
        shares = _LISTED_SHARES[source]
        left = profile.population * per_mille // 1000
        left -= sum(n for _, _, lists, n in others if lists & source)
        placed: dict[tuple[Cohort, int], int] = {}
        open_groups: list[tuple[Cohort, int]] = []
        for cohort, index in groups:
            share = shares[index][cohort == Cohort.FLOATING]
            if share is None:
                open_groups.append((cohort, index))
            else:
                placed[cohort, index] = ages[cohort][index] * share // 100
        if source == HEALTH:
            # The share of the old with a health record is published, for all living together.
            old = sum(ages[cohort][_OLD] for cohort in LIVING)
            recorded = old - old * NO_HEALTH_RECORD_PER_MILLE // 1000
            recorded -= sum(n for c, i, lists, n in others if c in LIVING and i == _OLD and lists & HEALTH)
            elders = [group for group in open_groups if group[1] == _OLD]
            placed |= _share_out(recorded, elders, ages)
            open_groups = [group for group in open_groups if group[1] != _OLD]
        placed |= _share_out(left - sum(placed.values()), open_groups, ages)
        on_list[source] = placed

    strata: list[tuple[Cohort, int, int, int]] = []
    for cohort, index in groups:
        # Split once per source, each part in proportion: the lists are independent within an age class.
        parts = {0: ages[cohort][index]}
        for source, placed in on_list.items():
            member = placed[cohort, index]
            sizes = np.array(list(parts.values()), dtype=np.int64)
            table = split(sizes, np.array([member, ages[cohort][index] - member]))
            parts = {
                lists | bit: int(table[row, column])
                for row, lists in enumerate(parts)
                for column, bit in enumerate((source, 0))
            }
        strata += [(cohort, index, lists, n) for lists, n in parts.items()]
    return strata


def _bit(source: int) -> int:
    return source.bit_length() - 1


def _share_out(
    total: int, groups: Sequence[tuple[Cohort, int]], ages: Mapping[Cohort, Sequence[int]]
) -> dict[tuple[Cohort, int], int]:
    """Return `total` members shared out over `groups` in proportion to their size.

    Raises:
        ValueError: the groups hold fewer people than that.
    """
    sizes = [ages[cohort][index] for cohort, index in groups]
    if not 0 <= total <= sum(sizes):
        raise ValueError(f"{total} members cannot be placed among {sum(sizes)} people")
    return dict(zip(groups, largest_remainder(total, sizes), strict=True))


def _cells(
    cohort: Ints, age_class: Ints, count: Ints
) -> tuple[Ints, npt.NDArray[np.bool_], Ints, Ints, Ints, Ints]:
    """Return stratum, sex, area, age, count and first number of every cell that has members."""
    living = np.isin(cohort, list(LIVING))
    men = np.zeros_like(count)
    for mask in (living, ~living):
        # Cumulative rounding: the men of all strata together are exact, each stratum's to within one.
        men[mask] = np.diff(np.cumsum(count[mask]) * MALE_PER_10K // 10_000, prepend=0)

    ages = 1 + AGE_CLASSES[-1][1]
    areas = len(AREA_CODES)
    table = np.zeros((2, len(count), areas, ages), dtype=np.int64)
    for index, (first, last) in enumerate(AGE_CLASSES):
        weights = np.tile(_age_weights(first, last), areas)
        bounds = np.concatenate(([0], np.cumsum(weights)))
        for male in (0, 1):
            rows = np.flatnonzero(age_class == index)
            people = men[rows] if male else count[rows] - men[rows]
            # Systematic sampling along (area, age): a start per stratum, then equal steps.
            start = _phases(2 * len(count), int(bounds[-1]))[2 * rows + male]
            drawn = np.diff((people[:, None] * bounds + start[:, None]) // bounds[-1], axis=1)
            table[male, rows, :, first : last + 1] = drawn.reshape(len(rows), areas, -1)

    first_number = np.cumsum(table, axis=1) - table
    fullest = int(table.sum(axis=1).max())
    if fullest > SLOTS * 365:
        raise ValueError(f"{fullest} people of one sex, area and year; ids suffice for {SLOTS * 365}")
    male_at, stratum, area, age = np.nonzero(table)
    return stratum, male_at == 1, area, age, table[table > 0], first_number[table > 0]


def _age_weights(first: int, last: int) -> Ints:
    """Return the weight of each single year within an age class; assumed."""
    years = np.arange(first, last + 1)
    if first == AGE_CLASSES[_OLD][0]:
        return (last + 1 - years) ** 2
    if first == AGE_CLASSES[_ADULT][0]:
        return 60 - np.abs(years - 33)
    return np.ones_like(years)


def _streets(profile: Profile) -> tuple[tuple[str, ...], Ints, Ints]:
    """Return code, district and living residents of every street. Sizes within a district are assumed."""
    per_district = largest_remainder(profile.population, DISTRICT_SHARES)
    streets = [2 + n for n in largest_remainder(profile.streets - 2 * len(AREA_CODES), DISTRICT_SHARES)]
    codes: list[str] = []
    residents: list[int] = []
    for area, people, number in zip(AREA_CODES, per_district, streets, strict=True):
        codes += [f"{area}{street:03d}" for street in range(1, number + 1)]
        residents += largest_remainder(people, [2 + 10 * i // (number - 1) for i in range(number)])
    district = np.repeat(np.arange(len(AREA_CODES)), streets)
    return tuple(codes), district, np.array(residents, dtype=np.int64)


def _villages(
    profile: Profile, streets: Sequence[str], residents: Ints
) -> tuple[tuple[str, ...], Ints, Ints]:
    """Return codes, running sizes and each street's place among them: see `Plan`. All of it is assumed."""
    numbers = largest_remainder(profile.villages, residents.tolist())
    codes = [
        f"{street}V{village + 1:02d}"
        for street, number in zip(streets, numbers, strict=True)
        for village in range(number)
    ]
    ends = np.cumsum(2 + _phases(profile.villages, 7))
    places = np.concatenate(([0], ends))[np.concatenate(([0], np.cumsum(numbers)))]
    return tuple(codes), ends, places


def _phases(count: int, modulus: int) -> Ints:
    """Return `count` starting points in [0, modulus), evenly spread (golden-ratio sequence)."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return ((steps >> np.uint64(32)) * np.uint64(modulus) >> np.uint64(32)).astype(np.int64)
