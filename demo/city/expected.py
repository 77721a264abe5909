"""The right answer of scenario 1, from the truth alone.

The question: who is in two sources or more, and not on the police's list?
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt

from demo.city.people import People
from demo.city.plan import FLAGGED, SECOND_ID, Cohort, Ints, Plan
from demo.city.profile import AREA_CODES, SNAPSHOT, SOURCES

MIN_SOURCES: Final = 2

POLICE: Final = "police"

DATASETS: Final[Mapping[str, str]] = {
    POLICE: "police/population",
    "human-resources": "human-resources/insured",
    "health": "health/patients",
    "education": "education/enrolment",
    "housing": "housing/leases",
}
"""The dataset, `organisation/table`, that each organisation brings to scenario 1."""

KEY_TYPE: Final = b"RIC:"
"""Type tag of a resident id before it is hashed or compared."""

_POLICE_BIT: Final = 1 << len(SOURCES)


@dataclass(frozen=True, slots=True)
class List:
    """One organisation's list.

    Args:
        dataset: `organisation/table`.
        rows: rows, repeats and invalid ids included.
        distinct_keys: keys after normalisation.
        known_to_police: of those, how many are on the police's list; over distinct_keys, the coverage.
    """

    dataset: str
    rows: int
    distinct_keys: int
    known_to_police: int


@dataclass(frozen=True, slots=True)
class Expected:
    """The right answer of scenario 1.

    Args:
        schema: version of this record.
        scenario: 1.
        profile, seed, snapshot: of the city.
        min_sources: in how many sources a flagged key is, at least.
        lists: by organisation, the police first.
        venn: keys per exact region; the name joins the organisations on whose lists a key is with `+`.
        in_min_sources: keys in `min_sources` sources or more, on the police's list or not.
        flagged: of those, keys that are not on the police's list.
        flagged_sha256: `sha256:` and the digest over the flagged typed keys in ascending byte order, each
            followed by one newline.
        confirmed: flagged keys of people who live here and are registered nowhere.
        flagged_by_meaning: flagged keys per what they turn out to be; `true` is `confirmed`.
        streets: flagged keys per street, before disclosure control; streets without any are left out.
        districts: the district (area code) of every street of the city, the groups of disclosure control.
    """

    SCHEMA: ClassVar[str] = "minshu-city-expected/1"

    schema: str
    scenario: int
    profile: str
    seed: int
    snapshot: str
    min_sources: int
    lists: Mapping[str, List]
    venn: Mapping[str, int]
    in_min_sources: int
    flagged: int
    flagged_sha256: str
    confirmed: int
    flagged_by_meaning: Mapping[str, int]
    streets: Mapping[str, int]
    districts: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the record that `to_json` wrote."""
        lists = {name: List(**entry) for name, entry in value["lists"].items()}
        return cls(**{**value, "lists": {name: lists[name] for name in DATASETS}})


class Tally:
    """Counts what scenario 1 asks, block by block."""

    def __init__(self, plan: Plan) -> None:
        self.regions: Ints = np.zeros(2 * _POLICE_BIT, dtype=np.int64)
        """Keys per bit pattern: SOURCES, then the police."""
        self.streets: Ints = np.zeros(len(plan.street_codes), dtype=np.int64)
        self.meanings: Ints = np.zeros(len(Cohort), dtype=np.int64)
        self.keys: list[npt.NDArray[np.bytes_]] = []

    def count(self, people: People) -> None:
        """Count one block."""
        second = np.isin(people.cohort, list(SECOND_ID))
        # Two keys for whoever has a second id: the police know the one, the sources the other.
        own = np.where(second, 0, people.lists) | people.listed * _POLICE_BIT
        regions = np.concatenate((own, people.lists[second]))
        self.regions += np.bincount(regions, minlength=2 * _POLICE_BIT)
        flagged = people.flagged
        self.streets += np.bincount(people.street[flagged], minlength=len(self.streets))
        self.meanings += np.bincount(people.cohort[flagged], minlength=len(Cohort))
        self.keys.append(np.ascontiguousarray(people.known_as[flagged]).view("S18").ravel())

    def add(self, other: "Tally") -> None:
        """Take in another tally."""
        self.regions += other.regions
        self.streets += other.streets
        self.meanings += other.meanings
        self.keys += other.keys


def scenario_1(plan: Plan, seed: int, tally: Tally, rows: Mapping[str, int]) -> Expected:
    """Return the right answer, from the tally of all blocks.

    Args:
        plan: the counts.
        seed: the city's seed.
        tally: of the whole city.
        rows: rows of each dataset, by `organisation/table`.
    """
    patterns = np.arange(len(tally.regions))
    sources = (patterns[:, None] >> np.arange(len(SOURCES)) & 1).sum(axis=1)
    by_police = (patterns & _POLICE_BIT) > 0

    def keys_where(mask: npt.NDArray[np.bool_]) -> int:
        return int(tally.regions[mask].sum())

    lists: dict[str, List] = {}
    for name, dataset in DATASETS.items():
        bit = _POLICE_BIT if name == POLICE else 1 << SOURCES.index(name)
        on = (patterns & bit) > 0
        lists[name] = List(dataset, rows[dataset], keys_where(on), keys_where(on & by_police))

    flagged = keys_where((sources >= MIN_SOURCES) & ~by_police)
    keys = np.sort(np.concatenate(tally.keys))
    lines = np.empty((len(keys), len(KEY_TYPE) + 19), dtype=np.uint8)
    lines[:, : len(KEY_TYPE)] = np.frombuffer(KEY_TYPE, dtype=np.uint8)
    lines[:, len(KEY_TYPE) : -1] = keys.view(np.uint8).reshape(-1, 18)
    lines[:, -1] = ord("\n")
    digest = hashlib.sha256(lines.tobytes()).hexdigest()
    if not flagged == len(keys) == plan.people(frozenset(FLAGGED)) == len(np.unique(keys)):
        raise AssertionError("the flagged keys drawn are not those planned")
    names = (*SOURCES, POLICE)
    return Expected(
        schema=Expected.SCHEMA,
        scenario=1,
        profile=plan.profile.name,
        seed=seed,
        snapshot=SNAPSHOT.isoformat(),
        min_sources=MIN_SOURCES,
        lists=lists,
        venn={
            "+".join(name for bit, name in enumerate(names) if pattern >> bit & 1): int(count)
            for pattern, count in enumerate(tally.regions)
            if count and pattern
        },
        in_min_sources=keys_where(sources >= MIN_SOURCES),
        flagged=flagged,
        flagged_sha256="sha256:" + digest,
        confirmed=int(tally.meanings[Cohort.UNREGISTERED]),
        flagged_by_meaning={meaning: int(tally.meanings[cohort]) for cohort, meaning in FLAGGED.items()},
        streets={
            code: int(count) for code, count in zip(plan.street_codes, tally.streets, strict=True) if count
        },
        districts={
            code: AREA_CODES[district]
            for code, district in zip(plan.street_codes, plan.street_district, strict=True)
        },
    )
