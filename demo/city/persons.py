"""The right answers of scenarios 2, 8 and 10: which persons, exactly, from the truth alone.

Persons are named by one digest over all of them, so that an answer can be compared without a name being read.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from demo.city.expected import KEY_TYPE
from demo.city.identity import SNAPSHOT_DAY
from demo.city.people import DIVORCED, MARRIED, REMARRIED, SINGLE, WIDOWED, Flags, People
from demo.city.plan import Ints, Plan
from demo.city.profile import SNAPSHOT
from demo.city.registers import Extract

GRACE_DAYS: Final = 60
"""How long after a death a register may still hold the person, at least."""

UNTIL: Final = SNAPSHOT.replace(day=1) - timedelta(GRACE_DAYS)
"""The last day that is past it: days are counted back from the first of the extracts' month."""

_UNTIL_DAY: Final = SNAPSHOT_DAY - (SNAPSHOT - UNTIL).days

QUESTIONS: Final[Mapping[str, tuple[str, str, str]]] = {
    "register": ("police/register", "health/deaths", "death_date"),
    "pension": ("human-resources/pension", "civil-affairs/funeral", "funeral_date"),
}
"""Scenario 2's questions: the register, the list of the dead that it is held against, and its date."""

AGES: Final = ("0-14", "15-59", "60-69", "70-79", "80+")
_AGE_ENDS: Final = np.array([15, 60, 70, 80])

GROUPS: Final[Mapping[str, tuple[int, ...]]] = {
    "single": (SINGLE,),
    "married": (MARRIED, REMARRIED),
    "widowed": (WIDOWED,),
    "divorced": (DIVORCED,),
}
"""Marital status as scenario 8 compares it: groups of codes."""

POLICE: Final = "police/population"
MARRIAGES: Final = "civil-affairs/marriage"

COUNTED_PERSONS: Final = frozenset({POLICE, MARRIAGES, *(name for q in QUESTIONS.values() for name in q[:2])})


