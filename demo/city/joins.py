"""The right answers of questions over joined rows: of scenarios 2, 3, 5 and 7.

Whoever is on several lists under one identifier is joined there, with the newest row of each: the generator
knows whose row is whose, so no identifier is read. Two lists that know a person by different identifiers do
not join the person, as they do not in a node.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt

from demo.city.people import Flags, People
from demo.city.persons import QUESTIONS, UNTIL, keys_sha256
from demo.city.plan import SECOND_ID, Ints, Plan
from demo.city.profile import SNAPSHOT
from demo.city.registers import Extract

I64 = npt.NDArray[np.int64]

PENSION, FUNERAL, BURIED_ON = QUESTIONS["pension"]
MONTHLY_HIGH: Final = 1_000_000
"""Most that one month's pension counts for in the overpaid total, in fen."""

PAST_MONTH: Final = np.datetime64(UNTIL + timedelta(1), "M") - np.timedelta64(1, "M")
"""The last month of which every day is past the grace: the total is of funerals until then."""

REGISTER: Final = "police/register"
TELECOM: Final = "telecom/monthly"

INSURED: Final = "human-resources/insured"
INCOME: Final = "tax/income"
BUSINESSES: Final = "market-regulation/businesses"

SETTLEMENTS: Final = "medical-insurance/settlements"
LOW_INCOME: Final = "civil-affairs/low_income"
ENROLMENT: Final = "education/enrolment"
LEASES: Final = "housing/leases"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a question about moments: amounts outside its bounds count as the nearer bound.

    Args:
        dataset: `organisation/table`.
        name: of the register's column.
        low, high: bounds, both included.
        months: whether the amount is whole months from the column's day or month to that of the extracts.
    """

    dataset: str
    name: str
    low: int
    high: int
    months: bool = False

    def amounts(self, rows: Extract, at: Ints) -> I64:
        """Return the amounts of these rows, before they are held to the bounds."""
        values: npt.NDArray[Any] = rows.rows[self.name].to_numpy()[at]
        if not self.months:
            whole: I64 = values.astype(np.int64)
            return whole
        if values.dtype.kind == "M":
            return _months_until(values)
        last = SNAPSHOT.year * 12 + SNAPSHOT.month - 1
        found: I64 = last - (values.astype(np.int64) // 100 * 12 + values.astype(np.int64) % 100 - 1)
        return found


MOMENTS: Final[Mapping[str, Mapping[str, Column]]] = {
    "three": {
        "insured": Column(INSURED, "insured_since", 0, 120, months=True),
        "band": Column(INCOME, "income_band", 1, 7),
        "open": Column(BUSINESSES, "opened_on", 0, 120, months=True),
    },
    "two": {
        "base": Column(INSURED, "contribution_base_fen", 230_000, 1_000_000),
        "tax": Column(INCOME, "withheld_fen", 0, 500_000),
    },
}
"""Scenario 5's questions: their columns, by the word that the job has for each."""

RULE_HIGH: Final[Mapping[str, int]] = {"self_paid": 20_000_000, "rent": 1_200_000}
"""Greatest amounts of scenario 7's columns, in fen; what is more counts as that."""

SELF_PAID_LEAST: Final = 600_000
RENT_MOST: Final = 600_000
WEIGHTS: Final[Mapping[str, int]] = {"self_paid": 2, "rent": 1, "pupil": 400_000}
BURDEN_LEAST: Final = 2_000_000
"""Scenario 7's rule, in fen: bills paid oneself in the year of 6,000 yuan or more; a rent of 6,000 a month at
most; and twice those bills, a month's rent and 4,000 yuan for whoever is enrolled come to 20,000 or more."""

BURDENS: Final = tuple(range(1_200_000, 8_000_001, 400_000))
"""Other thresholds that the rule's last clause could have, for comparison."""

