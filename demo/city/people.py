"""The truth: one block of people with everything that is so about them, whoever knows it."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from demo.city.identity import (
    SNAPSHOT_DAY,
    Text,
    birth_days,
    coded,
    dates,
    generator,
    mix,
    names,
    person_slots,
    phones,
    resident_ids,
    text_array,
)
from demo.city.plan import FLAGGED, HOUSEHOLD, LISTED, LIVING, SECOND_ID, SLOTS, Cohort, Ints, Plan
from demo.city.profile import SNAPSHOT, SOURCES, VILLAGERS_PER_MILLE

Flags = npt.NDArray[np.bool_]

MONTHS: Final = np.array(
    [
        (SNAPSHOT.year * 12 + SNAPSHOT.month - 1 - ago) // 12 * 100
        + (SNAPSHOT.year * 12 + SNAPSHOT.month - 1 - ago) % 12
        + 1
        for ago in range(120)
    ],
    dtype=np.int64,
)
"""yyyymm, by months before the extract."""

NEVER: Final = 99
"""Months ago of something that has not happened."""

MOVED_PER_MILLE: Final = 80
"""Residents on the police's list who changed street within twelve months; assumed."""

SINGLE, MARRIED, REMARRIED, WIDOWED, DIVORCED = 10, 21, 22, 30, 40
"""Marital status, GB/T 2261.2."""

_MARRIED_PER_MILLE: Final = 700  # of the adults of the rarer sex within a block; assumed

# Quantiles of yearly income and of yearly illness cost, in fen; assumed.
_QUANTILES: Final = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
_INCOME: Final = (1_800_000, 3_200_000, 5_000_000, 7_800_000, 12_500_000, 21_000_000, 60_000_000, 220_000_000)
_ILLNESS: Final = (5_000, 20_000, 60_000, 180_000, 520_000, 1_600_000, 12_000_000, 60_000_000)
_ILL_PER_MILLE: Final = 400


@dataclass(frozen=True, slots=True, eq=False)
class People:
    """One block of people, in random order; every array has one entry per person.

    Args:
        plan: the counts they were drawn from.
        cohort, age, lists: see `Plan`; `lists` is a bit pattern over SOURCES.
        male: sex.
        serial: number of the person in the whole city.
        birth_day: day of birth, on the scale of `identity.birth_days`.
        death_day: day of death, -1 for the living.
        ids: n x 18, the person's own resident id.
        known_as: n x 18, the id the scenario-1 sources carry: differs for the cohorts in SECOND_ID.
        name, dotted: name, and whether it has a dot.
        street, previous_street, moved_ago: street now, street before the last move, months since that move.
        departed_ago: months since leaving the city, NEVER for those who did not.
        register_street: street of the household register, -1 for floating people.
        marital, marital_days: GB/T 2261.2 code, and for how many days it has been so, -1 for the single.
        spouse, mother, father: index within the block, -1 where unknown.
        income_fen, illness_fen: per year, 0 for none.
        school_year: year of entry into the present stage, 0 for those not of school age.
        lot: 64 bits that say, for any street the person lives in, whether in a village there and in which.
    """

    plan: Plan
    cohort: Ints
    age: Ints
    lists: Ints
    male: Flags
    serial: Ints
    birth_day: Ints
    death_day: Ints
    ids: Text
    known_as: Text
    name: pa.Array
    dotted: Flags
    street: Ints
    previous_street: Ints
    moved_ago: Ints
    departed_ago: Ints
    register_street: Ints
    marital: Ints
    marital_days: Ints
    spouse: Ints
    mother: Ints
    father: Ints
    income_fen: Ints
    illness_fen: Ints
    school_year: Ints
    lot: npt.NDArray[np.uint64]

    @property
    def living(self) -> Flags:
        """Who lives in the city on the day of the extract."""
        return _among(self.cohort, LIVING)

    @property
    def listed(self) -> Flags:
        """Who is on the police's list."""
        return _among(self.cohort, LISTED)

    @property
    def flagged(self) -> Flags:
        """Whose key, as the sources know it, is in two sources or more and not on the police's list."""
        return _among(self.cohort, frozenset(FLAGGED))

    @property
    def household(self) -> Flags:
        """Who has, or had at death, a household register in the city."""
        return _among(self.cohort, HOUSEHOLD)

    def phones(self, who: Ints, dead: Flags) -> Text:
        """Return a phone number per entry of `who`; a dead one is a number the person no longer has."""
        return phones(self.serial[who] + dead * 50_000_000)

    def street_then(self, who: Ints, ago: Ints) -> Ints:
        """Return the street of each of `who`, `ago` months before the extract."""
        return np.where(ago > self.moved_ago[who], self.previous_street[who], self.street[who])

    def village(self, who: Ints, street: Ints) -> Ints:
        """Return the village in which each of `who` lives when living in `street`, -1 for none."""
        bits = mix(self.lot[who] + street.astype(np.uint64), 0)
        share = np.where(self.household[who], VILLAGERS_PER_MILLE[1], VILLAGERS_PER_MILLE[0])
        begins, ends = self.plan.street_villages[street], self.plan.street_villages[street + 1]
        inside = (ends > begins) & ((bits % np.uint64(1000)).astype(np.int64) < share)
        found = np.full(len(who), -1, dtype=np.int64)
        place = (bits[inside] >> np.uint64(40)).astype(np.int64) % (ends - begins)[inside]
        found[inside] = np.searchsorted(self.plan.village_ends, begins[inside] + place, side="right")
        return found