@dataclass(frozen=True, slots=True)
class Uncancelled:
    """One question of scenario 2.

    Args:
        register, source: `organisation/table` of the list that should not hold them, and of the dead.
        register_keys: people on the register.
        source_keys: people on the list of the dead, past the grace or not.
        flagged: people on both lists whose date is past the grace.
        flagged_sha256: see `keys_sha256`.
        within_grace: people on both lists whose date is not.
        missed: people on the register who died before the grace and whom the source does not list, or not as
            past it.
        streets: flagged by the source's street; streets without any are left out.
        ages: flagged by age at the end of the year.
        months: people on both lists by months from the source's date to the extract, past the grace or not.
    """

    register: str
    source: str
    register_keys: int
    source_keys: int
    flagged: int
    flagged_sha256: str
    within_grace: int
    missed: int
    streets: Mapping[str, int]
    ages: Mapping[str, int]
    months: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Deaths:
    """Scenario 2: the dead who are still on a register, or paid a pension (应销未销, 养老金续领).

    Args:
        schema, scenario, profile, seed, snapshot: see `Expected`.
        grace_days: days of grace.
        until: last day that is past them.
        dead: people who died in the year.
        questions: by name, see QUESTIONS.
    """

    SCHEMA: ClassVar[str] = "minshu-city-deaths/1"

    schema: str
    scenario: int
    profile: str
    seed: int
    snapshot: str
    grace_days: int
    until: str
    dead: int
    questions: Mapping[str, Uncancelled]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the record whose plain form this is."""
        questions = {
            name: Uncancelled(
                **{**each, "months": {str(m): tuple(each["months"][str(m)]) for m in range(12)}}
            )
            for name, each in ((name, value["questions"][name]) for name in QUESTIONS)
        }
        return cls(**{**value, "questions": questions})


@dataclass(frozen=True, slots=True)
class MaritalStatus:
    """Scenario 8: whose marital status two departments have differently (婚姻状况校核).

    Args:
        schema, scenario, profile, seed, snapshot: see `Expected`.
        police_keys, marriage_keys: people on each list.
        both: people on both.
        differing: of these, whose status is of another group.
        differing_sha256: see `keys_sha256`.
        pairs: differing people by the police's group, then the marriage register's.
        districts: differing people by district of residence as the police have it.
        police_wrong, marriages_wrong: of the differing, who of the two is.
    """

    SCHEMA: ClassVar[str] = "minshu-city-marital/1"

    schema: str
    scenario: int
    profile: str
    seed: int
    snapshot: str
    police_keys: int
    marriage_keys: int
    both: int
    differing: int
    differing_sha256: str
    pairs: Mapping[str, Mapping[str, int]]
    districts: Mapping[str, int]
    police_wrong: int
    marriages_wrong: int


def keys_sha256(ids: Iterable[bytes]) -> str:
    """Return `sha256:` and the digest over the typed keys of these ids, ascending, one newline after each."""
    digest = hashlib.sha256()
    for each in sorted(ids):
        digest.update(KEY_TYPE + each + b"\n")
    return "sha256:" + digest.hexdigest()


@dataclass(slots=True)
class _Question:
    """Counts of one question of scenario 2."""

    keys: list[npt.NDArray[np.bytes_]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    streets: Counter[int] = field(default_factory=Counter)
    ages: Counter[int] = field(default_factory=Counter)
    months: Counter[tuple[int, bool]] = field(default_factory=Counter)


class PersonTally:
    """Counts what scenarios 2 and 8 ask, block by block."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.questions = {name: _Question() for name in QUESTIONS}
        self.counts: Counter[str] = Counter()
        self.pairs: Counter[tuple[int, int]] = Counter()
        self.districts: Counter[int] = Counter()
        self.differing: list[npt.NDArray[np.bytes_]] = []

    def count(self, people: People, counted: Mapping[str, Extract]) -> None:
        """Count one block."""
        self.counts["dead"] += int((people.death_day >= 0).sum())
        for name, (register, source, column) in QUESTIONS.items():
            self._count_dead(self.questions[name], people, counted[register], counted[source], column)
        self._count_marital(people, counted[POLICE], counted[MARRIAGES])

    def _count_dead(
        self, into: _Question, people: People, register: Extract, source: Extract, column: str
    ) -> None:
        persons = len(people.cohort)
        row = source.newest(persons)
        listed = row >= 0
        day = np.full(persons, SNAPSHOT, dtype="datetime64[D]")
        day[listed] = source.rows[column].to_numpy()[row[listed]]
        past = listed & (day <= np.datetime64(UNTIL))
        on_register = register.newest(persons) >= 0
        flagged = past & on_register
        died_before = (people.death_day >= 0) & (people.death_day <= _UNTIL_DAY)
        into.counts["register"] += int(on_register.sum())
        into.counts["source"] += int(listed.sum())
        into.counts["within"] += int((listed & ~past & on_register).sum())
        into.counts["missed"] += int((on_register & died_before & ~flagged).sum())
        into.keys.append(_ids(people, flagged))
        into.streets.update(people.street[flagged].tolist())
        into.ages.update(np.searchsorted(_AGE_ENDS, people.age[flagged], side="right").tolist())
        both = np.flatnonzero(listed & on_register)
        ago = (np.datetime64(SNAPSHOT, "M") - day[both].astype("datetime64[M]")).astype(np.int64)
        into.months.update(zip(ago.tolist(), past[both].tolist(), strict=True))

    def _count_marital(self, people: People, police: Extract, marriages: Extract) -> None:
        persons = len(people.cohort)
        known, told = police.newest(persons), marriages.newest(persons)
        both = np.flatnonzero((known >= 0) & (told >= 0))
        one = _groups(police.rows["marital"].to_numpy()[known[both]])
        other = _groups(marriages.rows["status"].to_numpy()[told[both]])
        differs = one != other
        true = _groups(people.marital[both])
        self.counts["police"] += int((known >= 0).sum())
        self.counts["marriages"] += int((told >= 0).sum())
        self.counts["both"] += len(both)
        self.counts["police wrong"] += int((differs & (one != true)).sum())
        self.counts["marriages wrong"] += int((differs & (other != true)).sum())
        self.pairs.update(zip(one[differs].tolist(), other[differs].tolist(), strict=True))
        who = both[differs]
        districts = police.rows["residence_district"].take(pa.array(known[who]))
        self.districts.update(int(code) for code in districts.to_pylist())
        chosen = np.zeros(persons, dtype=np.bool_)
        chosen[who] = True
        self.differing.append(_ids(people, chosen))

    def add(self, other: "PersonTally") -> None:
        """Take in another tally."""
        for name, into in self.questions.items():
            more = other.questions[name]
            into.keys += more.keys
            into.counts += more.counts
            into.streets += more.streets
            into.ages += more.ages
            into.months += more.months
        self.counts += other.counts
        self.pairs += other.pairs
        self.districts += other.districts
        self.differing += other.differing

    def deaths(self, seed: int) -> Deaths:
        """Return the right answer of scenario 2."""
        return Deaths(
            Deaths.SCHEMA, 2, self._plan.profile.name, seed, SNAPSHOT.isoformat(),
            GRACE_DAYS, UNTIL.isoformat(), self.counts["dead"],
            {name: self._uncancelled(name) for name in QUESTIONS},
        )  # fmt: skip

    def _uncancelled(self, name: str) -> Uncancelled:
        found, (register, source, _) = self.questions[name], QUESTIONS[name]
        keys = np.concatenate(found.keys)
        return Uncancelled(
            register=register,
            source=source,
            register_keys=found.counts["register"],
            source_keys=found.counts["source"],
            flagged=len(keys),
            flagged_sha256=keys_sha256(keys),
            within_grace=found.counts["within"],
            missed=found.counts["missed"],
            streets={self._plan.street_codes[street]: n for street, n in sorted(found.streets.items())},
            ages={label: found.ages[index] for index, label in enumerate(AGES)},
            months={str(ago): (found.months[ago, True], found.months[ago, False]) for ago in range(12)},
        )

    def marital(self, seed: int) -> MaritalStatus:
        """Return the right answer of scenario 8."""
        differing = np.concatenate(self.differing)
        names = list(GROUPS)
        return MaritalStatus(
            MaritalStatus.SCHEMA, 8, self._plan.profile.name, seed, SNAPSHOT.isoformat(),
            self.counts["police"], self.counts["marriages"], self.counts["both"],
            len(differing), keys_sha256(differing),
            {
                one: {
                    other: self.pairs[i, j] for j, other in enumerate(names) if self.pairs[i, j]
                }
                for i, one in enumerate(names)
            },
            {str(code): count for code, count in sorted(self.districts.items())},
            self.counts["police wrong"], self.counts["marriages wrong"],
        )  # fmt: skip


def _groups(codes: npt.NDArray[Any]) -> Ints:
    """Return the place of each code's group in GROUPS."""
    table = np.full(DIVORCED + 1, -1, dtype=np.int64)
    for place, members in enumerate(GROUPS.values()):
        table[list(members)] = place
    groups: Ints = table[codes]
    return groups


def _ids(people: People, chosen: Flags) -> npt.NDArray[np.bytes_]:
    return np.ascontiguousarray(people.ids[chosen]).view("S18").ravel()