ILLNESS_LEAST: Final = 1_200_000
SHARE_OF_INCOME: Final = (2, 5)
PENSION_A_YEAR: Final = 3_600_000
"""Who is in hardship in truth (assumed): an illness cost of 12,000 yuan a year or more, and two fifths or
more of what the household earns, where an old person with a household register here has 36,000 besides."""

COUNTED_JOINS: Final = frozenset(
    {
        PENSION, FUNERAL, REGISTER, TELECOM, INSURED, INCOME, BUSINESSES,
        SETTLEMENTS, LOW_INCOME, ENROLMENT, LEASES,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Overpaid:
    """Scenario 2: what was paid to the dead who are on the pension list, after their month (多发金额).

    Args:
        schema, scenario, profile, seed, snapshot: see `Expected`.
        persons: people on the pension list who have a funeral on record, past their grace or not.
        total_fen: monthly pension times whole months from the month of the funeral to that of the extracts.
        past_grace: of these people, whose funeral was in PAST_MONTH or before.
        past_grace_fen: the part of the total that is of them.
        bounded_fen: that part, of MONTHLY_HIGH a month at most.
        bounded: of how many of them that is less.
        months: people by that number of months.
    """

    SCHEMA: ClassVar[str] = "minshu-city-overpaid/2"
    FILE: ClassVar[str] = "scenario-2-overpaid"

    schema: str
    scenario: int
    profile: str
    seed: int
    snapshot: str
    persons: int
    total_fen: int
    past_grace: int
    past_grace_fen: int
    bounded_fen: int
    bounded: int
    months: Mapping[str, int]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the record whose plain form this is."""
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Residents:
    """Scenario 3: street of registration, as the police have it, and of most nights, as the operator has.

    Args:
        schema, scenario, profile, seed, snapshot: see `Expected`.
        persons: people on both lists.
        separated: of these, who sleep in another street of the city than they are registered in.
        streets: persons per street of registration and of nights; pairs without any are left out.
    """

    SCHEMA: ClassVar[str] = "minshu-city-residents/1"
    FILE: ClassVar[str] = "scenario-3-residents"

    schema: str
    scenario: int
    profile: str
    seed: int
    snapshot: str
    persons: int
    separated: int
    streets: Mapping[str, Mapping[str, int]]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the record whose plain form this is."""
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Moments:
    """The exact moments of some columns over the people on all their lists.

    Args:
        columns: names, in order.
        persons: people on all lists.
        bounded: of each column, how many amounts are outside its bounds.
        sums: of each column, held to its bounds.
        products: of each pair of columns.
    """

    columns: tuple[str, ...]
    persons: int
    bounded: tuple[int, ...]
    sums: tuple[int, ...]
    products: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class FlexibleWork:
    """Scenario 5: what the insured pay on, what they are taxed on, and their businesses (灵活就业).

    Args:
        schema, scenario, profile, seed, snapshot: see `Expected`.
        lists: people on each list, by `organisation/table`.
        questions: by name, see MOMENTS.
    """

    SCHEMA: ClassVar[str] = "minshu-city-flexible-work/1"
    FILE: ClassVar[str] = "scenario-5"

    schema: str
    scenario: int
    profile: str
    seed: int
    snapshot: str
    lists: Mapping[str, int]
    questions: Mapping[str, Moments]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the record whose plain form this is."""
        questions = {
            name: Moments(
                tuple(each["columns"]),
                each["persons"],
                tuple(each["bounded"]),
                tuple(each["sums"]),
                tuple(tuple(row) for row in each["products"]),
            )
            for name, each in ((name, value["questions"][name]) for name in MOMENTS)
        }
        return cls(**{**value, "questions": questions})


@dataclass(frozen=True, slots=True)
class Hardship:
    """Scenario 7: leads to people whom an illness has made poor (因病致贫), and who is, in truth.

    Args:
        schema, scenario, profile, seed, snapshot: see `Expected`.
        settled: people with settled bills.
        joined: of these, who are not on the low-income list.
        flagged: of these, whose rows meet the rule.
        flagged_sha256: see `keys_sha256`.
        found: of the flagged, who are in hardship.
        in_hardship: people in hardship, on any list or none.
        helped: of these, who are on the low-income list already.
        bounded: amounts of joined people beyond RULE_HIGH, by column.
        thresholds: for each of BURDENS as the last clause's threshold, how many would be flagged, and found.
    """

    SCHEMA: ClassVar[str] = "minshu-city-hardship/1"
    FILE: ClassVar[str] = "scenario-7"

    schema: str
    scenario: int
    profile: str
    seed: int
    snapshot: str
    settled: int
    joined: int
    flagged: int
    flagged_sha256: str
    found: int
    in_hardship: int
    helped: int
    bounded: Mapping[str, int]
    thresholds: Mapping[str, tuple[int, int]]

    @property
    def precision(self) -> float:
        """Share of the flagged who are in hardship."""
        return self.found / self.flagged

    @property
    def recall(self) -> float:
        """Share of those in hardship, and not helped yet, who are flagged."""
        return self.found / (self.in_hardship - self.helped)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the record whose plain form this is."""
        thresholds = {each: (flagged, found) for each, (flagged, found) in value["thresholds"].items()}
        return cls(**{**value, "thresholds": thresholds})


Answer = Overpaid | Residents | FlexibleWork | Hardship


@dataclass(slots=True)
class _Sums:
    """Running moments of one question."""

    persons: int
    bounded: list[int]
    sums: list[int]
    products: list[list[int]]

    @classmethod
    def of(cls, columns: int) -> Self:
        return cls(0, [0] * columns, [0] * columns, [[0] * columns for _ in range(columns)])

    def add(self, other: Self) -> None:
        self.persons += other.persons
        self.bounded = _added(self.bounded, other.bounded)
        self.sums = _added(self.sums, other.sums)
        self.products = [_added(*rows) for rows in zip(self.products, other.products, strict=True)]


def _added(one: Iterable[int], other: Iterable[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]


@dataclass(slots=True)
class _Found:
    """Persons of scenario 7."""

    keys: list[npt.NDArray[np.bytes_]] = field(default_factory=list)
    thresholds: Counter[tuple[int, str]] = field(default_factory=Counter)


class JoinTally:
    """Counts what scenarios 2, 3, 5 and 7 ask over joined rows, block by block."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        streets = len(plan.street_codes)
        self.counts: Counter[str] = Counter()
        self.months: Counter[int] = Counter()
        self.streets: I64 = np.zeros((streets, streets), dtype=np.int64)
        self.lists: Counter[str] = Counter()
        self.moments = {name: _Sums.of(len(columns)) for name, columns in MOMENTS.items()}
        self.found = _Found()

    def count(self, people: People, counted: Mapping[str, Extract]) -> None:
        """Count one block."""
        joined = _Joined(people, counted)
        self._count_overpaid(joined)
        self._count_residents(joined)
        for name in (INSURED, INCOME, BUSINESSES):
            self.lists[name] += int((joined.row(name, name) >= 0).sum())
        for name, columns in MOMENTS.items():
            self.moments[name].add(_sums(joined, columns))
        self._count_hardship(joined)

    def _count_overpaid(self, joined: "_Joined") -> None:
        who = joined.on(PENSION, FUNERAL)
        buried = joined.values(FUNERAL, BURIED_ON, who)
        past = buried.astype("datetime64[M]") <= PAST_MONTH
        monthly = joined.values(PENSION, "monthly_fen", who)
        months = _months_until(buried)
        bounded = np.minimum(monthly, MONTHLY_HIGH)
        self.counts["overpaid"] += len(months)
        self.counts["overpaid fen"] += int((monthly * months).sum())
        self.counts["past"] += int(past.sum())
        self.counts["past fen"] += int((monthly * months)[past].sum())
        self.counts["bounded fen"] += int((bounded * months)[past].sum())
        self.counts["bounded"] += int((monthly[past] > MONTHLY_HIGH).sum())
        self.months.update(months.tolist())

    def _count_residents(self, joined: "_Joined") -> None:
        who = joined.on(REGISTER, TELECOM)
        # A household register stays where it is, whatever row is read.
        lives = joined.people.street_then(who, joined.ago(TELECOM, who))
        np.add.at(self.streets, (joined.people.register_street[who], lives), 1)

    def _count_hardship(self, joined: "_Joined") -> None:
        people = joined.people
        settled = joined.on(SETTLEMENTS)
        who = settled[joined.row(LOW_INCOME, SETTLEMENTS)[settled] < 0]
        own = joined.values(SETTLEMENTS, "self_paid_fen", who).astype(np.int64)
        rent = np.zeros(len(who), dtype=np.int64)
        leases = joined.row(LEASES, SETTLEMENTS)[who]
        rent[leases >= 0] = joined.counted[LEASES].rows["rent_fen"].to_numpy()[leases[leases >= 0]]
        pupil = (joined.row(ENROLMENT, SETTLEMENTS)[who] >= 0).astype(np.int64)
        for name, amounts in (("self_paid", own), ("rent", rent)):
            self.counts[f"{name} beyond"] += int((amounts > RULE_HIGH[name]).sum())
        own, rent = np.minimum(own, RULE_HIGH["self_paid"]), np.minimum(rent, RULE_HIGH["rent"])
        burden = WEIGHTS["self_paid"] * own + WEIGHTS["rent"] * rent + WEIGHTS["pupil"] * pupil
        alone = (own >= SELF_PAID_LEAST) & (rent <= RENT_MOST)
        poor = in_hardship(people)
        chosen = who[alone & (burden >= BURDEN_LEAST)]
        helped = joined.row(LOW_INCOME, LOW_INCOME) >= 0
        self.counts["settled"] += len(settled)
        self.counts["joined"] += len(who)
        self.counts["found"] += int(poor[chosen].sum())
        self.counts["in hardship"] += int(poor.sum())
        self.counts["helped"] += int((poor & helped).sum())
        self.found.keys.append(np.ascontiguousarray(people.ids[chosen]).view("S18").ravel())
        for least in BURDENS:
            flagged = who[alone & (burden >= least)]
            self.found.thresholds[least, "flagged"] += len(flagged)
            self.found.thresholds[least, "found"] += int(poor[flagged].sum())

    def add(self, other: "JoinTally") -> None:
        """Take in another block's counts."""
        self.counts += other.counts
        self.months += other.months
        self.streets += other.streets
        self.lists += other.lists
        for name, sums in other.moments.items():
            self.moments[name].add(sums)
        self.found.keys += other.found.keys
        self.found.thresholds += other.found.thresholds

    def answers(self, seed: int) -> tuple[Answer, ...]:
        """Return the right answers."""
        codes, counts = self._plan.street_codes, self.counts
        head = (self._plan.profile.name, seed, SNAPSHOT.isoformat())
        persons = int(self.streets.sum())
        keys, would = np.concatenate(self.found.keys), self.found.thresholds
        return (
            Overpaid(
                Overpaid.SCHEMA, 2, *head, counts["overpaid"], counts["overpaid fen"], counts["past"],
                counts["past fen"], counts["bounded fen"], counts["bounded"],
                {str(months): n for months, n in sorted(self.months.items())},
            ),
            Residents(
                Residents.SCHEMA, 3, *head, persons, persons - int(np.trace(self.streets)),
                {
                    code: {codes[at]: int(row[at]) for at in np.flatnonzero(row)}
                    for code, row in zip(codes, self.streets, strict=True)
                },
            ),
            FlexibleWork(
                FlexibleWork.SCHEMA, 5, *head,
                {name: self.lists[name] for name in (INSURED, INCOME, BUSINESSES)},
                {
                    name: Moments(
                        tuple(columns), each.persons, tuple(each.bounded), tuple(each.sums),
                        tuple(tuple(row) for row in each.products),
                    )
                    for (name, columns), each in zip(MOMENTS.items(), self.moments.values(), strict=True)
                },
            ),
            Hardship(
                Hardship.SCHEMA, 7, *head, counts["settled"], counts["joined"], len(keys), keys_sha256(keys),
                counts["found"], counts["in hardship"], counts["helped"],
                {name: counts[f"{name} beyond"] for name in RULE_HIGH},
                {
                    str(least): (would[least, "flagged"], would[least, "found"]) for least in BURDENS
                },
            ),
        )  # fmt: skip


class _Joined:
    """One block's lists, side by side."""

    def __init__(self, people: People, counted: Mapping[str, Extract]) -> None:
        self.people, self.counted = people, counted
        persons = len(people.cohort)
        self._rows = {name: counted[name].newest(persons) for name in COUNTED_JOINS}
        self._two_ids = np.isin(people.cohort, [int(cohort) for cohort in SECOND_ID])

    def row(self, name: str, beside: str) -> Ints:
        """Return each person's row on a list, -1 where it has none under the identifier that `beside` has."""
        rows = self._rows[name]
        if self.counted[name].own_ids == self.counted[beside].own_ids:
            return rows
        return np.where(self._two_ids, -1, rows)

    def on(self, first: str, *others: str) -> Ints:
        """Return who is on all of these lists under one identifier."""
        there = self._rows[first] >= 0
        for name in others:
            there &= self.row(name, first) >= 0
        return np.flatnonzero(there)

    def values(self, name: str, column: str, who: Ints) -> npt.NDArray[Any]:
        """Return what a list says of people that are on it."""
        found: npt.NDArray[Any] = self.counted[name].rows[column].to_numpy()[self._rows[name][who]]
        return found

    def ago(self, name: str, who: Ints) -> Ints:
        """Return how many months old their newest rows are."""
        return self.counted[name].ago[self._rows[name][who]]

    def amounts(self, column: Column, who: Ints) -> I64:
        """Return a column of people that are on its list."""
        return column.amounts(self.counted[column.dataset], self._rows[column.dataset][who])


def _sums(joined: _Joined, columns: Mapping[str, Column]) -> _Sums:
    """Return one block's moments. A block has fewer than 2^16 people and amounts are below 2^23."""
    who = joined.on(*dict.fromkeys(column.dataset for column in columns.values()))
    found = np.empty((len(who), len(columns)), dtype=np.int64)
    bounded: list[int] = []
    for at, column in enumerate(columns.values()):
        amounts = joined.amounts(column, who)
        found[:, at] = np.clip(amounts, column.low, column.high)
        bounded.append(int((found[:, at] != amounts).sum()))
    return _Sums(len(who), bounded, found.sum(axis=0).tolist(), (found.T @ found).tolist())


def _months_until(days: npt.NDArray[Any]) -> I64:
    """Return whole months from the month of each day to that of the extracts."""
    months: I64 = (np.datetime64(SNAPSHOT, "M") - days.astype("datetime64[M]")).astype(np.int64)
    return months


def in_hardship(people: People) -> Flags:
    """Return whom an illness has made poor, in truth: see ILLNESS_LEAST and what stands beside it."""
    pensioners = people.living & people.household & (people.age >= 60)
    earned = people.income_fen + pensioners * PENSION_A_YEAR

    def of(other: Ints) -> I64:
        return np.where(other >= 0, earned[other], 0)

    household = earned + of(people.spouse) + of(people.mother) + of(people.father)
    share, of_all = SHARE_OF_INCOME
    costly = people.illness_fen >= ILLNESS_LEAST
    return people.living & costly & (people.illness_fen * of_all >= household * share)