def _among(cohort: Ints, cohorts: frozenset[Cohort]) -> Flags:
    table = np.zeros(len(Cohort), dtype=np.bool_)
    table[list(cohorts)] = True
    return table[cohort]


def draw_people(plan: Plan, seed: int, block: int) -> People:
    """Return the people of one block: a function of (profile, seed, block) and of nothing else."""
    rng = generator(seed, "truth/persons", block)
    first, members = plan.members(block)
    cell = np.repeat(np.arange(len(members)), members)
    within = np.arange(len(cell)) - np.repeat(np.cumsum(members) - members, members)
    number = np.repeat(first, members) + within

    order = rng.permutation(len(cell))
    cell, number = cell[order], number[order]
    stratum = plan.cell_stratum[cell]
    cohort, lists = plan.cohort[stratum], plan.lists[stratum]
    male, age, area = plan.cell_male[cell], plan.cell_age[cell], plan.cell_area[cell]
    day, rank = birth_days(seed, area, male, age, number)
    slot = person_slots(seed, area, male, day, rank)
    ids = resident_ids(area, male, day, slot)
    known_as = ids.copy()
    second = np.flatnonzero(_among(cohort, SECOND_ID))
    known_as[second] = resident_ids(area[second], male[second], day[second], slot[second] + SLOTS)

    count = len(cohort)
    living = _among(cohort, LIVING)
    name, dotted = names(rng, male)
    street = np.empty(count, dtype=np.int64)
    residences = np.repeat(np.arange(len(plan.street_codes)), plan.streets[block])
    street[living] = rng.permutation(residences)
    street[~living] = residences[rng.integers(0, len(residences), count - int(living.sum()))]

    # Whoever could be flagged stays put, so that every source gives the same street for a flagged key.
    moves = _among(cohort, frozenset({Cohort.REGISTERED, Cohort.FLOATING}))
    moves &= rng.integers(0, 1000, count) < MOVED_PER_MILLE
    moved_ago = np.where(moves, rng.integers(0, 12, count), NEVER)
    previous_street = np.where(moves, residences[rng.integers(0, len(residences), count)], street)
    left = _among(cohort, frozenset({Cohort.DEPARTED, Cohort.GONE}))
    departed_ago = np.where(left, rng.integers(3, 13, count), NEVER)

    register_street = np.where(_among(cohort, HOUSEHOLD), street, -1)
    residents = np.flatnonzero(_among(cohort, HOUSEHOLD & LIVING))
    away = rng.permutation(residents)[: plan.separated[block]]
    step = rng.integers(1, len(plan.street_codes), len(away))
    register_street[away] = (street[away] + step) % len(plan.street_codes)

    death_day = np.full(count, -1, dtype=np.int64)
    dead = np.flatnonzero(_among(cohort, frozenset({Cohort.DEAD, Cohort.UNCANCELLED})))
    # Whoever is still on the register died at least 90 days ago: past the 60 days' grace.
    latest = np.where(cohort[dead] == Cohort.UNCANCELLED, 365 - 90, 365)
    death_day[dead] = np.maximum(SNAPSHOT_DAY - 364 + rng.integers(0, latest), day[dead])

    spouse = _couples(rng, living & (age >= 23), male, day)
    mother = _mothers(rng, living & (age < 15), living & ~male & (age >= 23), day)
    father = np.where(mother >= 0, spouse[mother], -1)
    marital = _marital(rng, spouse, age)
    serial = int(plan.sizes[:block].sum()) + np.arange(count)
    return People(
        plan=plan,
        cohort=cohort,
        age=age,
        lists=lists,
        male=male,
        serial=serial,
        birth_day=day,
        death_day=death_day,
        ids=ids,
        known_as=known_as,
        name=name,
        dotted=dotted,
        street=street,
        previous_street=previous_street,
        moved_ago=moved_ago,
        departed_ago=departed_ago,
        register_street=register_street,
        marital=marital,
        marital_days=_marital_days(generator(seed, "truth/marital", block), marital, spouse, age),
        spouse=spouse,
        mother=mother,
        father=father,
        income_fen=_amounts(rng, _INCOME, (age >= 18) & (age < 60), 850),
        illness_fen=_amounts(rng, _ILLNESS, living, _ILL_PER_MILLE),
        school_year=np.where((age >= 3) & (age <= 22), _school_year(age), 0),
        lot=mix(serial.astype(np.uint64), seed ^ 0x7111A6E),
    )


