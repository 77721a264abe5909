"""The registers: what each department knows of the people, one function per table, still without errors.

A table is a `Sheet`: whom it lists and what it says about them. `extract` turns it into rows: some people
twice or three times, ids spelled as clerks spell them, every deviation logged.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from demo.city.dirt import Log, respell_dots, spell_ids, with_repeats
from demo.city.identity import (
    SNAPSHOT_DAY,
    Text,
    account_numbers,
    coded,
    credit_codes,
    dates,
    drawn,
    generator,
    mix,
    phones,
    text_array,
)
from demo.city.people import (
    DIVORCED,
    MARRIED,
    MONTHS,
    NEVER,
    REMARRIED,
    SINGLE,
    STAGES,
    WIDOWED,
    Flags,
    People,
    primary_year,
    stage_of,
)
from demo.city.plan import EDU, HEALTH, HOUSING, HR, Cohort, Ints
from demo.city.profile import (
    AREA_CODES,
    BIRTH_MISMATCH_PER_MILLE,
    MARITAL_STALE_PER_MILLE,
    MARITAL_STALE_YEARS,
    NO_PERMIT_PER_MILLE,
    SNAPSHOT,
    WIDOWED_ON_RECORD_PER_MILLE,
)
from demo.city.uptake import ADULT, ANSWERS, KINDS, SCHEMES, STREET_TYPES, uptake

Column: TypeAlias = pa.Array | npt.NDArray[Any]
"""A column before repeats: Arrow array, integers, or n x width ASCII."""

DEAD_PHONES_PER_MILLE: Final = 127

_YEAR: Final = np.arange(
    np.datetime64(f"{SNAPSHOT.year}-01"), np.datetime64(f"{SNAPSHOT.year + 1}-01"), dtype="datetime64[D]"
)
_MONTHS_SINCE: Final = 12 - (_YEAR.astype("datetime64[M]").astype(np.int64)[::-1] % 12 + 1)
"""Whole months before the extract, by days before it."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """Whom a table lists, and its columns.

    Args:
        who: index of the person of each row.
        columns: by name, one entry per row; resident_id, name, phone, street and last_seen_month are added.
        ids: n x 18 per person of the block: own ids, or the ids the scenario-1 sources know.
        ago: months before the extract each row was last confirmed; None draws it.
        street: street index of each row; None takes where the person lived then.
        contact: whether the table has name and phone.
        village: whether a column says in which urban village of its street a row's person lives.
        district: whether a column says in which district the row's street is.
        logged: further deviations, {kind: which rows}.
    """

    who: Ints
    columns: Mapping[str, Column]
    ids: Text
    ago: Ints | None = None
    street: Ints | None = None
    contact: bool = True
    village: bool = False
    district: bool = False
    logged: Mapping[str, Flags] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Extract:
    """One block's part of a register, and the log of what is wrong with it.

    Args:
        rows: the register's rows.
        log: columns `row` (within this part), `kind` and `of_row`.
        distinct: people listed, each once; ids that are dropped for a bad check digit are repeats.
        who: index of the person of each row, -1 where nobody can tell from its id.
        ago: months before the extract each row was last confirmed.
        own_ids: whether its ids are the people's own, and not those that the scenario-1 sources know.
    """

    rows: pa.Table
    log: pa.Table
    distinct: int
    who: Ints
    ago: Ints
    own_ids: bool

    def counting(self, inside: Flags) -> Ints:
        """Return one row per person: of those `inside` the last confirmed, the first of several."""
        rows = np.flatnonzero(inside & (self.who >= 0))
        # Sorted latest first and written back to front: the first of each person stays. Small integers are
        # sorted by radix.
        rows = rows[np.argsort(self.ago[rows].astype(np.int16), kind="stable")]
        first = np.full(int(self.who.max(initial=-1)) + 1, -1, dtype=np.int64)
        first[self.who[rows[::-1]]] = rows[::-1]
        return first[first >= 0]

    def newest(self, persons: int) -> Ints:
        """Return the last confirmed row of each of the block's persons, -1 for whom it does not list."""
        rows = self.counting(np.ones(len(self.who), dtype=np.bool_))
        found = np.full(persons, -1, dtype=np.int64)
        found[self.who[rows]] = rows
        return found


