"""Who is vaccinated, in truth, and what it depends on: features of several departments. All of it is assumed.

The outcome is drawn from log-odds that are a sum over what the police know (age, sex, registration, kind of
street), what health knows (visits, yearly check-up) and what medical insurance knows (scheme), and two terms
of two features at once, which no linear model has. Draws come from each person's `lot`: they take nothing
from any other table's stream.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import exp, factorial
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from demo.city.identity import coded, mix, text_array
from demo.city.people import Flags, People
from demo.city.plan import Ints

ADULT: Final = 15
"""From this age on; children's doses are in another register."""

AGE_EDGES: Final = (30, 45, 60, 70)
VISIT_EDGES: Final = (1, 3, 6)
"""A band begins at each of these; the first one below it."""

KINDS: Final = ("register", "floating")
STREET_TYPES: Final = ("core", "suburb", "village")
SCHEMES: Final = ("employee", "resident", "none")
ANSWERS: Final = ("no", "yes")

_BASE: Final = -0.8
_AGES: Final = (-1.2, -0.7, -0.2, 0.8, 1.3)
_FEMALE: Final = 0.3
_FLOATING: Final = -0.9
_STREETS: Final = (0.5, 0.0, -0.8)
_SCHEME: Final = (0.3, 0.0, -1.2)
_VISITS: Final = (-0.8, 0.0, 0.6, 1.1)
_CHECKUP: Final = 0.7
_OLD_IN_A_VILLAGE: Final = -1.2
_YOUNG_WITH_CHECKUP: Final = 0.9
"""Terms of the log-odds, by band or code."""

_MOST_VISITS: Final = 20
_YOUNG, _OLD = 45, 60


@dataclass(frozen=True, slots=True)
class Uptake:
    """Of everybody in a block, one entry each; whoever is below `ADULT` has entries that nobody uses.

    Args:
        visits: to a doctor within the year.
        checkup: whether the person took the yearly check-up.
        street_type, scheme: index in STREET_TYPES and SCHEMES.
        chance: of being vaccinated.
        vaccinated: against influenza, this season.
    """

    visits: Ints
    checkup: Flags
    street_type: Ints
    scheme: Ints
    chance: npt.NDArray[np.float64]
    vaccinated: Flags


@lru_cache(maxsize=4)
def uptake(people: People) -> Uptake:
    """Return what is so of a block's people; several tables of a block ask, one block after the other."""
    age, floating, everybody = people.age, ~people.household, np.arange(len(people.age))
    old = age >= _OLD
    village = people.village(everybody, people.street) >= 0
    street_type = np.where(village, 2, (people.street % 3 > 0).astype(np.int64))
    ill = people.illness_fen > 0
    visits = _poisson(_uniform(people, 1), 0.7 + 0.6 * (age >= _YOUNG) + 1.0 * old + 1.3 * ill)
    checkup = _uniform(people, 2) < np.where(old, 0.6, np.where(floating, 0.1, 0.25))
    uninsured = _uniform(people, 3) < np.where(floating, 0.14, 0.05)
    employed = (age >= 23) & ~old & (_uniform(people, 4) < 0.62)
    scheme = np.where(uninsured, 2, np.where(employed, 0, 1))
    odds = (
        _BASE
        + np.array(_AGES)[_band(age, AGE_EDGES)]
        + _FEMALE * ~people.male
        + _FLOATING * floating
        + np.array(_STREETS)[street_type]
        + np.array(_SCHEME)[scheme]
        + np.array(_VISITS)[_band(visits, VISIT_EDGES)]
        + _CHECKUP * checkup
        + _OLD_IN_A_VILLAGE * (old & village)
        + _YOUNG_WITH_CHECKUP * ((age < _YOUNG) & checkup)
    )
    chance = 1 / (1 + np.exp(-odds))
    return Uptake(visits, checkup, street_type, scheme, chance, _uniform(people, 5) < chance)


def bands(people: People, found: Uptake) -> Ints:
    """Return n x 7 codes: age band, sex, kind, street type, visits band, check-up, scheme; see `WIDTHS`."""
    return np.column_stack(
        [
            _band(people.age, AGE_EDGES),
            (~people.male).astype(np.int64),
            (~people.household).astype(np.int64),
            found.street_type,
            _band(found.visits, VISIT_EDGES),
            found.checkup.astype(np.int64),
            found.scheme,
        ]
    )


WIDTHS: Final = {"age": 5, "sex": 2, "kind": 2, "street_type": 3, "visits": 4, "checkup": 2, "scheme": 3}
"""How many codes each column of `bands` has."""


def uptake_table(people: People) -> pa.Table:
    """Return the block's part of truth/vaccination: the grown-up residents."""
    found = uptake(people)
    who = np.flatnonzero(people.living & (people.age >= ADULT))
    return pa.table(
        {
            "resident_id": text_array(people.ids[who]),
            "street_type": coded(STREET_TYPES, found.street_type[who]),
            "scheme": coded(SCHEMES, found.scheme[who]),
            "visits": pa.array(found.visits[who], type=pa.int16()),
            "checkup": pa.array(found.checkup[who]),
            "chance": pa.array(found.chance[who]),
            "vaccinated": pa.array(found.vaccinated[who]),
        }
    )


PANEL_PER_CENT: Final = 10
"""So many invented people stand in the public panel for a hundred grown-up residents."""


def panel_table(people: People, rng: np.random.Generator) -> pa.Table:
    """Return the block's part of statistics/panel, a public test set: invented people of the same kind.

    They are as old as some residents, and live where these do; all else is drawn anew, so a row is about
    nobody and nobody was trained on it.
    """
    who = np.flatnonzero(people.living & (people.age >= ADULT))
    who = rng.permutation(who)[: len(who) * PANEL_PER_CENT // 100]
    found = uptake(replace(people, lot=rng.integers(0, 1 << 64, len(people.lot), dtype=np.uint64)))
    return pa.table(
        {
            "age": pa.array(people.age[who].astype(np.int16)),
            "sex": pa.array(np.where(people.male[who], 1, 2).astype(np.int8)),
            "kind": coded(KINDS, ~people.household[who]),
            "street": coded(people.plan.street_codes, people.street[who]),
            "street_type": coded(STREET_TYPES, found.street_type[who]),
            "scheme": coded(SCHEMES, found.scheme[who]),
            "visits": pa.array(found.visits[who].astype(np.int16)),
            "checkup": coded(ANSWERS, found.checkup[who]),
            "vaccinated": coded(ANSWERS, found.vaccinated[who]),
        }
    )


def _band(values: Ints, edges: tuple[int, ...]) -> Ints:
    band: Ints = np.searchsorted(np.array(edges), values, side="right")
    return band


def _uniform(people: People, number: int) -> npt.NDArray[np.float64]:
    """Return a draw from [0, 1) for each person; another number, an independent one."""
    bits = mix(people.lot, 0x5AFE_0000 + number) >> np.uint64(11)
    draws: npt.NDArray[np.float64] = bits.astype(np.float64) / (1 << 53)
    return draws


def _poisson(draws: npt.NDArray[np.float64], means: npt.NDArray[np.float64]) -> Ints:
    """Return counts by inversion, `_MOST_VISITS` at most; few means occur."""
    found = np.zeros(len(draws), dtype=np.int64)
    for mean in np.unique(means).tolist():
        chances = [exp(-mean) * mean**k / factorial(k) for k in range(_MOST_VISITS)]
        who = means == mean
        found[who] = np.searchsorted(np.cumsum(chances), draws[who], side="right")
    return found