def _couples(rng: np.random.Generator, adults: Flags, male: Flags, day: Ints) -> Ints:
    """Return everybody's spouse: as many of each sex, paired by age, oldest with oldest."""
    sides = []
    pairs = min(int((adults & male).sum()), int((adults & ~male).sum())) * _MARRIED_PER_MILLE // 1000
    for sex in (male, ~male):
        chosen = rng.permutation(np.flatnonzero(adults & sex))[:pairs]
        sides.append(chosen[np.argsort(day[chosen], kind="stable")])
    spouse = np.full(len(day), -1, dtype=np.int64)
    spouse[sides[0]], spouse[sides[1]] = sides[1], sides[0]
    return spouse


def _mothers(rng: np.random.Generator, children: Flags, women: Flags, day: Ints) -> Ints:
    """Return a mother 22 to 40 years older for every child, -1 for everybody else."""
    mother = np.full(len(day), -1, dtype=np.int64)
    child = np.flatnonzero(children)
    candidates = np.flatnonzero(women)
    candidates = candidates[np.argsort(day[candidates], kind="stable")]
    low = np.searchsorted(day[candidates], day[child] - 40 * 365)
    high = np.searchsorted(day[candidates], day[child] - 22 * 365)
    some = high > low
    mother[child[some]] = candidates[rng.integers(low[some], high[some])]
    return mother


def _marital(rng: np.random.Generator, spouse: Ints, age: Ints) -> Ints:
    """Return GB/T 2261.2 codes."""
    draw = rng.integers(0, 100, len(age))
    old = np.where(draw < 70, WIDOWED, DIVORCED)
    grown = np.where(age >= 60, old, np.where(draw < 80, SINGLE, DIVORCED))
    alone = np.where(age < 23, SINGLE, grown)
    return np.where(spouse >= 0, np.where(draw < 92, MARRIED, REMARRIED), alone)


def _marital_days(rng: np.random.Generator, marital: Ints, spouse: Ints, age: Ints) -> Ints:
    """Return for how many days everybody's marital status has been so: the same for both of a couple."""
    everybody = np.arange(len(age))
    other = np.where(spouse >= 0, spouse, everybody)
    # Drawn at the one of the two who comes first; the younger was of age then.
    draw = rng.random(len(age))[np.minimum(everybody, other)]
    youngest = np.minimum(age, age[other])
    days = (draw * np.maximum(youngest - 22, 1) * 365).astype(np.int64)
    return np.where(marital == SINGLE, -1, days)