def extract(table: str, people: People, seed: int, block: int) -> Extract:
    """Return one block's part of the register called `organisation/table`."""
    rng = generator(seed, table, block)
    sheet = REGISTERS[table](people, rng)
    listed = int(np.count_nonzero(np.bincount(sheet.who)))
    order, original = with_repeats(rng, len(sheet.who))
    who = sheet.who[order]
    log = Log(len(order))
    log.repeats(original)
    for kind, rows in sheet.logged.items():
        log.add(kind, np.flatnonzero(rows[order]))

    repeated = original >= 0
    born_19xx = people.age[who] > SNAPSHOT.year - 2000
    columns: dict[str, pa.Array] = {
        "resident_id": spell_ids(rng, sheet.ids.take(who, axis=0), repeated, born_19xx, log),
    }
    if sheet.contact:
        dead = drawn(rng, len(who), DEAD_PHONES_PER_MILLE)
        log.add("dead-phone", np.flatnonzero(dead))
        name = people.name.take(pa.array(who))
        columns["name"] = respell_dots(rng, name, np.flatnonzero(people.dotted[who]), log)
        columns["phone"] = text_array(people.phones(who, dead))
    for label, column in sheet.columns.items():
        columns[label] = _rows_of(column, order)

    if sheet.ago is None:
        latest = np.where(people.departed_ago == NEVER, 0, people.departed_ago)[who]
        ago = latest + rng.integers(0, 12, len(who)) // 2
        # A repeat is an older record of the same person.
        ago += repeated * rng.integers(1, 7, len(who))
        infant = people.age[who] == 0
        ago[infant] = np.minimum(ago, _months_since(people.birth_day[who]))[infant]
    else:
        ago = sheet.ago[order]
    street = people.street_then(who, ago) if sheet.street is None else sheet.street[order]
    columns["street"] = coded(people.plan.street_codes, street)
    if sheet.district:
        columns["district"] = coded(AREA_CODES, people.plan.street_district[street])
    columns["last_seen_month"] = pa.array(MONTHS[ago], type=pa.int32())
    if sheet.village:
        columns["village"] = _village_codes(people, people.village(who, street))
    told = who.copy()
    told[log.rows("bad-check-digit")] = -1
    own_ids = sheet.ids is people.ids
    return Extract(pa.table(columns), log.table(), listed, told, ago, own_ids)


def _rows_of(column: Column, order: Ints) -> pa.Array:
    """Return `column` in row order, as Arrow."""
    if isinstance(column, np.ndarray):
        taken = column.take(order, axis=0)
        return text_array(taken) if taken.ndim == 2 else pa.array(taken)
    return column.take(pa.array(order))


def _village_codes(people: People, village: Ints) -> pa.Array:
    return coded(people.plan.village_codes, village, village >= 0)


def _school_columns(people: People, who: Ints, authoritative: Flags) -> dict[str, Column]:
    """Return the year in which a child enters primary school, and whether this list is the one that counts.

    A child may be on the lists of several departments; at most one of them counts it (一数一源).
    """
    child = people.age[who] <= _LAST_CHILD_AGE
    return {
        "primary_year": coded(_PRIMARY_YEARS, people.age[who], child),
        "authoritative": coded(ANSWERS, authoritative, child),
    }


_LAST_CHILD_AGE: Final = 14
_PRIMARY_YEARS: Final = tuple(map(str, primary_year(np.arange(_LAST_CHILD_AGE + 1))))
"""By age."""


def _on(people: People, source: int) -> Ints:
    return np.flatnonzero(people.lists & source)


def _sex(people: People, who: Ints) -> npt.NDArray[np.int8]:
    """Return GB/T 2261.1 codes: 1 male, 2 female."""
    return np.where(people.male[who], 1, 2).astype(np.int8)


def _police(people: People, rng: np.random.Generator, keep: Flags) -> Sheet:
    who = np.flatnonzero(people.listed & keep)
    household = people.household[who]
    floating = np.flatnonzero(~household)
    permit = np.zeros(len(who), dtype=np.bool_)
    permit[floating[~drawn(rng, len(floating), NO_PERMIT_PER_MILLE)]] = True
    ago = np.minimum(rng.integers(0, 12, len(who)), _months_since(people.birth_day[who]))
    address = np.where(household, people.register_street[who], people.street_then(who, ago))
    residence = np.where(household, people.street[who], address)
    marital = _marital_as_told(people)[who]
    streets = people.plan.street_codes
    registered, district = people.register_street[who], people.plan.street_district
    return Sheet(
        who,
        {
            "kind": coded(("floating", "register"), household),
            "sex": _sex(people, who),
            "birth_date": dates(people.birth_day[who]),
            "marital": marital.astype(np.int8),
            "register_street": coded(streets, registered, household),
            "register_district": coded(AREA_CODES, district[registered], household),
            "residence_street": coded(streets, residence),
            "residence_district": coded(AREA_CODES, district[residence]),
            "separated": coded(ANSWERS, registered != residence, household),
            "village": _village_codes(people, people.village(who, residence)),
            # Newborns count by their birth certificate, children without a register here by the lease.
            **_school_columns(people, who, household & (people.age[who] > 0)),
            "residence_permit": pc.if_else(
                pa.array(permit),
                text_array(account_numbers("99JZ", people.serial[who], 9)),
                pa.scalar(None, pa.string()),
            ),
        },
        people.ids,
        ago=ago,
        street=address,
        logged={"no-residence-permit": ~household & ~permit, "stale-marital": marital != people.marital[who]},
    )


def _marital_as_told(people: People) -> Ints:
    """Return everybody's marital status as the police have it: of some marriages and divorces nobody told."""
    days = people.marital_days
    recent = (days >= 0) & (days < MARITAL_STALE_YEARS * 365) & (people.marital != WIDOWED)
    untold = (mix(people.lot, _UNTOLD) % np.uint64(1000)).astype(np.int64) < MARITAL_STALE_PER_MILLE
    return np.where(recent & untold, _FORMER[people.marital], people.marital)


_UNTOLD: Final = 0x3A217A1
_FORMER: Final = np.zeros(DIVORCED + 1, dtype=np.int64)
_FORMER[[MARRIED, REMARRIED, DIVORCED]] = SINGLE, DIVORCED, MARRIED
"""Marital status before the present one."""


def police_population(people: People, rng: np.random.Generator) -> Sheet:
    """Everybody the police know: household register and floating registration."""
    return _police(people, rng, np.ones(len(people.cohort), dtype=np.bool_))


def police_register(people: People, rng: np.random.Generator) -> Sheet:
    """The household register."""
    return _police(people, rng, people.household)


def police_floating(people: People, rng: np.random.Generator) -> Sheet:
    """The registration of floating people."""
    return _police(people, rng, ~people.household)


def health_patients(people: People, rng: np.random.Generator) -> Sheet:
    """People with a health record in the city."""
    who = _on(people, HEALTH)
    return Sheet(
        who,
        {
            "sex": _sex(people, who),
            "birth_date": dates(people.birth_day[who]),
            "record_no": account_numbers("JK", people.serial[who], 9),
            "diagnosis": coded(_DISEASES, rng.integers(0, len(_DISEASES), len(who))),
        },
        people.known_as,
    )


_DISEASES: Final = ("I10", "E11", "J44", "I25", "N18", "C34", "B18", "F20", "M81", "K21")
"""ICD-10 categories."""