def _amounts(rng: np.random.Generator, quantiles: tuple[int, ...], eligible: Flags, per_mille: int) -> Ints:
    """Return amounts in fen from a piecewise linear distribution, 0 for those not drawn."""
    drawn = eligible & (rng.integers(0, 1000, len(eligible)) < per_mille)
    amount = np.interp(rng.random(len(eligible)), _QUANTILES, quantiles).astype(np.int64)
    return np.where(drawn, amount, 0)


STAGES: Final = ("kindergarten", "primary", "junior", "senior", "university")
_STAGE_FIRST_AGE: Final = np.array([3, 6, 12, 15, 18])


def stage_of(age: Ints) -> Ints:
    """Return the index in STAGES of somebody of that age, 3 to 22."""
    stage: Ints = np.searchsorted(_STAGE_FIRST_AGE, age, side="right") - 1
    return stage


def _school_year(age: Ints) -> Ints:
    entered: Ints = _STAGE_FIRST_AGE[np.maximum(stage_of(age), 0)]
    return SNAPSHOT.year - age + entered


def primary_year(age: Ints) -> Ints:
    """Return the calendar year in which somebody of that age entered primary school, or will."""
    year: Ints = SNAPSHOT.year - age + _STAGE_FIRST_AGE[STAGES.index("primary")]
    return year


def truth_tables(people: People) -> dict[str, pa.Table]:
    """Return the block's part of truth/persons and truth/flagged."""
    plan = people.plan
    own = text_array(people.ids)

    def of(index: Ints) -> pa.Array:
        """Return the ids at `index`, null where it is -1."""
        return own.take(pa.array(index, mask=index < 0))

    def month(ago: Ints) -> pa.Array:
        return pa.array(MONTHS[np.where(ago == NEVER, 0, ago)], mask=ago == NEVER, type=pa.int32())

    here = people.living
    village = people.village(np.arange(len(here)), people.street)
    persons = {
        "resident_id": own,
        "known_as": pc.if_else(
            pa.array(_among(people.cohort, SECOND_ID)),
            text_array(people.known_as),
            pa.scalar(None, pa.string()),
        ),
        "cohort": coded(tuple(cohort.name.lower() for cohort in Cohort), people.cohort),
        "living": pa.array(here),
        "on_police_list": pa.array(people.listed),
        **{
            f"in_{source.replace('-', '_')}": pa.array((people.lists >> bit & 1).astype(np.bool_))
            for bit, source in enumerate(SOURCES)
        },
        "sex": pa.array(np.where(people.male, 1, 2), type=pa.int8()),
        "birth_date": dates(people.birth_day),
        "death_date": pc.if_else(
            pa.array(people.death_day >= 0), dates(people.death_day), pa.scalar(None, pa.date32())
        ),
        "departed_month": month(people.departed_ago),
        "street": coded(plan.street_codes, people.street, here),
        "village": coded(plan.village_codes, village, here & (village >= 0)),
        "previous_street": coded(plan.street_codes, people.previous_street, people.moved_ago != NEVER),
        "moved_month": month(people.moved_ago),
        "register_street": coded(plan.street_codes, people.register_street, people.register_street >= 0),
        "marital": pa.array(people.marital, type=pa.int8()),
        "marital_since": pc.if_else(
            pa.array(people.marital_days >= 0),
            dates(SNAPSHOT_DAY - np.maximum(people.marital_days, 0)),
            pa.scalar(None, pa.date32()),
        ),
        "spouse_id": of(people.spouse),
        "mother_id": of(people.mother),
        "father_id": of(people.father),
        "income_fen": pa.array(people.income_fen),
        "illness_fen": pa.array(people.illness_fen),
        "school_year": pa.array(people.school_year, type=pa.int16(), mask=people.school_year == 0),
    }
    who = np.flatnonzero(people.flagged)
    meaning = pa.array([FLAGGED.get(cohort, "") for cohort in Cohort])
    flagged = {
        "resident_id": text_array(people.known_as[who]),
        "own_id": text_array(people.ids[who]),
        "meaning": meaning.take(pa.array(people.cohort[who])),
        "street": coded(plan.street_codes, people.street[who]),
        "sources": pa.array(people.lists[who], type=pa.int8()),
    }
    return {"persons": pa.table(persons), "flagged": pa.table(flagged)}