def health_births(people: People, rng: np.random.Generator) -> Sheet:
    """Birth certificates of the year; some give another date than the household register."""
    who = np.flatnonzero(people.living & (people.age == 0))
    differs = drawn(rng, len(who), BIRTH_MISMATCH_PER_MILLE)
    own = text_array(people.ids)
    mother = people.mother[who]
    # A day late or, on New Year's Day, early: the wrong date too is in the year.
    day = people.birth_day[who]
    recorded = day + differs * np.where(day == SNAPSHOT_DAY - 364, 1, -1)
    return Sheet(
        who,
        {
            "certificate_no": account_numbers("X99", people.serial[who], 9),
            "sex": _sex(people, who),
            "birth_date": dates(recorded),
            "weight_g": rng.integers(2_300, 4_300, len(who)).astype(np.int32),
            "mother_id": own.take(pa.array(mother, mask=mother < 0)),
            **_school_columns(people, who, np.ones(len(who), dtype=np.bool_)),
        },
        people.ids,
        logged={"birth-mismatch": differs},
    )


def health_deaths(people: People, rng: np.random.Generator) -> Sheet:
    """Death certificates of the year."""
    who = np.flatnonzero(people.death_day >= 0)
    return Sheet(
        who,
        {
            "sex": _sex(people, who),
            "death_date": dates(people.death_day[who]),
            "cause": coded(("I", "C", "J", "E", "K", "V"), rng.integers(0, 6, len(who))),
        },
        people.ids,
        ago=_months_since(people.death_day[who]),
        contact=False,
    )


def _months_since(day: Ints) -> Ints:
    """Return whole months before the extract, 11 for anything earlier than the year."""
    return _MONTHS_SINCE[np.clip(SNAPSHOT_DAY - day, 0, len(_MONTHS_SINCE) - 1)]


def health_vaccination(people: People, rng: np.random.Generator) -> Sheet:
    """Children of up to 14 years, 96 in 100 (assumed), with their last dose."""
    who = np.flatnonzero(people.living & (people.age <= 14))
    who = who[rng.integers(0, 100, len(who)) < 96]
    dose_day = np.maximum(SNAPSHOT_DAY - rng.integers(0, 900, len(who)), people.birth_day[who])
    return Sheet(
        who,
        {
            "vaccine": coded(("BCG", "HepB", "DTaP", "MMR", "JE", "MenA"), rng.integers(0, 6, len(who))),
            "doses": np.clip(people.age[who] + 2, 2, 11).astype(np.int8),
            "last_dose": dates(dose_day),
        },
        people.ids,
    )


def health_chronic(people: People, rng: np.random.Generator) -> Sheet:
    """Chronic illnesses of patients: 55 in 100 of the old, 8 of the others over 30 (assumed)."""
    who = np.flatnonzero(people.living & ((people.lists & HEALTH) > 0) & (people.age >= 30))
    who = who[rng.integers(0, 100, len(who)) < np.where(people.age[who] >= 60, 55, 8)]
    return Sheet(
        who,
        {
            "disease": coded(_DISEASES, rng.integers(0, len(_DISEASES), len(who))),
            "since_year": (SNAPSHOT.year - rng.integers(0, 15, len(who))).astype(np.int16),
        },
        people.ids,
    )


def human_resources_insured(people: People, rng: np.random.Generator) -> Sheet:
    """Insured employees."""
    who = _on(people, HR)
    wage = np.maximum(people.income_fen[who] // 12, 230_000)
    return Sheet(
        who,
        {
            "employer": _employer(people, who),
            "contribution_base_fen": wage,
            "insured_since": MONTHS[rng.integers(24, len(MONTHS), len(who))].astype(np.int32),
            "bank_account": account_numbers("9900", people.serial[who], 12),
        },
        people.known_as,
    )


def _employer(people: People, who: Ints) -> Text:
    """Return each person's employer; about twenty people share one."""
    return credit_codes(people.serial[who] * 7_919 % max(people.plan.profile.population // 20, 1))


def human_resources_pension(people: People, rng: np.random.Generator) -> Sheet:
    """Pensions in payment: 85 in 100 of the registered old; and all of the dead still on the register."""
    old = (people.age >= 60) & people.household
    draw = rng.integers(0, 100, len(old))
    # The recently dead stay for the 60 days' grace; the uncancelled are paid on and on.
    grace = (people.death_day >= SNAPSHOT_DAY - 60) & (draw < 85)
    unstopped = people.cohort == Cohort.UNCANCELLED
    who = np.flatnonzero(old & (unstopped | grace | (people.living & (draw < 85))))
    monthly = np.interp(rng.random(len(who)), (0, 0.5, 1), (120_000, 380_000, 1_150_000)).astype(np.int64)
    return Sheet(
        who,
        {
            "monthly_fen": monthly // 100 * 100,
            "paid_until": np.full(len(who), MONTHS[0], dtype=np.int32),
            "bank_account": account_numbers("9901", people.serial[who], 12),
        },
        people.ids,
    )


def civil_affairs_marriage(people: People, rng: np.random.Generator) -> Sheet:
    """One row per person with a marriage or a divorce; some who lost their spouse are still married."""
    on_record = rng.integers(0, 1000, len(people.age)) < WIDOWED_ON_RECORD_PER_MILLE
    widowed = (people.marital == WIDOWED) & on_record
    divorced = people.marital == DIVORCED
    who = np.flatnonzero((people.spouse >= 0) | (people.living & (divorced | widowed)))
    spouse, alone = people.spouse[who], widowed[who]
    # A marriage that ended with a death began twenty years before, or at twenty-two.
    began = np.where(alone, people.marital_days[who] + 20 * 365, people.marital_days[who])
    began = np.minimum(began, SNAPSHOT_DAY - people.birth_day[who] - 22 * 365)
    return Sheet(
        who,
        {
            "status": np.where(alone, MARRIED, people.marital[who]).astype(np.int8),
            "spouse_id": text_array(people.ids).take(pa.array(spouse, mask=spouse < 0)),
            "registered_on": dates(SNAPSHOT_DAY - np.maximum(began, 0)),
        },
        people.ids,
        logged={"stale-marital": alone},
    )


def civil_affairs_low_income(people: People, rng: np.random.Generator) -> Sheet:
    """Recipients of the minimum allowance."""
    who = np.flatnonzero(
        people.living & (rng.integers(0, 1000, len(people.age)) < people.plan.profile.low_income_per_mille)
    )
    return Sheet(
        who,
        {
            "household_no": account_numbers("DB", people.serial[who], 8),
            "allowance_fen": rng.integers(600, 1_301, len(who)) * 100,
            "since": MONTHS[rng.integers(24, len(MONTHS), len(who))].astype(np.int32),
        },
        people.ids,
    )


def civil_affairs_funeral(people: People, rng: np.random.Generator) -> Sheet:
    """Funerals of the year: 97 in 100 of the dead (assumed), a few days after."""
    who = np.flatnonzero(people.death_day >= 0)
    who = who[rng.integers(0, 100, len(who)) < 97]
    day = np.minimum(people.death_day[who] + rng.integers(1, 8, len(who)), SNAPSHOT_DAY)
    return Sheet(
        who,
        {
            "funeral_date": dates(day),
            "funeral_home": coded(("F01", "F02", "F03", "F04"), rng.integers(0, 4, len(who))),
        },
        people.ids,
        ago=_months_since(day),
        contact=False,
    )


def education_enrolment(people: People, rng: np.random.Generator) -> Sheet:
    """Pupils and students; the phone is a guardian's for the young."""
    who = _on(people, EDU)
    stage = stage_of(people.age[who])
    school = people.street[who] * 10 + stage
    return Sheet(
        who,
        {
            "school": account_numbers("S", school, 9),
            "stage": coded(STAGES, stage),
            "entry_year": people.school_year[who].astype(np.int16),
            "student_no": account_numbers("G", people.serial[who], 10),
            "boarding": rng.integers(0, 100, len(who)) < 12,
        },
        people.known_as,
    )


def housing_leases(people: People, rng: np.random.Generator) -> Sheet:
    """People on a registered lease."""
    who = _on(people, HOUSING)
    area = rng.integers(12, 110, len(who))
    return Sheet(
        who,
        {
            "lease_no": account_numbers("ZL", people.serial[who], 9),
            "rent_fen": area * rng.integers(30, 95, len(who)) * 100,
            "floor_area_m2": area.astype(np.int16),
            "lease_from": MONTHS[rng.integers(24, 60, len(who))].astype(np.int32),
            **_school_columns(people, who, ~people.household[who] & (people.age[who] > 0)),
        },
        people.known_as,
        village=True,
    )


_TELECOM_MONTHS: Final = 3


def telecom_monthly(people: People, rng: np.random.Generator) -> Sheet:
    """Street of most nights per subscriber and month, three months; half of those over 14 (assumed)."""
    who = np.flatnonzero(people.living & (people.age >= 15))
    who = who[rng.integers(0, 100, len(who)) < 50]
    ago = np.tile(np.arange(_TELECOM_MONTHS), len(who))
    who = np.repeat(who, _TELECOM_MONTHS)
    return Sheet(
        who,
        {
            "number": phones(people.serial[who]),
            "nights": rng.integers(12, 31, len(who)).astype(np.int8),
        },
        people.ids,
        ago=ago,
        contact=False,
        village=True,
        district=True,
    )


_INCOME_BANDS: Final = np.array([0, 3_600_000, 6_000_000, 9_600_000, 14_400_000, 30_000_000, 66_000_000])
"""Lower ends of the seven bands, in fen per year; assumed."""


def tax_income(people: People, rng: np.random.Generator) -> Sheet:
    """Last year's income band: 70 in 100 of those with an income (assumed)."""
    who = np.flatnonzero(people.living & (people.income_fen > 0))
    who = who[rng.integers(0, 100, len(who)) < 70]
    income = people.income_fen[who]
    return Sheet(
        who,
        {
            "employer": _employer(people, who),
            "tax_year": np.full(len(who), SNAPSHOT.year - 1, dtype=np.int16),
            "income_band": np.searchsorted(_INCOME_BANDS, income, side="right").astype(np.int8),
            "withheld_fen": np.maximum(income - 6_000_000, 0) // 10,
        },
        people.ids,
    )


def medical_insurance_settlements(people: People, rng: np.random.Generator) -> Sheet:
    """Settled cost per insured person and year."""
    who = np.flatnonzero(people.illness_fen > 0)
    cost = people.illness_fen[who]
    return Sheet(
        who,
        {
            "disease": coded(_DISEASES, rng.integers(0, len(_DISEASES), len(who))),
            "cost_fen": cost,
            "self_paid_fen": cost * rng.integers(15, 60, len(who)) // 100,
            "bank_account": account_numbers("9902", people.serial[who], 12),
        },
        people.ids,
    )


def market_regulation_businesses(people: People, rng: np.random.Generator) -> Sheet:
    """Individual businesses: of the adults under 60 some run one (see `Profile`, assumed)."""
    who = np.flatnonzero(people.living & (people.age >= 23) & (people.age < 60))
    who = who[rng.integers(0, 100, len(who)) < people.plan.profile.owners_per_cent]
    return Sheet(
        who,
        {
            # Numbers above every employer's, so that no code is used twice.
            "credit_code": credit_codes(40_000_000 + people.serial[who]),
            "status": coded(("open", "closed", "revoked"), np.clip(rng.integers(-8, 3, len(who)), 0, 2)),
            "opened_on": dates(SNAPSHOT_DAY - rng.integers(0, 3_000, len(who))),
        },
        people.ids,
    )


DISTRICTS: Final = AREA_CODES[:3]
"""The districts whose health bureaus keep immunisation registers of their own: the three largest."""

DISTRICT_LISTS: Final = tuple(f"health-{area}/immunisation" for area in DISTRICTS)


def _grown_up(people: People, rng: np.random.Generator, per_cent: int) -> Ints:
    """Return the residents from ADULT on, of whom so many per cent are on a list."""
    who = np.flatnonzero(people.living & (people.age >= ADULT))
    return who[rng.integers(0, 100, len(who)) < per_cent]


def district_immunisation(people: People, rng: np.random.Generator, *, area: str) -> Sheet:
    """Residents of one district who are 15 or more, 95 in 100 (assumed), vaccinated this season or not."""
    who = _grown_up(people, rng, 95)
    who = who[people.plan.street_district[people.street[who]] == AREA_CODES.index(area)]
    found = uptake(people)
    return Sheet(
        who,
        {
            "age": people.age[who].astype(np.int16),
            "sex": _sex(people, who),
            "kind": coded(KINDS, ~people.household[who]),
            "street_type": coded(STREET_TYPES, found.street_type[who]),
            "scheme": coded(SCHEMES, found.scheme[who]),
            "visits": found.visits[who].astype(np.int16),
            "checkup": coded(ANSWERS, found.checkup[who]),
            "diagnosis": coded(_DISEASES, rng.integers(0, len(_DISEASES), len(who))),
            "vaccinated": coded(ANSWERS, found.vaccinated[who]),
        },
        people.ids,
        street=people.street[who],
        contact=False,
    )


def health_immunisation(people: People, rng: np.random.Generator) -> Sheet:
    """People of 15 or more with a health record: visits, check-up, vaccinated this season or not."""
    who = _grown_up(people, rng, 100)
    who = who[(people.lists[who] & HEALTH) > 0]
    found = uptake(people)
    return Sheet(
        who,
        {
            "visits": found.visits[who].astype(np.int16),
            "checkup": coded(ANSWERS, found.checkup[who]),
            "diagnosis": coded(_DISEASES, rng.integers(0, len(_DISEASES), len(who))),
            "vaccinated": coded(ANSWERS, found.vaccinated[who]),
        },
        people.ids,
        contact=False,
    )


def police_residents(people: People, rng: np.random.Generator) -> Sheet:
    """Residents of 15 or more whom the police know: age, sex, registration and kind of street."""
    who = _grown_up(people, rng, 100)
    who = who[people.listed[who]]
    return Sheet(
        who,
        {
            "age": people.age[who].astype(np.int16),
            "sex": _sex(people, who),
            "kind": coded(KINDS, ~people.household[who]),
            "street_type": coded(STREET_TYPES, uptake(people).street_type[who]),
        },
        people.ids,
        contact=False,
    )


def medical_insurance_enrolled(people: People, rng: np.random.Generator) -> Sheet:
    """Residents of 15 or more who are insured, as employees or as residents."""
    who = _grown_up(people, rng, 100)
    scheme = uptake(people).scheme
    who = who[scheme[who] != SCHEMES.index("none")]
    return Sheet(who, {"scheme": coded(SCHEMES, scheme[who])}, people.ids, contact=False)


REGISTERS: Final[Mapping[str, Callable[[People, np.random.Generator], Sheet]]] = {
    "police/population": police_population,
    "police/register": police_register,
    "police/floating": police_floating,
    "health/patients": health_patients,
    "health/births": health_births,
    "health/deaths": health_deaths,
    "health/vaccination": health_vaccination,
    "health/chronic": health_chronic,
    "human-resources/insured": human_resources_insured,
    "human-resources/pension": human_resources_pension,
    "civil-affairs/marriage": civil_affairs_marriage,
    "civil-affairs/low_income": civil_affairs_low_income,
    "civil-affairs/funeral": civil_affairs_funeral,
    "education/enrolment": education_enrolment,
    "housing/leases": housing_leases,
    "telecom/monthly": telecom_monthly,
    "tax/income": tax_income,
    "medical-insurance/settlements": medical_insurance_settlements,
    "market-regulation/businesses": market_regulation_businesses,
    "police/residents": police_residents,
    "health/immunisation": health_immunisation,
    "medical-insurance/enrolled": medical_insurance_enrolled,
    **{
        name: partial(district_immunisation, area=area)
        for name, area in zip(DISTRICT_LISTS, DISTRICTS, strict=True)
    },
}
"""Every register of people, as `organisation/table`. education/places lists no people and is not here."""
